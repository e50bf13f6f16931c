//! Errors as the client sees them: RFC 9457, `application/problem+json`.

use std::fmt;

use serde_json::{Map, Value};

use super::message::Answer;
use crate::store::StoreError;

/// The media type of an error.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// When to come back after the store was away, in seconds.
const UNAVAILABLE_RETRY_SECONDS: u32 = 5;

/// What kind of error; the client's program decides by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The body is not JSON, or not UTF-8.
    MalformedJson,
    /// A header, a query parameter or the framing of the request is wrong.
    BadRequest,
    /// No token, or not one of ours.
    Unauthorized,
    /// The request may come from a web page of another site.
    Forbidden,
    /// No such path, job or dead letter.
    NotFound,
    /// The path knows other methods.
    MethodNotAllowed,
    /// Head or body did not come in time.
    RequestTimeout,
    /// What it is about is in a state that does not allow it.
    Conflict,
    /// The body is too large, or holds too many jobs.
    TooLarge,
    /// The body is not sent as JSON.
    UnsupportedMediaType,
    /// Not one job could be stored.
    NoValidJob,
    /// Not one job could be stored, for live jobs have their unique keys.
    UniqueKeyTaken,
    /// The idempotency key was used with another body.
    IdempotencyMismatch,
    /// `Expect` wants what is not known.
    ExpectationFailed,
    /// Too many jobs wait for their commit.
    Overloaded,
    /// The head of the request is too large.
    HeadTooLarge,
    /// A fault of the server.
    Internal,
    /// The request is framed in a way that is not known.
    NotImplemented,
    /// A store is away, connections or memory are short, or the replica is being stopped.
    Unavailable,
    /// The request is of another version of HTTP.
    VersionNotSupported,
}

impl Kind {
    /// Status code, last part of the problem's type, and title.
    fn words(self) -> (u16, &'static str, &'static str) {
        match self {
            Kind::MalformedJson => (400, "malformed-json", "The body is not valid JSON"),
            Kind::BadRequest => (400, "bad-request", "The request is not valid"),
            Kind::Unauthorized => (401, "unauthorized", "A valid API token is needed"),
            Kind::Forbidden => (403, "forbidden", "The request may come from a web page of another site"),
            Kind::NotFound => (404, "not-found", "There is no such thing"),
            Kind::MethodNotAllowed => (405, "method-not-allowed", "The method is not allowed here"),
            Kind::RequestTimeout => (408, "request-timeout", "The request did not come in time"),
            Kind::Conflict => (409, "conflict", "The state does not allow it"),
            Kind::TooLarge => (413, "too-large", "The request is too large"),
            Kind::UnsupportedMediaType => (415, "unsupported-media-type", "The body must be JSON"),
            Kind::NoValidJob => (422, "no-valid-job", "No job could be stored"),
            Kind::UniqueKeyTaken => (409, "unique-key-taken", "Live jobs have the unique keys"),
            Kind::IdempotencyMismatch => (422, "idempotency-mismatch", "The idempotency key was used before"),
            Kind::ExpectationFailed => (417, "expectation-failed", "The expectation cannot be met"),
            Kind::Overloaded => (429, "overloaded", "Too many jobs wait to be stored"),
            Kind::HeadTooLarge => (431, "head-too-large", "The head of the request is too large"),
            Kind::Internal => (500, "internal", "The server failed"),
            Kind::NotImplemented => (501, "not-implemented", "The request is framed in a way that is not known"),
            Kind::Unavailable => (503, "unavailable", "The service is not available now"),
            Kind::VersionNotSupported => (505, "version-not-supported", "The version of HTTP is not known"),
        }
    }
}

/// An error for the client. Becomes an [`Answer`].
#[derive(Debug)]
pub struct Problem {
    kind: Kind,
    detail: String,
    members: Vec<(&'static str, Value)>,
    headers: Vec<(&'static str, String)>,
}

impl Problem {
    /// A problem with its advice.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Problem {
        Problem { kind, detail: detail.into(), members: Vec::new(), headers: Vec::new() }
    }

    /// A fault of the server: logged whole, told without what was inside.
    pub fn internal(what: &str, error: &dyn fmt::Display) -> Problem {
        log::error!(error:%; "http request failed: {what}");
        Problem::new(Kind::Internal, "the server could not answer; its log says why")
    }

    /// The same problem with one member more (RFC 9457, section 3.2).
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Problem {
        self.members.push((name, value.into()));
        self
    }

    /// The same problem with one header more.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Problem {
        self.headers.push((name, value.into()));
        self
    }

    /// The same problem that says when to come back.
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Problem {
        self.with_header("Retry-After", seconds.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Problem {
        if error.is_transient() {
            // OK: the store logs its outages itself, one line at the start and one at the end
            Problem::new(Kind::Unavailable, "the database is not available; try again later")
                .retry_after(UNAVAILABLE_RETRY_SECONDS)
        } else {
            Problem::internal("store", &error)
        }
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Answer {
        let (status, slug, title) = problem.kind.words();
        let mut object = Map::new();
        object.insert("type".to_owned(), Value::from(format!("urn:trilane:problem:{slug}")));
        object.insert("title".to_owned(), Value::from(title));
        object.insert("status".to_owned(), Value::from(status));
        object.insert("detail".to_owned(), Value::from(problem.detail));
        for (name, value) in problem.members {
            object.insert(name.to_owned(), value);
        }
        let mut answer = Answer::new(status, PROBLEM_JSON, Value::from(object).to_string());
        answer.headers.extend(problem.headers);
        answer
    }
}
