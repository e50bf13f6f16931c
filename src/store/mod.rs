//! The durable store: every job, its attempts, its dead letter, in SQL Server, PostgreSQL or SQLite. The only code that speaks ODBC.
//!
//! [`Store`] says in the words of the domain what can be done; the statements stand in `sql/<dialect>/`. A batch is one statement
//! with one parameter, a JSON array. Every time that is kept is the database's own.

mod batch;
mod claim;
mod dialect;
mod dispatch;
mod elsewhere;
mod error;
mod expire;
mod file;
mod keys;
mod lease;
mod migrate;
mod outcome;
mod param;
mod pool;
mod probe;
mod prune;
mod read;
mod session;
mod submit;
mod sweep;
mod unconfirmed;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use claim::Claim;
pub use dialect::Dialect;
pub use dispatch::{Dispatched, Due, Irregular, OddRow};
pub use error::StoreError;
pub use lease::{Beat, Expired};
pub use migrate::Migrated;
pub use outcome::{Accepted, Cancelled, Outcome, Released, Revived};
pub use pool::installed_drivers;
pub use prune::Pruned;
pub use read::{DeadLetterFilter, JobFilter};
pub use submit::{Horizon, Idempotency, KeyTaken, Stored, StoredClaimed, Submitted};
pub use sweep::{Recalled, Sweep};

use pool::{Connector, Loan, Pool};
use session::Session;

use crate::fault::store_fault;

/// Rows that one statement touches at most: SQL Server escalates to a table lock at 5,000 locks, and a row takes a few.
pub const BATCH_MAX: usize = 1_000;
/// How often a transaction that lost against another (deadlock, lock time-out) is tried again.
const CONTENDED_TRIES: u32 = 6;
/// It is not tried again once this much time has passed, which is less than a session waits for a lock: one that was waited for in vain is held for
/// long, and who asked has a limit too. A deadlock is found sooner.
const CONTENDED_WAIT: Duration = Duration::from_secs(5);
const CONTENDED_WAIT_POSTGRES: Duration = Duration::from_millis(1_500);
/// An id may reach a worker this much before its `RunAt`, for the replica's timer and the database's clock run apart a little.
pub(crate) const EARLY_MS: i64 = 50;

/// How a [`Store`] is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// ODBC connection string.
    pub connection_string: String,
    /// Connections at most.
    pub connections_max: u32,
    /// How long a call waits for a free connection.
    pub wait: Duration,
}

/// The database. Every method blocks, at most for the wait of the pool and the time limits of the session.
pub struct Store {
    dialect: Dialect,
    driver: String,
    pool: Pool,
    // SQLite has one writer. Waiting here is fair and prompt; its own busy handler sleeps in steps of up to 100 ms.
    writer: Mutex<()>,
    // Until when claims wait for no row.
    wary_until: Mutex<Option<Instant>>,
}

impl Store {
    /// Connects, finds out the dialect, and tries whether the driver brings text through unchanged.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there is no connection; [`StoreError::Corrupt`] if the database is none of the known ones,
    /// or the driver changes text.
    pub fn open(options: &Options) -> Result<Store, StoreError> {
        let (connection, dbms) = pool::connect(&options.connection_string)?;
        let dialect = Dialect::of_dbms(&dbms).ok_or_else(|| {
            StoreError::Corrupt(format!(
                "the database calls itself {dbms:?}; Trilane knows SQL Server, PostgreSQL and SQLite"
            ))
        })?;
        let probe::Found { text, counts, driver } = probe::text_mode(connection, dialect, &options.connection_string)?;
        if probe::is_unverified(&options.connection_string, dialect) {
            log::warn!(
                "FreeTDS checks no certificate of SQL Server, unless freetds.conf names the authorities in its option ca file"
            );
        }
        let connector = Connector {
            connection_string: pool::with_options(&options.connection_string, dialect),
            dialect,
            text,
            counts,
            breaks: Arc::default(),
            file: (dialect == Dialect::Sqlite).then(|| file::DatabaseFile::of(&options.connection_string)).flatten(),
        };
        let connections_max = options.connections_max.max(1);
        let pool = pool::pool(connector, connections_max, options.wait);
        Ok(Store { dialect, driver, pool, writer: Mutex::new(()), wary_until: Mutex::new(None) })
    }

    /// The kind of database.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// How text goes through the driver, for `trilane check`.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it does not.
    pub fn ping(&self) -> Result<(), StoreError> {
        self.read(|session| session.execute("ping", &[]))
    }

    /// The ODBC connection string of an SQLite file, made when it is first opened.
    pub fn sqlite_connection_string(path: &std::path::Path) -> String {
        // Timeout: milliseconds that SQLite waits for another process's lock.
        format!("Driver={{SQLite3}};Database={};Timeout=10000;NoTXN=0;", path.display())
    }

