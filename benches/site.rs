//! Where one run takes place: a database of its own, a part of Redis of its own, a folder in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use odbc_api::{Connection, ConnectionOptions, Cursor as _};
use trilane::store::Dialect;
use uuid::Uuid;

use crate::notes;
use crate::proc::{Cpu, cpu_of_family, parent_of};
use crate::replica::Replica;
use crate::stores::TestStore;

type Error = Box<dyn std::error::Error>;

/// How long all jobs of a run may take.
const DRAIN_MAX: Duration = Duration::from_mins(20);
/// PostgreSQL tells its counters of a session at most once in this time.
const COUNTERS_LATE: Duration = Duration::from_millis(1_200);

pub(crate) struct Site {
    pub(crate) dialect: Dialect,
    database: TestStore,
    redis: Option<(String, String)>,
    folder: PathBuf,
}

impl Site {
    /// An empty one. On the servers the lanes are in Redis; with SQLite they are in the process.
    pub(crate) fn new(dialect: Dialect) -> Result<Site, Error> {
        let database = TestStore::new(dialect);
        database.store.migrate()?;
        let redis = match dialect {
            Dialect::Sqlite => None,
            _ => Some((std::env::var("TRILANE_TEST_REDIS")?, format!("{}:", Uuid::new_v4().simple()))),
        };
        let folder = Path::new("/dev/shm").join(format!("trilane-bench-{}", Uuid::new_v4()));
        fs::create_dir(&folder)?;
        Ok(Site { dialect, database, redis, folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn database(&self) -> &TestStore {
        &self.database
    }

    /// Starts a process on these stores with further settings.
    pub(crate) fn start(&self, settings: &[(&'static str, &str)]) -> Result<Replica, Error> {
        let mut all = vec![("DB_CONNECTION", self.database.connection_string.clone())];
        if let Some((url, prefix)) = &self.redis {
            all.push(("REDIS_URL", url.clone()));
            all.push(("TRILANE_REDIS_PREFIX", prefix.clone()));
        }
        all.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Replica::start(&self.folder, &all)
    }

    /// A connection beside the processes.
    pub(crate) fn observer(&self) -> Result<Observer, Error> {
        let connection = odbc_api::environment()?
            .connect_with_connection_string(&self.database.connection_string, ConnectionOptions::default())?;
        let mut observer = Observer { connection, dialect: self.dialect, server: None, looks: 0 };
        if self.dialect == Dialect::Postgres {
            let backend = observer.number("select pg_backend_pid()")?;
            observer.server = parent_of(u32::try_from(backend)?);
            observer.execute("create extension if not exists pg_stat_statements")?;
        }
        Ok(observer)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What cannot be removed stays in memory until the next start of the machine; the figures are printed.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Looks at the database from outside.
pub(crate) struct Observer {
    connection: Connection<'static>,
    dialect: Dialect,
    server: Option<u32>,
    looks: i64,
}

/// What the database has done so far; zero where it does not count that.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) statements: i64,
    pub(crate) commits: i64,
    pub(crate) log_bytes: i64,
    pub(crate) deadlocks: i64,
    pub(crate) cpu: Cpu,
}

impl Observer {
    pub(crate) fn execute(&self, sql: &str) -> Result<(), Error> {
        drop(self.connection.execute(sql, (), None)?);
        Ok(())
    }

    pub(crate) fn number(&mut self, sql: &str) -> Result<i64, Error> {
        self.looks += 1;
        let mut cursor = self.connection.execute(sql, (), None)?.ok_or("no result")?;
        let mut row = cursor.next_row()?.ok_or("no row")?;
        let mut value = 0i64;
        row.get_data(1, &mut value)?;
        Ok(value)
    }

    /// Jobs whose completion is committed.
    pub(crate) fn completed(&mut self) -> Result<i64, Error> {
        self.number("select coalesce(sum(Completed), 0) as bench_completed from JobStats")
    }

    /// Waits until all of `jobs` have run and their completion is committed. Returns the moment.
    pub(crate) fn wait_until_completed(&mut self, folder: &Path, jobs: usize) -> Result<i64, Error> {
        let deadline = Instant::now() + DRAIN_MAX;
        // The notes first: looking at them costs the database nothing.
        while notes::count(folder) < u64::try_from(jobs)? {
            if Instant::now() > deadline {
                return Err(format!("only {} of {jobs} jobs ran", notes::count(folder)).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        while self.completed()? < i64::try_from(jobs)? {
            if Instant::now() > deadline {
                return Err(format!("only {} of {jobs} completions were stored", self.completed()?).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(notes::now_ns())
    }

    /// What PostgreSQL counts, without what this connection did. Waits until the counts of the last second are in.
    pub(crate) fn counters(&mut self) -> Result<Counters, Error> {
        if self.dialect != Dialect::Postgres {
            return Ok(Counters::default());
        }
        let cpu = self.server.map(cpu_of_family).unwrap_or_default();
        thread::sleep(COUNTERS_LATE);
        let statements = self.number(
            "select coalesce(sum(calls), 0) from pg_stat_statements as bench_s join pg_database as d on d.oid = bench_s.dbid \
             where d.datname = current_database() and query not ilike '%bench_%' and query !~* '^(begin|commit|rollback|savepoint|release)'",
        )?;
        let commits = self
            .number("select xact_commit as bench_commits from pg_stat_database where datname = current_database()")?;
        let log_bytes = self.number("select cast(pg_current_wal_lsn() - '0/0' as bigint) as bench_wal")?;
        let deadlocks = self
            .number("select deadlocks as bench_deadlocks from pg_stat_database where datname = current_database()")?;
        Ok(Counters { statements, commits: commits - self.looks, log_bytes, deadlocks, cpu })
    }

    /// Brings statistics and files to rest, untimed, as after an hour of steady use.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        match self.dialect {
            Dialect::Postgres => {
                self.execute("vacuum analyze")?;
                self.execute("checkpoint")
            }
            Dialect::Sqlite => {
                self.execute("analyze")?;
                self.execute("pragma wal_checkpoint(truncate)")
            }
            Dialect::Mssql => Ok(()),
        }
    }

    /// Puts `count` finished jobs into the table, as plain SQL.
    pub(crate) fn add_finished(&self, count: usize) -> Result<(), Error> {
        self.add(count, "'completed'", true)
    }

    /// Puts `count` waiting jobs into the low lane, as plain SQL.
    pub(crate) fn add_waiting(&self, count: usize) -> Result<(), Error> {
        self.add(count, "'queued'", false)
    }

    fn add(&self, count: usize, status: &str, is_finished: bool) -> Result<(), Error> {
        let payload = crate::http::payload(0).replace('\'', "''");
        let numbers = match self.dialect {
            Dialect::Postgres => format!("generate_series(1, {count}) as g(n)"),
            Dialect::Sqlite => format!(
                "(with recursive g(n) as (select 1 union all select n + 1 from g where n < {count}) select n from g)"
            ),
            Dialect::Mssql => {
                format!(
                    "(select top ({count}) a.object_id as n from sys.all_objects as a cross join sys.all_objects as b cross join sys.all_objects as c) as g"
                )
            }
        };
        let ended = match (is_finished, self.dialect) {
            (false, _) => "null",
            (true, Dialect::Sqlite) => "cast(unixepoch('subsec') * 1000 as integer) - 3600000",
            (true, Dialect::Postgres) => "now() - interval '1 hour'",
            (true, Dialect::Mssql) => "dateadd(hour, -1, sysutcdatetime())",
        };
        let id = match self.dialect {
            Dialect::Sqlite => {
                "lower(substr(hex(randomblob(16)), 1, 8) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-8' \
                 || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))"
            }
            Dialect::Postgres => "gen_random_uuid()",
            Dialect::Mssql => "newid()",
        };
        self.execute(&format!(
            "insert into Jobs (Id, Type, Payload, Priority, Status, StartedAt, FinishedAt, DispatchedAt) \
             select {id}, 'mail', '{payload}', 'low', {status}, {ended}, {ended}, {ended} from {numbers}"
        ))
    }
}
