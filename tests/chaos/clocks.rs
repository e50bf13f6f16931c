//! Replicas whose clocks are an hour off. Only the wall clock is wrong, as on a machine that nobody keeps right: intervals are measured
//! by another one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use trilane::clock::Timestamp;
use trilane::store::Dialect;

use super::checker::judge::Run;
use super::client::{Asks, Client, Got, while_clients_ask};
use super::ledger::now_ms;
use super::scene::{LEASE_MS, RECOVERED, Scene};
use super::trilane::{Trilane, text, wait_until};

const HOUR_MS: i64 = 3_600_000;
/// More than a slow machine takes, less than an hour.
const LATE_MS_MAX: i64 = 60_000;

pub(crate) fn an_hour_off_either_way_changes_nothing() {
    let scene = Scene::on(Dialect::Postgres);
    let replicas = [0, HOUR_MS, -HOUR_MS].map(|off_ms| start(&scene, off_ms));
    for (replica, off_ms) in replicas.iter().zip([0, HOUR_MS, -HOUR_MS]) {
        let off_by = time_of_first_line(replica) - now_ms();
        assert!((off_by - off_ms).abs() < LATE_MS_MAX, "its clock is {off_by} ms off, not {off_ms}");
    }

    let start = now_ms();
    let address = |random: &mut super::random::Random| replicas[random.below(3)].address().to_owned();
    let asks = Asks { clients: 3, seed: 5, pause: Duration::from_millis(50), may_kill: false };
    let ((), seen) = while_clients_ask(&scene.ledger, asks, &address, || {
        wait_until(RECOVERED, "each has completed jobs", || {
            let completed = replicas.iter().map(|replica| replica.metric("trilane_jobs_completed_total"));
            now_ms() > start + 5_000 && completed.min() > Some(20)
        });
    });
    // A time that a client names is the database's.
    let mut client = Client::new(&scene.ledger, 6);
    let at = Timestamp::from_millis(now_ms() + 3_000).to_string();
    let timed: Vec<String> = replicas.iter().map(|replica| submit_for(&scene, &mut client, replica, &at)).collect();
    scene.settle();

    assert_eq!((seen.surprises, seen.failures.len()), (Vec::new(), 0));
    scene.check(Run { goes_on: false, is_calm: true });
    let jobs = |condition: &str| scene.site.jobs(condition);
    assert_eq!(scene.workers_lost(), 0);
    assert_eq!(jobs("Status = 'completed' and StartedAt < RunAt - interval '1 second'"), 0, "none was begun early");
    let late = format!("Status = 'completed' and StartedAt > RunAt + interval '{LATE_MS_MAX} milliseconds'");
    assert_eq!(jobs(&late), 0, "none was begun late");
    assert_eq!(jobs("abs(extract(epoch from now() - CreatedAt)) > 600"), 0, "all times are the database's");
    // A timer that is missed is found only by the search for lost ids, 10 s later.
    for ids in timed {
        let in_time = format!("Id in ({ids}) and StartedAt < RunAt + interval '8 seconds'");
        assert!(jobs(&in_time) > 0, "the replica with the wrong clock has kept its timers");
    }
    a_lease_runs_out_by_the_clock_of_the_database(&scene, replicas);
}

/// Some jobs for a time that the client names. Returns their ids, for SQL.
fn submit_for(scene: &Scene, client: &mut Client<'_>, replica: &Trilane, at: &str) -> String {
    let jobs: Vec<Value> = (0..5)
        .map(|_| {
            let mut job = scene.ledger.job("quick");
            job["run_at"] = json!(at);
            job
        })
        .collect();
    let Got::Answer(200, answer) = client.submit(replica.address(), &jobs) else { panic!("they are taken") };
    let ids = answer["success"].as_array().expect("an array").iter();
    ids.map(|job| format!("'{}'", text(&job["id"]))).collect::<Vec<_>>().join(", ")
}

/// The replica with the right clock dies; those with wrong ones neither wait an hour nor take its job at once.
fn a_lease_runs_out_by_the_clock_of_the_database(scene: &Scene, [mut right, fast, slow]: [Trilane; 3]) {
    fast.signal("STOP");
    slow.signal("STOP");
    scene.ledger.close_gates();
    let mut client = Client::new(&scene.ledger, 7);
    client.submit(right.address(), &[scene.ledger.job("gate")]);
    scene.site.wait_for_jobs(RECOVERED, 1, "Type = 'gate' and Status = 'running'");
    let from = now_ms();
    fast.signal("CONT");
    slow.signal("CONT");
    right.kill();
    scene.ledger.open_gate();
    scene.ledger.let_go();

    scene.site.wait_for_jobs(RECOVERED, 1, "Type = 'gate' and Status = 'completed'");
    assert!(now_ms() - from < LATE_MS_MAX * 2);
    let held = scene.site.number(
        "select cast(extract(epoch from FinishedAt - StartedAt) * 1000 as bigint) from JobAttempts where Error like '%worker lost%'",
    );
    assert!(held >= LEASE_MS, "it was taken away after {held} ms");
    scene.settle();
    scene.check(Run::default());
}

fn start(scene: &Scene, off_ms: i64) -> Trilane {
    // Long enough for what is due in some seconds to wait in the timers of the replica that took it.
    let settings = scene.settings().with("TRILANE_TICK_SECONDS", 5);
    if off_ms == 0 {
        return scene.site.start(&settings);
    }
    let settings = settings
        .with("LD_PRELOAD", library().display())
        .with("FAKETIME", format!("{:+}s", off_ms / 1_000))
        .with("FAKETIME_DONT_FAKE_MONOTONIC", 1)
        .with("DONT_FAKE_MONOTONIC", 1);
    scene.site.start(&settings)
}

/// libfaketime for programs with threads, where Debian has it for this kind of machine.
fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").expect("a folder").map_while(Result::ok).map(|folder| folder.path());
    let file = |folder: PathBuf| folder.join("faketime/libfaketimeMT.so.1");
    let found = folders.chain([Path::new("/usr/lib").to_owned()]).map(file).find(|path| path.exists());
    found.expect("this test needs libfaketime (Debian: apt-get install faketime)")
}

fn time_of_first_line(replica: &Trilane) -> i64 {
    let log = replica.log();
    let time = log.split(' ').next().expect("a line begins with its time");
    time.parse::<Timestamp>().expect("a time").as_millis()
}
