//! One connection and what it has prepared: runs named statements with text and number parameters, and reads rows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use odbc_api::handles::{Statement, StatementConnection};
use odbc_api::parameter::{InputParameter, VarCharBox, VarWCharBox, WithDataType};
use odbc_api::{Connection, ConnectionTransitions, Cursor, CursorImpl, CursorRow, DataType, IntoParameter, Nullable, Prepared};

use super::dialect::Dialect;
use super::error::StoreError;

/// `SharedConnection` of odbc-api: the mutex is what makes a prepared statement that owns its connection movable between threads.
type Shared = Arc<Mutex<Connection<'static>>>;

/// How text goes through a driver and back unchanged; found out by [`super::probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextMode {
    /// UTF-8.
    Narrow,
    /// UTF-16, of any length.
    Wide,
    /// UTF-16, in chunks of [`CHUNK_UNITS`], for drivers that cut parameters there (FreeTDS 1.3).
    WideChunks,
}

/// The longest parameter that FreeTDS 1.3 sends whole, in UTF-16 units.
const CHUNK_UNITS: usize = 4_000;

/// A parameter of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Param<'a> {
    Int(i64),
    MaybeInt(Option<i64>),
    Text(&'a str),
    MaybeText(Option<&'a str>),
}

/// A connection with its prepared statements.
pub(super) struct Session {
    connection: Shared,
    dialect: Dialect,
    text: TextMode,
    // Key: the statement's name and the chunks of its text parameters, for each makes another text.
    prepared: HashMap<(&'static str, usize), Prepared<StatementConnection<Shared>>>,
    broken: bool,
}

impl Session {
    pub(super) fn new(connection: Connection<'static>, dialect: Dialect, text: TextMode) -> Session {
        #[expect(clippy::arc_with_non_send_sync, reason = "a Connection is Send, and Mutex makes it Sync")]
        let connection = Arc::new(Mutex::new(connection));
        Session { connection, dialect, text, prepared: HashMap::new(), broken: false }
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
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
        let text = self
            .dialect
            .statement(name)
            .ok_or_else(|| StoreError::Corrupt(format!("sql/ has no statement {name} for {}", self.dialect.as_str())))?;
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
            let (after, text) = self.dialect.companion(name, "_after").ok_or_else(|| {
                StoreError::Corrupt(format!("sql/sqlite has neither {name}_before nor {name}_after"))
            })?;
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
        let chunks = if self.text == TextMode::WideChunks { chunks_for(params) } else { 1 };
        let (dialect, mode) = (self.dialect, self.text);
        let bound = bind(params, mode, chunks);
        let result = match self.prepared.entry((name, chunks)) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let text = if chunks > 1 { in_chunks(text, params, chunks) } else { text.to_owned() };
                Arc::clone(&self.connection).into_prepared(&text).map(|prepared| entry.insert(prepared))
            }
        };
        let result = result
            .and_then(|prepared| prepared.execute(bound.as_slice()))
            .map_err(|error| StoreError::of(dialect, error))
            .and_then(|cursor| match cursor {
                Some(cursor) => read(cursor, dialect, mode, each),
                None => Ok(()),
            });
        self.judge(result)
    }

    /// Runs `text` as it stands, without parameters: sessions' settings, migrations. Its results are read and thrown away.
    pub(super) fn execute_text(&mut self, text: &str) -> Result<(), StoreError> {
        let (dialect, mode) = (self.dialect, self.text);
        let result = match lock(&self.connection).execute(text, (), None) {
            Ok(Some(cursor)) => read(cursor, dialect, mode, &mut |_| Ok(())),
            Ok(None) => Ok(()),
            Err(error) => Err(StoreError::of(dialect, error)),
        };
        self.judge(result)
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        match self.dialect {
            // The driver would begin a deferred transaction, which fails when it turns from reading to writing.
            Dialect::Sqlite => self.execute_text("begin immediate"),
            Dialect::Postgres | Dialect::Mssql => self.connection_call(|connection| connection.set_autocommit(false)),
        }
    }

    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.execute_text("commit"),
            Dialect::Postgres | Dialect::Mssql => {
                self.connection_call(|connection| connection.commit().and_then(|()| connection.set_autocommit(true)))
            }
        }
    }

    pub(super) fn rollback(&mut self) {
        let result = match self.dialect {
            Dialect::Sqlite => self.execute_text("rollback"),
            Dialect::Postgres | Dialect::Mssql => {
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

    /// A connection is kept only after errors that say nothing about it.
    fn judge<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Unavailable(_) | StoreError::Corrupt(_)) = &result {
            self.broken = true;
        }
        result
    }
}

fn lock<'a>(connection: &'a Shared) -> std::sync::MutexGuard<'a, Connection<'static>> {
    connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
    let closed = statement.close_cursor().into_result(&statement);
    match (result, closed) {
        (result, Ok(())) => result,
        (Ok(()), Err(error)) if has_no_cursor(&error) => Ok(()),
        (Ok(()), Err(error)) => Err(StoreError::of(dialect, error)),
        (Err(error), Err(_)) => Err(error),
    }
}

/// psqlodbc answers SQL_NO_DATA to an UPDATE … RETURNING that changes no row, and then there are columns but no cursor to fetch from.
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
            Ok(Some(row)) => each(&mut Row { row, dialect, mode, buffers: &mut buffers })?,
            Ok(None) => return Ok(()),
            Err(error) if has_no_cursor(&error) => return Ok(()),
            Err(error) => return Err(StoreError::of(dialect, error)),
        }
    }
}

