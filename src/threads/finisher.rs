//! finisher: stores the outcomes of attempts, many in one commit.
//!
//! 1. Waits for an outcome; takes all that wait with it, up to one batch.
//! 2. Stores them in one transaction. While the database is away they wait here, and the workers before the full channel.
//! 3. Where another session holds the row of a job (a person's open transaction), its outcome is kept and tried again later, less and less often;
//!    its lease is renewed meanwhile, and the other outcomes are stored without waiting for it.
//! 4. Where a commit was not confirmed, looks which outcomes it has stored before it tries them again.
//! 5. An outcome that the database refuses is stored alone, and then as a failure that says so, so that it never holds up the others.

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

/// How often it is looked which outcomes an unconfirmed commit has stored, where another session's locks make that fail.
const LOOKS_MAX: u32 = 3;

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

/// How far a batch has come.
#[derive(Default)]
struct Progress {
    /// So many from its beginning are done with,
    done: usize,
    /// but for these, whose rows another session holds.
    left: Vec<Outcome>,
}

/// The duty.
pub struct Finisher {
    outcomes: Receiver<Outcome>,
    unstored: Arc<AtomicUsize>,
    waiting: Vec<Outcome>,
    kept: Vec<Outcome>,
    next_kept: Instant,
    kept_wait: Duration,
    // Some that wait or are kept may be stored: their commit was not confirmed.
    is_unsure: bool,
    // Looks at that which failed, one after the other.
    looks: u32,
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
            is_unsure: false,
            looks: 0,
            lifecycle,
            held,
            metrics,
        }
    }

    /// Stores outcomes, up to one batch.
    fn store(&self, outcomes: &[Outcome], progress: &mut Progress) -> Result<(), StoreError> {
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
                progress.left.extend(kept.into_iter().cloned());
                progress.done += outcomes.len();
                self.count(&decided, &accepted);
                self.held.settle(decided.iter().map(|outcome| (outcome.seq, outcome.token)));
                Ok(())
            }
            Err(error) if error.is_transient() => Err(error),
            Err(_) if outcomes.len() > 1 => {
                let (first, second) = outcomes.split_at(outcomes.len() / 2);
                self.store(first, progress).and_then(|()| self.store(second, progress))
            }
            Err(error) => self.store_refused(&outcomes[0], &error, progress),
        }
    }

    /// Buries a job whose outcome the database refuses; if it refuses that too, the lease runs out and the job counts as lost.
    fn store_refused(&self, outcome: &Outcome, error: &StoreError, progress: &mut Progress) -> Result<(), StoreError> {
        log::error!(job:% = outcome.id, error:% = error; "the database refused an outcome; the job is buried");
        let is_buried = matches!(outcome.verdict, Verdict::Bury { .. });
        let reason = format!("its outcome could not be stored: {error}");
        let buried = Outcome { verdict: Verdict::Bury { reason }, ..outcome.clone() };
        if is_buried {
            self.held.forsake(outcome.seq, outcome.token);
            progress.done += 1;
            return Ok(());
        }
        self.store(std::slice::from_ref(&buried), progress)
    }

    /// Tries the outcomes again that were kept.
    fn store_kept(&mut self) -> Result<(), StoreError> {
        let mut progress = Progress::default();
        let result = self.kept.chunks(BATCH_MAX).try_for_each(|outcomes| self.store(outcomes, &mut progress));
        let Progress { done, mut left } = progress;
        left.extend_from_slice(&self.kept[done..]);
        if result.is_ok() {
            self.kept_wait = (self.kept_wait * 2).min(KEPT_WAIT_MAX);
        }
        self.keep(left);
        self.sure(result)
    }

    /// Stores those that wait.
    fn store_waiting(&mut self) -> Result<(), StoreError> {
        let mut progress = Progress::default();
        let result = self.store(&self.waiting, &mut progress);
        let Progress { done, mut left } = progress;
        self.waiting.drain(..done);
        self.unstored.fetch_sub(done - left.len(), Ordering::AcqRel);
        if !left.is_empty() {
            if self.kept.is_empty() {
                self.kept_wait = KEPT_WAIT;
                self.next_kept = Instant::now() + KEPT_WAIT;
            }
            self.kept.append(&mut left);
        }
        self.sure(result)
    }

    fn sure(&mut self, result: Result<(), StoreError>) -> Result<(), StoreError> {
        self.is_unsure |= matches!(result, Err(StoreError::Unconfirmed(_)));
        result
    }

    /// Done with what a commit has stored that was not confirmed.
    fn settle_unconfirmed(&mut self) -> Result<(), StoreError> {
        let mut stored: HashSet<(Seq, Token)> = HashSet::new();
        for outcomes in self.waiting.chunks(BATCH_MAX).chain(self.kept.chunks(BATCH_MAX)) {
            match self.lifecycle.finished_unconfirmed(outcomes) {
                Ok(found) => stored.extend(found),
                Err(error) if error.is_outage() => return Err(error),
                Err(error) if error.is_transient() && self.looks + 1 < LOOKS_MAX => {
                    self.looks += 1;
                    return Err(error);
                }
                // They are tried again all the same, and those that were stored are taken for refused.
                Err(error) => log::debug!(error:% = error; "it is not known which outcomes are stored"),
            }
        }
        let is_stored = |outcome: &&Outcome| stored.contains(&(outcome.seq, outcome.token));
        let done: Vec<&Outcome> = self.waiting.iter().chain(&self.kept).filter(is_stored).collect();
        let attempts: Vec<(Seq, Token)> = done.iter().map(|outcome| (outcome.seq, outcome.token)).collect();
        self.count(&done, &attempts);
        self.held.settle(attempts);
        self.unstored.fetch_sub(done.len(), Ordering::AcqRel);
        self.waiting.retain(|outcome| !is_stored(&outcome));
        self.kept.retain(|outcome| !is_stored(&outcome));
        self.is_unsure = false;
        self.looks = 0;
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
        if self.is_unsure {
            return self.settle_unconfirmed().map(|()| Duration::ZERO);
        }
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
        self.store_waiting().map(|()| Duration::ZERO)
    }
}
