//! The table of settings: every name, with its meaning, unit, default and range, once. Data; no I/O.
//!
//! The defaults and ranges in force are read from here, and so is the table in the README.

use std::fmt::Write;

/// One row of the table. All text, as an operator reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name in the environment and in `.env`.
    pub name: &'static str,
    /// Unit of the value; empty where it has none. `seconds`, `milliseconds` and `days` make a number a time.
    pub unit: &'static str,
    /// Value where none is given; empty where there is none.
    pub default: &'static str,
    /// What is accepted: `MIN to MAX` with any words behind it for numbers and lengths, `a, b or c` for a choice.
    pub range: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Whether its value must not be shown.
    pub secret: bool,
}

impl Setting {
    /// The two ends of the range, both allowed; `None` where the range does not begin with `MIN to MAX`.
    pub(super) fn bounds(&self) -> Option<(u64, u64)> {
        let (min, rest) = self.range.split_once(" to ")?;
        let max = rest.split(' ').next()?;
        let number = |text: &str| text.replace(',', "").parse().ok();
        Some((number(min)?, number(max)?))
    }
}

/// The setting of that name, or `None`.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// [`SETTINGS`] as a Markdown table with the columns Name, Meaning, Unit, Default and Range, for the README.
pub fn markdown_table() -> String {
    let code = |text: &str| {
        if text.is_empty() {
            "–".to_owned()
        } else {
            format!("`{text}`")
        }
    };
    let mut table = String::from("| Name | Meaning | Unit | Default | Range |\n|---|---|---|---|---|\n");
    for Setting { name, unit, default, range, meaning, .. } in SETTINGS {
        let unit = if unit.is_empty() { "–" } else { unit };
        let default = code(default);
        // OK: a String takes any write
        let _ = writeln!(table, "| `{name}` | {meaning} | {unit} | {default} | {range} |");
    }
    table
}

const fn row(
    name: &'static str,
    unit: &'static str,
    default: &'static str,
    range: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { name, unit, default, range, meaning, secret: false }
}

const fn secret(name: &'static str, range: &'static str, meaning: &'static str) -> Setting {
    Setting { name, unit: "", default: "", range, meaning, secret: true }
}

