//! worker-1 … worker-N: run the handlers.
//!
//! 1. Takes the next job: high before medium before low.
//! 2. Runs its handler with the job's time limit; a panic is a failed attempt.
//! 3. Gives exactly one outcome to the finisher, unless the attempt was given up for it, or the replica stops.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select_biased};

use super::feeder::Load;
use super::finisher::Outcomes;
use super::{join_until, lock, panic_text, spawn};
use crate::fault::fault_point;
use crate::handlers::{Attempt, Registry};
use crate::job::{ClaimedJob, Lane};
use crate::lifecycle::Held;
use crate::random;
use crate::retry::{Report, RetryPolicy, judge};
use crate::store::Outcome;
use crate::wake::StopFlag;

/// What the workers share.
pub struct Shop {
    /// From the feeder, in the order of [`Lane::ALL`].
    pub channels: [Receiver<ClaimedJob>; 3],
    /// To the finisher.
    pub outcomes: Outcomes,
    /// What is done for each type.
    pub registry: Arc<Registry>,
    /// Says whether a job may be begun.
    pub held: Arc<Held>,
    /// Told when a worker is free.
    pub load: Arc<Load>,
    /// Waits between attempts, for types without their own.
    pub retry: RetryPolicy,
    /// Time limit of an attempt, for jobs and types without their own.
    pub timeout: Duration,
}

/// The pool of workers.
pub struct Workers {
    shop: Arc<Shop>,
    running: Mutex<HashMap<u64, Running>>,
    next_attempt: AtomicU64,
    // At a stop: unfinished attempts are released, so they give no outcome.
    is_released: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// An attempt under way.
struct Running {
    worker: String,
    job: Arc<ClaimedJob>,
    started: Instant,
    deadline: Instant,
    stop: StopFlag,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(shop: Shop, count: usize) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers {
            shop: Arc::new(shop),
            running: Mutex::default(),
            next_attempt: AtomicU64::new(0),
            is_released: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        for number in 1..=count {
            workers.spawn(format!("worker-{number}"))?;
        }
        Ok(workers)
    }

    fn spawn(self: &Arc<Self>, name: String) -> io::Result<()> {
        let workers = Arc::clone(self);
        let handle = spawn(&name.clone(), move || while workers.work(&name) {})?;
        lock(&self.threads).push(handle);
        Ok(())
    }

    /// Does one job. Returns whether this worker goes on.
    fn work(&self, name: &str) -> bool {
        let Some(job) = self.next().map(Arc::new) else { return false };
        let Some(stop) = self.shop.held.begin(&job) else { return true };
        let started = Instant::now();
        let entry = self.shop.registry.get(&job.job_type);
        let timeout = job.timeout.or(entry.and_then(|entry| entry.timeout)).unwrap_or(self.shop.timeout);
        let deadline = started + timeout;
        let number = self.next_attempt.fetch_add(1, Ordering::Relaxed);
        let running = Running { worker: name.to_owned(), job: Arc::clone(&job), started, deadline, stop: stop.clone() };
        lock(&self.running).insert(number, running);
        fault_point!("worker.begun");
        let report = self.attempt(&job, &Attempt { job: &job, deadline, stop: &stop });
        fault_point!("worker.done");
        // Whoever takes the attempt out of the table answers for it.
        let Some(running) = lock(&self.running).remove(&number) else { return false };
        let is_cut_short = self.is_released.load(Ordering::Acquire) && matches!(report, Report::Retry { .. });
        if !is_cut_short {
            self.give_outcome(&running, report);
        }
        true
    }

    fn next(&self) -> Option<ClaimedJob> {
        let load = &self.shop.load;
        load.idle.fetch_add(1, Ordering::Relaxed);
        load.freed.wake();
        let [high, medium, low] = &self.shop.channels;
        let next = select_biased! {
            recv(high) -> job => job,
            recv(medium) -> job => job,
            recv(low) -> job => job,
        };
        load.idle.fetch_sub(1, Ordering::Relaxed);
        next.ok().or_else(|| self.last())
    }

    /// What is left in the channels after the feeder has gone.
    fn last(&self) -> Option<ClaimedJob> {
        Lane::ALL.into_iter().find_map(|lane| self.shop.channels[lane.index()].try_recv().ok())
    }

    fn attempt(&self, job: &ClaimedJob, attempt: &Attempt<'_>) -> Report {
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&job.payload) {
            return Report::permanent(format!("the payload is not JSON: {error}"));
        }
        let Some(entry) = self.shop.registry.get(&job.job_type) else {
            return Report::permanent(format!("no handler for type {:?} on this replica", job.job_type));
        };
        // OK: nothing of ours is half done where a handler panics; its own state is its own care
        catch_unwind(AssertUnwindSafe(|| entry.handler.run(attempt)))
            .unwrap_or_else(|panic| Report::retry(format!("the handler panicked: {}", panic_text(&*panic))))
    }

