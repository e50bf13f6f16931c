//! From the lanes to the workers and back: claims, outcomes, and what is given back.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Lifecycle, in_ms};
use crate::fault::fault_point;
use crate::job::{ClaimedJob, Lane, Seq, Token};
use crate::queue::{POP_IDS_MAX, QueueError};
use crate::retry::Verdict;
use crate::store::{Accepted, BATCH_MAX, Claim, OddRow, Outcome, Released, StoreError};

/// Jobs that were claimed together.
#[derive(Clone, Debug, Default)]
pub struct Popped {
    /// The lane they came from: their own, or the high one after the starvation guard.
    pub lane: Lane,
    /// In the order in which they are to run.
    pub jobs: Vec<ClaimedJob>,
    /// Until when this replica may count on the lease, by its own clock; `None` where nothing was claimed.
    pub valid_until: Option<Instant>,
    /// Whether the lane ran empty although more is due, so that the scheduler should refill it.
    pub drained: bool,
    /// Whether a lease may be left of which this replica does not know: that of rows that cannot be read.
    pub is_unsure: bool,
}

/// An outcome that was accepted.
type Decided = (Seq, Token);

/// Ids whose row another session held when they were to be claimed come back to their lane after this time.
const HELD_PAUSE_MS: u64 = 1_000;

