//! Leases and replicas: renewing what is held, ending what ran out, showing who is alive.

use std::time::Duration;

use uuid::Uuid;

use super::claim::{lane, retries, unreadable};
use super::dispatch::{OddRow, bury, limit};
use super::elsewhere::held_elsewhere;
use super::outcome::{Outcome, Pairs, Released, finish, release};
use super::session::{Param, Row, Session};
use super::submit::uuid;
use super::{Store, StoreError, id_list, millis};
use crate::job::{ReplicaId, Seq, Token};
use crate::retry::Verdict;

/// Leases that one round ends at most; each covers up to [`super::BATCH_MAX`] jobs.
const EXPIRED_MAX: usize = 10;

/// A lease that ran out while another session held a row of its jobs lives on for this long.
const POSTPONED: Duration = Duration::from_secs(5);

/// What a beat found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Whether leases have run out, so that their jobs must be taken back.
    pub leases_expired: bool,
    /// Whether replicas have died, so that the ids in their timers must be dispatched anew.
    pub replicas_dead: bool,
}

/// A job whose lease ran out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Arrival number.
    pub seq: Seq,
    /// Public id.
    pub id: Uuid,
    /// Selects the retry policy.
    pub job_type: String,
    /// Failed attempts so far.
    pub retry_count: u32,
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// The replica that held the lease.
    pub replica: ReplicaId,
}

