//! One simulated replica: the service's own duties, each run round by round by the simulation instead of a thread of its own.
//!
//! What the simulation has to stand in for are the threads that wait for others: the workers with their handlers, and the submitter.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use trilane::job::{ClaimedJob, Job, NewJob, ReplicaId, Seq, Token};
use trilane::lifecycle::{Begin, Held, Lifecycle, Outage, Policy};
use trilane::metrics::Metrics;
use trilane::queue::{Lanes, SimulatedLanes};
use trilane::retry::{Report, RetryPolicy, judge};
use trilane::store::{KeyTaken, Outcome, Store, StoreError};
use trilane::threads::Duty;
use trilane::threads::feeder::channels::{FromFeeder, ToWorkers, channels};
use trilane::threads::feeder::{Feeder, Load};
use trilane::threads::finisher::{Finisher, Outcomes};
use trilane::threads::keeper::Keeper;
use trilane::threads::scheduler::{Scheduler, Ticker};
use trilane::threads::submitter::hand_off::HandOff;
use trilane::wake::StopFlag;

use crate::clock;
use crate::rng::Rng;

/// Handlers that a replica runs at a time.
const WORKERS: usize = 2;
pub(crate) const TICK: Duration = Duration::from_mins(2);
pub(crate) const LEASE: Duration = Duration::from_secs(30);
const RETRY: RetryPolicy = RetryPolicy { base: Duration::from_secs(5), cap: Duration::from_mins(3) };
/// Nothing is pruned in a run.
const RETENTION: Duration = Duration::from_hours(1_000);

/// What replicas of one service have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Their lanes are in one Redis.
    Redis,
    /// Each has lanes of its own.
    Own,
    /// There are no lanes.
    Table,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    pub(crate) starvation: Option<Duration>,
    pub(crate) lane_buffer_max: usize,
    pub(crate) hand_off: bool,
}

/// A handler that runs.
pub(crate) struct Run {
    pub(crate) job: ClaimedJob,
    pub(crate) stop: StopFlag,
    started: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Serving,
    /// Claims nothing more; what was not begun was given back.
    Draining,
    /// Outcomes are stored, the rest was given back.
    Drained,
}

pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) id: i64,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) held: Arc<Held>,
    pub(crate) ticker: Ticker,
    pub(crate) running: Vec<Run>,
    pub(crate) stage: Stage,
    /// Stands still until then.
    pub(crate) paused_until: Duration,
    pub(crate) scheduler_due: Duration,
    pub(crate) keeper_due: Duration,
    pub(crate) feeder_due: Duration,
    /// Whether one of its threads has crashed and gone on.
    pub(crate) has_failed: bool,
    /// Outcomes that its finisher stored: completed, retried, failed.
    pub(crate) stored: [u64; 3],
    metrics: Arc<Metrics>,
    database: Arc<Outage>,
    scheduler: Scheduler,
    keeper: Keeper,
    feeder: Feeder,
    finisher: Finisher,
    outcomes: Outcomes,
    to_workers: ToWorkers,
    from_feeder: FromFeeder,
    load: Arc<Load>,
    hand_off: Option<Arc<HandOff>>,
    /// Taken by a worker that waits for the lease to be renewed.
    waiting: Option<ClaimedJob>,
}

impl Replica {
    pub(crate) fn new(number: usize, store: &Arc<Store>, lanes: &SimulatedLanes, settings: Settings) -> Replica {
        let (name, id) = (format!("r{number}"), number as i64);
        let lanes = if settings.kind == Kind::Redis {
            Lanes::simulated(lanes)
        } else {
            Lanes::simulated(&SimulatedLanes::new())
        };
        let lifecycle = Arc::new(Lifecycle::new(Arc::clone(store), lanes, policy(id, &name, settings)));
        let (held, metrics, load) = (Arc::<Held>::default(), Arc::<Metrics>::default(), Arc::<Load>::default());
        let ticker = Ticker::new(Arc::clone(&lifecycle));
        let database = Arc::new(Outage::new("the database"));
        let (to_workers, from_feeder) = channels(WORKERS);
        load.workers.store(WORKERS, Ordering::Relaxed);
        (0..WORKERS).for_each(|_| load.give());
        let hand_off = settings.hand_off.then(|| {
            let to_workers = to_workers.clone();
            Arc::new(HandOff::new(lifecycle.clone(), held.clone(), metrics.clone(), load.clone(), to_workers))
        });
        let (outcomes, unstored) = Outcomes::channel();
        Replica {
            scheduler: Scheduler::new(
                Arc::clone(&lifecycle),
                Arc::clone(&metrics),
                ticker.clone(),
                Arc::new(|_| RETRY),
                RETENTION,
                settings.starvation,
            ),
            keeper: Keeper::new(Arc::clone(&lifecycle), Arc::clone(&held), ticker.clone(), Arc::clone(&database)),
            feeder: Feeder {
                hand_off: hand_off.clone(),
                lifecycle: Arc::clone(&lifecycle),
                held: Arc::clone(&held),
                metrics: Arc::clone(&metrics),
                ticker: ticker.clone(),
                to_workers: to_workers.clone(),
                load: Arc::clone(&load),
                untaken: from_feeder.clone(),
                to_give_back: Vec::new(),
                is_unsure: false,
            },
            finisher: Finisher::new(
                unstored,
                &outcomes,
                Arc::clone(&lifecycle),
                Arc::clone(&held),
                Arc::clone(&metrics),
            ),
            name,
            id,
            lifecycle,
            held,
            ticker,
            running: Vec::new(),
            stage: Stage::Serving,
            paused_until: Duration::ZERO,
            scheduler_due: Duration::ZERO,
            keeper_due: Duration::ZERO,
            feeder_due: Duration::ZERO,
            has_failed: false,
            stored: [0; 3],
            metrics,
            database,
            outcomes,
            to_workers,
            from_feeder,
            load,
            hand_off,
            waiting: None,
        }
    }

