//! Places where a test ends or stops this process, as a crash there would. A normal build has none of them: they need the feature
//! `failpoints`.
//!
//! The variable `FAILPOINTS` says what happens where, in the words of the crate `fail`; `return` kills the process at once, as SIGKILL
//! does: `FAILPOINTS='submit.committed=3*off->return'` does so at the fourth pass. The places:
//!
//! | name | crash window |
//! |---|---|
//! | `submit_claimed.committed` | after the commit of an INSERT that claims its jobs, before a worker has them |
//! | `submit.committed` | after the commit of an INSERT, before the push of its ids |
//! | `submit_once.committed` | the same, of a call with an idempotency key |
//! | `claim.popped` | after ids were popped, before they are claimed |
//! | `claim.claimed` | after a claim, before its jobs are in a channel |
//! | `worker.begun` | in a worker, after a job was begun, before its handler |
//! | `worker.done` | in a worker, after the handler, before its outcome |
//! | `finish.in_transaction` | inside the transaction of outcomes, before its commit |
//! | `finish.committed` | after the commit of outcomes, before anything is done about them |
//! | `tick.dispatched` | inside a tick, after jobs were marked as dispatched, before their ids are pushed or kept |
//! | `timers.due` | after ids left the timer heap, before their push |
//! | `epoch.begun` | after Redis was found to have lost its data and the new epoch was begun, before anything is dispatched again |
//! | `expire.in_transaction` | inside the transaction that ends leases that ran out, before its commit |
//! | `migrate.applied` | inside the transaction of a migration, before its commit |
//!
//! At others a call of the store fails, by `return(unavailable)`, `return(unconfirmed)`, `return(contended)` or `return(timed out)`; the callback of a
//! test says so by [`fail_with`], for its own thread alone:
//!
//! | name | what becomes of the call |
//! |---|---|
//! | `store.begin` | a read or a write: nothing is done |
//! | `store.commit` | a write: it is undone |
//! | `store.committed` | a write: it is stored |

#[cfg(feature = "failpoints")]
use std::cell::Cell;

/// One of the places in the list above.
#[cfg(feature = "failpoints")]
macro_rules! fault_point {
    ($name:literal) => {
        fail::fail_point!($name, |_| $crate::fault::kill())
    };
}
/// Nothing.
#[cfg(not(feature = "failpoints"))]
macro_rules! fault_point {
    ($name:literal) => {};
}
pub(crate) use fault_point;

/// One of the places in the second list; the error is made by `StoreError::of_fault`.
#[cfg(feature = "failpoints")]
macro_rules! store_fault {
    ($name:literal) => {
        if let Some(word) = $crate::fault::failure($name) {
            return Err(StoreError::of_fault($name, &word));
        }
    };
}
/// Nothing.
#[cfg(not(feature = "failpoints"))]
macro_rules! store_fault {
    ($name:literal) => {};
}
pub(crate) use store_fault;

#[cfg(feature = "failpoints")]
thread_local! { static FAILURE: Cell<Option<&'static str>> = const { Cell::new(None) } }

/// Called by a callback at one of the places in the second list: there the call fails, as by `return(word)`.
#[cfg(feature = "failpoints")]
pub fn fail_with(word: &'static str) {
    FAILURE.set(Some(word));
}

/// How the call at this place fails.
#[cfg(feature = "failpoints")]
pub(crate) fn failure(name: &'static str) -> Option<String> {
    let configured = fail::eval(name, Option::unwrap_or_default);
    FAILURE.take().map(str::to_owned).or(configured)
}

/// Reads `FAILPOINTS`. Called once, at the start.
#[cfg(feature = "failpoints")]
pub fn arm() {
    // Leaked, so that the places stay armed until the process ends.
    std::mem::forget(fail::FailScenario::setup());
}

/// Ends this process as SIGKILL from outside does: nothing is flushed, told or tidied up.
#[cfg(feature = "failpoints")]
pub(crate) fn kill() -> ! {
    // SAFETY: both calls take plain numbers, and a process may always kill itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    std::process::abort()
}
