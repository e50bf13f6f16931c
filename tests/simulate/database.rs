//! The database as an observer outside Trilane sees it: all that matters of all tables, in one look.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use odbc_api::handles::StatementConnection;
use odbc_api::{Connection, ConnectionOptions, ConnectionTransitions as _, Cursor, Prepared};
use serde::Deserialize;
use trilane::store::{Options, Store};
use uuid::Uuid;

type Shared = Arc<Mutex<Connection<'static>>>;

/// One database for all the runs of a thread, empty at the start of each.
pub(crate) struct Database {
    pub(crate) store: Arc<Store>,
    observer: Shared,
    look: RefCell<Prepared<StatementConnection<Shared>>>,
    index: File,
    changes: Cell<u32>,
    folder: PathBuf,
}

/// A row of Jobs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) seq: i64,
    pub(crate) id: Uuid,
    pub(crate) lane: String,
    pub(crate) status: String,
    pub(crate) retry_count: u32,
    pub(crate) max_retries: u32,
    pub(crate) run_at: i64,
    pub(crate) dispatched_at: Option<i64>,
    pub(crate) token: Option<i64>,
    pub(crate) leased_by: Option<i64>,
    pub(crate) unique_key: Option<String>,
}

/// A row of Leases.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) replica: i64,
    pub(crate) until: i64,
    pub(crate) seqs: BTreeSet<i64>,
}

/// All tables at one moment.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct State {
    pub(crate) jobs: Vec<Row>,
    pub(crate) leases: BTreeMap<i64, Lease>,
    pub(crate) keys: BTreeMap<String, Uuid>,
    /// How many dead letters each job has.
    pub(crate) letters: BTreeMap<Uuid, u32>,
    /// Tokens of the failed attempts of each job.
    pub(crate) attempts: BTreeMap<i64, BTreeSet<i64>>,
    /// Completed, retried, failed: what the statistics count.
    pub(crate) stats: [u64; 3],
    /// The last token that was given out.
    pub(crate) last_token: i64,
}

const STATE: &str = "select json_object(
    'jobs', (select json_group_array(json_object('seq', Seq, 'id', Id, 'lane', Priority, 'status', Status, 'retry_count', RetryCount,
        'max_retries', MaxRetries, 'run_at', RunAt, 'dispatched_at', DispatchedAt, 'token', LeaseToken, 'leased_by', LeasedBy,
        'unique_key', UniqueKey)) from Jobs),
    'leases', (select json_group_object(Token, json_object('replica', ReplicaId, 'until', LeaseUntil, 'seqs', json(Seqs))) from Leases),
    'keys', (select json_group_object(UniqueKey, JobId) from JobKeys),
    'letters', (select json_group_object(OriginalJobId, count) from (select OriginalJobId, count(*) as count from FailedJobs group by 1)),
    'attempts', (select json_group_object(Seq, json(tokens)) from (select Seq, json_group_array(Token) as tokens from JobAttempts group by 1)),
    'stats', (select json_array(coalesce(sum(Completed), 0), coalesce(sum(Retried), 0), coalesce(sum(Failed), 0)) from JobStats),
    'last_token', coalesce((select seq from sqlite_sequence where name = 'Leases'), 0))";

const EMPTY: [&str; 10] = [
    "delete from Jobs",
    "delete from Leases",
    "delete from JobKeys",
    "delete from FailedJobs",
    "delete from JobAttempts",
    "delete from JobStats",
    "delete from Replicas",
    "delete from IdempotencyKeys",
    "delete from sqlite_sequence",
    "update Lanes set SweptTo = 0",
];

impl Database {
    /// A new database, in memory where the system has a folder there.
    pub(crate) fn new() -> Database {
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = base.join(format!("trilane-simulate-{}", Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder for the database");
        let connection_string = Store::sqlite_connection_string(&folder.join("jobs.db"));
        let options =
            Options { connection_string: connection_string.clone(), connections_max: 2, wait: Duration::from_secs(20) };
        let store = Store::open(&options).expect("the store opens");
        store.migrate().expect("the schema is made");
        let environment = odbc_api::environment().expect("unixODBC");
        let observer = environment
            .connect_with_connection_string(&connection_string, ConnectionOptions::default())
            .expect("the observer connects");
        drop(observer.execute("select count(*) from Jobs", (), None).expect("it can be read"));
        let observer = Arc::new(Mutex::new(observer));
        let look = Arc::clone(&observer).into_prepared(STATE).expect("the observer's question is right");
        let index = File::open(folder.join("jobs.db-shm")).expect("SQLite shares its index in a file");
        Database { store: Arc::new(store), observer, look: RefCell::new(look), index, changes: Cell::new(0), folder }
    }

    /// Empties all tables.
    pub(crate) fn clear(&self) {
        self.execute("begin immediate");
        for sql in EMPTY {
            self.execute(sql);
        }
        self.execute("commit");
    }

    /// Runs SQL as a client of the database would, outside Trilane.
    pub(crate) fn execute(&self, sql: &str) {
        let observer = self.observer.lock().expect("no panic");
        drop(observer.execute(sql, (), None).unwrap_or_else(|error| panic!("{sql}: {error}")));
    }

    /// Whether anybody has written since the last look.
    pub(crate) fn has_changed(&self) -> bool {
        self.changes.get() != self.change_counter()
    }

    /// `iChange` of the index of SQLite's write-ahead log (sqlite.org/walformat.html): a counter of transactions, far quicker to read than
    /// `pragma data_version`.
    fn change_counter(&self) -> u32 {
        let mut counter = [0; 4];
        self.index.read_exact_at(&mut counter, 8).expect("the index is there while the database is open");
        u32::from_ne_bytes(counter)
    }

    /// Looks at everything, if it has changed since the last look.
    pub(crate) fn look_again(&self) -> Option<State> {
        let changes = self.change_counter();
        (self.changes.replace(changes) != changes).then(|| self.look())
    }

    fn look(&self) -> State {
        let mut look = self.look.borrow_mut();
        let mut cursor = look.execute(()).expect("it can be read").expect("it has a result");
        let mut row = cursor.next_row().expect("it can be read").expect("one row");
        let mut text = Vec::new();
        row.get_text(1, &mut text).expect("a text");
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)))
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
