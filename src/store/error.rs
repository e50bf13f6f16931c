//! What can go wrong in the store, named by what the caller does next. Sorted by code, never by text.

use odbc_api::handles::Record;

use super::dialect::Dialect;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be used now: away, no connection free in time, disk full, read-only. Nothing was stored;
    /// try again later.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// The database went away at the commit: everything was stored, or nothing.
    #[error("the database is not available, and did not confirm a commit: {0}")]
    Unconfirmed(String),
    /// Another transaction stood in the way (deadlock, lock time-out) more often than the store tries by itself.
    #[error("the database is contended: {0}")]
    Contended(String),
    /// A statement took longer than it may, and was broken off. The database answers, but is slow; nothing was stored; try again later.
    #[error("a statement took too long: {0}")]
    TimedOut(String),
    /// A unique value exists already.
    #[error("the database holds this already: {0}")]
    Conflict(String),
    /// A value cannot be read, stored or computed with. The statement fails as long as its row is among those that it touches, so the
    /// caller sets that row apart.
    #[error("{0}")]
    BadRow(String),
    /// The database or its driver answered what it must not: a statement was refused, the schema does not fit. Trying again does not
    /// help.
    #[error("{0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether the same call may succeed later without anybody doing anything to the call.
    pub fn is_transient(&self) -> bool {
        self.is_outage() || matches!(self, StoreError::Contended(_) | StoreError::TimedOut(_))
    }

    /// Whether the database is away.
    pub fn is_outage(&self) -> bool {
        matches!(self, StoreError::Unavailable(_) | StoreError::Unconfirmed(_))
    }

    /// The same error, at a commit. On SQL Server it is the driver that breaks off what takes too long, and the server may have been done by then;
    /// the others break off by themselves.
    pub(super) fn at_commit(self, dialect: Dialect) -> StoreError {
        match self {
            StoreError::Unavailable(why) => StoreError::Unconfirmed(why),
            StoreError::TimedOut(why) if dialect == Dialect::Mssql => StoreError::Unconfirmed(why),
            other => other,
        }
    }

    /// For statements that insert what is not there. SQL Server has no `on conflict do nothing`; where its locks do not keep two sessions
    /// from inserting the same, the second fails, and finds the other's row when it tries again.
    pub(super) fn taken_meanwhile(self) -> StoreError {
        match self {
            StoreError::Conflict(why) => StoreError::Contended(why),
            other => other,
        }
    }

    /// The error that a fault point asks for (src/fault.rs).
    #[cfg(feature = "failpoints")]
    pub(super) fn of_fault(place: &str, word: &str) -> StoreError {
        let why = format!("a fault point: {place}");
        match word {
            "unavailable" => StoreError::Unavailable(why),
            "unconfirmed" => StoreError::Unconfirmed(why),
            "contended" => StoreError::Contended(why),
            "timed out" => StoreError::TimedOut(why),
            _ => StoreError::Corrupt(format!("{why} does not know {word:?}")),
        }
    }

    /// Sorts an error of the driver.
    #[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
    pub(super) fn of(dialect: Dialect, error: odbc_api::Error) -> StoreError {
        match &error {
            odbc_api::Error::Diagnostics { record, .. } => Self::of_record(dialect, record),
            _ => StoreError::Corrupt(error.to_string()),
        }
    }

    /// Sorts an error of opening a connection, of which a time-out says that nobody answers.
    pub(super) fn of_connecting(error: odbc_api::Error) -> StoreError {
        // Before the dialect is known, by the SQLSTATEs all drivers share; SQL Server's numbers are unique enough.
        match StoreError::of(Dialect::Mssql, error) {
            StoreError::TimedOut(why) => StoreError::Unavailable(why),
            error => error,
        }
    }

    fn of_record(dialect: Dialect, record: &Record) -> StoreError {
        let state = record.state.as_str();
        let text = record.to_string();
        match dialect.kind_of(state, record.native_error) {
            Kind::Unavailable => StoreError::Unavailable(text),
            Kind::Contended => StoreError::Contended(text),
            Kind::TimedOut => StoreError::TimedOut(text),
            Kind::Conflict => StoreError::Conflict(text),
            Kind::BadRow => StoreError::BadRow(text),
            Kind::Corrupt => StoreError::Corrupt(text),
        }
    }
}

