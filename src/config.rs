//! The settings of the service: read once, from the environment and `.env`, and checked whole, relations included.
//!
//! Level 0: imports only words and pure rules. [`Settings::from_map`] is pure; only [`Settings::load`] looks outside.
//! Whether a path exists, a driver is installed or a server answers is for those who use it.

mod choices;
mod database;
mod dotenv;
mod problem;
mod read;
mod reader;
mod secret;
mod show;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;

pub use self::choices::{Encrypt, LogFormat, Migrate, Role};
pub use self::database::{Database, is_freetds};
pub use self::problem::{Problem, SettingsError};
use self::reader::Reader;
pub use self::secret::{REDACTED, Secret, url_without_secrets};
pub use self::table::{SETTINGS, Setting, markdown_table, setting};
use crate::retry::RetryPolicy;

/// The file beside the environment, in the working directory.
const DOTENV_FILE: &str = ".env";

/// Everything that an operator can set, checked. [`SETTINGS`] has the defaults, ranges and meanings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the jobs are stored: `DB_CONNECTION`, or `DB_HOST` and what belongs to it, or a file in `data_dir`.
    pub database: Database,
    /// `TRILANE_DATA_DIR`: directory of the embedded database; it need not exist.
    pub data_dir: PathBuf,
    /// `TRILANE_DB_POOL_MAX`: most connections.
    pub database_pool_max: u32,
    /// `TRILANE_DB_WAIT_SECONDS`: longest wait for a free connection; at most a third of `lease`.
    pub database_wait: Duration,
    /// `TRILANE_DB_STARTUP_WAIT_SECONDS`: how long a start waits for the database; zero tries once.
    pub database_startup_wait: Duration,
    /// `TRILANE_MIGRATE`: whether a start changes the schema.
    pub migrate: Migrate,

    /// `REDIS_URL`: a URL that the `redis` crate accepts in form; the lanes live in the process where `None`.
    pub redis_url: Option<Secret>,
    /// `TRILANE_REDIS_PREFIX`: put before every key; may be empty.
    pub redis_prefix: String,

    /// `TRILANE_HTTP_ADDR`: where HTTP is served; port 0 takes a free one.
    pub http_addr: SocketAddr,
    /// `TRILANE_HTTP_CONNECTIONS_MAX`: most open connections.
    pub http_connections_max: usize,
    /// `TRILANE_HTTP_CLIENT_SECONDS`: how long a client may take for a step.
    pub http_client_wait: Duration,
    /// `TRILANE_HTTP_IDLE_SECONDS`: how long a connection may be silent between two requests.
    pub http_idle_wait: Duration,
    /// `TRILANE_API_TOKENS`: a request must bear one of these; none is asked for where it is empty.
    pub api_tokens: Vec<Secret>,
    /// `TRILANE_BODY_BYTES_MAX`: largest request body.
    pub body_bytes_max: usize,
    /// `TRILANE_PAYLOAD_BYTES_MAX`: largest payload; at most `body_bytes_max`.
    pub payload_bytes_max: usize,
    /// `TRILANE_JOBS_PER_CALL_MAX`: most jobs in one `POST /enqueue`; at most `submit_queue_max`.
    pub jobs_per_call_max: usize,
    /// `TRILANE_SUBMIT_WAIT_SECONDS`: how long `POST /enqueue` waits for its commit.
    pub submit_wait: Duration,
    /// `TRILANE_SUBMIT_QUEUE_MAX`: most jobs that wait for the submitter.
    pub submit_queue_max: usize,

    /// `TRILANE_ROLE`: what this process does.
    pub role: Role,
    /// `TRILANE_REPLICA_NAME`: name in the dashboard and logs; host name and process id where `None`.
    pub replica_name: Option<String>,
    /// `TRILANE_WORKERS`: jobs that run at once.
    pub workers: usize,
    /// `TRILANE_HANDLERS`: the TOML file of handlers; it need not exist.
    pub handlers_file: Option<PathBuf>,
    /// `TRILANE_TICK_SECONDS`: time between two rounds of the scheduler.
    pub tick: Duration,
    /// `TRILANE_LEASE_SECONDS`: how long a claim lasts without renewal.
    pub lease: Duration,
    /// `TRILANE_LANE_BUFFER_MAX`: most ids buffered in a lane.
    pub lane_buffer_max: usize,
    /// `TRILANE_DRAIN_SECONDS`: how long a stop waits for running jobs.
    pub drain: Duration,
    /// `TRILANE_JOB_TIMEOUT_SECONDS`: time limit of an attempt where neither job nor type names one.
    pub job_timeout: Duration,
    /// `TRILANE_RETRY_BASE_MS` and `TRILANE_RETRY_CAP_MS`: the waits between attempts where the type names none.
    pub retry: RetryPolicy,
    /// `TRILANE_STARVATION_SECONDS`: a job that waited longer is promoted; none is where `None`.
    pub starvation: Option<Duration>,
    /// Whether a job that finds an idle worker where it was submitted is stored claimed.
    pub hand_off: bool,
    /// `TRILANE_RETENTION_DAYS`: how long completed and cancelled jobs are kept.
    pub retention: Duration,

    /// `TRILANE_LOG`: least severe level that is logged.
    pub log: LevelFilter,
    /// `TRILANE_LOG_FORMAT`: form of a log line.
    pub log_format: LogFormat,
}

impl Settings {
    /// The settings of this process: its environment, and for what that lacks the file `.env` in the working directory.
    ///
    /// Neither is changed. A name in the environment wins, even with an empty value, which unsets it.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems: broken lines of the file by their number, and those of
    /// [`Settings::from_map`].
    pub fn load() -> Result<Settings, SettingsError> {
        let (env, problems) = dotenv::gather(Path::new(DOTENV_FILE), std::env::vars_os());
        Settings::check(&env, problems)
    }

    /// The environment of this process, and what the file `.env` adds to it.
    ///
    /// # Errors
    /// [`SettingsError`] with the broken lines of the file.
    pub fn environment() -> Result<BTreeMap<String, String>, SettingsError> {
        let (env, problems) = dotenv::gather(Path::new(DOTENV_FILE), std::env::vars_os());
        if problems.is_empty() {
            Ok(env)
        } else {
            Err(SettingsError { problems })
        }
    }

    /// The settings that `env` gives, name to value, and defaults for the rest. An empty value counts as none.
    ///
    /// # Errors
    /// [`SettingsError`] with all problems: values outside their range, settings that contradict each other, and names
    /// that begin with `TRILANE_` and are none of [`SETTINGS`], but for `TRILANE_TEST_…` and what Kubernetes sets for a
    /// Service.
    pub fn from_map(env: &BTreeMap<String, String>) -> Result<Settings, SettingsError> {
        Settings::check(env, Vec::new())
    }

    fn check(env: &BTreeMap<String, String>, problems: Vec<Problem>) -> Result<Settings, SettingsError> {
        let mut reader = Reader::new(env, problems);
        let settings = Settings::read(&mut reader);
        settings.check_relations(&mut reader);
        reader.finish(settings)
    }
}
