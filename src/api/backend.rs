//! What the API needs of the service behind it: one method per operation, so that the real stores and a fake one fit alike.

use std::sync::Arc;

use uuid::Uuid;

use crate::job::{DeadLetter, FailedAttempt, Job, Seq};
use crate::lifecycle::{Submission, SubmitError, SubmitResult};
use crate::store::{Cancelled, DeadLetterFilter, JobFilter, Revived, StoreError};

/// The service behind the API. Called by many HTTP threads at once; every method may block, within a bound of its own.
pub trait Backend: Send + Sync {
    /// Stores the jobs; returns once they are committed.
    ///
    /// # Errors
    /// [`SubmitError`]. After [`SubmitError::TimedOut`] it is not known whether they were stored.
    fn submit(&self, submission: Submission) -> Result<SubmitResult, SubmitError>;

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
