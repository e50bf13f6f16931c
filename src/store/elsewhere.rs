//! Rows that another session holds, as a person's open transaction does: passed over without a wait, and told apart from rows that are gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::outcome::{self, Accepted, Outcome, Released};
use super::session::{Param, Session};
use super::{Dialect, Store, StoreError, id_list, lock};
use crate::job::{ReplicaId, Seq, Token};

/// For so long after a row was held claims pass over rows that are, rather than wait for them.
const WARY_TIME: Duration = Duration::from_mins(1);

/// Locks the rows of `seqs` (up to [`super::BATCH_MAX`]) until the end of the transaction, without waiting. Returns those of them that another
/// session holds.
pub(super) fn held_elsewhere(
    session: &mut Session,
    seqs: impl IntoIterator<Item = Seq>,
) -> Result<HashSet<Seq>, StoreError> {
    let mut held = HashSet::new();
    if session.dialect() == Dialect::Sqlite {
        return Ok(held);
    }
    let list = id_list(session.dialect(), seqs.into_iter().map(|seq| seq.0));
    let params = [Param::Text(&list); 2];
    let count = if session.dialect() == Dialect::Postgres { 2 } else { 1 };
    session.query("held_elsewhere", &params[..count], |row| {
        held.insert(Seq(row.int(1)?));
        Ok(())
    })?;
    Ok(held)
}

impl Store {
    /// [`Store::finish`] of those outcomes whose row no other session holds; waits for no row. Returns the others as well: nothing is decided of
    /// them.
    ///
    /// # Errors
    /// As [`Store::finish`].
    pub fn finish_free(
        &self,
        outcomes: &[Outcome],
        replica: ReplicaId,
        horizon: Option<Duration>,
    ) -> Result<(Vec<Accepted>, HashSet<Seq>), StoreError> {
        self.write(|session| {
            let held = held_elsewhere(session, outcomes.iter().map(|outcome| outcome.seq))?;
            let free = outcomes.iter().filter(|outcome| !held.contains(&outcome.seq)).cloned();
            let accepted = outcome::finish(session, &free.collect::<Vec<_>>(), replica, horizon)?;
            Ok((accepted, held))
        })
    }

    /// Gives running jobs back, their attempt not consumed. Their ids are to be pushed at once. Waits for no row: returns also those that stay as
    /// they are, for another session holds them.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release(
        &self,
        jobs: &[(Seq, Token)],
        replica: ReplicaId,
    ) -> Result<(Vec<Released>, HashSet<Seq>), StoreError> {
        if jobs.is_empty() {
            return Ok(Default::default());
        }
        let once = |jobs: &[(Seq, Token)]| {
            self.write(|session| {
                let held = held_elsewhere(session, jobs.iter().map(|(seq, _)| *seq))?;
                let free = jobs.iter().filter(|(seq, _)| !held.contains(seq)).copied();
                Ok((outcome::release(session, &free.collect::<Vec<_>>(), replica)?, held))
            })
        };
        let (mut released, mut held) = once(jobs)?;
        if self.dialect == Dialect::Mssql && !held.is_empty() {
            // On SQL Server also one that a listing reads in this moment counts as held, and for each left here an attempt is lost.
            let left: Vec<(Seq, Token)> = jobs.iter().filter(|(seq, _)| held.contains(seq)).copied().collect();
            if let Ok((more, still)) = once(&left) {
                released.extend(more);
                held = still;
            }
        }
        Ok((released, held))
    }

    /// Which of `seqs` (up to [`super::BATCH_MAX`]), left out by a claim, wait for a worker all the same: their row is held elsewhere, or they are
    /// not due yet.
    pub(super) fn unclaimed(&self, seqs: &[Seq]) -> Result<Vec<Seq>, StoreError> {
        if seqs.is_empty() {
            return Ok(Vec::new());
        }
        let list = id_list(self.dialect, seqs.iter().map(|seq| seq.0));
        self.read(|session| {
            let mut waiting = Vec::new();
            session.query("unclaimed", &[Param::Text(&list)], |row| {
                waiting.push(Seq(row.int(1)?));
                Ok(())
            })?;
            Ok(waiting)
        })
    }

    /// Whether a row was held a short while ago.
    pub(super) fn is_wary(&self) -> bool {
        lock(&self.wary_until).is_some_and(|until| Instant::now() < until)
    }

    /// A row is held elsewhere.
    pub(super) fn be_wary(&self) {
        *lock(&self.wary_until) = Some(Instant::now() + WARY_TIME);
    }
}
