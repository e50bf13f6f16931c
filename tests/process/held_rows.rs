//! A foreign transaction holds single rows, and the answer to a commit is lost: the jobs next to them notice nothing, and they are found in time.

use std::time::Duration;

use serde_json::json;

use super::database_faults::{quick, run, settings, transaction};
use super::faults::outages;
use super::load_the_machine;
use super::site::Site;
use super::trilane::{SOON, wait_until};

/// So many jobs notice nothing of a row that is held.
const OTHERS: usize = 50;

#[test]
fn a_job_whose_row_is_held_runs_once_it_is_free_and_keeps_no_other_waiting() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));
    let held = process.enqueue_one(json!({ "type": "quick", "delay_ms": 2_000 }));
    let foreign = transaction(&site);
    run(&foreign, &format!("select 1 from Jobs where Id = '{held}' and Status = 'queued' for update")).expect("locked");
    assert_eq!(site.jobs(&format!("Id = '{held}' and Status = 'queued'")), 1);
    wait_until(SOON, "it is due", || site.jobs(&format!("Id = '{held}' and RunAt < now() - interval '1 second'")) == 1);

    for _ in 0..3 {
        let others = process.enqueue(&vec![quick(); OTHERS]);
        process.wait_for_status(&others, "completed");
    }
    assert_eq!(site.jobs(&format!("Id = '{held}' and Status = 'queued'")), 1, "it is held still");
    foreign.rollback().expect("it ends");

    // Long before the next tick.
    process.wait_for_status(&[held], "completed");
    assert_eq!(outages(&process, "the database"), (0, 0));
}

#[test]
fn an_outcome_whose_row_is_held_is_stored_once_it_is_free_and_keeps_no_other_waiting() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    // Shorter than the row is held: it has to be renewed.
    let process = site.start(&settings(&site).with("TRILANE_LEASE_SECONDS", 10));
    let gates = process.enqueue(&vec![json!({ "type": "gate", "max_retries": 0 }); 2]);
    wait_until(SOON, "the commands run", || site.commands_at_gate("gate") == 2);
    let held = format!("Id = '{}' and Status = 'running'", gates[0]);
    let foreign = transaction(&site);
    run(&foreign, &format!("select 1 from Jobs where {held} for update")).expect("locked");
    site.open_gate("gate");
    wait_until(SOON, "the commands have ended", || site.times_done("gate") == 2);
    process.wait_for_status(&gates[1..], "completed");

    let leases = "select count(*) from Leases where LeaseUntil > now() + interval '7 seconds'";
    let until = std::time::Instant::now() + Duration::from_secs(12);
    while std::time::Instant::now() < until {
        let others = process.enqueue(&vec![quick(); OTHERS]);
        process.wait_for_status(&others, "completed");
    }
    assert_eq!(site.jobs(&held), 1, "it is held still");
    wait_until(SOON, "its lease is renewed", || site.number(leases) > 0);
    foreign.rollback().expect("it ends");

    process.wait_for_status(&gates, "completed");
    assert_eq!(site.times_done("gate"), 2, "what was done is not done again");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
    assert_eq!(
        site.number("select cast(sum(Completed) as bigint) from JobStats") - site.jobs("Status = 'completed'"),
        0
    );
    assert_eq!(outages(&process, "the database"), (0, 0));
}

#[test]
fn a_job_whose_commit_was_not_confirmed_runs_before_the_next_tick() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site).with("TRILANE_TICK_SECONDS", 600));
    let first = process.enqueue_one(quick());
    process.wait_for_status(&[first], "completed");

    // As it is left by a submitter that is not answered: stored, and its id in no lane.
    site.execute("insert into Jobs (Type, Payload, DispatchedAt, DispatchedBy) values ('quick', '{}', now(), 1)");
    site.execute(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    );
    wait_until(SOON, "the outage is met and over", || {
        let answer = process.post("/enqueue", &json!([quick()]));
        assert!(matches!(answer.status, 200 | 503), "{answer:?}");
        outages(&process, "the database") == (1, 1)
    });

    site.wait_for_jobs(2 * SOON, 0, "Status <> 'completed'");
}
