//! Lanes that stand for those in Redis in a simulation: shared by its replicas, and away, silent or empty when it says so. Never waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::memory::MemoryLanes;
use super::{LaneState, Pushed, QueueError};
use crate::job::{Lane, Seq};

/// What the simulated server does with the next calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Does what it is asked, and says so.
    #[default]
    Given,
    /// Does what it is asked, but the answer does not arrive.
    Lost,
    /// Is away: does nothing, and says nothing.
    Away,
}

/// The simulated server; its clones are the same.
#[derive(Clone)]
pub struct SimulatedLanes {
    server: Arc<Mutex<(MemoryLanes, Answer)>>,
}

impl SimulatedLanes {
    /// A server without data, that answers.
    pub fn new() -> SimulatedLanes {
        SimulatedLanes { server: Arc::new(Mutex::new((MemoryLanes::new(usize::MAX), Answer::Given))) }
    }

    /// How it answers from now on.
    pub fn answer(&self, answer: Answer) {
        self.lock().1 = answer;
    }

    /// Loses all its data.
    pub fn flush(&self) {
        self.lock().0 = MemoryLanes::new(usize::MAX);
    }

    /// What waits in a lane is lost, the rest stays: an eviction, or a pop whose answer nobody gets.
    pub fn lose(&self, lane: Lane, count: usize) {
        drop(self.lock().0.pop(&[(lane, count)], Duration::ZERO));
    }

    /// An id comes once more.
    pub fn add(&self, lane: Lane, seq: Seq) {
        drop(self.lock().0.push(&[(lane, &[seq])]));
    }

    fn call<T>(&self, call: impl FnOnce(&MemoryLanes) -> Result<T, QueueError>) -> Result<T, QueueError> {
        let server = self.lock();
        let silent = || QueueError::Unavailable("the simulated server is silent".into());
        match server.1 {
            Answer::Given => call(&server.0),
            Answer::Lost => call(&server.0).and_then(|_| Err(silent())),
            Answer::Away => Err(silent()),
        }
    }

    pub(super) fn push(&self, lots: &[(Lane, &[Seq])]) -> Result<Pushed, QueueError> {
        self.call(|lanes| Ok(lanes.push(lots)))
    }

    pub(super) fn push_front(&self, lane: Lane, seqs: &[Seq]) -> Result<(), QueueError> {
        self.call(|lanes| {
            lanes.push_front(lane, seqs);
            Ok(())
        })
    }

    pub(super) fn pop(&self, open: &[(Lane, usize)]) -> Result<Option<(Lane, Vec<Seq>)>, QueueError> {
        self.call(|lanes| Ok(lanes.pop(open, Duration::ZERO)))
    }

    pub(super) fn state(&self) -> Result<[LaneState; 3], QueueError> {
        self.call(|lanes| Ok(lanes.state()))
    }

    pub(super) fn epoch(&self) -> Result<Option<String>, QueueError> {
        self.call(|lanes| Ok(lanes.epoch()))
    }

    pub(super) fn begin_epoch(&self, name: &str) -> Result<bool, QueueError> {
        self.call(|lanes| Ok(lanes.begin_epoch(name)))
    }

    pub(super) fn ping(&self) -> Result<(), QueueError> {
        self.call(|_| Ok(()))
    }

    fn lock(&self) -> MutexGuard<'_, (MemoryLanes, Answer)> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SimulatedLanes {
    fn default() -> SimulatedLanes {
        SimulatedLanes::new()
    }
}