impl Store {
    /// Renews the leases of `held` to `lease` from now, by the database's clock.
    ///
    /// Returns the leases that this replica no longer holds; the caller must stop their jobs, whose outcomes are refused.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if no connection is free within the pool's wait.
    pub fn renew(&self, held: &[Token], lease: Duration) -> Result<Vec<Token>, StoreError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        self.write(|session| {
            let tokens = id_list(session.dialect(), held.iter().map(|token| token.0));
            let mut renewed = std::collections::HashSet::new();
            let params = [Param::Int(millis(lease)), Param::Text(&tokens)];
            session.change("leases_renew", &params, &[Param::Text(&tokens)], |row| {
                renewed.insert(Token(row.int(1)?));
                Ok(())
            })?;
            Ok(held.iter().copied().filter(|token| !renewed.contains(token)).collect())
        })
    }

    /// Removes leases whose jobs all have their outcome.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn end_leases(&self, tokens: &[Token]) -> Result<(), StoreError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let tokens = id_list(self.dialect, tokens.iter().map(|token| token.0));
        self.write_one(|session| session.execute("leases_end", &[Param::Text(&tokens)]))
    }

    /// Which of the given jobs are no longer running under the given tokens: cancelled, or lost.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn not_held(&self, held: &[(Seq, Token)]) -> Result<Vec<(Seq, Token)>, StoreError> {
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let pairs = Pairs::of(self.dialect, held);
        self.read(|session| {
            let mut gone = Vec::new();
            session.query("not_held", &pairs.params(), |row| {
                gone.push((Seq(row.int(1)?), Token(row.int(2)?)));
                Ok(())
            })?;
            Ok(gone)
        })
    }

    /// Ends leases that ran out, and lets `verdict` decide what becomes of the jobs still running under them. One of which another session holds a
    /// row is left to a later call.
    ///
    /// Returns the jobs that were taken back, which may be none where their outcomes had come; `None` if no lease had run out. Where the
    /// database refuses what becomes of a job, the others are taken back all the same, and this one is given up if it is the one to blame.
    ///
    /// # Errors
    /// As every call of the store; what could be taken back by itself was.
    pub fn expire(
        &self,
        replica: ReplicaId,
        verdict: impl Fn(&Expired) -> Verdict,
    ) -> Result<Option<Vec<Expired>>, StoreError> {
        match self.expire_together(replica, &verdict) {
            Err(error) if !error.is_transient() || matches!(error, StoreError::TimedOut(_)) => {
                self.expire_apart(error, replica, &verdict)
            }
            expired => expired,
        }
    }

    /// Ends the first [`EXPIRED_MAX`] leases that ran out, in one transaction.
    fn expire_together(
        &self,
        replica: ReplicaId,
        verdict: impl Fn(&Expired) -> Verdict,
    ) -> Result<Option<Vec<Expired>>, StoreError> {
        self.write(|session| {
            let mut taken = Vec::new();
            let leases = leases(session, "leases_expired", &[limit(EXPIRED_MAX)])?;
            if leases.is_empty() {
                return Ok(None);
            }
            let (mut whole, mut postponed) = (Vec::new(), Vec::new());
            for lease in leases {
                let is_free = held_elsewhere(session, lease.seqs())?.is_empty();
                if is_free { &mut whole } else { &mut postponed }.push(lease);
            }
            // With all of its jobs: to end it for some of them would let its replica, should it wake up, begin those.
            let tokens = id_list(session.dialect(), postponed.iter().map(|lease| lease.token.0));
            let (tokens, time) = (Param::Text(&tokens), Param::Int(millis(POSTPONED)));
            session.change("leases_renew", &[time, tokens], &[tokens], |_| Ok(()))?;
            // Ended before its jobs are judged: a replica that wakes up now finds its lease gone.
            let tokens = id_list(session.dialect(), whole.iter().map(|lease| lease.token.0));
            session.execute("leases_end", &[Param::Text(&tokens)])?;
            for lease in whole {
                let running = running_under(session, &lease, &verdict)?;
                finish(session, &running.outcomes, replica, None)?;
                running.odd.iter().try_for_each(|row| bury(session, row))?;
                taken.extend(running.expired);
            }
            crate::fault::fault_point!("expire.in_transaction");
            Ok(Some(taken))
        })
    }

    /// Gives back the jobs of leases that `replica` took without learning of it, as when its connection broke at the commit of a claim.
    /// `known` are the leases it knows of. Their attempt is not consumed; their ids are to be pushed.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release_unknown(&self, replica: ReplicaId, known: &[Token]) -> Result<Vec<Released>, StoreError> {
        self.write(|session| {
            let mut released = Vec::new();
            let tokens = id_list(session.dialect(), known.iter().map(|token| token.0));
            let unknown = leases(session, "leases_unknown", &[Param::Int(replica.0), Param::Text(&tokens)])?;
            let mut ended = Vec::with_capacity(unknown.len());
            for lease in &unknown {
                // One of which another session holds a row is left to run out.
                let held = held_elsewhere(session, lease.seqs())?;
                let free = lease.seqs().filter(|seq| !held.contains(seq)).map(|seq| (seq, lease.token));
                let free: Vec<(Seq, Token)> = free.collect();
                if !free.is_empty() {
                    released.extend(release(session, &free, replica)?);
                }
                ended.extend(held.is_empty().then_some(lease.token.0));
            }
            let tokens = id_list(session.dialect(), ended);
            session.execute("leases_end", &[Param::Text(&tokens)])?;
            Ok(released)
        })
    }

    /// Shows this replica as alive.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn beat(&self, replica: ReplicaId, name: &str, holds: usize, dead_after: Duration) -> Result<Beat, StoreError> {
        let own = [Param::Int(replica.0), Param::Text(name), limit(holds)];
        let dead_after = Param::Int(millis(dead_after));
        let whole = [own[0], own[1], own[2], dead_after];
        let params = if self.dialect == super::Dialect::Sqlite {
            &own[..]
        } else {
            &whole[..]
        };
        let beat = |session: &mut Session| {
            let mut beat = Beat::default();
            session.change("beat", params, &[dead_after], |row| {
                beat = Beat { leases_expired: row.int(1)? > 0, replicas_dead: row.int(2)? > 0 };
                Ok(())
            })?;
            Ok(beat)
        };
        if self.dialect == super::Dialect::Sqlite {
            self.write(beat)
        } else {
            self.write_one(beat)
        }
    }

    /// Forgets those of `replicas` that are still not seen for `dead_after`, once the ids in their timers are recalled.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn bury_replicas(&self, replicas: &[ReplicaId], dead_after: Duration) -> Result<(), StoreError> {
        if replicas.is_empty() {
            return Ok(());
        }
        let list = id_list(self.dialect, replicas.iter().map(|replica| replica.0));
        let params = [Param::Text(&list), Param::Int(millis(dead_after))];
        self.write_one(|session| session.execute("replicas_bury", &params))
    }

    /// Forgets one replica, at its stop.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn forget_replica(&self, replica: ReplicaId) -> Result<(), StoreError> {
        self.write_one(|session| session.execute("replica_gone", &[Param::Int(replica.0)]))
    }
}

