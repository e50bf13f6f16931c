//! One file is one thread with one duty, and the thread has the file's name.
//!
//! A duty is a struct with a `round` that says how long to wait before the next; the one loop of this module runs rounds, survives their
//! errors and panics, and sleeps so that it can be woken. Nobody else writes a loop around I/O.

pub mod deadlines;
pub mod feeder;
pub mod finisher;
pub mod http;
pub mod keeper;
pub mod scheduler;
pub mod signals;
pub mod submitter;
#[cfg(test)]
mod testing;
pub mod worker;

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lifecycle::Outage;
use crate::random;
use crate::store::StoreError;
use crate::wake::{Wake, left_until};

/// The first wait after a round that failed; it doubles up to [`RETRY_WAIT_MAX`].
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// The longest wait after a round that failed.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// An error that a person must see to is logged again after this long.
const ERROR_REPEAT: Duration = Duration::from_mins(1);

/// What a thread does again and again.
pub trait Duty: Send {
    /// The name of its thread.
    const NAME: &'static str;

    /// One round. Returns how long to wait before the next, unless woken.
    ///
    /// # Errors
    /// The loop logs them, waits longer each time, and goes on.
    fn round(&mut self) -> Result<Duration, StoreError>;
}

/// A running duty.
pub struct Thread {
    name: String,
    stop: Arc<AtomicBool>,
    wake: Arc<Wake>,
    round_ended: Arc<Mutex<Instant>>,
    handle: JoinHandle<()>,
}

/// Starts a duty on a thread of its own. `wake` ends its waits; `database` is told of outages that it meets.
///
/// # Errors
/// If the system has no thread to give.
pub fn start<D: Duty + 'static>(mut duty: D, wake: Arc<Wake>, database: Arc<Outage>) -> io::Result<Thread> {
    let stop = Arc::new(AtomicBool::new(false));
    let round_ended = Arc::new(Mutex::new(Instant::now()));
    let (stopped, calls, ended) = (Arc::clone(&stop), Arc::clone(&wake), Arc::clone(&round_ended));
    let body = move || {
        let mut failures = Failures { count: 0, logged: None, database };
        while !stopped.load(Ordering::Relaxed) {
            // OK: a duty keeps its state consistent between rounds, or in parts that a panic does not leave half done
            let wait = match catch_unwind(AssertUnwindSafe(|| duty.round())) {
                Ok(Ok(wait)) => failures.end(wait),
                Ok(Err(error)) => failures.note(D::NAME, &error),
                Err(panic) => failures.note_panic(D::NAME, &*panic),
            };
            *lock(&ended) = Instant::now() + wait;
            calls.wait(wait);
        }
    };
    let handle = spawn(D::NAME, body)?;
    Ok(Thread { name: D::NAME.to_owned(), stop, wake, round_ended, handle })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: what is locked in this folder is changed in single steps
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a named thread.
///
/// # Errors
/// If the system has no thread to give.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

impl Thread {
    /// Asks the duty to end after its present round.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake.wake();
    }

    /// Whether no round has ended for `limit`, waits between rounds apart.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        lock(&self.round_ended).elapsed() > limit
    }

    /// Waits until it has ended, up to `deadline`. Returns whether it has.
    pub fn join(self, deadline: Instant) -> bool {
        self.stop();
        let ended = join_until(&self.handle, deadline);
        if ended {
            drop(self.handle.join()); // OK: panics were caught in the loop
        } else {
            log::warn!("{} did not end in time and is left behind", self.name);
        }
        ended
    }
}

/// Waits until a thread has ended, up to `deadline`. Returns whether it has.
pub(crate) fn join_until(handle: &JoinHandle<()>, deadline: Instant) -> bool {
    while !handle.is_finished() {
        let left = left_until(deadline);
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(Duration::from_millis(5)));
    }
    true
}

/// The failed rounds of one duty, since the last one that did not fail.
struct Failures {
    count: u32,
    logged: Option<Instant>,
    database: Arc<Outage>,
}

impl Failures {
    fn end(&mut self, wait: Duration) -> Duration {
        self.count = 0;
        wait
    }

    fn note(&mut self, name: &str, error: &StoreError) -> Duration {
        match error {
            StoreError::Unavailable(_) | StoreError::Unconfirmed(_) => self.database.begins(error),
            StoreError::Contended(_) if self.is_news() => {
                log::warn!(error:% = error; "{name} gives way and tries again");
            }
            StoreError::TimedOut(_) if self.is_news() => {
                log::warn!(error:% = error; "{name} met a slow database; it tries again");
            }
            StoreError::Contended(_) | StoreError::TimedOut(_) => {}
            StoreError::Conflict(_) | StoreError::BadRow(_) | StoreError::Corrupt(_) => self.log(name, error),
        }
        self.back_off()
    }

    fn note_panic(&mut self, name: &str, panic: &(dyn Any + Send)) -> Duration {
        self.log(name, &format!("panic: {}", panic_text(panic)));
        self.back_off()
    }

    fn log(&mut self, name: &str, error: &dyn std::fmt::Display) {
        if self.is_news() {
            log::error!(error:% = error; "{name} cannot do its work; it goes on trying");
        }
    }

    /// Whether nothing was logged for a while.
    fn is_news(&mut self) -> bool {
        let is_news = self.logged.is_none_or(|logged| logged.elapsed() >= ERROR_REPEAT);
        if is_news {
            self.logged = Some(Instant::now());
        }
        is_news
    }

    fn back_off(&mut self) -> Duration {
        self.count = self.count.saturating_add(1);
        let wait = RETRY_WAIT.saturating_mul(1 << self.count.min(10)).min(RETRY_WAIT_MAX);
        wait.mul_f64(0.5 + random::unit() / 2.0)
    }
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
