//! More is submitted than can be stored: what is too much is refused at once, what is taken is taken in time, memory stays what it was, and
//! all is well as soon as it is over.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::faults::{Calls, Cost, pause, under_load};
use super::load_the_machine;
use super::site::Site;
use super::stores;
use super::trilane::{SOON, Settings, Trilane, wait_until};

/// `TRILANE_SUBMIT_WAIT_SECONDS` of these processes: no call takes longer.
const SUBMIT_WAIT: Duration = Duration::from_secs(2);
/// What a machine under load adds to it.
const SLACK: Duration = Duration::from_secs(4);
/// Fewer than `TRILANE_HTTP_THREADS`, so that some are left for the probes.
const CLIENTS: usize = 24;
const JOBS_PER_CALL: usize = 3;

fn job() -> Value {
    json!({ "type": "quick", "payload": "x".repeat(10_000), "max_retries": 0 })
}

fn settings(site: &Site) -> Settings {
    let settings = site.settings().with("TRILANE_HANDLERS", site.quick_handlers());
    settings.with("TRILANE_SUBMIT_WAIT_SECONDS", SUBMIT_WAIT.as_secs())
}

fn take(calls: &Mutex<Calls>) -> Calls {
    std::mem::take(&mut *calls.lock().expect("no panic"))
}

fn assert_probes_answer(process: &Trilane) {
    let begun = Instant::now();
    assert_eq!((process.get("/healthz").status, process.get("/readyz").status), (200, 200));
    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
}

#[test]
fn what_is_too_much_for_the_database_is_refused_at_once_and_the_rest_taken_in_time() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process =
        site.start(&settings(&site).with("TRILANE_JOBS_PER_CALL_MAX", 10).with("TRILANE_SUBMIT_QUEUE_MAX", 30));
    process.wait_for_status(&process.enqueue(&[job()]), "completed");

    let (during, after) = under_load(&process, CLIENTS, &job(), |calls| {
        // The database takes 20 ms for a row.
        let slow = "create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(0.02); return new; end'";
        site.execute(slow);
        site.execute("create trigger slow before insert on Jobs for each row execute function slow()");
        take(calls);
        wait_until(SOON, "calls are refused and taken", || {
            let calls = calls.lock().expect("no panic");
            calls.refused > 100 && calls.taken.len() > 100
        });
        let cost = Cost::of(&process);
        thread::sleep(pause());
        assert_probes_answer(&process);
        cost.assert_no_growth();
        let during = take(calls);

        site.execute("drop trigger slow on Jobs");
        take(calls);
        wait_until(SOON, "calls are taken", || calls.lock().expect("no panic").taken.len() > 300);
        during
    });

    let of = |calls: &Calls| (calls.taken.len(), calls.refused, calls.longest_taken, calls.longest_refused);
    eprintln!("jobs taken, calls refused, longest of each: {:?}, then {:?}", of(&during), of(&after));
    assert_eq!(process.log().matches("calls are declined").count(), 1, "one line a minute");
    assert!(process.metric("trilane_jobs_declined_total") >= i64::try_from(during.refused).expect("few"));
    assert!(during.longest_taken < SUBMIT_WAIT + SLACK, "a call took {:?}", during.longest_taken);
    assert!(during.longest_refused < SUBMIT_WAIT + SLACK, "a refusal took {:?}", during.longest_refused);
    site.wait_for_jobs(SOON, 0, "Status <> 'completed'");
    assert!(site.jobs("1 = 1") >= i64::try_from(during.taken.len() + after.taken.len()).expect("few"));
}

/// Clients that were told to come back do, with the same jobs: what they gave up is not to be stored besides.
#[test]
fn calls_that_were_given_up_are_not_stored_when_the_database_is_back() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));
    process.wait_for_status(&process.enqueue(&[job()]), "completed");

    let ((), calls) = under_load(&process, CLIENTS, &job(), |calls| {
        let foreign = stores::connect(site.connection_string());
        foreign.set_autocommit(false).expect("a transaction");
        foreign.execute("lock table Jobs in access exclusive mode", (), None).map(drop).expect("locked");
        // Each client gives up so many calls.
        wait_until(4 * (SUBMIT_WAIT + SLACK), "calls are given up", || {
            calls.lock().expect("no panic").refused >= 4 * CLIENTS
        });
        assert_eq!(process.get("/healthz").status, 200);
        foreign.rollback().expect("it ends");
        let taken = calls.lock().expect("no panic").taken.len();
        wait_until(SOON, "calls are taken", || calls.lock().expect("no panic").taken.len() > taken + 100);
    });

    let stored = usize::try_from(site.jobs("1 = 1")).expect("few") - 1;
    let besides = stored - calls.taken.len();
    // Those that were on their way to the database when it stopped to answer, and those whose answer came a moment too late.
    let besides_max = 2 * CLIENTS * JOBS_PER_CALL;
    eprintln!("{} calls refused, {stored} jobs stored, {besides} of them without an acknowledgement", calls.refused);
    assert!(besides <= besides_max, "{besides} jobs were stored without an acknowledgement");
    site.wait_for_jobs(SOON, 0, "Status <> 'completed'");
}

#[test]
fn a_batch_that_takes_longer_than_a_statement_may_is_stored_in_smaller_ones() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&site.settings().with("TRILANE_HANDLERS", site.quick_handlers()));
    // What a statement meets that the server breaks off, here for its rows and not for its time.
    let broken_off = "create function slow() returns trigger language plpgsql as 'begin \
        if (select count(*) from added) > 2 then raise exception using errcode = ''query_canceled''; end if; return null; end'";
    site.execute(broken_off);
    site.execute("create trigger slow after insert on Jobs referencing new table as added execute function slow()");
    let holder = stores::connect(site.connection_string());
    holder.set_autocommit(false).expect("a transaction");
    // One call waits for the table, the others for it.
    holder.execute("lock table Jobs in share mode", (), None).expect("locked");

    let ids: Vec<String> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(|| process.enqueue(&[job()]))).collect();
        wait_until(SOON, "all wait", || process.metric("trilane_submissions_waiting") == 8);
        holder.rollback().expect("let go");
        calls.into_iter().flat_map(|call| call.join().expect("taken")).collect()
    });

    assert_eq!(ids.len(), 8);
    process.wait_for_status(&ids, "completed");
}
