//! The way of a job between the table and the lanes. The only code that uses store and queue together.
//!
//! Each crash window is named where it opens; the table of them is in docs/ARCHITECTURE.md. All of them rest on two facts: the row is
//! committed before its id is pushed anywhere, and a claim decides who runs the job, however often its id comes by.

mod claim;
mod cut;
mod dispatch;
mod held;
mod lanes;
mod outage;
mod recover;
mod submit;
mod timers;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use cut::Cut;

pub use claim::Popped;
pub use held::{Begin, Held};
pub use outage::Outage;
pub use submit::{Submission, SubmitError, SubmitFailure, SubmitResult, SubmittedClaimed};
pub use timers::Timers;

use crate::job::{ReplicaId, Token};
use crate::queue::Lanes;
use crate::store::{Cancelled, Revived, Store, StoreError, Sweep};

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
    store: Arc<Store>,
    lanes: Arc<Lanes>,
    policy: Policy,
    timers: Timers,
    lanes_outage: Outage,
    // When the keeper has last reached the database by a beat; what it has seen there, for the scheduler to see to.
    beaten: Mutex<Instant>,
    leases_expired: AtomicBool,
    replicas_dead: AtomicBool,
    // After an outage of the database, the replicas that held on get one lease to renew and to store their outcomes.
    no_expiry_before: Mutex<Instant>,
    // Since when that has been put off, if no lease was ended since.
    expiry_deferred: Mutex<Option<Instant>>,
    cut: Cut,
    // Pushes to the lanes that this replica has begun.
    pushes: AtomicU64,
    // When to search for lost ids besides the ticks: the next time, and the last that was asked for.
    looks: Mutex<Option<(Instant, Instant)>>,
    // The search for lost ids that goes on, one for each lane at most.
    sweeps: Mutex<Vec<Sweep>>,
    // The epoch that this replica has begun, or tried to, and whose recall is not done yet.
    new_epoch: Mutex<Option<String>>,
}

impl Lifecycle {
    /// Brings store and lanes together; each may be shared with others.
    pub fn new(store: impl Into<Arc<Store>>, lanes: impl Into<Arc<Lanes>>, policy: Policy) -> Lifecycle {
        Lifecycle {
            // The database may have been away until just now.
            no_expiry_before: Mutex::new(Instant::now() + policy.lease),
            expiry_deferred: Mutex::new(None),
            beaten: Mutex::new(Instant::now()),
            store: store.into(),
            lanes: lanes.into(),
            policy,
            timers: Timers::default(),
            lanes_outage: Outage::new("Redis"),
            leases_expired: AtomicBool::new(true),
            replicas_dead: AtomicBool::new(true),
            cut: Cut::default(),
            pushes: AtomicU64::new(0),
            looks: Mutex::default(),
            sweeps: Mutex::default(),
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

    /// How often this replica has begun to push ids into the lanes.
    pub fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::Acquire)
    }

    /// Whether Redis is away, as far as is known.
    pub fn lanes_are_away(&self) -> bool {
        self.lanes_outage.is_on()
    }

    /// Whether jobs have to be claimed straight from the table, as no lane brings them: there are none, or Redis is away.
    pub fn is_fed_by_table(&self) -> bool {
        !self.policy.has_lanes || self.lanes_are_away()
    }

    /// Why the lanes are not used, for people and without secrets. A server that answers may still refuse what matters: it is full, or
    /// only a replica.
    pub fn lanes_problem(&self) -> Option<String> {
        self.lanes.ping().err().map(|error| error.to_string()).or_else(|| self.lanes_outage.error())
    }

    /// Lengths of the lanes in the order of [`Lane::ALL`]; `None` while they do not answer.
    pub fn lane_lengths(&self) -> Option<[u64; 3]> {
        self.lanes.state().ok().map(|state| state.map(|lane| lane.len))
    }

    /// From now on no pop waits; for the stop.
    pub fn interrupt(&self) {
        self.lanes.interrupt();
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
        let revived = self.noting(self.store.revive(id, self.policy.replica))?;
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
        self.store.recall_with_replica(REPLICA_DEAD_AFTER, Some(self.policy.replica), || ())?;
        self.store.forget_replica(self.policy.replica)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: what is locked here is changed in single steps
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_ms(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

#[cfg(test)]
mod tests;
