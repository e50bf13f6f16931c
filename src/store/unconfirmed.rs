//! What became of outcomes whose commit was not confirmed: all of them were stored, or none.

use std::collections::HashMap;

use super::outcome::{Accepted, Outcome, Pairs, error_of, storable};
use super::session::Param;
use super::{Store, StoreError};
use crate::job::{ReplicaId, Seq, Token};
use crate::retry::Verdict;

/// What the table has of one attempt.
struct Found {
    is_completed: bool,
    error: Option<String>,
    due_in_ms: Option<u64>,
}

impl Store {
    /// Those of `outcomes` (up to [`super::BATCH_MAX`]) that an earlier [`Store::finish`] of `replica` has stored, though its commit was not
    /// confirmed. Their repeat would be refused. One whose lease was ended meanwhile, by anybody, is not among them.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn outcomes_stored(&self, outcomes: &[Outcome], replica: ReplicaId) -> Result<Vec<Accepted>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        let held: Vec<(Seq, Token)> = outcomes.iter().map(|outcome| (outcome.seq, outcome.token)).collect();
        let pairs = Pairs::of(self.dialect, &held);
        let mut params = pairs.params();
        params.push(Param::Int(replica.0));
        let found = self.read(|session| {
            let mut found: HashMap<(Seq, Token), Found> = HashMap::with_capacity(outcomes.len());
            session.query("outcomes_stored", &params, |row| {
                let attempt = (Seq(row.int(1)?), Token(row.int(2)?));
                let (is_completed, error) = (row.int(3)? == 1, row.maybe_text(4)?);
                let due_in_ms = row.maybe_int(5)?.map(|ms| ms.max(0).unsigned_abs());
                found.insert(attempt, Found { is_completed, error, due_in_ms });
                Ok(())
            })?;
            Ok(found)
        })?;
        let accepted = outcomes.iter().filter_map(|outcome| {
            let found = found.get(&(outcome.seq, outcome.token))?;
            let is_it = match &outcome.verdict {
                Verdict::Complete => found.is_completed,
                // An end of its lease has left another error.
                verdict => found.error.as_ref() == Some(&storable(error_of(verdict))),
            };
            is_it.then_some(Accepted { seq: outcome.seq, token: outcome.token, due_in_ms: found.due_in_ms })
        });
        Ok(accepted.collect())
    }
}
