//! Taking back what a crash left: ids that got lost, timers of dead replicas, leases that ran out.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Lifecycle, REPLICA_DEAD_AFTER, lock};
use crate::job::Seq;
use crate::retry::Verdict;
use crate::store::{Expired, StoreError, Sweep};

/// An id may be on its way between a lane and its claim for this long before it counts as lost.
const LOST_GRACE: Duration = Duration::from_secs(10);
/// A search for what was lost just now begins so much later than that.
const LOOK_MARGIN: Duration = Duration::from_secs(1);
/// Pages that one round of the scheduler searches for lost ids; the rest follows in the next, so that dispatch is never held up for long.
const SWEPT_PAGES_MAX: usize = 10;
/// What a beat has seen is acted upon for so long: the database may have stood still since, and then no replica could renew its leases.
const BEAT_FRESH: Duration = Duration::from_secs(5);
/// A call of the keeper that ends so much later than it was due tells that the database, or this process, has stood still.
const LATE: Duration = Duration::from_secs(5);
/// After an outage the replicas that held on have reached the database again within this time.
const RECONNECT_MAX: Duration = Duration::from_secs(15);

impl Lifecycle {
    /// Begins to give back to dispatch what was dispatched and is in no lane any more, unless the last such search still goes on;
    /// [`Lifecycle::sweep_on`] does it. `deep` also looks at farther back, once at a start. Returns whether such a search has begun.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn recall_lost(&self, deep: bool) -> Result<bool, StoreError> {
        if self.lanes_are_away() {
            return self.recall_all().map(|()| false); // So that the feeders find it in the table.
        }
        let state = match self.lanes.state() {
            Ok(state) => state,
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(false);
            }
        };
        let is_free = !self.is_sweeping();
        if is_free {
            let heads = state.map(|lane| {
                if lane.len == 0 {
                    None
                } else {
                    Some(lane.head.unwrap_or(Seq(0)))
                }
            });
            *lock(&self.sweeps) = self.store.begin_sweep(heads, LOST_GRACE, deep)?;
        }
        self.sweep_on().map(|()| is_free)
    }

    /// Ids may have got lost just now: rows may have been marked as dispatched by a commit that was not confirmed, or a lane did not take an id
    /// back. Once it counts as lost, [`Lifecycle::next_look`] says so.
    pub fn look_again(&self) {
        let at = Instant::now() + LOST_GRACE + LOOK_MARGIN;
        let mut looks = lock(&self.looks);
        *looks = Some((looks.map_or(at, |(next, _)| next), at));
    }

    /// When to search for lost ids besides the ticks.
    pub fn next_look(&self) -> Option<Instant> {
        lock(&self.looks).map(|(next, _)| next)
    }

    /// To be called when the moment of [`Lifecycle::next_look`] has come, before the search: what was asked for since then has one of its own.
    pub fn take_look(&self, now: Instant) -> bool {
        let mut looks = lock(&self.looks);
        let is_due = looks.is_some_and(|(next, _)| next <= now);
        if is_due {
            *looks = looks.filter(|(_, last)| *last > now).map(|(_, last)| (last, last));
        }
        is_due
    }

    /// Passes a result of the store on. What was not confirmed may have been stored, with nobody to push its ids.
    pub(super) fn noting<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if matches!(result, Err(StoreError::Unconfirmed(_))) {
            self.look_again();
        }
        result
    }

    /// Whether [`Lifecycle::sweep_on`] has more to search.
    pub fn is_sweeping(&self) -> bool {
        !lock(&self.sweeps).is_empty()
    }

    /// Goes on with the search for lost ids, for some pages; between them pushes what has become due.
    ///
    /// # Errors
    /// As every call of the store; the next call goes on where this one failed.
    pub fn sweep_on(&self) -> Result<(), StoreError> {
        let mut sweeps = std::mem::take(&mut *lock(&self.sweeps));
        let result = self.sweep_pages(&mut sweeps, SWEPT_PAGES_MAX);
        sweeps.retain(|sweep| !sweep.is_done());
        *lock(&self.sweeps) = sweeps;
        result
    }

    fn sweep_pages(&self, sweeps: &mut [Sweep], mut pages: usize) -> Result<(), StoreError> {
        for sweep in sweeps {
            while !sweep.is_done() {
                if pages == 0 {
                    return self.store.swept(sweep);
                }
                pages -= 1;
                let lost = self.store.sweep(sweep)?;
                if lost > 0 {
                    log::debug!(jobs = lost, lane:% = sweep.lane(); "ids that were lost are dispatched again");
                }
                self.push_due_timers(Instant::now());
            }
            self.store.swept(sweep)?;
        }
        Ok(())
    }

    /// Gives back to dispatch all that was dispatched.
    pub(super) fn recall_all(&self) -> Result<(), StoreError> {
        lock(&self.sweeps).clear();
        let mut sweeps = self.store.begin_sweep([None; 3], Duration::ZERO, false)?;
        self.sweep_pages(&mut sweeps, usize::MAX)
    }

    /// Shows this replica as alive; `due` is when that was to be done. Returns whether the scheduler has something to see to.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn beat(&self, holds: usize, due: Instant) -> Result<bool, StoreError> {
        let beat = self.store.beat(self.policy.replica, &self.policy.replica_name, holds, REPLICA_DEAD_AFTER)?;
        self.was_due(due);
        *lock(&self.beaten) = Instant::now();
        self.leases_expired.store(beat.leases_expired, Ordering::Release);
        self.replicas_dead.fetch_or(beat.replicas_dead, Ordering::AcqRel);
        Ok(beat.leases_expired || beat.replicas_dead)
    }

    /// Whether the scheduler waits for a beat before it ends leases.
    pub fn wants_beat(&self) -> bool {
        let is_time = Instant::now() >= *lock(&self.no_expiry_before);
        is_time && self.leases_expired.load(Ordering::Acquire) && !self.is_beat_fresh()
    }

    fn is_beat_fresh(&self) -> bool {
        lock(&self.beaten).elapsed() < BEAT_FRESH
    }

    /// A call of the keeper has ended that was due at `due`. A late one counts as the end of an outage.
    pub fn was_due(&self, due: Instant) {
        if due.elapsed() > LATE {
            self.defer_expiry();
        }
    }

    /// The database is back after an outage: for the length of one lease no lease is ended, for their replicas could not renew them either.
    /// Outages that follow each other put it off for twice as long together, so that the jobs of a dead replica run in the end.
    pub fn defer_expiry(&self) {
        let (now, time) = (Instant::now(), self.policy.lease.max(RECONNECT_MAX));
        let (mut not_before, mut deferred) = (lock(&self.no_expiry_before), lock(&self.expiry_deferred));
        // What was put off and is over for so long was not followed by this.
        let since = deferred.filter(|_| now < *not_before + time).unwrap_or(now);
        *deferred = Some(since);
        *not_before = (now + time).min(since + 2 * time);
    }

    /// Takes over from dead replicas, where a beat has seen one (or this replica has just started): the ids in their timers, and (where each process has lanes of its own) in their lanes.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn take_over_from_dead(&self) -> Result<(), StoreError> {
        if !self.replicas_dead.load(Ordering::Acquire) {
            return Ok(());
        }
        if !self.policy.lanes_are_shared {
            self.recall_all()?;
        }
        let recalled = self.store.recall_with_replica(REPLICA_DEAD_AFTER, None, || {
            self.push_due_timers(Instant::now());
        })?;
        // Not one that died meanwhile, whose ids are still in its timers: a beat will see it.
        self.store.bury_replicas(&recalled.dead, REPLICA_DEAD_AFTER)?;
        self.replicas_dead.store(false, Ordering::Release);
        Ok(())
    }

    /// When [`Lifecycle::expire`] has something to do, as far as is known; the next beat may know more.
    pub fn next_expiry(&self) -> Option<Instant> {
        let is_known = self.leases_expired.load(Ordering::Acquire) && self.is_beat_fresh();
        is_known.then(|| *lock(&self.no_expiry_before))
    }

    /// Ends leases that ran out, where a beat has seen one (or this replica has just started); their jobs count one failed attempt, by `verdict`. What retries is dispatched by the next tick.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn expire(&self, verdict: impl Fn(&Expired) -> Verdict) -> Result<usize, StoreError> {
        let mut count = 0;
        if self.next_expiry().is_none_or(|at| Instant::now() < at) {
            return Ok(count);
        }
        *lock(&self.expiry_deferred) = None;
        loop {
            let expired = self.store.expire(self.policy.replica, &verdict)?;
            let Some(expired) = expired else {
                self.leases_expired.store(false, Ordering::Release);
                return Ok(count);
            };
            for job in &expired {
                log::warn!(job:% = job.id, "type" = job.job_type.as_str(), replica:% = job.replica; "worker lost: the lease of a job ran out");
            }
            count += expired.len();
        }
    }
}
