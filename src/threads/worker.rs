//! worker-1 … worker-N: run the handlers.
//!
//! 1. Takes the next job: high before medium before low.
//! 2. Runs its handler with the job's time limit; a panic is a failed attempt.
//! 3. Gives exactly one outcome to the finisher, unless the attempt was given up for it, or the replica stops.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select_biased};

use super::feeder::Load;
use super::finisher::Outcomes;
use super::{join_until, panic_text, spawn};
use crate::handlers::{Attempt, Registry};
use crate::job::{ClaimedJob, Lane};
use crate::lifecycle::Held;
use crate::random;
use crate::retry::{Report, RetryPolicy, judge};
use crate::store::Outcome;
use crate::wake::StopFlag;

/// What the workers share.
pub struct Shop {
    /// From the feeder, in the order of [`Lane::ALL`].
    pub channels: [Receiver<ClaimedJob>; 3],
    /// To the finisher.
    pub outcomes: Outcomes,
    /// What is done for each type.
    pub registry: Arc<Registry>,
    /// Says whether a job may be begun.
    pub held: Arc<Held>,
    /// Told when a worker is free.
    pub load: Arc<Load>,
    /// Waits between attempts, for types without their own.
    pub retry: RetryPolicy,
    /// Time limit of an attempt, for jobs and types without their own.
    pub timeout: Duration,
}

