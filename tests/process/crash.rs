//! Processes that are killed, or hang: their jobs run elsewhere, none is lost, and none ends twice.

use std::slice::from_ref;
use std::time::Duration;

use serde_json::{Value, json};

use super::busy::Busy;
use super::load_the_machine;
use super::site::Site;
use super::trilane::{SOON, Settings, millis, text, wait_until};

const LEASE_MS: i64 = 3_000;
/// The lease, then what the keeper of another replica takes to notice: one beat is 20 s.
const NOTICED: Duration = Duration::from_secs(40);

const LEASES_IN_FORCE: &str = "select count(*) from Leases where LeaseUntil >= now()";

/// With the shortest lease.
fn settings(site: &Site) -> Settings {
    site.settings().with("TRILANE_LEASE_SECONDS", LEASE_MS / 1_000).with("TRILANE_DB_WAIT_SECONDS", 1)
}

fn assert_lost_once(job: &Value) {
    let attempts = job["attempts"].as_array().expect("an array");
    assert_eq!(attempts.len(), 1, "{job}");
    assert!(text(&attempts[0]["error"]).contains("worker lost"), "{job}");
    let held = millis(&attempts[0]["finished_at"]) - millis(&attempts[0]["started_at"]);
    assert!(held >= LEASE_MS, "it was taken away after {held} ms: {job}");
}

#[test]
fn jobs_of_a_killed_replica_run_on_another_after_their_lease() {
    let site = Site::postgres_and_redis();
    // A third replica runs a job for several leases. It is not to be taken from it.
    let long = settings(&site).with("TRILANE_HANDLERS", site.gate_handlers("long")).with("TRILANE_WORKERS", 1);
    let long = site.start(&long);
    let kept = long.enqueue_one(json!({ "type": "long", "max_retries": 0 }));
    long.wait_for_status(from_ref(&kept), "running");
    let Busy { mut process, gated, buffered } = Busy::start(&site, &settings(&site));
    let other = site.start(&settings(&site).with("TRILANE_HANDLERS", site.quick_handlers()));

    process.kill();

    site.wait_for_jobs(NOTICED, 50 + 41, "Status = 'completed'");
    for job in other.wait_for_status(&[&gated[1..], &buffered].concat(), "completed") {
        assert_eq!(job["retry_count"], 1, "the attempt counts: {job}");
        assert_lost_once(&job);
    }
    // So a job that kills its worker comes to an end.
    let job = other.wait_for_status(&gated[..1], "failed").remove(0);
    assert_lost_once(&job);
    assert_eq!(site.number("select count(*) from FailedJobs"), 1);

    assert_eq!(other.job(&kept)["status"], "running");
    site.open_gate("long");
    let kept = other.wait_for_status(&[kept], "completed").remove(0);
    assert_eq!(kept["attempts"], json!([]));
}

#[test]
fn a_replica_that_hung_longer_than_its_lease_cannot_end_jobs_that_others_have_taken() {
    let site = Site::postgres_and_redis();
    let Busy { process, gated, buffered } = Busy::start(&site, &settings(&site));

    process.signal("STOP");
    wait_until(SOON, "its leases have run out", || site.number(LEASES_IN_FORCE) == 0);
    let other = site.start(&settings(&site).with("TRILANE_HANDLERS", site.quick_handlers()));
    other.wait_for_status(&[&gated[1..], &buffered].concat(), "completed");
    other.wait_for_status(&gated[..1], "failed");
    site.open_gate("gate");
    process.signal("CONT");
    wait_until(SOON, "its workers are free", || process.metric("trilane_jobs_running") == 0);
    let next = process.enqueue(&vec![json!({ "type": "quick" }); 20]);
    process.wait_for_status(&next, "completed");

    assert_eq!(site.jobs("Status = 'completed'"), 50 + 41 + 20);
    assert_eq!(site.number("select cast(sum(Completed) as bigint) from JobStats"), 50 + 41 + 20, "each completed once");
    assert_eq!(site.number("select count(*) from JobAttempts"), 42);
    assert_eq!(site.number("select count(*) from FailedJobs"), 1);
}

