//! Replicas that are stopped in order, under load: nothing is lost, repeated or refused, and no attempt used up. And an upgrade, where
//! an older program is given (`make chaos OLD=…`).

use std::sync::RwLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use trilane::store::Dialect;

use super::checker::judge::{Counts, Run};
use super::client::{Asks, Client, Failure, Seen, while_clients_ask};
use super::ledger::now_ms;
use super::scene::{RECOVERED, Scene, dialects};
use super::trilane::{PROGRAM, Settings, Trilane, wait_until};

const ASKS: Asks = Asks { clients: 3, seed: 11, pause: Duration::from_millis(40), may_kill: false };

/// Jobs that come just before a stop.
const MANY: usize = 300;

/// A program that refuses to start does so soon.
const REFUSED_WITHIN: Duration = Duration::from_secs(40);

/// When an address was being stopped, in milliseconds since 1970.
struct Stop {
    address: String,
    from: i64,
    until: i64,
}

pub(crate) fn a_rolling_restart_of_five_replicas_fails_no_request_and_costs_no_attempt() {
    let scene = Scene::on(Dialect::Postgres);
    let counts = rolling(&scene, 5, &scene.settings(), &scene.settings());
    assert!(counts.completed > 50, "under load: {counts:?}");
}

/// Names the program of an older version. Without it nothing is upgraded: replicas of this version replace each other.
pub(crate) const OLD_PROGRAM: &str = "TRILANE_TEST_OLD_BINARY";

pub(crate) fn one_after_the_other_on_every_database_fails_no_request_and_costs_no_attempt() {
    let old = |settings: Settings| match std::env::var(OLD_PROGRAM) {
        Ok(program) => settings.with(PROGRAM, program),
        Err(_) => settings,
    };
    for dialect in dialects() {
        let scene = Scene::on(dialect);
        let replicas = if dialect == Dialect::Sqlite { 1 } else { 3 };
        rolling(&scene, replicas, &old(scene.settings()), &scene.settings());
    }
}

/// Replaces one replica after the other. Where there are several, the new one starts before the old one is stopped.
fn rolling(scene: &Scene, count: usize, before: &Settings, after: &Settings) -> Counts {
    let old: Vec<Trilane> = (0..count).map(|_| scene.site.start(before)).collect();
    let addresses = RwLock::new(old.iter().map(|replica| replica.address().to_owned()).collect::<Vec<String>>());
    let address = |random: &mut super::random::Random| {
        let addresses = addresses.read().expect("no panic");
        addresses[random.below(addresses.len())].clone()
    };
    let more_are_done = |replica: &Trilane| {
        let before = replica.metric("trilane_jobs_completed_total");
        wait_until(RECOVERED, "it completes more jobs", || {
            replica.metric("trilane_jobs_completed_total") > before + 10
        });
    };
    let ((stops, new), seen) = while_clients_ask(&scene.ledger, ASKS, &address, || {
        let (mut stops, mut new, mut client) = (Vec::new(), Vec::new(), Client::new(&scene.ledger, 12));
        for (slot, mut replica) in old.into_iter().enumerate() {
            more_are_done(&replica);
            let early = (count > 1).then(|| scene.site.start(after));
            // So that it has claimed more than it runs.
            let many: Vec<Value> = (0..MANY).map(|_| scene.ledger.job("quick")).collect();
            client.submit(replica.address(), &many);
            let from = now_ms();
            replica.signal("TERM");
            assert_eq!(replica.wait_for_exit(RECOVERED), 0);
            let next = early.unwrap_or_else(|| scene.site.start(after));
            // Clients hear of it late: until then they ask the one that is gone.
            next.address().clone_into(&mut addresses.write().expect("no panic")[slot]);
            stops.push(Stop { address: replica.address().to_owned(), from, until: now_ms() });
            new.push(next);
        }
        new.iter().for_each(more_are_done);
        (stops, new)
    });
    scene.settle();
    assert_only_refusals(&seen, &stops);
    let verdict = scene.check(Run { goes_on: false, is_calm: true });
    assert_eq!(scene.workers_lost(), 0, "no attempt was used up");
    assert_eq!(verdict.counts.unanswered, 0, "what was not answered was not stored either");
    drop(new);
    verdict.counts
}

/// Nobody there, or one that says that it stops and has stored nothing: at the one that was just being stopped.
fn assert_only_refusals(seen: &Seen, stops: &[Stop]) {
    assert_eq!(seen.surprises, Vec::<String>::new());
    let is_fair = |failure: &&Failure| {
        let is_refusal = ["refused", "is being stopped"].iter().any(|word| failure.what.contains(word));
        let is_then = |stop: &Stop| {
            stop.address == failure.address && failure.until >= stop.from && failure.from <= stop.until + 1_000
        };
        is_refusal && stops.iter().any(is_then)
    };
    let unfair: Vec<&Failure> = seen.failures.iter().filter(|failure| !is_fair(failure)).collect();
    assert!(unfair.is_empty(), "requests failed: {unfair:#?}");
}

/// Runs the program, which must end by itself. Returns its exit code and what it wrote.
fn run(scene: &Scene, settings: &Settings, arguments: &[&str]) -> (Option<i32>, String) {
    let path = scene.site.folder().join("refused.log");
    let log = std::fs::File::create(&path).expect("a log");
    let settings = settings.clone().with("TRILANE_HTTP_ADDR", "127.0.0.1:0");
    let mut child = settings.command(scene.site.folder()).args(arguments).stderr(log).spawn().expect("it starts");
    let deadline = Instant::now() + REFUSED_WITHIN;
    while child.try_wait().expect("its state").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    // It may have ended by itself; there is nothing more to do for it then.
    let _ = child.kill();
    let status = child.wait().expect("its state");
    (status.code(), std::fs::read_to_string(&path).expect("the log"))
}

pub(crate) fn a_schema_of_a_newer_version_is_refused() {
    for dialect in dialects() {
        let scene = Scene::on(dialect);
        let settings = scene.settings();
        let running = scene.start();
        let newer = scene.site.number("select max(Version) from SchemaVersion") + 1;
        scene
            .site
            .execute(&format!("insert into SchemaVersion (Version, Name) values ({newer}, 'of_a_newer_program')"));

        let refused = [
            run(&scene, &settings, &[]),
            run(&scene, &settings, &["migrate"]),
            run(&scene, &settings.clone().with("TRILANE_MIGRATE", "off"), &[]),
        ];

        for (code, log) in refused {
            assert_eq!(code, Some(1), "{log}");
            let says = format!("the database has schema version {newer}, written by a newer Trilane");
            assert!(log.contains(&says) && log.contains("run the newer program"), "{log}");
        }
        // The upgrade has begun; those that still run go on.
        let mut client = Client::new(&scene.ledger, 1);
        client.submit(running.address(), &[scene.ledger.job("quick")]);
        scene.settle();
        scene.check(Run { goes_on: false, is_calm: true });
    }
}
