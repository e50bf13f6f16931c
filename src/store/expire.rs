//! Ending leases one by one, where the database refuses to end some together: finding the jobs to blame, and giving up those alone.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::dispatch::{OddRow, bury, limit};
use super::lease::{Expired, leases, running_under};
use super::outcome::finish;
use super::session::{Param, Session};
use super::{BATCH_MAX, Store, StoreError, Transaction, again_while_contended, id_list};
use crate::job::{ReplicaId, Seq, Token};
use crate::random;
use crate::retry::Verdict;

/// Leases that are looked at one by one. Were so many refused for good, those behind them would wait.
const LEASES_MAX: usize = 1_000;
/// No further lease is begun after this time.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Refusals one after the other before it is clear that it is not for one of the rows: the halves of [`BATCH_MAX`], and as much again.
const REFUSED_MAX: usize = 20;

/// How a lease can be ended.
struct Plan {
    /// Jobs whose outcome is refused, and why.
    refused: HashMap<Seq, String>,
    /// Jobs that one statement takes in its time.
    batch: usize,
}

impl Store {
    /// Ends each lease that ran out in a transaction of its own, after `first` was met when some were ended together.
    ///
    /// # Errors
    /// If none could be ended.
    pub(super) fn expire_apart(
        &self,
        first: StoreError,
        replica: ReplicaId,
        verdict: &dyn Fn(&Expired) -> Verdict,
    ) -> Result<Option<Vec<Expired>>, StoreError> {
        let begun = Instant::now();
        let mut expired = self.read(|session| leases(session, "leases_expired", &[limit(LEASES_MAX)]))?;
        // So that those which take long hold up no others for ever.
        let first_of_all = random::below(expired.len() as u64);
        expired.rotate_left(usize::try_from(first_of_all).unwrap_or(0)); // OK: less than its length
        let (mut taken, mut ended, mut suspects) = (Vec::new(), 0, Vec::new());
        let whole = Plan { refused: HashMap::new(), batch: BATCH_MAX };
        for lease in &expired {
            if begun.elapsed() > TIME_MAX {
                break;
            }
            match self.end_lease(lease.token, replica, verdict, &whole) {
                Ok(jobs) => {
                    ended += 1;
                    taken.extend(jobs);
                }
                Err(error) if error.is_outage() => break,
                Err(StoreError::Contended(_)) => {}
                Err(error) => suspects.push((lease.token, error)),
            }
        }
        for (token, error) in suspects {
            if ended > 0 && begun.elapsed() > TIME_MAX {
                break;
            }
            let jobs = self
                .plan(token, error, replica, verdict, !taken.is_empty())
                .and_then(|plan| self.end_lease(token, replica, verdict, &plan));
            match jobs {
                Ok(jobs) => {
                    ended += 1;
                    taken.extend(jobs);
                }
                Err(error) if error.is_outage() => break,
                Err(error) => log::debug!(token:% = token, error:% = error; "a lease that ran out could not be ended"),
            }
        }
        // Whatever else was met: what was taken back is to be told, and the next call meets the rest.
        if ended == 0 { Err(first) } else { Ok(Some(taken)) }
    }

    /// Ends one lease that ran out, with all of its jobs: to end it for some of them would let its replica, should it wake up, begin those.
    fn end_lease(
        &self,
        token: Token,
        replica: ReplicaId,
        verdict: &dyn Fn(&Expired) -> Verdict,
        plan: &Plan,
    ) -> Result<Vec<Expired>, StoreError> {
        let (jobs, refused) = self.write(|session| {
            let Some(lease) = leases(session, "lease_expired", &[Param::Int(token.0)])?.pop() else {
                return Ok((Vec::new(), Vec::new()));
            };
            let list = id_list(session.dialect(), [token.0]);
            session.execute("leases_end", &[Param::Text(&list)])?;
            let mut running = running_under(session, &lease, verdict)?;
            running.outcomes.retain(|outcome| !plan.refused.contains_key(&outcome.seq));
            for outcomes in running.outcomes.chunks(plan.batch) {
                finish(session, outcomes, replica, None)?;
            }
            let refused = running.expired.iter().filter_map(|job| {
                let why = plan.refused.get(&job.seq)?;
                let reason = format!("its lease ran out, and what became of it could not be stored: {why}");
                Some(OddRow { seq: job.seq, token: Some(token), reason })
            });
            let refused: Vec<OddRow> = refused.collect();
            running.odd.iter().chain(&refused).try_for_each(|row| bury(session, row))?;
            Ok((running.expired, refused))
        })?;
        for row in refused {
            log::error!(seq:% = row.seq, reason = row.reason.as_str(); "the database refused to take a job back; it is buried");
        }
        Ok(jobs)
    }

