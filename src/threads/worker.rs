//! worker-1 … worker-N: run the handlers.
//!
//! 1. Takes the next job: high before medium before low.
//! 2. Runs its handler with the job's time limit; a panic is a failed attempt. One outside the handler leaves the job to its lease.
//! 3. Gives exactly one outcome to the finisher, unless the attempt was given up for it, or the replica stops.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::feeder::Load;
use super::feeder::channels::FromFeeder;
use super::finisher::Outcomes;
use super::{join_until, lock, panic_text, spawn};
use crate::fault::fault_point;
use crate::handlers::{Attempt, Registry};
use crate::job::ClaimedJob;
use crate::lifecycle::Held;
use crate::random;
use crate::retry::{Report, RetryPolicy, judge};
use crate::store::Outcome;
use crate::wake::StopFlag;

/// Threads of handlers that do not return are left behind, as many as there are workers, and at least this many. At the limit a worker
/// that hangs is not replaced: the process has at most so many threads more than workers.
const LEFT_BEHIND_MIN: usize = 8;

/// What the workers share.
pub struct Shop {
    /// Where jobs come from.
    pub from_feeder: FromFeeder,
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
    // One for each worker that has not ended, also for those left behind.
    posts: Mutex<Vec<Arc<Post>>>,
    // At a stop: unfinished attempts are released, so they give no outcome.
    is_released: AtomicBool,
    threads: Mutex<Vec<JoinHandle<()>>>,
    crew: Mutex<Crew>,
}

/// How many workers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crew {
    /// As many as the settings say.
    pub wanted: usize,
    /// Those that hang in a handler and could not be replaced.
    pub missing: usize,
    /// Threads in handlers that were given up and have not returned yet.
    pub left_behind: usize,
}

impl Crew {
    /// Whether one more thread may be left behind.
    fn has_room(self) -> bool {
        self.left_behind < self.wanted.max(LEFT_BEHIND_MIN)
    }

    /// What a person is to know, if workers are missing.
    pub fn problem(self) -> Option<String> {
        (self.missing > 0).then(|| {
            format!(
                "{} of {} workers hang in handlers that do not return; restart this replica, and mend the handlers",
                self.missing, self.wanted
            )
        })
    }
}

/// Where a worker does its work.
struct Post {
    worker: String,
    /// The attempt under way. Whoever takes it out answers for it.
    attempt: Mutex<Option<Running>>,
}

/// An attempt under way.
struct Running {
    job: Arc<ClaimedJob>,
    started: Instant,
    deadline: Instant,
    stop: StopFlag,
}

/// A thread that was left behind in its handler.
struct Hung {
    worker: String,
    attempt: Running,
    /// With it.
    left_behind: usize,
    /// `None` where too many are left behind.
    replacement: Option<io::Result<()>>,
}

impl Hung {
    fn tell(&self) {
        let Running { job, .. } = &self.attempt;
        let (job, job_type, worker) = (job.id, job.job_type.as_str(), self.worker.as_str());
        let Some(replacement) = &self.replacement else {
            log::error!(
                job:% = job, "type" = job_type, worker = worker, left_behind = self.left_behind;
                "a handler did not return after its time limit, and too many threads are left behind; this worker is missing until it returns"
            );
            return;
        };
        log::error!(
            job:% = job, "type" = job_type, worker = worker;
            "a handler did not return after its time limit; its thread is left behind and another takes its place"
        );
        if let Err(error) = replacement {
            log::error!(error:% = error; "no thread for a worker in place of one that hangs");
        }
    }
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(shop: Shop, count: usize) -> io::Result<Arc<Workers>> {
        let workers = Arc::new(Workers {
            shop: Arc::new(shop),
            posts: Mutex::default(),
            is_released: AtomicBool::new(false),
            threads: Mutex::default(),
            crew: Mutex::new(Crew { wanted: count, missing: 0, left_behind: 0 }),
        });
        workers.shop.load.workers.store(count, Ordering::Relaxed);
        for number in 1..=count {
            workers.spawn(format!("worker-{number}"))?;
        }
        Ok(workers)
    }

    fn spawn(self: &Arc<Self>, name: String) -> io::Result<()> {
        let workers = Arc::clone(self);
        let post = Arc::new(Post { worker: name, attempt: Mutex::default() });
        lock(&self.posts).push(Arc::clone(&post));
        let handle = spawn(&post.worker.clone(), move || {
            while workers.work(&post) {}
            lock(&workers.posts).retain(|other| !Arc::ptr_eq(other, &post));
        })?;
        let mut threads = lock(&self.threads);
        threads.retain(|thread| !thread.is_finished());
        threads.push(handle);
        Ok(())
    }

