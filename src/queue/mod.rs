//! The lanes: three first-in, first-out lists of job numbers that hand work to whichever replica is free.
//!
//! They live in Redis, shared by all replicas, or in this process. Both kinds have one API and one behaviour,
//! [`Lanes`]. Everything in them is a hint: a number may be lost (an error, an eviction, a crash) or come twice, and
//! the database heals the first and the claim the second. So nothing here retries for long, and no caller needs to
//! know whether a failed push left something behind. This module starts no thread of its own besides those of `r2d2`,
//! and logs no outage: its errors say what is wrong, and the duty that gets them decides what is worth a line.
//!
//! The only code that knows Redis.

mod connection;
mod info;
mod keys;
mod memory;
mod redis;
#[cfg(feature = "failpoints")]
mod simulated;

use std::fmt;
use std::time::Duration;

use self::memory::MemoryLanes;
use self::redis::RedisLanes;
#[cfg(feature = "failpoints")]
pub use self::simulated::{Answer, SimulatedLanes};
use crate::job::{Lane, Seq};

/// The most ids that one [`Lanes::pop`] gives: what one statement may claim.
pub const POP_IDS_MAX: usize = 1_000;
/// The longest wait of one [`Lanes::pop`]; a longer one is cut to it.
pub const POP_WAIT_MAX: Duration = Duration::from_secs(5);

/// What went wrong, named by what the caller does next. No text ever holds the URL or its password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Redis cannot be used now: away, no answer in time, loading, read-only, full, or it refuses the password. Go on
    /// without it and try again later. Of a push, none, some or all ids may be in the lanes.
    #[error("{0}")]
    Unavailable(String),
    /// The URL is wrong, or Redis refuses what Trilane asks (no permission, a key that holds something else). Waiting
    /// does not help, a person must act; go on without it meanwhile.
    #[error("{0}")]
    Rejected(String),
    /// The server is too old. A person must act.
    #[error("Redis {version} is too old: Trilane needs Redis 6.2 or later, or Valkey")]
    Unsupported {
        /// As the server tells it.
        version: String,
    },
}

impl QueueError {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, QueueError::Unavailable(_))
    }
}

/// One lane, as seen at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LaneState {
    /// How many ids wait, duplicates and foreign entries included.
    pub len: u64,
    /// The id that is popped next. `None` if the lane is empty, or if what comes next is no number.
    pub head: Option<Seq>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Pushed {
    /// How many ids each lane that was pushed to holds now, in the order of [`Lane::ALL`]; `None` for the others.
    pub lengths: [Option<u64>; 3],
    /// What lanes in this process had no room for: the last ids of their lane. Those in Redis take all.
    pub refused: Vec<(Lane, Vec<Seq>)>,
}

/// The three lanes. Every method blocks, and none for long: see each for its bound.
///
/// A call to lanes in Redis takes up to about 6 s when the server falls silent, and after a failed attempt to connect
/// calls fail at once, for the same reason, until the next attempt is due (0.2 to 5 s). Only the look-up of the host
/// name is bounded by the system's resolver alone.
///
/// In Redis every method may fail with [`QueueError::Unavailable`] or [`QueueError::Rejected`], in this process none.
///
/// `Send` and `Sync`; share one among all threads.
pub struct Lanes {
    kind: Kind,
}

enum Kind {
    Redis(Box<RedisLanes>),
    Memory(MemoryLanes),
    #[cfg(feature = "failpoints")]
    Simulated(SimulatedLanes),
}

impl Lanes {
    /// Lanes in the Redis or Valkey server at `url`, their keys behind `prefix`. Connects on first use, so the server
    /// need not be up.
    ///
    /// `url` is `redis://[user][:password@]host[:port][/database]`, the same with `rediss://` for TLS (certificates
    /// of the system, or those in the file that the variable `SSL_CERT_FILE` names), or
    /// `unix:///path[?db=1&user=…&pass=…]`.
    ///
    /// # Errors
    /// [`QueueError::Rejected`] if `url` is none of these.
    pub fn redis(url: &str, prefix: &str) -> Result<Lanes, QueueError> {
        Ok(Lanes { kind: Kind::Redis(Box::new(RedisLanes::new(url, prefix)?)) })
    }

    /// Empty lanes in this process, each for up to `capacity` ids.
    pub fn memory(capacity: usize) -> Lanes {
        Lanes { kind: Kind::Memory(MemoryLanes::new(capacity)) }
    }

    /// Lanes that stand for those in Redis in a simulation; `lanes` keeps hold of them, to do to them what happens to Redis.
    #[cfg(feature = "failpoints")]
    pub fn simulated(lanes: &SimulatedLanes) -> Lanes {
        Lanes { kind: Kind::Simulated(lanes.clone()) }
    }

    /// Puts `seqs` behind what waits in `lane`; they are popped in this order. One round trip for each 100,000 ids.
    ///
    /// # Errors
    /// As every method.
    pub fn push(&self, lane: Lane, seqs: &[Seq]) -> Result<Pushed, QueueError> {
        self.push_lots(&[(lane, seqs)])
    }

    /// As [`Lanes::push`] for several lanes, in one round trip. The highest lane goes first, whatever the order of
    /// `lots`: a pop that waits would else be woken by a lower one.
    ///
    /// # Errors
    /// As every method.
    pub fn push_many(&self, lots: &[(Lane, Vec<Seq>)]) -> Result<Pushed, QueueError> {
        let mut lots: Vec<(Lane, &[Seq])> = lots.iter().map(|(lane, seqs)| (*lane, seqs.as_slice())).collect();
        lots.sort_by_key(|(lane, _)| *lane);
        self.push_lots(&lots)
    }

