//! Stops: what is running gets its time, what is not begun is given back at once.

use std::time::Duration;

use serde_json::json;

use super::busy::Busy;
use super::site::Site;
use super::trilane::{SOON, wait_until};

/// The lease of a process that is not told otherwise. What goes quicker was not waiting for it.
const LEASE: Duration = Duration::from_secs(30);

#[test]
fn a_stop_gives_back_what_is_buffered_and_completes_what_runs() {
    let site = Site::postgres_and_redis();
    let api = site.start(&site.settings().with("TRILANE_ROLE", "api"));
    let Busy { mut process, gated, buffered } = Busy::start(&site, &site.settings());

    process.signal("TERM");
    site.wait_for_jobs(SOON, 40, "Status = 'queued' and RetryCount = 0 and StartedAt is null");
    let late = api.enqueue_one(json!({ "type": "quick", "priority": "high" }));
    // Also over a connection that was open before, as clients and proxies keep them.
    let refused = process.post("/enqueue", &json!({ "type": "quick" }));
    assert_eq!(refused.status, 503, "{}", refused.body);
    site.open_gate("gate");
    let code = process.wait_for_exit(SOON);

    assert_eq!(code, 0);
    for job in api.wait_for_status(&gated, "completed") {
        assert_eq!((&job["retry_count"], &job["attempts"]), (&json!(0), &json!([])));
    }
    assert_eq!(site.jobs("Status = 'queued' and RetryCount = 0"), 41, "nothing was begun after the signal");
    assert_eq!(site.number("select count(*) from Leases"), 0);

    let other = site.start(&site.settings().with("TRILANE_HANDLERS", site.quick_handlers()));
    other.wait_for_status(&[buffered, vec![late]].concat(), "completed");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0, "no attempt was consumed");
}

#[test]
fn a_stop_on_sqlite_leaves_buffered_jobs_to_the_next_start() {
    let site = Site::sqlite();
    let Busy { mut process, gated, buffered } = Busy::start(&site, &site.settings());

    process.signal("INT");
    site.wait_for_jobs(SOON, 40, "Status = 'queued' and RetryCount = 0");
    site.open_gate("gate");
    assert_eq!(process.wait_for_exit(SOON), 0);
    assert_eq!(site.jobs("Status = 'queued'"), 40);

    let next = site.start(&site.settings().with("TRILANE_HANDLERS", site.quick_handlers()));
    next.wait_for_status(&[gated, buffered].concat(), "completed");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
}

#[test]
fn a_job_that_outlives_the_drain_time_runs_on_another_replica_at_once() {
    assert!(SOON < LEASE);
    let site = Site::postgres_and_redis();
    let settings =
        site.settings().with("TRILANE_HANDLERS", site.gate_handlers("gate")).with("TRILANE_DRAIN_SECONDS", 1);
    let mut process = site.start(&settings);
    let id = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);
    let other = site.start(&site.settings().with("TRILANE_HANDLERS", site.quick_handlers()));

    process.signal("TERM");

    let job = other.wait_for_status(&[id], "completed").remove(0);
    assert_eq!((&job["retry_count"], &job["attempts"]), (&json!(0), &json!([])), "the attempt was not consumed");
    assert_eq!(process.wait_for_exit(SOON), 0);
    assert_eq!(site.commands_at_gate("gate"), 0, "the command was ended");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let site = Site::sqlite();
    let settings =
        site.settings().with("TRILANE_HANDLERS", site.gate_handlers("gate")).with("TRILANE_DRAIN_SECONDS", 600);
    let mut process = site.start(&settings);
    let id = process.enqueue_one(json!({ "type": "gate" }));
    process.wait_for_status(&[id], "running");

    process.signal("TERM");
    wait_until(SOON, "the stop has begun", || process.has_logged("a second signal leaves at once"));
    process.signal("TERM");

    assert_eq!(process.wait_for_exit(SOON), 130);
    site.wait_for_jobs(SOON, 1, "Status = 'running'");
}
