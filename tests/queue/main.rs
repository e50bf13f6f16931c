//! The lanes: one suite over every kind, then what only Redis can do to us.
//!
//! The shared Redis is the one that `TRILANE_TEST_REDIS` names; what is killed, stopped or filled up is a server of the
//! test's own.

#![expect(clippy::panic, reason = "a test ends by a panic")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trilane::job::{Lane, Seq};
use trilane::queue::{Lanes, POP_IDS_MAX, QueueError};

use self::server::TestServer;

mod access;
mod keys;
mod outage;
#[path = "../support/redis_server.rs"]
mod server;
mod suite;

const NO_WAIT: Duration = Duration::ZERO;
const WAIT: Duration = Duration::from_secs(2);
/// A pop that is woken must return this soon after the push. Generous, as the machine is shared; 1 ms is usual.
const WAKE_MAX: Duration = Duration::from_millis(250);
const CAPACITY: usize = 200_000;

/// Lanes, and what must outlive them.
struct Fixture {
    lanes: Lanes,
    shared: Option<(String, String)>,
    _server: Option<TestServer>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some((url, prefix)) = &self.shared {
            let mut connection = connect(url);
            for key in ["queue:jobs:high", "queue:jobs:medium", "queue:jobs:low", "trilane:epoch"] {
                redis::cmd("DEL")
                    .arg(format!("{prefix}{key}"))
                    .exec(&mut connection)
                    .expect("the shared Redis answers");
            }
        }
    }
}

fn in_memory() -> Fixture {
    Fixture { lanes: Lanes::memory(CAPACITY), shared: None, _server: None }
}

fn in_redis() -> Fixture {
    let (url, prefix) = (shared_redis(), new_prefix());
    Fixture { lanes: Lanes::redis(&url, &prefix).expect("a good URL"), shared: Some((url, prefix)), _server: None }
}

/// `rename-command` hides the command as a server before 7.0 lacks it.
fn in_redis_without_blmpop() -> Fixture {
    let server = TestServer::start(&["--rename-command", "BLMPOP", ""]);
    Fixture { lanes: Lanes::redis(server.url(), "").expect("a good URL"), shared: None, _server: Some(server) }
}

fn shared_redis() -> String {
    std::env::var("TRILANE_TEST_REDIS").expect(
        "TRILANE_TEST_REDIS must be the URL of a Redis for the tests: run `make test`, which starts one and sets it",
    )
}

fn new_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}:", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn connect(url: &str) -> redis::Connection {
    redis::Client::open(url).and_then(|client| client.get_connection()).expect("the test's Redis answers")
}

fn seqs(range: std::ops::RangeInclusive<i64>) -> Vec<Seq> {
    range.map(Seq).collect()
}

fn every_lane(room: usize) -> [(Lane, usize); 3] {
    Lane::ALL.map(|lane| (lane, room))
}

/// Lets a pop wait, acts, and returns what the pop gave and how long after the act.
fn pop_while(lanes: &Lanes, act: impl FnOnce()) -> (Option<(Lane, Vec<Seq>)>, Duration) {
    thread::scope(|scope| {
        let pop = scope.spawn(|| {
            let popped = lanes.pop(&every_lane(5), WAIT).expect("popped");
            (popped, Instant::now())
        });
        // Nobody can see from outside that a pop waits; so it is given time to. Too little makes the test easier, not
        // wrong.
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        act();
        let (popped, end) = pop.join().expect("the pop does not panic");
        (popped, end.saturating_duration_since(start))
    })
}

fn pop_all(lanes: &Lanes) -> Vec<Seq> {
    let mut all = Vec::new();
    while let Some((_, ids)) = lanes.pop(&every_lane(POP_IDS_MAX), NO_WAIT).expect("popped") {
        all.extend(ids);
    }
    all
}

fn assert_unavailable<T: std::fmt::Debug>(outcome: &Result<T, QueueError>, text: &str) -> QueueError {
    match outcome {
        Err(error @ QueueError::Unavailable(why)) if why.contains(text) => error.clone(),
        other => panic!("expected Unavailable with {text:?}, got {other:?}"),
    }
}
