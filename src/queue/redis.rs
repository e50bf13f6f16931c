//! Lanes in Redis or Valkey: what each operation is in commands.
//!
//! **How a pop works.** `BLMPOP` takes from the first key that has any, or waits, in one round trip; but it has one
//! `COUNT` for all keys while each lane has room of its own. So it asks for the least room of all: right for the lane
//! it takes from in the common case, where that lane is the busy one and therefore the fullest here. If it got as
//! many as it asked for and the lane has room for more, one `RPOP` with a count takes the rest. Busy: one round trip,
//! two where a batch crosses lanes. Idle: one call that blocks. A server without `BLMPOP` gets `BRPOP` for the first
//! id and the same `RPOP` for the rest. No script: what may run scripts is restricted more often than what may pop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{FromRedisValue, Pipeline, Value};

use super::connection::{
    Link, Links, POOL_CONNECTIONS_MAX, POOL_IDLE_MAX, POOL_WAIT, REPLY_WAIT, Server, server_error,
};
use super::keys::Keys;
use super::{LaneState, Pushed, QueueError, info};
use crate::job::{Lane, Seq};

/// Ids in one command. Redis runs nothing else meanwhile; this takes it well under a millisecond.
const PUSH_IDS_MAX: usize = 1_000;
/// Commands in one round trip.
const PUSH_COMMANDS_MAX: usize = 100;
/// Connections for pops that are kept between two pops. More pops than this at one time open more for as long as they
/// last.
const POP_LINKS_KEPT_MAX: usize = 4;
/// The shortest wait of a pop. 0 means for ever, and before Redis 7 the fraction of a millisecond is cut off: 0.001
/// s, a little less in binary, is 0 there (found with Redis 6.2.5).
const POP_WAIT_MIN: Duration = Duration::from_millis(2);

pub(super) struct RedisLanes {
    server: Arc<Server>,
    keys: Keys,
    pool: r2d2::Pool<Links>,
    /// Apart from the pool, so that no pop that waits keeps a push from its connection.
    pop_links: Mutex<Vec<Link>>,
    foreign_entries: AtomicU64,
    interrupted: AtomicBool,
}

impl RedisLanes {
    pub(super) fn new(url: &str, prefix: &str) -> Result<RedisLanes, QueueError> {
        let server = Arc::new(Server::new(url)?);
        let pool = r2d2::Pool::builder()
            .max_size(POOL_CONNECTIONS_MAX)
            .min_idle(Some(0))
            .idle_timeout(Some(POOL_IDLE_MAX))
            .max_lifetime(None)
            .connection_timeout(POOL_WAIT)
            .test_on_check_out(false)
            .build_unchecked(Links(Arc::clone(&server)));
        Ok(RedisLanes {
            server,
            keys: Keys::new(prefix),
            pool,
            pop_links: Mutex::default(),
            foreign_entries: AtomicU64::new(0),
            interrupted: AtomicBool::new(false),
        })
    }

    pub(super) fn address(&self) -> &str {
        self.server.address()
    }

    pub(super) fn push(&self, lots: &[(Lane, &[Seq])]) -> Result<Pushed, QueueError> {
        Ok(Pushed { lengths: self.send_ids("LPUSH", lots)?, refused: Vec::new() })
    }

    pub(super) fn push_front(&self, lane: Lane, seqs: &[Seq]) -> Result<(), QueueError> {
        // The last one pushed at the popping end is popped first.
        let backwards: Vec<Seq> = seqs.iter().rev().copied().collect();
        self.send_ids("RPUSH", &[(lane, &backwards)]).map(drop)
    }

    /// `open`: lanes in the order to take from, each with room for at least one id.
    pub(super) fn pop(&self, open: &[(Lane, usize)], wait: Duration) -> Result<Option<(Lane, Vec<Seq>)>, QueueError> {
        let wait = if self.interrupted.load(Ordering::Relaxed) {
            POP_WAIT_MIN
        } else {
            wait.max(POP_WAIT_MIN)
        };
        let mut link = self.pop_links().pop().unwrap_or_else(|| Link::new(Arc::clone(&self.server)));
        let popped = self.pop_entries(&mut link, open, wait);
        let mut kept = self.pop_links();
        if kept.len() < POP_LINKS_KEPT_MAX {
            kept.push(link);
        }
        drop(kept);

        Ok(popped?.and_then(|batch| {
            let seqs = self.seqs_among(&batch);
            (!seqs.is_empty()).then_some((batch.lane, seqs))
        }))
    }