/// What an error code means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Unavailable,
    Contended,
    TimedOut,
    Conflict,
    BadRow,
    Corrupt,
}

/// Whether an error says that its connection is of no more use. A statement that was refused, or took too long, does not.
pub(super) fn is_disconnect(dialect: Dialect, error: &odbc_api::Error) -> bool {
    match error {
        odbc_api::Error::Diagnostics { record, .. } => dialect.disconnects(record.state.as_str(), record.native_error),
        _ => false,
    }
}

/// SQLSTATEs that every driver gives for a connection that is gone or cannot be had.
const CONNECTION_STATES: [&str; 3] = ["HYT01", "IM006", "01002"];
/// The SQLSTATE of a statement's time-out, and of a login's.
const TIME_OUT_STATE: &str = "HYT00";

impl Dialect {
    fn kind_of(self, state: &str, native: i32) -> Kind {
        let by_code = match self {
            Dialect::Mssql => mssql_kind(native),
            Dialect::Postgres => postgres_kind(state),
            Dialect::Sqlite => sqlite_kind(native),
        };
        match by_code {
            Some(kind) => kind,
            None if state == TIME_OUT_STATE => Kind::TimedOut,
            None if state.starts_with("08") || CONNECTION_STATES.contains(&state) => Kind::Unavailable,
            // Class 22 of the SQL standard, the same everywhere: data exception.
            None if state.starts_with("22") => Kind::BadRow,
            None => Kind::Corrupt,
        }
    }

    fn disconnects(self, state: &str, native: i32) -> bool {
        state.starts_with("08")
            || match self {
                // The session or the server was ended, or the network failed under it (the 20,000s are FreeTDS's own).
                Dialect::Mssql => matches!(native, 233 | 596 | 6005 | 10053 | 10054 | 10060 | 20004 | 20006 | 20047),
                // The server ends the session: shutdown, crash, database dropped, idle for too long.
                Dialect::Postgres => state.starts_with("57P") || state == "25P03",
                // A new connection looks at the file anew.
                Dialect::Sqlite => self.kind_of(state, native) == Kind::Unavailable,
            }
    }
}

/// By the error numbers of SQL Server and Azure SQL ("Database Engine events and errors" and "Troubleshoot transient connection
/// errors" in Microsoft's documentation). FreeTDS gives deadlocks as SQLSTATE 42000, so only the number tells.
fn mssql_kind(native: i32) -> Option<Kind> {
    match native {
        // Scan with NOLOCK met a page that moved, deadlock, lock time-out, snapshot conflict; 51222 is thrown by Trilane's own statements for a lock not had in time.
        601 | 1205 | 1222 | 3960 | 51222 => Some(Kind::Contended),
        2601 | 2627 => Some(Kind::Conflict),
        // FreeTDS's number for a statement's time-out.
        20003 => Some(Kind::TimedOut),
        // No memory or locks left, transaction log or disk full, database or server away, moving, starting or throttled; login
        // refused while it recovers.
        233 | 596 | 615 | 701 | 802 | 926 | 945 | 1101 | 1105 | 1204 | 3906 | 3908 | 4060 | 4221 | 6005 | 8645
        | 8651 | 9002 | 10053 | 10054 | 10060 | 10922 | 10928 | 10929 | 10930 | 10936 | 17142 | 17197 | 18401
        | 18456 | 20004 | 20006 | 20009 | 20047 | 40143 | 40197 | 40501 | 40540 | 40544 | 40549 | 40613 | 41301
        | 41302 | 41305 | 41325 | 41839 | 42108 | 42109 | 49918 | 49919 | 49920 => Some(Kind::Unavailable),
        _ => None,
    }
}

