//! Finding ids that got lost between the table and a worker: a walk over what was dispatched, page by page.
//!
//! **Nothing lost is missed.** Let a row be dispatched at the moment `d`, by the clock of the database at the start of its transaction, and
//! committed at `c`. A transaction lives for [`OPEN_TRANSACTION_MAX`] at most, so `c <= d + OPEN_TRANSACTION_MAX`. A walk begins at
//! `SweptTo - OPEN_TRANSACTION_MAX` and ends at `until`, a grace before the moment at which it began or earlier; `SweptTo` moves only to where
//! a walk has been. Take the walk that first moves `SweptTo` to `d + OPEN_TRANSACTION_MAX` or beyond. It began when `SweptTo` was less, so
//! it covers `d`; and it read each page after that moment had passed, so after `c`: it saw the row. If the row waited for a worker then, it
//! was given back to dispatch, for its id was not in the lane any more: the lane is first in, first out, and its head was dispatched later.
//! If it did not wait, it waits again only under a later `d`: a release, a retry and a revival set `DispatchedAt` anew, and a claim
//! that was undone was waited for (SQL Server) or seen as not made (PostgreSQL, SQLite). A row given back too early is dispatched twice,
//! and the claim decides. A row that another session holds is passed over, and `SweptTo` does not move past it: the next walk meets it again.
//!
//! The order of a lane is not that of `d` alone: an id released to the head was dispatched after those behind it, so such a head
//! tells nothing; and an id promoted by the starvation guard waits in the high lane, so a lower one is searched no further than that.

use std::collections::HashSet;
use std::time::Duration;

use super::dispatch::limit;
use super::session::Param;
use super::{BATCH_MAX, Dialect, Store, StoreError, millis};
use crate::job::{Lane, ReplicaId, Seq};

/// Rows of one page, and those of the same moment as its last, such as the rest of a batch. SQL Server may keep the index entries of all locked
/// until it has looked up their rows, and would lock the whole table at 5,000.
const PAGE_ROWS: usize = 4_000;
/// How far a walk looks back behind the point up to which a lane was swept: longer than a submission's transaction can stay open, by the time
/// limits of a session.
const OPEN_TRANSACTION_MAX: Duration = Duration::from_mins(2);
/// The same where it looks deep: longer than a machine is likely to have stood still.
const STANDSTILL_MAX: Duration = Duration::from_mins(10);
/// Ids that wait in a replica's timers are due later than this, or were pushed.
const TIMERS_LATE_MAX: Duration = Duration::from_secs(10);
/// And not later than this: longer than any tick.
const TIMERS_AHEAD_MAX: Duration = Duration::from_hours(24);

/// A walk over what was dispatched to a lane; moments are the database's own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Walk {
    lane: Lane,
    after: i64,
    until: i64,
    /// The first that was passed over, for another session holds its row.
    held: Option<i64>,
}

/// A row that was dispatched and waits for a worker.
struct Dispatched {
    seq: Seq,
    by: Option<i64>,
    at: i64,
}

/// A search for lost ids in one lane, page by page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep(Walk);

impl Sweep {
    /// Where it searches.
    pub fn lane(&self) -> Lane {
        self.0.lane
    }

    /// Whether all has been searched.
    pub fn is_done(&self) -> bool {
        self.0.after >= self.0.until
    }
}

/// What [`Store::recall_with_replica`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recalled {
    /// How many ids were given back to dispatch.
    pub count: usize,
    /// The replicas that were taken for dead.
    pub dead: Vec<ReplicaId>,
}

