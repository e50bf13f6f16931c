//! Processes that are killed: their jobs run elsewhere, and none is lost.

use std::time::Duration;

use serde_json::json;

use super::load_the_machine;
use super::site::Site;
use super::trilane::{SOON, millis, text, wait_until};

const LEASE_MS: i64 = 3_000;
/// The lease, then what the keeper of another replica takes to notice: one beat is 20 s.
const NOTICED: Duration = Duration::from_secs(40);

#[test]
fn jobs_of_a_killed_replica_run_on_another_after_their_lease() {
    let site = Site::postgres_and_redis();
    let settings = site.settings().with("TRILANE_LEASE_SECONDS", LEASE_MS / 1_000).with("TRILANE_DB_WAIT_SECONDS", 1);
    let gate = site.file("gate.toml", &format!("[gate]\n{}\n[quick]\nlog = true\n", site.gate("gate")));
    let mut process = site.start(&settings.clone().with("TRILANE_HANDLERS", gate).with("TRILANE_WORKERS", 2));
    let known = process.enqueue(&vec![json!({ "type": "quick" }); 50]);
    process.wait_for_status(&known, "completed");
    let gated = [json!({ "type": "gate", "max_retries": 0 }), json!({ "type": "gate", "max_retries": 1 })];
    let ids = process.enqueue(&[&gated[..], &vec![json!({ "type": "quick" }); 40]].concat());
    site.wait_for_jobs(SOON, 42, "Status = 'running'");
    let quick = site.file("quick.toml", "[\"*\"]\nlog = true\n");
    let other = site.start(&settings.with("TRILANE_HANDLERS", quick));

    process.kill();

    site.wait_for_jobs(NOTICED, 50 + 41, "Status = 'completed'");
    for job in other.wait_for_status(&ids[1..], "completed") {
        let attempts = job["attempts"].as_array().expect("an array");
        assert_eq!((&job["retry_count"], attempts.len()), (&json!(1), 1), "{job}");
        assert!(text(&attempts[0]["error"]).contains("worker lost"), "{job}");
        let held = millis(&attempts[0]["finished_at"]) - millis(&attempts[0]["started_at"]);
        assert!(held >= LEASE_MS, "it was taken away after {held} ms: {job}");
    }
    // So a job that kills its worker ends.
    let job = other.wait_for_status(&ids[..1], "failed").remove(0);
    assert!(text(&job["last_error"]).contains("worker lost"), "{job}");
    assert_eq!(site.number("select count(*) from FailedJobs"), 1);
    assert_eq!(other.metric("trilane_jobs_expired_total"), 42);
}

#[test]
fn a_process_killed_on_sqlite_does_the_rest_after_its_next_start() {
    let site = Site::sqlite();
    let settings = site.settings().with("TRILANE_LEASE_SECONDS", LEASE_MS / 1_000).with("TRILANE_DB_WAIT_SECONDS", 1);
    let gate = site.file("gate.toml", &format!("[gate]\n{}\n[quick]\nlog = true\n", site.gate("gate")));
    let mut process = site.start(&settings.clone().with("TRILANE_HANDLERS", gate).with("TRILANE_WORKERS", 1));
    let running = process.enqueue_one(json!({ "type": "gate" }));
    process.wait_for_status(&[running.clone()], "running");
    let queued = process.enqueue(&vec![json!({ "type": "quick" }); 1_000]);
    let delayed = process.enqueue_one(json!({ "type": "quick", "delay_ms": 1_500, "priority": "low" }));

    // Lanes and timers were in this process only.
    process.kill();
    wait_until(SOON, "its lease has run out", || {
        let now_ms = "cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)";
        site.number(&format!("select count(*) from Leases where LeaseUntil >= {now_ms}")) == 0
    });
    let quick = site.file("quick.toml", "[\"*\"]\nlog = true\n");
    let next = site.start(&settings.with("TRILANE_HANDLERS", quick));

    site.wait_for_jobs(SOON, 1_002, "Status = 'completed'");
    assert_eq!(next.job(&running)["retry_count"], 1, "its attempt counts");
    assert_eq!(site.jobs("RetryCount > 0"), 1, "those that were not begun have lost none");
    assert_eq!((&next.job(&queued[0])["attempts"], &next.job(&delayed)["attempts"]), (&json!([]), &json!([])));
}

#[test]
fn a_replica_killed_under_load_loses_no_job() {
    let _machine = load_the_machine();
    let site = Site::postgres_and_redis();
    let settings = site
        .settings()
        .with("TRILANE_LEASE_SECONDS", LEASE_MS / 1_000)
        .with("TRILANE_DB_WAIT_SECONDS", 1)
        .with("TRILANE_TICK_SECONDS", 1);
    let mut killed = site.start(&settings);
    let other = site.start(&settings);

    for call in 0..10 {
        other.enqueue(&vec![json!({ "type": "send_email", "max_retries": 5 }); 1_000]);
        if call == 4 {
            wait_until(SOON, "it is at work", || killed.metric("trilane_jobs_completed_total") > 100);
            killed.kill();
        }
    }

    site.wait_for_jobs(NOTICED, 10_000, "Status = 'completed'");
    assert_eq!(site.number("select cast(sum(Completed) as bigint) from JobStats"), 10_000, "each completed once");
    assert_eq!(site.number("select count(*) from FailedJobs"), 0);
}