    /// One of its threads met an error, and goes on with its next round.
    pub(crate) fn met(&mut self, error: &StoreError) {
        if error.is_outage() {
            self.database.begins(error);
            self.keeper_due = Duration::ZERO;
        }
    }

    /// What its finisher has counted: completed, retried, failed.
    pub(crate) fn counted(&self) -> [u64; 3] {
        let Metrics { completed, retried, failed, .. } = &*self.metrics;
        [completed, retried, failed].map(|counter| counter.load(Ordering::Relaxed))
    }

    /// What its submitter does with the jobs of calls without an idempotency key.
    pub(crate) fn submit(&self, jobs: &[&NewJob]) -> Result<Vec<Result<Job, KeyTaken>>, StoreError> {
        let handed_off = self.hand_off.as_ref().and_then(|hand_off| hand_off.submit(jobs));
        handed_off.unwrap_or_else(|| self.lifecycle.submit(jobs))
    }

    pub(crate) fn schedule(&mut self) -> Result<(), StoreError> {
        let wait = self.scheduler.round()?;
        self.scheduler_due = clock::elapsed() + wait;
        Ok(())
    }

    pub(crate) fn keep(&mut self) -> Result<(), StoreError> {
        let wait = self.keeper.round()?;
        self.keeper_due = clock::elapsed() + wait;
        Ok(())
    }

    fn free_workers(&self) -> usize {
        WORKERS.saturating_sub(self.running.len() + usize::from(self.waiting.is_some()))
    }

    /// Whether a round of the feeder would not wait for a worker.
    pub(crate) fn can_feed(&self) -> bool {
        self.stage == Stage::Serving && self.free_workers() > self.to_workers.waiting_in_all()
    }

    pub(crate) fn feed(&mut self) -> Result<(), StoreError> {
        self.load.freed.wake();
        let wait = self.feeder.round()?;
        self.feeder_due = clock::elapsed() + wait;
        Ok(())
    }

    /// A worker takes the next job and begins it. `Err`: there is none, or it may not be begun.
    pub(crate) fn begin(&mut self) -> Option<(Seq, Token)> {
        if self.waiting.is_none() && self.free_workers() > 0 {
            self.waiting = self.from_feeder.try_next();
        }
        let job = self.waiting.take()?;
        match self.held.try_begin(&job, Instant::now()) {
            Begin::Begun(stop) => {
                let begun = (job.seq, job.token);
                self.running.push(Run { job, stop, started: Instant::now() });
                Some(begun)
            }
            Begin::Never => {
                self.load.give();
                None
            }
            Begin::NotYet => {
                self.waiting = Some(job);
                None
            }
        }
    }

    /// A handler returns; its outcome is on its way to the finisher.
    pub(crate) fn report(&mut self, run: usize, report: Report, rng: &mut Rng) -> Outcome {
        let Run { job, started, .. } = self.running.remove(run);
        self.load.give();
        let random = rng.below(1_000) as f64 / 1_000.0;
        let verdict = judge(report, job.retry_count, job.max_retries, &RETRY, random);
        let outcome = Outcome::of(&job, started.elapsed(), verdict);
        assert!(self.outcomes.send(outcome.clone()), "the finisher lives");
        outcome
    }

    pub(crate) fn has_outcomes(&self) -> bool {
        self.outcomes.unstored() > 0
    }

    pub(crate) fn finish(&mut self) -> Result<(), StoreError> {
        self.finisher.round().map(drop)
    }

    /// What `Service::stop` does next, once all outcomes are stored; what fails is left to the other replicas. Returns whether the replica has left.
    pub(crate) fn stop(&mut self) -> Result<bool, StoreError> {
        match self.stage {
            Stage::Serving => {
                let not_begun = self.held.close();
                self.stage = Stage::Draining;
                self.give_back(not_begun).map(|()| false)
            }
            Stage::Draining => {
                // The drain time is over: these handlers are told to stop, and give no outcome.
                self.running.clear();
                self.stage = Stage::Drained;
                self.give_back(self.held.unsettled()).map(|()| false)
            }
            Stage::Drained => self.lifecycle.leave(&self.held.take_ended()).map(|()| true),
        }
    }

    fn give_back(&self, jobs: Vec<(Seq, Token)>) -> Result<(), StoreError> {
        if !jobs.is_empty() {
            self.lifecycle.release(&jobs)?;
            self.held.settle(jobs);
        }
        Ok(())
    }
}

fn policy(id: i64, name: &str, settings: Settings) -> Policy {
    Policy {
        replica: ReplicaId(id),
        replica_name: name.to_owned(),
        tick: TICK,
        lease: LEASE,
        lane_buffer_max: settings.lane_buffer_max,
        lanes_are_shared: settings.kind == Kind::Redis,
        has_lanes: settings.kind != Kind::Table,
    }
}
