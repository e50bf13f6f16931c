//! The way of a job between the table and the lanes. The only code that uses store and queue together.
//!
//! Each crash window is named where it opens; the table of them is in docs/ARCHITECTURE.md. All of them rest on two facts: the row is
//! committed before its id is pushed anywhere, and a claim decides who runs the job, however often its id comes by.

mod held;
mod outage;
mod timers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use held::Held;
pub use outage::Outage;
pub use timers::Timers;

use crate::job::{ClaimedJob, Job, Lane, NewJob, ReplicaId, Seq, Status, Token};
use crate::queue::{Lanes, QueueError};
use crate::retry::Verdict;
use crate::store::{
    BATCH_MAX, Cancelled, Due, Expired, Idempotency, KeyTaken, OddRow, Outcome, Released, Revived, Store, StoreError,
    Stored, Submitted,
};

/// An id may be on its way between a lane and its claim for this long before it counts as lost.
const LOST_GRACE: Duration = Duration::from_secs(10);
/// Ids of a lane that the starvation guard looks at together, and how often in one round.
const PROMOTED_BATCH: usize = 100;
const PROMOTED_BATCHES_MAX: usize = 10;
/// A replica that has not been seen for this long is dead: three beats missed.
pub const REPLICA_DEAD_AFTER: Duration = Duration::from_mins(1);

/// What one replica needs to know to move jobs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Number of this process.
    pub replica: ReplicaId,
    /// Its name for people.
    pub replica_name: String,
    /// How far the scheduler looks ahead.
    pub tick: Duration,
    /// How long a claim holds without being renewed.
    pub lease: Duration,
    /// Ids that a lane is filled up to.
    pub lane_buffer_max: usize,
    /// Whether other processes take from the same lanes (Redis), or only this one (memory).
    pub lanes_are_shared: bool,
    /// Whether there are lanes by which jobs come here: those in Redis, or in the process if it both takes jobs and runs them. Without, the
    /// workers poll the table.
    pub has_lanes: bool,
}

/// Moves jobs between the table and the lanes. Shared by all threads.
pub struct Lifecycle {
    store: Store,
    lanes: Lanes,
    policy: Policy,
    timers: Timers,
    lanes_outage: Outage,
    // What the keeper has seen and the scheduler is to see to.
    leases_expired: AtomicBool,
    replicas_dead: AtomicBool,
    // After an outage of the database, the replicas that held on get one lease to renew and to store their outcomes.
    no_expiry_before: Mutex<Instant>,
    // Whether more is due in a lane than the scheduler has pushed.
    cut: [AtomicBool; 3],
    // The epoch that this replica has begun, or tried to, and whose recall is not done yet.
    new_epoch: Mutex<Option<String>>,
}

/// What one submission became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmitResult {
    /// One for each job, in their order.
    pub results: Vec<Result<Job, KeyTaken>>,
    /// Whether an earlier call with the same idempotency key stored them.
    pub replayed: bool,
}