    pub(super) fn state(&self) -> Result<[LaneState; 3], QueueError> {
        let mut commands = redis::pipe();
        for lane in Lane::ALL {
            let key = self.keys.lane(lane);
            commands.cmd("LLEN").arg(key).cmd("LINDEX").arg(key).arg(-1);
        }
        let mut replies = self.ask(&commands)?.into_iter();
        let mut state = [LaneState::default(); 3];
        for lane in &mut state {
            lane.len = self.read(replies.next())?;
            lane.head = self.read::<Option<Vec<u8>>>(replies.next())?.and_then(|entry| seq_of(&entry));
        }
        Ok(state)
    }

    pub(super) fn epoch(&self) -> Result<Option<String>, QueueError> {
        let mut commands = redis::pipe();
        commands.cmd("GET").arg(self.keys.epoch());
        self.read(self.ask(&commands)?.pop())
    }

    /// Judged by what is there afterwards, not by the answer to `SET`: that may be lost, and the epoch would have
    /// nobody who began it.
    pub(super) fn begin_epoch(&self, name: &str) -> Result<bool, QueueError> {
        let mut commands = redis::pipe();
        commands.cmd("SET").arg(self.keys.epoch()).arg(name).arg("NX").cmd("GET").arg(self.keys.epoch());
        let epoch: Option<String> = self.read(self.ask(&commands)?.pop())?;
        Ok(epoch.as_deref() == Some(name))
    }

    pub(super) fn ping(&self) -> Result<(), QueueError> {
        let mut commands = redis::pipe();
        commands.cmd("PING");
        self.ask(&commands).map(drop)
    }

    pub(super) fn check_server(&self) -> Result<Option<String>, QueueError> {
        let mut commands = redis::pipe();
        commands.cmd("INFO").arg("server").cmd("INFO").arg("memory");
        match self.ask(&commands) {
            Ok(replies) => {
                let mut replies = replies.into_iter();
                let server: String = self.read(replies.next())?;
                let memory: String = self.read(replies.next())?;
                info::judge(&server, &memory)
            }
            Err(QueueError::Rejected(why)) => Ok(Some(info::not_told(&why))),
            Err(error) => Err(error),
        }
    }

    pub(super) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    pub(super) fn foreign_entries(&self) -> u64 {
        self.foreign_entries.load(Ordering::Relaxed)
    }

    /// Returns the lengths that the commands answer with.
    fn send_ids(&self, command: &str, lots: &[(Lane, &[Seq])]) -> Result<[Option<u64>; 3], QueueError> {
        let mut lengths = [None; 3];
        let chunks: Vec<(Lane, &[Seq])> =
            lots.iter().flat_map(|(lane, seqs)| seqs.chunks(PUSH_IDS_MAX).map(|chunk| (*lane, chunk))).collect();
        for round_trip in chunks.chunks(PUSH_COMMANDS_MAX) {
            let mut commands = redis::pipe();
            for (lane, chunk) in round_trip {
                commands.cmd(command).arg(self.keys.lane(*lane));
                for seq in *chunk {
                    commands.arg(seq.0);
                }
            }
            for ((lane, _), length) in round_trip.iter().zip(self.ask(&commands)?) {
                lengths[lane.index()] = Some(self.read(Some(length))?);
            }
        }
        Ok(lengths)
    }

    fn pop_entries(
        &self,
        link: &mut Link,
        open: &[(Lane, usize)],
        wait: Duration,
    ) -> Result<Option<Batch>, QueueError> {
        let least_room = open.iter().map(|(_, room)| *room).min().unwrap_or(1);
        let (popped, asked) = match self.blmpop(link, open, least_room, wait)? {
            Some(popped) => (popped, least_room),
            None => (self.brpop(link, open, wait)?, 1),
        };
        let Some((key, mut entries)) = popped else { return Ok(None) };
        // OK: Redis answers with one of the keys it was asked for.
        let (lane, room) = self
            .keys
            .lane_of(&key)
            .and_then(|lane| open.iter().find(|(of, _)| *of == lane))
            .copied()
            .unwrap_or(open[0]);
        if entries.len() == asked && asked < room {
            let mut commands = redis::pipe();
            commands.cmd("RPOP").arg(self.keys.lane(lane)).arg(room - asked);
            match link.ask(&commands).and_then(|mut replies| self.read::<Option<Vec<Vec<u8>>>>(replies.pop())) {
                Ok(rest) => entries.extend(rest.unwrap_or_default()),
                // What was popped before it must not be lost; the next pop meets the error again.
                Err(error) => log::debug!(lane:% = lane, error:% = error; "a lane gave only part of a batch"),
            }
        }
        Ok(Some(Batch { lane, entries }))
    }

