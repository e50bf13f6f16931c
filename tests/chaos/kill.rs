//! A replica is killed at each place that `src/fault.rs` names, and started again, or another goes on.

use std::collections::HashMap;

use serde_json::{Value, json};
use trilane::store::Dialect;

use super::checker::history::{Deed, Said};
use super::checker::judge::Run;
use super::client::{Client, Got, mark_of};
use super::plan::{POINTS, POINTS_OF_REPAIRS};
use super::scene::{RECOVERED, Scene};
use super::trilane::wait_until;

/// Submissions at most until the fault point is passed often enough.
const CALLS_MAX: usize = 2_000;
/// Passes before the deadly one, so that there is a history already.
const PASSES: usize = 2;

/// Passed only by jobs that are not handed to a worker by the commit that stores them.
const OF_THE_LONG_WAY: [&str; 3] = ["submit.committed", "claim.popped", "claim.claimed"];

/// Who goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The same replica, started again.
    Restart,
    /// Another that was there all the time.
    TakeOver,
}

/// What the fault leaves behind.
enum Left {
    /// Rows that look dispatched; no lane and no process has their ids.
    Dispatched,
    /// Rows that run under a lease that nobody renews: they cost an attempt.
    Running,
    /// Nothing to be repaired but a lease without jobs.
    Stored,
}

fn left(point: &str) -> Left {
    match point {
        "submit.committed" | "submit_once.committed" | "claim.popped" | "tick.dispatched" | "timers.due" => {
            Left::Dispatched
        }
        "finish.committed" => Left::Stored,
        _ => Left::Running,
    }
}

/// Every case, with its name.
pub(crate) fn cases() -> Vec<(String, Box<dyn FnOnce() + Send>)> {
    let mut cases: Vec<(String, Box<dyn FnOnce() + Send>)> = Vec::new();
    for dialect in super::scene::dialects() {
        for point in POINTS.into_iter().filter(|point| !POINTS_OF_REPAIRS.contains(point)) {
            let name = |then| {
                format!("kill::at_{}_on_{}_then_{then}", point.replace('.', "_"), dialect.as_str().to_lowercase())
            };
            cases.push((name("restart"), Box::new(move || killed_at(point, dialect, Then::Restart))));
            if dialect != Dialect::Sqlite {
                cases.push((name("take_over"), Box::new(move || killed_at(point, dialect, Then::TakeOver))));
            }
        }
        let name = format!("kill::in_a_migration_on_{}_leaves_nothing_half_done", dialect.as_str().to_lowercase());
        cases.push((name, Box::new(move || killed_in_a_migration(dialect))));
    }
    cases
}

fn killed_at(point: &'static str, dialect: Dialect, then: Then) {
    let scene = Scene::on(dialect);
    let other = (then == Then::TakeOver).then(|| scene.start());
    let hand_off = if OF_THE_LONG_WAY.contains(&point) { "no" } else { "yes" };
    let settings = scene.settings().with("TRILANE_HAND_OFF", hand_off);
    let mut victim = scene.site.start(&settings.with("FAILPOINTS", format!("{point}={PASSES}*off->return")));
    let victim_id = replica_id(&scene, if other.is_some() { 2 } else { 1 });

    let to = victim.address().to_owned();
    let mut client = Client::new(&scene.ledger, 1);
    let (mut calls, mut unanswered) = (0, None);
    while victim.exit_code().is_none() {
        assert!(calls < CALLS_MAX, "{point} was never passed");
        unanswered = ask(&scene, &mut client, &to, calls).or(unanswered);
        calls += 1;
    }

    let jobs = |condition: &str| scene.site.jobs(&format!("{condition} and LeasedBy = {victim_id}"));
    // The other replica may have the first of them in its hands as we look.
    let running = jobs("Status = 'running'");
    let dispatched = scene
        .site
        .jobs(&format!("Status in ('queued', 'retrying') and DispatchedAt is not null and DispatchedBy = {victim_id}"));
    let (begun, over) = handlers_of_running(&scene);
    match point {
        // Another's handlers would count here too.
        "claim.claimed" | "worker.begun" if then == Then::Restart => {
            assert!(begun < running, "{point}: a handler was not begun");
        }
        "worker.done" | "finish.in_transaction" => assert!(over > 0, "{point}: a handler was over"),
        _ => {}
    }
    match left(point) {
        Left::Running => assert!(running > 0, "{point}: jobs run under a lease that nobody renews"),
        Left::Dispatched if then == Then::Restart => assert!(dispatched > 0, "{point}: rows look dispatched"),
        Left::Dispatched | Left::Stored => {}
    }
    let next = other.unwrap_or_else(|| scene.start());
    let late = client.submit(next.address(), &[scene.ledger.job("quick")]);
    assert!(matches!(late, Got::Answer(200, _)));
    if point == "submit_once.committed" {
        let (jobs, key) = unanswered.expect("the call that was cut");
        let again = client.submit_under(next.address(), &jobs, &key);
        assert!(
            matches!(again, Got::Answer(200, _)),
            "who asks again under its key is told what the first call stored"
        );
    }

    scene.settle();
    let verdict = scene.check(Run::default());
    assert_eq!(verdict.counts.failed, 0, "each had retries left");
    assert_eq!(scene.workers_lost(), running, "what ran has lost an attempt, and nothing else has");
    if point == "submit.committed" {
        assert_eq!(verdict.counts.unanswered, 1, "the last call was stored, and its client was told nothing");
    }
    if point == "finish.committed" && running == 0 {
        assert_eq!(verdict.counts.run_twice, 0, "its outcomes were stored");
    }
}

