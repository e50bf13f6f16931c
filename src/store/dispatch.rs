//! From the table to the lanes: finding what is due, marking it as dispatched, and taking back what got lost on the way.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::batch::json;
use super::elsewhere::held_elsewhere;
use super::session::{Param, Session};
use super::{BATCH_MAX, Store, StoreError, id_list, millis};
use crate::job::{Lane, ReplicaId, Seq, Status, Token};

/// A job marked as dispatched, whose id must be pushed when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Arrival number.
    pub seq: Seq,
    /// Milliseconds until it is due; zero for now.
    pub in_ms: u64,
}

/// A job that cannot be dispatched or read, as plain SQL wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddRow {
    /// Arrival number.
    pub seq: Seq,
    /// The lease under which it was claimed, if it was.
    pub token: Option<Token>,
    /// Why it cannot.
    pub reason: String,
}

/// What one call of [`Store::dispatch`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dispatched {
    /// Marked now, in the order in which they are to be pushed.
    pub due: Vec<Due>,
    /// To be given up by [`Store::bury_odd`].
    pub odd: Vec<OddRow>,
    /// Rows looked at: as many as asked for means that more may wait.
    pub seen: usize,
}

/// What one call of [`Store::regularise`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Irregular {
    /// To be given up by [`Store::bury_odd`].
    pub odd: Vec<OddRow>,
    /// Whether more may wait.
    pub is_more: bool,
}

/// Batches that one call makes regular at most, so that dispatch is never held up for long.
const REGULARISE_STEPS_MAX: usize = 10;
/// Rows that are given up in one transaction.
const BURIED_TOGETHER: usize = 100;

impl Store {
    /// Makes lanes regular that plain SQL wrote in other letters, and finds jobs of no known lane, up to [`BATCH_MAX`].
    ///
    /// # Errors
    /// As every call of the store.
    pub fn regularise(&self) -> Result<Irregular, StoreError> {
        for _ in 0..REGULARISE_STEPS_MAX {
            let (mendable, odd) = self.odd_lanes()?;
            if mendable == 0 {
                return Ok(Irregular { is_more: odd.len() == BATCH_MAX, odd });
            }
            self.write_one(|session| session.execute("regularise", &[]))?;
        }
        Ok(Irregular { odd: Vec::new(), is_more: true })
    }

    /// How many of the jobs in no lane have only written its name otherwise, and the rest.
    fn odd_lanes(&self) -> Result<(usize, Vec<OddRow>), StoreError> {
        self.read(|session| {
            let (mut mendable, mut odd) = (0, Vec::new());
            session.query("odd_lanes", &[limit(BATCH_MAX)], |row| {
                let (seq, lane) = (Seq(row.int(1)?), row.text(2)?);
                if Lane::parse(lane.trim_matches(' ')).is_some() {
                    mendable += 1;
                } else {
                    odd.push(OddRow {
                        seq,
                        token: None,
                        reason: format!("priority {lane:?} is none of high, medium, low"),
                    });
                }
                Ok(())
            })?;
            Ok((mendable, odd))
        })
    }

    /// Marks up to `count` (at most [`BATCH_MAX`]) jobs of a lane that are due within `horizon` as dispatched by `replica`.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dispatch(
        &self,
        lane: Lane,
        replica: ReplicaId,
        horizon: Duration,
        count: usize,
    ) -> Result<Dispatched, StoreError> {
        // An idle replica asks one plain question, and opens no transaction for it.
        if self.is_due_within(lane, horizon)? {
            self.dispatch_more(lane, replica, horizon, count)
        } else {
            Ok(Dispatched::default())
        }
    }

    /// [`Store::dispatch`] where it is known that something is due.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dispatch_more(
        &self,
        lane: Lane,
        replica: ReplicaId,
        horizon: Duration,
        count: usize,
    ) -> Result<Dispatched, StoreError> {
        self.write(|session| {
            let params = [Param::Text(lane.as_str()), Param::Int(millis(horizon)), limit(count.min(BATCH_MAX))];
            let waiting = waiting(session, "due", &params)?;
            let due = mark_dispatched(session, &waiting.regular, replica)?;
            Ok(Dispatched { due, odd: waiting.odd, seen: waiting.seen })
        })
    }

    /// Whether a job of a lane is due that was not dispatched.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn is_due(&self, lane: Lane) -> Result<bool, StoreError> {
        self.is_due_within(lane, Duration::ZERO)
    }

    fn is_due_within(&self, lane: Lane, horizon: Duration) -> Result<bool, StoreError> {
        let params = [Param::Text(lane.as_str()), Param::Int(millis(horizon)), limit(1)];
        Ok(self.read(|session| waiting(session, "due", &params))?.seen > 0)
    }

    /// In how many milliseconds the first job of a lane is due that was not dispatched; zero where it is overdue.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn next_due(&self, lane: Lane) -> Result<Option<u64>, StoreError> {
        self.read(|session| {
            let mut ms = None;
            session.query("next_due", &[Param::Text(lane.as_str())], |row| {
                ms = Some(row.int(1)?.max(0).unsigned_abs());
                Ok(())
            })?;
            Ok(ms)
        })
    }

    /// Gives up jobs that cannot be dispatched: status `failed`, one dead letter each. One that has ended already, as plain SQL may have
    /// written it, is only taken off the list of what waits.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn bury_odd(&self, odd: &[OddRow]) -> Result<(), StoreError> {
        odd.chunks(BURIED_TOGETHER)
            .try_for_each(|rows| self.write(|session| rows.iter().try_for_each(|row| bury(session, row))))
    }

    /// Which of `seqs` (up to [`BATCH_MAX`]) wait for a worker; with each, whether it has for longer than `time`.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn starved(&self, seqs: &[Seq], time: Duration) -> Result<HashMap<Seq, bool>, StoreError> {
        let list = id_list(self.dialect, seqs.iter().map(|seq| seq.0));
        self.read(|session| {
            let mut waiting = HashMap::new();
            session.query("starved", &[Param::Int(millis(time)), Param::Text(&list)], |row| {
                waiting.insert(Seq(row.int(1)?), row.int(2)? != 0);
                Ok(())
            })?;
            Ok(waiting)
        })
    }

    /// Marks jobs (up to [`BATCH_MAX`]) as dispatched now by `replica`, which moves their ids to another lane.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn promote(&self, seqs: &[Seq], replica: ReplicaId) -> Result<(), StoreError> {
        let list = id_list(self.dialect, seqs.iter().map(|seq| seq.0));
        self.write_one(|session| session.execute("promote", &[Param::Int(replica.0), Param::Text(&list)]))
    }

    /// Gives ids (up to [`BATCH_MAX`]) back to dispatch that could not be pushed. Waits for no row: returns those left as they were, for another
    /// session holds them.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn recall(&self, seqs: &[Seq]) -> Result<HashSet<Seq>, StoreError> {
        self.write(|session| {
            let held = held_elsewhere(session, seqs.iter().copied())?;
            let free = seqs.iter().filter(|seq| !held.contains(seq));
            let list = id_list(session.dialect(), free.map(|seq| seq.0));
            session.execute("recall", &[Param::Text(&list)])?;
            Ok(held)
        })
    }
}

