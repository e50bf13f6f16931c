//! feeder: takes ids from the lanes, claims their jobs, and hands them to the workers.
//!
//! 1. Waits until there is room: for the idle workers, and about 100 ms of work besides, so that a replica with long jobs does not sit on
//!    jobs that another could run. A lower lane's jobs never take the room of a higher one.
//! 2. Takes ids from the highest lane that has any, and claims them in one statement. Ids that lose the claim are dropped.
//! 3. Where no lane brings jobs (Redis is away, or there is none and another process takes them) claims straight from the table, one
//!    gentle poll a second.
//! 4. Where all workers hang for good, gives back what was claimed for them.
//! 5. After a claim whose result it could not learn, gives back what it may have got.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

pub mod channels;

use self::channels::{BUFFER_MAX, FromFeeder, ToWorkers};
use super::Duty;
use super::scheduler::Ticker;
use super::submitter::hand_off::HandOff;
use crate::job::{Lane, Seq, Token};
use crate::lifecycle::{Held, Lifecycle, Popped};
use crate::metrics::Metrics;
use crate::store::StoreError;

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
    // Workers that wait for a job, less the jobs that are on their way to them or wait for one.
    free: AtomicI64,
    /// Workers there are, without those that hang for good.
    pub workers: AtomicUsize,
    /// Called when a worker becomes free.
    pub freed: crate::wake::Wake,
    average_nanos: AtomicU64,
}

impl Load {
    /// A worker waits for its next job.
    pub fn give(&self) {
        self.free.fetch_add(1, Ordering::Relaxed);
        self.freed.wake();
    }

