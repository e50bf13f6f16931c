//! What the tests of the handlers share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Attempt, Handler, StopFlag};
use crate::clock::Timestamp;
use crate::job::{ClaimedJob, Lane, Seq, Token};
use crate::retry::Report;

/// Longer than any of these tests takes on a busy machine.
pub(super) const LONG: Duration = Duration::from_mins(1);

/// A claimed job: second attempt of four, lane high, token 42.
pub(super) fn claimed(job_type: &str, payload: &str) -> ClaimedJob {
    ClaimedJob {
        seq: Seq(7),
        id: Uuid::from_u128(0x0192_0000_0000_7000_8000_0000_0000_0001),
        job_type: job_type.to_owned(),
        payload: payload.to_owned(),
        lane: Lane::High,
        retry_count: 1,
        max_retries: 3,
        token: Token(42),
        timeout: None,
        unique_key: None,
        created_at: Timestamp::from_millis(1_795_444_321_007),
    }
}

pub(super) fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Runs one attempt that has a minute.
pub(super) fn report_of(handler: &dyn Handler, job_type: &str, payload: &str) -> Report {
    report_within(handler, &claimed(job_type, payload), LONG)
}

/// Runs one attempt with that time limit.
pub(super) fn report_within(handler: &dyn Handler, job: &ClaimedJob, limit: Duration) -> Report {
    handler.run(&Attempt { job, deadline: Instant::now() + limit, stop: &StopFlag::new() })
}

/// Waits until `condition` holds; fails the test after [`LONG`].
pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < give_up, "waited too long until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A directory that is deleted at the end of its test.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn new() -> Scratch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("trilane-handlers-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("the temporary directory is writable");
        Scratch(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a script wrote there; empty while it has not.
    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // OK: what cannot be deleted lies in the system's temporary directory
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
