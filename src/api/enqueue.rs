//! `POST /enqueue`: reads the body within its bounds, submits the jobs that are right, names those that are not.

use std::io::{ErrorKind, Read};

use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::ApiOptions;
use super::backend::Backend;
use super::job_json::{self, Node};
use super::message::{Answer, Headers, Request};
use super::problem::{Kind, Problem};
use crate::job::{Job, NewJob};
use crate::lifecycle::{Submission, SubmitError, SubmitResult};
use crate::store::Idempotency;

/// The longest `Idempotency-Key`, in characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 200;
/// When to come back after 429, in seconds: the submitter works off a full queue in about that.
const OVERLOADED_RETRY_SECONDS: u32 = 1;
/// When to come back after 503, in seconds.
const UNAVAILABLE_RETRY_SECONDS: u32 = 5;

/// What became of each job of the call.
#[derive(Serialize)]
struct Outcome {
    success: Vec<Job>,
    failed: Vec<Failed>,
}

/// A job that was not stored.
#[derive(Serialize)]
struct Failed {
    index: usize,
    #[serde(rename = "type")]
    job_type: Option<String>,
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    existing_id: Option<Uuid>,
}

/// Answers `POST /enqueue`.
pub(super) fn enqueue(
    backend: &dyn Backend,
    options: &ApiOptions,
    request: &mut Request<'_>,
) -> Result<Answer, Problem> {
    let idempotency_key = idempotency_key(request.headers)?;
    let body = read_body(request, options.body_bytes_max)?;
    let text = json_text(&body)?;
    let nodes = nodes(text, options.jobs_per_call_max)?;

    let mut failed = Vec::new();
    let mut jobs = Vec::new();
    let mut indexes = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        match check(node, options.payload_bytes_max) {
            Ok(job) => {
                jobs.push(job);
                indexes.push(index);
            }
            Err(refused) => {
                let (job_type, error) = (refused.job_type, refused.error);
                failed.push(Failed { index, job_type, error, existing_id: None });
            }
        }
    }
    if jobs.is_empty() {
        return Ok(answer(&Outcome { success: Vec::new(), failed }, false));
    }

    let types: Vec<String> = jobs.iter().map(|job| job.job_type.clone()).collect();
    let request_hash = Sha256::digest(&body).into();
    let idempotency = idempotency_key.map(|key| Idempotency { key, request_hash });
    let submitted = backend.submit(Submission { jobs, idempotency }).map_err(refusal)?;
    let replayed = submitted.replayed;
    let outcome = outcome(submitted, &indexes, &types, failed)?;
    Ok(answer(&outcome, replayed))
}

fn idempotency_key(headers: &Headers) -> Result<Option<String>, Problem> {
    let mut keys = headers.all("Idempotency-Key");
    let Some(key) = keys.next() else { return Ok(None) };
    let fits = (1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if fits && keys.next().is_none() {
        Ok(Some(key.to_owned()))
    } else {
        let detail = format!(
            "the header Idempotency-Key must be given once, with 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters"
        );
        Err(Problem::new(Kind::BadRequest, detail))
    }
}

/// Reads the whole body, one byte more than is allowed at most.
fn read_body(request: &mut Request<'_>, bytes_max: usize) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        let detail = format!("the body may have {bytes_max} bytes; send the jobs in several calls");
        Problem::new(Kind::TooLarge, detail)
    };
    let bytes_max_u64 = bytes_max as u64;
    if request.body_length.is_some_and(|length| length > bytes_max_u64) {
        return Err(too_large());
    }

    let mut body = Vec::new();
    match request.body.take(bytes_max_u64 + 1).read_to_end(&mut body) {
        Ok(_) if body.len() > bytes_max => Err(too_large()),
        Ok(_) if request.body_length.is_some_and(|length| length > body.len() as u64) => {
            Err(Problem::new(Kind::BadRequest, "the body ended before its Content-Length"))
        }
        Ok(_) => Ok(body),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Err(Problem::new(Kind::RequestTimeout, "the body did not come in time; send the request again"))
        }
        Err(error) => Err(Problem::new(Kind::BadRequest, format!("the body cannot be read: {error}"))),
    }
}

/// The body as text, without the byte order mark that some Windows programs put before it.
fn json_text(body: &[u8]) -> Result<&str, Problem> {
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let before = String::from_utf8_lossy(&body[..error.valid_up_to()]);
            let line = 1 + before.matches('\n').count();
            let column = 1 + before.chars().rev().take_while(|character| *character != '\n').count();
            let detail = format!("the body is not UTF-8: wrong byte at line {line} column {column}");
            Err(Problem::new(Kind::MalformedJson, detail).with("line", line).with("column", column))
        }
    }
}