pub(super) struct Lease {
    pub(super) token: Token,
    seqs: Vec<i64>,
    replica: ReplicaId,
}

impl Lease {
    fn seqs(&self) -> impl Iterator<Item = Seq> {
        self.seqs.iter().copied().map(Seq)
    }
}

pub(super) fn leases(
    session: &mut Session,
    name: &'static str,
    params: &[Param<'_>],
) -> Result<Vec<Lease>, StoreError> {
    let mut leases = Vec::new();
    session.query(name, params, |row| {
        let (token, seqs, replica) = (Token(row.int(1)?), row.text(2)?, ReplicaId(row.int(3)?));
        let seqs = serde_json::from_str(&seqs).unwrap_or_else(|error| {
            // Nothing but a change by hand does this, and it must not keep other leases from being ended.
            log::error!(token:% = token, error:% = error; "the jobs of a lease cannot be read; they stay as they are");
            Vec::new()
        });
        leases.push(Lease { token, seqs, replica });
        Ok(())
    })?;
    Ok(leases)
}

/// What still runs under a lease that ran out.
#[derive(Default)]
pub(super) struct Running {
    pub(super) expired: Vec<Expired>,
    /// One for each of `expired`.
    pub(super) outcomes: Vec<Outcome>,
    /// Those whose row cannot be read.
    pub(super) odd: Vec<OddRow>,
}

pub(super) fn running_under(
    session: &mut Session,
    lease: &Lease,
    verdict: impl Fn(&Expired) -> Verdict,
) -> Result<Running, StoreError> {
    let seqs = id_list(session.dialect(), lease.seqs.iter().copied());
    let mut running = Running::default();
    session.query("expired_jobs", &[Param::Int(lease.token.0), Param::Text(&seqs)], |row| {
        let seq = Seq(row.int(1)?);
        match outcome(row, seq, lease, &verdict) {
            Ok((expired, outcome)) => {
                running.expired.push(expired);
                running.outcomes.push(outcome);
            }
            Err(StoreError::BadRow(why)) => {
                running.odd.push(OddRow { seq, token: Some(lease.token), reason: unreadable(&why) });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok(running)
}

fn outcome(
    row: &mut Row<'_, '_>,
    seq: Seq,
    lease: &Lease,
    verdict: impl Fn(&Expired) -> Verdict,
) -> Result<(Expired, Outcome), StoreError> {
    let (job_type, lane) = (row.text(2)?, lane(&row.text(3)?));
    let (retry_count, max_retries) = (retries(row.int(4)?), retries(row.int(5)?));
    let (id, unique_key) = (uuid(&row.text(6)?)?, row.maybe_text(7)?);
    let expired = Expired { seq, id, job_type, retry_count, max_retries, replica: lease.replica };
    let outcome = Outcome {
        seq,
        id,
        token: lease.token,
        job_type: expired.job_type.clone(),
        lane,
        attempt: retry_count.saturating_add(1),
        duration: Duration::ZERO,
        unique_key,
        verdict: verdict(&expired),
    };
    Ok((expired, outcome))
}
