//! The short way of a job: where workers of this replica are idle and no job is ahead of it, it is stored already claimed, and goes straight
//! from its commit to a worker. One commit instead of two, and no way through Redis.
//!
//! Used by the submitter, and told by the feeder when the lanes are empty: it has looked, and this replica has pushed nothing since. Another
//! replica's push ends that as soon as the feeder has it, so a job may start before one that was stored elsewhere a moment earlier, but takes no
//! worker from it. A job stored like this is leased like any other, and found like any other if the replica dies.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use crate::job::{Job, NewJob, Start};
use crate::lifecycle::{Held, Lifecycle};
use crate::metrics::Metrics;
use crate::store::{KeyTaken, StoreError};
use crate::threads::feeder::Load;
use crate::threads::feeder::channels::ToWorkers;
use crate::threads::lock;

/// No look at the lanes counts.
const NEVER: u64 = u64::MAX;

/// Shared by submitter and feeder.
pub struct HandOff {
    lifecycle: Arc<Lifecycle>,
    held: Arc<Held>,
    metrics: Arc<Metrics>,
    load: Arc<Load>,
    // Locked while jobs are on their way; `None` once it is closed.
    to_workers: Mutex<Option<ToWorkers>>,
    // What `Lifecycle::pushes` was when the lanes were last found empty.
    empty_at: AtomicU64,
    is_unsure: AtomicBool,
    is_refused: AtomicBool,
}

impl HandOff {
    /// A way to the workers of `load`.
    pub fn new(
        lifecycle: Arc<Lifecycle>,
        held: Arc<Held>,
        metrics: Arc<Metrics>,
        load: Arc<Load>,
        to_workers: ToWorkers,
    ) -> HandOff {
        HandOff {
            lifecycle,
            held,
            metrics,
            load,
            to_workers: Mutex::new(Some(to_workers)),
            empty_at: AtomicU64::new(NEVER),
            is_unsure: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
        }
    }

    /// Notes that the lanes were empty after this many pushes of this replica.
    pub fn lanes_are_empty(&self, pushes: u64) {
        self.empty_at.store(pushes, Ordering::Release);
    }

    /// Whether that is what was noted last.
    pub fn was_empty_at(&self, pushes: u64) -> bool {
        self.empty_at.load(Ordering::Acquire) == pushes
    }

    /// Notes that the lanes hold something, or cannot be seen.
    pub fn lanes_are_not_empty(&self) {
        self.empty_at.store(NEVER, Ordering::Release);
    }

    /// Stores jobs and hands them to workers; `None` where they must go the long way.
    ///
    /// # Errors
    /// As [`Lifecycle::submit_claimed`].
    pub fn submit(&self, jobs: &[&NewJob]) -> Option<Result<Vec<Result<Job, KeyTaken>>, StoreError>> {
        if !self.is_free_for(jobs) {
            return None;
        }
        let to_workers = lock(&self.to_workers);
        let to_workers = to_workers.as_ref()?;
        let submitted = match self.lifecycle.submit_claimed(jobs) {
            Ok(submitted) => submitted,
            Err(error) => {
                // What it may have stored is claimed by a lease that nobody here knows.
                self.is_unsure.store(true, Ordering::Release);
                return Some(Err(error));
            }
        };
        Metrics::add(&self.metrics.claimed, submitted.claimed.len());
        self.held.add(&submitted.claimed, submitted.valid_until);
        self.load.take(submitted.claimed.len());
        to_workers.send(submitted.claimed.into_iter().map(|job| (job.lane, job)));
        Some(Ok(submitted.results))
    }

    /// Whether each of them has an idle worker, and nothing is ahead of them.
    fn is_free_for(&self, jobs: &[&NewJob]) -> bool {
        self.was_empty_at(self.lifecycle.pushes())
            && jobs.len() <= self.load.free()
            && jobs.iter().all(|job| job.start == Start::Now)
            && !self.lifecycle.is_cut()
            && !self.lifecycle.is_fed_by_table()
            && !self.is_refused.load(Ordering::Acquire)
    }

    /// Whether a lease may have been stored that this replica does not know.
    pub fn is_unsure(&self) -> bool {
        self.is_unsure.load(Ordering::Acquire)
    }

    /// Runs `work`, which gives back the leases that this replica does not know, while none is on its way.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn made_sure(&self, work: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let _none_on_its_way = lock(&self.to_workers);
        work()?;
        self.is_unsure.store(false, Ordering::Release);
        Ok(())
    }

    /// Hands on nothing more.
    pub fn refuse(&self) {
        self.is_refused.store(true, Ordering::Release);
    }

    /// Lets go of the way to the workers, after the submitter has ended. One that did not end in time keeps it.
    pub fn close(&self) {
        self.refuse();
        let mut to_workers: MutexGuard<'_, _> = match self.to_workers.try_lock() {
            Ok(to_workers) => to_workers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        *to_workers = None;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::threads::feeder::channels::channels;
    use crate::threads::testing::Bench;

    #[test]
    fn only_jobs_with_nothing_ahead_and_a_worker_each_go_the_short_way() {
        let bench = Bench::with_lanes();
        let (to_workers, from_feeder) = channels(2);
        let load = Arc::<Load>::default();
        let hand_off = HandOff::new(bench.lifecycle.clone(), Arc::default(), Arc::default(), load.clone(), to_workers);
        let job = NewJob::new("x", "{}");
        let later = NewJob { start: Start::After(Duration::from_secs(1)), ..job.clone() };
        let again = |job: &NewJob| NewJob { id: uuid::Uuid::new_v4(), ..job.clone() };
        (0..2).for_each(|_| load.give());

        assert!(hand_off.submit(&[&job]).is_none(), "nobody has looked at the lanes");
        hand_off.lanes_are_empty(bench.lifecycle.pushes());
        assert!(hand_off.submit(&[&job, &again(&job), &again(&job)]).is_none(), "there are two workers");
        assert!(hand_off.submit(&[&again(&later)]).is_none(), "it is not due");
        let stored = hand_off.submit(&[&job]).expect("handed on").expect("stored");
        assert_eq!(from_feeder.try_next().map(|job| job.id), Some(stored[0].as_ref().expect("no key").id));
        assert!(hand_off.held.known().len() == 1 && load.free() == 1);

        bench.lifecycle.submit(&[&again(&job)]).expect("stored");
        assert!(hand_off.submit(&[&again(&job)]).is_none(), "the one in the lane comes first");
        hand_off.lanes_are_empty(bench.lifecycle.pushes());
        assert!(hand_off.submit(&[&again(&job)]).is_some());
        hand_off.lanes_are_empty(bench.lifecycle.pushes());
        assert!(hand_off.submit(&[&again(&job)]).is_none(), "both workers have a job");
        load.give();
        hand_off.refuse();
        assert!(hand_off.submit(&[&again(&job)]).is_none(), "the replica stops");
    }
}
