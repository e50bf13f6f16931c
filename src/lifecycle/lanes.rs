//! The lanes as hints: pushing ids, timers that come due, and whether Redis is there and still has its data.

use std::sync::atomic::Ordering;
use std::time::Instant;

use uuid::Uuid;

use super::{Lifecycle, lock};
use crate::fault::fault_point;
use crate::job::{Lane, Seq};
use crate::queue::QueueError;
use crate::store::{BATCH_MAX, StoreError};

impl Lifecycle {
    /// Pushes ids whose rows are marked as dispatched. Those that cannot be pushed, or whose lane is cut, are given back to dispatch: what
    /// waits in the table for a cut lane goes first.
    pub(super) fn push(&self, lots: &[(Lane, Vec<Seq>)]) {
        if !self.is_cut() {
            self.push_past_cut(lots);
            return;
        }
        let (held, open): (Vec<_>, Vec<_>) = lots.iter().cloned().partition(|(lane, _)| self.cut.is_on(*lane));
        self.push_past_cut(&open);
        self.hold_back(&held);
    }

    /// As [`Lifecycle::push`], of what comes from the table in its order. Returns the lengths of the lanes where they are known.
    pub(super) fn push_past_cut(&self, lots: &[(Lane, Vec<Seq>)]) -> [Option<u64>; 3] {
        if lots.is_empty() {
            return [None; 3];
        }
        if !self.policy.has_lanes {
            self.give_back(lots);
            return [None; 3];
        }
        self.note_push();
        match self.lanes.push_many(lots) {
            Ok(pushed) => {
                self.hold_back(&pushed.refused);
                self.cut_full(pushed.lengths);
                pushed.lengths
            }
            Err(error) => {
                self.note_lanes_error(&error);
                self.give_back(lots);
                for (lane, _) in lots {
                    self.left_in_table(*lane);
                }
                [None; 3]
            }
        }
    }

    /// Before each push: what is pushed goes before what comes later.
    pub(super) fn note_push(&self) {
        self.pushes.fetch_add(1, Ordering::AcqRel);
    }

    /// Leaves ids to the table until their lane has drained.
    fn hold_back(&self, lots: &[(Lane, Vec<Seq>)]) {
        self.give_back(lots);
        for (lane, _) in lots {
            self.begin_cut(*lane);
        }
    }

    fn give_back(&self, lots: &[(Lane, Vec<Seq>)]) {
        for (_, seqs) in lots {
            for seqs in seqs.chunks(BATCH_MAX) {
                if let Err(error) = self.store.recall(seqs) {
                    // They stay marked as dispatched, as after a crash here; `recall_lost` finds them.
                    self.look_again();
                    log::debug!(error:% = error; "ids that no lane took could not be recalled");
                }
            }
        }
    }

    /// Cuts the lanes that have reached their limit.
    fn cut_full(&self, lengths: [Option<u64>; 3]) {
        let full = u64::try_from(self.policy.lane_buffer_max).unwrap_or(u64::MAX);
        for lane in Lane::ALL {
            if lengths[lane.index()].is_some_and(|length| length >= full) {
                self.begin_cut(lane);
            }
        }
    }

    /// After the commit of a due row that stays in the table, or when the lane is full.
    pub(super) fn begin_cut(&self, lane: Lane) {
        if self.cut.begin(lane) {
            self.timers.wake().wake(); // The scheduler looks at lanes that are cut more often.
        }
    }

    /// After the commit of a row that stays in the table: where no feeder looks, for Redis is back by now or the lane was cut, the scheduler is
    /// to. Where one does, or has to when Redis is away, a tick follows when it is back.
    pub(super) fn left_in_table(&self, lane: Lane) {
        if !self.is_fed_by_table() {
            self.begin_cut(lane);
        }
    }

    /// Whether more is due in a lane than was pushed.
    pub fn is_cut(&self) -> bool {
        self.cut.is_any()
    }

    /// Cuts the lanes that another replica has cut: those at their limit, and those more than half full for which something due waits in the
    /// table. The table is asked only then.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn notice_cuts(&self) -> Result<(), StoreError> {
        if self.is_fed_by_table() || !self.policy.lanes_are_shared {
            return Ok(());
        }
        let Some(lengths) = self.lengths() else { return Ok(()) };
        self.cut_full(lengths.map(Some));
        for lane in Lane::ALL {
            if lengths[lane.index()] > self.half() && !self.cut.is_on(lane) && self.store.is_due(lane)? {
                self.begin_cut(lane);
            }
        }
        Ok(())
    }

    /// At which length a lane that was cut is refilled.
    pub(super) fn half(&self) -> u64 {
        u64::try_from(self.policy.lane_buffer_max / 2).unwrap_or(u64::MAX)
    }

    pub(super) fn lengths(&self) -> Option<[u64; 3]> {
        match self.lanes.state() {
            Ok(state) => Some(state.map(|lane| lane.len)),
            Err(error) => {
                self.note_lanes_error(&error);
                None
            }
        }
    }

    pub(super) fn note_lanes_error(&self, error: &QueueError) {
        self.lanes_outage.begins(error);
    }

    /// Pushes the ids whose time has come, and returns the moment of the next.
    pub fn push_due_timers(&self, now: Instant) -> Option<Instant> {
        let (due, next) = self.timers.take_due(now, Lane::ALL.map(|lane| self.cut.is_on(lane)));
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

    /// When [`Lifecycle::dispatch`] has to be called for jobs that the timers had no room for.
    pub fn next_missed(&self) -> Option<Instant> {
        self.timers.next_missed().filter(|_| !self.is_fed_by_table())
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
                fault_point!("epoch.begun");
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
