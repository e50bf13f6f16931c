//! From the table to the lanes: what is due, what plain SQL wrote, and what has waited too long.

use std::slice::from_ref;
use std::time::{Duration, Instant};

use super::{Lifecycle, in_ms};
use crate::fault::fault_point;
use crate::job::{Lane, Seq};
use crate::store::{BATCH_MAX, Due, OddRow, StoreError};

/// Ids of a lane that the starvation guard looks at together, and how often in one round.
const PROMOTED_BATCH: usize = 100;
const PROMOTED_BATCHES_MAX: usize = 10;

impl Lifecycle {
    /// Makes regular what plain SQL inserted, and gives up what cannot be run: some of it. Returns whether more may wait.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn regularise(&self) -> Result<bool, StoreError> {
        let found = self.store.regularise()?;
        self.bury_odd(&found.odd)?;
        Ok(found.is_more)
    }

    /// Gives up jobs that cannot be run. One that cannot be given up keeps no other from it.
    pub(super) fn bury_odd(&self, odd: &[OddRow]) -> Result<(), StoreError> {
        let mut result = Ok(());
        for odd in odd.chunks(BATCH_MAX) {
            match self.store.bury_odd(odd) {
                Err(error) if error.is_transient() => return Err(error),
                Err(_) if odd.len() > 1 => {
                    for row in odd {
                        match self.store.bury_odd(from_ref(row)) {
                            Err(error) if error.is_transient() => return Err(error),
                            Err(error) => result = Err(error),
                            Ok(()) => say_buried(row),
                        }
                    }
                }
                Err(error) => result = Err(error),
                Ok(()) => odd.iter().for_each(say_buried),
            }
        }
        result
    }

    /// Dispatches what is due within the next tick: pushes what is due now, keeps the rest in the timers. At most up to the lanes' buffer, and
    /// only as far ahead as the timers have room; what is missed by that is noted, and dispatched in time by another such round.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dispatch(&self) -> Result<(), StoreError> {
        if self.is_fed_by_table() {
            return Ok(()); // The feeders claim straight from it.
        }
        self.timers.forget_missed();
        let Some(lengths) = self.lengths() else { return Ok(()) };
        self.fill_each(Lane::ALL.map(|lane| (lane, lengths[lane.index()])))
    }

    /// Fills up lanes of these lengths, each though an error was met in another.
    fn fill_each(&self, lanes: impl IntoIterator<Item = (Lane, u64)>) -> Result<(), StoreError> {
        let mut result = Ok(());
        for (lane, length) in lanes {
            match self.fill(lane, length) {
                Err(error) if error.is_outage() => return Err(error),
                filled => result = result.and(filled),
            }
        }
        result
    }

    /// Fills up the lanes that were cut and have drained to half, from the table in its order. Asks the table for nothing else, so that it can
    /// be called often.
    ///
    /// Several replicas may fill one lane together: each takes batches of its own, and looks at the length after each. So the lane may pass its
    /// limit by a batch for each of them, and its order is off by as much.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn refill(&self) -> Result<(), StoreError> {
        if !self.is_cut() || self.is_fed_by_table() {
            return Ok(());
        }
        let Some(lengths) = self.lengths() else { return Ok(()) };
        let lanes = Lane::ALL.into_iter().map(|lane| (lane, lengths[lane.index()]));
        self.fill_each(lanes.filter(|&(lane, length)| self.cut.is_on(lane) && length <= self.half()))
    }

    /// Dispatches what is due in a lane that has `length` ids, up to its limit. Between batches pushes what has become due meanwhile.
    fn fill(&self, lane: Lane, length: u64) -> Result<(), StoreError> {
        let seen = self.cut.seen(lane);
        // An idle replica asks one plain question, and opens no transaction for it. Of a lane that is cut the answer is known.
        let mut is_more = self.cut.is_on(lane);
        let mut count = self.room(length).min(BATCH_MAX);
        while count > 0 {
            let reach = self.timers.reach(self.policy.tick);
            let found = self.noting(if is_more {
                self.store.dispatch_more(lane, self.policy.replica, reach, count)
            } else {
                self.store.dispatch(lane, self.policy.replica, reach, count)
            })?;
            if !found.due.is_empty() {
                fault_point!("tick.dispatched");
            }
            // First what is committed as dispatched. Odd rows that stay are met again, so that this lane waits for the next look.
            let length = self.push_or_keep(lane, &found.due);
            self.push_due_timers(Instant::now());
            self.bury_odd(&found.odd)?;
            if self.lanes_are_away() {
                return Ok(()); // What was to be pushed is back in the table; a tick follows when they answer again.
            }
            if found.seen < count {
                self.cut.end(lane, seen);
                return self.note_missed(lane, reach);
            }
            count = length.map_or(count, |length| self.room(length)).min(BATCH_MAX);
            is_more = true;
        }
        self.begin_cut(lane);
        Ok(())
    }

    /// Room in a lane of this length.
    fn room(&self, length: u64) -> usize {
        self.policy.lane_buffer_max.saturating_sub(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// If the last look at a lane did not reach up to the next tick: when the first job behind it is due.
    fn note_missed(&self, lane: Lane, reach: Duration) -> Result<(), StoreError> {
        if reach < self.policy.tick
            && let Some(ms) = self.store.next_due(lane)?
        {
            self.timers.miss(in_ms(ms));
        }
        Ok(())
    }

    /// Returns the length of the lane, if it was pushed to.
    fn push_or_keep(&self, lane: Lane, due: &[Due]) -> Option<u64> {
        let (now, later): (Vec<&Due>, Vec<&Due>) = due.iter().partition(|due| due.in_ms == 0);
        for due in later {
            self.timers.add(in_ms(due.in_ms), lane, due.seq);
        }
        if now.is_empty() {
            return None;
        }
        self.push_past_cut(&[(lane, now.iter().map(|due| due.seq).collect())])[lane.index()]
    }

    /// The starvation guard: moves the ids at the head of the lower lanes behind those of the high lane, where their jobs have been due for
    /// longer than `limit`, as far as the high lane has room. The job keeps its priority; only this turn is given to it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn promote_starved(&self, limit: Duration) -> Result<(), StoreError> {
        for lane in [Lane::Medium, Lane::Low] {
            for _ in 0..PROMOTED_BATCHES_MAX {
                let Some(lengths) = self.lengths() else { return Ok(()) };
                let room = self.room(lengths[Lane::High.index()]).min(PROMOTED_BATCH);
                if room == 0 || self.cut.is_on(Lane::High) || !self.promote_from(lane, room, limit)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Returns whether all that was looked at is promoted, or was out of date, so that more may follow.
    fn promote_from(&self, lane: Lane, count: usize, limit: Duration) -> Result<bool, StoreError> {
        let popped = match self.lanes.pop(&[(lane, count)], Duration::ZERO) {
            Ok(popped) => popped,
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(false);
            }
        };
        let Some((_, seqs)) = popped else { return Ok(false) };
        let give_back = |seqs: &[Seq]| {
            self.lanes.push_front(lane, seqs).unwrap_or_else(|error| self.note_lanes_error(&error));
        };
        let waiting = self.store.starved(&seqs, limit).inspect_err(|_| give_back(&seqs))?;
        // An id whose job does not wait any more is dropped, as its claim would drop it.
        let of = |is_starved| -> Vec<Seq> {
            seqs.iter().filter(|seq| waiting.get(seq) == Some(&is_starved)).copied().collect()
        };
        let (starved, fresh) = (of(true), of(false));
        if !fresh.is_empty() {
            give_back(&fresh);
        }
        if !starved.is_empty() {
            log::info!(jobs = starved.len(), lane:% = lane; "jobs that have waited too long are promoted");
            // Dispatched anew, so that they are not found before the head of the lane they have left, and taken for lost. If this fails, or at a
            // crash here, they are lost, and found.
            self.store.promote(&starved, self.policy.replica).inspect_err(|_| self.look_again())?;
            self.push(&[(Lane::High, starved)]);
        }
        Ok(fresh.is_empty())
    }
}

fn say_buried(row: &OddRow) {
    log::warn!(seq:% = row.seq, reason = row.reason.as_str(); "a job inserted by SQL cannot be run and goes to FailedJobs");
}
