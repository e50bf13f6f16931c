//! feeder: takes ids from the lanes, claims their jobs, and hands them to the workers.
//!
//! 1. Waits until there is room: for the idle workers, and about 100 ms of work besides, so that a replica with long jobs does not sit on
//!    jobs that another could run. A lower lane's jobs never take the room of a higher one.
//! 2. Takes ids from the highest lane that has any, and claims them in one statement. Ids that lose the claim are dropped.
//! 3. Where no lane brings jobs (Redis is away, or there is none and another process takes them) claims straight from the table, one
//!    gentle poll a second.
//! 4. After a claim whose result it could not learn, gives back what it may have got.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Duty;
use super::scheduler::Ticker;
use crate::job::{ClaimedJob, Lane};
use crate::lifecycle::{Held, Lifecycle, Popped};
use crate::metrics::Metrics;
use crate::store::StoreError;

/// Claimed jobs of one lane that wait for a worker at most.
const BUFFER_MAX: usize = 2_000;
/// Work that is buffered beyond what the idle workers take.
const BUFFERED_WORK: Duration = Duration::from_millis(100);
/// How long a pop waits; also how long a stop may take here.
const POP_WAIT: Duration = Duration::from_secs(1);
/// How long to wait for room in a lane while others have nothing.
const ROOM_WAIT: Duration = Duration::from_millis(10);
/// Between two looks at the table where no lane brings jobs.
const TABLE_POLL: Duration = Duration::from_secs(1);

/// How busy the workers are.
#[derive(Default)]
pub struct Load {
    /// Workers that wait for a job.
    pub idle: AtomicUsize,
    /// Called when a worker becomes free.
    pub freed: crate::wake::Wake,
    average_nanos: AtomicU64,
}

impl Load {
    /// Takes the run time of one more attempt into the moving average.
    pub fn note(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.average_nanos.load(Ordering::Relaxed);
        let after = if before == 0 {
            nanos
        } else {
            before - before / 8 + nanos / 8
        };
        self.average_nanos.store(after.max(1), Ordering::Relaxed);
    }

    /// Jobs that `workers` do in [`BUFFERED_WORK`]; none before the first is done.
    fn buffered_jobs(&self, workers: usize) -> usize {
        let average = u128::from(self.average_nanos.load(Ordering::Relaxed));
        if average == 0 {
            return 0;
        }
        let workers = u128::try_from(workers).unwrap_or(u128::MAX);
        usize::try_from(BUFFERED_WORK.as_nanos().saturating_mul(workers) / average).unwrap_or(usize::MAX)
    }
}

/// One channel for each lane, in the order of [`Lane::ALL`].
pub fn channels() -> ([Sender<ClaimedJob>; 3], [Receiver<ClaimedJob>; 3]) {
    let (high, medium, low) = (bounded(BUFFER_MAX), bounded(BUFFER_MAX), bounded(BUFFER_MAX));
    ([high.0, medium.0, low.0], [high.1, medium.1, low.1])
}

/// The duty.
pub struct Feeder {
    /// Moves the jobs.
    pub lifecycle: Arc<Lifecycle>,
    /// Told of each claim.
    pub held: Arc<Held>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Asked for a refill when a lane runs dry though more is due.
    pub ticker: Ticker,
    /// To the workers.
    pub channels: [Sender<ClaimedJob>; 3],
    /// How busy they are.
    pub load: Arc<Load>,
    /// How many they are.
    pub workers: usize,
    /// Whether a claim may have been stored without this replica learning of it.
    pub is_unsure: bool,
}

impl Feeder {
    /// Room for each lane: what the idle workers and the buffer take, less what waits in this lane and those above it.
    fn room(&self) -> [(Lane, usize); 3] {
        let room = self.load.idle.load(Ordering::Relaxed).saturating_add(self.load.buffered_jobs(self.workers));
        let mut waiting = 0;
        Lane::ALL.map(|lane| {
            let channel = &self.channels[lane.index()];
            waiting += channel.len();
            (lane, room.saturating_sub(waiting).min(BUFFER_MAX.saturating_sub(channel.len())))
        })
    }

    fn hand_out(&mut self, popped: Popped) {
        if popped.drained {
            self.ticker.refill_now();
        }
        let Some(valid_until) = popped.valid_until else { return };
        // A claim that got nothing leaves a lease without jobs, to be removed.
        self.is_unsure |= popped.jobs.is_empty();
        Metrics::add(&self.metrics.claimed, popped.jobs.len());
        self.held.add(&popped.jobs, valid_until);
        for job in popped.jobs {
            if let Err(error) = self.channels[popped.lane.index()].send(job) {
                let job = error.into_inner();
                log::debug!(job:% = job.id; "no worker is left for a claimed job; it is given back");
            }
        }
    }

    fn feed_from_table(&mut self, room: &[(Lane, usize)]) -> Result<Duration, StoreError> {
        let mut found = false;
        for &(lane, room) in room.iter().filter(|(_, room)| *room > 0) {
            self.is_unsure = true;
            let popped = self.lifecycle.claim_from_table(lane, room)?;
            self.is_unsure = false;
            found |= !popped.jobs.is_empty();
            if !popped.jobs.is_empty() {
                self.hand_out(popped);
            }
        }
        Ok(if found { Duration::ZERO } else { TABLE_POLL })
    }
}

impl Duty for Feeder {
    const NAME: &'static str = "feeder";

    fn round(&mut self) -> Result<Duration, StoreError> {
        if self.is_unsure {
            self.lifecycle.release_unknown(&self.held.known())?;
            if !self.lifecycle.policy().lanes_are_shared {
                // Given back to the table, and not to the lanes of a process that may be about to end.
                self.ticker.tick_now();
            }
            self.is_unsure = false;
        }
        let room = self.room();
        let has_room = room.iter().filter(|(_, room)| *room > 0).count();
        if has_room == 0 {
            self.load.freed.wait(POP_WAIT);
            return Ok(Duration::ZERO);
        }
        if self.lifecycle.is_fed_by_table() {
            return self.feed_from_table(&room);
        }
        let wait = if has_room == room.len() {
            POP_WAIT
        } else {
            Duration::ZERO
        };
        self.is_unsure = true;
        let popped = self.lifecycle.claim_from_lanes(&room, wait)?;
        self.is_unsure = false;
        match popped {
            Some(popped) if popped.valid_until.is_some() => self.hand_out(popped),
            Some(_) if wait.is_zero() => drop(self.load.freed.wait(ROOM_WAIT)),
            Some(_) | None => {}
        }
        Ok(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_jobs_are_not_buffered_and_short_ones_for_100_ms() {
        let load = Load::default();
        assert_eq!(load.buffered_jobs(10), 0, "nothing is known yet");

        load.note(Duration::from_millis(10));
        assert_eq!(load.buffered_jobs(10), 100);

        for _ in 0..100 {
            load.note(Duration::from_mins(1));
        }
        assert_eq!(load.buffered_jobs(10), 0);
    }
}
