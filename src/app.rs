//! Builds the service from its settings, starts its threads, waits, and stops them in order.

mod backend;
mod open;
mod room;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::api::{Api, ApiOptions};
use crate::config::{Role, Settings};
use crate::handlers::Registry;
use crate::lifecycle::{Held, Lifecycle, Outage};
use crate::metrics::Metrics;
use crate::store::StoreError;
use crate::threads::deadlines::Deadlines;
use crate::threads::feeder::channels::channels;
use crate::threads::feeder::{Feeder, Load};
use crate::threads::finisher::{Finisher, Outcomes};
use crate::threads::http::{BindError, HttpCounts, HttpOptions, HttpServer, HttpThreads, raise_file_handles};
use crate::threads::keeper::Keeper;
use crate::threads::scheduler::{PolicyOf, Scheduler, Ticker};
use crate::threads::submitter::hand_off::HandOff;
use crate::threads::submitter::{SubmitQueue, Submitter};
use crate::threads::worker::{Shop, Workers};
use crate::threads::{self, Thread};
use crate::wake::{Wake, left_until};

use room::Rooms;

pub use open::{open_lanes, open_store};

/// A thread that has ended no round for this long is stuck: no call to a store takes as long, unless the store stands still.
const STUCK_AFTER: Duration = Duration::from_mins(15);
/// How long requests under way may take at a stop.
const HTTP_STOP_WAIT: Duration = Duration::from_secs(5);
/// How long handlers may take to return once they are told to stop: a command is killed 2 s after it was asked to end.
const RELEASE_WAIT: Duration = Duration::from_secs(4);
/// File handles kept for what is neither a connection of a client or of the database, nor a worker's: Redis, logs, name look-ups, and
/// connections that are being refused.
const HANDLES_BESIDE: usize = 96;
/// The same for each worker: the pipes of a command.
const HANDLES_OF_A_WORKER: usize = 6;
/// How long after its return an error of the database may be of a call that began before.
const OUTAGE_SETTLING: Duration = Duration::from_secs(1);
/// How long the last outcomes and releases may take.
const LAST_WRITES_WAIT: Duration = Duration::from_secs(5);

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Redis.
    #[error("REDIS_URL: {0}")]
    Lanes(#[from] crate::queue::QueueError),
    /// The HTTP address.
    #[error("{0}")]
    Bind(#[from] BindError),
    /// Threads or files.
    #[error("{0}")]
    System(#[from] io::Error),
}

/// The running service.
pub struct Service {
    lifecycle: Arc<Lifecycle>,
    held: Arc<Held>,
    database: Arc<Outage>,
    drain: Duration,
    is_stopping: Arc<AtomicBool>,
    http: HttpThreads,
    submit_queue: SubmitQueue,
    submitter: Thread,
    scheduler: Thread,
    keeper: Thread,
    running: Option<Running>,
}

/// The threads of a replica that runs jobs.
struct Running {
    feeder: Thread,
    finisher: Thread,
    deadlines: Thread,
    workers: Arc<Workers>,
    hand_off: Option<Arc<HandOff>>,
    outcomes: Outcomes,
    metrics: Arc<Metrics>,
}

impl Service {
    /// Opens the stores and starts every thread. When it returns, the service takes jobs.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn start(settings: &Settings, registry: Registry) -> Result<Service, StartError> {
        let http_options = http_options(settings);
        // First of all, so that a port that is taken is told at once.
        let server = HttpServer::bind(settings.http_addr)?;
        let lifecycle = Arc::new(open::lifecycle(settings)?);
        let (metrics, held) = (Arc::<Metrics>::default(), Arc::<Held>::default());
        let database = Arc::new(Outage::new("the database").settling(OUTAGE_SETTLING));
        let registry = Arc::new(registry);
        let ticker = Ticker::new(Arc::clone(&lifecycle));
        let is_stopping = Arc::new(AtomicBool::new(false));
        let keeper = Keeper::new(Arc::clone(&lifecycle), Arc::clone(&held), ticker.clone(), Arc::clone(&database));
        let keeper = threads::start(keeper, database.begun(), Arc::clone(&database))?;
        let scheduler = {
            let scheduler = Scheduler::new(
                Arc::clone(&lifecycle),
                Arc::clone(&metrics),
                ticker.clone(),
                retry_policies(settings, &registry),
                settings.retention,
                settings.starvation,
            );
            let wake = lifecycle.timers().wake();
            threads::start(scheduler, wake, Arc::clone(&database))?
        };
        let running = match settings.role {
            Role::Api => None,
            Role::All | Role::Worker => {
                Some(Running::start(settings, registry, &lifecycle, &held, &metrics, &ticker, &database)?)
            }
        };
        let (submitter, submit_queue) = Submitter::new(
            Arc::clone(&lifecycle),
            Arc::clone(&metrics),
            Arc::clone(&database),
            running.as_ref().and_then(|running| running.hand_off.clone()),
            settings.submit_queue_max,
        );
        let submitter = threads::start(submitter, Arc::default(), Arc::clone(&database))?;
        let http_counts = HttpCounts::default();
        let backend = backend::ServiceBackend {
            http: http_counts.clone(),
            lifecycle: Arc::clone(&lifecycle),
            submit_queue: submit_queue.clone(),
            submit_wait: settings.submit_wait,
            ticker,
            metrics,
            database: Arc::clone(&database),
            workers: running.as_ref().map(|running| Arc::clone(&running.workers)),
            is_stopping: Arc::clone(&is_stopping),
            rooms: Rooms::beside_duties(settings.database_pool_max, settings.database_wait),
        };
        let api = Arc::new(Api::new(Arc::new(backend), api_options(settings)));
        let http = server.start(api, &http_options, &http_counts)?;
        log::info!(
            address:% = http.local_addr(), role:? = settings.role, replica = lifecycle.policy().replica_name.as_str(),
            database = lifecycle.store().dialect().as_str(), driver = lifecycle.store().driver();
            "Trilane {} serves", env!("CARGO_PKG_VERSION")
        );
        Ok(Service {
            lifecycle,
            held,
            database,
            drain: settings.drain,
            is_stopping,
            http,
            submit_queue,
            submitter,
            scheduler,
            keeper,
            running,
        })
    }

    /// Waits for `stop_asked`, telling systemd meanwhile that all is well.
    pub fn wait(&self, stop_asked: &Receiver<()>) {
        let watchdog = sd_notify::watchdog_enabled(false, &mut 0);
        let every = if watchdog {
            Duration::from_secs(10)
        } else {
            Duration::from_hours(1)
        };
        notify(sd_notify::NotifyState::Ready);
        while stop_asked.recv_timeout(every) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            if watchdog && !self.scheduler.is_stuck(STUCK_AFTER) && !self.keeper.is_stuck(STUCK_AFTER) {
                notify(sd_notify::NotifyState::Watchdog);
            }
        }
    }

    /// Stops in this order, so that nothing is begun that cannot be finished, and every outcome finds a finisher:
    ///
    /// 1. the feeder claims nothing more; `/readyz` says no
    /// 2. requests under way are answered, all that come later are refused with 503, what was submitted is stored
    /// 3. claimed jobs that were not begun are given back
    /// 4. running jobs get the drain time; then they are told to stop
    /// 5. outcomes are stored; what is still not done is given back
    /// 6. keeper and scheduler end, the timers' ids are given back, the replica is forgotten; the port is closed
    pub fn stop(self) {
        notify(sd_notify::NotifyState::Stopping);
        let started = Instant::now();
        let drained = started + self.drain;
        self.is_stopping.store(true, Ordering::Release);
        if let Some(running) = &self.running {
            running.feeder.stop();
            running.refuse_hand_offs();
            self.lifecycle.interrupt();
        }
        let http_deadline = started + HTTP_STOP_WAIT.min(self.drain.max(Duration::from_secs(1)));
        let (open_requests, refusing) = self.http.stop(http_deadline);
        if open_requests > 0 {
            log::warn!(requests = open_requests; "requests were not answered in time");
        }
        // With the last way into it gone, the submitter learns at once that nothing more will come.
        self.submit_queue.close();
        drop(self.submit_queue);
        self.submitter.join(Instant::now() + LAST_WRITES_WAIT);
        let deadline = Instant::now().max(drained) + RELEASE_WAIT + LAST_WRITES_WAIT;
        if let Some(running) = self.running {
            running.stop(&self.lifecycle, &self.held, drained);
        }
        self.keeper.join(deadline);
        self.scheduler.join(deadline);
        if self.database.is_on() {
            log::warn!("stopped while the database is away; what could not be written runs again elsewhere");
        } else if let Err(error) = self.lifecycle.leave(&self.held.take_ended()) {
            log::warn!(error:% = error; "the replica could not say that it leaves; the others will notice");
        }
        drop(refusing);
        log::info!(stop_ms:? = started.elapsed().as_millis(); "stopped");
    }
}

