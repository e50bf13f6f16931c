//! A fresh, migrated store for each dialect that is given, taken away again when dropped.

use std::path::PathBuf;
use std::time::Duration;

use trilane::store::{Dialect, Options, Store};
use uuid::Uuid;

/// A store of a test's own.
pub(crate) struct TestStore {
    pub store: Store,
    pub connection_string: String,
    cleanup: Cleanup,
}

enum Cleanup {
    Folder(PathBuf),
    Database { admin: String, name: String },
}

/// SQLite and PostgreSQL, and SQL Server where `TRILANE_TEST_MSSQL` is set.
pub(crate) fn dialects() -> Vec<Dialect> {
    let mut dialects = vec![Dialect::Sqlite, Dialect::Postgres];
    if std::env::var_os("TRILANE_TEST_MSSQL").is_some() {
        dialects.push(Dialect::Mssql);
    }
    dialects
}

/// Runs `test` on a fresh store of every dialect that is given, and says which one failed.
pub(crate) fn on_every_dialect(test: impl Fn(&Store)) {
    for dialect in dialects() {
        eprintln!("on {}", dialect.as_str());
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("the schema is made");
        test(&fresh.store);
    }
}

impl TestStore {
    /// An empty database of this dialect, not migrated.
    pub(crate) fn new(dialect: Dialect) -> TestStore {
        match dialect {
            Dialect::Sqlite => {
                let folder = std::env::temp_dir().join(format!("trilane-{}", Uuid::new_v4()));
                std::fs::create_dir(&folder).expect("a folder for the test");
                TestStore::of(Store::sqlite_connection_string(&folder.join("test.db")), Cleanup::Folder(folder))
            }
            Dialect::Postgres => TestStore::on(&server("TRILANE_TEST_POSTGRES")),
            Dialect::Mssql => TestStore::on(&server("TRILANE_TEST_MSSQL")),
        }
    }

    /// An empty database on this server.
    pub(crate) fn on(admin: &str) -> TestStore {
        let name = format!("trilane_{}", Uuid::new_v4().simple());
        execute(admin, &format!("create database {name}"));
        TestStore::of(with_database(admin, &name), Cleanup::Database { admin: admin.to_owned(), name })
    }

    fn of(connection_string: String, cleanup: Cleanup) -> TestStore {
        let store = open(&connection_string);
        TestStore { store, connection_string, cleanup }
    }

    /// Another store on the same database, as another replica has it.
    pub(crate) fn another(&self) -> Store {
        open(&self.connection_string)
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        match &self.cleanup {
            Cleanup::Folder(folder) => drop(std::fs::remove_dir_all(folder)),
            Cleanup::Database { admin, name } => {
                let force = if admin.to_ascii_lowercase().contains("postgres") {
                    " with (force)"
                } else {
                    ""
                };
                if let Err(error) = try_execute(admin, &format!("drop database {name}{force}")) {
                    eprintln!("database {name} is left behind: {error}");
                }
            }
        }
    }
}

fn open(connection_string: &str) -> Store {
    let options =
        Options { connection_string: connection_string.to_owned(), connections_max: 12, wait: Duration::from_secs(20) };
    Store::open(&options).expect("the store opens")
}

/// The server that the environment variable names.
fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run the tests by `make test`"))
}

/// The connection string with another database in it.
fn with_database(connection_string: &str, name: &str) -> String {
    let others = connection_string.split(';').filter(|pair| {
        let key = pair.split('=').next().unwrap_or_default().trim();
        !key.is_empty() && !key.eq_ignore_ascii_case("database")
    });
    let others: Vec<&str> = others.collect();
    format!("{};Database={name};", others.join(";"))
}

/// Runs SQL as a client of the database would, outside Trilane.
pub(crate) fn execute(connection_string: &str, sql: &str) {
    try_execute(connection_string, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

pub(crate) fn try_execute(connection_string: &str, sql: &str) -> Result<(), odbc_api::Error> {
    try_connect(connection_string)?.execute(sql, (), None).map(drop)
}

/// A connection of another program's.
pub(crate) fn connect(connection_string: &str) -> odbc_api::Connection<'static> {
    try_connect(connection_string).expect("connects")
}

fn try_connect(connection_string: &str) -> Result<odbc_api::Connection<'static>, odbc_api::Error> {
    odbc_api::environment()?.connect_with_connection_string(connection_string, odbc_api::ConnectionOptions::default())
}

/// Runs batches of SQL on one connection, as a client does.
pub(crate) fn execute_all(connection_string: &str, batches: &[&str]) {
    let connection = connect(connection_string);
    for sql in batches.iter().filter(|sql| !sql.trim().is_empty()) {
        drop(connection.execute(sql, (), None).unwrap_or_else(|error| panic!("{sql}: {error}")));
    }
}

/// The one number that a query outside Trilane returns.
pub(crate) fn number(connection_string: &str, sql: &str) -> i64 {
    use odbc_api::Cursor as _;
    let connection = connect(connection_string);
    let mut cursor = connection.execute(sql, (), None).expect("runs").expect("a result");
    let mut row = cursor.next_row().expect("is read").expect("a row");
    let mut value = 0i64;
    row.get_data(1, &mut value).expect("a number");
    value
}