#[test]
fn a_job_that_the_database_refuses_to_take_back_stops_neither_the_others_of_its_replica_nor_the_scheduler() {
    let site = Site::postgres_and_redis();
    let gate = settings(&site).with("TRILANE_HANDLERS", site.gate_handlers("gate"));
    let mut process = site.start(&gate.clone().with("TRILANE_WORKERS", 4));
    let running: Vec<String> = (0..4).map(|_| process.enqueue_one(json!({ "type": "gate" }))).collect();
    process.wait_for_status(&running, "running");
    let first = site.number(&format!("select Seq from Jobs where Id = '{}'", running[0]));
    site.execute("alter table JobAttempts add constraint ClientsRule check (Seq < 0)");
    let small = gate.with("TRILANE_LANE_BUFFER_MAX", 10).with("TRILANE_WORKERS", 1);
    let other = site.start(&small);

    process.kill();
    wait_until(NOTICED, "the other has met the refusal", || other.has_logged("scheduler cannot do its work"));

    // Its rounds go on, though its ticks fail: a lane that is cut is filled up again and again.
    let jobs = other.enqueue(&vec![json!({ "type": "quick" }); 300]);
    other.wait_for_status(&jobs, "completed");
    assert_eq!(site.jobs("Status = 'running'"), 4, "where all are refused none is given up for it");

    site.open_gate("gate");
    site.execute(&format!(
        "alter table JobAttempts drop constraint ClientsRule, add constraint ClientsRule check (Seq <> {first})"
    ));
    other.wait_for_status(&running[1..], "completed").iter().for_each(assert_lost_once);
    let refused = other.wait_for_status(&running[..1], "failed").remove(0);
    assert!(text(&refused["last_error"]).contains("could not be stored"), "{refused}");
    assert!(other.has_logged("the database refused to take a job back; it is buried"));
    assert_eq!(site.number("select count(*) from FailedJobs"), 1);
}

#[test]
fn a_process_killed_on_sqlite_does_the_rest_after_its_next_start() {
    let site = Site::sqlite();
    let gate = settings(&site).with("TRILANE_HANDLERS", site.gate_handlers("gate")).with("TRILANE_WORKERS", 1);
    let mut process = site.start(&gate);
    let running = process.enqueue_one(json!({ "type": "gate" }));
    process.wait_for_status(from_ref(&running), "running");
    let queued = process.enqueue(&vec![json!({ "type": "quick" }); 1_000]);
    let delayed = process.enqueue_one(json!({ "type": "quick", "delay_ms": 1_500, "priority": "low" }));

    // Lanes and timers were in this process only.
    process.kill();
    wait_until(SOON, "its lease has run out", || {
        let now_ms = "cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)";
        site.number(&format!("select count(*) from Leases where LeaseUntil >= {now_ms}")) == 0
    });
    let next = site.start(&settings(&site).with("TRILANE_HANDLERS", site.quick_handlers()));

    site.wait_for_jobs(SOON, 1_002, "Status = 'completed'");
    assert_lost_once(&next.job(&running));
    assert_eq!(site.jobs("RetryCount > 0"), 1, "those that were not begun have lost no attempt");
    assert_eq!((&next.job(&queued[0])["attempts"], &next.job(&delayed)["attempts"]), (&json!([]), &json!([])));
}

#[test]
fn a_replica_killed_under_load_loses_no_job() {
    let _machine = load_the_machine();
    let site = Site::postgres_and_redis();
    let settings = settings(&site).with("TRILANE_TICK_SECONDS", 1);
    let mut killed = site.start(&settings);
    let other = site.start(&settings);

    for call in 0..10 {
        other.enqueue(&vec![json!({ "type": "send_email", "max_retries": 5 }); 1_000]);
        if call == 4 {
            wait_until(SOON, "it is at work", || killed.metric("trilane_jobs_completed_total") > 100);
            killed.kill();
        }
    }

    // Also those whose ids it had taken out of the lane and not claimed yet: they count as lost after 10 s.
    site.wait_for_jobs(NOTICED, 0, "Status in ('queued', 'retrying')");
    wait_until(SOON, "no lease is in force", || site.number(LEASES_IN_FORCE) == 0);
    // As it would be started again. It looks for leases that have run out once it is up for the length of one.
    let _next = site.start(&settings);
    site.wait_for_jobs(SOON, 10_000, "Status = 'completed'");
    assert_eq!(site.number("select cast(sum(Completed) as bigint) from JobStats"), 10_000, "each completed once");
    assert_eq!(site.number("select count(*) from FailedJobs"), 0);
}
