//! Numbered, forward-only migrations from `sql/<dialect>/migrations/`, each once, under a lock that the other replicas wait for.

use super::dialect::{Dialect, Migration};
use super::session::{Param, Session};
use super::{Store, StoreError};
use crate::fault::fault_point;

/// What [`Store::migrate`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// Version before.
    pub from: i64,
    /// Version after.
    pub to: i64,
}

impl Store {
    /// Brings the schema to the version of this program.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the schema is newer than this program, or a migration fails (then it is undone whole, where the
    /// database can: all three do for what is in these files).
    pub fn migrate(&self) -> Result<Migrated, StoreError> {
        let from = self.schema_version()?;
        if from == Some(newest(self.dialect)) {
            return Ok(Migrated { from: newest(self.dialect), to: newest(self.dialect) });
        }
        self.write(|session| {
            session.execute("migrate_lock", &[])?;
            session.execute("schema_create", &[])?;
            let from = version(session)?.unwrap_or(0);
            refuse_newer(self.dialect, from)?;
            for (number, name, text) in self.dialect.migrations().iter().filter(|(number, _, _)| *number > from) {
                apply(session, &(*number, *name, *text)).map_err(|error| match error {
                    error if error.is_transient() => error,
                    error => StoreError::Corrupt(format!("migration {number:04}_{name} failed: {error}")),
                })?;
            }
            fault_point!("migrate.applied");
            Ok(Migrated { from, to: version(session)?.unwrap_or(0) })
        })
    }

    /// Refuses a schema that this program does not know.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if the schema is older, newer or not there; the text says what to do.
    pub fn check_schema(&self) -> Result<(), StoreError> {
        let wanted = newest(self.dialect);
        match self.schema_version()? {
            Some(found) if found == wanted => Ok(()),
            Some(found) if found > wanted => refuse_newer(self.dialect, found),
            found => Err(StoreError::Corrupt(format!(
                "the database has schema version {} and this program needs {wanted}; run `trilane migrate`",
                found.unwrap_or(0)
            ))),
        }
    }

    /// The schema's version; `None` where there is no Trilane schema.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the database does not answer.
    pub fn schema_version(&self) -> Result<Option<i64>, StoreError> {
        self.read(|session| {
            let mut exists = false;
            session.query("schema_exists", &[], |_| {
                exists = true;
                Ok(())
            })?;
            if exists { version(session) } else { Ok(None) }
        })
    }
}

fn newest(dialect: Dialect) -> i64 {
    dialect.migrations().last().map_or(0, |(number, _, _)| *number)
}

fn refuse_newer(dialect: Dialect, found: i64) -> Result<(), StoreError> {
    let known = newest(dialect);
    if found <= known {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!(
        "the database has schema version {found}, written by a newer Trilane; this one knows up to {known}: run the newer program"
    )))
}

fn version(session: &mut Session) -> Result<Option<i64>, StoreError> {
    let mut version = None;
    session.query("schema_version", &[], |row| {
        version = row.maybe_int(1)?;
        Ok(())
    })?;
    Ok(version)
}

fn apply(session: &mut Session, (number, name, text): &Migration) -> Result<(), StoreError> {
    log::info!(version = number, name = name; "schema migration runs");
    for batch in batches(session.dialect(), text) {
        session.execute_text(&batch)?;
    }
    session.execute("schema_add", &[Param::Int(*number), Param::Text(name)])
}

/// Splits a migration into what the driver takes at once: at lines `GO` on SQL Server (as sqlcmd does), else after each `;` that
/// ends a line.
fn batches(dialect: Dialect, text: &str) -> Vec<String> {
    let mut batches = vec![String::new()];
    for line in text.lines() {
        let ends = match dialect {
            Dialect::Mssql => line.trim().eq_ignore_ascii_case("go"),
            Dialect::Postgres | Dialect::Sqlite => line.trim_end().ends_with(';'),
        };
        if let (Some(batch), false) = (batches.last_mut(), dialect == Dialect::Mssql && ends) {
            batch.push_str(line);
            batch.push('\n');
        }
        if ends {
            batches.push(String::new());
        }
    }
    let says_something =
        |batch: &String| batch.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with("--"));
    batches.retain(says_something);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_is_cut_where_the_driver_wants_it() {
        assert_eq!(batches(Dialect::Sqlite, "-- a\ncreate x (\n y\n);\n\ncreate z;\n").len(), 2);
        assert_eq!(batches(Dialect::Mssql, "create x;\nGO\ncreate y;\ngo\n").len(), 2);
    }

    #[test]
    fn migrations_are_numbered_from_one_without_a_gap() {
        for dialect in Dialect::ALL {
            let numbers: Vec<i64> = dialect.migrations().iter().map(|(number, _, _)| *number).collect();

            assert_eq!(numbers, (1..=i64::try_from(numbers.len()).expect("few")).collect::<Vec<_>>());
        }
    }
}