/// By SQLSTATE ("PostgreSQL Error Codes", appendix A of its manual).
fn postgres_kind(state: &str) -> Option<Kind> {
    match state {
        "40001" | "40P01" | "55P03" => Some(Kind::Contended),
        "23505" => Some(Kind::Conflict),
        // Cancelled, by statement_timeout or by a person.
        "57014" => Some(Kind::TimedOut),
        // Class 53: out of resources; 57: operator intervention; 25006: a read-only standby; 25P03: idle in transaction
        // too long; 28: login refused, as when a password was just changed; 58: system error.
        _ if ["53", "57", "58", "28"].iter().any(|class| state.starts_with(class))
            || matches!(state, "25006" | "25P03") =>
        {
            Some(Kind::Unavailable)
        }
        _ => None,
    }
}

/// By result code ("Result and Error Codes" of SQLite's manual); the driver gives the primary code as native error.
fn sqlite_kind(native: i32) -> Option<Kind> {
    match native & 0xff {
        5 | 6 => Some(Kind::Contended),
        9 => Some(Kind::TimedOut),
        19 => Some(Kind::Conflict),
        // PERM, NOMEM, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL
        3 | 7 | 8 | 10 | 13 | 14 | 15 => Some(Kind::Unavailable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadlock_is_known_by_number_though_freetds_calls_it_a_syntax_error() {
        assert_eq!(Dialect::Mssql.kind_of("42000", 1205), Kind::Contended);
        assert_eq!(Dialect::Mssql.kind_of("42000", 102), Kind::Corrupt);
    }

    #[test]
    fn a_statement_that_took_too_long_does_not_mean_that_the_database_is_away() {
        for (dialect, state, native) in [
            (Dialect::Postgres, "57014", 1),
            (Dialect::Mssql, "HYT00", 0),
            (Dialect::Mssql, "HYT00", 20_003),
            (Dialect::Sqlite, "HY000", 9),
        ] {
            assert_eq!(dialect.kind_of(state, native), Kind::TimedOut, "{dialect:?}");
        }
    }

    #[test]
    fn a_commit_that_took_too_long_may_have_been_stored_where_the_driver_broke_it_off() {
        let at_commit = |dialect| StoreError::TimedOut("slow".into()).at_commit(dialect);

        assert!(matches!(at_commit(Dialect::Mssql), StoreError::Unconfirmed(_)));
        assert!(matches!(at_commit(Dialect::Postgres), StoreError::TimedOut(_)));
        assert!(matches!(at_commit(Dialect::Sqlite), StoreError::TimedOut(_)));
    }

    #[test]
    fn a_lost_connection_is_known_under_every_dialect() {
        for dialect in [Dialect::Mssql, Dialect::Postgres, Dialect::Sqlite] {
            assert_eq!(dialect.kind_of("08S01", 0), Kind::Unavailable, "{dialect:?}");
        }
    }

    #[test]
    fn a_connection_is_given_up_only_for_errors_that_say_so() {
        assert!(Dialect::Postgres.disconnects("57P01", 1) && Dialect::Mssql.disconnects("08S01", 0));
        // Statement time-out, no right, a value out of range, lock time-out, query time-out.
        for state in ["57014", "42501", "22003", "55P03"] {
            assert!(!Dialect::Postgres.disconnects(state, 1), "{state}");
        }
        assert!(!Dialect::Mssql.disconnects("HYT00", 0) && !Dialect::Mssql.disconnects("42000", 229));
    }

    #[test]
    fn a_server_that_shuts_down_is_unavailable_and_a_duplicate_a_conflict() {
        assert_eq!(Dialect::Postgres.kind_of("57P01", 1), Kind::Unavailable);
        assert_eq!(Dialect::Postgres.kind_of("23505", 1), Kind::Conflict);
        assert_eq!(Dialect::Sqlite.kind_of("HY000", 13), Kind::Unavailable);
    }
}
