//! What the API needs of the service behind it: one method per operation, so that the real stores and a fake one fit alike.

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::clock::Timestamp;
use crate::job::{DeadLetter, FailedAttempt, Job, Lane, NewJob, Seq, Status};
use crate::store::StoreError;

/// The service behind the API. Called by many HTTP threads at once; every method may block, within a bound of its own.
pub trait Backend: Send + Sync {
    /// Stores the jobs; returns once they are committed.
    ///
    /// # Errors
    /// [`SubmitError`]. After [`SubmitError::TimedOut`] it is not known whether they were stored.
    fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError>;

    /// The job of that id.
    ///
    /// # Errors
    /// Those of the store.
    fn job(&self, id: Uuid) -> Result<Option<Job>, StoreError>;

    /// The failed attempts of a job, first one first.
    ///
    /// # Errors
    /// Those of the store.
    fn failed_attempts(&self, id: Uuid) -> Result<Vec<FailedAttempt>, StoreError>;

    /// Up to `limit` jobs behind `after`, oldest first. Fewer mean that there are no more.
    ///
    /// # Errors
    /// Those of the store.
    fn jobs(&self, filter: &JobFilter, after: Option<Seq>, limit: usize) -> Result<Vec<Job>, StoreError>;

    /// Up to `limit` dead letters behind `after`, oldest first. Fewer mean that there are no more.
    ///
    /// # Errors
    /// Those of the store.
    fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError>;

    /// Withdraws a job that is not done yet.
    ///
    /// # Errors
    /// Those of the store.
    fn cancel(&self, id: Uuid) -> Result<Cancelled, StoreError>;

    /// Queues the job of a dead letter again; `id` is the dead letter's own or the job's.
    ///
    /// # Errors
    /// Those of the store.
    fn revive(&self, id: Uuid) -> Result<Revived, StoreError>;

    /// Starts a round of the scheduler now; does not wait for it.
    fn wake(&self);

    /// Asks every store whether it answers.
    fn ready(&self) -> Vec<StoreState>;

    /// The metrics of this replica in the Prometheus text format, version 0.0.4.
    fn metrics_text(&self) -> String;
}

/// A backend that any number of owners share.
pub type SharedBackend = Arc<dyn Backend>;

/// Jobs to be stored together, and the key under which the answer is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// At least one, checked.
    pub jobs: Vec<NewJob>,
    /// From the `Idempotency-Key` header.
    pub idempotency: Option<Idempotency>,
}

/// What makes a repeated request known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// 1 to 200 visible ASCII characters, chosen by the client.
    pub key: String,
    /// SHA-256 of the request body: the same key with another body is a mistake of the client.
    pub request_hash: [u8; 32],
}

/// What became of a [`Submission`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// One for each job, in their order.
    pub results: Vec<Result<StoredJob, KeyTaken>>,
    /// Whether these are the results of an earlier call under the same idempotency key.
    pub replayed: bool,
}

/// A job that is stored, and will not be lost any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredJob {
    /// As its row shows it.
    pub job: Job,
}

/// A job was not stored, because a live one has its unique key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTaken {
    /// The live job.
    pub held_by: Uuid,
}

/// Why nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubmitError {
    /// Too many jobs wait for their commit already.
    Overloaded,
    /// The database cannot be used now.
    Unavailable,
    /// The commit did not come in time; it is not known whether it will.
    TimedOut,
    /// The replica is being stopped.
    Stopping,
    /// The idempotency key was used with another body.
    IdempotencyMismatch,
    /// The database refused the jobs; trying again does not help. For the log, not for the client.
    Rejected(String),
}

impl fmt::Display for SubmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SubmitError::Overloaded => f.write_str("too many jobs wait for their commit"),
            SubmitError::Unavailable => f.write_str("the database is not available"),
            SubmitError::TimedOut => f.write_str("the commit did not come in time"),
            SubmitError::Stopping => f.write_str("the replica is being stopped"),
            SubmitError::IdempotencyMismatch => f.write_str("the idempotency key was used with another body"),
            SubmitError::Rejected(why) => write!(f, "the database refused the jobs: {why}"),
        }
    }
}

/// What became of a cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one for each call, and never kept")]
pub enum Cancelled {
    /// It is cancelled now.
    Done(Job),
    /// There is no such job.
    NotFound,
    /// It had reached this final status before.
    TooLate(Status),
}

/// What became of a revive.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one for each call, and never kept")]
pub enum Revived {
    /// It is queued again, its retries counted from zero; the dead letter is gone.
    Queued(Job),
    /// There is no such dead letter.
    NotFound,
    /// Its unique key belongs to this live job now.
    KeyTaken(Uuid),
}

/// Which jobs a listing shows; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// In this status.
    pub status: Option<Status>,
    /// Of exactly this type.
    pub job_type: Option<String>,
    /// In this lane.
    pub lane: Option<Lane>,
    /// Created then or later.
    pub since: Option<Timestamp>,
}

/// Which dead letters a listing shows; the default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Of exactly this type.
    pub job_type: Option<String>,
    /// In this lane.
    pub lane: Option<Lane>,
    /// Failed then or later.
    pub since: Option<Timestamp>,
}

/// How one store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreState {
    /// `database` or `redis`.
    pub name: &'static str,
    /// Whether the replica cannot serve without it. The database is; Redis is not, for it is a hint.
    pub required: bool,
    /// What is wrong, without addresses or secrets; `None` if it answers.
    pub problem: Option<String>,
}
