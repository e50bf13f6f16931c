//! How jobs end: outcomes fenced by their token, dead letters, release, cancel, revive.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::batch::{Text, Texts, json};
use super::session::{Param, Row, Session};
use super::submit::uuid;
use super::{Dialect, Store, StoreError, id_list, keys, millis};
use crate::fault::fault_point;
use crate::job::{ClaimedJob, Job, Lane, ReplicaId, Seq, Token};
use crate::retry::Verdict;

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Arrival number of the job.
    pub seq: Seq,
    /// Public id of the job.
    pub id: Uuid,
    /// Token of the lease under which it ran.
    pub token: Token,
    /// Type of the job, for the statistics.
    pub job_type: String,
    /// Lane of the job, for the statistics.
    pub lane: Lane,
    /// Number of the attempt; 1 for the first.
    pub attempt: u32,
    /// How long the handler ran.
    pub duration: Duration,
    /// Its unique key, to be given up when the job ends.
    pub unique_key: Option<String>,
    /// What becomes of the job.
    pub verdict: Verdict,
}

impl Outcome {
    /// What became of the attempt at a claimed job.
    pub fn of(job: &ClaimedJob, duration: Duration, verdict: Verdict) -> Outcome {
        Outcome {
            seq: job.seq,
            id: job.id,
            token: job.token,
            job_type: job.job_type.clone(),
            lane: job.lane,
            attempt: job.attempt(),
            duration,
            unique_key: job.unique_key.clone(),
            verdict,
        }
    }
}

/// An outcome that was stored. Those not returned were refused: their job is no longer running under their token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Arrival number of the job.
    pub seq: Seq,
    /// Token of the attempt. One batch may hold two of a job: one whose lease was lost, and the one after it.
    pub token: Token,
    /// Milliseconds until its retry is due, where the job counts as dispatched; the caller pushes its id then.
    pub due_in_ms: Option<u64>,
}

/// A job given back, whose id is to be pushed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Arrival number.
    pub seq: Seq,
    /// Its lane.
    pub lane: Lane,
}

/// What [`Store::cancel`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// The job is cancelled.
    Done(Job),
    /// There is no such job.
    NotFound,
    /// It had ended before; as its row says.
    TooLate(Job),
}

/// What [`Store::revive`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revived {
    /// The job is queued anew as dispatched; its id is to be pushed at once.
    Queued(Released),
    /// There is no such dead letter.
    NotFound,
    /// Its unique key belongs to another live job.
    KeyTaken(Uuid),
    /// Its job is not `failed`, or its lane is not known, so that it cannot be queued.
    NotFailed,
}

#[derive(Serialize)]
struct FailureRow<'a> {
    seq: i64,
    token: i64,
    bury: bool,
    error: Text<'a>,
    delay_ms: i64,
    attempt: u32,
}

/// A dead letter to be written.
pub(super) struct Letter<'a> {
    pub(super) seq: i64,
    pub(super) id: Uuid,
    pub(super) reason: &'a str,
}

#[derive(Serialize)]
struct LetterRow<'a> {
    seq: i64,
    id: Uuid,
    reason: Text<'a>,
}

#[derive(Default, Serialize)]
struct CountRow<'a> {
    lane: &'a str,
    r#type: &'a str,
    completed: u64,
    retried: u64,
    failed: u64,
    duration_ms: u64,
}

impl Store {
    /// Stores outcomes (up to [`super::BATCH_MAX`]) in one transaction: statuses, errors, dead letters, freed unique keys, statistics.
    /// A retry due within `horizon` counts as dispatched by `replica`; with no horizon none does.
    ///
    /// Returns the outcomes that were accepted; the rest were refused by their token.
    ///
    /// # Errors
    /// On any error nothing is stored, or (connection lost at the commit) it is not known; the call can be repeated.
    pub fn finish(
        &self,
        outcomes: &[Outcome],
        replica: ReplicaId,
        horizon: Option<Duration>,
    ) -> Result<Vec<Accepted>, StoreError> {
        self.write(|session| finish(session, outcomes, replica, horizon))
    }

