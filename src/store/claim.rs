//! Claims: a replica takes jobs under a lease, whose token fences their outcomes.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::dispatch::{OddRow, json_list, limit, waiting};
use super::elsewhere::held_elsewhere;
use super::session::{Param, Row, Session};
use super::submit::uuid;
use super::{BATCH_MAX, Dialect, EARLY_MS, Store, StoreError, id_list, millis, time};
use crate::job::{ClaimedJob, Lane, RETRIES_MAX, ReplicaId, Seq, Token};

/// Claims that may be refused one after the other before it is clear that it is not for one of their rows: the halves of
/// [`BATCH_MAX`], and as much again.
const REFUSED_MAX: u32 = 20;

/// What one claim got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The jobs, in the order of the ids asked for; under one token, or several where the claim was cut in parts to set rows apart.
    pub jobs: Vec<ClaimedJob>,
    /// Rows that cannot be claimed and are to be given up by [`Store::bury_odd`].
    pub odd: Vec<OddRow>,
    /// Jobs asked for that were left out though they wait for a worker: another session holds their row, or they are not due yet.
    pub left: Vec<Seq>,
}

impl Store {
    /// Takes the queued jobs among `seqs` (up to [`BATCH_MAX`]) for one replica, for `lease` from now. Jobs that another took
    /// meanwhile, or that are not due, are left out. A row that cannot be read holds up no other.
    ///
    /// # Errors
    /// On [`StoreError::Unavailable`] the claim may have been stored all the same; [`Store::release_unknown`] finds it.
    pub fn claim(&self, seqs: &[Seq], replica: ReplicaId, lease: Duration) -> Result<Claim, StoreError> {
        if seqs.is_empty() {
            return Ok(Claim::default());
        }
        let once = |seqs: &[Seq]| self.claim_once(seqs, replica, lease);
        let mut claim = apart(once(seqs), seqs, once)?;
        let found: HashSet<Seq> =
            claim.jobs.iter().map(|job| job.seq).chain(claim.odd.iter().map(|odd| odd.seq)).collect();
        let left: Vec<Seq> = seqs.iter().copied().filter(|seq| !found.contains(seq)).collect();
        // What was claimed is to run even if this fails; the search for lost ids finds the rest.
        claim.left = self.unclaimed(&left).unwrap_or_default();
        if !claim.left.is_empty() && self.is_wary() {
            self.be_wary();
        }
        Ok(claim)
    }

