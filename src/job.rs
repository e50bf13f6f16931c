//! The words of Trilane: a job, its lane, its status, and what can become of it. Pure; no I/O, no clock.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::clock::Timestamp;

/// The longest job type, in characters; each one of `A-Za-z0-9._:-`. From the original's `Type nvarchar(100)`.
pub const TYPE_CHARS_MAX: usize = 100;
/// The most retries that a job may ask for.
pub const RETRIES_MAX: u32 = 100;
/// The retries of a job that names none.
pub const RETRIES_DEFAULT: u32 = 3;
/// The longest unique key, in characters. 200 UTF-16 units stay below SQL Server's 900 bytes for an index key.
pub const UNIQUE_KEY_CHARS_MAX: usize = 200;
/// The longest time limit that a job may ask for: one day.
pub const TIMEOUT_MAX: Duration = Duration::from_hours(24);
/// How much of an error or reason is kept, in characters; the rest is cut off. A reason is read by people.
pub const REASON_CHARS_MAX: usize = 4_000;

/// Arrival number of a job: given by the database, unique, growing. The id used inside Trilane and in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub i64);

/// Fencing token of one lease. Every claim takes a new one, larger than all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Token(pub i64);

/// Number of one running process: random, positive, new at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaId(pub i64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A priority lane. Strict: a free worker takes high before medium before low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Taken first.
    High,
    /// The lane of a job that names none.
    #[default]
    Medium,
    /// Taken last.
    Low,
}

impl Lane {
    /// All lanes in the order in which workers take from them.
    pub const ALL: [Lane; 3] = [Lane::High, Lane::Medium, Lane::Low];

    /// Lower-case name, as in the database, Redis, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::High => "high",
            Lane::Medium => "medium",
            Lane::Low => "low",
        }
    }

    /// The lane of that name in any case; `None` where there is none.
    pub fn parse(name: &str) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| lane.as_str().eq_ignore_ascii_case(name))
    }

    /// Position in [`Lane::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a job stands. `completed`, `failed` and `cancelled` are final, but for a revived dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Waits for its turn, or for its `RunAt`.
    Queued,
    /// Leased by a replica.
    Running,
    /// Failed before, waits for its `RunAt`.
    Retrying,
    /// Done.
    Completed,
    /// Given up; its dead letter is in `FailedJobs`.
    Failed,
    /// Withdrawn before it was done.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Status; 6] =
        [Status::Queued, Status::Running, Status::Retrying, Status::Completed, Status::Failed, Status::Cancelled];

    /// Lower-case name, as in the database, JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Queued => "queued",
            Status::Running => "running",
            Status::Retrying => "retrying",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// The status of that name in any case; `None` where there is none.
    pub fn parse(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether a job in this status still has work before it.
    pub fn is_live(self) -> bool {
        matches!(self, Status::Queued | Status::Running | Status::Retrying)
    }

    /// The state machine, whole. The SQL statements guard the same moves.
    pub fn may_become(self, next: Status) -> bool {
        match self {
            // Failed without running: what plain SQL inserted with an unknown lane or a broken payload.
            Status::Queued => matches!(next, Status::Running | Status::Failed | Status::Cancelled),
            Status::Retrying => matches!(next, Status::Running | Status::Cancelled),
            // Back to queued or retrying: released at a stop, with its attempt given back.
            Status::Running => next != Status::Running,
            // Revived.
            Status::Failed => next == Status::Queued,
            Status::Completed | Status::Cancelled => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a submitted job may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// As soon as a worker is free.
    #[default]
    Now,
    /// At a time; one that has passed means now.
    At(Timestamp),
    /// This long after the database stored it.
    After(Duration),
}

/// A job as submitted: checked, not yet stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Public id, chosen before the job is stored.
    pub id: Uuid,
    /// Selects the handler.
    pub job_type: String,
    /// JSON text.
    pub payload: String,
    /// Priority lane.
    pub lane: Lane,
    /// Retries after the first attempt, up to [`RETRIES_MAX`].
    pub max_retries: u32,
    /// When it may start.
    pub start: Start,
    /// Time limit of one attempt; the service's default where `None`.
    pub timeout: Option<Duration>,
    /// At most one live job has this key.
    pub unique_key: Option<String>,
}

impl NewJob {
    /// A job with a new id and every default.
    pub fn new(job_type: impl Into<String>, payload: impl Into<String>) -> NewJob {
        NewJob {
            id: Uuid::now_v7(),
            job_type: job_type.into(),
            payload: payload.into(),
            lane: Lane::default(),
            max_retries: RETRIES_DEFAULT,
            start: Start::Now,
            timeout: None,
            unique_key: None,
        }
    }
}

/// Whether `name` can be a job type: 1 to [`TYPE_CHARS_MAX`] of `A-Za-z0-9._:-`.
pub fn is_type_name(name: &str) -> bool {
    (1..=TYPE_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte))
}

