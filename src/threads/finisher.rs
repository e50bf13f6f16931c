//! finisher: stores the outcomes of attempts, many in one commit.
//!
//! 1. Waits for an outcome; takes all that wait with it, up to one batch.
//! 2. Stores them in one transaction. While the database is away they wait here, and the workers before the full channel.
//! 3. Where another session holds the row of a job (a person's open transaction), its outcome is kept and tried again later, less and less often;
//!    its lease is renewed meanwhile, and the other outcomes are stored without waiting for it.
//! 4. An outcome that the database refuses is stored alone, and then as a failure that says so, so that it never holds up the others.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};

use super::Duty;
use crate::job::{Seq, Token};
use crate::lifecycle::{Held, Lifecycle};
use crate::metrics::Metrics;
use crate::retry::Verdict;
use crate::store::{BATCH_MAX, Outcome, StoreError};
use crate::wake::left_until;

/// Outcomes that wait between the workers and the finisher at most; more make the workers wait.
const OUTCOMES_MAX: usize = 10_000;
/// How long a round waits for the first outcome.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Outcomes that are kept for later at most, for another session holds their rows; with so many nothing new is taken.
const KEPT_MAX: usize = 10_000;
/// The first wait before those are tried again; it doubles up to [`KEPT_WAIT_MAX`].
const KEPT_WAIT: Duration = Duration::from_millis(500);
/// The longest.
const KEPT_WAIT_MAX: Duration = Duration::from_secs(8);

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
    kept: Vec<Outcome>,
    next_kept: Instant,
    kept_wait: Duration,
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
        Finisher {
            outcomes,
            unstored: Arc::clone(&way.unstored),
            waiting: Vec::new(),
            kept: Vec::new(),
            next_kept: Instant::now(),
            kept_wait: KEPT_WAIT,
            lifecycle,
            held,
            metrics,
        }
    }

    /// Stores outcomes, up to one batch. Adds those to `left` whose row another session holds.
    fn store(&self, outcomes: &[Outcome], left: &mut Vec<Outcome>) -> Result<(), StoreError> {
        // Where one is held more may be; else a row is waited for at first, for most locks are short.
        let plain = self.kept.is_empty().then(|| self.lifecycle.finish(outcomes));
        let stored = match plain {
            None | Some(Err(StoreError::Contended(_))) => self.lifecycle.finish_free(outcomes),
            Some(stored) => stored.map(|accepted| (accepted, HashSet::new())),
        };
        match stored {
            Ok((accepted, held)) => {
                let (kept, decided): (Vec<&Outcome>, Vec<&Outcome>) =
                    outcomes.iter().partition(|outcome| held.contains(&outcome.seq));
                left.extend(kept.into_iter().cloned());
                self.count(&decided, &accepted);
                self.held.settle(decided.iter().map(|outcome| (outcome.seq, outcome.token)));
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) if outcomes.len() > 1 => {
                let (first, second) = outcomes.split_at(outcomes.len() / 2);
                self.store(first, left).and_then(|()| self.store(second, left))
            }
            Err(error) => self.store_refused(&outcomes[0], &error, left),
        }
    }

    /// Buries a job whose outcome the database refuses; if it refuses that too, the lease runs out and the job counts as lost.
    fn store_refused(&self, outcome: &Outcome, error: &StoreError, left: &mut Vec<Outcome>) -> Result<(), StoreError> {
        log::error!(job:% = outcome.id, error:% = error; "the database refused an outcome; the job is buried");
        let is_buried = matches!(outcome.verdict, Verdict::Bury { .. });
        let reason = format!("its outcome could not be stored: {error}");
        let buried = Outcome { verdict: Verdict::Bury { reason }, ..outcome.clone() };
        if is_buried {
            self.held.forsake(outcome.seq, outcome.token);
            return Ok(());
        }
        self.store(std::slice::from_ref(&buried), left)
    }

    /// Tries the outcomes again that were kept.
    fn store_kept(&mut self) -> Result<(), StoreError> {
        let mut left = Vec::new();
        let mut stored = 0;
        for outcomes in self.kept.chunks(BATCH_MAX) {
            let left_before = left.len();
            if let Err(error) = self.store(outcomes, &mut left) {
                left.truncate(left_before);
                left.extend_from_slice(&self.kept[stored..]);
                self.keep(left);
                return Err(error);
            }
            stored += outcomes.len();
        }
        self.kept_wait = (self.kept_wait * 2).min(KEPT_WAIT_MAX);
        self.keep(left);
        Ok(())
    }

    /// These are all that are kept from now on.
    fn keep(&mut self, kept: Vec<Outcome>) {
        self.unstored.fetch_sub(self.kept.len().saturating_sub(kept.len()), Ordering::AcqRel);
        self.kept = kept;
        self.next_kept = Instant::now() + self.kept_wait;
    }

    fn count(&self, outcomes: &[&Outcome], accepted: &[(Seq, Token)]) {
        let accepted: HashSet<(Seq, Token)> = accepted.iter().copied().collect();
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
        if !self.kept.is_empty() && Instant::now() >= self.next_kept {
            self.store_kept()?;
        }
        if self.kept.len() >= KEPT_MAX {
            return Ok(left_until(self.next_kept));
        }
        if self.waiting.is_empty() {
            let wait = if self.kept.is_empty() {
                IDLE_WAIT
            } else {
                IDLE_WAIT.min(left_until(self.next_kept))
            };
            match self.outcomes.recv_timeout(wait) {
                Ok(outcome) => self.waiting.push(outcome),
                Err(RecvTimeoutError::Timeout) => return Ok(Duration::ZERO),
                // All workers have ended: the process is about to end too.
                Err(RecvTimeoutError::Disconnected) => return Ok(wait),
            }
        }
        let room = BATCH_MAX.saturating_sub(self.waiting.len());
        self.waiting.extend(self.outcomes.try_iter().take(room));
        let mut left = Vec::new();
        self.store(&self.waiting, &mut left)?;
        self.unstored.fetch_sub(self.waiting.len() - left.len(), Ordering::AcqRel);
        self.waiting.clear();
        if !left.is_empty() {
            if self.kept.is_empty() {
                self.kept_wait = KEPT_WAIT;
                self.next_kept = Instant::now() + KEPT_WAIT;
            }
            self.kept.append(&mut left);
        }
        Ok(Duration::ZERO)
    }
}
