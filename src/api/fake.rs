//! A backend in memory, for tests: stores what is submitted, and fails on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use super::*;
use crate::clock::Timestamp;
use crate::job::{DeadLetter, FailedAttempt, Job, NewJob, Seq, Start, Token};
use crate::lifecycle::{Submission, SubmitError, SubmitResult};
use crate::store::{Cancelled, DeadLetterFilter, Idempotency, JobFilter, KeyTaken, Revived, StoreError};

type Hook = Box<dyn Fn() + Send + Sync>;
type Results = Vec<Result<Job, KeyTaken>>;

/// See the module.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
    reads: AtomicUsize,
    woken: AtomicUsize,
}

/// What a [`Fake`] holds, and what it should do.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) jobs: Vec<Job>,
    pub(crate) dead_letters: Vec<DeadLetter>,
    pub(crate) attempts: Vec<FailedAttempt>,
    pub(crate) submissions: Vec<Submission>,
    pub(crate) submit_error: Option<SubmitError>,
    pub(crate) cancelled: Option<Cancelled>,
    pub(crate) revived: Option<Revived>,
    pub(crate) stores: Vec<StoreState>,
    /// How many reads go well before the database is away.
    pub(crate) reads_max: Option<usize>,
    /// Called in every submit, while nothing is locked.
    pub(crate) on_submit: Option<Arc<Hook>>,
    answers: HashMap<String, ([u8; 32], Results)>,
}

impl Fake {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn woken(&self) -> usize {
        self.woken.load(Ordering::Relaxed)
    }

    /// Adds `count` jobs of a type.
    pub(crate) fn fill(&self, count: usize, job_type: &str, payload: &str) {
        let mut state = self.state();
        for _ in 0..count {
            let job = row(&NewJob::new(job_type, payload), state.jobs.len());
            state.jobs.push(job);
        }
    }

    /// Adds a dead letter.
    pub(crate) fn bury(&self, job_type: &str) -> DeadLetter {
        let mut state = self.state();
        let letter = DeadLetter {
            id: Uuid::now_v7(),
            seq: Seq(i64::try_from(state.dead_letters.len()).expect("small") + 1),
            original_job_id: Uuid::now_v7(),
            job_type: job_type.into(),
            payload: "{}".into(),
            priority: "medium".into(),
            reason: "gave up after attempt 4: no".into(),
            failed_at: Timestamp::from_millis(0),
        };
        state.dead_letters.push(letter.clone());
        letter
    }

    /// The API over this backend, with small limits and no tokens.
    pub(crate) fn api(self: &Arc<Self>) -> Api {
        self.api_with(|_| {})
    }

    /// The same with other options.
    pub(crate) fn api_with(self: &Arc<Self>, change: impl FnOnce(&mut ApiOptions)) -> Api {
        let mut options = ApiOptions {
            tokens: Vec::new(),
            body_bytes_max: 4_000,
            payload_bytes_max: 1_000,
            jobs_per_call_max: 10,
            probes_only: false,
        };
        change(&mut options);
        Api::new(Arc::clone(self) as SharedBackend, options)
    }

    fn read(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let before = self.reads.fetch_add(1, Ordering::Relaxed);
        let state = self.state();
        if state.reads_max.is_some_and(|max| before >= max) {
            return Err(StoreError::Unavailable("10.0.0.7 refused".into()));
        }
        Ok(state)
    }
}

/// The row of a new job that was stored as number `index`.
fn row(new: &NewJob, index: usize) -> Job {
    let created_at = Timestamp::from_millis(1_795_444_321_007);
    let run_at = match new.start {
        Start::Now => created_at,
        Start::At(time) => time,
        Start::After(delay) => {
            Timestamp::from_millis(created_at.as_millis() + i64::try_from(delay.as_millis()).expect("small"))
        }
    };
    Job {
        id: new.id,
        seq: Seq(i64::try_from(index).expect("small") + 1),
        job_type: new.job_type.clone(),
        payload: new.payload.clone(),
        priority: new.lane.to_string(),
        max_retries: new.max_retries.into(),
        retry_count: 0,
        status: "queued".into(),
        created_at,
        updated_at: created_at,
        run_at,
        started_at: None,
        finished_at: None,
        timeout_ms: new.timeout.map(|timeout| i64::try_from(timeout.as_millis()).expect("small")),
        unique_key: new.unique_key.clone(),
        last_error: None,
    }
}