impl Store {
    /// Begins a search in each lane for ids that were dispatched to it and can no longer be in it: more than `grace` ago, and before the id
    /// now at the lane's head (`None`: the lane is empty). `deep` looks farther back.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn begin_sweep(&self, heads: [Option<Seq>; 3], grace: Duration, deep: bool) -> Result<Vec<Sweep>, StoreError> {
        let look_back = if deep { STANDSTILL_MAX } else { OPEN_TRANSACTION_MAX };
        let [high, medium, low] = heads.map(|head| Param::Int(head.map_or(-1, |seq| seq.0)));
        let params = [Param::Int(millis(look_back)), Param::Int(millis(grace)), high, medium, low];
        let mut found = self.read(|session| {
            let mut found = Vec::new();
            session.query("sweep", &params, |row| {
                found.push((super::claim::lane(&row.text(1)?), row.int(2)?, row.maybe_int(3)?));
                Ok(())
            })?;
            Ok(found)
        })?;
        found.sort_by_key(|(lane, ..)| *lane);
        // What the starvation guard has promoted counts as dispatched to its own lane then, and waits in the high one.
        let high = found.first().and_then(|(_, _, until)| *until);
        let walk = |(lane, after, until): (Lane, i64, Option<i64>)| {
            Some(Walk { lane, after, until: until?.min(high?), held: None })
        };
        Ok(found.into_iter().filter_map(walk).map(Sweep).filter(|sweep| !sweep.is_done()).collect())
    }

    /// Searches one page, and gives back to dispatch what was lost there. Returns how many.
    ///
    /// # Errors
    /// As every call of the store. The page can be searched again.
    pub fn sweep(&self, sweep: &mut Sweep) -> Result<usize, StoreError> {
        let (end, found) = self.page(&sweep.0)?;
        let lost: Vec<Seq> = found.iter().map(|row| row.seq).collect();
        let held = self.recall_all(&lost)?;
        let passed_over = found.iter().filter(|row| held.contains(&row.seq)).map(|row| row.at);
        sweep.0.held = sweep.0.held.into_iter().chain(passed_over).min();
        sweep.0.after = end;
        Ok(lost.len() - held.len())
    }

    /// Notes how far a search has come, so that neither it nor another goes that way again; not past a row that it had to pass over.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn swept(&self, sweep: &Sweep) -> Result<(), StoreError> {
        let Sweep(Walk { lane, after, held, .. }) = sweep;
        let to = held.map_or(*after, |at| after.min(&at.saturating_sub(1)).to_owned());
        self.write_one(|session| session.execute("swept", &[Param::Int(to), Param::Text(lane.as_str())]))
    }

    /// Gives ids back to dispatch that wait in the timers of a replica that was not seen for `dead_after` or is not known, or of `stopping`.
    /// Between pages calls `pause`.
    ///
    /// What is overdue for longer than [`TIMERS_LATE_MAX`] is left to the search for lost ids.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn recall_with_replica(
        &self,
        dead_after: Duration,
        stopping: Option<ReplicaId>,
        mut pause: impl FnMut(),
    ) -> Result<Recalled, StoreError> {
        let (mut now, mut known, mut dead) = (0, Vec::new(), Vec::new());
        self.read(|session| {
            (now, known, dead) = (0, Vec::new(), Vec::new());
            session.query("replicas", &[Param::Int(millis(dead_after))], |row| {
                now = row.int(1)?;
                if let Some(replica) = row.maybe_int(2)? {
                    known.push(replica);
                    if row.int(3)? != 0 {
                        dead.push(replica);
                    }
                }
                Ok(())
            })
        })?;
        let is_orphan = |row: &Dispatched| match (row.by, stopping) {
            (Some(by), Some(stopping)) => by == stopping.0 && row.at > now,
            // A replica that left gave back its own before; one that nobody knows has never shown itself, or was forgotten as dead.
            (Some(by), None) => dead.contains(&by) || row.at > now && !known.contains(&by),
            (None, _) => false,
        };
        // What is not due yet tells by itself that it waits in timers; what is due may be in its lane as well, and only a death makes that count.
        let late = if stopping.is_some() || dead.is_empty() {
            Duration::ZERO
        } else {
            TIMERS_LATE_MAX
        };
        let mut count = 0;
        for lane in Lane::ALL {
            let mut walk = Walk {
                lane,
                after: now.saturating_sub(self.moments(late)),
                until: now.saturating_add(self.moments(TIMERS_AHEAD_MAX)),
                held: None,
            };
            while walk.after < walk.until {
                let (end, found) = self.page(&walk)?;
                let orphans: Vec<Seq> = found.iter().filter(|row| is_orphan(row)).map(|row| row.seq).collect();
                self.recall_all(&orphans)?;
                count += orphans.len();
                walk.after = end;
                pause();
            }
        }
        Ok(Recalled { count, dead: dead.into_iter().map(ReplicaId).collect() })
    }

    /// Returns those that another session holds.
    fn recall_all(&self, seqs: &[Seq]) -> Result<HashSet<Seq>, StoreError> {
        let mut held = HashSet::new();
        for seqs in seqs.chunks(BATCH_MAX) {
            held.extend(self.recall(seqs)?);
        }
        Ok(held)
    }

    /// The next page of a walk: where it ends, and the rows in it that wait for a worker.
    fn page(&self, walk: &Walk) -> Result<(i64, Vec<Dispatched>), StoreError> {
        let lane = Param::Text(walk.lane.as_str());
        let (after, until, others) = (Param::Int(walk.after), Param::Int(walk.until), limit(PAGE_ROWS - 1));
        let params = [lane, after, until, others, until, lane, after];
        let params = if self.dialect == Dialect::Mssql {
            &params[..4]
        } else {
            &params
        };
        self.read(|session| {
            let (mut end, mut found) = (walk.until, Vec::new());
            session.query("dispatched", params, |row| {
                end = row.int(1)?;
                if let Some(seq) = row.maybe_int(2)? {
                    found.push(Dispatched { seq: Seq(seq), by: row.maybe_int(3)?, at: row.int(4)? });
                }
                Ok(())
            })?;
            Ok((end, found))
        })
    }

    /// A length of time as the database's moments count it.
    fn moments(&self, time: Duration) -> i64 {
        let ms = millis(time);
        if self.dialect == Dialect::Postgres {
            ms.saturating_mul(1_000)
        } else {
            ms
        }
    }
}
