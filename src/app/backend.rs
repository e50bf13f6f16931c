//! The service behind the HTTP API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::room::Rooms;
use crate::api::{Backend, StoreState};
use crate::job::{DeadLetter, FailedAttempt, Job, Lane, Seq};
use crate::lifecycle::{Lifecycle, Outage, Submission, SubmitError, SubmitResult};
use crate::metrics::{Gauge, Metrics};
use crate::store::{Cancelled, DeadLetterFilter, JobFilter, Revived, StoreError};
use crate::threads::http::HttpCounts;
use crate::threads::scheduler::Ticker;
use crate::threads::submitter::SubmitQueue;
use crate::threads::worker::Workers;

/// What the API calls.
pub(super) struct ServiceBackend {
    pub(super) http: HttpCounts,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) submit_queue: SubmitQueue,
    pub(super) submit_wait: Duration,
    pub(super) ticker: Ticker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) database: Arc<Outage>,
    pub(super) workers: Option<Arc<Workers>>,
    pub(super) is_stopping: Arc<AtomicBool>,
    pub(super) rooms: Rooms,
}

impl Backend for ServiceBackend {
    fn submit(&self, submission: Submission) -> Result<SubmitResult, SubmitError> {
        self.submit_queue.submit(submission, self.submit_wait)
    }

    fn job(&self, id: Uuid) -> Result<Option<Job>, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.store().job(id))
    }

    fn failed_attempts(&self, id: Uuid) -> Result<Vec<FailedAttempt>, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.store().failed_attempts(id))
    }

    fn jobs(&self, filter: &JobFilter, after: Option<Seq>, limit: usize) -> Result<Vec<Job>, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.store().jobs(filter, after, limit))
    }

    fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.store().dead_letters(filter, after, limit))
    }

    fn cancel(&self, id: Uuid) -> Result<Cancelled, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.cancel(id))
    }

    fn revive(&self, id: Uuid) -> Result<Revived, StoreError> {
        self.rooms.calls.call(|| self.lifecycle.revive(id))
    }

    fn wake(&self) {
        self.ticker.tick_now();
    }

    fn ready(&self) -> Vec<StoreState> {
        let answers = self.rooms.probes.call(|| self.lifecycle.store().ping());
        let mut states = vec![StoreState {
            name: "database",
            required: true,
            problem: answers.err().map(|_| "the database does not answer".to_owned()),
        }];
        if self.lifecycle.policy().lanes_are_shared {
            states.push(StoreState { name: "redis", required: false, problem: self.lifecycle.lanes_problem() });
        }
        if let Some(crew) = self.workers.as_ref().map(|workers| workers.crew()).filter(|crew| crew.missing > 0) {
            // What is left of them works on; without any the replica is of no use.
            states.push(StoreState { name: "workers", required: crew.missing == crew.wanted, problem: crew.problem() });
        }
        if self.is_stopping.load(Ordering::Acquire) {
            let problem = Some("the replica is being stopped".to_owned());
            states.push(StoreState { name: "replica", required: true, problem });
        }
        states
    }

    fn metrics_text(&self) -> String {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let gauge = |name: &str, help, value| Gauge { name: name.to_owned(), help, value };
        let mut gauges = vec![
            gauge(
                "trilane_submissions_waiting",
                "Jobs that wait for their commit.",
                count(self.submit_queue.jobs_waiting()),
            ),
            gauge(
                "trilane_timers",
                "Ids that wait in this process for their time.",
                count(self.lifecycle.timers().len()),
            ),
            gauge("trilane_database_away", "1 while the database is away.", u64::from(self.database.is_on())),
            gauge("trilane_redis_away", "1 while Redis is away.", u64::from(self.lifecycle.lanes_are_away())),
        ];
        if let Some(workers) = &self.workers {
            let crew = workers.crew();
            gauges.extend([
                gauge("trilane_jobs_running", "Attempts under way.", count(workers.running())),
                gauge("trilane_workers", "Workers that can take jobs.", count(crew.wanted - crew.missing)),
                gauge(
                    "trilane_threads_left_behind",
                    "Threads in handlers that did not return.",
                    count(crew.left_behind),
                ),
            ]);
        }
        for (lane, length) in Lane::ALL.into_iter().zip(self.lifecycle.lane_lengths().into_iter().flatten()) {
            let name = format!("trilane_lane_length{{lane=\"{lane}\"}}");
            gauges.push(Gauge { name, help: "Ids that wait in a lane.", value: length });
        }
        let http = self.http.get();
        gauges.push(gauge("trilane_http_connections", "Open connections of clients.", http.open));
        gauges.push(gauge("trilane_http_connections_total", "Connections of clients so far.", http.accepted));
        let help = "Connections ended early.";
        for (why, value) in [("displaced", http.displaced), ("refused", http.refused), ("slow", http.slow)] {
            let name = format!("trilane_http_connections_ended_total{{why=\"{why}\"}}");
            gauges.push(Gauge { name, help, value });
        }
        self.metrics.render(&gauges)
    }
}
