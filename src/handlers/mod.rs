//! What a job does: a [`Handler`] for each job type, found in the [`Registry`].
//!
//! A worker thread calls the handler, catches its panics, and sets the [`StopFlag`] at the deadline. The built-in handlers
//! honour the deadline and the flag themselves as well. Nothing here knows of the store, the lanes or leases.
//!
//! Built in: [`CommandHandler`] runs an external program, [`HttpHandler`] calls a URL, [`LogHandler`] writes a log line.
//! [`load`] reads the file that maps types to them; a Rust program registers its own, closures too:
//!
//! ```
//! use trilane::handlers::{Attempt, Registry};
//! use trilane::retry::Report;
//!
//! let mut registry = Registry::new();
//! registry.register("resize", |attempt: &Attempt<'_>| match attempt.job.payload.as_str() {
//!     "null" => Report::permanent("nothing to resize"),
//!     _ => Report::Done,
//! });
//! assert!(registry.get("resize").is_some());
//! ```

mod command;
mod fields;
mod file;
mod http;
mod log;
mod network;
mod process;
mod registry;
mod tail;
#[cfg(test)]
mod testing;

use std::time::{Duration, Instant};

pub use command::{CommandHandler, EXIT_RETRY};
pub use fields::{Environment, Problem};
pub use file::{FILE_BYTES_MAX, HandlersFileError, load, load_under, parse};
pub use http::{BODY_BYTES_MAX, BODY_WAIT, HttpHandler, HttpHandlerError};
pub use log::LogHandler;
pub use network::{CONNECT_WAIT, LOOKUPS_MAX, SEND_WAIT};
pub use process::{PIPE_GRACE, REAP_WAIT, TERM_GRACE, abandon_all};
pub use registry::{EVERY_OTHER_TYPE, Entry, ORIGINAL_TYPES, Registry, built_in};
pub use tail::STDERR_CHARS_MAX;

use crate::job::ClaimedJob;
use crate::retry::Report;
pub use crate::wake::StopFlag;

/// What is done for the jobs of one type. Called by many worker threads at once.
///
/// A job can run more than once (at-least-once): a handler should be harmless when repeated, or fence its side effects
/// with [`ClaimedJob::token`]. One that panics has failed its attempt.
///
/// Any `Fn(&Attempt<'_>) -> Report + Send + Sync` is a handler.
pub trait Handler: Send + Sync {
    /// Does the work of one attempt and says how it went.
    ///
    /// Must return soon after [`Attempt::deadline`], or after [`Attempt::stop`] is set: the worker cannot take another job
    /// before. The report of an attempt that was stopped is free to be [`Report::Retry`]; the worker knows why it was.
    fn run(&self, attempt: &Attempt<'_>) -> Report;
}

impl<F> Handler for F
where
    F: Fn(&Attempt<'_>) -> Report + Send + Sync,
{
    fn run(&self, attempt: &Attempt<'_>) -> Report {
        self(attempt)
    }
}

/// One attempt at a job.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The job, and the token that fences its outcome.
    pub job: &'a ClaimedJob,
    /// When its time limit is over.
    pub deadline: Instant,
    /// Set when the attempt must end at once.
    pub stop: &'a StopFlag,
}

impl Attempt<'_> {
    /// What is left of the time limit at `now`; zero when it is over.
    pub fn left(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{claimed, in_seconds};
    use super::*;

    #[test]
    fn a_closure_is_a_handler() {
        let handler: Box<dyn Handler> = Box::new(|attempt: &Attempt<'_>| Report::retry(attempt.job.job_type.clone()));
        let job = claimed("resize", "{}");
        let stop = StopFlag::new();

        let report = handler.run(&Attempt { job: &job, deadline: in_seconds(5), stop: &stop });

        assert_eq!(report, Report::retry("resize"));
    }

    #[test]
    fn nothing_is_left_after_the_deadline() {
        let job = claimed("resize", "{}");
        let now = Instant::now();
        let attempt = Attempt { job: &job, deadline: now + Duration::from_secs(2), stop: &StopFlag::new() };

        assert_eq!(attempt.left(now), Duration::from_secs(2));
        assert_eq!(attempt.left(now + Duration::from_secs(3)), Duration::ZERO);
    }
}
