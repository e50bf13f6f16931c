//! A run under random faults: clients ask, a plan breaks one thing after the other, all is mended, and the checker judges.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::checker::history::{History, Said};
use super::checker::judge::{Counts, Run, judge, listed};
use super::client::{Asks, while_clients_ask};
use super::fleet::Fleet;
use super::ledger::{Ledger, now_ms};
use super::plan::{Site, Step, plan};
use super::postgres::Postgres;
use super::redis_server::TestServer;
use super::stores::{self, TestStore};
use super::trilane::{Settings, wait_until};

const LEASE: Duration = Duration::from_secs(3);
/// How long everything may take to end once all is mended: the timers of a replica that died last are taken over after 60 s.
const HEALED: Duration = Duration::from_mins(4);
const SURPRISES_SHOWN: usize = 20;
/// Steps of the one who breaks and mends.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The stores of a run, and what else it needs.
struct Ground {
    connection_string: String,
    postgres: Option<Postgres>,
    redis: Option<TestServer>,
    _database: Option<TestStore>,
    replicas: usize,
    name: &'static str,
}

/// What was broken, and when each of these faults was over.
#[derive(Default)]
struct Faults {
    counts: BTreeMap<&'static str, usize>,
    ends: Vec<i64>,
}

pub(crate) fn on_postgres() {
    let postgres = Postgres::start();
    let connection_string = postgres.connection_string();
    storm(
        &|_| Ground {
            connection_string: connection_string.clone(),
            postgres: None,
            redis: Some(TestServer::start_tcp(&[])),
            _database: None,
            replicas: 5,
            name: "PostgreSQL and Redis",
        },
        Some(postgres),
    );
}

pub(crate) fn on_sqlite() {
    storm(
        &|folder| Ground {
            connection_string: trilane::store::Store::sqlite_connection_string(&folder.join("trilane.db")),
            postgres: None,
            redis: None,
            _database: None,
            replicas: 1,
            name: "SQLite",
        },
        None,
    );
}

pub(crate) fn on_sql_server() {
    storm(
        &|_| {
            let database = TestStore::new(trilane::store::Dialect::Mssql);
            Ground {
                connection_string: database.connection_string.clone(),
                postgres: None,
                redis: Some(TestServer::start_tcp(&[])),
                _database: Some(database),
                replicas: 5,
                name: "SQL Server and Redis",
            }
        },
        None,
    );
}

/// Says that the storms are to be long, and how long.
const MINUTES: &str = "TRILANE_CHAOS_MINUTES";
/// Of the short form, so that `make test` breaks the same things every time.
const SEED: u64 = 3;

fn length() -> Duration {
    match std::env::var(MINUTES) {
        Ok(minutes) => Duration::from_secs_f64(minutes.parse::<f64>().expect("a number of minutes") * 60.0),
        Err(_) => Duration::from_secs(30),
    }
}

/// The one that is given; else that of the short form, or one of the moment for a long one.
fn seed() -> u64 {
    match std::env::var("TRILANE_CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) if std::env::var_os(MINUTES).is_none() => SEED,
        Err(_) => u64::try_from(now_ms()).expect("after 1970") % 1_000_000,
    }
}

