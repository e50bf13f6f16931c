//! Deleting what ended long ago, in small batches, so that no table grows for ever.

use std::time::Duration;

use super::dispatch::limit;
use super::session::Param;
use super::{Store, StoreError, id_list, millis};
use crate::job::Seq;

/// Jobs looked at and deleted in one transaction: with their attempts and index entries below SQL Server's 5,000 locks.
const PRUNE_MAX: usize = 500;
/// Rows of other tables that one statement deletes: two locks each.
const PRUNE_ROWS_MAX: usize = 1_000;
/// How long the results of a call with an idempotency key are kept.
pub(crate) const IDEMPOTENCY_KEPT: Duration = Duration::from_hours(24);

/// Where a walk over the oldest jobs stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Jobs deleted by this step.
    pub deleted: usize,
    /// Where the next step goes on; `None`: the walk has reached jobs younger than the retention.
    pub next: Option<Seq>,
}

impl Store {
    /// One step of a walk over the jobs in the order of arrival: deletes those that completed or were cancelled longer than `kept` ago.
    /// Numbers grow with time, so the walk ends at the first page of younger jobs, and needs no index on the time they ended.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn prune_jobs(&self, kept: Duration, after: Option<Seq>) -> Result<Pruned, StoreError> {
        let kept = Param::Int(millis(kept));
        let after = Param::Int(after.map_or(i64::MIN, |seq| seq.0));
        let (mut old, mut last, mut reached_young) = (Vec::new(), None, true);
        self.read(|session| {
            (old, last, reached_young) = (Vec::new(), None, true);
            session.query("prune_scan", &[kept, kept, after, limit(PRUNE_MAX)], |row| {
                let (seq, ended_long_ago, stored_long_ago) = (row.int(1)?, row.int(2)? != 0, row.int(3)? != 0);
                last = Some(Seq(seq));
                reached_young &= !stored_long_ago;
                if ended_long_ago {
                    old.push(seq);
                }
                Ok(())
            })
        })?;
        if !old.is_empty() {
            let seqs = id_list(self.dialect, old.iter().copied());
            self.write(|session| {
                session.execute("prune_jobs", &[Param::Text(&seqs)])?;
                session.execute("prune_attempts", &[Param::Text(&seqs)])
            })?;
        }
        Ok(Pruned { deleted: old.len(), next: if reached_young { None } else { last } })
    }

    /// Forgets results of calls with idempotency keys that were stored more than a day ago, the oldest first. Returns whether there may be
    /// more.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn prune_idempotency(&self) -> Result<bool, StoreError> {
        self.prune_oldest("idempotency_old", "prune_idempotency", IDEMPOTENCY_KEPT)
    }

    /// Forgets statistics older than `kept`, the oldest first. Returns whether there may be more.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn prune_stats(&self, kept: Duration) -> Result<bool, StoreError> {
        self.prune_oldest("stats_old", "prune_stats", kept)
    }

    fn prune_oldest(&self, ask: &'static str, prune: &'static str, kept: Duration) -> Result<bool, StoreError> {
        let kept = Param::Int(millis(kept));
        let mut count = 0;
        // As in `dispatch`: an idle replica asks a plain question.
        self.read(|session| {
            session.query(ask, &[kept, limit(PRUNE_ROWS_MAX + 1)], |row| {
                count = row.int(1)?;
                Ok(())
            })
        })?;
        if count > 0 {
            self.write_one(|session| session.execute(prune, &[kept, limit(PRUNE_ROWS_MAX)]))?;
        }
        Ok(usize::try_from(count).is_ok_and(|count| count > PRUNE_ROWS_MAX))
    }
}
