//! Shows the settings in force, without secrets, for `trilane check`. Pure.

use std::path::Path;
use std::time::Duration;

use super::Settings;
use super::choices::yes_or_no;
use super::database::Database;
use super::secret::{REDACTED, url_without_secrets};

/// What is shown for a setting that has no value.
const NOT_SET: &str = "not set";

impl Settings {
    /// Every setting with the value in force, in the order of [`SETTINGS`](super::SETTINGS), for `trilane check`.
    ///
    /// Passwords, tokens and connection strings are `[redacted]`, one for each token; `REDIS_URL` shows scheme, host,
    /// port and database. What has no value, or does not count beside the database chosen, is `not set`.
    pub fn in_force(&self) -> Vec<(&'static str, String)> {
        let mut shown = database_in_force(&self.database);
        let path = |path: &Path| path.display().to_string();
        let seconds = |time: Duration| time.as_secs().to_string();
        let milliseconds = |time: Duration| time.as_millis().to_string();
        let tokens = vec![REDACTED; self.api_tokens.len()].join(",");
        shown.extend([
            ("TRILANE_DATA_DIR", path(&self.data_dir)),
            ("TRILANE_DB_POOL_MAX", self.database_pool_max.to_string()),
            ("TRILANE_DB_WAIT_SECONDS", seconds(self.database_wait)),
            ("TRILANE_DB_STARTUP_WAIT_SECONDS", seconds(self.database_startup_wait)),
            ("TRILANE_MIGRATE", self.migrate.as_str().to_owned()),
            ("REDIS_URL", or_not_set(self.redis_url.as_ref().map(|url| url_without_secrets(url.expose())))),
            ("TRILANE_REDIS_PREFIX", or_not_set(Some(self.redis_prefix.clone()))),
            ("TRILANE_HTTP_ADDR", self.http_addr.to_string()),
            ("TRILANE_HTTP_CONNECTIONS_MAX", self.http_connections_max.to_string()),
            ("TRILANE_HTTP_CLIENT_SECONDS", seconds(self.http_client_wait)),
            ("TRILANE_HTTP_IDLE_SECONDS", seconds(self.http_idle_wait)),
            ("TRILANE_API_TOKENS", or_not_set(Some(tokens))),
            ("TRILANE_BODY_BYTES_MAX", self.body_bytes_max.to_string()),
            ("TRILANE_PAYLOAD_BYTES_MAX", self.payload_bytes_max.to_string()),
            ("TRILANE_JOBS_PER_CALL_MAX", self.jobs_per_call_max.to_string()),
            ("TRILANE_SUBMIT_WAIT_SECONDS", seconds(self.submit_wait)),
            ("TRILANE_SUBMIT_QUEUE_MAX", self.submit_queue_max.to_string()),
            ("TRILANE_ROLE", self.role.as_str().to_owned()),
            ("TRILANE_REPLICA_NAME", or_not_set(self.replica_name.clone())),
            ("TRILANE_WORKERS", self.workers.to_string()),
            ("TRILANE_HANDLERS", or_not_set(self.handlers_file.as_deref().map(path))),
            ("TRILANE_TICK_SECONDS", seconds(self.tick)),
            ("TRILANE_LEASE_SECONDS", seconds(self.lease)),
            ("TRILANE_LANE_BUFFER_MAX", self.lane_buffer_max.to_string()),
            ("TRILANE_DRAIN_SECONDS", seconds(self.drain)),
            ("TRILANE_JOB_TIMEOUT_SECONDS", seconds(self.job_timeout)),
            ("TRILANE_RETRY_BASE_MS", milliseconds(self.retry.base)),
            ("TRILANE_RETRY_CAP_MS", milliseconds(self.retry.cap)),
            ("TRILANE_STARVATION_SECONDS", self.starvation.map_or_else(|| "off".to_owned(), seconds)),
            ("TRILANE_HAND_OFF", yes_or_no(self.hand_off).to_owned()),
            ("TRILANE_RETENTION_DAYS", (self.retention.as_secs() / (24 * 60 * 60)).to_string()),
            ("TRILANE_LOG", self.log.as_str().to_ascii_lowercase()),
            ("TRILANE_LOG_FORMAT", self.log_format.as_str().to_owned()),
        ]);
        shown
    }
}

fn database_in_force(database: &Database) -> Vec<(&'static str, String)> {
    let connection = matches!(database, Database::Odbc { .. }).then(|| REDACTED.to_owned());
    let mut shown = vec![("DB_CONNECTION", or_not_set(connection))];
    let server = match database {
        Database::SqlServer { host, port, name, user, password: _, driver, encrypt, trust_certificate } => [
            Some(host.clone()),
            Some(port.to_string()),
            Some(name.clone()),
            Some(user.clone()),
            Some(REDACTED.to_owned()),
            driver.clone(),
            Some(encrypt.as_str().to_owned()),
            Some(yes_or_no(*trust_certificate).to_owned()),
        ],
        Database::Sqlite { .. } | Database::Odbc { .. } => [const { None }; 8],
    };
    let names = [
        "DB_HOST",
        "DB_PORT",
        "DB_NAME",
        "DB_USER",
        "DB_PASS",
        "DB_DRIVER",
        "TRILANE_DB_ENCRYPT",
        "TRILANE_DB_TRUST_CERTIFICATE",
    ];
    shown.extend(names.into_iter().zip(server.map(or_not_set)));
    shown
}

fn or_not_set(value: Option<String>) -> String {
    value.filter(|value| !value.is_empty()).unwrap_or_else(|| NOT_SET.to_owned())
}