    /// Withdraws a job that has not ended. A running one is told by its replica's keeper; its outcome is refused.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn cancel(&self, id: Uuid) -> Result<Cancelled, StoreError> {
        let text = id.to_string();
        let param = [Param::Text(&text)];
        let cancelled = self.write(|session| {
            let mut cancelled = None;
            session.change("cancel", &param, &param, |row| {
                cancelled = Some(row.int(1)?);
                Ok(())
            })?;
            if let Some(seq) = cancelled {
                keys::free_of(session, Seq(seq))?;
            }
            Ok(cancelled.is_some())
        })?;
        Ok(match self.job(id)? {
            None => Cancelled::NotFound,
            Some(job) if cancelled => Cancelled::Done(job),
            Some(job) => Cancelled::TooLate(job),
        })
    }

    /// Queues the job of a dead letter anew with all its retries, and removes the dead letter. `id` is the dead letter's or the job's.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn revive(&self, id: Uuid, replica: ReplicaId) -> Result<Revived, StoreError> {
        let text = id.to_string();
        self.write(|session| {
            let mut found = None;
            session.query("dead_letter_find", &[Param::Text(&text), Param::Text(&text)], |row| {
                found = Some((row.text(1)?, uuid(&row.text(2)?)?, row.maybe_text(3)?));
                Ok(())
            })?;
            let Some((letter, job, unique_key)) = found else { return Ok(Revived::NotFound) };
            let key = unique_key.as_deref();
            let mut has_key = false;
            if let Some(key) = key {
                has_key = keys::held(session, &[(key, job)])?.get(key) == Some(&job);
                let holder = keys::take(session, vec![(key, job)])?.get(key).copied().unwrap_or(job);
                if holder != job {
                    return Ok(Revived::KeyTaken(holder));
                }
            }
            let queued = queue_anew(session, &letter, job, replica)?;
            if queued.is_some() {
                session.execute("dead_letter_delete", &[Param::Text(&letter)])?;
            } else if !has_key {
                // Taken just now. One that the job had before is that of a live job, which keeps it.
                keys::free(session, key.map(|key| (key, job)))?;
            }
            Ok(queued.map_or(Revived::NotFailed, Revived::Queued))
        })
    }
}

fn queue_anew(
    session: &mut Session,
    letter: &str,
    job: Uuid,
    replica: ReplicaId,
) -> Result<Option<Released>, StoreError> {
    let job = job.to_string();
    let (replica, letter, job) = (Param::Int(replica.0), Param::Text(letter), Param::Text(&job));
    let mut seq = None;
    for (name, id) in [("revive", job), ("revive_lost", letter)] {
        if seq.is_none() {
            session.change(name, &[replica, id], &[id], |row| {
                seq = Some(Seq(row.int(1)?));
                Ok(())
            })?;
        }
    }
    let Some(seq) = seq else { return Ok(None) };
    let mut lane = Lane::default();
    session.query("job", &[job], |row| {
        lane = super::claim::lane(&super::read::job(row)?.priority);
        Ok(())
    })?;
    Ok(Some(Released { seq, lane }))
}

pub(super) fn release(
    session: &mut Session,
    held: &[(Seq, Token)],
    replica: ReplicaId,
) -> Result<Vec<Released>, StoreError> {
    let mut released = Vec::new();
    let seqs = id_list(session.dialect(), held.iter().map(|(seq, _)| seq.0));
    let pairs = Pairs::of(session.dialect(), held);
    let keep = |row: &mut Row<'_, '_>| {
        released.push(Released { seq: Seq(row.int(1)?), lane: super::claim::lane(&row.text(2)?) });
        Ok(())
    };
    if session.dialect() == Dialect::Sqlite {
        session.query("release_before", &pairs.params(), keep)?;
        let seqs = id_list(session.dialect(), released.iter().map(|job| job.seq.0));
        session.execute("release", &[Param::Int(replica.0), Param::Text(&seqs)])?;
    } else {
        let mut params = pairs.params();
        params.push(Param::Int(replica.0));
        if session.dialect() == Dialect::Postgres {
            params.push(Param::Text(&seqs));
        }
        session.query("release", &params, keep)?;
    }
    Ok(released)
}

