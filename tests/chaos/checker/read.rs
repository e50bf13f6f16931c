//! Reads the tables by ODBC, and the logs of clients and handlers.

use std::error::Error;
use std::fs;
use std::path::Path;

use odbc_api::{ConnectionOptions, Cursor, CursorRow, Nullable};
use serde_json::Value;

use super::history::{Attempt, Effect, History, Job, Key, Lease, Letter, Line, Tables, Totals};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Reads all that a run left behind.
///
/// # Errors
/// When the database or a file cannot be read, or a line makes no sense.
pub(crate) fn history(connection_string: &str, clients: &Path, effects: &Path) -> Result<History> {
    let tables = tables(connection_string)?;
    Ok(History { tables, clients: lines(clients, Line::parse)?, effects: lines(effects, Effect::parse)? })
}

/// The last line may be cut, as its writer was killed; it is left out then.
fn lines<T>(path: &Path, parse: impl Fn(&str) -> std::result::Result<T, String>) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| parse(line).map_err(Into::into)).collect()
}

fn tables(connection_string: &str) -> Result<Tables> {
    let connection =
        odbc_api::environment()?.connect_with_connection_string(connection_string, ConnectionOptions::default())?;
    let finished_at = match &*connection.database_management_system_name()? {
        "PostgreSQL" => "cast(floor(extract(epoch from FinishedAt) * 1000) as bigint)",
        "SQLite" => "FinishedAt",
        _ => "datediff_big(millisecond, '1970-01-01', FinishedAt)",
    };
    let mut tables = Tables::default();
    let each = |sql: &str, keep: &mut dyn FnMut(&mut Row<'_, '_>) -> Result<()>| -> Result<()> {
        let Some(mut cursor) = connection.execute(sql, (), None)? else { return Err("no rows come".into()) };
        while let Some(mut row) = cursor.next_row()? {
            keep(&mut Row(&mut row))?;
        }
        Ok(())
    };
    let jobs = format!(
        "select Seq, cast(Id as varchar(40)), Status, MaxRetries, RetryCount, LeaseToken, UniqueKey, {finished_at}, Payload from Jobs"
    );
    each(&jobs, &mut |row| {
        tables.jobs.push(Job {
            seq: row.int(1)?,
            id: row.text(2)?.to_lowercase(),
            status: row.text(3)?,
            max_retries: row.int(4)?,
            retry_count: row.int(5)?,
            token: row.maybe_int(6)?,
            unique_key: row.maybe_text(7)?,
            finished_at: row.maybe_int(8)?,
            mark: mark(&row.text(9)?),
        });
        Ok(())
    })?;
    each("select cast(OriginalJobId as varchar(40)) from FailedJobs", &mut |row| {
        tables.letters.push(Letter { job: row.text(1)?.to_lowercase() });
        Ok(())
    })?;
    each("select Seq, Token from JobAttempts", &mut |row| {
        tables.attempts.push(Attempt { seq: row.int(1)?, token: row.int(2)? });
        Ok(())
    })?;
    each("select Token, Seqs from Leases", &mut |row| {
        tables.leases.push(Lease { token: row.int(1)?, seqs: serde_json::from_str(&row.text(2)?)? });
        Ok(())
    })?;
    each("select UniqueKey, cast(JobId as varchar(40)) from JobKeys", &mut |row| {
        tables.keys.push(Key { key: row.text(1)?, job: row.text(2)?.to_lowercase() });
        Ok(())
    })?;
    let sum = |column: &str| format!("cast(coalesce(sum({column}), 0) as bigint)");
    let totals = format!("select {}, {}, {} from JobStats", sum("Completed"), sum("Retried"), sum("Failed"));
    each(&totals, &mut |row| {
        tables.totals = Totals { completed: row.int(1)?, retried: row.int(2)?, failed: row.int(3)? };
        Ok(())
    })?;
    Ok(tables)
}

fn mark(payload: &str) -> Option<String> {
    let payload: Value = serde_json::from_str(payload).ok()?;
    payload.get("mark")?.as_str().map(str::to_owned)
}

struct Row<'a, 'b>(&'a mut CursorRow<'b>);

impl Row<'_, '_> {
    fn int(&mut self, column: u16) -> Result<i64> {
        self.maybe_int(column)?.ok_or_else(|| format!("column {column} is null").into())
    }

    fn maybe_int(&mut self, column: u16) -> Result<Option<i64>> {
        let mut value = Nullable::<i64>::null();
        self.0.get_data(column, &mut value)?;
        Ok(value.into_opt())
    }

    fn text(&mut self, column: u16) -> Result<String> {
        self.maybe_text(column)?.ok_or_else(|| format!("column {column} is null").into())
    }

    fn maybe_text(&mut self, column: u16) -> Result<Option<String>> {
        let mut bytes = Vec::new();
        let is_there = self.0.get_text(column, &mut bytes)?;
        Ok(is_there.then(|| String::from_utf8_lossy(&bytes).into_owned()))
    }
}