    fn give_outcome(&self, running: &Running, report: Report) {
        let job = &running.job;
        let duration = running.started.elapsed();
        self.shop.load.note(duration);
        let policy = self.shop.registry.get(&job.job_type).and_then(|entry| entry.retry).unwrap_or(self.shop.retry);
        let verdict = judge(report, job.retry_count, job.max_retries, &policy, random::unit());
        log::debug!(
            job:% = job.id, "type" = job.job_type.as_str(), lane:% = job.lane, attempt = job.attempt(), worker = running.worker.as_str(),
            duration_ms:? = duration.as_millis(); "{}", verdict.verb()
        );
        let outcome = Outcome {
            seq: job.seq,
            id: job.id,
            token: job.token,
            job_type: job.job_type.clone(),
            lane: job.lane,
            attempt: job.attempt(),
            duration,
            unique_key: job.unique_key.clone(),
            verdict,
        };
        if !self.shop.outcomes.send(outcome) {
            log::warn!(job:% = job.id; "an outcome came after the finisher had ended; the job runs again");
        }
    }

    /// Tells attempts to end whose time is over at `now`, and gives up those that are over by more than `grace`: their worker is replaced and
    /// left behind. Returns the moment of the next deadline.
    pub fn enforce_deadlines(self: &Arc<Self>, now: Instant, grace: Duration) -> Option<Instant> {
        let mut given_up = Vec::new();
        let mut next: Option<Instant> = None;
        let mut running = lock(&self.running);
        for (number, attempt) in running.iter() {
            let last = attempt.deadline + grace;
            if now >= last {
                given_up.push(*number);
                continue;
            }
            let due = if now >= attempt.deadline {
                last
            } else {
                attempt.deadline
            };
            next = Some(next.map_or(due, |next| next.min(due)));
            if now >= attempt.deadline && !attempt.stop.is_set() {
                attempt.stop.set();
            }
        }
        let given_up: Vec<Running> = given_up.into_iter().filter_map(|number| running.remove(&number)).collect();
        drop(running);
        for attempt in given_up {
            self.replace(attempt);
        }
        next
    }

    fn replace(self: &Arc<Self>, attempt: Running) {
        let limit = attempt.deadline.saturating_duration_since(attempt.started);
        log::error!(
            job:% = attempt.job.id, "type" = attempt.job.job_type.as_str(), worker = attempt.worker.as_str();
            "a handler did not return after its time limit; its thread is left behind and another takes its place"
        );
        let reason =
            format!("the handler did not return within its time limit of {limit:?}, nor after it was told to stop");
        self.give_outcome(&attempt, Report::retry(reason));
        if let Err(error) = self.spawn(attempt.worker) {
            log::error!(error:% = error; "no thread for a worker in place of one that hangs");
        }
    }

    /// Attempts under way.
    pub fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// At the end of the drain time: tells all attempts to end. What then fails gives no outcome; its job is released.
    pub fn release_all(&self) {
        self.is_released.store(true, Ordering::Release);
        for attempt in lock(&self.running).values() {
            attempt.stop.set();
        }
    }

