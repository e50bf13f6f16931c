//! A service behind the API that stores nothing, and looks at what the API asks of it.

use std::io::Read;
use std::sync::Arc;

use trilane::api::{Answer, Api, ApiOptions, Backend, Body, Headers, Request, StoreState};
use trilane::clock::Timestamp;
use trilane::job::{DeadLetter, FailedAttempt, Job, RETRIES_MAX, Seq, TIMEOUT_MAX, UNIQUE_KEY_CHARS_MAX, is_type_name};
use trilane::lifecycle::{Submission, SubmitError, SubmitResult};
use trilane::store::{Cancelled, DeadLetterFilter, JobFilter, KeyTaken, Revived, StoreError};
use uuid::Uuid;

pub const PAYLOAD_BYTES_MAX: usize = 2_000;
pub const JOBS_MAX: usize = 8;

pub struct Nothing;

/// The API over [`Nothing`].
pub fn api() -> Api {
    let options = ApiOptions {
        tokens: Vec::new(),
        body_bytes_max: 100_000,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        jobs_per_call_max: JOBS_MAX,
        probes_only: false,
    };
    Api::new(Arc::new(Nothing), options)
}

/// What the API answers: its status, and its body, which is JSON.
pub fn answer(api: &Api, method: &str, target: &str, body: &[u8]) -> (u16, serde_json::Value) {
    let pairs = [("Host", "127.0.0.1"), ("Content-Type", "application/json")];
    let headers: Headers = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut reader = body;
    let request =
        Request { method, target, headers: &headers, body_length: Some(body.len() as u64), body: &mut reader };
    let Answer { status, body, .. } = api.answer(request);
    let text = match body {
        Body::Whole(text) => text,
        Body::Stream(mut stream) => {
            let mut text = Vec::new();
            stream.read_to_end(&mut text).expect("the backend answers");
            text
        }
    };
    let value = if text.is_empty() {
        serde_json::Value::Null
    } else {
        serde_json::from_slice(&text).unwrap_or_default()
    };
    (status, value)
}

fn stored(job: &trilane::job::NewJob) -> Job {
    assert!(is_type_name(&job.job_type));
    assert!(job.payload.len() <= PAYLOAD_BYTES_MAX);
    serde_json::from_str::<serde::de::IgnoredAny>(&job.payload).expect("a payload is JSON");
    assert!(job.max_retries <= RETRIES_MAX);
    assert!(job.timeout.is_none_or(|timeout| !timeout.is_zero() && timeout <= TIMEOUT_MAX));
    let fits = |key: &String| (1..=UNIQUE_KEY_CHARS_MAX).contains(&key.encode_utf16().count()) && !key.contains('\0');
    assert!(job.unique_key.as_ref().is_none_or(fits));
    Job {
        id: job.id,
        seq: Seq(1),
        job_type: job.job_type.clone(),
        payload: job.payload.clone(),
        priority: job.lane.to_string(),
        max_retries: job.max_retries.into(),
        retry_count: 0,
        status: "queued".into(),
        created_at: Timestamp::from_millis(0),
        updated_at: Timestamp::from_millis(0),
        run_at: Timestamp::from_millis(0),
        started_at: None,
        finished_at: None,
        timeout_ms: None,
        unique_key: job.unique_key.clone(),
        last_error: None,
    }
}

impl Backend for Nothing {
    fn submit(&self, submission: Submission) -> Result<SubmitResult, SubmitError> {
        assert!((1..=JOBS_MAX).contains(&submission.jobs.len()));
        let result = |job: &trilane::job::NewJob| match job.unique_key.as_deref() {
            Some("taken") => Err(KeyTaken { held_by: Uuid::nil() }),
            _ => Ok(stored(job)),
        };
        Ok(SubmitResult { results: submission.jobs.iter().map(result).collect(), replayed: false })
    }

    fn job(&self, _: Uuid) -> Result<Option<Job>, StoreError> {
        Ok(None)
    }

    fn failed_attempts(&self, _: Uuid) -> Result<Vec<FailedAttempt>, StoreError> {
        Ok(Vec::new())
    }

    fn jobs(&self, _: &JobFilter, after: Option<Seq>, limit: usize) -> Result<Vec<Job>, StoreError> {
        assert!(limit > 0);
        // One page of rows behind the start, and none behind a cursor.
        let count = if after.is_none() { limit.min(3) } else { 0 };
        let job = stored(&trilane::job::NewJob::new("x", "{}"));
        Ok((0..count).map(|index| Job { seq: Seq(index as i64 + 1), ..job.clone() }).collect())
    }

    fn dead_letters(&self, _: &DeadLetterFilter, _: Option<Seq>, _: usize) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(Vec::new())
    }

    fn cancel(&self, _: Uuid) -> Result<Cancelled, StoreError> {
        Ok(Cancelled::NotFound)
    }

    fn revive(&self, _: Uuid) -> Result<Revived, StoreError> {
        Ok(Revived::NotFound)
    }

    fn wake(&self) {}

    fn ready(&self) -> Vec<StoreState> {
        Vec::new()
    }

    fn metrics_text(&self) -> String {
        String::new()
    }
}