    /// Does one job. Returns whether this worker goes on.
    fn work(&self, post: &Post) -> bool {
        self.shop.load.give();
        let Some(job) = self.shop.from_feeder.next().map(Arc::new) else { return false };
        // OK: the attempt is taken out of what it may have been left in
        catch_unwind(AssertUnwindSafe(|| self.run(post, &job))).unwrap_or_else(|panic| self.survive(post, &job, panic))
    }

    /// A panic outside the handler's own time: the attempt has no outcome, and counts as lost when its lease runs out.
    fn survive(&self, post: &Post, job: &ClaimedJob, panic: Box<dyn Any + Send>) -> bool {
        log::error!(job:% = job.id, error:% = panic_text(&*panic); "{} cannot do its work; it goes on trying", post.worker);
        std::mem::forget(panic); // OK: dropping what was thrown may be what panicked
        drop(lock(&post.attempt).take());
        self.shop.held.forsake(job.seq, job.token);
        true
    }

    /// Runs one job. Returns whether this worker goes on.
    fn run(&self, post: &Post, job: &Arc<ClaimedJob>) -> bool {
        let Some(stop) = self.shop.held.begin(job) else { return true };
        let started = Instant::now();
        let entry = self.shop.registry.get(&job.job_type);
        let timeout = job.timeout.or(entry.and_then(|entry| entry.timeout)).unwrap_or(self.shop.timeout);
        let deadline = started + timeout;
        let running = Running { job: Arc::clone(job), started, deadline, stop: stop.clone() };
        *lock(&post.attempt) = Some(running);
        fault_point!("worker.begun");
        let report = self.attempt(job, &Attempt { job, deadline, stop: &stop });
        fault_point!("worker.done");
        let Some(running) = lock(&post.attempt).take() else { return self.comes_back(&post.worker) };
        let is_cut_short = self.is_released.load(Ordering::Acquire) && matches!(report, Report::Retry { .. });
        if !is_cut_short {
            self.give_outcome(post, &running, report);
        }
        true
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

    fn give_outcome(&self, post: &Post, running: &Running, report: Report) {
        if !self.shop.outcomes.send(self.outcome(post, running, report)) {
            log::warn!(job:% = running.job.id; "an outcome came after the finisher had ended; the job runs again");
        }
    }

    fn outcome(&self, post: &Post, running: &Running, report: Report) -> Outcome {
        let job = &running.job;
        let duration = running.started.elapsed();
        self.shop.load.note(duration);
        let policy = self.shop.registry.get(&job.job_type).and_then(|entry| entry.retry).unwrap_or(self.shop.retry);
        let verdict = judge(report, job.retry_count, job.max_retries, &policy, random::unit());
        log::debug!(
            job:% = job.id, "type" = job.job_type.as_str(), lane:% = job.lane, attempt = job.attempt(), worker = post.worker.as_str(),
            duration_ms:? = duration.as_millis(); "{}", verdict.verb()
        );
        Outcome::of(job, duration, verdict)
    }

    /// Tells attempts to end whose time is over at `now`, and gives up those that are over by more than `grace`: their worker is replaced and
    /// left behind. Returns the moment of the next deadline.
    pub fn enforce_deadlines(self: &Arc<Self>, now: Instant, grace: Duration) -> Option<Instant> {
        let mut left = Vec::new();
        let mut next: Option<Instant> = None;
        for post in self.posts() {
            let mut running = lock(&post.attempt);
            let Some(attempt) = &*running else { continue };
            let last = attempt.deadline + grace;
            if now >= last {
                // Without waiting for room: while the database is away, other attempts' time runs out as well. The next look tries again.
                if self.shop.outcomes.try_send(self.hung(&post, attempt)) {
                    // Before the post is free: a handler that returns now finds its thread counted as left behind.
                    left.extend(running.take().map(|attempt| self.replace(&post, attempt)));
                }
                continue;
            }
            if now >= attempt.deadline && !attempt.stop.is_set() {
                attempt.stop.set();
            }
            let due = if now >= attempt.deadline {
                last
            } else {
                attempt.deadline
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        left.iter().for_each(Hung::tell);
        next
    }

    /// The posts there are now. Nobody may lock one while it holds them all.
    fn posts(&self) -> Vec<Arc<Post>> {
        lock(&self.posts).clone()
    }

    /// The outcome of an attempt that is given up.
    fn hung(&self, post: &Post, attempt: &Running) -> Outcome {
        let limit = attempt.deadline.saturating_duration_since(attempt.started);
        let reason =
            format!("the handler did not return within its time limit of {limit:?}, nor after it was told to stop");
        self.outcome(post, attempt, Report::retry(reason))
    }

    /// Counts the thread of an attempt as left behind, and puts another in its place.
    fn replace(self: &Arc<Self>, post: &Post, attempt: Running) -> Hung {
        let mut crew = lock(&self.crew);
        let replacement = crew.has_room().then(|| self.spawn(post.worker.clone()));
        crew.left_behind += 1;
        if !matches!(replacement, Some(Ok(()))) {
            crew.missing += 1;
            self.shop.load.workers.fetch_sub(1, Ordering::Relaxed);
        }
        Hung { worker: post.worker.clone(), attempt, left_behind: crew.left_behind, replacement }
    }

    /// A handler has returned after it was given up. Returns whether its thread goes on, for a worker that is missing.
    fn comes_back(&self, name: &str) -> bool {
        let mut crew = lock(&self.crew);
        crew.left_behind = crew.left_behind.saturating_sub(1);
        if crew.missing == 0 {
            return false;
        }
        crew.missing -= 1;
        self.shop.load.workers.fetch_add(1, Ordering::Relaxed);
        log::info!(worker = name; "a handler has returned late, and its worker works again");
        true
    }

    /// How many workers there are.
    pub fn crew(&self) -> Crew {
        *lock(&self.crew)
    }

    /// Attempts under way.
    pub fn running(&self) -> usize {
        self.posts().iter().filter(|post| lock(&post.attempt).is_some()).count()
    }

    /// At the end of the drain time: tells all attempts to end. What then fails gives no outcome; its job is released.
    pub fn release_all(&self) {
        self.is_released.store(true, Ordering::Release);
        for post in self.posts() {
            if let Some(attempt) = &*lock(&post.attempt) {
                attempt.stop.set();
            }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use crossbeam_channel::{Receiver, RecvTimeoutError};

    use super::super::feeder::channels::{ToWorkers, channels};
    use super::super::testing::claimed;
    use super::*;
    use crate::job::{Lane, Seq, Token};
    use crate::retry::Verdict;

    const POLICY: RetryPolicy = RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_secs(1) };
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        workers: Arc<Workers>,
        to_workers: ToWorkers,
        outcomes: Receiver<Outcome>,
        held: Arc<Held>,
    }

    /// `count` workers that find `waiting` in their channels when they start.
    fn bench(registry: Registry, count: usize, waiting: Vec<ClaimedJob>) -> Bench {
        let (to_workers, from_feeder) = channels(count);
        let (way, outcomes) = Outcomes::channel();
        let held = Arc::new(Held::default());
        let shop = Shop {
            from_feeder,
            outcomes: way,
            registry: Arc::new(registry),
            held: Arc::clone(&held),
            load: Arc::default(),
            retry: POLICY,
            timeout: PATIENCE,
        };
        held.add(&waiting, Instant::now() + PATIENCE);
        to_workers.send(waiting.into_iter().map(|job| (job.lane, job)));
        Bench { workers: Workers::start(shop, count).expect("threads"), to_workers, outcomes, held }
    }

    impl Bench {
        fn send(&self, job: ClaimedJob) {
            self.held.add(std::slice::from_ref(&job), Instant::now() + PATIENCE);
            self.to_workers.send([(job.lane, job)]);
        }

        fn outcome(&self) -> Outcome {
            self.outcomes.recv_timeout(PATIENCE).expect("an outcome")
        }
    }

    fn job(seq: i64, lane: Lane, job_type: &str) -> ClaimedJob {
        ClaimedJob { job_type: job_type.into(), ..claimed(seq, lane) }
    }

    fn with(job_type: &str, handler: impl Fn(&Attempt<'_>) -> Report + Send + Sync + 'static) -> Registry {
        let mut registry = Registry::new();
        registry.register(job_type, handler);
        registry
    }

    #[test]
    fn a_free_worker_takes_high_before_medium_before_low() {
        let jobs = [(1, Lane::Low), (2, Lane::Medium), (3, Lane::High), (4, Lane::Low), (5, Lane::High)];
        let waiting = jobs.map(|(seq, lane)| job(seq, lane, "x")).into();

        let bench = bench(with("x", |_| Report::Done), 1, waiting);

        let order: Vec<i64> = (0..5).map(|_| bench.outcome().seq.0).collect();
        assert_eq!(order, [3, 5, 2, 1, 4]);
    }

    #[test]
    fn a_panic_is_a_failed_attempt_and_its_worker_lives() {
        let registry = with("x", |attempt| {
            if attempt.job.seq == Seq(1) {
                panic!("no ink")
            } else {
                Report::Done
            }
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x"), job(2, Lane::High, "x")]);

        let failed = bench.outcome();

        assert!(matches!(&failed.verdict, Verdict::Retry { error, .. } if error == "the handler panicked: no ink"));
        assert_eq!(bench.outcome().verdict, Verdict::Complete);
    }

    #[test]
    fn a_panic_outside_the_handler_costs_no_worker_and_leaves_its_job_to_its_lease() {
        struct Spiteful;
        impl Drop for Spiteful {
            fn drop(&mut self) {
                panic!("thrown away");
            }
        }
        let registry = with("x", |attempt| {
            if attempt.job.seq == Seq(1) {
                std::panic::panic_any(Spiteful)
            } else {
                Report::Done
            }
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x"), job(2, Lane::High, "x")]);

        assert_eq!(bench.outcome().seq, Seq(2), "the worker lives");

        assert!(!bench.held.tokens().contains(&Token(1)), "its lease is not renewed");
        assert!(bench.held.known().contains(&Token(1)), "nor given back as if it had not run");
        assert!(bench.workers.posts().iter().all(|post| lock(&post.attempt).is_none()));
    }

    #[test]
    fn a_job_without_a_handler_or_with_a_broken_payload_is_buried() {
        let broken = ClaimedJob { payload: "{\"a\":".into(), ..job(1, Lane::High, "x") };
        let bench = bench(with("x", |_| Report::Done), 1, vec![broken, job(2, Lane::High, "unknown")]);

        let reasons = [bench.outcome(), bench.outcome()].map(|outcome| match outcome.verdict {
            Verdict::Bury { reason } => reason,
            other => panic!("{other:?}"),
        });

        assert!(reasons[0].starts_with("the payload is not JSON"), "{reasons:?}");
        assert_eq!(reasons[1], "no handler for type \"unknown\" on this replica");
    }

    #[test]
    fn a_job_whose_lease_was_lost_is_not_begun() {
        let bench = bench(with("x", |_| Report::Done), 1, Vec::new());
        let lost = job(1, Lane::High, "x"); // never told to `held`, as after its lease was lost
        bench.to_workers.send([(Lane::High, lost)]);

        bench.send(job(2, Lane::High, "x"));

        assert_eq!(bench.outcome().seq, Seq(2));
    }

    #[test]
    fn a_handler_that_ignores_its_deadline_is_given_up_and_its_worker_replaced() {
        let (leave, left) = mpsc::channel::<()>();
        let left = Mutex::new(left);
        let registry = with("x", move |attempt| {
            if attempt.job.seq == Seq(1) {
                let _ = lock(&left).recv_timeout(PATIENCE); // OK: a handler that hangs until the test lets it go
            }
            Report::Done
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }

        bench.workers.enforce_deadlines(Instant::now() + PATIENCE * 2, Duration::from_secs(1));

        let given_up = bench.outcome();
        assert!(matches!(&given_up.verdict, Verdict::Retry { error, .. } if error.contains("time limit of 20s")));
        bench.send(job(2, Lane::High, "x"));
        assert_eq!(bench.outcome().seq, Seq(2), "another worker has taken its place");
        leave.send(()).expect("the handler waits");
        assert_eq!(
            bench.outcomes.recv_timeout(Duration::from_millis(100)),
            Err(RecvTimeoutError::Timeout),
            "no second outcome"
        );
    }

    #[test]
    fn handlers_that_never_return_leave_a_limited_number_of_threads_and_their_workers_come_back() {
        let (leave, left) = crossbeam_channel::unbounded::<()>();
        let registry = with("x", move |_| {
            let _ = left.recv_timeout(PATIENCE); // OK: a handler that hangs until the test lets it go
            Report::Done
        });
        let bench = bench(registry, 1, Vec::new());
        let hangs = |seq| {
            bench.send(job(seq, Lane::High, "x"));
            while bench.workers.running() == 0 {
                std::thread::yield_now();
            }
            bench.workers.enforce_deadlines(Instant::now() + PATIENCE * 2, Duration::from_secs(1));
            assert_eq!(bench.outcome().seq, Seq(seq));
        };
        let limit = i64::try_from(LEFT_BEHIND_MIN).expect("few");

        (1..=limit).for_each(hangs);
        assert_eq!(bench.workers.crew(), Crew { wanted: 1, missing: 0, left_behind: LEFT_BEHIND_MIN });
        assert_eq!(bench.workers.crew().problem(), None);
        hangs(limit + 1);

        assert_eq!(bench.workers.crew(), Crew { wanted: 1, missing: 1, left_behind: LEFT_BEHIND_MIN + 1 });
        assert!(bench.workers.crew().problem().expect("one is missing").starts_with("1 of 1 workers hang"));
        assert_eq!(lock(&bench.workers.threads).len(), LEFT_BEHIND_MIN + 1);
        for _ in 0..=limit {
            leave.send(()).expect("the handlers wait");
        }
        bench.send(job(99, Lane::High, "x"));
        leave.send(()).expect("the handlers wait");
        assert_eq!(bench.outcome().seq, Seq(99), "the worker works again");
        while bench.workers.crew().left_behind > 0 {
            std::thread::yield_now();
        }
        assert_eq!(bench.workers.crew().missing, 0);
    }

    #[test]
    fn a_handler_that_returns_just_as_it_is_given_up_finds_its_thread_counted() {
        let (leave, left) = mpsc::channel::<()>();
        let left = Mutex::new(left);
        let registry = with("x", move |_| {
            let _ = lock(&left).recv_timeout(PATIENCE); // OK: a handler that hangs until the test lets it go
            Report::Done
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }

        let post = bench.workers.posts().remove(0);
        // Nobody can be counted now, so nobody may see that the attempt is gone.
        let uncounted = lock(&bench.workers.crew);
        let workers = Arc::clone(&bench.workers);
        let deadlines = std::thread::spawn(move || {
            workers.enforce_deadlines(Instant::now() + PATIENCE * 2, Duration::from_secs(1));
        });
        bench.outcome();
        leave.send(()).expect("the handler waits");
        let look_until = Instant::now() + Duration::from_millis(100);
        while Instant::now() < look_until {
            let is_gone = post.attempt.try_lock().is_ok_and(|attempt| attempt.is_none());
            assert!(!is_gone, "the handler would count itself before it was counted");
            std::thread::yield_now();
        }
        drop(uncounted);

        deadlines.join().expect("no panic");
        while bench.workers.crew().left_behind > 0 {
            std::thread::yield_now();
        }
        assert_eq!(bench.workers.crew(), Crew { wanted: 1, missing: 0, left_behind: 0 });
    }

    #[test]
    fn a_handler_that_hangs_while_no_outcome_can_be_taken_is_given_up_once_one_can() {
        let (leave, left) = mpsc::channel::<()>();
        let left = Mutex::new(left);
        let registry = with("x", move |_| {
            let _ = lock(&left).recv_timeout(PATIENCE); // OK: as above
            Report::Done
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }
        let outcome = |bench: &Bench| {
            let post = &bench.workers.posts()[0];
            bench.workers.hung(post, lock(&post.attempt).as_ref().expect("it runs"))
        };
        let late = Instant::now() + PATIENCE * 2;
        while bench.workers.shop.outcomes.try_send(outcome(&bench)) {}

        bench.workers.enforce_deadlines(late, Duration::from_secs(1));
        assert_eq!((bench.workers.running(), bench.workers.crew().left_behind), (1, 0), "it does not wait for room");
        bench.outcome();
        bench.workers.enforce_deadlines(late, Duration::from_secs(1));

        assert_eq!((bench.workers.running(), bench.workers.crew().left_behind), (0, 1));
        leave.send(()).expect("the handler waits");
    }

    #[test]
    fn an_attempt_that_is_told_to_stop_at_the_end_of_the_drain_time_gives_no_outcome() {
        let registry = with("x", |attempt| {
            attempt.stop.wait_timeout(PATIENCE);
            Report::retry("stopped")
        });
        let bench = bench(registry, 1, vec![job(1, Lane::High, "x")]);
        while bench.workers.running() == 0 {
            std::thread::yield_now();
        }

        bench.workers.release_all();
        drop(bench.to_workers);

        assert!(bench.workers.join(Instant::now() + PATIENCE));
        assert!(bench.outcomes.is_empty());
        assert_eq!(bench.held.unsettled(), [(Seq(1), Token(1))], "it is released");
    }
}
