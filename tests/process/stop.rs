//! Stops: what is running gets its time, what is not begun is given back at once.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::site::Site;
use super::trilane::{SOON, Settings, Trilane, wait_until};

/// The lease of a process that is not told otherwise. What goes quicker was not waiting for it.
const LEASE: Duration = Duration::from_secs(30);

/// A process whose two workers are held by jobs at the gate, and that has claimed 40 quick jobs besides.
fn with_40_jobs_buffered(site: &Site, settings: &Settings, gated: &[Value; 2]) -> (Trilane, Vec<String>, Vec<String>) {
    let handlers = format!("[gate]\n{}\n[quick]\nlog = true\n", site.gate("gate"));
    let handlers = site.file("gate.toml", &handlers);
    let process = site.start(&settings.clone().with("TRILANE_HANDLERS", handlers).with("TRILANE_WORKERS", 2));
    // Only a process that knows its jobs to be short claims more of them than it has idle workers.
    let known = process.enqueue(&vec![json!({ "type": "quick" }); 50]);
    process.wait_for_status(&known, "completed");

    let jobs = [&gated[..], &vec![json!({ "type": "quick" }); 40]].concat();
    let mut ids = process.enqueue(&jobs);
    site.wait_for_jobs(SOON, 42, "Status = 'running'");
    let quick = ids.split_off(2);
    (process, ids, quick)
}

/// The settings of a process that does everything at once.
fn quick_handlers(site: &Site) -> Settings {
    site.settings().with("TRILANE_HANDLERS", site.file("quick.toml", "[\"*\"]\nlog = true\n"))
}

#[test]
fn a_stop_gives_back_what_is_buffered_and_completes_what_runs() {
    let site = Site::postgres_and_redis();
    let api = site.start(&site.settings().with("TRILANE_ROLE", "api"));
    let gate = json!({ "type": "gate" });
    let (mut process, gated, quick) = with_40_jobs_buffered(&site, &site.settings(), &[gate.clone(), gate]);

    process.signal("TERM");
    site.wait_for_jobs(SOON, 40, "Status = 'queued' and RetryCount = 0 and StartedAt is null");
    let late = api.enqueue_one(json!({ "type": "quick", "priority": "high" }));
    wait_until(SOON, "the port is closed", || TcpStream::connect(process.address()).is_err());
    site.open_gate("gate");
    let code = process.wait_for_exit(SOON);

    assert_eq!(code, 0);
    for job in api.wait_for_status(&gated, "completed") {
        assert_eq!((&job["retry_count"], &job["attempts"]), (&json!(0), &json!([])));
    }
    assert_eq!(site.jobs("Status = 'queued' and RetryCount = 0"), 41, "nothing was begun after the signal");
    assert_eq!(site.number("select count(*) from Leases"), 0);

    let other = site.start(&quick_handlers(&site));
    other.wait_for_status(&[quick, vec![late]].concat(), "completed");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0, "no attempt was consumed");
}

#[test]
fn a_stop_on_sqlite_leaves_buffered_jobs_to_the_next_start() {
    let site = Site::sqlite();
    let gate = json!({ "type": "gate" });
    let (mut process, gated, quick) = with_40_jobs_buffered(&site, &site.settings(), &[gate.clone(), gate]);

    process.signal("INT");
    site.wait_for_jobs(SOON, 40, "Status = 'queued' and RetryCount = 0");
    site.open_gate("gate");
    assert_eq!(process.wait_for_exit(SOON), 0);
    assert_eq!(site.jobs("Status = 'queued'"), 40);

    let next = site.start(&quick_handlers(&site));
    next.wait_for_status(&[gated, quick].concat(), "completed");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
}

#[test]
fn a_job_that_outlives_the_drain_time_runs_on_another_replica_at_once() {
    assert!(SOON < LEASE);
    let site = Site::postgres_and_redis();
    let handlers = site.file("gate.toml", &format!("[long]\n{}\n", site.gate("gate")));
    let settings = site.settings().with("TRILANE_HANDLERS", handlers).with("TRILANE_DRAIN_SECONDS", 1);
    let mut process = site.start(&settings);
    let id = process.enqueue_one(json!({ "type": "long", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);
    let other = site.start(&quick_handlers(&site));

    process.signal("TERM");

    let job = other.wait_for_status(&[id], "completed").remove(0);
    assert_eq!((&job["retry_count"], &job["attempts"]), (&json!(0), &json!([])), "the attempt was not consumed");
    assert_eq!(process.wait_for_exit(SOON), 0);
    assert_eq!(site.commands_at_gate("gate"), 0, "the command was ended");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let site = Site::sqlite();
    let handlers = site.file("gate.toml", &format!("[long]\n{}\n", site.gate("gate")));
    let mut process = site.start(&site.settings().with("TRILANE_HANDLERS", handlers).with("TRILANE_DRAIN_SECONDS", 600));
    let id = process.enqueue_one(json!({ "type": "long" }));
    process.wait_for_status(&[id], "running");

    process.signal("TERM");
    wait_until(SOON, "the stop has begun", || process.has_logged("a second signal leaves at once"));
    process.signal("TERM");

    assert_eq!(process.wait_for_exit(SOON), 130);
    site.wait_for_jobs(SOON, 1, "Status = 'running'");
}
