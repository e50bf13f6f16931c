//! What the tests of faults have in common: clients that go on calling whatever they are answered, and outages counted in a log.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::SetOnDrop;
use super::trilane::{Trilane, text};

/// Logged by a thread whose statement ended for it did not get a lock.
pub(crate) const GIVES_WAY: &str = "gives way and tries again";

/// The length of a fault that is told to last: short in `make test`, as long as the variable says elsewhere.
pub(crate) fn pause() -> Duration {
    let seconds = std::env::var("TRILANE_TEST_PAUSE_SECONDS").ok().map(|text| text.parse().expect("a number"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// How many outages of the store its log tells the beginning and the end of.
pub(crate) fn outages(process: &Trilane, store: &str) -> (usize, usize) {
    let log = process.log();
    (log.matches(&format!("{store} is away")).count(), log.matches(&format!("{store} is back")).count())
}

/// What clients were answered.
#[derive(Default)]
pub(crate) struct Calls {
    /// The ids of jobs that were acknowledged.
    pub(crate) taken: Vec<String>,
    /// The calls that got 429 or 503, each with `Retry-After`.
    pub(crate) refused: usize,
    /// How long the longest call took that was acknowledged, and that was refused.
    pub(crate) longest_taken: Duration,
    pub(crate) longest_refused: Duration,
}

/// Has `clients` submit `job`, a few at a time and each on connections of its own, while `act` runs. Any other answer than 200, or 429
/// and 503 with `Retry-After`, fails the test. Returns what `act` does, and what the clients were answered that it did not take.
pub(crate) fn under_load<T>(
    process: &Trilane,
    clients: usize,
    job: &Value,
    act: impl FnOnce(&Mutex<Calls>) -> T,
) -> (T, Calls) {
    let calls = Mutex::new(Calls::default());
    let is_over = AtomicBool::new(false);
    let acted = thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    call(process, job, &calls);
                }
            });
        }
        let _over = SetOnDrop(&is_over);
        act(&calls)
    });
    (acted, calls.into_inner().expect("no panic"))
}

fn call(process: &Trilane, job: &Value, calls: &Mutex<Calls>) {
    let begun = Instant::now();
    let answer = process.post("/enqueue", &json!([job, job, job]));
    let took = begun.elapsed();
    let mut calls = calls.lock().expect("no panic");
    match answer.status {
        200 => {
            let jobs = answer.body["success"].as_array().expect("an array");
            calls.taken.extend(jobs.iter().map(|job| text(&job["id"]).to_owned()));
            calls.longest_taken = calls.longest_taken.max(took);
        }
        429 | 503 => {
            assert!(answer.retry_after.is_some_and(|seconds| seconds > 0), "when to come back: {answer:?}");
            calls.refused += 1;
            calls.longest_refused = calls.longest_refused.max(took);
        }
        _ => panic!("{answer:?}"),
    }
}

/// What a process costs the machine from one moment on.
pub(crate) struct Cost<'p> {
    process: &'p Trilane,
    memory_kib: u64,
    core_seconds: f64,
    since: Instant,
}

impl Cost<'_> {
    const CORES_MAX: f64 = 0.5;
    const GROWTH_KIB_MAX: u64 = 20 * 1024;

    pub(crate) fn of(process: &Trilane) -> Cost<'_> {
        let (memory_kib, core_seconds) = (process.memory_kib(), process.core_seconds());
        Cost { process, memory_kib, core_seconds, since: Instant::now() }
    }

    /// It has neither spun nor grown since.
    pub(crate) fn assert_little(&self) {
        let cores = (self.process.core_seconds() - self.core_seconds) / self.since.elapsed().as_secs_f64();
        eprintln!("{cores:.2} cores over {:.1?}", self.since.elapsed());
        assert!(cores < Self::CORES_MAX, "{cores:.2} cores");
        self.assert_no_growth();
    }

    pub(crate) fn assert_no_growth(&self) {
        let growth_kib = self.process.memory_kib().saturating_sub(self.memory_kib);
        eprintln!("{growth_kib} KiB more than {} KiB over {:.1?}", self.memory_kib, self.since.elapsed());
        assert!(growth_kib < Self::GROWTH_KIB_MAX, "{growth_kib} KiB");
    }
}
