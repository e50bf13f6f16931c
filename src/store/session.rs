//! One connection and what it has prepared: runs named statements with text and number parameters, and reads rows.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use odbc_api::handles::{AsStatementRef, Statement, StatementConnection};
use odbc_api::{Connection, ConnectionTransitions, Cursor, CursorImpl, CursorRow, Nullable, Prepared};

use super::batch::Counts;
use super::dialect::Dialect;
use super::error::{StoreError, is_disconnect};
pub(super) use super::param::{Param, TextMode};
use super::param::{bind, chunks_for, in_chunks};

/// `SharedConnection` of odbc-api: the mutex is what makes a prepared statement that owns its connection movable between threads.
type Shared = Arc<Mutex<Connection<'static>>>;

/// How long a statement but those of a migration may run on SQL Server, which has no such limit of its own.
const STATEMENT_SECONDS_MAX: usize = 30;

/// A connection with its prepared statements.
pub(super) struct Session {
    connection: Shared,
    dialect: Dialect,
    text: TextMode,
    counts: Counts,
    // Key: the statement's name and the chunks of its text parameters, for each makes another text.
    prepared: HashMap<(&'static str, usize), Prepared<StatementConnection<Shared>>>,
    // An error said that the connection is gone.
    gone: Cell<bool>,
    broken: bool,
    // A transaction is open, or may be.
    in_transaction: bool,
}

/// How results are read and errors sorted.
struct How<'s> {
    dialect: Dialect,
    mode: TextMode,
    gone: &'s Cell<bool>,
}

impl How<'_> {
    fn sort(&self, error: odbc_api::Error) -> StoreError {
        if is_disconnect(self.dialect, &error) {
            self.gone.set(true);
        }
        StoreError::of(self.dialect, error)
    }
}

