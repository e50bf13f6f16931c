//! submitter: stores the jobs that HTTP calls bring, many calls in one commit.
//!
//! 1. Waits for a call; takes all that wait with it, up to one batch of rows.
//! 2. Stores them in one transaction; calls with an idempotency key have one each. Where that takes too long, the batch is cut in halves, and
//!    the next ones are smaller.
//! 3. Where workers are idle and nothing is ahead of the batch, stores it claimed, and hands it to them (`hand_off`).
//! 4. Answers each call. What waits meanwhile makes up the next batch, so the commit sets the pace, and no timer adds to it.

pub mod hand_off;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::{Duty, ERROR_REPEAT, lock};
use crate::job::{Job, NewJob};
use crate::lifecycle::{Lifecycle, Outage, Submission, SubmitError, SubmitFailure, SubmitResult};
use crate::metrics::Metrics;
use crate::store::{BATCH_MAX, KeyTaken, StoreError};
use hand_off::HandOff;

/// How long a round waits for the first call.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// A full batch that is stored as fast as this lets the next be twice as large, where they had become smaller.
const QUICK: Duration = Duration::from_millis(500);
/// One that takes longer does so after this time.
const SMALLER_FOR: Duration = Duration::from_mins(1);

type Answer = Result<SubmitResult, SubmitError>;

struct Call {
    submission: Submission,
    answer: oneshot::Sender<Answer>,
    /// When it is given up.
    until: Instant,
    waiting: Waiting,
}

impl Call {
    fn is_given_up(&self) -> bool {
        Instant::now() >= self.until
    }

    fn rows(&self) -> usize {
        self.submission.jobs.len()
    }

    /// It counts as waiting no more, so that its client finds room for the next.
    fn answer(self, answer: Answer) {
        drop(self.waiting);
        // OK: a call that does not wait any more was told that its commit did not come in time
        let _ = self.answer.send(answer);
    }
}

/// Jobs of a call that count as waiting for their commit until this is dropped.
struct Waiting {
    count: usize,
    all: Arc<AtomicUsize>,
}

impl Waiting {
    /// Unless more than `max` would wait.
    fn begin(count: usize, all: &Arc<AtomicUsize>, max: usize) -> Option<Waiting> {
        let before = all.fetch_add(count, Ordering::AcqRel);
        let waiting = Waiting { count, all: Arc::clone(all) };
        (before.saturating_add(count) <= max).then_some(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.count, Ordering::AcqRel);
    }
}

/// How many rows a batch takes: fewer once one took too long, until batches are quick again.
struct Pace {
    rows_max: usize,
    grows_at: Instant,
}

impl Pace {
    fn new() -> Pace {
        Pace { rows_max: BATCH_MAX, grows_at: Instant::now() }
    }

    /// A batch of `rows` took too long.
    fn slow(&mut self, rows: usize, now: Instant) {
        self.rows_max = self.rows_max.min(rows / 2).max(1);
        self.grows_at = now + SMALLER_FOR;
    }

    /// A batch of `rows` was stored in time. One that was not full says nothing of larger ones.
    fn stored(&mut self, rows: usize, took: Duration, now: Instant) {
        if rows >= self.rows_max && (took < QUICK || now >= self.grows_at) {
            self.rows_max = self.rows_max.saturating_mul(2).min(BATCH_MAX);
            self.grows_at = now + SMALLER_FOR;
        }
    }
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
        let Some(waiting) = Waiting::begin(count, &self.jobs_waiting, self.jobs_waiting_max) else {
            return Err(SubmitError::Overloaded);
        };
        let (answer, answers) = oneshot::channel();
        let until = Instant::now() + wait;
        if self.calls.send(Call { submission, answer, until, waiting }).is_err() {
            return Err(SubmitError::Stopping);
        }
        match answers.recv_deadline(until) {
            Ok(answer) => answer,
            Err(oneshot::RecvTimeoutError::Timeout) => Err(SubmitError::TimedOut),
            Err(oneshot::RecvTimeoutError::Disconnected) => Err(SubmitError::Stopping),
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
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    database: Arc<Outage>,
    hand_off: Option<Arc<HandOff>>,
    pace: Pace,
}

impl Submitter {
    /// A submitter, and the way into it. At most `jobs_waiting_max` jobs wait for their commit.
    pub fn new(
        lifecycle: Arc<Lifecycle>,
        metrics: Arc<Metrics>,
        database: Arc<Outage>,
        hand_off: Option<Arc<HandOff>>,
        jobs_waiting_max: usize,
    ) -> (Submitter, SubmitQueue) {
        // Bounded by the count of jobs, not of calls: each call holds at least one.
        let (sender, calls) = unbounded();
        let queue = SubmitQueue {
            calls: sender,
            jobs_waiting: Arc::default(),
            jobs_waiting_max,
            closed: Arc::new(AtomicBool::new(false)),
            metrics: Arc::clone(&metrics),
            told: Arc::default(),
        };
        (Submitter { calls, lifecycle, metrics, database, hand_off, pace: Pace::new() }, queue)
    }

