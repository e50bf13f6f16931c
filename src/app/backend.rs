//! The service behind the HTTP API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use crate::api::{self, Backend, Cancelled, Revived, StoreState, StoredJob, Submission, SubmitError, Submitted};
use crate::job::{DeadLetter, FailedAttempt, Job, Lane, Seq, Status};
use crate::lifecycle::Lifecycle;
use crate::metrics::{Gauge, Metrics};
use crate::store::{self, StoreError};
use crate::threads::scheduler::Ticker;
use crate::threads::submitter::SubmitQueue;
use crate::threads::worker::Workers;

/// What the API calls.
pub(super) struct ServiceBackend {
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) submit_queue: SubmitQueue,
    pub(super) submit_wait: Duration,
    pub(super) ticker: Ticker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) workers: Option<Arc<Workers>>,
    pub(super) is_stopping: Arc<AtomicBool>,
}

impl Backend for ServiceBackend {
    fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        let idempotency = submission.idempotency.map(|i| store::Idempotency { key: i.key, request_hash: i.request_hash });
        let submission = crate::threads::submitter::Submission { jobs: submission.jobs, idempotency };
        use crate::threads::submitter::SubmitError as E;
        let result = self.submit_queue.submit(submission, self.submit_wait).map_err(|e| match e {
            E::Overloaded => SubmitError::Overloaded,
            E::Unavailable => SubmitError::Unavailable,
            E::TimedOut => SubmitError::TimedOut,
            E::Stopping => SubmitError::Stopping,
            E::IdempotencyMismatch => SubmitError::IdempotencyMismatch,
            E::Rejected(w) => SubmitError::Rejected(w),
        })?;
        let results = result.results.into_iter().map(|r| r.map(|job| StoredJob { job }).map_err(|k| api::KeyTaken { held_by: k.held_by })).collect();
        Ok(Submitted { results, replayed: result.replayed })
    }

    fn job(&self, id: Uuid) -> Result<Option<Job>, StoreError> {
        self.lifecycle.store().job(id)
    }

    fn failed_attempts(&self, id: Uuid) -> Result<Vec<FailedAttempt>, StoreError> {
        self.lifecycle.store().failed_attempts(id)
    }

    fn jobs(&self, filter: &api::JobFilter, after: Option<Seq>, limit: usize) -> Result<Vec<Job>, StoreError> {
        let f = filter.clone(); self.lifecycle.store().jobs(&store::JobFilter{status:f.status,job_type:f.job_type,lane:f.lane,since:f.since}, after, limit)
    }

    fn dead_letters(
        &self,
        filter: &api::DeadLetterFilter,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let f = filter.clone(); self.lifecycle.store().dead_letters(&store::DeadLetterFilter{job_type:f.job_type,lane:f.lane,since:f.since}, after, limit)
    }

    fn cancel(&self, id: Uuid) -> Result<Cancelled, StoreError> {
        Ok(match self.lifecycle.cancel(id)? {
            store::Cancelled::Done(job) => Cancelled::Done(job),
            store::Cancelled::NotFound => Cancelled::NotFound,
            store::Cancelled::TooLate(job) => Cancelled::TooLate(Status::parse(&job.status).unwrap_or(Status::Completed)),
        })
    }

    fn revive(&self, id: Uuid) -> Result<Revived, StoreError> {
        let Some(_) = Some(()) else { unreachable!() };
        Ok(match self.lifecycle.revive(id)? {
            store::Revived::Queued(released) => match self.lifecycle.store().jobs(&store::JobFilter::default(), Some(Seq(released.seq.0 - 1)), 1)?.pop() {
                Some(job) => Revived::Queued(job),
                None => Revived::NotFound,
            },
            store::Revived::NotFound | store::Revived::NotFailed => Revived::NotFound,
            store::Revived::KeyTaken(id) => Revived::KeyTaken(id),
        })
    }

    fn wake(&self) {
        self.ticker.tick_now();
    }

    fn ready(&self) -> Vec<StoreState> {
        let mut states = vec![StoreState {
            name: "database",
            required: true,
            problem: self.lifecycle.store().ping().err().map(|_| "the database does not answer".to_owned()),
        }];
        if self.lifecycle.policy().lanes_are_shared {
            let problem = self.lifecycle.ping_lanes().err().map(|error| error.to_string());
            states.push(StoreState { name: "redis", required: false, problem });
        }
        if self.is_stopping.load(Ordering::Acquire) {
            let problem = Some("the replica is being stopped".to_owned());
            states.push(StoreState { name: "replica", required: true, problem });
        }
        states
    }

    fn metrics_text(&self) -> String {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let gauge = |name: &str, help, value| Gauge { name: name.to_owned(), help, value };
        let mut gauges = vec![
            gauge("trilane_submissions_waiting", "Jobs that wait for their commit.", count(self.submit_queue.jobs_waiting())),
            gauge("trilane_timers", "Ids that wait in this process for their time.", count(self.lifecycle.timers().len())),
            gauge("trilane_redis_away", "1 while Redis is away.", u64::from(self.lifecycle.lanes_are_away())),
        ];
        if let Some(workers) = &self.workers {
            gauges.push(gauge("trilane_jobs_running", "Attempts under way.", count(workers.running())));
        }
        for (lane, length) in Lane::ALL.into_iter().zip(self.lifecycle.lane_lengths().into_iter().flatten()) {
            let name = format!("trilane_lane_length{{lane=\"{lane}\"}}");
            gauges.push(Gauge { name, help: "Ids that wait in a lane.", value: length });
        }
        self.metrics.render(&gauges)
    }
}
