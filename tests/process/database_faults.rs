//! PostgreSQL fails: calls are refused within their time, what was acknowledged is there afterwards, what had been done is stored then, and
//! the process neither ends nor spins nor grows. What becomes of SQLite stands in `sqlite_faults`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Calls, Cost, GIVES_WAY, outages, pause, under_load};
use super::postgres_server::{PostgresServer, USER};
use super::site::Site;
use super::stores;
use super::trilane::{SOON, Settings, Trilane, wait_until};
use super::{SetOnDrop, load_the_machine};

/// `TRILANE_SUBMIT_WAIT_SECONDS` of these processes.
const SUBMIT_WAIT: Duration = Duration::from_secs(2);
/// What a machine under load adds to it.
const SLACK: Duration = Duration::from_secs(4);
const CLIENTS: usize = 4;
/// Time for those who ask less and less often to find the database again.
const NOTICED: Duration = Duration::from_secs(45);

pub(super) fn quick() -> Value {
    json!({ "type": "quick", "max_retries": 0 })
}

pub(super) fn settings(site: &Site) -> Settings {
    let settings = site.settings().with("TRILANE_HANDLERS", site.counting_handlers("gate"));
    settings.with("TRILANE_DB_WAIT_SECONDS", 1).with("TRILANE_SUBMIT_WAIT_SECONDS", SUBMIT_WAIT.as_secs())
}

fn taken(calls: &Mutex<Calls>) -> usize {
    calls.lock().expect("no panic").taken.len()
}

fn wait_for_more(calls: &Mutex<Calls>) {
    let wanted = taken(calls) + 100;
    wait_until(NOTICED, "calls are taken", || taken(calls) >= wanted);
}

/// Another program's connection, with a transaction open from its first statement on.
pub(super) fn transaction(site: &Site) -> odbc_api::Connection<'static> {
    let connection = stores::connect(site.connection_string());
    connection.set_autocommit(false).expect("a transaction");
    connection
}

pub(super) fn run(connection: &odbc_api::Connection<'_>, sql: &str) -> Result<(), odbc_api::Error> {
    connection.execute(sql, (), None).map(drop)
}

/// All that was acknowledged completes, and nothing completes twice. What was stored though its call was refused may wait for a tick.
fn assert_kept(site: &Site, calls: &Calls) {
    let ids: Vec<String> = calls.taken.iter().map(|id| format!("'{id}'")).collect();
    for ids in ids.chunks(500) {
        let (ids, count) = (ids.join(","), i64::try_from(ids.len()).expect("few"));
        assert_eq!(site.jobs(&format!("Id in ({ids})")), count, "what was acknowledged is there");
        site.wait_for_jobs(SOON, count, &format!("Status = 'completed' and Id in ({ids})"));
    }
    let twice = "select (select cast(sum(Completed) as bigint) from JobStats) - (select count(*) from Jobs where Status = 'completed')";
    wait_until(SOON, "each is counted as completed once", || site.number(twice) == 0);
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
}

/// Every outage that was told was told to have ended.
fn assert_outages(process: &Trilane, at_most: usize) {
    let told = || outages(process, "the database");
    wait_until(SOON, "the end of the outage is told", || told().0 == told().1);
    assert!(told().0 <= at_most, "one line at its start, one at its end: {:?}", told());
}

/// A server of its own is away from `fault` to `mend`. A job that was running ends meanwhile. The process connects as the role `app`, for
/// the limits of connections do not hold for the server's owner.
fn survives(fault: impl FnOnce(&mut PostgresServer), mend: impl FnOnce(&mut PostgresServer)) {
    let _machine = load_the_machine();
    let mut server = PostgresServer::start();
    let site = Site::on_postgres(&server.connection_string());
    for sql in ["create role app login".to_owned(), format!("alter database {} owner to app", site.database_name())] {
        stores::execute(site.connection_string(), &sql);
    }
    let connection_string = site.connection_string().replace(&format!("UID={USER};"), "UID=app;");
    let process = site.start(&settings(&site).with("DB_CONNECTION", connection_string));
    let gate = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);

    let ((), calls) = under_load(&process, CLIENTS, &quick(), |calls| {
        wait_for_more(calls);
        fault(&mut server);
        let cost = Cost::of(&process);
        wait_until(SOON, "calls are refused", || calls.lock().expect("no panic").refused > 0);
        site.open_gate("gate");
        thread::sleep(pause());
        assert_eq!(process.get("/healthz").status, 200);
        cost.assert_little();
        mend(&mut server);
        wait_for_more(calls);
    });

    assert!(calls.longest_refused < SUBMIT_WAIT + SLACK, "a refusal took {:?}", calls.longest_refused);
    process.wait_for_status(&[gate], "completed");
    assert_kept(&site, &calls);
    assert_eq!(site.times_done("gate"), 1, "what was done is not done again");
    assert_outages(&process, 1);
}

