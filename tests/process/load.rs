//! Many jobs: each ends once, and the higher lane goes first.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::load_the_machine;
use super::site::Site;
use super::trilane::{Settings, Trilane, millis, wait_until};
use super::upstream::{Call, Reply, Upstream};

const JOBS: i64 = 20_000;
const JOBS_PER_CALL: i64 = 1_000;
/// How long the 20,000 may take on a slow machine that does other things as well.
const LIMIT: Duration = Duration::from_mins(2);

/// What job number `n` is: of a thousand jobs, 5 succeed at their second attempt, 5 never, 5 are refused, 25 have no handler.
fn job(n: i64) -> Value {
    let lane = ["high", "MEDIUM", "low"][usize::try_from(n % 3).expect("below 3")];
    let job_type = match n % 200 {
        0 => "flaky",
        1 => "hopeless",
        2 => "refused",
        3..8 => "unheard_of",
        8..70 => "send_email",
        70..140 => "process_payment",
        _ => "Notification",
    };
    json!({ "type": job_type, "payload": {"n": n, "text": "Grüße 🦀"}, "priority": lane, "max_retries": 2 })
}

/// What the two failing services of the mix answer.
fn reply(call: &Call) -> Reply {
    match call.path.as_str() {
        "/flaky" if call.attempt > 1 => (200, None),
        "/refused" => (400, None),
        _ => (503, None),
    }
}

fn handlers(site: &Site, upstream: &Upstream) -> String {
    let http = ["flaky", "hopeless", "refused"]
        .map(|name| format!("[{name}]\nhttp = {:?}\n", upstream.url(&format!("/{name}"))));
    let log = ["send_email", "process_payment", "Notification"].map(|name| format!("[{name}]\nlog = true\n"));
    site.file("handlers.toml", &[http.concat(), log.concat()].concat())
}

/// Submits the mix over all processes at once.
fn submit(processes: &[Trilane]) {
    thread::scope(|scope| {
        for (number, process) in (0..).zip(processes) {
            let step = i64::try_from(processes.len()).expect("few");
            scope.spawn(move || {
                for call in (number..JOBS / JOBS_PER_CALL).step_by(usize::try_from(step).expect("few")) {
                    let jobs: Vec<Value> = (call * JOBS_PER_CALL..(call + 1) * JOBS_PER_CALL).map(job).collect();
                    process.enqueue(&jobs);
                }
            });
        }
    });
}

fn assert_each_ended_once(site: &Site, upstream: &Upstream) {
    let (share, per) = (JOBS / 200, |type_count: i64| type_count * JOBS / 200);
    let failed = per(7);
    let number = |sql: &str| site.number(sql);

    assert_eq!(site.jobs("1 = 1"), JOBS);
    assert_eq!(site.jobs("Status = 'completed' and FinishedAt is not null"), JOBS - failed);
    assert_eq!(site.jobs("Status = 'failed' and LastError is not null"), failed);
    assert_eq!(site.jobs("Type = 'flaky' and Status = 'completed' and RetryCount = 1"), share);
    assert_eq!(site.jobs("Type = 'hopeless' and Status = 'failed' and RetryCount = 2"), share);

    assert_eq!(number("select count(*) from FailedJobs"), failed);
    assert_eq!(
        number(
            "select count(distinct j.Id) from FailedJobs as f join Jobs as j on j.Id = f.OriginalJobId where j.Status = 'failed'"
        ),
        failed,
        "each has one dead letter"
    );
    let attempts = "select count(*) from JobAttempts";
    assert_eq!(number(attempts), failed + 3 * share, "each failed attempt is kept");

    // An outcome is counted in the transaction that stores it, so these say how often a job ended.
    assert_eq!(number("select cast(sum(Completed) as bigint) from JobStats"), JOBS - failed);
    assert_eq!(number("select cast(sum(Failed) as bigint) from JobStats"), failed);
    assert_eq!(number("select cast(sum(Retried) as bigint) from JobStats"), 3 * share);

    let (repeats, calls) = upstream.repeats_and_attempts();
    assert_eq!((repeats, i64::try_from(calls).expect("few")), (1, 6 * share), "no attempt was made twice");
    wait_until(Duration::from_secs(20), "no lease is left", || number("select count(*) from Leases") == 0);
}

fn all_end_once(site: &Site, processes: usize, settings: impl Fn(Settings) -> Settings) {
    let _machine = load_the_machine();
    let upstream = Upstream::start(reply);
    let settings = settings(site.settings().with("TRILANE_HANDLERS", handlers(site, &upstream)));
    let processes: Vec<Trilane> = (0..processes).map(|_| site.start(&settings)).collect();

    submit(&processes);
    wait_until(LIMIT, "all jobs have ended", || site.jobs("Status not in ('completed', 'failed')") == 0);

    assert_each_ended_once(site, &upstream);
}

#[test]
fn five_processes_on_postgresql_and_redis_end_each_of_20_000_jobs_once() {
    all_end_once(&Site::postgres_and_redis(), 5, |settings| settings);
}

#[test]
fn one_process_on_sqlite_ends_each_of_20_000_jobs_once() {
    all_end_once(&Site::sqlite(), 1, |settings| settings);
}

#[test]
fn high_lane_jobs_behind_10_000_low_ones_start_first() {
    for site in [Site::postgres_and_redis(), Site::sqlite()] {
        let _machine = load_the_machine();
        let settings = site.settings().with("TRILANE_HANDLERS", site.gate_handlers("gate"));
        let process = site.start(&settings.with("TRILANE_WORKERS", 1));
        let gate = process.enqueue_one(json!({ "type": "gate" }));
        process.wait_for_status(&[gate], "running");
        for _ in 0..10 {
            process.enqueue(&vec![json!({ "type": "quick", "priority": "low" }); 1_000]);
        }
        let high = process.enqueue(&vec![json!({ "type": "quick", "priority": "high" }); 100]);

        site.open_gate("gate");

        let high = process.wait_for_status(&high, "completed");
        let last = high.iter().map(|job| millis(&job["started_at"])).max().expect("100 of them");
        let answer = process.get("/getAllJobs?priority=low&limit=1000");
        let low = answer.body.as_array().expect("an array").iter().filter(|job| job["started_at"].is_string());
        let before = low.filter(|job| millis(&job["started_at"]) < last).count();
        assert_eq!(before, 0, "low jobs started before the last high one");
    }
}
