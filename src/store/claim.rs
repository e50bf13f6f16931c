//! Claims: a replica takes jobs under a lease, whose token fences their outcomes.

use std::collections::HashMap;
use std::time::Duration;

use super::dispatch::{OddRow, json_list, limit, waiting};
use super::session::{Param, Row, Session};
use super::submit::uuid;
use super::{BATCH_MAX, Dialect, EARLY_MS, Store, StoreError, id_list, millis, time};
use crate::job::{ClaimedJob, Lane, RETRIES_MAX, ReplicaId, Seq, Token};

/// What one claim got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The jobs, in the order of the ids asked for; all under one token.
    pub jobs: Vec<ClaimedJob>,
    /// Rows that cannot be claimed and are to be given up by [`Store::bury_odd`].
    pub odd: Vec<OddRow>,
}

impl Store {
    /// Takes the queued jobs among `seqs` (up to [`BATCH_MAX`]) for one replica, for `lease` from now. Jobs that another took
    /// meanwhile, or that are not due, are left out.
    ///
    /// # Errors
    /// On [`StoreError::Unavailable`] the claim may have been stored all the same; [`Store::release_unknown`] finds it.
    pub fn claim(&self, seqs: &[Seq], replica: ReplicaId, lease: Duration) -> Result<Vec<ClaimedJob>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        if self.dialect == Dialect::Sqlite {
            self.write(|session| claim(session, seqs, replica, lease))
        } else {
            self.write_one(|session| claim(session, seqs, replica, lease))
        }
    }

    /// Takes up to `count` due jobs of a lane that were not dispatched, straight from the table: the way without Redis.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub fn claim_next(
        &self,
        lane: Lane,
        count: usize,
        replica: ReplicaId,
        lease: Duration,
    ) -> Result<Claim, StoreError> {
        let lane = Param::Text(lane.as_str());
        if self.read(|session| waiting(session, "next", &[lane, limit(1)]))?.seen == 0 {
            return Ok(Claim::default());
        }
        self.write(|session| {
            let found = waiting(session, "next", &[lane, limit(count.min(BATCH_MAX))])?;
            // Marked as dispatched on the way, which also makes regular what plain SQL wrote.
            super::dispatch::mark_dispatched(session, &found.regular, replica)?;
            let jobs = if found.regular.is_empty() {
                Vec::new()
            } else {
                claim(session, &found.regular, replica, lease)?
            };
            Ok(Claim { jobs, odd: found.odd })
        })
    }
}

fn claim(
    session: &mut Session,
    seqs: &[Seq],
    replica: ReplicaId,
    lease: Duration,
) -> Result<Vec<ClaimedJob>, StoreError> {
    let list = id_list(session.dialect(), seqs.iter().map(|seq| seq.0));
    let list = Param::Text(&list);
    let covered = json_list(seqs)?;
    let (replica, lease, early) = (Param::Int(replica.0), Param::Int(millis(lease)), Param::Int(EARLY_MS));
    let mut claimed: HashMap<Seq, ClaimedJob> = HashMap::with_capacity(seqs.len());
    let keep = |row: &mut Row<'_, '_>| {
        let job = claimed_job(row)?;
        claimed.insert(job.seq, job);
        Ok(())
    };
    let begin = [replica, lease, Param::Text(&covered)];
    if session.dialect() == Dialect::Sqlite {
        let mut token = 0;
        session.change("lease_add", &begin, &[], |row| {
            token = row.int(1)?;
            Ok(())
        })?;
        let token = Param::Int(token);
        session.change("claim", &[token, replica, list, early], &[list, token], keep)?;
    } else {
        let [a, b, covered] = begin;
        let postgres = [a, b, covered, replica, list, early];
        let mssql = [a, b, covered, early];
        session.query(
            "claim",
            if session.dialect() == Dialect::Postgres {
                &postgres
            } else {
                &mssql
            },
            keep,
        )?;
    }
    Ok(seqs.iter().filter_map(|seq| claimed.remove(seq)).collect())
}

fn claimed_job(row: &mut Row<'_, '_>) -> Result<ClaimedJob, StoreError> {
    Ok(ClaimedJob {
        token: Token(row.int(1)?),
        seq: Seq(row.int(2)?),
        id: uuid(&row.text(3)?)?,
        job_type: row.text(4)?,
        payload: row.text(5)?,
        lane: lane(&row.text(6)?),
        retry_count: small(row.int(7)?),
        max_retries: small(row.int(8)?).min(RETRIES_MAX),
        timeout: row.maybe_int(9)?.filter(|&ms| ms > 0).map(|ms| Duration::from_millis(ms.unsigned_abs())),
        unique_key: row.maybe_text(10)?,
        created_at: time(row.int(11)?),
    })
}

/// Lanes are made regular before a job is claimed, so anything else can only be a lane that was changed by hand since.
pub(super) fn lane(name: &str) -> Lane {
    Lane::parse(name.trim()).unwrap_or_default()
}

/// Counts as plain SQL may have written them: below zero is zero.
pub(super) fn small(count: i64) -> u32 {
    u32::try_from(count.max(0)).unwrap_or(u32::MAX)
}
