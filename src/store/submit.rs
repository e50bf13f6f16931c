//! Storing new jobs: many in one statement, with unique keys and idempotency keys in the same transaction.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::batch::{Text, Texts, json};
use super::session::{Param, Session};
use super::{BATCH_MAX, Dialect, Store, StoreError, claim, keys, millis, time};
use crate::clock::Timestamp;
use crate::job::{ClaimedJob, Lane, NewJob, ReplicaId, Seq, Start, Token};

/// Payload that one statement stores at most, in bytes of UTF-8: FreeTDS sends up to 8,189,952 UTF-16 units, and as JSON a payload may
/// grow to twice its length and more.
const BATCH_BYTES_MAX: usize = 2 << 20;

/// A client's key for one call, so that a repeat of the call does not store its jobs again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// As the client sent it, up to 200 characters.
    pub key: String,
    /// SHA-256 of the request's body.
    pub request_hash: [u8; 32],
}

/// How far ahead of its `RunAt` a job that is stored counts as dispatched, for each lane in the order of [`Lane::ALL`]; `None`: not at all, it
/// waits in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Horizon(pub [Option<Duration>; 3]);

impl Horizon {
    /// That of one lane.
    pub fn of(&self, lane: Lane) -> Option<Duration> {
        self.0[lane.index()]
    }
}

/// All lanes alike, in milliseconds.
impl From<Option<u64>> for Horizon {
    fn from(ms: Option<u64>) -> Horizon {
        Horizon([ms.map(Duration::from_millis); 3])
    }
}

/// A job that was just stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Arrival number.
    pub seq: Seq,
    /// By the database's clock.
    pub created_at: Timestamp,
    /// Not started before.
    pub run_at: Timestamp,
    /// Milliseconds until it is due where it counts as dispatched, zero for now; `None`: the scheduler will dispatch it.
    pub due_in_ms: Option<u64>,
}

/// A job that was stored claimed.
pub type StoredClaimed = (Stored, ClaimedJob);

/// The unique key of a submitted job belongs to another live job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTaken {
    /// Public id of the job that holds it.
    pub held_by: Uuid,
}

/// What [`Store::submit_once`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The jobs were stored now; in their order.
    Now(Vec<Result<Stored, KeyTaken>>),
    /// An earlier call with the same key and body stored them; in its order.
    Before(Vec<Result<Uuid, KeyTaken>>),
    /// The key was used for another body.
    Mismatch,
}

#[derive(Serialize)]
struct JobRow<'a> {
    n: usize,
    id: Uuid,
    r#type: &'a str,
    payload: Text<'a>,
    lane: &'a str,
    max_retries: u32,
    at_ms: Option<i64>,
    delay_ms: Option<i64>,
    horizon_ms: Option<i64>,
    timeout_ms: Option<i64>,
    unique_key: Option<Text<'a>>,
}

/// How one job of a call ended, as kept for repeats.
#[derive(Serialize, Deserialize)]
enum Kept {
    #[serde(rename = "id")]
    Id(Uuid),
    #[serde(rename = "held_by")]
    HeldBy(Uuid),
}

impl Store {
    /// Stores jobs in one transaction; those due within the `horizon` of their lane count as dispatched by `replica`, which must push their ids when
    /// they are due.
    ///
    /// Returns one result for each job, in their order.
    ///
    /// # Errors
    /// On any error but [`StoreError::Unconfirmed`] nothing is stored.
    pub fn submit(
        &self,
        jobs: &[&NewJob],
        replica: ReplicaId,
        horizon: impl Into<Horizon>,
    ) -> Result<Vec<Result<Stored, KeyTaken>>, StoreError> {
        let horizon = horizon.into();
        if is_one_statement(jobs) && self.dialect != Dialect::Sqlite {
            let free: Vec<Result<&NewJob, KeyTaken>> = jobs.iter().map(|job| Ok(*job)).collect();
            return self.write_one(|session| insert(session, &free, replica, horizon));
        }
        self.write(|session| {
            let free = take_keys(session, jobs)?;
            insert(session, &free, replica, horizon)
        })
    }

    /// Stores jobs that are due now, and in the same transaction claims them for `lease`. On PostgreSQL one statement does both, where no job
    /// has a unique key.
    ///
    /// # Errors
    /// As [`Store::submit`].
    pub fn submit_claimed(
        &self,
        jobs: &[&NewJob],
        replica: ReplicaId,
        lease: Duration,
    ) -> Result<Vec<Result<StoredClaimed, KeyTaken>>, StoreError> {
        if self.dialect == Dialect::Postgres && is_one_statement(jobs) {
            return self.write_one(|session| insert_claimed(session, jobs, replica, lease));
        }
        self.write(|session| {
            let free = take_keys(session, jobs)?;
            let stored = insert(session, &free, replica, Horizon::from(Some(0)))?;
            let seqs: Vec<Seq> = stored.iter().flatten().map(|stored| stored.seq).collect();
            let mut claimed: HashMap<Seq, ClaimedJob> = HashMap::with_capacity(seqs.len());
            for seqs in seqs.chunks(BATCH_MAX) {
                let claim = claim::claim(session, seqs, replica, lease, false)?;
                claimed.extend(claim.jobs.into_iter().map(|job| (job.seq, job)));
            }
            let with_claim = |result: Result<Stored, KeyTaken>| match result {
                Err(taken) => Ok(Err(taken)),
                Ok(stored) => {
                    let job = claimed.remove(&stored.seq).ok_or_else(clock_set_back)?;
                    Ok(Ok((stored, job)))
                }
            };
            stored.into_iter().map(with_claim).collect()
        })
    }