    /// Jobs are about to be handed out, to idle workers or to wait for some.
    pub fn take(&self, jobs: usize) {
        self.free.fetch_sub(i64::try_from(jobs).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Jobs were taken back that no worker had taken yet.
    fn take_back(&self, jobs: usize) {
        self.free.fetch_add(i64::try_from(jobs).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Idle workers, where so many jobs wait for one.
    fn idle(&self, waiting: usize) -> usize {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        usize::try_from(self.free.load(Ordering::Relaxed).saturating_add(waiting)).unwrap_or(0)
    }

    /// Idle workers to which no job is on its way.
    pub fn free(&self) -> usize {
        self.idle(0)
    }

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

    /// Jobs that the workers do in [`BUFFERED_WORK`]; none before the first is done.
    fn buffered_jobs(&self) -> usize {
        let average = u128::from(self.average_nanos.load(Ordering::Relaxed));
        if average == 0 {
            return 0;
        }
        let workers = u128::try_from(self.workers.load(Ordering::Relaxed)).unwrap_or(u128::MAX);
        usize::try_from(BUFFERED_WORK.as_nanos().saturating_mul(workers) / average).unwrap_or(usize::MAX)
    }
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
    /// The way to the workers.
    pub to_workers: ToWorkers,
    /// Its other end, for what was claimed for workers that all hang by now.
    pub untaken: FromFeeder,
    /// What was taken out of it, until it is given back.
    pub to_give_back: Vec<(Seq, Token)>,
    /// How many the workers are, and how busy.
    pub load: Arc<Load>,
    /// The way past the lanes, which is open while they are empty; if there is one.
    pub hand_off: Option<Arc<HandOff>>,
    /// Whether a claim may have been stored without this replica learning of it.
    pub is_unsure: bool,
}

impl Feeder {
    /// Room for each lane: what the idle workers and the buffer take, less what waits in this lane and those above it.
    fn room(&self) -> [(Lane, usize); 3] {
        let idle = self.load.idle(self.to_workers.waiting_in_all());
        let room = idle.saturating_add(self.load.buffered_jobs());
        let mut waiting = 0;
        Lane::ALL.map(|lane| {
            let in_lane = self.to_workers.waiting(lane);
            waiting += in_lane;
            (lane, room.saturating_sub(waiting).min(BUFFER_MAX.saturating_sub(in_lane)))
        })
    }

    fn hand_out(&mut self, popped: Popped) {
        if popped.drained {
            self.ticker.refill_now();
        }
        let Some(valid_until) = popped.valid_until else { return };
        self.is_unsure |= popped.is_unsure;
        Metrics::add(&self.metrics.claimed, popped.jobs.len());
        self.held.add(&popped.jobs, valid_until);
        self.load.take(popped.jobs.len());
        self.to_workers.send(popped.jobs.into_iter().map(|job| (popped.lane, job)));
    }

    fn feed_from_table(&mut self, room: &[(Lane, usize)]) -> Result<Duration, StoreError> {
        let (mut taken, mut refused, mut is_unsure) = (0, None, false);
        for &(lane, room) in room {
            // What a higher lane has just taken waits for the same workers.
            let room = room.saturating_sub(taken);
            if room == 0 {
                continue;
            }
            self.is_unsure = true;
            let popped = match self.lifecycle.claim_from_table(lane, room) {
                // A row that cannot be claimed must not keep the lower lanes waiting as well.
                Err(error) if !error.is_transient() => {
                    refused = Some(error);
                    continue;
                }
                popped => popped?,
            };
            self.is_unsure = is_unsure;
            taken += popped.jobs.len();
            self.hand_out(popped);
            is_unsure = self.is_unsure;
        }
        match refused {
            Some(error) => Err(error),
            None => Ok(if taken > 0 { Duration::ZERO } else { TABLE_POLL }),
        }
    }

    fn release_unknown(&self) -> Result<(), StoreError> {
        let release = || self.lifecycle.release_unknown(&self.held.known());
        match &self.hand_off {
            Some(hand_off) => hand_off.made_sure(release),
            None => release(),
        }
    }

    /// As [`Lifecycle::claim_from_lanes`]. While it waited, jobs may have come to the workers by the short way.
    fn claim_from_lanes(&self, room: &[(Lane, usize)], wait: Duration) -> Result<Option<Popped>, StoreError> {
        self.lifecycle.claim_from_lanes(room, wait, |lane| self.room()[lane.index()].1)
    }

    /// Claims from the lanes. Where they have just been found empty, the way past them opens until something comes.
    fn claim(&self, room: &[(Lane, usize)], wait: Duration) -> Result<Option<Popped>, StoreError> {
        let Some(hand_off) = self.hand_off.as_ref().filter(|_| !wait.is_zero()) else {
            return self.claim_from_lanes(room, wait);
        };
        let pushes = self.lifecycle.pushes();
        if !hand_off.was_empty_at(pushes) {
            match self.claim_from_lanes(room, Duration::ZERO)? {
                Some(popped) if popped.valid_until.is_none() => hand_off.lanes_are_empty(pushes),
                popped => return Ok(popped),
            }
        }
        let popped = self.claim_from_lanes(room, wait);
        if !matches!(&popped, Ok(Some(Popped { valid_until: None, .. }))) {
            hand_off.lanes_are_not_empty();
        }
        popped
    }

    /// Gives back what was claimed for workers that all hang by now. It is kept until the table has taken it, for nobody else knows of it.
    fn give_back_untaken(&mut self) -> Result<(), StoreError> {
        let before = self.to_give_back.len();
        self.to_give_back.extend(std::iter::from_fn(|| self.untaken.try_next()).map(|job| (job.seq, job.token)));
        self.load.take_back(self.to_give_back.len() - before);
        if self.to_give_back.is_empty() {
            return Ok(());
        }
        let left = match self.lifecycle.release(&self.to_give_back) {
            Ok((_, left)) => left,
            Err(error) if error.is_transient() => return Err(error),
            // Trying again does not help: their leases run out.
            Err(error) => {
                self.to_give_back.drain(..).for_each(|(seq, token)| self.held.forsake(seq, token));
                return Err(error);
            }
        };
        for (seq, token) in self.to_give_back.drain(..) {
            if left.contains(&seq) {
                self.held.forsake(seq, token);
            } else {
                self.held.settle([(seq, token)]);
            }
        }
        Ok(())
    }
}

impl Duty for Feeder {
    const NAME: &'static str = "feeder";

    fn round(&mut self) -> Result<Duration, StoreError> {
        if self.is_unsure || self.hand_off.as_ref().is_some_and(|hand_off| hand_off.is_unsure()) {
            self.release_unknown()?;
            if !self.lifecycle.policy().lanes_are_shared {
                // Given back to the table, and not to the lanes of a process that may be about to end.
                self.ticker.tick_now();
            }
            self.is_unsure = false;
        }
        if self.load.workers.load(Ordering::Relaxed) == 0 || !self.to_give_back.is_empty() {
            self.give_back_untaken()?;
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
        let popped = self.claim(&room, wait)?;
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
    use super::super::testing::{Bench, REPLICA};
    use super::*;
    use crate::job::NewJob;

    #[test]
    fn long_jobs_are_not_buffered_and_short_ones_for_100_ms() {
        let load = Load::default();
        load.workers.store(10, Ordering::Relaxed);
        assert_eq!(load.buffered_jobs(), 0, "nothing is known yet");

        load.note(Duration::from_millis(10));
        assert_eq!(load.buffered_jobs(), 100);

        for _ in 0..100 {
            load.note(Duration::from_mins(1));
        }
        assert_eq!(load.buffered_jobs(), 0);
    }

    /// A feeder with `jobs` of each lane in its table.
    fn feeder(bench: &Bench, jobs: [usize; 3]) -> Feeder {
        let jobs = Lane::ALL.into_iter().zip(jobs).flat_map(|(lane, count)| {
            std::iter::repeat_with(move || NewJob { lane, ..NewJob::new("x", "{}") }).take(count)
        });
        let jobs: Vec<NewJob> = jobs.collect();
        let jobs: Vec<&NewJob> = jobs.iter().collect();
        bench.lifecycle.store().submit(&jobs, REPLICA, None).expect("stored");
        let (to_workers, untaken) = channels::channels(3);
        Feeder {
            ticker: Ticker::new(Arc::clone(&bench.lifecycle)),
            lifecycle: Arc::clone(&bench.lifecycle),
            held: Arc::default(),
            metrics: Arc::default(),
            to_workers,
            untaken,
            load: Arc::default(),
            hand_off: None,
            to_give_back: Vec::new(),
            is_unsure: false,
        }
    }

    #[test]
    fn what_a_higher_lane_takes_from_the_table_leaves_less_room_for_the_lower() {
        let bench = Bench::new();
        let mut feeder = feeder(&bench, [1, 4, 4]);
        feeder.load.workers.store(3, Ordering::Relaxed);
        (0..3).for_each(|_| feeder.load.give());

        feeder.round().expect("fed");

        assert_eq!(Lane::ALL.map(|lane| feeder.to_workers.waiting(lane)), [1, 2, 0]);
        // All workers hang.
        feeder.load.workers.store(0, Ordering::Relaxed);
        feeder.load.take(3);
        feeder.give_back_untaken().expect("given back");
        assert_eq!(Lane::ALL.map(|lane| feeder.to_workers.waiting(lane)), [0, 0, 0]);
        assert!(feeder.held.unsettled().is_empty());
    }

    #[test]
    fn what_cannot_be_given_back_while_the_database_is_away_is_given_back_later() {
        let bench = Bench::waiting(Duration::from_secs(3));
        let mut feeder = feeder(&bench, [2, 0, 0]);
        feeder.load.workers.store(2, Ordering::Relaxed);
        (0..2).for_each(|_| feeder.load.give());
        feeder.round().expect("fed");
        assert_eq!(feeder.to_workers.waiting(Lane::High), 2);
        feeder.load.workers.store(0, Ordering::Relaxed);
        feeder.load.take(2);

        bench.take_away();
        assert!(feeder.give_back_untaken().is_err());
        assert_eq!(feeder.held.unsettled().len(), 2);
        bench.put_back();
        // A worker has come back meanwhile.
        feeder.load.workers.store(1, Ordering::Relaxed);
        feeder.round().expect("given back");

        assert!(feeder.held.unsettled().is_empty());
        let again = bench.lifecycle.store().claim_next(Lane::High, 2, REPLICA, Duration::from_mins(1));
        assert_eq!(again.expect("claimed").jobs.len(), 2);
    }
}