#[test]
fn a_database_that_is_killed_and_restarted_costs_no_job() {
    survives(PostgresServer::kill, PostgresServer::restart);
}

#[test]
fn a_database_that_hangs_costs_no_job() {
    survives(|server| server.hang(), |server| server.go_on());
}

#[test]
fn a_database_with_no_connection_left_costs_no_job() {
    let admin = |server: &PostgresServer, sql: &str| stores::execute(&server.connection_string(), sql);
    survives(
        |server| {
            admin(server, "alter role app connection limit 0");
            admin(server, "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'app'");
        },
        |server| admin(server, "alter role app connection limit -1"),
    );
}

/// A foreign transaction keeps those who read the dead letters waiting, on all connections that reads may use.
#[test]
fn reads_that_hold_their_connections_leave_the_duties_theirs() {
    const CONNECTIONS: usize = 8;
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site).with("TRILANE_DB_POOL_MAX", CONNECTIONS));
    let gate = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);
    let foreign = transaction(&site);
    run(&foreign, "lock table FailedJobs in access exclusive mode").expect("locked");

    let (is_over, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let ((), calls) = thread::scope(|scope| {
        for _ in 0..2 * CONNECTIONS {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let answer = process.get("/failed-jobs?limit=10");
                    assert!(matches!(answer.status, 200 | 503), "{answer:?}");
                    if answer.status == 503 {
                        assert!(answer.retry_after.is_some_and(|seconds| seconds > 0), "when to come back: {answer:?}");
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
        let _over = SetOnDrop(&is_over);
        under_load(&process, CLIENTS, &quick(), |calls| {
            wait_until(SOON, "reads are refused", || refused.load(Ordering::SeqCst) >= 4 * CONNECTIONS);
            assert_eq!((process.get("/healthz").status, process.get("/readyz").status), (200, 200));
            wait_for_more(calls);
            site.open_gate("gate");
            site.wait_for_jobs(SOON, 1, &format!("Id = '{gate}' and Status = 'completed'"));
            foreign.rollback().expect("it ends");
            is_over.store(true, Ordering::SeqCst);
        })
    });

    assert_kept(&site, &calls);
    assert_eq!((calls.refused, outages(&process, "the database")), (0, (0, 0)), "who submits notices nothing");
}

#[test]
fn connections_that_the_server_cuts_under_load_cost_no_job() {
    const CUTS: usize = 10;
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));

    let ((), calls) = under_load(&process, CLIENTS, &quick(), |calls| {
        for _ in 0..CUTS {
            site.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
            );
            wait_for_more(calls);
        }
    });

    assert_kept(&site, &calls);
    // A thread that was about to use a connection that had been cut may tell so after another has found a new one.
    assert_outages(&process, 2 * CUTS);
}

/// The connection that makes the schema is cut while it waits for another session that makes it.
#[test]
fn a_start_survives_that_its_connection_is_cut() {
    const CUT: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'";
    let _machine = load_the_machine();
    let site = Site::postgres();
    site.execute("set client_min_messages = error; drop schema public cascade; create schema public");
    let foreign = transaction(&site);
    run(&foreign, "select cast(pg_advisory_xact_lock(32777053529009765) as text)").expect("locked");

    thread::scope(|scope| {
        let starting = scope.spawn(|| site.start(&settings(&site)));
        wait_until(SOON, "the start waits for the schema", || site.number(CUT) > 0);
        foreign.rollback().expect("it ends");

        assert_eq!(starting.join().expect("it serves").get("/readyz").status, 200);
    });
}