    /// [`Store::submit`] for a call with an idempotency key.
    ///
    /// # Errors
    /// As [`Store::submit`].
    pub fn submit_once(
        &self,
        jobs: &[&NewJob],
        idempotency: &Idempotency,
        replica: ReplicaId,
        horizon: impl Into<Horizon>,
    ) -> Result<Submitted, StoreError> {
        let horizon = horizon.into();
        let hash = hex(&idempotency.request_hash);
        if let Some(before) = self.submitted_before(&idempotency.key, &hash)? {
            return Ok(before);
        }
        let now = self.write(|session| {
            let free = take_keys(session, jobs)?;
            let results: Vec<Kept> = free
                .iter()
                .map(|result| match result {
                    Ok(job) => Kept::Id(job.id),
                    Err(taken) => Kept::HeldBy(taken.held_by),
                })
                .collect();
            let results = json(&results)?;
            session.execute(
                "idempotency_add",
                &[Param::Text(&idempotency.key), Param::Text(&hash), Param::Text(&results)],
            )?;
            insert(session, &free, replica, horizon)
        });
        match now {
            Ok(results) => Ok(Submitted::Now(results)),
            // Another call with this key was stored between the look and the insert.
            Err(StoreError::Conflict(why)) => {
                self.submitted_before(&idempotency.key, &hash)?.ok_or(StoreError::Conflict(why))
            }
            Err(error) => Err(error),
        }
    }

    fn submitted_before(&self, key: &str, hash: &str) -> Result<Option<Submitted>, StoreError> {
        let found = self.read(|session| {
            let mut found = None;
            session.query("idempotency_find", &[Param::Text(key)], |row| {
                found = Some((row.text(1)?, row.text(2)?));
                Ok(())
            })?;
            Ok(found)
        })?;
        let Some((found_hash, results)) = found else { return Ok(None) };
        if found_hash.trim_end() != hash {
            return Ok(Some(Submitted::Mismatch));
        }
        let kept: Vec<Kept> = serde_json::from_str(&results).map_err(|error| {
            StoreError::Corrupt(format!("the results kept for an idempotency key cannot be read: {error}"))
        })?;
        let results = kept.into_iter().map(|kept| match kept {
            Kept::Id(id) => Ok(id),
            Kept::HeldBy(held_by) => Err(KeyTaken { held_by }),
        });
        Ok(Some(Submitted::Before(results.collect())))
    }
}

/// Whether a statement that is its own transaction can store them.
fn is_one_statement(jobs: &[&NewJob]) -> bool {
    batches(jobs).len() <= 1 && jobs.iter().all(|job| job.unique_key.is_none())
}

/// Takes the unique keys; a job whose key another holds (in the table, or before it in `jobs`) is replaced by who holds it.
fn take_keys<'a>(session: &mut Session, jobs: &[&'a NewJob]) -> Result<Vec<Result<&'a NewJob, KeyTaken>>, StoreError> {
    let mut first: HashMap<&str, Uuid> = HashMap::new();
    for job in jobs {
        if let Some(key) = &job.unique_key {
            first.entry(key).or_insert(job.id);
        }
    }
    let holders = keys::take(session, first.into_iter().collect())?;
    let held_by_another = |job: &NewJob| {
        let key = job.unique_key.as_ref()?;
        let held_by = holders.get(key).copied().unwrap_or(job.id);
        (held_by != job.id).then_some(KeyTaken { held_by })
    };
    Ok(jobs.iter().map(|job| held_by_another(job).map_or(Ok(*job), Err)).collect())
}

fn insert(
    session: &mut Session,
    jobs: &[Result<&NewJob, KeyTaken>],
    replica: ReplicaId,
    horizon: Horizon,
) -> Result<Vec<Result<Stored, KeyTaken>>, StoreError> {
    let free: Vec<&NewJob> = jobs.iter().filter_map(|job| job.as_ref().ok().copied()).collect();
    let mut stored: HashMap<Uuid, Stored> = HashMap::with_capacity(free.len());
    for jobs in batches(&free) {
        let mut texts = Texts::of(session);
        let rows: Vec<JobRow<'_>> =
            jobs.iter().enumerate().map(|(n, job)| job_row(n, job, horizon, &mut texts)).collect();
        let batch = texts.batch(&rows)?;
        let params = batch.params_and(&[Param::Int(replica.0)]);
        session.change("submit", &params, &[batch.rows()], |row| {
            let (seq, id) = (Seq(row.int(1)?), uuid(&row.text(2)?)?);
            let (created_at, run_at) = (time(row.int(3)?), time(row.int(4)?));
            let due_in_ms = row.maybe_int(5)?.map(|ms| ms.max(0).unsigned_abs());
            stored.insert(id, Stored { seq, created_at, run_at, due_in_ms });
            Ok(())
        })?;
    }
    let result = |job: &Result<&NewJob, KeyTaken>| match job {
        Err(taken) => Ok(Err(*taken)),
        Ok(job) => stored.get(&job.id).copied().map(Ok).ok_or_else(|| untold(job.id)),
    };
    jobs.iter().map(result).collect()
}