    /// Gives ids back: `seqs` are popped next, in this order, before what waits in `lane`. They were in it a moment ago, so they are taken
    /// also where it has become full meanwhile.
    ///
    /// # Errors
    /// As every method.
    pub fn push_front(&self, lane: Lane, seqs: &[Seq]) -> Result<(), QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.push_front(lane, seqs),
            Kind::Memory(lanes) => {
                lanes.push_front(lane, seqs);
                Ok(())
            }
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.push_front(lane, seqs),
        }
    }

    /// Takes ids from the first of the given lanes that has any, up to the room given for it; waits up to `wait` for
    /// one to come.
    ///
    /// Returns at least one id, of one lane, oldest first; or `None` if none came in time, if no lane has room (at
    /// once), or if what came was no number (logged once, counted by [`Lanes::foreign_entries`]). Room above
    /// [`POP_IDS_MAX`] counts as that, a `wait` above [`POP_WAIT_MAX`] likewise. The order of the lanes is the
    /// caller's: pass them in that of [`Lane::ALL`].
    ///
    /// What is returned is out of the lane: ids that the caller then loses come back only by the scheduler.
    ///
    /// # Errors
    /// As every method; without waiting if Redis is known to be away, so a caller that loops must pause by itself.
    pub fn pop(
        &self,
        lanes_with_room: &[(Lane, usize)],
        wait: Duration,
    ) -> Result<Option<(Lane, Vec<Seq>)>, QueueError> {
        let open: Vec<(Lane, usize)> = lanes_with_room
            .iter()
            .filter(|(_, room)| *room > 0)
            .map(|(lane, room)| (*lane, (*room).min(POP_IDS_MAX)))
            .collect();
        if open.is_empty() {
            return Ok(None);
        }
        let wait = wait.min(POP_WAIT_MAX);
        match &self.kind {
            Kind::Redis(lanes) => lanes.pop(&open, wait),
            Kind::Memory(lanes) => Ok(lanes.pop(&open, wait)),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.pop(&open),
        }
    }

    /// Length and next id of each lane, in the order of [`Lane::ALL`]. One round trip; in Redis the six values are
    /// read one after the other, so others may pop between two of them.
    ///
    /// # Errors
    /// As every method.
    pub fn state(&self) -> Result<[LaneState; 3], QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.state(),
            Kind::Memory(lanes) => Ok(lanes.state()),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.state(),
        }
    }

    /// The name of the present epoch, which is the time since these lanes began without data. `None` in new lanes, and
    /// after Redis lost its data: then all that the database calls dispatched must be dispatched again, by the one who
    /// [begins](Lanes::begin_epoch) the next epoch.
    ///
    /// # Errors
    /// As every method.
    pub fn epoch(&self) -> Result<Option<String>, QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.epoch(),
            Kind::Memory(lanes) => Ok(lanes.epoch()),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.epoch(),
        }
    }

    /// Begins the epoch `name` where there is none, and returns whether `name` is the epoch now. Among those who
    /// begin at the same time, one gets `true`, if each brings a name of its own. Safe to repeat after an error,
    /// under the same name.
    ///
    /// # Errors
    /// As every method.
    pub fn begin_epoch(&self, name: &str) -> Result<bool, QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.begin_epoch(name),
            Kind::Memory(lanes) => Ok(lanes.begin_epoch(name)),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.begin_epoch(name),
        }
    }

    /// Whether the lanes answer.
    ///
    /// # Errors
    /// As every method.
    pub fn ping(&self) -> Result<(), QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.ping(),
            Kind::Memory(_) => Ok(()),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.ping(),
        }
    }

    /// Looks at the server once, at start-up. Returns a sentence for the operator if it may evict the lanes, or if it
    /// will not tell.
    ///
    /// `allkeys-*` policies evict; `noeviction` and `volatile-*` do not, as Trilane's keys never expire.
    ///
    /// # Errors
    /// [`QueueError::Unsupported`] if it is older than 6.2; else as every method.
    pub fn check_server(&self) -> Result<Option<String>, QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.check_server(),
            Kind::Memory(_) => Ok(None),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(_) => Ok(None),
        }
    }

    /// From now on no pop waits. One under way returns at once in this process, and at the end of its wait in Redis.
    /// For the stop.
    pub fn interrupt(&self) {
        match &self.kind {
            Kind::Redis(lanes) => lanes.interrupt(),
            Kind::Memory(lanes) => lanes.interrupt(),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(_) => {}
        }
    }

    /// How many entries were popped by this process and thrown away because they are no numbers.
    pub fn foreign_entries(&self) -> u64 {
        match &self.kind {
            Kind::Redis(lanes) => lanes.foreign_entries(),
            Kind::Memory(_) => 0,
            #[cfg(feature = "failpoints")]
            Kind::Simulated(_) => 0,
        }
    }

    fn push_lots(&self, lots: &[(Lane, &[Seq])]) -> Result<Pushed, QueueError> {
        match &self.kind {
            Kind::Redis(lanes) => lanes.push(lots),
            Kind::Memory(lanes) => Ok(lanes.push(lots)),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(lanes) => lanes.push(lots),
        }
    }
}

/// Where the lanes are, for logs: no user, no password.
impl fmt::Display for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Redis(lanes) => write!(f, "Redis at {}", lanes.address()),
            Kind::Memory(_) => f.write_str("this process"),
            #[cfg(feature = "failpoints")]
            Kind::Simulated(_) => f.write_str("a simulation"),
        }
    }
}

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lanes({self})")
    }
}
