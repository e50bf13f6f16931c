//! Places where a test ends or stops this process, as a crash there would. A normal build has none of them: they need the feature
//! `failpoints`.
//!
//! The variable `FAILPOINTS` says what happens where, in the words of the crate `fail`; `return` kills the process at once, as SIGKILL
//! does: `FAILPOINTS='submit.committed=3*off->return'` does so at the fourth pass. The places:
//!
//! | name | crash window |
//! |---|---|
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
