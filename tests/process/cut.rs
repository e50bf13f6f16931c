//! A lane with a backlog longer than its list.

use std::slice::from_ref;

use serde_json::{Value, json};

use super::site::Site;
use super::trilane::{SOON, Settings, Trilane, wait_until};

/// One worker that is held up, small lists, and no tick that would help. Returns the job that holds it up.
fn start(site: &Site) -> (Trilane, String) {
    let process = site.start(&settings(site));
    let gate = process.enqueue_one(json!({ "type": "gate" }));
    process.wait_for_status(from_ref(&gate), "running");
    (process, gate)
}

fn settings(site: &Site) -> Settings {
    site.settings()
        .with("TRILANE_HANDLERS", site.gate_handlers("gate"))
        .with("TRILANE_WORKERS", 1)
        .with("TRILANE_LANE_BUFFER_MAX", 10)
        .with("TRILANE_TICK_SECONDS", 3_600)
}

fn low(job_type: &str) -> Value {
    json!({ "type": job_type, "priority": "low" })
}

/// 40 jobs by plain SQL, and a tick that takes what the list holds.
fn make_backlog(site: &Site, process: &Trilane) {
    let rows = vec!["('backlog', '{}', 'low')"; 40].join(", ");
    site.execute(&format!("insert into Jobs (Type, Payload, Priority) values {rows}"));
    process.post("/scheduler/wake", &json!(null));
    wait_until(SOON, "the list is full", || site.jobs("Type = 'backlog' and DispatchedAt is not null") == 10);
}

#[test]
fn jobs_submitted_to_a_cut_lane_start_behind_its_backlog_without_a_tick() {
    for site in [Site::postgres_and_redis(), Site::sqlite()] {
        let (process, _) = start(&site);
        make_backlog(&site, &process);

        let late = process.enqueue(&[low("late"), json!({ "type": "urgent", "priority": "high" }), low("late")]);

        assert_eq!(
            site.jobs("Type = 'late' and DispatchedAt is null and UpdatedAt = CreatedAt"),
            2,
            "they wait in the table"
        );
        assert_eq!(site.jobs("Type = 'urgent' and DispatchedAt is not null"), 1, "its lane is not cut");
        site.open_gate("gate");
        process.wait_for_status(&late, "completed");
        site.wait_for_jobs(SOON, 40, "Type = 'backlog' and Status = 'completed'");
        let first_late = site.number("select min(LeaseToken) from Jobs where Type = 'late'");
        assert_eq!(site.jobs(&format!("Type = 'backlog' and LeaseToken > {first_late}")), 0);
        wait_until(SOON, "the lane is not cut any more", || {
            let id = process.enqueue_one(low("next"));
            site.jobs(&format!("Id = '{id}' and DispatchedAt is not null")) == 1
        });
    }
}

#[test]
fn another_replica_learns_that_a_lane_is_cut() {
    let site = Site::postgres_and_redis();
    let other = site.start(&settings(&site).with("TRILANE_ROLE", "api"));
    let (process, _) = start(&site);
    make_backlog(&site, &process);

    wait_until(SOON, "it does not push past the backlog", || {
        let id = other.enqueue_one(low("late"));
        site.jobs(&format!("Id = '{id}' and DispatchedAt is null")) == 1
    });
}
