//! The handler that only writes a log line: for samples, for trying things out, and for types that need no work.

use super::{Attempt, Handler};
use crate::retry::Report;

/// Logs type, id and attempt at level `info`, never the payload, and is done.
///
/// Each job is otherwise a `debug` line; here the line is the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogHandler;

impl Handler for LogHandler {
    fn run(&self, attempt: &Attempt<'_>) -> Report {
        let job = attempt.job;
        ::log::info!(job:% = job.id, "type" = job.job_type.as_str(), lane:% = job.lane, attempt = job.attempt();
            "job {} of type {} handled by the log handler", job.id, job.job_type);
        Report::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::testing::report_of;

    #[test]
    fn a_logged_job_is_done() {
        assert_eq!(report_of(&LogHandler, "send_email", r#"{"to":"a@example.com"}"#), Report::Done);
    }
}