/// Every setting, in the order in which they are documented and checked.
#[rustfmt::skip] // OK: a table reads best with one setting in two lines
pub const SETTINGS: &[Setting] = &[
    // The database.
    secret("DB_CONNECTION", "1 to 4,096 characters, with Driver= or DSN=",
        "ODBC connection string of SQL Server, PostgreSQL or SQLite; instead of `DB_HOST`"),
    row("DB_HOST", "", "", "1 to 255 characters of a host name or IP address",
        "Host of the SQL Server; without it and `DB_CONNECTION`, an SQLite file in `TRILANE_DATA_DIR`"),
    row("DB_PORT", "", "1433", "1 to 65,535",
        "TCP port of the SQL Server"),
    row("DB_NAME", "", "", "1 to 128 ASCII characters",
        "Database on that server; needed with `DB_HOST`"),
    row("DB_USER", "", "", "1 to 128 ASCII characters",
        "Login on that server; needed with `DB_HOST`"),
    secret("DB_PASS", "1 to 128 ASCII characters",
        "Password of that login; needed with `DB_HOST`"),
    row("DB_DRIVER", "", "", "1 to 255 characters, no braces and no semicolon",
        "ODBC driver for that server, by name or path; without it, Microsoft's 18 where installed, else FreeTDS"),
    row("TRILANE_DB_ENCRYPT", "", "yes", "yes, no or strict",
        "Whether the connection to that server must be encrypted; `no` still encrypts the login, `strict` is TDS 8.0"),
    row("TRILANE_DB_TRUST_CERTIFICATE", "", "no", "yes or no",
        "Whether any certificate of that server is accepted, as a self-signed one needs; with FreeTDS its \
         `freetds.conf` decides"),
    row("TRILANE_DATA_DIR", "", "./data", "1 to 4,000 characters, no semicolon",
        "Directory of the embedded SQLite database"),
    row("TRILANE_DB_POOL_MAX", "connections", "16", "6 to 500",
        "Most database connections of this process; six are kept for what must not wait, requests share the rest"),
    row("TRILANE_DB_WAIT_SECONDS", "seconds", "5", "1 to 60",
        "Longest wait for a free connection; at most a third of `TRILANE_LEASE_SECONDS`"),
    row("TRILANE_DB_STARTUP_WAIT_SECONDS", "seconds", "60", "0 to 3,600",
        "How long a start waits for a database that does not answer yet"),
    row("TRILANE_MIGRATE", "", "auto", "auto or off",
        "Whether a start brings the tables up to date; with `off` it refuses to run on older ones"),

    // Redis.
    secret("REDIS_URL", "1 to 2,048 characters, redis://…, rediss://… or unix://…",
        "The hand-off buffer that processes share; without it the lanes live in the process"),
    row("TRILANE_REDIS_PREFIX", "", "", "1 to 64 characters of A-Za-z0-9._:-{}",
        "Put before every key, so that several installations can share one Redis"),

    // HTTP.
    row("TRILANE_HTTP_ADDR", "", "127.0.0.1:8080", "an IP address and port, such as 127.0.0.1:8080 or [::]:8080",
        "Where HTTP is served; port 0 takes a free one. Off loopback it needs `TRILANE_API_TOKENS`, unless the role is \
         `worker`"),
    row("TRILANE_HTTP_CONNECTIONS_MAX", "connections", "1024", "8 to 65,536",
        "Most open connections, each with a thread; at the limit idle ones make room, else a new one gets 503"),
    row("TRILANE_HTTP_CLIENT_SECONDS", "seconds", "10", "1 to 600",
        "How long a client may take for a head, for each 16 KiB of a body, and thrice that for each 32 KiB of an answer"),
    row("TRILANE_HTTP_IDLE_SECONDS", "seconds", "75", "1 to 3,600",
        "How long a connection may be silent between two requests; longer than a proxy in front keeps it"),
    secret("TRILANE_API_TOKENS", "16 to 512 characters each of visible ASCII, comma separated",
        "Tokens of which every API request must bear one"),
    row("TRILANE_BODY_BYTES_MAX", "bytes", "1048576", "1,024 to 67,108,864",
        "Largest request body"),
    row("TRILANE_PAYLOAD_BYTES_MAX", "bytes", "262144", "1,024 to 16,777,216",
        "Largest payload of one job; at most `TRILANE_BODY_BYTES_MAX`"),
    row("TRILANE_JOBS_PER_CALL_MAX", "jobs", "10000", "1 to 100,000",
        "Most jobs in one `POST /enqueue`; at most `TRILANE_SUBMIT_QUEUE_MAX`"),
    row("TRILANE_SUBMIT_WAIT_SECONDS", "seconds", "10", "1 to 300",
        "How long `POST /enqueue` waits for its commit before it answers 503"),
    row("TRILANE_SUBMIT_QUEUE_MAX", "jobs", "100000", "1 to 10,000,000",
        "Most jobs waiting for their commit; beyond it `POST /enqueue` answers 429"),

    // Running jobs.
    row("TRILANE_ROLE", "", "all", "all, api or worker",
        "What this process does: serve the API, run jobs, or both. Different roles need the same database; without \
         `REDIS_URL` the workers poll it"),
    row("TRILANE_REPLICA_NAME", "", "", "1 to 100 characters of A-Za-z0-9._:-",
        "Name of this process in the table Replicas and in logs; without it, host name and process id"),
    row("TRILANE_WORKERS", "threads", "10", "1 to 1,000",
        "Jobs that this process runs at once"),
    row("TRILANE_HANDLERS", "", "", "1 to 4,000 characters",
        "Path of the TOML file that names the handlers"),
    row("TRILANE_TICK_SECONDS", "seconds", "120", "1 to 3,600",
        "Time between two rounds of the scheduler: the longest that plain SQL inserts and lost hand-offs wait"),
    row("TRILANE_LEASE_SECONDS", "seconds", "30", "3 to 3,600",
        "How long a job stays with a replica that fell silent"),
    row("TRILANE_LANE_BUFFER_MAX", "jobs", "100000", "10 to 10,000,000",
        "Most ids in a lane's buffer; the rest of a backlog stays in the database"),
    row("TRILANE_DRAIN_SECONDS", "seconds", "25", "0 to 3,600",
        "How long a stop waits for running jobs; keep it below what systemd or Kubernetes allows"),
    row("TRILANE_JOB_TIMEOUT_SECONDS", "seconds", "1800", "1 to 86,400",
        "Time limit of one attempt, for a job and type that name none"),
    row("TRILANE_RETRY_BASE_MS", "milliseconds", "15000", "1 to 3,600,000",
        "Longest wait before the first retry; it doubles with each; at most `TRILANE_RETRY_CAP_MS`"),
    row("TRILANE_RETRY_CAP_MS", "milliseconds", "3600000", "1 to 604,800,000",
        "Longest wait before any retry"),
    row("TRILANE_STARVATION_SECONDS", "seconds", "off", "1 to 86,400, or off",
        "Promotes a job that waited this long past its turn in a lower lane"),
    row("TRILANE_HAND_OFF", "", "yes", "yes or no",
        "Whether a job that finds an idle worker where it is submitted, and no other job ahead, goes straight to it, without Redis"),
    row("TRILANE_RETENTION_DAYS", "days", "7", "1 to 3,650",
        "How long completed and cancelled jobs are kept"),

    // Logs.
    row("TRILANE_LOG", "", "info", "off, error, warn, info, debug or trace",
        "Least severe level that is logged; each job is logged at `debug`"),
    row("TRILANE_LOG_FORMAT", "", "text", "text or json",
        "Form of a log line"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_a_number_are_read_from_its_range() {
        let bounds = |name| setting(name).expect("a setting").bounds();

        assert_eq!(bounds("TRILANE_WORKERS"), Some((1, 1_000)));
        assert_eq!(bounds("TRILANE_STARVATION_SECONDS"), Some((1, 86_400)));
        assert_eq!(bounds("DB_NAME"), Some((1, 128)));
        assert_eq!(bounds("TRILANE_ROLE"), None);
    }

    #[test]
    fn every_setting_has_a_name_of_its_own_a_meaning_and_a_range() {
        for (index, row) in SETTINGS.iter().enumerate() {
            assert!(!row.meaning.is_empty() && !row.range.is_empty(), "{}", row.name);
            assert!(SETTINGS[..index].iter().all(|other| other.name != row.name), "{} stands twice", row.name);
        }
    }

    #[test]
    fn every_setting_is_one_row_of_five_cells_in_markdown() {
        let table = markdown_table();

        assert_eq!(table.lines().count(), SETTINGS.len() + 2);
        assert!(table.lines().all(|line| line.matches('|').count() == 6), "{table}");
        assert!(
            table.contains(
                "| `TRILANE_WORKERS` | Jobs that this process runs at once | threads | `10` | 1 to 1,000 |\n"
            )
        );
    }
}
