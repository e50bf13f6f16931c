//! When a job starts whose time is known.

use serde_json::{Value, json};

use super::quieten_the_machine;
use super::site::Site;
use super::trilane::{Trilane, millis};
use super::upstream::Upstream;

/// How late a job may start, as the project promises.
const LATE_MS_MAX: i64 = 50;
/// A claim comes up to a millisecond early, so that rounding never makes it late, and times are shown in whole ones.
const EARLY_MS_MAX: i64 = 2;

/// Milliseconds from the time at which each job was due to its start, both by the database's clock, in ascending order.
fn lateness(jobs: &[Value]) -> Vec<i64> {
    let mut late: Vec<i64> = jobs.iter().map(|job| millis(&job["started_at"]) - millis(&job["run_at"])).collect();
    late.sort_unstable();
    late
}

/// Goes by the quickest third: that others are held up by another program on this machine proves nothing. What polls every second, or
/// every 250 ms, would have them all late.
fn assert_in_time(what: &str, jobs: &[Value]) {
    let late = lateness(jobs);
    eprintln!("{what} started after {late:?} ms");
    let quick = late[late.len() / 3];
    assert!(late[0] >= -EARLY_MS_MAX && quick <= LATE_MS_MAX, "{what} started after {late:?} ms");
}

fn start_to_the_millisecond(site: &Site) {
    let _machine = quieten_the_machine();
    // The first attempt is put off by three seconds, the second succeeds.
    let upstream = Upstream::start(|call| if call.attempt == 1 { (503, Some(3)) } else { (200, None) });
    let handlers = format!("[busy]\nhttp = {:?}\n[quick]\nlog = true\n", upstream.url("/busy"));
    let process = site.start(&site.settings().with("TRILANE_HANDLERS", site.file("handlers.toml", &handlers)));
    let created = |process: &Trilane| {
        let id = process.enqueue_one(json!({ "type": "quick" }));
        millis(&process.wait_for_status(&[id], "completed")[0]["created_at"])
    };

    // Not in one call: then they would all be due in the same millisecond, and be one event.
    let delayed = |n: i64| process.enqueue_one(json!({ "type": "quick", "delay_ms": 3_000 + 7 * n }));
    let delayed: Vec<String> = (0..9).map(delayed).collect();
    let retried: Vec<String> = (0..9).map(|_| process.enqueue_one(json!({ "type": "busy" }))).collect();
    let now = created(&process);
    let at = |n: i64| trilane::clock::Timestamp::from_millis(now + 3_000 + 11 * n).to_string();
    let timed: Vec<String> = (0..9).map(|n| process.enqueue_one(json!({ "type": "quick", "run_at": at(n) }))).collect();

    let delayed = process.wait_for_status(&delayed, "completed");
    let timed = process.wait_for_status(&timed, "completed");
    let retried = process.wait_for_status(&retried, "completed");
    assert!(
        delayed.iter().zip(0..).all(|(job, n)| millis(&job["run_at"]) - millis(&job["created_at"]) == 3_000 + 7 * n)
    );
    assert_in_time("jobs with delay_ms", &delayed);
    assert_in_time("jobs with run_at", &timed);
    let waited = |job: &Value| millis(&job["run_at"]) - millis(&job["attempts"][0]["started_at"]);
    assert!(retried.iter().all(|job| job["retry_count"] == 1 && waited(job) >= 3_000), "{retried:?}");
    assert_in_time("retries", &retried);
}

#[test]
fn a_job_starts_within_50_ms_of_its_time_on_postgresql_and_redis() {
    start_to_the_millisecond(&Site::postgres_and_redis());
}

#[test]
fn a_job_starts_within_50_ms_of_its_time_on_sqlite() {
    start_to_the_millisecond(&Site::sqlite());
}

#[test]
fn a_job_submitted_to_an_idle_process_starts_at_once() {
    for site in [Site::postgres_and_redis(), Site::sqlite()] {
        let _machine = quieten_the_machine();
        let process = site.start(&site.settings());

        let submit = |_| {
            let id = process.enqueue_one(json!({ "type": "send_email" }));
            process.wait_for_status(&[id], "completed").remove(0)
        };
        let jobs: Vec<Value> = (0..9).map(submit).collect();

        assert_in_time("jobs for now", &jobs);
    }
}