impl Running {
    fn start(
        settings: &Settings,
        registry: Arc<Registry>,
        lifecycle: &Arc<Lifecycle>,
        held: &Arc<Held>,
        metrics: &Arc<Metrics>,
        ticker: &Ticker,
        database: &Arc<Outage>,
    ) -> Result<Running, StartError> {
        let (to_workers, from_feeder) = channels(settings.workers);
        let untaken = from_feeder.clone();
        let (outcomes, unstored) = Outcomes::channel();
        let finisher = Finisher::new(unstored, &outcomes, Arc::clone(lifecycle), Arc::clone(held), Arc::clone(metrics));
        let load = Arc::new(Load::default());
        let shop = Shop {
            from_feeder,
            outcomes: outcomes.clone(),
            registry,
            held: Arc::clone(held),
            load: Arc::clone(&load),
            retry: settings.retry,
            timeout: settings.job_timeout,
        };
        let workers = Workers::start(shop, settings.workers)?;
        let hand_off = settings.hand_off.then(|| {
            let of = (Arc::clone(lifecycle), Arc::clone(held), Arc::clone(metrics), Arc::clone(&load));
            Arc::new(HandOff::new(of.0, of.1, of.2, of.3, to_workers.clone()))
        });
        let feeder = Feeder {
            lifecycle: Arc::clone(lifecycle),
            held: Arc::clone(held),
            metrics: Arc::clone(metrics),
            ticker: ticker.clone(),
            to_workers,
            untaken,
            load,
            hand_off: hand_off.clone(),
            to_give_back: Vec::new(),
            is_unsure: false,
        };
        let deadlines = Deadlines::new(Arc::clone(&workers));
        Ok(Running {
            finisher: threads::start(finisher, Arc::default(), Arc::clone(database))?,
            deadlines: threads::start(deadlines, Arc::default(), Arc::clone(database))?,
            feeder: threads::start(feeder, Arc::new(Wake::default()), Arc::clone(database))?,
            workers,
            hand_off,
            outcomes,
            metrics: Arc::clone(metrics),
        })
    }

