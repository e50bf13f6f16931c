//! The small routes: one job, cancel, revive, wake, probes, metrics, the description of the API.

use serde::Serialize;
use serde_json::{Map, json};
use uuid::Uuid;

use super::backend::Backend;
use super::message::{Answer, JSON};
use super::problem::{Kind, Problem};
use crate::job::{FailedAttempt, Job, Seq, Status};
use crate::store::{Cancelled, JobFilter, Revived};

/// Version 0.0.4 of Prometheus' text format.
const METRICS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The description of the API in version 3.1 of `OpenAPI`, written by hand.
pub(super) const OPEN_API: &str = include_str!("openapi.json");

/// A job and what went wrong with it so far.
#[derive(Serialize)]
struct JobWithAttempts {
    #[serde(flatten)]
    job: Job,
    attempts: Vec<FailedAttempt>,
}

/// `GET /jobs/{id}`.
pub(super) fn job(backend: &dyn Backend, id: Uuid) -> Result<Answer, Problem> {
    let job = backend.job(id)?.ok_or_else(|| no_job(id))?;
    let attempts = backend.failed_attempts(id)?;
    Ok(Answer::json(200, &JobWithAttempts { job, attempts }))
}

/// `POST /jobs/{id}/cancel`. Cancelling a cancelled job again is no error: the first answer may have been lost.
pub(super) fn cancel(backend: &dyn Backend, id: Uuid) -> Result<Answer, Problem> {
    match backend.cancel(id)? {
        Cancelled::Done(job) => Ok(Answer::json(200, &job)),
        Cancelled::NotFound => Err(no_job(id)),
        Cancelled::TooLate(job) if job.status == Status::Cancelled.as_str() => Ok(Answer::json(200, &job)),
        Cancelled::TooLate(job) => {
            let detail = format!("job {id} is {}; only a job that is not done yet can be cancelled", job.status);
            Err(Problem::new(Kind::Conflict, detail).with("job_status", job.status))
        }
    }
}

/// `POST /failed-jobs/{id}/retry`.
pub(super) fn revive(backend: &dyn Backend, id: Uuid) -> Result<Answer, Problem> {
    match backend.revive(id)? {
        Revived::Queued(released) => Ok(revived(backend, released.seq)),
        Revived::NotFound => {
            let detail = format!("there is no dead letter {id}, neither under its own id nor under that of its job");
            Err(Problem::new(Kind::NotFound, detail))
        }
        Revived::NotFailed => {
            let detail =
                format!("the job of the dead letter {id} cannot be queued: it is not failed, or its lane is not known");
            Err(Problem::new(Kind::Conflict, detail))
        }
        Revived::KeyTaken(held_by) => {
            let detail =
                format!("the unique_key of this job belongs to the live job {held_by}; let that finish, or cancel it");
            Err(Problem::new(Kind::UniqueKeyTaken, detail).with("existing_id", held_by.to_string()))
        }
    }
}

/// The job that was just queued again. That it was is not to be hidden by an error of reading it.
fn revived(backend: &dyn Backend, seq: Seq) -> Answer {
    let before = Seq(seq.0 - 1); // OK: the database counts from 1
    let job = backend.jobs(&JobFilter::default(), Some(before), 1).ok().and_then(|mut jobs| jobs.pop());
    match job.filter(|job| job.seq == seq) {
        Some(job) => Answer::json(200, &job),
        None => Answer::json(200, &json!({"status": "queued"})),
    }
}

/// `POST /scheduler/wake`.
pub(super) fn wake(backend: &dyn Backend) -> Answer {
    backend.wake();
    Answer::json(202, &json!({"status": "woken"}))
}

/// `GET /healthz`: the process answers. Asks no store, so an outage of one does not get every replica killed.
pub(super) fn health() -> Answer {
    Answer::json(200, &json!({"status": "ok"}))
}

/// `GET /readyz`: 503 if a store is away that the replica cannot serve without.
pub(super) fn ready(backend: &dyn Backend) -> Answer {
    let known = backend.ready();
    let ready = known.iter().all(|state| state.problem.is_none() || !state.required);
    let mut stores = Map::new();
    for state in known {
        let shown = match state.problem {
            None => json!({"status": "ok", "required": state.required}),
            Some(error) => json!({"status": "unavailable", "required": state.required, "error": error}),
        };
        stores.insert(state.name.to_owned(), shown);
    }
    let status = if ready { 200 } else { 503 };
    Answer::json(status, &json!({"status": if ready { "ok" } else { "unavailable" }, "stores": stores}))
}

/// `GET /metrics`.
pub(super) fn metrics(backend: &dyn Backend) -> Answer {
    Answer::new(200, METRICS_TEXT, backend.metrics_text())
}

/// `GET /openapi.json`.
pub(super) fn open_api() -> Answer {
    Answer::new(200, JSON, OPEN_API)
}

fn no_job(id: Uuid) -> Problem {
    Problem::new(Kind::NotFound, format!("there is no job {id}; done jobs are removed after TRILANE_RETENTION_DAYS"))
}

#[cfg(test)]
mod tests;