impl Session {
    pub(super) fn new(connection: Connection<'static>, dialect: Dialect, text: TextMode, counts: Counts) -> Session {
        let connection = Arc::new(Mutex::new(connection));
        Session {
            connection,
            dialect,
            text,
            counts,
            prepared: HashMap::new(),
            gone: Cell::new(false),
            broken: false,
            in_transaction: false,
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether an error left the connection in doubt, so that it must leave the pool.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn set_text_mode(&mut self, text: TextMode) {
        self.text = text;
        self.prepared.clear();
    }

    /// Runs the statement `name` of `sql/` and hands each row of its result to `each`.
    pub(super) fn query(
        &mut self,
        name: &'static str,
        params: &[Param<'_>],
        mut each: impl FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let text = self.dialect.statement(name).ok_or_else(|| {
            StoreError::Corrupt(format!("sql/ has no statement {name} for {}", self.dialect.as_str()))
        })?;
        self.run(name, text, params, &mut each)
    }

    /// Runs a statement that changes rows and returns them. Where the driver returns no rows from a change (SQLite), its companion
    /// `<name>_before` or `<name>_after` reads them in the same transaction, with `companion` as its parameters.
    pub(super) fn change(
        &mut self,
        name: &'static str,
        params: &[Param<'_>],
        companion: &[Param<'_>],
        mut each: impl FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.dialect != Dialect::Sqlite {
            return self.query(name, params, each);
        }
        if let Some((before, text)) = self.dialect.companion(name, "_before") {
            self.run(before, text, companion, &mut each)?;
            self.execute(name, params)
        } else {
            self.execute(name, params)?;
            let (after, text) = self
                .dialect
                .companion(name, "_after")
                .ok_or_else(|| StoreError::Corrupt(format!("sql/sqlite has neither {name}_before nor {name}_after")))?;
            self.run(after, text, companion, &mut each)
        }
    }

    /// Runs a statement whose result does not matter.
    pub(super) fn execute(&mut self, name: &'static str, params: &[Param<'_>]) -> Result<(), StoreError> {
        self.query(name, params, |_| Ok(()))
    }

    fn run(
        &mut self,
        name: &'static str,
        text: &str,
        params: &[Param<'_>],
        each: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let chunks = if self.text == TextMode::WideChunks {
            chunks_for(params)?
        } else {
            1
        };
        let how = How { dialect: self.dialect, mode: self.text, gone: &self.gone };
        let bound = bind(params, how.mode, chunks);
        let prepared = match self.prepared.entry((name, chunks)) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let text = if chunks > 1 {
                    in_chunks(text, params, chunks)
                } else {
                    text.to_owned()
                };
                prepare(&self.connection, &how, &text).map(|prepared| entry.insert(prepared))
            }
        };
        let result = prepared.and_then(|prepared| {
            let cursor = prepared.execute(bound.as_slice()).map_err(|error| how.sort(error))?;
            let rows = cursor.map(|cursor| read(cursor, &how, each));
            rows.unwrap_or_else(|| read_on(&mut prepared.as_stmt_ref(), &how))
        });
        if result.is_err() {
            // Its handle may be left in the middle of a batch.
            self.prepared.remove(&(name, chunks));
        }
        self.judge(result)
    }

    /// Runs `text` as it stands, without parameters: sessions' settings, migrations. Its results are read and thrown away.
    pub(super) fn execute_text(&mut self, text: &str) -> Result<(), StoreError> {
        let how = How { dialect: self.dialect, mode: self.text, gone: &self.gone };
        let result = run_text(&lock(&self.connection), &how, text, None);
        self.judge(result)
    }

    /// [`Session::execute_text`] for what begins and ends transactions.
    fn transact(&mut self, text: &str) -> Result<(), StoreError> {
        let how = How { dialect: self.dialect, mode: self.text, gone: &self.gone };
        let result = run_text(&lock(&self.connection), &how, text, Some(STATEMENT_SECONDS_MAX));
        self.judge(result)
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        self.in_transaction = true;
        match self.dialect {
            // The driver would begin a deferred transaction, which fails when it turns from reading to writing.
            Dialect::Sqlite => self.transact("begin immediate"),
            // Off and on again would be two round trips more; and FreeTDS would be inside a transaction at all times.
            Dialect::Mssql => self.transact("BEGIN TRANSACTION"),
            Dialect::Postgres => self.connection_call(|connection| connection.set_autocommit(false)),
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.transact("commit"),
            Dialect::Mssql => self.transact("COMMIT TRANSACTION"),
            Dialect::Postgres => {
                self.connection_call(|connection| connection.commit().and_then(|()| connection.set_autocommit(true)))
            }
        }?;
        self.in_transaction = false;
        Ok(())
    }

    pub(super) fn rollback(&mut self) {
        let result = match self.dialect {
            Dialect::Sqlite => self.transact("rollback"),
            // Under XACT_ABORT most errors have rolled back by themselves.
            Dialect::Mssql => self.transact("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"),
            Dialect::Postgres => {
                self.connection_call(|connection| connection.rollback().and_then(|()| connection.set_autocommit(true)))
            }
        };
        self.in_transaction = false;
        if let Err(error) = result {
            // SQLite rolls back by itself on some errors (disk full), and then there is nothing to undo; a new connection is sure.
            log::debug!("a rollback failed, its connection is dropped: {error}");
            self.broken = true;
        }
    }

    /// Undoes what is open, before another call gets this session.
    pub(super) fn tidy(&mut self) {
        if self.in_transaction && !self.broken {
            self.rollback();
        }
    }

    fn connection_call(
        &mut self,
        call: impl FnOnce(&Connection<'static>) -> Result<(), odbc_api::Error>,
    ) -> Result<(), StoreError> {
        let how = How { dialect: self.dialect, mode: self.text, gone: &self.gone };
        let result = call(&lock(&self.connection)).map_err(|error| how.sort(error));
        self.judge(result)
    }

    /// A connection is dropped only where it is dead. Drivers have no one code for one that broke within a statement (psqlodbc: HY000), so
    /// the driver is asked too; and what looks like a refused statement is unavailability then. After any other error (time-out, no
    /// right, a value that does not fit) the connection is as good as before.
    fn judge<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let Err(error) = result else { return result };
        // A batch of SQL Server may have begun a transaction of its own.
        self.in_transaction |= self.dialect == Dialect::Mssql;
        if matches!(error, StoreError::Contended(_) | StoreError::Conflict(_) | StoreError::Unconfirmed(_)) {
            return Err(error);
        }
        let is_dead = self.gone.get() || lock(&self.connection).is_dead().unwrap_or(false);
        // On SQL Server it is the driver that breaks off, and it cannot know whether the server has heard.
        self.broken |= is_dead || self.dialect == Dialect::Mssql && matches!(error, StoreError::TimedOut(_));
        Err(match error {
            StoreError::Corrupt(text) | StoreError::BadRow(text) if is_dead => StoreError::Unavailable(text),
            error => error,
        })
    }
}

fn lock(connection: &Shared) -> std::sync::MutexGuard<'_, Connection<'static>> {
    connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn prepare(
    connection: &Shared,
    how: &How<'_>,
    text: &str,
) -> Result<Prepared<StatementConnection<Shared>>, StoreError> {
    let prepared = Arc::clone(connection).into_prepared(text).and_then(|mut prepared| {
        // PostgreSQL limits its statements itself (session_a), and SQLite has nobody to wait for but its file.
        if how.dialect == Dialect::Mssql {
            prepared.set_query_timeout_sec(STATEMENT_SECONDS_MAX)?;
        }
        Ok(prepared)
    });
    prepared.map_err(|error| how.sort(error))
}

fn run_text(
    connection: &Connection<'static>,
    how: &How<'_>,
    text: &str,
    seconds_max: Option<usize>,
) -> Result<(), StoreError> {
    let failed = |error| how.sort(error);
    let mut statement = connection.preallocate().map_err(failed)?;
    if let (Some(seconds_max), Dialect::Mssql) = (seconds_max, how.dialect) {
        statement.set_query_timeout_sec(seconds_max).map_err(failed)?;
    }
    let cursor = statement.execute(text, ()).map_err(failed)?;
    let rows = cursor.map(|cursor| read(cursor, how, &mut |_| Ok(())));
    rows.unwrap_or_else(|| read_on(&mut statement.as_stmt_ref(), how))
}

fn read<S: Statement>(
    mut cursor: CursorImpl<S>,
    how: &How<'_>,
    each: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let result = read_rows(&mut cursor, how, each);
    // Closed by hand, for a cursor that is dropped panics where closing fails.
    let mut statement = cursor.into_stmt();
    let result = result.and_then(|()| read_on(&mut statement, how));
    let closed = statement.close_cursor().into_result(&statement);
    match (result, closed) {
        (result, Ok(())) => result,
        (Ok(()), Err(error)) if has_no_cursor(&error) => Ok(()),
        (Ok(()), Err(error)) => Err(how.sort(error)),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Waits for the end of a batch of SQL Server, behind its rows: what fails there is told only here, and a batch that is not read to
/// its end is cancelled where it stands, with its COMMIT.
fn read_on(statement: &mut impl Statement, how: &How<'_>) -> Result<(), StoreError> {
    if how.dialect != Dialect::Mssql {
        return Ok(());
    }
    loop {
        // SAFETY: no buffer is bound to the columns of a result, for rows are read with SQLGetData.
        let more = unsafe { statement.more_results() };
        if !more.into_result_bool(statement).map_err(|error| how.sort(error))? {
            return Ok(());
        }
    }
}

/// psqlodbc answers `SQL_NO_DATA` to an UPDATE … RETURNING that changes no row, and then there are columns but no cursor to fetch from.
fn has_no_cursor(error: &odbc_api::Error) -> bool {
    matches!(error, odbc_api::Error::Diagnostics { record, .. } if record.state.as_str() == "24000")
}

fn read_rows(
    cursor: &mut impl Cursor,
    how: &How<'_>,
    each: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut buffers = Buffers::default();
    loop {
        match cursor.next_row() {
            Ok(Some(row)) => each(&mut Row { cursor: row, how, buffers: &mut buffers })?,
            Ok(None) => return Ok(()),
            Err(error) if has_no_cursor(&error) => return Ok(()),
            Err(error) => return Err(how.sort(error)),
        }
    }
}

#[derive(Default)]
struct Buffers {
    narrow: Vec<u8>,
    wide: Vec<u16>,
}

/// A row of a result. Columns count from 1 and are read from left to right, as `SQLGetData` wants it.
pub(super) struct Row<'r, 'c> {
    cursor: CursorRow<'c>,
    how: &'r How<'r>,
    buffers: &'r mut Buffers,
}

impl Row<'_, '_> {
    pub(super) fn maybe_int(&mut self, column: u16) -> Result<Option<i64>, StoreError> {
        let mut value = Nullable::<i64>::null();
        self.cursor.get_data(column, &mut value).map_err(|error| self.how.sort(error))?;
        Ok(value.into_opt())
    }

    pub(super) fn int(&mut self, column: u16) -> Result<i64, StoreError> {
        self.maybe_int(column)?.ok_or_else(|| missing(column))
    }

    pub(super) fn maybe_text(&mut self, column: u16) -> Result<Option<String>, StoreError> {
        let failed = |error| self.how.sort(error);
        if self.how.mode == TextMode::Narrow {
            let found = self.cursor.get_text(column, &mut self.buffers.narrow).map_err(failed)?;
            // SQLite keeps bytes that are no UTF-8; they are shown as U+FFFD rather than making the row unreadable.
            Ok(found.then(|| String::from_utf8_lossy(&self.buffers.narrow).into_owned()))
        } else {
            let found = self.cursor.get_wide_text(column, &mut self.buffers.wide).map_err(failed)?;
            // A lone surrogate can stand in an nvarchar column; it is shown as U+FFFD rather than making the row unreadable.
            Ok(found.then(|| String::from_utf16_lossy(&self.buffers.wide)))
        }
    }

    pub(super) fn text(&mut self, column: u16) -> Result<String, StoreError> {
        self.maybe_text(column)?.ok_or_else(|| missing(column))
    }
}

fn missing(column: u16) -> StoreError {
    StoreError::BadRow(format!("column {column} of a result is null where a value was expected"))
}
