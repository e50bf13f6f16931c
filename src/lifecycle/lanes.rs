//! The lanes as hints: pushing ids, timers that come due, and whether Redis is there and still has its data.

use std::time::Instant;

use uuid::Uuid;

use super::{Lifecycle, lock};
use crate::fault::fault_point;
use crate::job::{Lane, Seq};
use crate::queue::QueueError;
use crate::store::{BATCH_MAX, StoreError};

impl Lifecycle {
    /// Pushes ids whose rows are marked as dispatched. If they cannot be pushed, their rows are given back to dispatch.
    pub(super) fn push(&self, lots: &[(Lane, Vec<Seq>)]) {
        if lots.is_empty() {
            return;
        }
        if self.policy.has_lanes {
            let Err(error) = self.lanes.push_many(lots) else { return };
            self.note_lanes_error(&error);
        }
        for (_, seqs) in lots {
            for seqs in seqs.chunks(BATCH_MAX) {
                if let Err(error) = self.store.recall(seqs) {
                    // They stay marked as dispatched, as after a crash here; `recall_lost` finds them.
                    log::debug!(error:% = error; "ids that no lane took could not be recalled");
                }
            }
        }
    }

    pub(super) fn note_lanes_error(&self, error: &QueueError) {
        if matches!(error, QueueError::Full { .. }) {
            log::debug!(error:% = error; "a lane is full");
        } else {
            self.lanes_outage.begins(error);
        }
    }

    /// Pushes the ids whose time has come, and returns the moment of the next.
    pub fn push_due_timers(&self, now: Instant) -> Option<Instant> {
        let (due, next) = self.timers.take_due(now);
        let mut lots: Vec<(Lane, Vec<Seq>)> = Lane::ALL.map(|lane| (lane, Vec::new())).into();
        for (lane, seq) in due {
            lots[lane.index()].1.push(seq);
        }
        lots.retain(|(_, seqs)| !seqs.is_empty());
        if !lots.is_empty() {
            fault_point!("timers.due");
        }
        self.push(&lots);
        next
    }

    /// Looks whether the lanes answer and still hold what was pushed. Returns whether the scheduler has to tick now: Redis is back, or
    /// has gone, or has lost its data and this replica is the one that recalls what was in it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn watch_lanes(&self) -> Result<bool, StoreError> {
        let was_away = self.lanes_are_away();
        match self.begin_epoch_if_none() {
            Ok(None) => {
                self.lanes_outage.ends();
                Ok(was_away)
            }
            Ok(Some(begun)) => {
                self.lanes_outage.ends();
                // Crash window "Redis loses its data": rows look dispatched, no lane has their ids. If the recall fails, the name stays,
                // and the next look recalls again.
                if self.policy.lanes_are_shared {
                    log::info!(
                        "Redis holds no lanes of ours: it is new, or has lost its data; what was dispatched is dispatched again"
                    );
                }
                self.recall_all()?;
                lock(&self.new_epoch).take_if(|name| *name == begun);
                Ok(true)
            }
            Err(error) => {
                self.note_lanes_error(&error);
                Ok(!was_away)
            }
        }
    }

    /// Begins an epoch where there is none. Returns its name if it is this replica's and its recall is not done.
    pub(super) fn begin_epoch_if_none(&self) -> Result<Option<String>, QueueError> {
        let found = self.lanes.epoch()?;
        let mut new_epoch = lock(&self.new_epoch);
        if let Some(name) = found.as_ref().filter(|_| self.lanes_are_away()) {
            // A server that answers may still refuse to be written to (full, read-only), and a lane be something else; then these fail too.
            self.lanes.begin_epoch(name)?;
            self.lanes.state()?;
        }
        if found.is_some() && found != *new_epoch {
            *new_epoch = None; // Another replica began it, and recalls.
            return Ok(None);
        }
        if found.is_none() {
            // Under one name until it is known to be begun: the answer to a try may have been lost.
            let name = new_epoch.get_or_insert_with(|| Uuid::new_v4().to_string()).clone();
            if !self.lanes.begin_epoch(&name)? {
                *new_epoch = None;
            }
        }
        Ok(new_epoch.clone())
    }
}
