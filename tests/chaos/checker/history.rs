//! What a run left behind: the tables, what clients were told, and what handlers did.

use serde::{Deserialize, Serialize};

/// All that is judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) tables: Tables,
    pub(crate) clients: Vec<Line>,
    pub(crate) effects: Vec<Effect>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) jobs: Vec<Job>,
    pub(crate) letters: Vec<Letter>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) keys: Vec<Key>,
    pub(crate) totals: Totals,
}

/// A row of Jobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Job {
    pub(crate) seq: i64,
    pub(crate) id: String,
    pub(crate) status: String,
    pub(crate) max_retries: i64,
    pub(crate) retry_count: i64,
    pub(crate) token: Option<i64>,
    pub(crate) unique_key: Option<String>,
    /// Milliseconds since 1970.
    pub(crate) finished_at: Option<i64>,
    /// The name that its client gave it: the member `mark` of its payload.
    pub(crate) mark: Option<String>,
}

/// A row of FailedJobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Letter {
    pub(crate) job: String,
}

/// A row of `JobAttempts`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) seq: i64,
    pub(crate) token: i64,
}

/// A row of Leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lease {
    pub(crate) token: i64,
    pub(crate) seqs: Vec<i64>,
}

/// A row of JobKeys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key {
    pub(crate) key: String,
    pub(crate) job: String,
}

/// The sums of JobStats.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) completed: i64,
    pub(crate) retried: i64,
    pub(crate) failed: i64,
}

/// A line of the clients' log, as JSON: written and flushed before the next step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Line {
    /// Milliseconds since 1970.
    pub(crate) at: i64,
    #[serde(flatten)]
    pub(crate) said: Said,
}

/// What a client asks, and what it is told. Jobs go by their marks until an answer brings their ids.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub(crate) enum Said {
    /// Before a call. If nothing more is said of a mark, its job may be stored or not.
    Submits {
        marks: Vec<String>,
    },
    /// Acknowledged: mark and id of each.
    Stored {
        jobs: Vec<(String, String)>,
    },
    /// An answer after which nothing may be stored.
    Refused {
        marks: Vec<String>,
    },
    /// Before a cancellation.
    Cancels {
        id: String,
    },
    Cancelled {
        id: String,
    },
    /// Before a dead letter is queued again.
    Revives {
        id: String,
    },
    Revived {
        id: String,
    },
}

/// A line of the handlers' log: `start JOB ATTEMPT TOKEN`, and `done` or `failed` in the place of `start`.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) deed: Deed,
    pub(crate) job: String,
    pub(crate) token: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Start,
    Done,
    Failed,
}

impl Line {
    pub(crate) fn parse(text: &str) -> Result<Line, String> {
        serde_json::from_str(text).map_err(|error| format!("{error} in: {text}"))
    }
}

impl Effect {
    pub(crate) fn parse(text: &str) -> Result<Effect, String> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or_else(|| format!("words are missing in: {text}"));
        let deed = match word()? {
            "start" => Deed::Start,
            "done" => Deed::Done,
            "failed" => Deed::Failed,
            other => return Err(format!("{other} is no deed, in: {text}")),
        };
        let (job, _attempt, token) = (word()?.to_owned(), word()?, word()?);
        let token = token.parse().map_err(|error| format!("{error} in: {text}"))?;
        Ok(Effect { deed, job, token })
    }
}