/// The chunks that the longest text parameter needs, rounded up to a power of two so that few texts (and plans) exist.
fn chunks_for(params: &[Param<'_>]) -> usize {
    let longest = params.iter().map(|param| match param {
        // One less than a chunk holds: a chunk that would end within a surrogate pair ends before it.
        Param::Text(text) | Param::MaybeText(Some(text)) => text.encode_utf16().count().div_ceil(CHUNK_UNITS - 1),
        _ => 1,
    });
    longest.max().unwrap_or(1).max(1).next_power_of_two()
}

/// Puts a sum of `chunks` parameters in the place of each text parameter.
fn in_chunks(text: &str, params: &[Param<'_>], chunks: usize) -> String {
    let sum = format!("(CAST(N'' AS nvarchar(max)){})", " + ?".repeat(chunks));
    let mut pieces = text.split('?');
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for (piece, param) in pieces.zip(params) {
        out.push_str(if matches!(param, Param::Text(_) | Param::MaybeText(_)) { &sum } else { "?" });
        out.push_str(piece);
    }
    out
}

fn bind(params: &[Param<'_>], mode: TextMode, chunks: usize) -> Vec<Box<dyn InputParameter>> {
    let mut bound: Vec<Box<dyn InputParameter>> = Vec::with_capacity(params.len());
    for param in params {
        match *param {
            Param::Int(value) => bound.push(Box::new(value)),
            Param::MaybeInt(value) => bound.push(Box::new(value.into_parameter())),
            Param::Text(text) => bind_text(&mut bound, Some(text), mode, chunks),
            Param::MaybeText(text) => bind_text(&mut bound, text, mode, chunks),
        }
    }
    bound
}

fn bind_text(bound: &mut Vec<Box<dyn InputParameter>>, text: Option<&str>, mode: TextMode, chunks: usize) {
    // Length `None` is nvarchar(max) under Microsoft's driver; NTEXT (WLongVarchar) is not to be used.
    let wide = |value: VarWCharBox, length| WithDataType::new(value, DataType::WVarchar { length });
    match (text, mode) {
        (None, TextMode::Narrow) => bound.push(Box::new(VarCharBox::null())),
        (Some(text), TextMode::Narrow) => bound.push(Box::new(VarCharBox::from_string(text.to_owned()))),
        (None, TextMode::Wide) => bound.push(Box::new(wide(VarWCharBox::null(), None))),
        (Some(text), TextMode::Wide) => bound.push(Box::new(wide(VarWCharBox::from_vec(text.encode_utf16().collect()), None))),
        (text, TextMode::WideChunks) => {
            let units: Option<Vec<u16>> = text.map(|text| text.encode_utf16().collect());
            let length = std::num::NonZeroUsize::new(CHUNK_UNITS);
            let mut rest = units.as_deref();
            for _ in 0..chunks {
                let value = rest.map_or_else(VarWCharBox::null, |units| {
                    let (chunk, behind) = units.split_at(chunk_end(units));
                    rest = Some(behind);
                    VarWCharBox::from_vec(chunk.to_vec())
                });
                bound.push(Box::new(wide(value, length)));
            }
        }
    }
}

/// Where the first chunk of `units` ends: never within a surrogate pair.
fn chunk_end(units: &[u16]) -> usize {
    let end = units.len().min(CHUNK_UNITS);
    let cuts_a_pair = end < units.len() && (0xD800..0xDC00).contains(&units[end - 1]);
    if cuts_a_pair { end - 1 } else { end }
}

#[derive(Default)]
struct Buffers {
    narrow: Vec<u8>,
    wide: Vec<u16>,
}

/// A row of a result. Columns count from 1 and are read from left to right, as `SQLGetData` wants it.
pub(super) struct Row<'r, 'c> {
    row: CursorRow<'c>,
    dialect: Dialect,
    mode: TextMode,
    buffers: &'r mut Buffers,
}

impl Row<'_, '_> {
    pub(super) fn maybe_int(&mut self, column: u16) -> Result<Option<i64>, StoreError> {
        let mut value = Nullable::<i64>::null();
        self.row.get_data(column, &mut value).map_err(|error| StoreError::of(self.dialect, error))?;
        Ok(value.into_opt())
    }

    pub(super) fn int(&mut self, column: u16) -> Result<i64, StoreError> {
        self.maybe_int(column)?.ok_or_else(|| missing(column))
    }

    pub(super) fn maybe_text(&mut self, column: u16) -> Result<Option<String>, StoreError> {
        let dialect = self.dialect;
        let failed = |error| StoreError::of(dialect, error);
        if self.mode == TextMode::Narrow {
            let found = self.row.get_text(column, &mut self.buffers.narrow).map_err(failed)?;
            let text = found.then(|| String::from_utf8(self.buffers.narrow.clone()));
            text.transpose().map_err(|error| StoreError::Corrupt(format!("column {column} is not UTF-8: {error}")))
        } else {
            let found = self.row.get_wide_text(column, &mut self.buffers.wide).map_err(failed)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_parameters_are_sent_in_chunks_and_their_number_is_a_power_of_two() {
        let long = "x".repeat(CHUNK_UNITS * 2 + 1);
        let params = [Param::Int(1), Param::Text(&long)];

        assert_eq!(chunks_for(&params), 4);
        assert_eq!(in_chunks("a ? b ? c", &params, 4), "a ? b (CAST(N'' AS nvarchar(max)) + ? + ? + ? + ?) c");
        assert_eq!(bind(&params, TextMode::WideChunks, 4).len(), 5);
    }
}