    /// Finds out what the database takes of a lease that it refused with `first`, by trials that are undone. A job is to blame if the error
    /// says so of a value, or if others can be taken back, of this lease or of another; else what is refused is everything, and no job is to
    /// suffer.
    ///
    /// # Errors
    /// `first`, if no job is to blame.
    fn plan(
        &self,
        token: Token,
        first: StoreError,
        replica: ReplicaId,
        verdict: &dyn Fn(&Expired) -> Verdict,
        mut are_others_taken: bool,
    ) -> Result<Plan, StoreError> {
        let all = self.try_out(|session| running_seqs(session, token, verdict))?;
        let mut plan = Plan { refused: HashMap::new(), batch: all.len().max(1) };
        let (mut suspects, mut refusals) = (Vec::new(), 0);
        let mut parts = vec![&all[..]];
        while let Some(part) = parts.pop() {
            match self.try_out(|session| try_part(session, token, part, replica, verdict)) {
                Ok(()) => are_others_taken = true,
                Err(error) if error.is_outage() || matches!(error, StoreError::Contended(_)) => return Err(error),
                Err(error) => {
                    refusals += 1;
                    if matches!(error, StoreError::TimedOut(_)) {
                        plan.batch = plan.batch.min((part.len() / 2).max(1));
                    }
                    match part {
                        &[] => return Err(error),
                        &[_] if error.is_transient() => return Err(error),
                        &[seq] => suspects.push((seq, error)),
                        part => {
                            let (left, right) = part.split_at(part.len() / 2);
                            parts.extend([right, left]);
                        }
                    }
                }
            }
            if !are_others_taken && refusals > REFUSED_MAX {
                return Err(first);
            }
        }
        let is_to_blame = |error: &StoreError| are_others_taken || matches!(error, StoreError::BadRow(_));
        if suspects.iter().any(|(_, error)| !is_to_blame(error)) {
            return Err(first);
        }
        plan.refused = suspects.into_iter().map(|(seq, error)| (seq, error.to_string())).collect();
        Ok(plan)
    }

    /// Runs `work` in a transaction that is undone.
    fn try_out<T>(&self, mut work: impl FnMut(&mut Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        again_while_contended(self.dialect, || {
            let _turn = self.writers_turn();
            let mut loan = self.loan()?;
            let transaction = Transaction::begin(&mut loan.session)?;
            work(transaction.session)
        })
    }
}

fn running_seqs(
    session: &mut Session,
    token: Token,
    verdict: &dyn Fn(&Expired) -> Verdict,
) -> Result<Vec<Seq>, StoreError> {
    let Some(lease) = leases(session, "lease_expired", &[Param::Int(token.0)])?.pop() else { return Ok(Vec::new()) };
    Ok(running_under(session, &lease, verdict)?.expired.into_iter().map(|job| job.seq).collect())
}

fn try_part(
    session: &mut Session,
    token: Token,
    part: &[Seq],
    replica: ReplicaId,
    verdict: &dyn Fn(&Expired) -> Verdict,
) -> Result<(), StoreError> {
    let Some(lease) = leases(session, "lease_expired", &[Param::Int(token.0)])?.pop() else { return Ok(()) };
    let part: HashSet<Seq> = part.iter().copied().collect();
    let mut running = running_under(session, &lease, verdict)?;
    running.outcomes.retain(|outcome| part.contains(&outcome.seq));
    finish(session, &running.outcomes, replica, None).map(drop)
}
