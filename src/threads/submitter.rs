//! submitter: stores the jobs that HTTP calls bring, many calls in one commit.
//!
//! 1. Waits for a call; takes all that wait with it, up to one batch of rows.
//! 2. Stores them in one transaction; calls with an idempotency key have one each.
//! 3. Answers each call. What waits meanwhile makes up the next batch, so the commit sets the pace, and no timer adds to it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::{Duty, ERROR_REPEAT, lock};
use crate::job::{Job, NewJob};
use crate::lifecycle::{Lifecycle, Outage, Submission, SubmitError, SubmitFailure, SubmitResult};
use crate::metrics::Metrics;
use crate::store::{BATCH_MAX, KeyTaken, StoreError};

/// How long a round waits for the first call.
const IDLE_WAIT: Duration = Duration::from_secs(1);

type Answer = Result<SubmitResult, SubmitError>;

struct Call {
    submission: Submission,
    answer: Sender<Answer>,
    /// When it is given up.
    until: Instant,
}

/// The way into the submitter; cheap to clone.
#[derive(Clone)]
pub struct SubmitQueue {
    calls: Sender<Call>,
    jobs_waiting: Arc<AtomicUsize>,
    jobs_waiting_max: usize,
    closed: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    // When it was last told that calls are declined.
    told: Arc<Mutex<Option<Instant>>>,
}

impl SubmitQueue {
    /// Stores jobs; returns once they are committed, or after `wait`.
    ///
    /// # Errors
    /// [`SubmitError`]. After [`SubmitError::TimedOut`] it is not known whether the jobs were stored.
    pub fn submit(&self, submission: Submission, wait: Duration) -> Answer {
        let count = submission.jobs.len();
        let answer = self.try_submit(submission, wait);
        if let Err(error @ (SubmitError::Overloaded | SubmitError::Unavailable | SubmitError::TimedOut)) = &answer {
            self.note_declined(count, error);
        }
        answer
    }

    fn note_declined(&self, count: usize, error: &SubmitError) {
        Metrics::add(&self.metrics.declined, count);
        // What an outage is told to be needs no other line.
        if *error == SubmitError::Unavailable {
            return;
        }
        let mut told = lock(&self.told);
        if told.is_none_or(|told| told.elapsed() >= ERROR_REPEAT) {
            *told = Some(Instant::now());
            log::warn!(error:% = error, waiting = self.jobs_waiting(); "calls are declined, for their commit does not come; clients are told to come back");
        }
    }

    fn try_submit(&self, submission: Submission, wait: Duration) -> Answer {
        if self.closed.load(Ordering::Acquire) {
            return Err(SubmitError::Stopping);
        }
        let count = submission.jobs.len();
        let waiting = self.jobs_waiting.fetch_add(count, Ordering::AcqRel);
        if waiting.saturating_add(count) > self.jobs_waiting_max {
            self.jobs_waiting.fetch_sub(count, Ordering::AcqRel);
            return Err(SubmitError::Overloaded);
        }
        let (answer, answers) = bounded(1);
        if self.calls.send(Call { submission, answer, until: Instant::now() + wait }).is_err() {
            return Err(SubmitError::Stopping);
        }
        match answers.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(SubmitError::TimedOut),
            Err(RecvTimeoutError::Disconnected) => Err(SubmitError::Stopping),
        }
    }

    /// Takes no more calls. Those that wait are answered.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Jobs that wait for their commit.
    pub fn jobs_waiting(&self) -> usize {
        self.jobs_waiting.load(Ordering::Relaxed)
    }
}

/// The duty.
pub struct Submitter {
    calls: Receiver<Call>,
    jobs_waiting: Arc<AtomicUsize>,
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    database: Arc<Outage>,
}

impl Submitter {
    /// A submitter, and the way into it. At most `jobs_waiting_max` jobs wait for their commit.
    pub fn new(
        lifecycle: Arc<Lifecycle>,
        metrics: Arc<Metrics>,
        database: Arc<Outage>,
        jobs_waiting_max: usize,
    ) -> (Submitter, SubmitQueue) {
        // Bounded by the count of jobs, not of calls: each call holds at least one.
        let (sender, calls) = unbounded();
        let jobs_waiting = Arc::new(AtomicUsize::new(0));
        let queue = SubmitQueue {
            calls: sender,
            jobs_waiting: Arc::clone(&jobs_waiting),
            jobs_waiting_max,
            closed: Arc::new(AtomicBool::new(false)),
            metrics: Arc::clone(&metrics),
            told: Arc::default(),
        };
        (Submitter { calls, jobs_waiting, lifecycle, metrics, database }, queue)
    }