/// How submitting failed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitFailure {
    /// The idempotency key was used with another body.
    #[error("the idempotency key was used with another body")]
    IdempotencyMismatch,
    /// The store's error.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Lifecycle {
    /// Brings store and lanes together.
    pub fn new(store: Store, lanes: Lanes, policy: Policy) -> Lifecycle {
        Lifecycle {
            store,
            lanes,
            policy,
            timers: Timers::default(),
            lanes_outage: Outage::new("Redis"),
            leases_expired: AtomicBool::new(true),
            replicas_dead: AtomicBool::new(true),
            no_expiry_before: Mutex::new(Instant::now()),
            cut: [const { AtomicBool::new(false) }; 3],
            new_epoch: Mutex::new(None),
        }
    }

    /// The store, for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What this replica goes by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The ids that wait in this process for their time.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Whether Redis is away, as far as is known.
    pub fn lanes_are_away(&self) -> bool {
        self.lanes_outage.is_on()
    }

    /// Whether jobs have to be claimed straight from the table, as no lane brings them: there are none, or Redis is away.
    pub fn is_fed_by_table(&self) -> bool {
        !self.policy.has_lanes || self.lanes_are_away()
    }

    /// Whether the lanes answer, and why not.
    ///
    /// # Errors
    /// The reason, for people; without secrets.
    pub fn ping_lanes(&self) -> Result<(), QueueError> {
        self.lanes.ping()
    }

    /// Lengths of the lanes in the order of [`Lane::ALL`]; `None` while they do not answer.
    pub fn lane_lengths(&self) -> Option<[u64; 3]> {
        self.lanes.state().ok().map(|state| state.map(|lane| lane.len))
    }

    /// From now on no pop waits; for the stop.
    pub fn interrupt(&self) {
        self.lanes.interrupt();
    }

    // ---- submit ----

    /// Stores jobs and hands their ids on. When it returns, the jobs are committed.
    ///
    /// Crash window "after INSERT commit, before the push": rows look dispatched, ids are in no lane; [`Lifecycle::recall_lost`] finds them.
    ///
    /// # Errors
    /// As [`Store::submit`].
    pub fn submit(&self, jobs: &[&NewJob]) -> Result<Vec<Result<Job, KeyTaken>>, StoreError> {
        let results = self.store.submit(jobs, self.policy.replica, self.horizon_ms())?;
        Ok(self.hand_on(jobs, results))
    }

    /// [`Lifecycle::submit`] for a call with an idempotency key.
    ///
    /// # Errors
    /// [`SubmitFailure::IdempotencyMismatch`], or as [`Store::submit_once`].
    pub fn submit_once(&self, jobs: &[&NewJob], idempotency: &Idempotency) -> Result<SubmitResult, SubmitFailure> {
        match self.store.submit_once(jobs, idempotency, self.policy.replica, self.horizon_ms())? {
            Submitted::Now(results) => Ok(SubmitResult { results: self.hand_on(jobs, results), replayed: false }),
            Submitted::Before(results) => Ok(SubmitResult { results: self.as_they_are_now(results)?, replayed: true }),
            Submitted::Mismatch => Err(SubmitFailure::IdempotencyMismatch),
        }
    }

    /// How far ahead a job that is stored now counts as dispatched by this replica: not at all where no lane would take it.
    fn horizon_ms(&self) -> Option<u64> {
        if self.is_fed_by_table() {
            return None;
        }
        Some(u64::try_from(self.horizon().as_millis()).unwrap_or(u64::MAX))
    }

    fn horizon(&self) -> Duration {
        if self.timers.has_room() {
            self.policy.tick
        } else {
            Duration::ZERO
        }
    }

    fn hand_on(&self, jobs: &[&NewJob], results: Vec<Result<Stored, KeyTaken>>) -> Vec<Result<Job, KeyTaken>> {
        let mut now: Vec<(Lane, Vec<Seq>)> = Lane::ALL.map(|lane| (lane, Vec::new())).into();
        for (job, result) in jobs.iter().zip(&results) {
            match result {
                Ok(Stored { seq, due_in_ms: Some(0), .. }) => now[job.lane.index()].1.push(*seq),
                Ok(Stored { seq, due_in_ms: Some(ms), .. }) => self.timers.add(in_ms(*ms), job.lane, *seq),
                Ok(Stored { due_in_ms: None, .. }) | Err(_) => {}
            }
        }
        now.retain(|(_, seqs)| !seqs.is_empty());
        self.push(&now);
        jobs.iter().zip(results).map(|(job, result)| result.map(|stored| stored_job(job, &stored))).collect()
    }

    fn as_they_are_now(&self, results: Vec<Result<Uuid, KeyTaken>>) -> Result<Vec<Result<Job, KeyTaken>>, StoreError> {
        let ids: Vec<Uuid> = results.iter().filter_map(|result| result.ok()).collect();
        let mut jobs: std::collections::HashMap<Uuid, Job> =
            self.store.jobs_by_id(&ids)?.into_iter().map(|job| (job.id, job)).collect();
        let results = results.into_iter().filter_map(|result| match result {
            // A job that was pruned since is left out: its call was long ago.
            Ok(id) => jobs.remove(&id).map(Ok),
            Err(taken) => Some(Err(taken)),
        });
        Ok(results.collect())
    }

    // ---- lanes ----

    /// Pushes ids whose rows are marked as dispatched. If they cannot be pushed, their rows are given back to dispatch.
    fn push(&self, lots: &[(Lane, Vec<Seq>)]) {
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

    fn note_lanes_error(&self, error: &QueueError) {
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
    fn begin_epoch_if_none(&self) -> Result<Option<String>, QueueError> {
        let found = self.lanes.epoch()?;
        let mut new_epoch = lock(&self.new_epoch);
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

    // ---- dispatch ----

    /// Makes regular what plain SQL inserted, and gives up what cannot be run.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn regularise(&self) -> Result<(), StoreError> {
        loop {
            let odd = self.store.regularise()?;
            self.bury_odd(&odd)?;
            if odd.len() < BATCH_MAX {
                return Ok(());
            }
        }
    }

    fn bury_odd(&self, odd: &[OddRow]) -> Result<(), StoreError> {
        for row in odd {
            log::warn!(seq:% = row.seq, reason = row.reason.as_str(); "a job inserted by SQL cannot be run and goes to FailedJobs");
        }
        self.store.bury_odd(odd)
    }

    /// Dispatches what is due within the next tick: pushes what is due now, keeps the rest in the timers. At most up to the lanes' buffer;
    /// between batches it calls `pause`, which may push what has become due meanwhile.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn dispatch(&self, mut pause: impl FnMut()) -> Result<(), StoreError> {
        if self.is_fed_by_table() {
            return Ok(()); // The feeders claim straight from it.
        }
        let lengths = match self.lanes.state() {
            Ok(state) => state.map(|lane| lane.len),
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(());
            }
        };
        for lane in Lane::ALL {
            let len = usize::try_from(lengths[lane.index()]).unwrap_or(usize::MAX);
            let mut room = self.policy.lane_buffer_max.saturating_sub(len);
            let mut is_cut = true;
            while room > 0 && !self.lanes_are_away() {
                let count = room.min(BATCH_MAX);
                let found = self.store.dispatch(lane, self.policy.replica, self.horizon(), count)?;
                self.bury_odd(&found.odd)?;
                self.push_or_keep(lane, &found.due);
                room -= found.due.len().min(room);
                pause();
                if found.seen < count {
                    is_cut = false;
                    break;
                }
            }
            self.cut[lane.index()].store(is_cut, Ordering::Relaxed);
        }
        Ok(())
    }

    fn push_or_keep(&self, lane: Lane, due: &[Due]) {
        let (now, later): (Vec<&Due>, Vec<&Due>) = due.iter().partition(|due| due.in_ms == 0);
        for due in later {
            self.timers.add(in_ms(due.in_ms), lane, due.seq);
        }
        if !now.is_empty() {
            self.push(&[(lane, now.iter().map(|due| due.seq).collect())]);
        }
    }

    /// Gives back to dispatch what was dispatched and is in no lane any more. `deep` also looks at what was dispatched within the last day,
    /// once at a start.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn recall_lost(&self, deep: bool) -> Result<(), StoreError> {
        if self.lanes_are_away() {
            return self.recall_all(); // So that the feeders find it in the table.
        }
        if !self.policy.lanes_are_shared {
            return Ok(()); // Lanes in the process lose nothing while it lives; at its start `watch_lanes` recalls all.
        }
        let state = match self.lanes.state() {
            Ok(state) => state,
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(());
            }
        };
        for (lane, state) in Lane::ALL.into_iter().zip(state) {
            let head = if state.len == 0 {
                None
            } else {
                Some(state.head.unwrap_or(Seq(0)))
            };
            while self.store.recall_lost(lane, head, LOST_GRACE, deep)? == BATCH_MAX {}
        }
        Ok(())
    }

    fn recall_all(&self) -> Result<(), StoreError> {
        for lane in Lane::ALL {
            while self.store.recall_lost(lane, None, Duration::ZERO, false)? == BATCH_MAX {}
        }
        Ok(())
    }

    /// The starvation guard: moves the ids at the head of the lower lanes behind those of the high lane, where their jobs have been due for
    /// longer than `limit`. The job keeps its priority; only this turn is given to it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn promote_starved(&self, limit: Duration) -> Result<(), StoreError> {
        for lane in [Lane::Medium, Lane::Low] {
            for _ in 0..PROMOTED_BATCHES_MAX {
                let popped = match self.lanes.pop(&[(lane, PROMOTED_BATCH)], Duration::ZERO) {
                    Ok(popped) => popped,
                    Err(error) => {
                        self.note_lanes_error(&error);
                        return Ok(());
                    }
                };
                let Some((_, seqs)) = popped else { break };
                // If this fails the ids are lost, as at a crash here; `recall_lost` finds them.
                let starved = self.store.starved(&seqs, limit)?;
                let (starved, fresh): (Vec<Seq>, Vec<Seq>) = seqs.into_iter().partition(|seq| starved.contains(seq));
                if !fresh.is_empty() {
                    self.lanes.push_front(lane, &fresh).unwrap_or_else(|error| self.note_lanes_error(&error));
                }
                if !starved.is_empty() {
                    log::info!(jobs = starved.len(), lane:% = lane; "jobs that have waited too long are promoted");
                    self.push(&[(Lane::High, starved)]);
                }
                if !fresh.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Shows this replica as alive. Returns whether the scheduler has something to see to.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn beat(&self, holds: usize) -> Result<bool, StoreError> {
        let beat = self.store.beat(self.policy.replica, &self.policy.replica_name, holds, REPLICA_DEAD_AFTER)?;
        self.leases_expired.fetch_or(beat.leases_expired, Ordering::AcqRel);
        self.replicas_dead.fetch_or(beat.replicas_dead, Ordering::AcqRel);
        Ok(beat.leases_expired || beat.replicas_dead)
    }

    /// The database is back after an outage: for the length of one lease no lease is ended, for their replicas could not renew them either.
    pub fn defer_expiry(&self) {
        *lock(&self.no_expiry_before) = Instant::now() + self.policy.lease;
    }

    /// Takes over from dead replicas, where a beat has seen one (or this replica has just started): the ids in their timers, and (where each process has lanes of its own) in their lanes.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn take_over_from_dead(&self) -> Result<(), StoreError> {
        if !self.replicas_dead.load(Ordering::Acquire) {
            return Ok(());
        }
        if !self.policy.lanes_are_shared {
            self.recall_all()?;
        }
        while self.store.recall_with_replica(REPLICA_DEAD_AFTER, None)? == BATCH_MAX {}
        self.store.bury_replicas(REPLICA_DEAD_AFTER)?;
        self.replicas_dead.store(false, Ordering::Release);
        Ok(())
    }

    /// Ends leases that ran out, where a beat has seen one (or this replica has just started); their jobs count one failed attempt, by `verdict`. What retries is dispatched by the next tick.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn expire(&self, verdict: impl Fn(&Expired) -> Verdict) -> Result<usize, StoreError> {
        let mut count = 0;
        if !self.leases_expired.load(Ordering::Acquire) || Instant::now() < *lock(&self.no_expiry_before) {
            return Ok(count);
        }
        loop {
            let expired = self.store.expire(self.policy.replica, &verdict)?;
            for job in &expired {
                log::warn!(seq:% = job.seq, "type" = job.job_type.as_str(), replica:% = job.replica; "worker lost: the lease of a job ran out");
            }
            if expired.is_empty() {
                self.leases_expired.store(false, Ordering::Release);
                return Ok(count);
            }
            count += expired.len();
        }
    }

    // ---- claim ----

    /// Takes ids from the lanes, up to the room of each, and claims their jobs. `Ok(None)`: Redis is away.
    ///
    /// Crash window "popped, not yet claimed": as if the id had never been pushed.
    ///
    /// # Errors
    /// As [`Store::claim`]; ids that were popped are given back to dispatch where the database still takes that.
    pub fn claim_from_lanes(&self, room: &[(Lane, usize)], wait: Duration) -> Result<Option<Popped>, StoreError> {
        let popped = match self.lanes.pop(room, wait) {
            Ok(popped) => popped,
            Err(error) => {
                self.note_lanes_error(&error);
                return Ok(None);
            }
        };
        let Some((lane, seqs)) = popped else { return Ok(Some(Popped::default())) };
        let asked = room.iter().find(|(of, _)| *of == lane).map_or(0, |(_, room)| *room);
        let drained = seqs.len() < asked && self.cut[lane.index()].load(Ordering::Relaxed);
        let valid_until = Instant::now() + self.policy.lease;
        let jobs = match self.store.claim(&seqs, self.policy.replica, self.policy.lease) {
            Ok(jobs) => jobs,
            Err(error) => {
                // Not lost, only late: the row says dispatched, the lane has it again.
                if let Err(error) = self.lanes.push_front(lane, &seqs) {
                    self.note_lanes_error(&error);
                }
                return Err(error);
            }
        };
        Ok(Some(Popped { lane, jobs, valid_until: Some(valid_until), drained }))
    }

    /// Claims straight from the table, the lane's jobs that no lane has: the way while Redis is away.
    ///
    /// # Errors
    /// As [`Store::claim_next`].
    pub fn claim_from_table(&self, lane: Lane, count: usize) -> Result<Popped, StoreError> {
        let valid_until = Instant::now() + self.policy.lease;
        let claim = self.store.claim_next(lane, count, self.policy.replica, self.policy.lease)?;
        self.bury_odd(&claim.odd)?;
        Ok(Popped { lane, jobs: claim.jobs, valid_until: Some(valid_until), drained: false })
    }

    /// Gives back jobs that this replica claimed without learning of it.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release_unknown(&self, known: &[Token]) -> Result<(), StoreError> {
        let released = self.store.release_unknown(self.policy.replica, known)?;
        self.push_front(&released);
        Ok(())
    }

    /// Gives claimed jobs back, their attempt not consumed; they run next, here or elsewhere.
    ///
    /// # Errors
    /// As every call of the store.
    pub fn release(&self, held: &[(Seq, Token)]) -> Result<usize, StoreError> {
        let mut count = 0;
        for held in held.chunks(BATCH_MAX) {
            let released = self.store.release(held, self.policy.replica)?;
            self.push_front(&released);
            count += released.len();
        }
        Ok(count)
    }

    fn push_front(&self, released: &[Released]) {
        for lane in Lane::ALL {
            let mut seqs: Vec<Seq> = released.iter().filter(|job| job.lane == lane).map(|job| job.seq).collect();
            seqs.sort_unstable();
            if seqs.is_empty() {
                continue;
            }
            let pushed = if self.policy.lanes_are_shared {
                self.lanes.push_front(lane, &seqs)
            } else {
                Err(no_lanes())
            };
            if let Err(error) = pushed {
                if self.policy.lanes_are_shared {
                    self.note_lanes_error(&error);
                }
                if let Err(error) = self.store.recall(&seqs) {
                    log::debug!(error:% = error; "released ids could not be recalled");
                }
            }
        }
    }

    // ---- outcome ----

    /// Stores outcomes. Returns the jobs whose outcome was accepted.
    ///
    /// Crash window "handler done, outcome not yet written": the lease runs out and the job runs again; the token refuses a late writer.
    ///
    /// # Errors
    /// As [`Store::finish`]; the call can be repeated.
    pub fn finish(&self, outcomes: &[Outcome]) -> Result<Vec<Seq>, StoreError> {
        let horizon = self.horizon_ms().map(Duration::from_millis);
        let accepted = self.store.finish(outcomes, self.policy.replica, horizon)?;
        let lanes: std::collections::HashMap<Seq, Lane> =
            outcomes.iter().map(|outcome| (outcome.seq, outcome.lane)).collect();
        for accepted in &accepted {
            if let (Some(ms), Some(lane)) = (accepted.due_in_ms, lanes.get(&accepted.seq)) {
                self.timers.add(in_ms(ms), *lane, accepted.seq);
            }
        }
        Ok(accepted.into_iter().map(|accepted| accepted.seq).collect())
    }

    // ---- what people ask for ----

    /// Withdraws a job.
    ///
    /// # Errors
    /// As [`Store::cancel`].
    pub fn cancel(&self, id: Uuid) -> Result<Cancelled, StoreError> {
        self.store.cancel(id)
    }

    /// Queues the job of a dead letter anew; `id` is the dead letter's or the job's.
    ///
    /// # Errors
    /// As [`Store::revive`].
    pub fn revive(&self, id: Uuid) -> Result<Revived, StoreError> {
        let revived = self.store.revive(id, self.policy.replica)?;
        if let Revived::Queued(released) = revived {
            self.push(&[(released.lane, vec![released.seq])]);
        }
        Ok(revived)
    }

    // ---- stop ----

    /// Leaves: the leases that have no jobs any more are removed, the ids in this replica's timers are given back to dispatch, and the replica
    /// is forgotten.
    ///
    /// # Errors
    /// As every call of the store; then the other replicas find out by themselves that it is dead.
    pub fn leave(&self, ended: &[Token]) -> Result<(), StoreError> {
        self.store.end_leases(ended)?;
        while self.store.recall_with_replica(REPLICA_DEAD_AFTER, Some(self.policy.replica))? == BATCH_MAX {}
        self.store.forget_replica(self.policy.replica)
    }
}