/// The jobs of a body, in one array or alone.
fn nodes(text: &str, jobs_max: usize) -> Result<Vec<Node<'_>>, Problem> {
    let node = job_json::read(text, jobs_max).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Problem::new(Kind::MalformedJson, format!("the body is not valid JSON: {error}"))
            .with("line", line)
            .with("column", column)
    })?;
    match node {
        Node::Many(_, 0) => Err(Problem::new(Kind::NoValidJob, "the array is empty; send at least one job")),
        Node::Many(_, count) if count > jobs_max => Err(Problem::new(
            Kind::TooLarge,
            format!("the array has {count} jobs, at most {jobs_max} are allowed in one call; send them in several"),
        )),
        Node::Many(nodes, _) => Ok(nodes),
        Node::Job(_) => Ok(vec![node]),
        Node::Other(what) => Err(Problem::new(
            Kind::NoValidJob,
            format!("the body must be an array of jobs, or one job: a JSON object with at least \"type\"; got {what}"),
        )),
    }
}

fn check(node: &Node<'_>, payload_bytes_max: usize) -> Result<NewJob, job_json::Refused> {
    let what = match node {
        Node::Job(fields) => return fields.check(payload_bytes_max),
        Node::Many(..) => "an array",
        Node::Other(what) => what,
    };
    let error = format!("a job must be a JSON object with at least \"type\", got {what}");
    Err(job_json::Refused { job_type: None, error })
}

/// Why nothing was stored, for the client.
fn refusal(error: SubmitError) -> Problem {
    match error {
        SubmitError::Overloaded => {
            Problem::new(Kind::Overloaded, "too many jobs wait to be stored; none of these was, send them again later")
                .retry_after(OVERLOADED_RETRY_SECONDS)
        }
        SubmitError::Unavailable => {
            Problem::new(Kind::Unavailable, "the database is not available; no job was stored, send them again later")
                .retry_after(UNAVAILABLE_RETRY_SECONDS)
        }
        SubmitError::TimedOut => Problem::new(
            Kind::Unavailable,
            "the database did not confirm in time, so the jobs may be stored or not; send the same request again with the same \
             Idempotency-Key, if it had one",
        )
        .retry_after(UNAVAILABLE_RETRY_SECONDS),
        SubmitError::Stopping => {
            Problem::new(Kind::Unavailable, "this replica is being stopped; no job was stored, send them again")
                .retry_after(OVERLOADED_RETRY_SECONDS)
        }
        SubmitError::IdempotencyMismatch => Problem::new(
            Kind::IdempotencyMismatch,
            "this Idempotency-Key came with another body before; use a new key for a new request",
        ),
        SubmitError::Rejected(why) => Problem::internal("submit", &why),
    }
}

fn outcome(
    submitted: SubmitResult,
    indexes: &[usize],
    types: &[String],
    mut failed: Vec<Failed>,
) -> Result<Outcome, Problem> {
    // A replayed answer is of the same body, so it has as many results, unless a limit was changed in between.
    if submitted.results.len() != indexes.len() {
        let counts = format!("{} results for {} jobs", submitted.results.len(), indexes.len());
        return Err(Problem::internal("submit", &counts));
    }
    let mut success = Vec::with_capacity(indexes.len());
    for ((result, index), job_type) in submitted.results.into_iter().zip(indexes).zip(types) {
        match result {
            Ok(job) => success.push(job),
            Err(taken) => failed.push(Failed {
                index: *index,
                job_type: Some(job_type.clone()),
                error: format!("a live job has this unique_key: {}", taken.held_by),
                existing_id: Some(taken.held_by),
            }),
        }
    }
    failed.sort_by_key(|failed| failed.index);
    Ok(Outcome { success, failed })
}

/// 200 if any job was stored; else 409 if it is for the unique keys alone, else 422.
fn answer(outcome: &Outcome, replayed: bool) -> Answer {
    let answer = if outcome.success.is_empty() {
        let all_taken = outcome.failed.iter().all(|failed| failed.existing_id.is_some());
        let kind = if all_taken {
            Kind::UniqueKeyTaken
        } else {
            Kind::NoValidJob
        };
        match serde_json::to_value(&outcome.failed) {
            Ok(failed) => Problem::new(kind, "no job was stored; \"failed\" says why, job by job")
                .with("success", Value::Array(Vec::new()))
                .with("failed", failed)
                .into(),
            Err(error) => Problem::internal("answer", &error).into(),
        }
    } else {
        Answer::json(200, outcome)
    };
    if replayed {
        answer.with_header("Idempotency-Replayed", "true")
    } else {
        answer
    }
}

#[cfg(test)]
mod tests;
