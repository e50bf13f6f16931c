//! What differs between the three databases: their names, the text of their statements, and how a session begins.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A kind of database that Trilane keeps its jobs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// SQL Server, Azure SQL, and what speaks like them.
    Mssql,
    /// PostgreSQL.
    Postgres,
    /// SQLite, the embedded default.
    Sqlite,
}

/// One numbered migration: its number, its name, its text.
pub(super) type Migration = (i64, &'static str, &'static str);

impl Dialect {
    /// Every dialect.
    pub const ALL: [Dialect; 3] = [Dialect::Mssql, Dialect::Postgres, Dialect::Sqlite];

    /// The dialect of a database by the name that its driver gives (`SQLGetInfo`, `SQL_DBMS_NAME`).
    pub(super) fn of_dbms(name: &str) -> Option<Dialect> {
        match name.to_ascii_lowercase() {
            name if name.contains("sql server") => Some(Dialect::Mssql),
            name if name.contains("postgres") => Some(Dialect::Postgres),
            name if name.contains("sqlite") => Some(Dialect::Sqlite),
            _ => None,
        }
    }

    /// As people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Dialect::Mssql => "SQL Server",
            Dialect::Postgres => "PostgreSQL",
            Dialect::Sqlite => "SQLite",
        }
    }

    /// The text of the statement `name` of `sql/<dialect>/queries.sql`.
    pub(super) fn statement(self, name: &str) -> Option<&'static str> {
        self.statements().get(name).map(String::as_str)
    }

    /// The statement that reads what `name` changes: its own name, and its text.
    pub(super) fn companion(self, name: &str, suffix: &str) -> Option<(&'static str, &'static str)> {
        let (name, text) = self.statements().get_key_value(format!("{name}{suffix}").as_str())?;
        Some((name, text))
    }

    fn statements(self) -> &'static HashMap<&'static str, String> {
        static TEXTS: LazyLock<[HashMap<&'static str, String>; 3]> =
            LazyLock::new(|| Dialect::ALL.map(|dialect| statements(dialect.queries())));
        &TEXTS[self as usize]
    }

    /// Its migrations in order, from `sql/<dialect>/migrations/`.
    pub(super) fn migrations(self) -> &'static [Migration] {
        match self {
            Dialect::Mssql => &[(1, "jobs", include_str!("../../sql/mssql/migrations/0001_jobs.sql"))],
            Dialect::Postgres => &[(1, "jobs", include_str!("../../sql/postgres/migrations/0001_jobs.sql"))],
            Dialect::Sqlite => &[(1, "jobs", include_str!("../../sql/sqlite/migrations/0001_jobs.sql"))],
        }
    }

    fn queries(self) -> &'static str {
        match self {
            Dialect::Mssql => include_str!("../../sql/mssql/queries.sql"),
            Dialect::Postgres => include_str!("../../sql/postgres/queries.sql"),
            Dialect::Sqlite => include_str!("../../sql/sqlite/queries.sql"),
        }
    }
}

/// Splits a file of statements. Each begins with a line `-- name: what it does`, the name in lower case; further comment lines and
/// the text follow, up to the next such line. A line `-- define word: text` gives a text that replaces `{word}` in all
/// statements of the file. Comments are left out of what is sent.
fn statements(file: &'static str) -> HashMap<&'static str, String> {
    let mut definitions: Vec<(String, &str)> = Vec::new();
    let mut texts: HashMap<&str, String> = HashMap::new();
    let mut current = None;
    for line in file.lines() {
        if let Some((word, text)) = line.strip_prefix("-- define ").and_then(|rest| rest.split_once(": ")) {
            definitions.push((format!("{{{word}}}"), text));
        } else if let Some(name) = heading(line) {
            current = Some(name);
            texts.insert(name, String::new());
        } else if let (Some(name), false) = (current, line.trim_start().starts_with("--")) {
            let text = texts.entry(name).or_default();
            text.push_str(line);
            text.push('\n');
        }
    }
    for text in texts.values_mut() {
        for (word, definition) in &definitions {
            *text = text.replace(word, definition);
        }
        let trimmed = text.trim().trim_end_matches(';').to_owned();
        *text = trimmed;
    }
    texts
}

/// The name in a line `-- name: what it does`.
fn heading(line: &'static str) -> Option<&'static str> {
    let (name, _) = line.strip_prefix("-- ")?.split_once(": ")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_split_at_their_headings_and_definitions_put_in() {
        let texts = statements(
            "-- define now: clock()\n\n-- one: does one.\n-- Params: none.\nselect {now};\n\n-- two: does two.\nselect 2\n",
        );

        assert_eq!(texts["one"], "select clock()");
        assert_eq!(texts["two"], "select 2");
    }

    #[test]
    fn every_dialect_is_known_by_the_name_its_drivers_give() {
        assert_eq!(Dialect::of_dbms("Microsoft SQL Server"), Some(Dialect::Mssql));
        assert_eq!(Dialect::of_dbms("PostgreSQL"), Some(Dialect::Postgres));
        assert_eq!(Dialect::of_dbms("SQLite"), Some(Dialect::Sqlite));
        assert_eq!(Dialect::of_dbms("Oracle"), None);
    }
}