impl Lifecycle {
    /// Takes ids from the lanes, up to the room of each, and claims their jobs. `Ok(None)`: Redis is away. What has no room any more when it
    /// comes goes back.
    ///
    /// Crash window "popped, not yet claimed": as if the id had never been pushed.
    ///
    /// # Errors
    /// As [`Store::claim`]; ids that were popped are given back to dispatch where the database still takes that.
    pub fn claim_from_lanes(
        &self,
        room: &[(Lane, usize)],
        wait: Duration,
        room_now: impl Fn(Lane) -> usize,
    ) -> Result<Option<Popped>, StoreError> {
        let popped = match self.lanes.pop(room, wait) {
            Ok(popped) => popped,
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(None);
            }
        };
        let Some((lane, mut seqs)) = popped else { return Ok(Some(Popped::default())) };
        fault_point!("claim.popped");
        let popped_count = seqs.len();
        let excess = seqs.split_off(seqs.len().min(room_now(lane)));
        self.put_back(lane, &excess);
        if seqs.is_empty() {
            return Ok(Some(Popped::default()));
        }
        let asked = room.iter().find(|(of, _)| *of == lane).map_or(0, |(_, room)| *room);
        let drained = popped_count < asked.min(POP_IDS_MAX) && self.cut.is_on(lane);
        let valid_until = Instant::now() + self.policy.lease;
        let claim = match self.store.claim(&seqs, self.policy.replica, self.policy.lease) {
            Ok(claim) => claim,
            // One of them cannot be claimed, and at the head of its lane it would keep all others from being.
            Err(error) if !error.is_transient() => {
                self.look_again();
                return Err(error);
            }
            Err(error) => {
                // Not lost, only late: the row says dispatched, the lane has it again.
                self.put_back(lane, &seqs);
                return Err(error);
            }
        };
        fault_point!("claim.claimed");
        if self.timers.reach(self.policy.tick) == self.policy.tick {
            claim.left.iter().for_each(|seq| self.timers.add(in_ms(HELD_PAUSE_MS), lane, *seq));
        } // Else they are late by up to a tick: the search for lost ids finds them.
        Ok(Some(self.popped(lane, claim, valid_until, drained)))
    }

    /// Puts ids that were popped and not claimed back where they came from.
    fn put_back(&self, lane: Lane, seqs: &[Seq]) {
        if seqs.is_empty() {
            return;
        }
        self.note_push();
        if let Err(error) = self.lanes.push_front(lane, seqs) {
            self.look_again();
            self.note_lanes_error(&error);
        }
    }

    fn popped(&self, lane: Lane, claim: Claim, valid_until: Instant, drained: bool) -> Popped {
        self.bury_unreadable(&claim.odd);
        let is_known = |token| claim.jobs.iter().any(|job| job.token == token);
        let is_unsure = claim.odd.iter().filter_map(|odd| odd.token).any(|token| !is_known(token));
        Popped { lane, jobs: claim.jobs, valid_until: Some(valid_until), drained, is_unsure }
    }

    /// Claims straight from the table, the lane's jobs that no lane has: the way while Redis is away.
    ///
    /// # Errors
    /// As [`Store::claim_next`].
    pub fn claim_from_table(&self, lane: Lane, count: usize) -> Result<Popped, StoreError> {
        let valid_until = Instant::now() + self.policy.lease;
        let claim = self.store.claim_next(lane, count, self.policy.replica, self.policy.lease)?;
        Ok(self.popped(lane, claim, valid_until, false))
    }

    /// As [`Lifecycle::bury_odd`]. Where that fails the jobs claimed with them are not to suffer: an odd row waits for the next look, one
    /// that was claimed for the end of its lease.
    fn bury_unreadable(&self, odd: &[OddRow]) {
        if let Err(error) = self.bury_odd(odd) {
            log::debug!(error:% = error; "rows that cannot be run could not be buried yet");
        }
    }

    /// Gives back jobs that this replica claimed without learning of it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release_unknown(&self, known: &[Token]) -> Result<(), StoreError> {
        let released = self.noting(self.store.release_unknown(self.policy.replica, known))?;
        self.push_front(&released);
        Ok(())
    }

    /// Gives claimed jobs back, their attempt not consumed; they run next, here or elsewhere. Returns how many, and those that stay as they are,
    /// for another session holds their row.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release(&self, jobs: &[(Seq, Token)]) -> Result<(usize, HashSet<Seq>), StoreError> {
        let (mut count, mut left) = (0, HashSet::new());
        for jobs in jobs.chunks(BATCH_MAX) {
            let (released, held) = self.noting(self.store.release(jobs, self.policy.replica))?;
            self.push_front(&released);
            count += released.len();
            left.extend(held);
        }
        Ok((count, left))
    }

    fn push_front(&self, released: &[Released]) {
        for lane in Lane::ALL {
            let mut seqs: Vec<Seq> = released.iter().filter(|job| job.lane == lane).map(|job| job.seq).collect();
            seqs.sort_unstable();
            if seqs.is_empty() {
                continue;
            }
            self.note_push();
            let pushed = if self.policy.lanes_are_shared {
                self.lanes.push_front(lane, &seqs)
            } else {
                Err(no_lanes())
            };
            if let Err(error) = pushed {
                if self.policy.lanes_are_shared {
                    self.note_lanes_error(&error);
                }
                match self.store.recall(&seqs) {
                    Ok(_) if self.policy.lanes_are_shared => self.left_in_table(lane),
                    Ok(_) => {} // Not for the lanes of a process that may be about to end.
                    Err(error) => {
                        self.look_again();
                        log::debug!(error:% = error; "released ids could not be recalled");
                    }
                }
            }
        }
    }

    /// Stores outcomes. Returns those that were accepted.
    ///
    /// Crash window "handler done, outcome not yet written": the lease runs out and the job runs again; the token refuses a late writer.
    ///
    /// # Errors
    /// As [`Store::finish`]; the call can be repeated.
    pub fn finish(&self, outcomes: &[Outcome]) -> Result<Vec<(Seq, Token)>, StoreError> {
        let horizon = self.retry_horizon();
        let accepted = self.noting(self.store.finish(outcomes, self.policy.replica, horizon))?;
        Ok(self.finished(outcomes, &accepted))
    }

    /// [`Lifecycle::finish`] of those outcomes whose row no other session holds; waits for no row. Returns the others as well, which are to be
    /// stored later.
    ///
    /// # Errors
    /// As [`Store::finish`]; the call can be repeated.
    pub fn finish_free(&self, outcomes: &[Outcome]) -> Result<(Vec<Decided>, HashSet<Seq>), StoreError> {
        let horizon = self.retry_horizon();
        let (accepted, held) = self.noting(self.store.finish_free(outcomes, self.policy.replica, horizon))?;
        Ok((self.finished(outcomes, &accepted), held))
    }

    /// Those of `outcomes` (up to one batch) that were stored by a commit that was not confirmed. They are done with; their repeat would be refused.
    ///
    /// # Errors
    /// As every call of the store; the call can be repeated.
    pub fn finished_unconfirmed(&self, outcomes: &[Outcome]) -> Result<Vec<Decided>, StoreError> {
        let accepted = self.store.outcomes_stored(outcomes, self.policy.replica)?;
        if !accepted.is_empty() {
            self.note_later(0); // A retry that was left in the table may be due by now.
        }
        Ok(self.finished(outcomes, &accepted))
    }

    pub(super) fn finished(&self, outcomes: &[Outcome], accepted: &[Accepted]) -> Vec<Decided> {
        fault_point!("finish.committed");
        let of = |outcome: &Outcome| (outcome.seq, outcome.token);
        let by_attempt: HashMap<Decided, &Outcome> = outcomes.iter().map(|outcome| (of(outcome), outcome)).collect();
        for accepted in accepted {
            match (accepted.due_in_ms, by_attempt.get(&(accepted.seq, accepted.token))) {
                (Some(ms), Some(outcome)) => self.timers.add(in_ms(ms), outcome.lane, accepted.seq),
                (None, Some(Outcome { verdict: Verdict::Retry { delay, .. }, .. })) if !self.is_fed_by_table() => {
                    self.note_later(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
                }
                _ => {}
            }
        }
        accepted.iter().map(|accepted| (accepted.seq, accepted.token)).collect()
    }
}

fn no_lanes() -> QueueError {
    QueueError::Unavailable("the lanes are not shared".into())
}