/// Stores outcomes within a transaction. With no horizon no retry counts as dispatched.
pub(super) fn finish(
    session: &mut Session,
    outcomes: &[Outcome],
    replica: ReplicaId,
    horizon: Option<Duration>,
) -> Result<Vec<Accepted>, StoreError> {
    let (completed, failed): (Vec<&Outcome>, Vec<&Outcome>) =
        outcomes.iter().partition(|outcome| outcome.verdict == Verdict::Complete);
    let mut accepted = complete(session, &completed)?;
    accepted.extend(fail(session, &failed, replica, horizon)?);
    let is_accepted: HashSet<(Seq, Token)> = accepted.iter().map(|accepted| (accepted.seq, accepted.token)).collect();
    let kept = || outcomes.iter().filter(|outcome| is_accepted.contains(&(outcome.seq, outcome.token)));
    let ended = kept().filter(|outcome| !matches!(outcome.verdict, Verdict::Retry { .. }));
    keys::free(session, ended.filter_map(|outcome| Some((outcome.unique_key.as_deref()?, outcome.id))))?;
    count(session, kept(), replica)?;
    fault_point!("finish.in_transaction");
    Ok(accepted)
}

fn complete(session: &mut Session, outcomes: &[&Outcome]) -> Result<Vec<Accepted>, StoreError> {
    let mut accepted = Vec::with_capacity(outcomes.len());
    if outcomes.is_empty() {
        return Ok(accepted);
    }
    let held: Vec<(Seq, Token)> = outcomes.iter().map(|outcome| (outcome.seq, outcome.token)).collect();
    let pairs = Pairs::of(session.dialect(), &held);
    let keep = |row: &mut Row<'_, '_>| {
        accepted.push(Accepted { seq: Seq(row.int(1)?), token: Token(row.int(2)?), due_in_ms: None });
        Ok(())
    };
    if session.dialect() == Dialect::Sqlite {
        session.query("complete_before", &pairs.params(), keep)?;
        let seqs = id_list(session.dialect(), accepted.iter().map(|accepted| accepted.seq.0));
        session.execute("complete", &[Param::Text(&seqs)])?;
    } else {
        let seqs = id_list(session.dialect(), held.iter().map(|(seq, _)| seq.0));
        let mut params = pairs.params();
        if session.dialect() == Dialect::Postgres {
            params.push(Param::Text(&seqs));
        }
        session.query("complete", &params, keep)?;
    }
    Ok(accepted)
}

fn fail(
    session: &mut Session,
    outcomes: &[&Outcome],
    replica: ReplicaId,
    horizon: Option<Duration>,
) -> Result<Vec<Accepted>, StoreError> {
    let mut accepted = Vec::new();
    if outcomes.is_empty() {
        return Ok(accepted);
    }
    let errors: Vec<String> = outcomes.iter().map(|outcome| storable(error_of(&outcome.verdict))).collect();
    let mut texts = Texts::of(session);
    let mut rows: Vec<FailureRow<'_>> =
        outcomes.iter().zip(&errors).map(|(outcome, error)| failure(outcome, texts.put(error))).collect();
    let failures = texts.batch(&rows)?;
    let horizon = Param::MaybeInt(horizon.map(millis));
    let seqs = id_list(session.dialect(), rows.iter().map(|row| row.seq));
    let mut params = failures.params_and(&[Param::Int(replica.0), horizon]);
    if session.dialect() == Dialect::Postgres {
        params.push(Param::Text(&seqs));
    }
    session.change("fail", &params, &[horizon, failures.rows()], |row| {
        let (seq, token, due_in_ms) = (Seq(row.int(1)?), Token(row.int(2)?), row.maybe_int(3)?);
        accepted.push(Accepted { seq, token, due_in_ms: due_in_ms.map(|ms| ms.max(0).unsigned_abs()) });
        Ok(())
    })?;
    let is_accepted: HashSet<(i64, i64)> = accepted.iter().map(|accepted| (accepted.seq.0, accepted.token.0)).collect();
    rows.retain(|row| is_accepted.contains(&(row.seq, row.token)));
    if rows.is_empty() {
        return Ok(accepted);
    }
    let seqs = id_list(session.dialect(), rows.iter().map(|row| row.seq));
    let attempts = texts.batch(&rows)?;
    let mut params = attempts.params();
    if session.dialect() == Dialect::Postgres {
        params.push(Param::Text(&seqs));
    }
    session.execute("attempts_add", &params)?;
    let is_buried = |outcome: &Outcome| {
        matches!(outcome.verdict, Verdict::Bury { .. }) && is_accepted.contains(&(outcome.seq.0, outcome.token.0))
    };
    let buried = outcomes.iter().zip(&errors).filter(|(outcome, _)| is_buried(outcome));
    let letters: Vec<Letter<'_>> =
        buried.map(|(outcome, error)| Letter { seq: outcome.seq.0, id: Uuid::new_v4(), reason: error }).collect();
    add_letters(session, &letters)?;
    Ok(accepted)
}

