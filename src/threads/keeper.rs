//! keeper: renews the leases of what this replica holds, and shows the replica as alive.
//!
//! 1. While it holds jobs: removes leases that ended, and renews the rest.
//! 2. While a job runs for longer than a second: asks each second whether it was cancelled or lost, and then tells it to stop.
//! 3. Every 20 s shows the replica as alive. If that finds leases that ran out or replicas that died, it wakes the scheduler.
//! 4. It alone says that the database is back after an outage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Duty;
use super::scheduler::Ticker;
use crate::job::Token;
use crate::lifecycle::{Held, Lifecycle, Outage};
use crate::store::{BATCH_MAX, StoreError};
use crate::wake::left_until;

/// How often the replica shows itself: three times within [`REPLICA_DEAD_AFTER`](crate::lifecycle::REPLICA_DEAD_AFTER), and seldom enough that an idle one is quiet.
const BEAT_EVERY: Duration = Duration::from_secs(20);
/// How often the database is tried while it is away.
const AWAY_BEAT: Duration = Duration::from_secs(1);
/// Renewals are at most this far apart, so that a lease that was lost is noticed soon.
const RENEW_EVERY_MAX: Duration = Duration::from_secs(5);
/// How often running jobs are looked up, and how long they run before they are: a cancelled job learns of it within twice this time. Where jobs are
/// shorter, or none runs, the database is not asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The duty.
pub struct Keeper {
    lifecycle: Arc<Lifecycle>,
    held: Arc<Held>,
    ticker: Ticker,
    database: Arc<Outage>,
    next_beat: Instant,
    next_renewal: Instant,
    next_look: Instant,
}

impl Keeper {
    /// A keeper of what `held` says.
    pub fn new(lifecycle: Arc<Lifecycle>, held: Arc<Held>, ticker: Ticker, database: Arc<Outage>) -> Keeper {
        let now = Instant::now();
        Keeper { lifecycle, held, ticker, database, next_beat: now, next_renewal: now, next_look: now }
    }

    /// A third of the lease: two renewals may fail before it runs out.
    fn renew_every(&self) -> Duration {
        (self.lifecycle.policy().lease / 3).min(RENEW_EVERY_MAX)
    }

    fn renew(&self) -> Result<(), StoreError> {
        let store = self.lifecycle.store();
        for ended in self.held.take_ended().chunks(BATCH_MAX) {
            store.end_leases(ended)?;
        }
        let tokens = self.held.tokens();
        for tokens in tokens.chunks(BATCH_MAX) {
            let valid_until = Instant::now() + self.lifecycle.policy().lease;
            let lost = store.renew(tokens, self.lifecycle.policy().lease)?;
            self.held.lose(&lost);
            let kept: Vec<Token> = tokens.iter().copied().filter(|token| !lost.contains(token)).collect();
            self.held.renewed(&kept, valid_until);
            if !lost.is_empty() {
                log::warn!(leases = lost.len(); "leases were lost to another replica; their jobs are told to stop");
            }
        }
        Ok(())
    }

    fn look_for_cancelled(&self) -> Result<(), StoreError> {
        for running in self.held.begun_before(LOOK_EVERY).chunks(BATCH_MAX) {
            self.held.stop(&self.lifecycle.store().not_held(running)?);
        }
        Ok(())
    }

    fn beat(&self) -> Result<(), StoreError> {
        if self.database.is_on() {
            // Before the beat, which tells the scheduler of leases that ran out meanwhile.
            self.lifecycle.defer_expiry();
        }
        let is_work = self.lifecycle.beat(self.held.unsettled().len(), self.next_beat)?;
        let was_away = self.database.ends();
        if was_away {
            // What was stored as it went, its answer lost, is too fresh for the tick now to be told from what is on its way.
            self.lifecycle.look_again();
        }
        if was_away || is_work {
            self.ticker.tick_now();
        }
        Ok(())
    }
}

impl Duty for Keeper {
    const NAME: &'static str = "keeper";

    fn round(&mut self) -> Result<Duration, StoreError> {
        let now = Instant::now();
        if now >= self.next_renewal {
            self.renew()?;
            self.lifecycle.was_due(self.next_renewal);
            self.next_renewal = now + self.renew_every();
        }
        if now >= self.next_look {
            self.look_for_cancelled()?;
            self.next_look = now + LOOK_EVERY;
        }
        if now >= self.next_beat || self.database.is_on() || self.lifecycle.wants_beat() {
            self.beat()?;
            self.next_beat = now + BEAT_EVERY;
        }
        let wait = left_until(self.next_beat.min(self.next_renewal).min(self.next_look));
        Ok(if self.database.is_on() {
            wait.min(AWAY_BEAT)
        } else {
            wait
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Bench, REPLICA};
    use super::*;
    use crate::job::{Lane, NewJob};

    #[test]
    fn a_job_that_is_cancelled_while_it_runs_learns_of_it_before_the_next_renewal() {
        let bench = Bench::new();
        let (store, held) = (bench.lifecycle.store(), Arc::new(Held::default()));
        let job = NewJob::new("x", "{}");
        store.submit(&[&job], REPLICA, None).expect("stored");
        let claimed = store.claim_next(Lane::Medium, 1, REPLICA, Duration::from_mins(1)).expect("claimed").jobs;
        held.add(&claimed, Instant::now() + Duration::from_mins(1));
        let ticker = Ticker::new(Arc::clone(&bench.lifecycle));
        let outage = Arc::new(Outage::new("the database"));
        let mut keeper = Keeper::new(Arc::clone(&bench.lifecycle), Arc::clone(&held), ticker, outage);
        let stop = held.begin(&claimed[0]).expect("it is held");
        keeper.round().expect("kept");
        let renewal = keeper.next_renewal;

        store.cancel(job.id).expect("cancelled");
        while !stop.is_set() && Instant::now() < renewal {
            let wait = keeper.round().expect("kept");
            std::thread::sleep(wait); // OK: as its thread does
        }

        assert!(stop.is_set() && keeper.next_renewal == renewal);
    }
}
