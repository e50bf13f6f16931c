//! What the processes of one test share: a database of their own, a part of Redis of their own, and a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trilane::store::Dialect;
use uuid::Uuid;

use super::proxy::Proxy;
use super::stores::{self, TestStore};
use super::trilane::{Settings, Trilane, wait_until};

pub(crate) struct Site {
    database: TestStore,
    redis: Option<(String, String)>,
    folder: PathBuf,
}

impl Site {
    /// An SQLite file; the lanes are in each process.
    pub(crate) fn sqlite() -> Site {
        Site::new(Dialect::Sqlite, None)
    }

    /// A PostgreSQL database; the lanes are in each process.
    pub(crate) fn postgres() -> Site {
        Site::new(Dialect::Postgres, None)
    }

    /// A PostgreSQL database and the Redis of all tests, under a prefix of its own.
    pub(crate) fn postgres_and_redis() -> Site {
        let url = std::env::var("TRILANE_TEST_REDIS").expect("TRILANE_TEST_REDIS is set: run the tests by `make test`");
        Site::with_redis(&url)
    }

    /// A PostgreSQL database and this Redis.
    pub(crate) fn with_redis(url: &str) -> Site {
        Site::new(Dialect::Postgres, Some(url))
    }

    /// A database on this PostgreSQL, an ODBC connection string; the lanes are in each process.
    pub(crate) fn on_postgres(admin: &str) -> Site {
        Site::of(TestStore::on(admin), None)
    }

    pub(crate) fn new(dialect: Dialect, redis_url: Option<&str>) -> Site {
        Site::of(TestStore::new(dialect), redis_url)
    }

    fn of(database: TestStore, redis_url: Option<&str>) -> Site {
        let folder = std::env::temp_dir().join(format!("trilane-site-{}", Uuid::new_v4()));
        fs::create_dir(&folder).expect("a folder for the test");
        let prefix = format!("{}:", Uuid::new_v4().simple());
        let redis = redis_url.map(|url| (url.to_owned(), prefix));
        Site { database, redis, folder }
    }

    /// How a process finds the stores, and everything else by default, but that retries come quickly.
    pub(crate) fn settings(&self) -> Settings {
        let settings = Settings::default()
            .with("DB_CONNECTION", &self.database.connection_string)
            .with("TRILANE_RETRY_BASE_MS", 1)
            .with("TRILANE_RETRY_CAP_MS", 1);
        match &self.redis {
            Some((url, prefix)) => settings.with("REDIS_URL", url).with("TRILANE_REDIS_PREFIX", prefix),
            None => settings,
        }
    }

    /// The same, with its database in this file.
    pub(crate) fn with_sqlite_file(mut self, file: &Path) -> Site {
        self.database.connection_string = trilane::store::Store::sqlite_connection_string(file);
        self
    }

    /// A way to the database that can be cut, and the connection string that takes it.
    pub(crate) fn proxy(&self) -> (Proxy, String) {
        let pairs = || self.database.connection_string.split(';').filter_map(|pair| pair.split_once('='));
        let value = |name| pairs().find(|(key, _)| *key == name).map(|(_, value)| value).expect("PostgreSQL's has it");
        let proxy = Proxy::start(format!("{}:{}", value("Server"), value("Port")));
        let port = proxy.port().to_string();
        let with_port = pairs().map(|(key, value)| {
            let value = if key == "Port" { &port } else { value };
            format!("{key}={value};")
        });
        let connection_string = with_port.collect();
        (proxy, connection_string)
    }

    pub(crate) fn start(&self, settings: &Settings) -> Trilane {
        Trilane::start(&self.folder, settings)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What stands before the keys of its processes in Redis.
    pub(crate) fn redis_prefix(&self) -> String {
        self.redis.as_ref().map(|(_, prefix)| prefix.clone()).expect("it was made with a Redis")
    }

    pub(crate) fn connection_string(&self) -> &str {
        &self.database.connection_string
    }

    /// The name of its database, on PostgreSQL.
    pub(crate) fn database_name(&self) -> &str {
        self.connection_string().rsplit("Database=").next().expect("it is there").trim_end_matches(';')
    }

    /// Writes a file for the processes. Returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, text).expect("the file is written");
        path.display().to_string()
    }

    /// A handlers file under which jobs of every type are done at once.
    pub(crate) fn quick_handlers(&self) -> String {
        self.file("quick.toml", "[\"*\"]\nlog = true\n")
    }

    /// A handlers file under which jobs of the type `gate` run a command until that gate is opened, or the test is over. Those of every
    /// other type are done at once.
    pub(crate) fn gate_handlers(&self, gate: &str) -> String {
        let path = self.file(gate, "");
        let command = format!("while [ -e {path} ]; do sleep 0.05; done");
        let text = format!("[{gate}]\ncommand = [\"sh\", \"-c\", {command:?}]\n[\"*\"]\nlog = true\n");
        self.file(&format!("{gate}.toml"), &text)
    }

    /// As [`Site::gate_handlers`], and each command that comes through the gate is counted.
    pub(crate) fn counting_handlers(&self, gate: &str) -> String {
        let path = self.file(gate, "");
        let command = format!("while [ -e {path} ]; do sleep 0.05; done; echo done >> {path}.done");
        let text = format!("[{gate}]\ncommand = [\"sh\", \"-c\", {command:?}]\n[\"*\"]\nlog = true\n");
        self.file(&format!("{gate}.toml"), &text)
    }

    /// How many commands came through the gate.
    pub(crate) fn times_done(&self, gate: &str) -> usize {
        fs::read_to_string(self.folder.join(format!("{gate}.done"))).unwrap_or_default().lines().count()
    }

    pub(crate) fn open_gate(&self, gate: &str) {
        fs::remove_file(self.folder.join(gate)).expect("the gate was closed");
    }

    /// Processes of the command that waits at the gate.
    pub(crate) fn commands_at_gate(&self, gate: &str) -> usize {
        let path = self.folder.join(gate).display().to_string();
        let processes = fs::read_dir("/proc").expect("Linux").map_while(Result::ok);
        let waits = |process: &fs::DirEntry| {
            // What is no process has no command line, and neither has one that has ended.
            let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(&format!("-e {path} "))
        };
        processes.filter(waits).count()
    }

    /// Runs SQL as a client would, past Trilane.
    pub(crate) fn execute(&self, sql: &str) {
        stores::execute(&self.database.connection_string, sql);
    }

    /// The one number that a query returns.
    pub(crate) fn number(&self, sql: &str) -> i64 {
        stores::number(&self.database.connection_string, sql)
    }

    /// Jobs for which `condition` holds, in SQL.
    pub(crate) fn jobs(&self, condition: &str) -> i64 {
        self.number(&format!("select count(*) from Jobs where {condition}"))
    }

    /// Waits until there are `count` jobs for which `condition` holds.
    pub(crate) fn wait_for_jobs(&self, limit: Duration, count: i64, condition: &str) {
        wait_until(limit, &format!("{count} jobs are {condition}"), || self.jobs(condition) == count);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // What cannot be removed stays in the directory for temporary files. Gates vanish with it, and so their commands end.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