fn insert_claimed(
    session: &mut Session,
    jobs: &[&NewJob],
    replica: ReplicaId,
    lease: Duration,
) -> Result<Vec<Result<StoredClaimed, KeyTaken>>, StoreError> {
    let mut texts = Texts::of(session);
    let rows: Vec<JobRow<'_>> =
        jobs.iter().enumerate().map(|(n, job)| job_row(n, job, Horizon::default(), &mut texts)).collect();
    let (batch, replica) = (json(&rows)?, Param::Int(replica.0));
    let params = [Param::Text(&batch), replica, Param::Int(millis(lease)), replica, replica];
    let mut stored: HashMap<Uuid, (Token, Seq, Timestamp)> = HashMap::with_capacity(jobs.len());
    session.query("submit_claimed", &params, |row| {
        stored.insert(uuid(&row.text(3)?)?, (Token(row.int(1)?), Seq(row.int(2)?), time(row.int(4)?)));
        Ok(())
    })?;
    let result = |job: &&NewJob| {
        let (token, seq, created_at) = stored.remove(&job.id).ok_or_else(|| untold(job.id))?;
        Ok(Ok((
            Stored { seq, created_at, run_at: created_at, due_in_ms: Some(0) },
            ClaimedJob {
                token,
                seq,
                id: job.id,
                job_type: job.job_type.clone(),
                payload: job.payload.clone(),
                lane: job.lane,
                retry_count: 0,
                max_retries: job.max_retries,
                timeout: job.timeout,
                unique_key: None,
                created_at,
            },
        )))
    };
    jobs.iter().map(result).collect()
}

/// What was due when it was stored is no more when it is claimed, in the same transaction.
fn clock_set_back() -> StoreError {
    StoreError::Contended("the database's clock was set back".into())
}

fn untold(job: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("the database did not tell of the job {job} it stored"))
}

/// Cuts `jobs` into what one statement takes: up to [`BATCH_MAX`] of them, and up to [`BATCH_BYTES_MAX`] of payload unless one job alone
/// has more.
fn batches<'a, 'j>(jobs: &'a [&'j NewJob]) -> Vec<&'a [&'j NewJob]> {
    let (mut batches, mut rest) = (Vec::new(), jobs);
    while !rest.is_empty() {
        let mut bytes = 0usize;
        let fits = rest.iter().take(BATCH_MAX).take_while(|job| {
            bytes = bytes.saturating_add(job.payload.len());
            bytes <= BATCH_BYTES_MAX
        });
        let (batch, behind) = rest.split_at(fits.count().max(1));
        batches.push(batch);
        rest = behind;
    }
    batches
}

fn job_row<'a>(n: usize, job: &'a NewJob, horizon: Horizon, texts: &mut Texts) -> JobRow<'a> {
    let (at_ms, delay_ms) = match job.start {
        Start::Now => (None, None),
        Start::At(time) => (Some(time.as_millis()), None),
        Start::After(delay) => (None, Some(millis(delay))),
    };
    JobRow {
        n,
        id: job.id,
        r#type: &job.job_type,
        payload: texts.put(&job.payload),
        lane: job.lane.as_str(),
        max_retries: job.max_retries,
        at_ms,
        delay_ms,
        horizon_ms: horizon.of(job.lane).map(millis),
        timeout_ms: job.timeout.map(millis),
        unique_key: job.unique_key.as_deref().map(|key| texts.put(key)),
    }
}

pub(super) fn uuid(text: &str) -> Result<Uuid, StoreError> {
    Uuid::try_parse(text.trim()).map_err(|error| StoreError::BadRow(format!("{text:?} is not an id: {error}")))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}"); // OK: writing to a String does not fail
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_takes_as_many_jobs_as_fit_and_at_least_one() {
        let job = |bytes| NewJob::new("x", "x".repeat(bytes));
        let (half, whole, small) = (job(BATCH_BYTES_MAX / 2), job(BATCH_BYTES_MAX + 1), job(1));

        let jobs = [&half, &half, &small, &whole, &small];
        let sizes: Vec<usize> = batches(&jobs).iter().map(|batch| batch.len()).collect();

        assert_eq!(sizes, [2, 1, 1, 1]);
        assert_eq!(batches(&vec![&small; BATCH_MAX + 1]).len(), 2);
        assert!(batches(&[]).is_empty());
    }
}