    /// On PostgreSQL a row held elsewhere is waited for once, and then passed over for a while. On SQL Server one that is being changed always
    /// is; for one that another session has read and keeps locked, as under SERIALIZABLE, it is as on PostgreSQL.
    fn claim_once(&self, seqs: &[Seq], replica: ReplicaId, lease: Duration) -> Result<Claim, StoreError> {
        match self.dialect {
            Dialect::Sqlite => self.write(|session| claim(session, seqs, replica, lease, false)),
            Dialect::Mssql | Dialect::Postgres => {
                if !self.is_wary() {
                    match self.write_one(|session| claim(session, seqs, replica, lease, false)) {
                        Err(StoreError::Contended(_)) => self.be_wary(),
                        result => return result,
                    }
                }
                if self.dialect == Dialect::Postgres {
                    return self.write_one(|session| claim(session, seqs, replica, lease, true));
                }
                self.write(|session| {
                    let held = held_elsewhere(session, seqs.iter().copied())?;
                    let free: Vec<Seq> = seqs.iter().copied().filter(|seq| !held.contains(seq)).collect();
                    claim(session, &free, replica, lease, false)
                })
            }
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
        let next = [lane, limit(count.min(BATCH_MAX))];
        let claimed = self.write(|session| {
            let found = waiting(session, "next", &next)?;
            let claimed = claim_waiting(session, &found.regular, replica, lease)?;
            Ok(claimed.and(Vec::new(), found.odd))
        });
        match claimed {
            Err(error) if !error.is_transient() => {
                let found = self.read(|session| waiting(session, "next", &next))?;
                let once = |seqs: &[Seq]| self.write(|session| claim_waiting(session, seqs, replica, lease));
                Ok(apart(Err(error), &found.regular, once)?.and(Vec::new(), found.odd))
            }
            claimed => claimed,
        }
    }
}

impl Claim {
    fn and(mut self, jobs: Vec<ClaimedJob>, odd: Vec<OddRow>) -> Claim {
        self.jobs.extend(jobs);
        self.odd.extend(odd);
        self
    }
}

/// Where the claim of `seqs` was refused, claims them in ever smaller parts, to find the rows that stand in the way. Such a row is odd if the
/// error says that a value is to blame, or others could be claimed; else what is refused is every claim, and no job is to suffer.
fn apart(
    claimed: Result<Claim, StoreError>,
    seqs: &[Seq],
    once: impl Fn(&[Seq]) -> Result<Claim, StoreError>,
) -> Result<Claim, StoreError> {
    let first = match claimed {
        Err(error) if !error.is_transient() => error,
        claimed => return claimed,
    };
    let mut claim = Claim::default();
    let mut suspects: Vec<(Seq, StoreError)> = Vec::new();
    let mut refused = 1;
    let mut parts = vec![seqs];
    while let Some(part) = parts.pop() {
        match once(part) {
            Ok(part) => claim = claim.and(part.jobs, part.odd),
            // What was claimed already is not lost: its lease is one that the replica does not know.
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                refused += 1;
                if let &[seq] = part {
                    suspects.push((seq, error));
                } else {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                if claim.jobs.is_empty() && refused > REFUSED_MAX {
                    return Err(first);
                }
            }
        }
    }
    let is_their_own = !claim.jobs.is_empty();
    let odd = suspects.into_iter().filter(|(_, error)| is_their_own || matches!(error, StoreError::BadRow(_)));
    let odd =
        odd.map(|(seq, error)| OddRow { seq, token: None, reason: format!("its claim is refused: {error}") }).collect();
    let claim = claim.and(Vec::new(), odd);
    if claim == Claim::default() {
        Err(first)
    } else {
        Ok(claim)
    }
}

/// Why a row was given up that cannot be read.
pub(super) fn unreadable(why: &str) -> String {
    format!("its row cannot be read: {why}")
}

/// Claims rows found by `next`. Marked as dispatched on the way, which also makes regular what plain SQL wrote.
fn claim_waiting(
    session: &mut Session,
    seqs: &[Seq],
    replica: ReplicaId,
    lease: Duration,
) -> Result<Claim, StoreError> {
    if seqs.is_empty() {
        return Ok(Claim::default());
    }
    super::dispatch::mark_dispatched(session, seqs, replica)?;
    claim(session, seqs, replica, lease, false)
}

/// A claim within the transaction of the session, or as one of its own.
pub(super) fn claim(
    session: &mut Session,
    seqs: &[Seq],
    replica: ReplicaId,
    lease: Duration,
    only_free: bool,
) -> Result<Claim, StoreError> {
    let list = id_list(session.dialect(), seqs.iter().map(|seq| seq.0));
    let list = Param::Text(&list);
    let covered = json_list(seqs)?;
    let (replica, lease, early) = (Param::Int(replica.0), Param::Int(millis(lease)), Param::Int(EARLY_MS));
    let mut claimed: HashMap<Seq, ClaimedJob> = HashMap::with_capacity(seqs.len());
    let mut odd = Vec::new();
    let keep = |row: &mut Row<'_, '_>| {
        let (token, seq) = (Token(row.int(1)?), Seq(row.int(2)?));
        match claimed_job(row, token, seq) {
            Ok(job) => drop(claimed.insert(seq, job)),
            Err(StoreError::BadRow(why)) => odd.push(OddRow { seq, token: Some(token), reason: unreadable(&why) }),
            Err(error) => return Err(error),
        }
        Ok(())
    };
    let begin = [replica, lease, Param::Text(&covered)];
    if session.dialect() == Dialect::Sqlite {
        let mut number = 0;
        session.change("lease_add", &begin, &[], |row| {
            number = row.int(1)?;
            Ok(())
        })?;
        let token = Param::Int(number);
        session.change("claim", &[token, replica, list, early], &[list, token], keep)?;
        if claimed.is_empty() && odd.is_empty() {
            let tokens = id_list(session.dialect(), [number]);
            session.execute("leases_end", &[Param::Text(&tokens)])?;
        }
    } else {
        let [_, lease, covered] = begin;
        match (session.dialect(), only_free) {
            (Dialect::Postgres, true) => {
                session.query("claim_free", &[list, early, replica, lease, covered, replica], keep)?;
            }
            (Dialect::Postgres, false) => {
                let params = [replica, lease, covered, list, early, replica, list, early];
                session.query("claim", &params, keep)?;
            }
            _ => session.query("claim", &[replica, lease, covered, early], keep)?,
        }
    }
    let jobs = seqs.iter().filter_map(|seq| claimed.remove(seq)).collect();
    Ok(Claim { jobs, odd, left: Vec::new() })
}

fn claimed_job(row: &mut Row<'_, '_>, token: Token, seq: Seq) -> Result<ClaimedJob, StoreError> {
    Ok(ClaimedJob {
        token,
        seq,
        id: uuid(&row.text(3)?)?,
        job_type: row.text(4)?,
        payload: row.text(5)?,
        lane: lane(&row.text(6)?),
        retry_count: retries(row.int(7)?),
        max_retries: retries(row.int(8)?),
        timeout: row.maybe_int(9)?.filter(|&ms| ms > 0).map(|ms| Duration::from_millis(ms.unsigned_abs())),
        unique_key: row.maybe_text(10)?,
        created_at: time(row.int(11)?),
    })
}

/// Lanes are made regular before a job is claimed, so anything else can only be a lane that was changed by hand since.
pub(super) fn lane(name: &str) -> Lane {
    Lane::parse(name.trim()).unwrap_or_default()
}

/// Counts of retries as plain SQL may have written them: below zero is zero, and more than [`RETRIES_MAX`] is that. So the number of an
/// attempt can be stored, and a job that kills its worker ends.
pub(super) fn retries(count: i64) -> u32 {
    u32::try_from(count.clamp(0, RETRIES_MAX.into())).unwrap_or(RETRIES_MAX) // OK: at most RETRIES_MAX
}