    /// Waits until all workers have ended, up to `deadline`. They end when the feeder has gone and the channels are empty.
    pub fn join(&self, deadline: Instant) -> bool {
        let threads = std::mem::take(&mut *lock(&self.threads));
        let (ended, left): (Vec<_>, Vec<_>) = threads.into_iter().partition(|thread| join_until(thread, deadline));
        for thread in ended {
            drop(thread.join()); // OK: panics of handlers were caught
        }
        let all_ended = left.is_empty();
        lock(&self.threads).extend(left);
        all_ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use crossbeam_channel::{RecvTimeoutError, Sender};
    use uuid::Uuid;

    use super::*;
    use crate::clock::Timestamp;
    use crate::job::{Seq, Token};
    use crate::retry::Verdict;

    const POLICY: RetryPolicy = RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(1) };
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        workers: Arc<Workers>,
        channels: [Sender<ClaimedJob>; 3],
        outcomes: Receiver<Outcome>,
        held: Arc<Held>,
    }

    /// `count` workers that find `waiting` in their channels when they start.
    fn bench(registry: Registry, count: usize, waiting: Vec<ClaimedJob>) -> Bench {
        let (channels, receivers) = super::super::feeder::channels();
        let (way, outcomes) = Outcomes::channel();
        let held = Arc::new(Held::default());
        let shop = Shop {
            channels: receivers,
            outcomes: way,
            registry: Arc::new(registry),
            held: Arc::clone(&held),
            load: Arc::default(),
            retry: POLICY,
            timeout: PATIENCE,
        };
        held.add(&waiting, Instant::now() + PATIENCE);
        for job in waiting {
            channels[job.lane.index()].send(job).expect("there is room");
        }
        Bench { workers: Workers::start(shop, count).expect("threads"), channels, outcomes, held }
    }

    impl Bench {
        fn send(&self, job: ClaimedJob) {
            self.held.add(std::slice::from_ref(&job), Instant::now() + PATIENCE);
            self.channels[job.lane.index()].send(job).expect("there is room");
        }

        fn outcome(&self) -> Outcome {
            self.outcomes.recv_timeout(PATIENCE).expect("an outcome")
        }
    }

    fn job(seq: i64, lane: Lane, job_type: &str) -> ClaimedJob {
        ClaimedJob {
            seq: Seq(seq),
            id: Uuid::new_v4(),
            job_type: job_type.into(),
            payload: "{}".into(),
            lane,
            retry_count: 0,
            max_retries: 3,
            token: Token(seq),
            timeout: None,
            unique_key: None,
            created_at: Timestamp::from_millis(0),
        }
    }

    fn with(job_type: &str, handler: impl Fn(&Attempt<'_>) -> Report + Send + Sync + 'static) -> Registry {
        let mut registry = Registry::new();
        registry.register(job_type, handler);
        registry
    }

    #[test]
    fn a_free_worker_takes_high_before_medium_before_low() {
        let jobs = [(1, Lane::Low), (2, Lane::Medium), (3, Lane::High), (4, Lane::Low), (5, Lane::High)];
        let waiting = jobs.map(|(seq, lane)| job(seq, lane, "x")).into();

        let bench = bench(with("x", |_| Report::Done), 1, waiting);

        let order: Vec<i64> = (0..5).map(|_| bench.outcome().seq.0).collect();
        assert_eq!(order, [3, 5, 2, 1, 4]);
    }

    #[test]
    fn a_panic_is_a_failed_attempt_and_its_worker_lives() {
        let registry = with("x", |attempt| {
            if attempt.job.seq == Seq(1) {
                panic!("no ink")
            } else {
                Report::Done
            }
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x"), job(2, Lane::High, "x")]);

        let failed = bench.outcome();

        assert!(matches!(&failed.verdict, Verdict::Retry { error, .. } if error == "the handler panicked: no ink"));
        assert_eq!(bench.outcome().verdict, Verdict::Complete);
    }

    #[test]
    fn a_job_without_a_handler_or_with_a_broken_payload_is_buried() {
        let broken = ClaimedJob { payload: "{\"a\":".into(), ..job(1, Lane::High, "x") };
        let bench = bench(with("x", |_| Report::Done), 1, vec![broken, job(2, Lane::High, "unknown")]);

        let reasons = [bench.outcome(), bench.outcome()].map(|outcome| match outcome.verdict {
            Verdict::Bury { reason } => reason,
            other => panic!("{other:?}"),
        });

        assert!(reasons[0].starts_with("the payload is not JSON"), "{reasons:?}");
        assert_eq!(reasons[1], "no handler for type \"unknown\" on this replica");
    }

    #[test]
    fn a_job_whose_lease_was_lost_is_not_begun() {
        let bench = bench(with("x", |_| Report::Done), 1, Vec::new());
        let lost = job(1, Lane::High, "x"); // never told to `held`, as after its lease was lost
        bench.channels[0].send(lost).expect("there is room");

        bench.send(job(2, Lane::High, "x"));

        assert_eq!(bench.outcome().seq, Seq(2));
    }

    #[test]
    fn a_handler_that_ignores_its_deadline_is_given_up_and_its_worker_replaced() {
        let (leave, left) = mpsc::channel::<()>();
        let left = Mutex::new(left);
        let registry = with("x", move |attempt| {
            if attempt.job.seq == Seq(1) {
                let _ = lock(&left).recv_timeout(PATIENCE); // OK: a handler that hangs until the test lets it go
            }
            Report::Done
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }

        bench.workers.enforce_deadlines(Instant::now() + PATIENCE * 2, Duration::from_secs(1));

        let given_up = bench.outcome();
        assert!(matches!(&given_up.verdict, Verdict::Retry { error, .. } if error.contains("time limit of 20s")));
        bench.send(job(2, Lane::High, "x"));
        assert_eq!(bench.outcome().seq, Seq(2), "another worker has taken its place");
        leave.send(()).expect("the handler waits");
        assert_eq!(
            bench.outcomes.recv_timeout(Duration::from_millis(100)),
            Err(RecvTimeoutError::Timeout),
            "no second outcome"
        );
    }

    #[test]
    fn an_attempt_that_is_told_to_stop_at_the_end_of_the_drain_time_gives_no_outcome() {
        let registry = with("x", |attempt| {
            attempt.stop.wait_timeout(PATIENCE);
            Report::retry("stopped")
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }

        bench.workers.release_all();
        drop(bench.channels);

        assert!(bench.workers.join(Instant::now() + PATIENCE));
        assert!(bench.outcomes.is_empty());
        assert_eq!(bench.held.unsettled(), [(Seq(1), Token(1))], "it is released");
    }
}