fn storm(ground: &dyn Fn(&Path) -> Ground, postgres: Option<Postgres>) {
    let (seed, length) = (seed(), length());
    let folder = std::env::temp_dir().join(format!("trilane-chaos-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&folder).expect("a folder for the run");
    let mut ground = Ground { postgres, ..ground(&folder) };
    let told = Told { folder: folder.clone(), seed, name: ground.name };
    let ledger = Ledger::open(&folder);
    let settings = settings(&ground, &ledger);
    let fleet = Fleet::start(ground.replicas, &settings, folder);

    let site = Site {
        replicas: ground.replicas,
        has_redis: ground.redis.is_some(),
        owns_database: ground.postgres.is_some(),
        lease_ms: u64::try_from(LEASE.as_millis()).expect("short"),
    };
    let start = Instant::now();
    let address = |random: &mut super::random::Random| fleet.address(random.below(fleet.len())).to_owned();
    let asks = Asks { clients: 3, seed, pause: Duration::from_millis(60), may_kill: true };
    let (mut faults, met) = while_clients_ask(&ledger, asks, &address, || {
        let mut faults = Faults::default();
        for planned in plan(seed, u64::try_from(length.as_millis()).expect("short"), site) {
            while start.elapsed() < Duration::from_millis(planned.at_ms) {
                fleet.mind();
                thread::sleep(LOOK_EVERY);
            }
            ground.take(planned.step, &fleet);
            if let Some(kind) = planned.ends {
                *faults.counts.entry(kind).or_default() += 1;
                faults.ends.push(now_ms());
            }
        }
        heal(&fleet);
        // Some jobs come after all is well.
        let healed = Instant::now();
        while healed.elapsed() < Duration::from_secs(3) {
            fleet.mind();
            thread::sleep(LOOK_EVERY);
        }
        faults
    });
    let asked_for = start.elapsed();
    faults.counts.insert("deaths at a point or by a job", fleet.deaths.load(std::sync::atomic::Ordering::Relaxed));
    let live = || number(&ground, "select count(*) from Jobs where Status in ('queued', 'running', 'retrying')");
    let leases = || number(&ground, "select count(*) from Leases");
    let ended = Instant::now();
    while (live() > 0 || leases() > 0) && ended.elapsed() < HEALED {
        fleet.mind();
        thread::sleep(Duration::from_millis(200));
    }
    let (ended_after, errors) = (ended.elapsed(), fleet.errors());
    let mut surprises = met.surprises;
    surprises.extend(fleet.stop());

    let history = ledger.history(&ground.connection_string);
    let verdict = judge(&history, Run::default());
    show_table(&table(&ground, seed, &faults, &verdict.counts, &history, asked_for, ended_after));
    surprises.truncate(SURPRISES_SHOWN);
    let is_sound = verdict.violations.is_empty() && surprises.is_empty() && errors.is_empty();
    assert!(is_sound, "broken: {}\nsurprises: {surprises:#?}\nerrors: {errors:#?}", listed(&verdict.violations));
    drop(fleet);
    told.forget();
}

fn settings(ground: &Ground, ledger: &Ledger) -> Settings {
    let settings = Settings::default()
        .with("DB_CONNECTION", &ground.connection_string)
        .with("TRILANE_HANDLERS", ledger.handlers())
        .with("TRILANE_LEASE_SECONDS", LEASE.as_secs())
        .with("TRILANE_DB_WAIT_SECONDS", 1)
        .with("TRILANE_TICK_SECONDS", 3)
        .with("TRILANE_DRAIN_SECONDS", 5)
        .with("TRILANE_SUBMIT_WAIT_SECONDS", 5)
        .with("TRILANE_WORKERS", 4)
        .with("TRILANE_RETRY_BASE_MS", 20)
        .with("TRILANE_RETRY_CAP_MS", 500);
    match &ground.redis {
        Some(redis) => settings.with("REDIS_URL", redis.url()),
        None => settings,
    }
}

fn number(ground: &Ground, sql: &str) -> i64 {
    stores::number(&ground.connection_string, sql)
}

impl Ground {
    fn take(&mut self, step: Step, fleet: &Fleet) {
        match (step, &mut self.redis, &mut self.postgres) {
            (Step::Kill(slot), ..) => fleet.kill(slot),
            (Step::Arm(slot, point, passes), ..) => {
                fleet.kill(slot);
                fleet.start_one(slot, Some(format!("{point}={passes}*off->return")));
            }
            (Step::Terminate(slot), ..) => fleet.signal(slot, "TERM"),
            (Step::Start(slot), ..) => fleet.start_one(slot, None),
            (Step::Stop(slot), ..) => fleet.signal(slot, "STOP"),
            (Step::Continue(slot), ..) => fleet.signal(slot, "CONT"),
            (Step::RedisKill, Some(redis), _) => redis.kill(),
            (Step::RedisStart, Some(redis), _) => redis.restart(),
            (Step::RedisFlush, Some(redis), _) => flush(redis.url()),
            (Step::RedisStop, Some(redis), _) => redis.signal("STOP"),
            (Step::RedisContinue, Some(redis), _) => redis.signal("CONT"),
            (Step::DatabaseKill, _, Some(postgres)) => postgres.kill(),
            (Step::DatabaseStart, _, Some(postgres)) => postgres.restart(),
            (Step::DatabaseStop, _, Some(postgres)) => postgres.signal("STOP"),
            (Step::DatabaseContinue, _, Some(postgres)) => postgres.signal("CONT"),
            (Step::CutConnections, _, Some(postgres)) => {
                let cut = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and usename = 'trilane'";
                stores::execute(&postgres.connection_string(), cut);
            }
            (step, ..) => panic!("{step:?} is planned, and there is nothing to break"),
        }
    }
}

/// The plan has mended the stores by its last step.
fn heal(fleet: &Fleet) {
    fleet.heal();
    for slot in 0..fleet.len() {
        wait_until(Duration::from_mins(1), "every replica serves again", || {
            fleet.mind();
            fleet.is_ready(slot)
        });
    }
}

pub(crate) fn flush(url: &str) {
    let client = redis::Client::open(url).expect("a URL");
    let flushed =
        client.get_connection().and_then(|mut connection| redis::cmd("FLUSHALL").query::<()>(&mut connection));
    flushed.expect("Redis is up");
}

/// From each fault's end to the first job that was acknowledged and completed after it.
fn recoveries(history: &History, ends: &[i64]) -> Vec<i64> {
    let stored = history.clients.iter().filter_map(|line| match &line.said {
        Said::Stored { jobs } => Some(jobs.iter().map(|(_, id)| (&**id, line.at))),
        _ => None,
    });
    // The first acknowledgement of each.
    let mut acknowledged: BTreeMap<&str, i64> = BTreeMap::new();
    for (id, at) in stored.flatten() {
        acknowledged.entry(id).or_insert(at);
    }
    let completed: Vec<(i64, i64)> = history
        .tables
        .jobs
        .iter()
        .filter(|job| job.status == "completed")
        .filter_map(|job| Some((*acknowledged.get(&*job.id)?, job.finished_at?)))
        .collect();
    let recovery = |end: &i64| completed.iter().filter(|(at, _)| at >= end).map(|(_, finished)| finished - end).min();
    ends.iter().filter_map(recovery).collect()
}

fn table(
    ground: &Ground,
    seed: u64,
    faults: &Faults,
    counts: &Counts,
    history: &History,
    asked_for: Duration,
    ended_after: Duration,
) -> String {
    let recovery = recoveries(history, &faults.ends).into_iter().max().unwrap_or(0);
    let rate = counts.acknowledged as f64 / asked_for.as_secs_f64();
    let mut rows =
        vec![(format!("chaos on {}", ground.name), format!("seed {seed}, {:.0} s", asked_for.as_secs_f64()))];
    rows.extend(faults.counts.iter().map(|(kind, count)| (format!("fault: {kind}"), count.to_string())));
    rows.extend(
        [
            ("jobs acknowledged", counts.acknowledged.to_string()),
            ("stored, answer unknown", counts.unanswered.to_string()),
            ("completed", counts.completed.to_string()),
            ("failed, with a dead letter", counts.failed.to_string()),
            ("cancelled", counts.cancelled.to_string()),
            ("lost", counts.lost.to_string()),
            ("finished twice", counts.finished_twice.to_string()),
            ("run twice", counts.run_twice.to_string()),
            ("longest recovery", format!("{:.1} s", recovery as f64 / 1_000.0)),
            ("all ended after", format!("{:.1} s", ended_after.as_secs_f64())),
            ("jobs a second", format!("{rate:.0}")),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let lines = rows.iter().map(|(name, value)| format!("  {name:<40} {value:>16}"));
    format!("\n{}\n", lines.collect::<Vec<_>>().join("\n"))
}

/// At once, and in the file that `TRILANE_CHAOS_TABLES` names, to be shown again when all is over.
fn show_table(table: &str) {
    println!("{table}");
    if let Some(path) = std::env::var_os("TRILANE_CHAOS_TABLES") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(table.as_bytes())).expect("the table is kept");
    }
}

/// Takes the folder away when the run was well; else says where it is, and how to repeat the run.
struct Told {
    folder: PathBuf,
    seed: u64,
    name: &'static str,
}

impl Told {
    fn forget(self) {
        // What cannot be removed stays in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.folder);
        std::mem::forget(self);
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        eprintln!("chaos on {}: logs of replicas, clients and handlers are kept in {}", self.name, show(&self.folder));
        let minutes = std::env::var(MINUTES).map(|minutes| format!(" MINUTES={minutes}")).unwrap_or_default();
        let target = if minutes.is_empty() {
            "test ARGS='--test chaos -- storm'".to_owned()
        } else {
            format!("chaos{minutes}")
        };
        eprintln!("the same faults again: TRILANE_CHAOS_SEED={} make {target}", self.seed);
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
