//! Connections to the database: how one is made, and the pool that hands them out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use odbc_api::{ConnectionOptions, Environment};

use super::batch::Counts;
use super::dialect::Dialect;
use super::error::StoreError;
use super::file::DatabaseFile;
use super::session::{Session, TextMode};

/// How long a login may take before it counts as failed.
const LOGIN_WAIT: Duration = Duration::from_secs(10);

/// Makes connections for the pool.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) connection_string: String,
    pub(super) dialect: Dialect,
    pub(super) text: TextMode,
    pub(super) counts: Counts,
    /// Counts the connections that broke: those made before the last of them are not trusted any more, for a server that restarted or
    /// a network that failed has cut them all.
    pub(super) breaks: Arc<AtomicU64>,
    /// Of SQLite.
    pub(super) file: Option<DatabaseFile>,
}

impl Connector {
    fn check_file(&self) -> Result<(), StoreError> {
        self.file.as_ref().map_or(Ok(()), DatabaseFile::check)
    }
}

/// A session, and how many had broken when it was made.
pub(super) struct Pooled {
    pub(super) session: Session,
    breaks_before: u64,
}

/// The pool of sessions.
pub(super) type Pool = r2d2::Pool<Connector>;
/// A session on loan from the pool.
pub(super) type Loan = r2d2::PooledConnection<Connector>;

/// The process's one ODBC environment.
pub(super) fn environment() -> Result<&'static Environment, StoreError> {
    static ENVIRONMENT: LazyLock<Result<Environment, String>> =
        LazyLock::new(|| Environment::new().map_err(|error| error.to_string()));
    ENVIRONMENT.as_ref().map_err(|error| StoreError::Corrupt(format!("unixODBC cannot be used: {error}")))
}

/// The names of the ODBC drivers that are installed.
///
/// # Errors
/// [`StoreError::Corrupt`] if unixODBC cannot be used.
pub fn installed_drivers() -> Result<Vec<String>, StoreError> {
    let drivers = environment()?.drivers().map_err(|error| StoreError::Corrupt(error.to_string()))?;
    Ok(drivers.into_iter().map(|driver| driver.description).collect())
}

/// What psqlodbc is told besides, where the string names no data source of odbc.ini and says nothing of it itself:
///
/// * an error undoes its transaction, as on the other databases. By default the driver sets a savepoint before each statement, a round trip and
///   a fifth of all statements, to undo that statement alone; the store never goes on after an error.
/// * a server that has gone without a word (a host down, a network cut) is noticed within 30 s: idle ones by probes, others by what is not
///   acknowledged. One that is there but stands still is not.
/// * no log of its own: Debian's odbcinst.ini asks for one, and then each process leaves a file in /tmp that holds what is sent.
const POSTGRES_OPTIONS: [(&str, &[&str], &str); 4] = [
    ("Protocol", &["Protocol", "A1"], "7.4-1"),
    (
        "pqopt",
        &["pqopt", "D6"],
        "{keepalives=1 keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=30000}",
    ),
    ("CommLog", &["CommLog", "B3"], "0"),
    ("Debug", &["Debug", "B2"], "0"),
];

/// The connection string with what the driver is told besides.
pub(super) fn with_options(connection_string: &str, dialect: Dialect) -> String {
    let has = |wanted: &[&str]| {
        let mut keys = connection_string.split(';').filter_map(|pair| pair.split_once('='));
        keys.any(|(key, _)| wanted.iter().any(|wanted| key.trim().eq_ignore_ascii_case(wanted)))
    };
    let mut whole = connection_string.to_owned();
    if dialect == Dialect::Postgres && !has(&["DSN", "FILEDSN"]) {
        for (key, keys, value) in POSTGRES_OPTIONS {
            if !has(keys) {
                let separator = if whole.trim_end().ends_with(';') { "" } else { ";" };
                whole = format!("{whole}{separator}{key}={value};");
            }
        }
    }
    whole
}

/// Opens a bare connection and tells the database's name for itself.
pub(super) fn connect(connection_string: &str) -> Result<(odbc_api::Connection<'static>, String), StoreError> {
    let options = ConnectionOptions {
        login_timeout_sec: u32::try_from(LOGIN_WAIT.as_secs()).ok(),
        ..ConnectionOptions::default()
    };
    let connection =
        environment()?.connect_with_connection_string(connection_string, options).map_err(StoreError::of_connecting)?;
    let dbms = connection.database_management_system_name().map_err(StoreError::of_connecting)?;
    Ok((connection, dbms))
}

impl r2d2::ManageConnection for Connector {
    type Connection = Pooled;
    type Error = StoreError;

    fn connect(&self) -> Result<Pooled, StoreError> {
        self.check_file()?;
        let breaks_before = self.breaks.load(Ordering::Acquire);
        let (connection, _) = connect(&self.connection_string)?;
        let mut session = Session::new(connection, self.dialect, self.text, self.counts);
        begin_session(&mut session)?;
        Ok(Pooled { session, breaks_before })
    }

    // Sends nothing, for an idle replica is to be quiet: a dead connection is found by its first statement, and the others by it.
    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), StoreError> {
        self.check_file()?;
        if pooled.breaks_before == self.breaks.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(StoreError::Unavailable("made before another connection broke".into()))
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        pooled.session.tidy();
        if pooled.session.is_broken() {
            self.breaks.fetch_add(1, Ordering::AcqRel);
        }
        pooled.session.is_broken()
    }
}

/// Settings of one session: `session_a`, `session_b`, … of `sql/<dialect>/queries.sql`.
pub(super) fn begin_session(session: &mut Session) -> Result<(), StoreError> {
    for name in ["session_a", "session_b", "session_c", "session_d"] {
        if let Some(text) = session.dialect().statement(name) {
            session.execute_text(text)?;
        }
    }
    Ok(())
}

/// A pool of up to `connections_max`, each made when first needed.
pub(super) fn pool(connector: Connector, connections_max: u32, wait: Duration) -> Pool {
    r2d2::Pool::builder()
        .max_size(connections_max)
        .min_idle(Some(0))
        .test_on_check_out(true)
        .connection_timeout(wait)
        .max_lifetime(Some(Duration::from_hours(1)))
        .idle_timeout(Some(Duration::from_mins(10)))
        .error_handler(Box::new(Quiet))
        .build_unchecked(connector)
}

/// r2d2 tells of each failed connection; the duty that waits for it tells too, once an outage.
#[derive(Debug)]
struct Quiet;

impl r2d2::HandleError<StoreError> for Quiet {
    fn handle_error(&self, error: StoreError) {
        log::debug!("no connection to the database: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psqlodbc_is_told_how_to_roll_back_when_a_server_is_gone_and_to_keep_no_log_unless_the_string_says() {
        let with = |text| with_options(text, Dialect::Postgres);

        let whole = with("Driver={PostgreSQL Unicode};Server=a;PWD=x");
        assert!(whole.starts_with("Driver={PostgreSQL Unicode};Server=a;PWD=x;Protocol=7.4-1;pqopt={keepalives=1 "));
        assert!(with("Server=a;protocol=7.4-2;").starts_with("Server=a;protocol=7.4-2;pqopt={"));
        assert!(whole.ends_with(";CommLog=0;Debug=0;"));
        assert!(with("Server=a;commlog=1").ends_with("};Debug=0;"));
        assert_eq!(with("DSN=jobs;PWD=x"), "DSN=jobs;PWD=x");
        assert_eq!(with_options("Server=a", Dialect::Mssql), "Server=a");
    }
}