/// Of the jobs that run: how many handlers have begun, and how many are over, under the token of their lease.
fn handlers_of_running(scene: &Scene) -> (i64, i64) {
    let history = scene.ledger.history(scene.site.connection_string());
    let running: HashMap<&str, Option<i64>> =
        history.tables.jobs.iter().filter(|job| job.status == "running").map(|job| (&*job.id, job.token)).collect();
    let own = history.effects.iter().filter(|effect| running.get(&*effect.job) == Some(&Some(effect.token)));
    let count = |wanted: fn(Deed) -> bool| {
        i64::try_from(own.clone().filter(|effect| wanted(effect.deed)).count()).expect("few")
    };
    (count(|deed| deed == Deed::Start), count(|deed| deed != Deed::Start))
}

/// The number of the replica that has started last, as the last of `count`.
fn replica_id(scene: &Scene, count: i64) -> i64 {
    wait_until(RECOVERED, "it shows itself", || scene.site.number("select count(*) from Replicas") == count);
    scene.site.number("select Id from Replicas where StartedAt = (select max(StartedAt) from Replicas)")
}

/// One call: jobs for at once and for later, some that fail at first, some under an idempotency key, and a row by plain SQL. Returns the
/// jobs and the key of a call that got no answer.
fn ask(scene: &Scene, client: &mut Client<'_>, to: &str, number: usize) -> Option<(Vec<Value>, String)> {
    match number % 6 {
        0 => insert(scene),
        1 => {
            let mut job = scene.ledger.job("quick");
            job["delay_ms"] = json!(300);
            client.submit(to, &[job]);
        }
        2 => drop(client.submit(to, &[scene.ledger.job("late")])),
        3 => {
            let jobs = vec![scene.ledger.job("quick"), scene.ledger.job("quick")];
            let key = format!("call-{number}");
            let got = client.submit_under(to, &jobs, &key);
            return matches!(got, Got::Unknown(_)).then_some((jobs, key));
        }
        _ => drop(client.submit(to, &[scene.ledger.job("quick")])),
    }
    None
}

fn insert(scene: &Scene) {
    let (job, id) = (scene.ledger.job("quick"), uuid::Uuid::new_v4());
    let mark = mark_of(&job);
    scene.ledger.say(Said::Submits { marks: vec![mark.clone()] });
    scene.site.execute(&format!(
        "insert into Jobs (Id, Type, Payload, Priority) values ('{id}', 'quick', '{}', 'HIGH')",
        job["payload"]
    ));
    scene.ledger.say(Said::Stored { jobs: vec![(mark, id.to_string())] });
}

fn killed_in_a_migration(dialect: Dialect) {
    let scene = Scene::on(dialect);
    let settings = scene.settings();
    let tables = match dialect {
        Dialect::Sqlite => "select count(*) from sqlite_master where type = 'table'",
        Dialect::Postgres => "select count(*) from information_schema.tables where table_schema = current_schema()",
        Dialect::Mssql => "select count(*) from sys.tables",
    };

    let killed = settings.clone().with("FAILPOINTS", "migrate.applied=return").run(scene.site.folder(), &["migrate"]);

    assert_eq!(killed.code, None, "it was killed: {killed:?}");
    assert!(killed.stderr.contains("schema migration runs"), "within the migration: {killed:?}");
    assert_eq!(scene.site.number(tables), 0, "nothing is there yet");
    let process = scene.start();
    let mut client = Client::new(&scene.ledger, 1);
    client.submit(process.address(), &[scene.ledger.job("quick")]);
    wait_until(RECOVERED, "the job is done", || scene.site.jobs("Status = 'completed'") == 1);
    scene.settle();
    scene.check(Run { goes_on: false, is_calm: true });
}