/// A job as its row shows it, in the words of the HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Public id.
    pub id: Uuid,
    /// Arrival number; also the position in a listing.
    #[serde(skip)]
    pub seq: Seq,
    /// Selects the handler. As in the row: what plain SQL wrote may be anything.
    #[serde(rename = "type")]
    pub job_type: String,
    /// JSON text, as it was submitted.
    pub payload: String,
    /// Lane, as in the row: what plain SQL wrote is made regular when it is first dispatched.
    pub priority: String,
    /// Retries after the first attempt.
    pub max_retries: i64,
    /// Failed attempts so far.
    pub retry_count: i64,
    /// Where it stands, as in the row.
    pub status: String,
    /// When the row was stored.
    pub created_at: Timestamp,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// Not started before.
    pub run_at: Timestamp,
    /// When the last attempt was claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it reached a final status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Time limit of one attempt, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<i64>,
    /// Its unique key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    /// Error of the last failed attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One failed attempt of a job. Attempts that completed leave no such record: the job itself tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedAttempt {
    /// 1 for the first.
    pub attempt: i64,
    /// Token of the lease under which it ran.
    pub token: Token,
    /// When it was claimed.
    pub started_at: Option<Timestamp>,
    /// When its failure was stored.
    pub finished_at: Timestamp,
    /// What went wrong.
    pub error: String,
}

/// A row of `FailedJobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its own id.
    pub id: Uuid,
    /// Position in a listing.
    #[serde(skip)]
    pub seq: Seq,
    /// The job that was given up.
    pub original_job_id: Uuid,
    /// Type of that job.
    #[serde(rename = "type")]
    pub job_type: String,
    /// Payload of that job.
    pub payload: String,
    /// Lane of that job.
    pub priority: String,
    /// Why it was given up.
    pub reason: String,
    /// When.
    pub failed_at: Timestamp,
}

/// A job that this replica holds a lease on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedJob {
    /// Arrival number.
    pub seq: Seq,
    /// Public id.
    pub id: Uuid,
    /// Selects the handler.
    pub job_type: String,
    /// JSON text.
    pub payload: String,
    /// Priority lane.
    pub lane: Lane,
    /// Failed attempts so far.
    pub retry_count: u32,
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// Fences the outcome to this claim.
    pub token: Token,
    /// Time limit of one attempt; the service's default where `None`.
    pub timeout: Option<Duration>,
    /// Its unique key.
    pub unique_key: Option<String>,
    /// When the row was stored.
    pub created_at: Timestamp,
}

impl ClaimedJob {
    /// Number of the attempt now under way; 1 for the first.
    pub fn attempt(&self) -> u32 {
        self.retry_count.saturating_add(1) // OK: plain SQL may have written any count
    }
}

/// `text` cut to `chars_max` characters, never inside one, with a mark where something was cut.
pub fn cut(text: &str, chars_max: usize) -> String {
    if text.char_indices().nth(chars_max).is_none() {
        return text.to_owned();
    }
    let kept: String = text.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_listed_moves_are_allowed() {
        use Status::{Cancelled, Completed, Failed, Queued, Retrying, Running};
        let allowed = [
            (Queued, Running),
            (Queued, Failed),
            (Queued, Cancelled),
            (Retrying, Running),
            (Retrying, Cancelled),
            (Running, Queued),
            (Running, Retrying),
            (Running, Completed),
            (Running, Failed),
            (Running, Cancelled),
            (Failed, Queued),
        ];

        for from in Status::ALL {
            for to in Status::ALL {
                assert_eq!(from.may_become(to), allowed.contains(&(from, to)), "{from} to {to}");
            }
        }
    }

    #[test]
    fn a_lane_is_read_in_any_case() {
        assert_eq!(Lane::parse("HIGH"), Some(Lane::High));
        assert_eq!(Lane::parse("Medium"), Some(Lane::Medium));
        assert_eq!(Lane::parse("urgent"), None);
    }

    #[test]
    fn a_type_name_has_1_to_100_of_the_listed_characters() {
        assert!(is_type_name("send_email") && is_type_name("a:b.c-D9") && is_type_name(&"x".repeat(100)));
        assert!(!is_type_name("") && !is_type_name("a b") && !is_type_name("é") && !is_type_name(&"x".repeat(101)));
    }

    #[test]
    fn a_cut_text_ends_with_a_mark_and_keeps_whole_characters() {
        assert_eq!(cut("🦀🦀🦀", 3), "🦀🦀🦀");
        assert_eq!(cut("🦀🦀🦀🦀", 3), "🦀🦀…");
    }

    proptest! {
        #[test]
        fn a_cut_text_keeps_its_beginning_and_its_limit(text in "\\PC{0,40}", chars_max in 1usize..30) {
            let kept = cut(&text, chars_max);

            if text.chars().count() <= chars_max {
                prop_assert_eq!(kept, text);
            } else {
                prop_assert_eq!(kept.chars().count(), chars_max);
                prop_assert!(text.starts_with(kept.strip_suffix('…').expect("it is marked")));
            }
        }

        #[test]
        fn a_type_name_is_what_its_pattern_says(name in "[a-c._: é-]{0,3}|[A-Za-z0-9._:-]{98,102}") {
            let listed = name.chars().all(|char| char.is_ascii_alphanumeric() || "._:-".contains(char));

            prop_assert_eq!(is_type_name(&name), listed && (1..=100).contains(&name.chars().count()));
        }

        #[test]
        fn lanes_and_statuses_are_read_in_any_case_and_nothing_else_is(text in "(?i)high|medium|low|queued|failed|\\PC{0,8}") {
            let lower = text.to_ascii_lowercase();

            prop_assert_eq!(Lane::parse(&text).map(Lane::as_str), Lane::ALL.map(Lane::as_str).into_iter().find(|name| *name == lower));
            prop_assert_eq!(
                Status::parse(&text).map(Status::as_str),
                Status::ALL.map(Status::as_str).into_iter().find(|name| *name == lower)
            );
        }
    }
}