/// Jobs that were claimed together.
#[derive(Clone, Debug, Default)]
pub struct Popped {
    /// The lane they came from: their own, or the high one after the starvation guard.
    pub lane: Lane,
    /// In the order in which they are to run.
    pub jobs: Vec<ClaimedJob>,
    /// Until when this replica may count on the lease, by its own clock; `None` where nothing was claimed.
    pub valid_until: Option<Instant>,
    /// Whether the lane ran empty although more is due, so that the scheduler should be woken.
    pub drained: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: what is locked here is changed in single steps
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn no_lanes() -> QueueError {
    QueueError::Unavailable("the lanes are not shared".into())
}

/// The row that a submitted job became.
fn stored_job(job: &NewJob, stored: &Stored) -> Job {
    Job {
        id: job.id,
        seq: stored.seq,
        job_type: job.job_type.clone(),
        payload: job.payload.clone(),
        priority: job.lane.to_string(),
        max_retries: i64::from(job.max_retries),
        retry_count: 0,
        status: Status::Queued.to_string(),
        created_at: stored.created_at,
        updated_at: stored.created_at,
        run_at: stored.run_at,
        started_at: None,
        finished_at: None,
        timeout_ms: job.timeout.and_then(|timeout| i64::try_from(timeout.as_millis()).ok()),
        unique_key: job.unique_key.clone(),
        last_error: None,
    }
}
