//! A lifecycle on a table of its own, for the tests of duties.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::job::{ClaimedJob, Lane, ReplicaId, Seq, Token};
use crate::lifecycle::{Lifecycle, Policy};
use crate::queue::Lanes;
use crate::store::{Options, Store};

pub(super) const REPLICA: ReplicaId = ReplicaId(1);

/// A job of type `x`, claimed under a lease of its own with the same number.
pub(super) fn claimed(seq: i64, lane: Lane) -> ClaimedJob {
    ClaimedJob {
        seq: Seq(seq),
        id: uuid::Uuid::new_v4(),
        job_type: "x".into(),
        payload: "{}".into(),
        lane,
        retry_count: 0,
        max_retries: 3,
        token: Token(seq),
        timeout: None,
        unique_key: None,
        created_at: Timestamp::from_millis(0),
    }
}

/// A folder with the table of `lifecycle`, taken away again when dropped.
pub(super) struct Bench {
    pub(super) lifecycle: Arc<Lifecycle>,
    folder: PathBuf,
}

impl Bench {
    /// On SQLite; no lane brings jobs.
    pub(super) fn new() -> Bench {
        Bench::waiting(Duration::from_secs(20))
    }

    /// As [`Bench::new`], with lanes in the process.
    pub(super) fn with_lanes() -> Bench {
        Bench::made(Duration::from_secs(20), true)
    }

    /// As [`Bench::new`]; calls of the store wait so long for the database.
    pub(super) fn waiting(wait: Duration) -> Bench {
        Bench::made(wait, false)
    }

    fn made(wait: Duration, has_lanes: bool) -> Bench {
        let folder = std::env::temp_dir().join(format!("trilane-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder for the test");
        let options = Options {
            connection_string: Store::sqlite_connection_string(&folder.join("test.db")),
            connections_max: 2,
            wait,
        };
        let store = Store::open(&options).expect("opens");
        store.migrate().expect("migrated");
        let policy = Policy {
            replica: REPLICA,
            replica_name: "test".into(),
            tick: Duration::from_mins(2),
            lease: Duration::from_mins(1),
            lane_buffer_max: 100,
            lanes_are_shared: false,
            has_lanes,
        };
        Bench { lifecycle: Arc::new(Lifecycle::new(store, Lanes::memory(100), policy)), folder }
    }

    /// From now on the database is away.
    pub(super) fn take_away(&self) {
        std::fs::rename(self.folder.join("test.db"), self.folder.join("aside.db")).expect("moved");
    }

    /// It is there again.
    pub(super) fn put_back(&self) {
        std::fs::rename(self.folder.join("aside.db"), self.folder.join("test.db")).expect("moved back");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder)); // OK: it is in the folder for temporary files
    }
}
