//! Reading jobs, their failed attempts, and dead letters, for the HTTP API.

use uuid::Uuid;

use super::batch::json;
use super::dispatch::limit;
use super::session::{Param, Row};
use super::submit::uuid;
use super::{BATCH_MAX, Dialect, Store, StoreError, time};
use crate::clock::Timestamp;
use crate::job::{DeadLetter, FailedAttempt, Job, Lane, Seq, Status, Token};

/// Which jobs a listing shows; `None` lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Of this status.
    pub status: Option<Status>,
    /// Of this type.
    pub job_type: Option<String>,
    /// Of this lane.
    pub lane: Option<Lane>,
    /// Stored at or after this time.
    pub since: Option<Timestamp>,
}

/// Which dead letters a listing shows; `None` lets all through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Of this type.
    pub job_type: Option<String>,
    /// Of this lane.
    pub lane: Option<Lane>,
    /// Given up at or after this time.
    pub since: Option<Timestamp>,
}

impl Store {
    /// The database's clock.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn now(&self) -> Result<Timestamp, StoreError> {
        self.read(|session| {
            let mut now = None;
            session.query("now", &[], |row| {
                now = Some(time(row.int(1)?));
                Ok(())
            })?;
            now.ok_or_else(|| StoreError::Corrupt("the database did not tell the time".into()))
        })
    }

    /// What an operator might change about the database, for `trilane check`.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn advice(&self) -> Result<Option<String>, StoreError> {
        if self.dialect != Dialect::Mssql {
            return Ok(None);
        }
        let mut has_snapshots = false;
        self.read(|session| {
            session.query("has_snapshots", &[], |row| {
                has_snapshots = row.int(1)? != 0;
                Ok(())
            })
        })?;
        let advice = "set READ_COMMITTED_SNAPSHOT ON, so that listings do not wait for writers (ALTER DATABASE … SET \
                      READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE)";
        Ok((!has_snapshots).then(|| advice.to_owned()))
    }

    /// The job with this public id.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn job(&self, id: Uuid) -> Result<Option<Job>, StoreError> {
        let id = id.to_string();
        Ok(self.jobs_of("job", &[Param::Text(&id)])?.pop())
    }

    /// The jobs with these public ids, in any order; those that are gone are left out.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn jobs_by_id(&self, ids: &[Uuid]) -> Result<Vec<Job>, StoreError> {
        let mut jobs = Vec::with_capacity(ids.len());
        for ids in ids.chunks(BATCH_MAX) {
            let ids = json(ids)?;
            jobs.extend(self.jobs_of("jobs_by_id", &[Param::Text(&ids)])?);
        }
        Ok(jobs)
    }

    /// Up to `count` jobs behind `after` (from the start where `None`), in the order of arrival.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn jobs(&self, filter: &JobFilter, after: Option<Seq>, count: usize) -> Result<Vec<Job>, StoreError> {
        let params = [
            Param::Int(after.map_or(i64::MIN, |seq| seq.0)),
            Param::MaybeText(filter.status.map(Status::as_str)),
            Param::MaybeText(filter.job_type.as_deref()),
            Param::MaybeText(filter.lane.map(Lane::as_str)),
            Param::MaybeInt(filter.since.map(Timestamp::as_millis)),
            limit(count),
        ];
        self.jobs_of("jobs", &params)
    }

    /// The failed attempts of a job, oldest first.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn failed_attempts(&self, id: Uuid) -> Result<Vec<FailedAttempt>, StoreError> {
        let id = id.to_string();
        self.read(|session| {
            let mut attempts = Vec::new();
            session.query("attempts", &[Param::Text(&id)], |row| {
                attempts.push(FailedAttempt {
                    attempt: row.int(1)?,
                    token: Token(row.int(2)?),
                    started_at: row.maybe_int(3)?.map(time),
                    finished_at: time(row.int(4)?),
                    error: row.text(5)?,
                });
                Ok(())
            })?;
            Ok(attempts)
        })
    }

    /// Up to `count` dead letters behind `after` (from the start where `None`), in the order in which they came.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        count: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let params = [
            Param::Int(after.map_or(i64::MIN, |seq| seq.0)),
            Param::MaybeText(filter.job_type.as_deref()),
            Param::MaybeText(filter.lane.map(Lane::as_str)),
            Param::MaybeInt(filter.since.map(Timestamp::as_millis)),
            limit(count),
        ];
        self.read(|session| {
            let mut letters = Vec::new();
            session.query("dead_letters", &params, |row| {
                letters.push(dead_letter(row)?);
                Ok(())
            })?;
            Ok(letters)
        })
    }

    fn jobs_of(&self, name: &'static str, params: &[Param<'_>]) -> Result<Vec<Job>, StoreError> {
        self.read(|session| {
            let mut jobs = Vec::new();
            session.query(name, params, |row| {
                jobs.push(job(row)?);
                Ok(())
            })?;
            Ok(jobs)
        })
    }
}

/// Reads the columns of a job; every statement that returns jobs returns these. A value that cannot be read (an id that is none, say) is
/// shown as zero or empty, so that one row that was changed by hand does not end every listing that it is in.
pub(super) fn job(row: &mut Row<'_, '_>) -> Result<Job, StoreError> {
    Ok(Job {
        seq: Seq(row.int(1)?),
        id: or_empty(id(row, 2))?,
        job_type: or_empty(row.text(3))?,
        payload: or_empty(row.text(4))?,
        priority: or_empty(row.text(5))?,
        max_retries: or_empty(row.int(6))?,
        retry_count: or_empty(row.int(7))?,
        status: or_empty(row.text(8))?,
        created_at: time(or_empty(row.int(9))?),
        updated_at: time(or_empty(row.int(10))?),
        run_at: time(or_empty(row.int(11))?),
        started_at: or_empty(row.maybe_int(12))?.map(time),
        finished_at: or_empty(row.maybe_int(13))?.map(time),
        timeout_ms: or_empty(row.maybe_int(14))?,
        unique_key: or_empty(row.maybe_text(15))?,
        last_error: or_empty(row.maybe_text(16))?,
    })
}

fn dead_letter(row: &mut Row<'_, '_>) -> Result<DeadLetter, StoreError> {
    Ok(DeadLetter {
        seq: Seq(row.int(1)?),
        id: or_empty(id(row, 2))?,
        original_job_id: or_empty(id(row, 3))?,
        job_type: or_empty(row.text(4))?,
        payload: or_empty(row.text(5))?,
        priority: or_empty(row.text(6))?,
        reason: or_empty(row.text(7))?,
        failed_at: time(or_empty(row.int(8))?),
    })
}

fn id(row: &mut Row<'_, '_>, column: u16) -> Result<Uuid, StoreError> {
    uuid(&row.text(column)?)
}

fn or_empty<T: Default>(value: Result<T, StoreError>) -> Result<T, StoreError> {
    match value {
        Err(StoreError::BadRow(_)) => Ok(T::default()),
        value => value,
    }
}
