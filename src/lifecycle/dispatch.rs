//! From the table to the lanes: what is due, what plain SQL wrote, and what has waited too long.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Lifecycle, in_ms};
use crate::fault::fault_point;
use crate::job::{Lane, Seq};
use crate::store::{BATCH_MAX, Due, OddRow, StoreError};

/// Ids of a lane that the starvation guard looks at together, and how often in one round.
const PROMOTED_BATCH: usize = 100;
const PROMOTED_BATCHES_MAX: usize = 10;

impl Lifecycle {
    /// Makes regular what plain SQL inserted, and gives up what cannot be run.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn regularise(&self) -> Result<(), StoreError> {
        loop {
            let odd = self.store.regularise()?;
            self.bury_odd(&odd)?;
            if odd.len() < BATCH_MAX {
                return Ok(());
            }
        }
    }

    pub(super) fn bury_odd(&self, odd: &[OddRow]) -> Result<(), StoreError> {
        for row in odd {
            log::warn!(seq:% = row.seq, reason = row.reason.as_str(); "a job inserted by SQL cannot be run and goes to FailedJobs");
        }
        self.store.bury_odd(odd)
    }

    /// Dispatches what is due within the next tick: pushes what is due now, keeps the rest in the timers. At most up to the lanes' buffer;
    /// between batches it calls `pause`, which may push what has become due meanwhile.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dispatch(&self, mut pause: impl FnMut()) -> Result<(), StoreError> {
        if self.is_fed_by_table() {
            return Ok(()); // The feeders claim straight from it.
        }
        let lengths = match self.lanes.state() {
            Ok(state) => state.map(|lane| lane.len),
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(());
            }
        };
        for lane in Lane::ALL {
            let len = usize::try_from(lengths[lane.index()]).unwrap_or(usize::MAX);
            let mut room = self.policy.lane_buffer_max.saturating_sub(len);
            let mut is_cut = true;
            while room > 0 && !self.lanes_are_away() {
                let count = room.min(BATCH_MAX);
                let found = self.store.dispatch(lane, self.policy.replica, self.horizon(), count)?;
                if !found.due.is_empty() {
                    fault_point!("tick.dispatched");
                }
                self.bury_odd(&found.odd)?;
                self.push_or_keep(lane, &found.due);
                room -= found.due.len().min(room);
                pause();
                if found.seen < count {
                    is_cut = false;
                    break;
                }
            }
            self.cut[lane.index()].store(is_cut, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether more is due in a lane than was pushed.
    pub fn is_cut(&self) -> bool {
        self.cut.iter().any(|cut| cut.load(Ordering::Relaxed))
    }

    /// Whether a lane that was cut has become half empty, so that the scheduler has to tick.
    pub fn runs_dry(&self) -> bool {
        let half = u64::try_from(self.policy.lane_buffer_max / 2).unwrap_or(u64::MAX);
        let runs_dry = |lengths: [u64; 3]| {
            self.cut.iter().zip(lengths).any(|(cut, length)| cut.load(Ordering::Relaxed) && length <= half)
        };
        self.is_cut() && self.lane_lengths().is_some_and(runs_dry)
    }

    pub(super) fn push_or_keep(&self, lane: Lane, due: &[Due]) {
        let (now, later): (Vec<&Due>, Vec<&Due>) = due.iter().partition(|due| due.in_ms == 0);
        for due in later {
            self.timers.add(in_ms(due.in_ms), lane, due.seq);
        }
        if !now.is_empty() {
            self.push(&[(lane, now.iter().map(|due| due.seq).collect())]);
        }
    }

    /// The starvation guard: moves the ids at the head of the lower lanes behind those of the high lane, where their jobs have been due for
    /// longer than `limit`. The job keeps its priority; only this turn is given to it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn promote_starved(&self, limit: Duration) -> Result<(), StoreError> {
        for lane in [Lane::Medium, Lane::Low] {
            for _ in 0..PROMOTED_BATCHES_MAX {
                let popped = match self.lanes.pop(&[(lane, PROMOTED_BATCH)], Duration::ZERO) {
                    Ok(popped) => popped,
                    Err(error) => {
                        self.note_lanes_error(&error);
                        return Ok(());
                    }
                };
                let Some((_, seqs)) = popped else { break };
                // If this fails the ids are lost, as at a crash here; `recall_lost` finds them.
                let starved = self.store.starved(&seqs, limit)?;
                let (starved, fresh): (Vec<Seq>, Vec<Seq>) = seqs.into_iter().partition(|seq| starved.contains(seq));
                if !fresh.is_empty() {
                    self.lanes.push_front(lane, &fresh).unwrap_or_else(|error| self.note_lanes_error(&error));
                }
                if !starved.is_empty() {
                    log::info!(jobs = starved.len(), lane:% = lane; "jobs that have waited too long are promoted");
                    self.push(&[(Lane::High, starved)]);
                }
                if !fresh.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }
}