    /// Takes all that waits behind `first`, up to one batch of rows. What was given up meanwhile is left out: its client was told to come
    /// back, and would find it stored twice.
    fn take_batch(&self, first: Call) -> Vec<Call> {
        let (mut calls, mut rows) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(call) = next {
            let count = call.submission.jobs.len();
            self.jobs_waiting.fetch_sub(count, Ordering::AcqRel);
            if Instant::now() < call.until {
                rows += count;
                calls.push(call);
            }
            next = if rows < BATCH_MAX {
                self.calls.try_recv().ok()
            } else {
                None
            };
        }
        calls
    }

    fn store(&self, calls: Vec<Call>) {
        let (once, together): (Vec<Call>, Vec<Call>) =
            calls.into_iter().partition(|call| call.submission.idempotency.is_some());
        self.store_together(&together);
        for call in &once {
            self.store_once(call);
        }
    }

    fn store_together(&self, calls: &[Call]) {
        if calls.is_empty() {
            return;
        }
        let jobs: Vec<&NewJob> = calls.iter().flat_map(|call| &call.submission.jobs).collect();
        match self.lifecycle.submit(&jobs) {
            Ok(results) => self.answer_each(calls, results),
            // One call's jobs may be what the database refuses; the others are not to suffer for it.
            Err(StoreError::Corrupt(_) | StoreError::BadRow(_) | StoreError::Conflict(_)) if calls.len() > 1 => {
                for call in calls {
                    self.store_together(std::slice::from_ref(call));
                }
            }
            Err(error) => {
                let error = self.submit_error(&error);
                for call in calls {
                    answer(call, Err(error.clone()));
                }
            }
        }
    }

    fn answer_each(&self, calls: &[Call], results: Vec<Result<Job, KeyTaken>>) {
        Metrics::add(&self.metrics.submitted, results.iter().filter(|result| result.is_ok()).count());
        let mut results = results.into_iter();
        for call in calls {
            let results = results.by_ref().take(call.submission.jobs.len()).collect();
            answer(call, Ok(SubmitResult { results, replayed: false }));
        }
    }

    fn store_once(&self, call: &Call) {
        let Some(idempotency) = &call.submission.idempotency else { return };
        let jobs: Vec<&NewJob> = call.submission.jobs.iter().collect();
        let result = self.lifecycle.submit_once(&jobs, idempotency).map_err(|failure| match failure {
            SubmitFailure::IdempotencyMismatch => SubmitError::IdempotencyMismatch,
            SubmitFailure::Store(error) => self.submit_error(&error),
        });
        if let Ok(SubmitResult { results, replayed: false }) = &result {
            Metrics::add(&self.metrics.submitted, results.iter().filter(|result| result.is_ok()).count());
        }
        answer(call, result);
    }

    fn submit_error(&self, error: &StoreError) -> SubmitError {
        match error {
            StoreError::Unavailable(_) => {
                self.database.begins(error);
                SubmitError::Unavailable
            }
            StoreError::Unconfirmed(_) => {
                self.database.begins(error);
                SubmitError::TimedOut
            }
            StoreError::TimedOut(_) => SubmitError::TimedOut,
            StoreError::Contended(_) => SubmitError::Unavailable,
            StoreError::Conflict(why) | StoreError::BadRow(why) | StoreError::Corrupt(why) => {
                log::error!(error:% = error; "the database refused submitted jobs");
                SubmitError::Rejected(why.clone())
            }
        }
    }
}

fn answer(call: &Call, answer: Answer) {
    // OK: a call that does not wait any more was told that its commit did not come in time
    let _ = call.answer.try_send(answer);
}

impl Duty for Submitter {
    const NAME: &'static str = "submitter";

    fn round(&mut self) -> Result<Duration, StoreError> {
        match self.calls.recv_timeout(IDLE_WAIT) {
            Ok(first) => {
                let batch = self.take_batch(first);
                self.store(batch);
                Ok(Duration::ZERO)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Duration::ZERO),
            // Nobody can call any more: the process is about to end.
            Err(RecvTimeoutError::Disconnected) => Ok(IDLE_WAIT),
        }
    }
}