    fn refuse_hand_offs(&self) {
        if let Some(hand_off) = &self.hand_off {
            hand_off.refuse();
        }
    }

    fn stop(self, lifecycle: &Lifecycle, held: &Held, drained: Instant) {
        if let Some(hand_off) = &self.hand_off {
            hand_off.close();
        }
        self.feeder.join(Instant::now() + LAST_WRITES_WAIT);
        give_back(lifecycle, &self.metrics, held, held.close(), "claimed jobs that were not begun were given back");
        if !self.workers.join(drained) {
            log::info!(jobs = self.workers.running(); "the drain time is over; running jobs are told to stop");
            self.workers.release_all();
            self.workers.join(Instant::now() + RELEASE_WAIT);
        }
        let last_writes = Instant::now() + LAST_WRITES_WAIT;
        while self.outcomes.unstored() > 0 && !left_until(last_writes).is_zero() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.deadlines.join(last_writes);
        // With the last way to it gone, the finisher learns at once that nothing more will come.
        drop((self.workers, self.outcomes));
        self.finisher.join(last_writes);
        give_back(lifecycle, &self.metrics, held, held.unsettled(), "unfinished jobs were given back");
    }
}

/// How each type is tried again.
fn retry_policies(settings: &Settings, registry: &Arc<Registry>) -> PolicyOf {
    let (registry, retry) = (Arc::clone(registry), settings.retry);
    Arc::new(move |job_type: &str| registry.get(job_type).and_then(|entry| entry.retry).unwrap_or(retry))
}

fn give_back(
    lifecycle: &Lifecycle,
    metrics: &Metrics,
    held: &Held,
    jobs: Vec<(crate::job::Seq, crate::job::Token)>,
    what: &str,
) {
    if jobs.is_empty() {
        return;
    }
    match lifecycle.release(&jobs) {
        Ok((count, left)) => {
            Metrics::add(&metrics.released, count);
            log::info!(jobs = count; "{what}");
            // Only now: a lease that is settled is removed, and then nobody would find its jobs.
            held.settle(jobs.into_iter().filter(|(seq, _)| !left.contains(seq)));
            if !left.is_empty() {
                let error = "another session holds their rows";
                log::warn!(jobs = left.len(), error; "jobs could not be given back; their leases will run out");
            }
        }
        Err(error) => {
            log::warn!(jobs = jobs.len(), error:% = error; "jobs could not be given back; their leases will run out");
        }
    }
}

fn api_options(settings: &Settings) -> ApiOptions {
    ApiOptions {
        tokens: settings.api_tokens.iter().map(|token| token.expose().to_owned()).collect(),
        body_bytes_max: settings.body_bytes_max,
        payload_bytes_max: settings.payload_bytes_max,
        jobs_per_call_max: settings.jobs_per_call_max,
        probes_only: settings.role == Role::Worker,
    }
}

/// How the API is served. Raises the limit of file handles first, as far as it can.
fn http_options(settings: &Settings) -> HttpOptions {
    // A connection to the database takes one or two, a command of a handler up to four of its own.
    let others = HANDLES_BESIDE + 2 * settings.database_pool_max as usize + HANDLES_OF_A_WORKER * settings.workers;
    let connections_max = raise_file_handles(settings.http_connections_max, others);
    if connections_max < settings.http_connections_max {
        log::warn!(
            connections = connections_max, wanted = settings.http_connections_max;
            "the limit of open files allows fewer connections than TRILANE_HTTP_CONNECTIONS_MAX"
        );
    }
    HttpOptions {
        connections_max,
        client_wait: settings.http_client_wait,
        idle_wait: settings.http_idle_wait,
        body_bytes_max: settings.body_bytes_max,
    }
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(false, &[state]) {
        log::debug!(error:% = error; "systemd could not be told");
    }
}