#[test]
fn a_foreign_transaction_that_holds_the_table_is_waited_for_within_limits() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));
    let gate = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);

    let ((), calls) = under_load(&process, CLIENTS, &quick(), |calls| {
        wait_for_more(calls);
        let foreign = transaction(&site);
        run(&foreign, "lock table Jobs in access exclusive mode").expect("locked");
        let cost = Cost::of(&process);
        wait_until(SOON, "calls are refused", || calls.lock().expect("no panic").refused > 0);
        site.open_gate("gate");
        thread::sleep(pause());
        wait_until(NOTICED, "statements end before they have the lock", || process.has_logged(GIVES_WAY));
        assert_eq!((process.get("/healthz").status, process.get("/readyz").status), (200, 200));
        assert!(process.has_logged("calls are declined"), "who looks into the log sees why");
        cost.assert_little();
        foreign.rollback().expect("it ends");
        wait_for_more(calls);
    });

    assert!(calls.longest_refused < SUBMIT_WAIT + SLACK, "a refusal took {:?}", calls.longest_refused);
    process.wait_for_status(&[gate], "completed");
    assert_kept(&site, &calls);
    assert_eq!(site.times_done("gate"), 1, "what was done is not done again");
}

#[test]
fn a_foreign_transaction_that_is_left_open_holds_nothing_up() {
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));
    let foreign = transaction(&site);
    run(&foreign, "set transaction isolation level repeatable read").expect("set");
    run(&foreign, "insert into Jobs (Type, Payload) values ('quick', '{}')").expect("inserted");

    let ((), calls) = under_load(&process, CLIENTS, &quick(), |calls| {
        for _ in 0..5 {
            wait_for_more(calls);
            assert_eq!(process.post("/scheduler/wake", &json!(null)).status, 202);
        }
    });

    assert_kept(&site, &calls);
    assert_eq!((calls.refused, outages(&process, "the database")), (0, (0, 0)));
    foreign.commit().expect("committed");
    assert_eq!(process.post("/scheduler/wake", &json!(null)).status, 202);
    site.wait_for_jobs(SOON, 0, "Status <> 'completed'");
}

#[test]
fn a_deadlock_with_a_foreign_transaction_costs_no_job() {
    const JOBS: i64 = 8;
    let _machine = load_the_machine();
    let site = Site::postgres();
    let process = site.start(&settings(&site));
    process.enqueue(&vec![json!({ "type": "gate", "max_retries": 0 }); usize::try_from(JOBS).expect("few")]);
    wait_until(SOON, "the commands run", || site.jobs("Status = 'running'") == JOBS);
    let foreign = transaction(&site);
    let deadlocks = || {
        // Counted once a second or so.
        site.number("select cast(deadlocks as bigint) from pg_stat_database where datname = current_database()")
    };

    // While the outcome of a first job waits for the statistics, the others' come together; and the foreign transaction has the last one's row.
    let holder = transaction(&site);
    run(&holder, "lock table JobStats in exclusive mode").expect("locked");
    let waiting =
        |what| site.number(&format!("select count(*) from pg_locks where not granted and locktype = '{what}'"));
    let first = process.enqueue_one(quick());
    wait_until(SOON, "the first outcome waits", || waiting("relation") > 0);
    run(&foreign, "select 1 from Jobs where Seq = (select max(Seq) from Jobs where Type = 'gate') for update")
        .expect("nobody has it yet");
    site.open_gate("gate");
    wait_until(SOON, "all commands have ended", || process.metric("trilane_jobs_running") == 0);
    holder.rollback().expect("it ends");
    process.wait_for_status(&[first], "completed");
    wait_until(SOON, "the outcomes wait for it", || waiting("transactionid") > 0);
    // Either may be the one that the server ends.
    let ended = run(&foreign, "update Jobs set UpdatedAt = now()").and_then(|()| foreign.commit());
    eprintln!("the foreign transaction: {ended:?}");
    drop(foreign.rollback());

    site.wait_for_jobs(SOON, JOBS + 1, "Status = 'completed'");
    wait_until(SOON, "there was a deadlock", || deadlocks() > 0);
    assert_eq!(site.times_done("gate"), usize::try_from(JOBS).expect("few"), "what was done is not done again");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
    assert_eq!(outages(&process, "the database"), (0, 0));
}
