//! finisher: stores the outcomes of attempts, many in one commit.
//!
//! 1. Waits for an outcome; takes all that wait with it, up to one batch.
//! 2. Stores them in one transaction. While the database is away they wait here, and the workers before the full channel.
//! 3. An outcome that the database refuses is stored alone, and then as a failure that says so, so that it never holds up the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::Duty;
use crate::job::{Seq, Token};
use crate::lifecycle::{Held, Lifecycle};
use crate::metrics::Metrics;
use crate::retry::Verdict;
use crate::store::{BATCH_MAX, Outcome, StoreError};

/// Outcomes that wait between the workers and the finisher at most; more make the workers wait.
const OUTCOMES_MAX: usize = 10_000;
/// How long a round waits for the first outcome.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// The way to the finisher; cheap to clone.
#[derive(Clone)]
pub struct Outcomes {
    sender: Sender<Outcome>,
    unstored: Arc<AtomicUsize>,
}

impl Outcomes {
    /// The way to a finisher, and its other end.
    pub fn channel() -> (Outcomes, Receiver<Outcome>) {
        let (sender, receiver) = bounded(OUTCOMES_MAX);
        (Outcomes { sender, unstored: Arc::default() }, receiver)
    }

    /// Hands an outcome over; waits while too many are waiting. Returns whether there is still a finisher.
    pub fn send(&self, outcome: Outcome) -> bool {
        self.unstored.fetch_add(1, Ordering::AcqRel);
        self.sender.send(outcome).is_ok()
    }

    /// Hands an outcome over if there is room for it now, or nobody who wants it.
    pub fn try_send(&self, outcome: Outcome) -> bool {
        self.unstored.fetch_add(1, Ordering::AcqRel);
        let is_full = matches!(self.sender.try_send(outcome), Err(TrySendError::Full(_)));
        if is_full {
            self.unstored.fetch_sub(1, Ordering::AcqRel);
        }
        !is_full
    }

    /// Outcomes that were handed over and are not stored yet.
    pub fn unstored(&self) -> usize {
        self.unstored.load(Ordering::Acquire)
    }
}

/// The duty.
pub struct Finisher {
    outcomes: Receiver<Outcome>,
    unstored: Arc<AtomicUsize>,
    waiting: Vec<Outcome>,
    lifecycle: Arc<Lifecycle>,
    held: Arc<Held>,
    metrics: Arc<Metrics>,
}

impl Finisher {
    /// A finisher of what comes through `outcomes`, whose other end is `way`.
    pub fn new(
        outcomes: Receiver<Outcome>,
        way: &Outcomes,
        lifecycle: Arc<Lifecycle>,
        held: Arc<Held>,
        metrics: Arc<Metrics>,
    ) -> Finisher {
        Finisher { outcomes, unstored: Arc::clone(&way.unstored), waiting: Vec::new(), lifecycle, held, metrics }
    }

    fn store(&self, outcomes: &[Outcome]) -> Result<(), StoreError> {
        match self.lifecycle.finish(outcomes) {
            Ok(accepted) => {
                self.count(outcomes, &accepted);
                self.held.settle(outcomes.iter().map(|outcome| (outcome.seq, outcome.token)));
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) if outcomes.len() > 1 => {
                let (left, right) = outcomes.split_at(outcomes.len() / 2);
                self.store(left).and_then(|()| self.store(right))
            }
            Err(error) => self.store_refused(&outcomes[0], &error),
        }
    }

    /// Buries a job whose outcome the database refuses; if it refuses that too, the lease runs out and the job counts as lost.
    fn store_refused(&self, outcome: &Outcome, error: &StoreError) -> Result<(), StoreError> {
        log::error!(job:% = outcome.id, error:% = error; "the database refused an outcome; the job is buried");
        let is_buried = matches!(outcome.verdict, Verdict::Bury { .. });
        let reason = format!("its outcome could not be stored: {error}");
        let buried = Outcome { verdict: Verdict::Bury { reason }, ..outcome.clone() };
        if is_buried {
            self.held.forsake(outcome.seq, outcome.token);
            return Ok(());
        }
        self.store(std::slice::from_ref(&buried))
    }

    fn count(&self, outcomes: &[Outcome], accepted: &[(Seq, Token)]) {
        let accepted: std::collections::HashSet<(Seq, Token)> = accepted.iter().copied().collect();
        let (mut completed, mut retried, mut failed, mut refused) = (0, 0, 0, 0);
        for outcome in outcomes {
            if !accepted.contains(&(outcome.seq, outcome.token)) {
                log::info!(job:% = outcome.id, token:% = outcome.token; "an outcome was refused: the job was cancelled or its lease lost");
                refused += 1;
                continue;
            }
            match &outcome.verdict {
                Verdict::Complete => completed += 1,
                Verdict::Retry { .. } => retried += 1,
                Verdict::Bury { .. } => failed += 1,
            }
        }
        Metrics::add(&self.metrics.completed, completed);
        Metrics::add(&self.metrics.retried, retried);
        Metrics::add(&self.metrics.failed, failed);
        Metrics::add(&self.metrics.refused, refused);
    }
}

impl Duty for Finisher {
    const NAME: &'static str = "finisher";

    fn round(&mut self) -> Result<Duration, StoreError> {
        if self.waiting.is_empty() {
            match self.outcomes.recv_timeout(IDLE_WAIT) {
                Ok(outcome) => self.waiting.push(outcome),
                Err(RecvTimeoutError::Timeout) => return Ok(Duration::ZERO),
                // All workers have ended: the process is about to end too.
                Err(RecvTimeoutError::Disconnected) => return Ok(IDLE_WAIT),
            }
        }
        let room = BATCH_MAX.saturating_sub(self.waiting.len());
        self.waiting.extend(self.outcomes.try_iter().take(room));
        self.store(&self.waiting)?;
        self.unstored.fetch_sub(self.waiting.len(), Ordering::AcqRel);
        self.waiting.clear();
        Ok(Duration::ZERO)
    }
}
