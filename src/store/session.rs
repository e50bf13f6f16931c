//! One connection and what it has prepared: runs named statements with text and number parameters, and reads rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use odbc_api::handles::{AsStatementRef, Statement, StatementConnection};
use odbc_api::{Connection, ConnectionTransitions, Cursor, CursorImpl, CursorRow, Nullable, Prepared};

use super::batch::Counts;
use super::dialect::Dialect;
use super::error::StoreError;
pub(super) use super::param::{Param, TextMode};
use super::param::{bind, chunks_for, in_chunks};

/// `SharedConnection` of odbc-api: the mutex is what makes a prepared statement that owns its connection movable between threads.
type Shared = Arc<Mutex<Connection<'static>>>;

/// How long a prepared statement may run on SQL Server, which has no such limit of its own.
const STATEMENT_SECONDS_MAX: usize = 30;

/// A connection with its prepared statements.
pub(super) struct Session {
    connection: Shared,
    dialect: Dialect,
    text: TextMode,
    counts: Counts,
    // Key: the statement's name and the chunks of its text parameters, for each makes another text.
    prepared: HashMap<(&'static str, usize), Prepared<StatementConnection<Shared>>>,
    broken: bool,
}

impl Session {
    pub(super) fn new(connection: Connection<'static>, dialect: Dialect, text: TextMode, counts: Counts) -> Session {
        let connection = Arc::new(Mutex::new(connection));
        Session { connection, dialect, text, counts, prepared: HashMap::new(), broken: false }
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
        let (dialect, mode) = (self.dialect, self.text);
        let bound = bind(params, mode, chunks);
        let prepared = match self.prepared.entry((name, chunks)) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let text = if chunks > 1 {
                    in_chunks(text, params, chunks)
                } else {
                    text.to_owned()
                };
                prepare(&self.connection, dialect, &text).map(|prepared| entry.insert(prepared))
            }
        };
        let result = prepared.and_then(|prepared| {
            let cursor = prepared.execute(bound.as_slice()).map_err(|error| StoreError::of(dialect, error))?;
            let rows = cursor.map(|cursor| read(cursor, dialect, mode, each));
            rows.unwrap_or_else(|| read_on(&mut prepared.as_stmt_ref(), dialect))
        });
        if result.is_err() {
            // Its handle may be left in the middle of a batch.
            self.prepared.remove(&(name, chunks));
        }
        self.judge(result)
    }

    /// Runs `text` as it stands, without parameters: sessions' settings, migrations. Its results are read and thrown away.
    pub(super) fn execute_text(&mut self, text: &str) -> Result<(), StoreError> {
        let (dialect, mode) = (self.dialect, self.text);
        let result = run_text(&lock(&self.connection), dialect, mode, text);
        self.judge(result)
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        match self.dialect {
            // The driver would begin a deferred transaction, which fails when it turns from reading to writing.
            Dialect::Sqlite => self.execute_text("begin immediate"),
            // Off and on again would be two round trips more; and FreeTDS would be inside a transaction at all times.
            Dialect::Mssql => self.execute_text("BEGIN TRANSACTION"),
            Dialect::Postgres => self.connection_call(|connection| connection.set_autocommit(false)),
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.execute_text("commit"),
            Dialect::Mssql => self.execute_text("COMMIT TRANSACTION"),
            Dialect::Postgres => {
                self.connection_call(|connection| connection.commit().and_then(|()| connection.set_autocommit(true)))
            }
        }
    }

    pub(super) fn rollback(&mut self) {
        let result = match self.dialect {
            Dialect::Sqlite => self.execute_text("rollback"),
            // Under XACT_ABORT most errors have rolled back by themselves.
            Dialect::Mssql => self.execute_text("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"),
            Dialect::Postgres => {
                self.connection_call(|connection| connection.rollback().and_then(|()| connection.set_autocommit(true)))
            }
        };
        if let Err(error) = result {
            // SQLite rolls back by itself on some errors (disk full), and then there is nothing to undo; a new connection is sure.
            log::debug!("a rollback failed, its connection is dropped: {error}");
            self.broken = true;
        }
    }

    fn connection_call(
        &mut self,
        call: impl FnOnce(&Connection<'static>) -> Result<(), odbc_api::Error>,
    ) -> Result<(), StoreError> {
        let result = call(&lock(&self.connection)).map_err(|error| StoreError::of(self.dialect, error));
        self.judge(result)
    }

    /// A connection is kept only after errors that say nothing about it. Drivers have no one code for a connection that broke within a
    /// statement (psqlodbc: HY000), so what looks like a refused statement is unavailability where the connection is dead.
    fn judge<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match result {
            Err(StoreError::Corrupt(text)) => {
                self.broken = true;
                let is_dead = lock(&self.connection).is_dead().unwrap_or(false);
                Err(if is_dead {
                    StoreError::Unavailable(text)
                } else {
                    StoreError::Corrupt(text)
                })
            }
            Err(StoreError::Unavailable(_)) => {
                self.broken = true;
                result
            }
            // On SQL Server it is the driver that breaks off, and it cannot know whether the server has heard.
            Err(StoreError::TimedOut(_)) if self.dialect == Dialect::Mssql => {
                self.broken = true;
                result
            }
            Ok(_)
            | Err(
                StoreError::Contended(_)
                | StoreError::TimedOut(_)
                | StoreError::Conflict(_)
                | StoreError::Unconfirmed(_),
            ) => result,
        }
    }
}