    fn loan(&self) -> Result<Loan, StoreError> {
        self.pool.get().map_err(|error| StoreError::Unavailable(format!("no connection: {error}")))
    }

    /// Runs `work` on a session, outside a transaction.
    fn read<T>(&self, mut work: impl FnMut(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        store_fault!("store.begin");
        let mut died_in_pool = false;
        let mut once = |died_in_pool: &mut bool| {
            again_while_contended(self.dialect, || {
                let mut loan = self.loan()?;
                let result = work(&mut loan.session);
                *died_in_pool = loan.session.is_broken();
                result
            })
        };
        let result = once(&mut died_in_pool);
        // The connection had died in the pool, as when the server was restarted meanwhile; the next one is new.
        if died_in_pool { once(&mut died_in_pool) } else { result }
    }

    /// Runs `work` in a transaction of its own, which is undone if it fails, and tried again if another stood in its way.
    fn write<T>(&self, mut work: impl FnMut(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        store_fault!("store.begin");
        again_while_contended(self.dialect, || {
            let _turn = self.writers_turn();
            let mut loan = self.loan()?;
            let mut transaction = Transaction::begin(&mut loan.session)?;
            let value = work(transaction.session)?;
            transaction.commit()?;
            Ok(value)
        })
    }

    /// Runs `work`, whose one statement is its own transaction.
    fn write_one<T>(&self, mut work: impl FnMut(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        store_fault!("store.begin");
        again_while_contended(self.dialect, || {
            let _turn = self.writers_turn();
            let mut loan = self.loan()?;
            store_fault!("store.commit");
            // The statement is its own commit.
            let value = work(&mut loan.session).map_err(|error| error.at_commit(self.dialect))?;
            store_fault!("store.committed");
            Ok(value)
        })
    }

    fn writers_turn(&self) -> Option<MutexGuard<'_, ()>> {
        (self.dialect == Dialect::Sqlite).then(|| lock(&self.writer))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: what is locked here is set in one step
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn again_while_contended<T>(
    dialect: Dialect,
    mut work: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let wait = if dialect == Dialect::Postgres {
        CONTENDED_WAIT_POSTGRES
    } else {
        CONTENDED_WAIT
    };
    let begun = Instant::now();
    let mut tries = 1;
    loop {
        match work() {
            Err(StoreError::Contended(why)) if tries < CONTENDED_TRIES && begun.elapsed() < wait => {
                log::debug!("contended, try {tries}: {why}");
                std::thread::sleep(Duration::from_millis(crate::random::below(5 << tries)));
                tries += 1;
            }
            result => return result,
        }
    }
}

/// A transaction under way; undone when dropped before [`Transaction::commit`].
struct Transaction<'s> {
    session: &'s mut Session,
    open: bool,
}

impl<'s> Transaction<'s> {
    fn begin(session: &'s mut Session) -> Result<Transaction<'s>, StoreError> {
        session.begin()?;
        Ok(Transaction { session, open: true })
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        store_fault!("store.commit");
        let dialect = self.session.dialect();
        self.session.commit().map_err(|error| error.at_commit(dialect))?;
        self.open = false;
        store_fault!("store.committed");
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            self.session.rollback();
        }
    }
}

/// Milliseconds as the statements take them; more than 292 million years count as that.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The time `ms` milliseconds after 1970 that a column holds.
fn time(ms: i64) -> crate::clock::Timestamp {
    crate::clock::Timestamp::from_millis(ms)
}

/// `[1,2,3]` for SQL Server and SQLite, `{1,2,3}` for PostgreSQL.
fn id_list(dialect: Dialect, ids: impl IntoIterator<Item = i64>) -> String {
    let (open, close) = if dialect == Dialect::Postgres {
        ('{', '}')
    } else {
        ('[', ']')
    };
    let mut list = String::from(open);
    for (index, id) in ids.into_iter().enumerate() {
        if index > 0 {
            list.push(',');
        }
        list.push_str(&id.to_string());
    }
    list.push(close);
    list
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_of_ids_reads_back_as_json_and_as_an_array_of_postgresql(ids in proptest::collection::vec(any::<i64>(), 0..20)) {
            let json = id_list(Dialect::Sqlite, ids.iter().copied());
            let array = id_list(Dialect::Postgres, ids.iter().copied());

            prop_assert_eq!(array, json.replace('[', "{").replace(']', "}"));
            prop_assert_eq!(serde_json::from_str::<Vec<i64>>(&json).expect("JSON"), ids);
        }
    }
}