    /// `None` if the server does not know the command, or does not allow it.
    fn blmpop(
        &self,
        link: &mut Link,
        open: &[(Lane, usize)],
        count: usize,
        wait: Duration,
    ) -> Result<Option<Popped>, QueueError> {
        if !link.has_blmpop {
            return Ok(None);
        }
        let mut commands = redis::pipe();
        commands.cmd("BLMPOP").arg(seconds(wait)).arg(open.len());
        self.add_keys(&mut commands, open);
        commands.arg("RIGHT").arg("COUNT").arg(count);
        let reply = link.exchange(&commands, wait + REPLY_WAIT)?.pop();
        match reply.as_ref().and_then(server_error) {
            None => self.read(reply).map(Some),
            // Redis has no code for an unknown command, only this text.
            Some(error)
                if error.code() == "NOPERM"
                    || error.details().is_some_and(|text| text.starts_with("unknown command")) =>
            {
                link.has_blmpop = false;
                Ok(None)
            }
            Some(error) => Err(link.refuse(error)),
        }
    }

    fn brpop(&self, link: &mut Link, open: &[(Lane, usize)], wait: Duration) -> Result<Popped, QueueError> {
        let mut commands = redis::pipe();
        commands.cmd("BRPOP");
        self.add_keys(&mut commands, open);
        commands.arg(seconds(wait));
        let reply = link.exchange(&commands, wait + REPLY_WAIT)?.pop();
        if let Some(error) = reply.as_ref().and_then(server_error) {
            return Err(link.refuse(error));
        }
        let popped: Option<(Vec<u8>, Vec<u8>)> = self.read(reply)?;
        Ok(popped.map(|(key, entry)| (key, vec![entry])))
    }

    fn add_keys(&self, commands: &mut Pipeline, open: &[(Lane, usize)]) {
        for (lane, _) in open {
            commands.arg(self.keys.lane(*lane));
        }
    }

    /// A list that the original system or a person filled may hold anything.
    fn seqs_among(&self, batch: &Batch) -> Vec<Seq> {
        let seqs: Vec<Seq> = batch.entries.iter().filter_map(|entry| seq_of(entry)).collect();
        let foreign = (batch.entries.len() - seqs.len()) as u64;
        if foreign > 0 && self.foreign_entries.fetch_add(foreign, Ordering::Relaxed) == 0 {
            let key = self.keys.lane(batch.lane);
            log::warn!(key, foreign; "dropped entries of a lane that are no job numbers; this is said once");
        }
        seqs
    }

    fn ask(&self, commands: &Pipeline) -> Result<Vec<Value>, QueueError> {
        let mut link = self.pool.get().map_err(|_| {
            QueueError::Unavailable(format!(
                "all {POOL_CONNECTIONS_MAX} connections to Redis at {} were busy for {POOL_WAIT:?}",
                self.address()
            ))
        })?;
        link.ask(commands)
    }

    fn read<T: FromRedisValue>(&self, reply: Option<Value>) -> Result<T, QueueError> {
        redis::from_redis_value(reply.unwrap_or(Value::Nil)).map_err(|error| {
            QueueError::Rejected(format!("Redis at {} gave an answer that makes no sense: {error}", self.address()))
        })
    }

    fn pop_links(&self) -> MutexGuard<'_, Vec<Link>> {
        self.pop_links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries of one lane, oldest first, as they were in Redis.
struct Batch {
    lane: Lane,
    entries: Vec<Vec<u8>>,
}

/// The key popped from and its entries, oldest first; `None` if nothing came in time.
type Popped = Option<(Vec<u8>, Vec<Vec<u8>>)>;

/// As Redis reads a wait: seconds with decimals.
fn seconds(wait: Duration) -> String {
    format!("{:.3}", wait.as_secs_f64())
}

fn seq_of(entry: &[u8]) -> Option<Seq> {
    std::str::from_utf8(entry).ok()?.parse().ok().map(Seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_job_numbers() {
        assert_eq!(seq_of(b"42"), Some(Seq(42)));
        for foreign in [&b""[..], b"4.2", b"{\"id\":1}", b"\xff", b"9223372036854775808"] {
            assert_eq!(seq_of(foreign), None);
        }
    }
}
