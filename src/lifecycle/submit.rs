//! From a call to the table: storing jobs, and handing on those that are due.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Lifecycle, in_ms};
use crate::fault::fault_point;
use crate::job::{ClaimedJob, Job, Lane, NewJob, Seq, Status};
use crate::store::{Horizon, Idempotency, KeyTaken, StoreError, Stored, StoredClaimed, Submitted};

/// Jobs to be stored together, and the key under which the answer is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// At least one, checked.
    pub jobs: Vec<NewJob>,
    /// From the `Idempotency-Key` header.
    pub idempotency: Option<Idempotency>,
}

/// Why nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many jobs wait for their commit already.
    #[error("too many jobs wait for their commit")]
    Overloaded,
    /// The database cannot be used now.
    #[error("the database is not available")]
    Unavailable,
    /// The commit did not come in time; it is not known whether it will.
    #[error("the commit did not come in time")]
    TimedOut,
    /// The replica is being stopped.
    #[error("the replica is being stopped")]
    Stopping,
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The database refused the jobs; trying again does not help. For the log, not for the client.
    #[error("the database refused the jobs: {0}")]
    Rejected(String),
}

/// What one submission became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmitResult {
    /// One for each job, in their order.
    pub results: Vec<Result<Job, KeyTaken>>,
    /// Whether an earlier call with the same idempotency key stored them.
    pub replayed: bool,
}

/// Jobs that were stored, those of them that this replica runs itself, and how long it may count on them.
#[derive(Debug)]
pub struct SubmittedClaimed {
    /// One for each job, in their order.
    pub results: Vec<Result<Job, KeyTaken>>,
    /// Under one lease.
    pub claimed: Vec<ClaimedJob>,
    /// By this replica's own clock.
    pub valid_until: Instant,
}