impl Backend for Fake {
    fn submit(&self, submission: Submission) -> Result<SubmitResult, SubmitError> {
        let hook = self.state().on_submit.clone();
        if let Some(hook) = hook {
            hook();
        }
        let mut state = self.state();
        state.submissions.push(submission.clone());
        if let Some(error) = &state.submit_error {
            return Err(error.clone());
        }
        if let Some(idempotency) = &submission.idempotency
            && let Some((request_hash, results)) = state.answers.get(&idempotency.key)
        {
            return if *request_hash == idempotency.request_hash {
                Ok(SubmitResult { results: results.clone(), replayed: true })
            } else {
                Err(SubmitError::IdempotencyMismatch)
            };
        }

        let mut results = Vec::new();
        for new in &submission.jobs {
            let holder = state.jobs.iter().find(|job| job.unique_key.is_some() && job.unique_key == new.unique_key);
            if let Some(holder) = holder {
                results.push(Err(KeyTaken { held_by: holder.id }));
                continue;
            }
            let job = row(new, state.jobs.len());
            state.jobs.push(job.clone());
            results.push(Ok(job));
        }
        if let Some(Idempotency { key, request_hash }) = submission.idempotency {
            state.answers.insert(key, (request_hash, results.clone()));
        }
        Ok(SubmitResult { results, replayed: false })
    }

    fn job(&self, id: Uuid) -> Result<Option<Job>, StoreError> {
        Ok(self.read()?.jobs.iter().find(|job| job.id == id).cloned())
    }

    fn failed_attempts(&self, _: Uuid) -> Result<Vec<FailedAttempt>, StoreError> {
        Ok(self.read()?.attempts.clone())
    }

    fn jobs(&self, filter: &JobFilter, after: Option<Seq>, limit: usize) -> Result<Vec<Job>, StoreError> {
        let fits = |job: &&Job| {
            filter.status.is_none_or(|status| status.as_str() == job.status)
                && filter.job_type.as_ref().is_none_or(|name| *name == job.job_type)
                && filter.lane.is_none_or(|lane| lane.as_str() == job.priority)
                && filter.since.is_none_or(|since| since <= job.created_at)
                && after.is_none_or(|after| after < job.seq)
        };
        Ok(self.read()?.jobs.iter().filter(fits).take(limit).cloned().collect())
    }

    fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let fits = |letter: &&DeadLetter| {
            filter.job_type.as_ref().is_none_or(|name| *name == letter.job_type)
                && filter.lane.is_none_or(|lane| lane.as_str() == letter.priority)
                && filter.since.is_none_or(|since| since <= letter.failed_at)
                && after.is_none_or(|after| after < letter.seq)
        };
        Ok(self.read()?.dead_letters.iter().filter(fits).take(limit).cloned().collect())
    }

    fn cancel(&self, _: Uuid) -> Result<Cancelled, StoreError> {
        Ok(self.read()?.cancelled.clone().unwrap_or(Cancelled::NotFound))
    }

    fn revive(&self, _: Uuid) -> Result<Revived, StoreError> {
        Ok(self.read()?.revived.unwrap_or(Revived::NotFound))
    }

    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }

    fn ready(&self) -> Vec<StoreState> {
        self.state().stores.clone()
    }

    fn metrics_text(&self) -> String {
        "trilane_up 1\n".into()
    }
}

/// A failed attempt.
pub(crate) fn attempt() -> FailedAttempt {
    FailedAttempt {
        attempt: 1,
        token: Token(7),
        started_at: None,
        finished_at: Timestamp::from_millis(0),
        error: "no".into(),
    }
}

/// An answer with its body read to the end.
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) text: String,
}

impl Told {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).expect("JSON")
    }
}

/// Asks `api`; a stream is read to its end, or to its error.
pub(crate) fn ask(api: &Api, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Told {
    let headers: Headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let body_length = Some(body.len() as u64);
    let mut body = body;
    let answer = api.answer(Request { method, target, headers: &headers, body_length, body: &mut body });
    let mut text = Vec::new();
    match answer.body {
        Body::Whole(whole) => text = whole,
        Body::Stream(mut stream) => {
            if stream.read_to_end(&mut text).is_err() {
                text.extend(b"BROKEN OFF");
            }
        }
    }
    Told { status: answer.status, headers: answer.headers, text: String::from_utf8(text).expect("UTF-8") }
}
