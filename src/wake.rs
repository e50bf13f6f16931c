//! How threads wait for each other without missing a word: a wake-up call that is kept until somebody waits, and a stop flag.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A wake-up call. A call made while nobody waits ends the next wait at once; several such calls count as one.
#[derive(Default)]
pub struct Wake {
    called: Mutex<bool>,
    calls: Condvar,
    // As `called`, to be read without its lock.
    is_called: AtomicBool,
}

impl Wake {
    /// Ends the wait under way, or the next one.
    ///
    /// What was done before the call is seen by whoever waits, after the wait.
    pub fn wake(&self) {
        // With the fence of `wait`: either this sees that the last call was taken, or who took it sees what was done before this.
        fence(Ordering::SeqCst);
        if self.is_called.load(Ordering::Relaxed) {
            return;
        }
        let mut called = self.lock();
        if !*called {
            *called = true;
            self.is_called.store(true, Ordering::Relaxed);
            self.calls.notify_all();
        }
    }

    /// Waits for a call, for `timeout` at most. Returns whether there was one.
    pub fn wait(&self, timeout: Duration) -> bool {
        let waited = self.calls.wait_timeout_while(self.lock(), timeout, |called| !*called);
        let (mut called, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let was_called = std::mem::take(&mut *called);
        self.is_called.store(false, Ordering::Relaxed);
        drop(called);
        fence(Ordering::SeqCst);
        was_called
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // OK: a bool is whole whoever panicked while it was locked
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells a running attempt to end. Set once, never unset; its clones are the same flag.
///
/// It is set when the deadline has passed, the lease is lost, the job is cancelled, or the drain time at a stop is over.
#[derive(Clone, Default)]
pub struct StopFlag {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl StopFlag {
    /// A flag that is not set.
    pub fn new() -> StopFlag {
        StopFlag::default()
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        *self.lock()
    }

    /// Sets it and wakes all that wait.
    pub fn set(&self) {
        *self.lock() = true;
        self.shared.1.notify_all();
    }

    /// Waits until it is set, for `timeout` at most. Returns whether it is set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let waited = self.shared.1.wait_timeout_while(self.lock(), timeout, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // OK: a bool is whole whoever panicked while it was locked
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for StopFlag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StopFlag").field(&self.is_set()).finish()
    }
}

/// What is left until `deadline`, from now.
pub fn left_until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_before_the_wait_is_not_missed_and_counts_once() {
        let wake = Wake::default();
        wake.wake();
        wake.wake();

        assert!(wake.wait(Duration::from_mins(1)));
        assert!(!wake.wait(Duration::ZERO));
    }

    #[test]
    fn a_stop_flag_is_shared_by_its_clones_and_wakes_who_waits() {
        let flag = StopFlag::new();
        let waiting = flag.clone();
        let waiter = std::thread::spawn(move || {
            let started = Instant::now();
            (waiting.wait_timeout(Duration::from_mins(1)), started.elapsed())
        });

        assert!(!flag.is_set());
        flag.set();

        let (set, elapsed) = waiter.join().expect("the waiter lives");
        assert!(set && flag.is_set());
        assert!(elapsed < Duration::from_secs(30), "{elapsed:?}");
    }

    #[test]
    fn waiting_for_a_flag_that_nobody_sets_ends() {
        assert!(!StopFlag::new().wait_timeout(Duration::from_millis(5)));
    }
}