fn lock(connection: &Shared) -> std::sync::MutexGuard<'_, Connection<'static>> {
    connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn prepare(
    connection: &Shared,
    dialect: Dialect,
    text: &str,
) -> Result<Prepared<StatementConnection<Shared>>, StoreError> {
    let prepared = Arc::clone(connection).into_prepared(text).and_then(|mut prepared| {
        // PostgreSQL limits its statements itself (session_a), and SQLite has nobody to wait for but its file.
        if dialect == Dialect::Mssql {
            prepared.set_query_timeout_sec(STATEMENT_SECONDS_MAX)?;
        }
        Ok(prepared)
    });
    prepared.map_err(|error| StoreError::of(dialect, error))
}

fn run_text(connection: &Connection<'static>, dialect: Dialect, mode: TextMode, text: &str) -> Result<(), StoreError> {
    let failed = |error| StoreError::of(dialect, error);
    let mut statement = connection.preallocate().map_err(failed)?;
    let cursor = statement.execute(text, ()).map_err(failed)?;
    let rows = cursor.map(|cursor| read(cursor, dialect, mode, &mut |_| Ok(())));
    rows.unwrap_or_else(|| read_on(&mut statement.as_stmt_ref(), dialect))
}

fn read<S: Statement>(
    mut cursor: CursorImpl<S>,
    dialect: Dialect,
    mode: TextMode,
    each: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let result = read_rows(&mut cursor, dialect, mode, each);
    // Closed by hand, for a cursor that is dropped panics where closing fails.
    let mut statement = cursor.into_stmt();
    let result = result.and_then(|()| read_on(&mut statement, dialect));
    let closed = statement.close_cursor().into_result(&statement);
    match (result, closed) {
        (result, Ok(())) => result,
        (Ok(()), Err(error)) if has_no_cursor(&error) => Ok(()),
        (Ok(()), Err(error)) => Err(StoreError::of(dialect, error)),
        (Err(error), Err(_)) => Err(error),
    }
}

/// Waits for the end of a batch of SQL Server, behind its rows: what fails there is told only here, and a batch that is not read to
/// its end is cancelled where it stands, with its COMMIT.
fn read_on(statement: &mut impl Statement, dialect: Dialect) -> Result<(), StoreError> {
    if dialect != Dialect::Mssql {
        return Ok(());
    }
    loop {
        // SAFETY: no buffer is bound to the columns of a result, for rows are read with SQLGetData.
        let more = unsafe { statement.more_results() };
        if !more.into_result_bool(statement).map_err(|error| StoreError::of(dialect, error))? {
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
    dialect: Dialect,
    mode: TextMode,
    each: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut buffers = Buffers::default();
    loop {
        match cursor.next_row() {
            Ok(Some(row)) => each(&mut Row { cursor: row, dialect, mode, buffers: &mut buffers })?,
            Ok(None) => return Ok(()),
            Err(error) if has_no_cursor(&error) => return Ok(()),
            Err(error) => return Err(StoreError::of(dialect, error)),
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
    dialect: Dialect,
    mode: TextMode,
    buffers: &'r mut Buffers,
}

impl Row<'_, '_> {
    pub(super) fn maybe_int(&mut self, column: u16) -> Result<Option<i64>, StoreError> {
        let mut value = Nullable::<i64>::null();
        self.cursor.get_data(column, &mut value).map_err(|error| StoreError::of(self.dialect, error))?;
        Ok(value.into_opt())
    }

    pub(super) fn int(&mut self, column: u16) -> Result<i64, StoreError> {
        self.maybe_int(column)?.ok_or_else(|| missing(column))
    }

    pub(super) fn maybe_text(&mut self, column: u16) -> Result<Option<String>, StoreError> {
        let dialect = self.dialect;
        let failed = |error| StoreError::of(dialect, error);
        if self.mode == TextMode::Narrow {
            let found = self.cursor.get_text(column, &mut self.buffers.narrow).map_err(failed)?;
            let text = found.then(|| String::from_utf8(self.buffers.narrow.clone()));
            text.transpose().map_err(|error| StoreError::Corrupt(format!("column {column} is not UTF-8: {error}")))
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
    StoreError::Corrupt(format!("column {column} of a result is null where a value was expected"))
}