/// The pool of workers.
pub struct Workers {
    shop: Arc<Shop>,
    running: Mutex<HashMap<u64, Running>>,
    next_attempt: AtomicU64,
    // At a stop: unfinished attempts are released, so they give no outcome.
    is_released: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// An attempt under way.
struct Running {
    worker: String,
    job: Arc<ClaimedJob>,
    started: Instant,
    deadline: Instant,
    stop: StopFlag,
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(shop: Shop, count: usize) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers {
            shop: Arc::new(shop),
            running: Mutex::default(),
            next_attempt: AtomicU64::new(0),
            is_released: AtomicBool::new(false),
            threads: Mutex::default(),
        });
        for number in 1..=count {
            workers.spawn(format!("worker-{number}"))?;
        }
        Ok(workers)
    }

    fn spawn(self: &Arc<Self>, name: String) -> io::Result<()> {
        let workers = Arc::clone(self);
        let handle = spawn(&name.clone(), move || while workers.work(&name) {})?;
        lock(&self.threads).push(handle);
        Ok(())
    }

    /// Does one job. Returns whether this worker goes on.
    fn work(&self, name: &str) -> bool {
        let Some(job) = self.next().map(Arc::new) else { return false };
        let Some(stop) = self.shop.held.begin(&job) else { return true };
        let started = Instant::now();
        let entry = self.shop.registry.get(&job.job_type);
        let timeout = job.timeout.or(entry.and_then(|entry| entry.timeout)).unwrap_or(self.shop.timeout);
        let deadline = started + timeout;
        let number = self.next_attempt.fetch_add(1, Ordering::Relaxed);
        let running = Running { worker: name.to_owned(), job: Arc::clone(&job), started, deadline, stop: stop.clone() };
        lock(&self.running).insert(number, running);
        let report = self.attempt(&job, &Attempt { job: &job, deadline, stop: &stop });
        // Whoever takes the attempt out of the table answers for it.
        let Some(running) = lock(&self.running).remove(&number) else { return false };
        let is_cut_short = self.is_released.load(Ordering::Acquire) && matches!(report, Report::Retry { .. });
        if !is_cut_short {
            self.give_outcome(&running, report);
        }
        true
    }

    fn next(&self) -> Option<ClaimedJob> {
        let load = &self.shop.load;
        load.idle.fetch_add(1, Ordering::Relaxed);
        load.freed.wake();
        let [high, medium, low] = &self.shop.channels;
        let next = select_biased! {
            recv(high) -> job => job,
            recv(medium) -> job => job,
            recv(low) -> job => job,
        };
        load.idle.fetch_sub(1, Ordering::Relaxed);
        next.ok().or_else(|| self.last())
    }

    /// What is left in the channels after the feeder has gone.
    fn last(&self) -> Option<ClaimedJob> {
        Lane::ALL.into_iter().find_map(|lane| self.shop.channels[lane.index()].try_recv().ok())
    }

    fn attempt(&self, job: &ClaimedJob, attempt: &Attempt<'_>) -> Report {
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&job.payload) {
            return Report::permanent(format!("the payload is not JSON: {error}"));
        }
        let Some(entry) = self.shop.registry.get(&job.job_type) else {
            return Report::permanent(format!("no handler for type {:?} on this replica", job.job_type));
        };
        // OK: nothing of ours is half done where a handler panics; its own state is its own care
        catch_unwind(AssertUnwindSafe(|| entry.handler.run(attempt)))
            .unwrap_or_else(|panic| Report::retry(format!("the handler panicked: {}", panic_text(&*panic))))
    }

    fn give_outcome(&self, running: &Running, report: Report) {
        let job = &running.job;
        let duration = running.started.elapsed();
        self.shop.load.note(duration);
        let policy = self.shop.registry.get(&job.job_type).and_then(|entry| entry.retry).unwrap_or(self.shop.retry);
        let verdict = judge(report, job.retry_count, job.max_retries, &policy, random::unit());
        log::debug!(
            job:% = job.id, "type" = job.job_type.as_str(), lane:% = job.lane, attempt = job.attempt(), worker = running.worker.as_str(),
            duration_ms:? = duration.as_millis(); "{}", verdict.verb()
        );
        let outcome = Outcome {
            seq: job.seq,
            id: job.id,
            token: job.token,
            job_type: job.job_type.clone(),
            lane: job.lane,
            attempt: job.attempt(),
            duration,
            unique_key: job.unique_key.clone(),
            verdict,
        };
        if !self.shop.outcomes.send(outcome) {
            log::warn!(job:% = job.id; "an outcome came after the finisher had ended; the job runs again");
        }
    }

    /// Tells attempts to end whose time is over at `now`, and gives up those that are over by more than `grace`: their worker is replaced and
    /// left behind. Returns the moment of the next deadline.
    pub fn enforce_deadlines(self: &Arc<Self>, now: Instant, grace: Duration) -> Option<Instant> {
        let mut given_up = Vec::new();
        let mut next: Option<Instant> = None;
        let mut running = lock(&self.running);
        for (number, attempt) in running.iter() {
            let last = attempt.deadline + grace;
            if now >= last {
                given_up.push(*number);
                continue;
            }
            let due = if now >= attempt.deadline {
                last
            } else {
                attempt.deadline
            };
            next = Some(next.map_or(due, |next| next.min(due)));
            if now >= attempt.deadline && !attempt.stop.is_set() {
                attempt.stop.set();
            }
        }
        let given_up: Vec<Running> = given_up.into_iter().filter_map(|number| running.remove(&number)).collect();
        drop(running);
        for attempt in given_up {
            self.replace(attempt);
        }
        next
    }

    fn replace(self: &Arc<Self>, attempt: Running) {
        let limit = attempt.deadline.saturating_duration_since(attempt.started);
        log::error!(
            job:% = attempt.job.id, "type" = attempt.job.job_type.as_str(), worker = attempt.worker.as_str();
            "a handler did not return after its time limit; its thread is left behind and another takes its place"
        );
        let reason =
            format!("the handler did not return within its time limit of {limit:?}, nor after it was told to stop");
        self.give_outcome(&attempt, Report::retry(reason));
        if let Err(error) = self.spawn(attempt.worker) {
            log::error!(error:% = error; "no thread for a worker in place of one that hangs");
        }
    }

    /// Attempts under way.
    pub fn running(&self) -> usize {
        lock(&self.running).len()
    }

    /// At the end of the drain time: tells all attempts to end. What then fails gives no outcome; its job is released.
    pub fn release_all(&self) {
        self.is_released.store(true, Ordering::Release);
        for attempt in lock(&self.running).values() {
            attempt.stop.set();
        }
    }

    /// Waits until all workers have ended, up to `deadline`. They end when the feeder has gone and the channels are empty.
    pub fn join(&self, deadline: Instant) -> bool {
        let threads = std::mem::take(&mut *lock(&self.threads));
        let (ended, left): (Vec<_>, Vec<_>) = threads.into_iter().partition(|thread| join_until(thread, deadline));
        for thread in ended {
            drop(thread.join()); // OK: panics of handlers were caught
        }
        let all_ended = left.is_empty();
        lock(&self.threads).extend(left);
        all_ended
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: what is locked here is changed in single steps
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