pub(super) fn add_letters<'a>(session: &mut Session, letters: &[Letter<'a>]) -> Result<(), StoreError> {
    if letters.is_empty() {
        return Ok(());
    }
    let seqs = id_list(session.dialect(), letters.iter().map(|letter| letter.seq));
    let mut texts = Texts::of(session);
    let row = |letter: &Letter<'a>| LetterRow { seq: letter.seq, id: letter.id, reason: texts.put(letter.reason) };
    let rows: Vec<LetterRow<'a>> = letters.iter().map(row).collect();
    let batch = texts.batch(&rows)?;
    let mut params = batch.params();
    if session.dialect() == Dialect::Postgres {
        params.push(Param::Text(&seqs));
    }
    session.execute("dead_letters_add", &params)
}

fn failure<'a>(outcome: &Outcome, error: Text<'a>) -> FailureRow<'a> {
    let delay = match &outcome.verdict {
        Verdict::Retry { delay, .. } => *delay,
        Verdict::Complete | Verdict::Bury { .. } => Duration::ZERO,
    };
    FailureRow {
        seq: outcome.seq.0,
        token: outcome.token.0,
        bury: matches!(outcome.verdict, Verdict::Bury { .. }),
        error,
        delay_ms: millis(delay),
        attempt: outcome.attempt,
    }
}

pub(super) fn error_of(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Complete => "",
        Verdict::Retry { error, .. } => error,
        Verdict::Bury { reason } => reason,
    }
}

/// NUL cannot stand in a text of PostgreSQL; an error message with one must not keep a whole batch from being stored.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{FFFD}")
}

fn count<'a>(
    session: &mut Session,
    outcomes: impl Iterator<Item = &'a Outcome>,
    replica: ReplicaId,
) -> Result<(), StoreError> {
    let mut counts: BTreeMap<(Lane, &str), CountRow<'a>> = BTreeMap::new();
    for outcome in outcomes {
        let row = counts.entry((outcome.lane, &outcome.job_type)).or_default();
        (row.lane, row.r#type) = (outcome.lane.as_str(), &outcome.job_type);
        row.duration_ms += u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX);
        match outcome.verdict {
            Verdict::Complete => row.completed += 1,
            Verdict::Retry { .. } => row.retried += 1,
            Verdict::Bury { .. } => row.failed += 1,
        }
    }
    if counts.is_empty() {
        return Ok(());
    }
    let rows: Vec<CountRow<'a>> = counts.into_values().collect();
    session
        .execute("stats_add", &[Param::Text(&json(&rows)?), Param::Int(replica.0)])
        .map_err(StoreError::taken_meanwhile)
}

/// Jobs with their tokens, as one JSON array of pairs, or for PostgreSQL as two arrays of equal length.
pub(super) struct Pairs {
    texts: Vec<String>,
}

impl Pairs {
    pub(super) fn of(dialect: Dialect, held: &[(Seq, Token)]) -> Pairs {
        let tokens = id_list(dialect, held.iter().map(|(_, token)| token.0));
        let seqs = id_list(dialect, held.iter().map(|(seq, _)| seq.0));
        if dialect == Dialect::Postgres {
            return Pairs { texts: vec![tokens, seqs] };
        }
        let pairs: Vec<String> = held.iter().map(|(seq, token)| format!("[{token},{seq}]")).collect();
        Pairs { texts: vec![format!("[{}]", pairs.join(","))] }
    }

    pub(super) fn params(&self) -> Vec<Param<'_>> {
        self.texts.iter().map(|text| Param::Text(text)).collect()
    }
}