    /// Takes all that waits behind `first`, up to one batch of rows.
    fn take_batch(&self, first: Call) -> Vec<Call> {
        let (mut calls, mut rows) = (Vec::new(), 0);
        let mut next = still_waits(first);
        loop {
            if let Some(call) = next {
                rows += call.rows();
                calls.push(call);
            }
            if rows >= self.pace.rows_max {
                return calls;
            }
            match self.calls.try_recv() {
                Ok(call) => next = still_waits(call),
                Err(_) => return calls,
            }
        }
    }

    fn store(&mut self, calls: Vec<Call>) {
        let (once, together): (Vec<Call>, Vec<Call>) =
            calls.into_iter().partition(|call| call.submission.idempotency.is_some());
        self.store_together(together);
        for call in once {
            self.store_once(call);
        }
    }

    fn store_together(&mut self, calls: Vec<Call>) {
        let mut calls: Vec<Call> = calls.into_iter().filter_map(still_waits).collect();
        if calls.is_empty() {
            return;
        }
        let jobs: Vec<&NewJob> = calls.iter().flat_map(|call| &call.submission.jobs).collect();
        let (rows, begun) = (jobs.len(), Instant::now());
        let handed_off = self.hand_off.as_ref().and_then(|hand_off| hand_off.submit(&jobs));
        match handed_off.unwrap_or_else(|| self.lifecycle.submit(&jobs)) {
            Ok(results) => {
                let now = Instant::now();
                if calls.iter().any(|call| now >= call.until) {
                    self.pace.slow(rows, now);
                } else {
                    self.pace.stored(rows, now.saturating_duration_since(begun), now);
                }
                self.answer_each(calls, results);
            }
            // One call's jobs may be what the database refuses; the others are not to suffer for it.
            Err(StoreError::Corrupt(_) | StoreError::BadRow(_) | StoreError::Conflict(_)) if calls.len() > 1 => {
                for call in calls {
                    self.store_together(vec![call]);
                }
            }
            Err(error) => {
                if matches!(error, StoreError::TimedOut(_)) {
                    self.pace.slow(rows, Instant::now());
                    if calls.len() > 1 {
                        let second = calls.split_off(calls.len() / 2);
                        self.store_together(calls);
                        return self.store_together(second);
                    }
                }
                let error = self.submit_error(&error);
                for call in calls {
                    call.answer(Err(error.clone()));
                }
            }
        }
    }

    fn answer_each(&self, calls: Vec<Call>, results: Vec<Result<Job, KeyTaken>>) {
        Metrics::add(&self.metrics.submitted, results.iter().filter(|result| result.is_ok()).count());
        let mut results = results.into_iter();
        for call in calls {
            let results = results.by_ref().take(call.rows()).collect();
            call.answer(Ok(SubmitResult { results, replayed: false }));
        }
    }