/// How submitting failed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitFailure {
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The store's error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lifecycle {
    /// Stores jobs and hands their ids on. When it returns, the jobs are committed.
    ///
    /// Crash window "after INSERT commit, before the push": rows look dispatched, ids are in no lane; [`Lifecycle::recall_lost`] finds them.
    ///
    /// # Errors
    /// As [`Store::submit`].
    pub fn submit(&self, jobs: &[&NewJob]) -> Result<Vec<Result<Job, KeyTaken>>, StoreError> {
        let horizon = self.horizon();
        let results = self.noting(self.store.submit(jobs, self.policy.replica, horizon))?;
        fault_point!("submit.committed");
        Ok(self.hand_on(jobs, results, horizon))
    }

    /// [`Lifecycle::submit`] of jobs that are due now, claimed in the same commit by this replica, which is to run them at once.
    ///
    /// Crash window "after the commit, before a worker has them": as after any claim, the lease runs out.
    ///
    /// # Errors
    /// As [`Store::submit_claimed`]. The claim may have been stored all the same, as after [`Store::claim`].
    pub fn submit_claimed(&self, jobs: &[&NewJob]) -> Result<SubmittedClaimed, StoreError> {
        let valid_until = Instant::now() + self.policy.lease;
        let stored = self.noting(self.store.submit_claimed(jobs, self.policy.replica, self.policy.lease))?;
        fault_point!("submit_claimed.committed");
        let mut claimed = Vec::with_capacity(jobs.len());
        let result = |(job, result): (&&NewJob, Result<StoredClaimed, KeyTaken>)| {
            result.map(|(stored, claim)| {
                claimed.push(claim);
                stored_job(job, &stored)
            })
        };
        let results = jobs.iter().zip(stored).map(result).collect();
        Ok(SubmittedClaimed { results, claimed, valid_until })
    }

    /// [`Lifecycle::submit`] for a call with an idempotency key.
    ///
    /// # Errors
    /// [`SubmitFailure::IdempotencyMismatch`], or as [`Store::submit_once`].
    pub fn submit_once(&self, jobs: &[&NewJob], idempotency: &Idempotency) -> Result<SubmitResult, SubmitFailure> {
        let horizon = self.horizon();
        match self.noting(self.store.submit_once(jobs, idempotency, self.policy.replica, horizon))? {
            Submitted::Now(results) => {
                fault_point!("submit_once.committed");
                Ok(SubmitResult { results: self.hand_on(jobs, results, horizon), replayed: false })
            }
            Submitted::Before(results) => Ok(SubmitResult { results: self.as_they_are_now(results)?, replayed: true }),
            Submitted::Mismatch => Err(SubmitFailure::IdempotencyMismatch),
        }
    }

    /// How far ahead a job that is stored now counts as dispatched by this replica: not at all where no lane would take it, or its lane is
    /// cut; then it waits in the table for its turn.
    pub(super) fn horizon(&self) -> Horizon {
        if self.is_fed_by_table() {
            return Horizon::default();
        }
        let reach = Some(self.timers.reach(self.policy.tick));
        Horizon(Lane::ALL.map(|lane| reach.filter(|_| !self.cut.is_on(lane))))
    }

    /// How far ahead a retry counts as dispatched by this replica. Where its lane is cut, it is given back when it is due.
    pub(super) fn retry_horizon(&self) -> Option<Duration> {
        (!self.is_fed_by_table()).then(|| self.timers.reach(self.policy.tick))
    }

    /// A job stays in the table that is due in `ms`: if that is before the next tick, it is dispatched in time all the same.
    pub(super) fn note_later(&self, ms: u64) {
        if Duration::from_millis(ms) <= self.policy.tick {
            self.timers.miss(in_ms(ms));
        }
    }

    pub(super) fn hand_on(
        &self,
        jobs: &[&NewJob],
        results: Vec<Result<Stored, KeyTaken>>,
        horizon: Horizon,
    ) -> Vec<Result<Job, KeyTaken>> {
        let mut now: Vec<(Lane, Vec<Seq>)> = Lane::ALL.map(|lane| (lane, Vec::new())).into();
        for (job, result) in jobs.iter().zip(&results) {
            match result {
                Ok(Stored { seq, due_in_ms: Some(0), .. }) => now[job.lane.index()].1.push(*seq),
                Ok(Stored { seq, due_in_ms: Some(ms), .. }) => self.timers.add(in_ms(*ms), job.lane, *seq),
                Ok(Stored { due_in_ms: None, .. }) if horizon.of(job.lane).is_none() => self.left_in_table(job.lane),
                Ok(Stored { due_in_ms: None, created_at, run_at, .. }) => {
                    self.note_later(run_at.as_millis().abs_diff(created_at.as_millis()));
                }
                Err(_) => {}
            }
        }
        now.retain(|(_, seqs)| !seqs.is_empty());
        self.push(&now);
        jobs.iter().zip(results).map(|(job, result)| result.map(|stored| stored_job(job, &stored))).collect()
    }

    pub(super) fn as_they_are_now(
        &self,
        results: Vec<Result<Uuid, KeyTaken>>,
    ) -> Result<Vec<Result<Job, KeyTaken>>, StoreError> {
        let ids: Vec<Uuid> = results.iter().filter_map(|result| result.ok()).collect();
        let mut jobs: HashMap<Uuid, Job> = self.store.jobs_by_id(&ids)?.into_iter().map(|job| (job.id, job)).collect();
        let results = results.into_iter().filter_map(|result| match result {
            // A job that was pruned since is left out: its call was long ago.
            Ok(id) => jobs.remove(&id).map(Ok),
            Err(taken) => Some(Err(taken)),
        });
        Ok(results.collect())
    }
}

/// The row that a submitted job became.
fn stored_job(job: &NewJob, stored: &Stored) -> Job {
    Job {
        id: job.id,
        seq: stored.seq,
        job_type: job.job_type.clone(),
        payload: job.payload.clone(),
        priority: job.lane.to_string(),
        max_retries: i64::from(job.max_retries),
        retry_count: 0,
        status: Status::Queued.to_string(),
        created_at: stored.created_at,
        updated_at: stored.created_at,
        run_at: stored.run_at,
        started_at: None,
        finished_at: None,
        timeout_ms: job.timeout.and_then(|timeout| i64::try_from(timeout.as_millis()).ok()),
        unique_key: job.unique_key.clone(),
        last_error: None,
    }
}