pub(super) fn bury(session: &mut Session, row: &OddRow) -> Result<(), StoreError> {
    let list = id_list(session.dialect(), [row.seq.0]);
    let token = Param::Int(row.token.map_or(-1, |token| token.0));
    let mut buried = false;
    let params = [Param::Text(&row.reason), Param::Text(&list), token];
    session.change("bury_odd", &params, &[Param::Text(&list), token], |_| {
        buried = true;
        Ok(())
    })?;
    if buried {
        super::keys::free_of(session, row.seq)?;
        let letter = super::outcome::Letter { seq: row.seq.0, id: uuid::Uuid::new_v4(), reason: &row.reason };
        super::outcome::add_letters(session, &[letter])?;
    }
    session.execute("set_aside", &[Param::Text(&list)])
}

/// Rows that wait, as [`waiting`] found them.
pub(super) struct Waiting {
    /// In the order of the lane.
    pub(super) regular: Vec<Seq>,
    pub(super) odd: Vec<OddRow>,
    pub(super) seen: usize,
}

/// Runs one of the statements that find waiting jobs (`due`, `next`).
pub(super) fn waiting(session: &mut Session, name: &'static str, params: &[Param<'_>]) -> Result<Waiting, StoreError> {
    let mut waiting = Waiting { regular: Vec::new(), odd: Vec::new(), seen: 0 };
    session.query(name, params, |row| {
        let (seq, status) = (Seq(row.int(1)?), row.text(2)?);
        waiting.seen += 1;
        if Status::parse(&status).is_some_and(|status| status != Status::Running) {
            // Also a row that is done, but was written by plain SQL: marking it as dispatched takes it off the list of what waits.
            waiting.regular.push(seq);
        } else {
            // Also a running one: nobody runs it, for a claim marks what it takes as dispatched, and gives it a lease that ends.
            let reason = format!("status {status:?} is not one that a job can wait in; insert jobs as 'queued'");
            waiting.odd.push(OddRow { seq, token: None, reason });
        }
        Ok(())
    })?;
    Ok(waiting)
}

pub(super) fn mark_dispatched(session: &mut Session, seqs: &[Seq], replica: ReplicaId) -> Result<Vec<Due>, StoreError> {
    if seqs.is_empty() {
        return Ok(Vec::new());
    }
    let list = id_list(session.dialect(), seqs.iter().map(|seq| seq.0));
    let mut in_ms = HashMap::with_capacity(seqs.len());
    session.change("dispatch", &[Param::Int(replica.0), Param::Text(&list)], &[Param::Text(&list)], |row| {
        in_ms.insert(Seq(row.int(1)?), row.int(2)?.max(0).unsigned_abs());
        Ok(())
    })?;
    Ok(seqs.iter().filter_map(|seq| in_ms.get(seq).map(|&in_ms| Due { seq: *seq, in_ms })).collect())
}

pub(super) fn limit(count: usize) -> Param<'static> {
    Param::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

/// `[1,2,3]`, as the leases keep the jobs they cover.
pub(super) fn json_list(seqs: &[Seq]) -> Result<String, StoreError> {
    json(&seqs.iter().map(|seq| seq.0).collect::<Vec<_>>())
}