    fn store_once(&self, call: Call) {
        let Some(call) = still_waits(call) else { return };
        let Some(idempotency) = &call.submission.idempotency else { return };
        let jobs: Vec<&NewJob> = call.submission.jobs.iter().collect();
        let result = self.lifecycle.submit_once(&jobs, idempotency).map_err(|failure| match failure {
            SubmitFailure::IdempotencyMismatch => SubmitError::IdempotencyMismatch,
            SubmitFailure::Store(error) => self.submit_error(&error),
        });
        if let Ok(SubmitResult { results, replayed: false }) = &result {
            Metrics::add(&self.metrics.submitted, results.iter().filter(|result| result.is_ok()).count());
        }
        call.answer(result);
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

/// The call, unless it was given up meanwhile: its client was told to come back, and would find it stored twice.
fn still_waits(call: Call) -> Option<Call> {
    if call.is_given_up() {
        call.answer(Err(SubmitError::TimedOut));
        return None;
    }
    Some(call)
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

#[cfg(test)]
mod tests {
    use super::super::testing::Bench;
    use super::*;
    use crate::store::Idempotency;

    const SOON: Duration = Duration::from_secs(20);

    fn submitter(bench: &Bench) -> (Submitter, SubmitQueue) {
        Submitter::new(Arc::clone(&bench.lifecycle), Arc::default(), Arc::new(Outage::new("the database")), None, 10)
    }

    /// A call that waits in `queue`, and where its answer comes.
    fn call(queue: &SubmitQueue, key: Option<&str>, wait: Duration) -> (Call, oneshot::Receiver<Answer>) {
        let (answer, answers) = oneshot::channel();
        let waiting = Waiting::begin(1, &queue.jobs_waiting, queue.jobs_waiting_max).expect("there is room");
        let idempotency = key.map(|key| Idempotency { key: key.to_owned(), request_hash: [0; 32] });
        let submission = Submission { jobs: vec![NewJob::new("x", "{}")], idempotency };
        (Call { submission, answer, until: Instant::now() + wait, waiting }, answers)
    }

    fn stored(bench: &Bench, answers: &[oneshot::Receiver<Answer>]) -> usize {
        let ids = answers.iter().filter_map(|answers| answers.try_recv().expect("each is answered").ok());
        let ids: Vec<uuid::Uuid> = ids.flat_map(|result| result.results).filter_map(|job| Some(job.ok()?.id)).collect();
        assert_eq!(bench.lifecycle.store().jobs_by_id(&ids).expect("read").len(), ids.len());
        ids.len()
    }

    #[test]
    fn what_is_given_up_while_its_batch_is_being_stored_is_not_stored_and_counts_as_waiting_until_then() {
        let bench = Bench::new();
        let (mut submitter, queue) = submitter(&bench);
        let waits = [(None, SOON), (None, Duration::ZERO), (Some("a"), SOON), (Some("b"), Duration::ZERO)];
        let (calls, answers): (Vec<_>, Vec<_>) = waits.iter().map(|(key, wait)| call(&queue, *key, *wait)).unzip();
        assert_eq!(queue.jobs_waiting(), 4);

        // Past the look of `take_batch`, as if their time had run out behind it.
        submitter.store(calls);

        assert_eq!(queue.jobs_waiting(), 0);
        assert_eq!(stored(&bench, &answers), 2);
        assert_eq!(submitter.metrics.submitted.load(Ordering::Relaxed), 2, "nor was another");
    }

    #[test]
    fn a_call_counts_as_waiting_until_it_is_answered() {
        let bench = Bench::new();
        let (submitter, queue) = submitter(&bench);
        let (first, answers) = call(&queue, None, SOON);

        let batch = submitter.take_batch(first);
        assert_eq!(queue.jobs_waiting(), 1);
        for call in batch {
            call.answer(Err(SubmitError::Unavailable));
        }

        assert_eq!((queue.jobs_waiting(), answers.has_message()), (0, true));
        let full = (0..10).map(|_| call(&queue, None, SOON)).collect::<Vec<_>>();
        let refused = queue.submit(full[0].0.submission.clone(), SOON);
        assert_eq!(refused.expect_err("full"), SubmitError::Overloaded);
        assert_eq!(queue.jobs_waiting(), 10, "what was refused does not count");
    }

    #[test]
    fn batches_become_smaller_where_they_take_too_long_and_larger_where_they_are_quick() {
        let now = Instant::now();
        let mut pace = Pace::new();
        let slow = Duration::from_secs(3);

        pace.slow(BATCH_MAX, now);
        pace.slow(BATCH_MAX / 2, now);
        assert_eq!(pace.rows_max, BATCH_MAX / 4);
        pace.stored(BATCH_MAX / 4, slow, now);
        pace.stored(1, Duration::ZERO, now);
        assert_eq!(pace.rows_max, BATCH_MAX / 4, "remembered");
        pace.stored(BATCH_MAX / 4, slow, now + SMALLER_FOR);
        assert_eq!(pace.rows_max, BATCH_MAX / 2, "for a while");
        pace.stored(BATCH_MAX / 2, Duration::ZERO, now);
        pace.stored(BATCH_MAX, Duration::ZERO, now);
        assert_eq!(pace.rows_max, BATCH_MAX);
        pace.slow(1, now);
        assert_eq!(pace.rows_max, 1);
    }
}
