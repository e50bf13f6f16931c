//! scheduler: dispatches what is due, and takes back what got lost.
//!
//! 1. Pushes the ids whose time has come, to the millisecond.
//! 2. Every second (where the lanes are in Redis) looks whether Redis is there and still has its data.
//! 3. Every tick, and whenever woken: makes regular what plain SQL inserted, ends leases that ran out, takes over from dead replicas,
//!    recalls lost ids, and dispatches all that is due before the next tick. So one query in two minutes serves every delay.
//! 4. Every 100 ms fills up lanes that are cut and have drained to half; dispatches in time what the timers had no room for.
//! 5. With the starvation guard on, promotes what has waited too long.
//! 6. Once an hour deletes what ended longer ago than the retention.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Duty;
use crate::job::Seq;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::random;
use crate::retry::{Report, RetryPolicy, Verdict, judge};
use crate::store::{Expired, StoreError};
use crate::wake::left_until;

/// How often Redis is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often a lane that is cut is looked at: at 50,000 jobs a second a lane of 100,000 that is seen at half lasts ten times as long.
const REFILL_EVERY: Duration = Duration::from_millis(100);
/// The least time between two looks at the table for jobs that the timers had no room for; they are looked for this much before they are due,
/// and more.
const MISSED_EVERY: Duration = Duration::from_millis(50);
/// How often the table is searched for ids that Redis had, while it is away.
const AWAY_TICK: Duration = Duration::from_secs(15);
/// After a tick that failed; the time doubles with each, up to [`TICK_RETRY_MAX`]. Meanwhile all else goes on.
const TICK_RETRY: Duration = Duration::from_millis(200);
/// The longest time between two ticks that fail.
const TICK_RETRY_MAX: Duration = Duration::from_secs(5);
/// How often ended jobs are deleted.
const PRUNE_EVERY: Duration = Duration::from_hours(1);
/// Looks of the starvation guard within its limit.
const GUARD_ROUNDS: u32 = 4;
/// The first deletion after a start.
const PRUNE_FIRST: Duration = Duration::from_mins(1);
/// After a deletion that failed; also how much longer jobs are kept than they need be, so that none is deleted before the result of its call,
/// however close the two times are.
const PRUNE_PAUSE: Duration = Duration::from_mins(1);
/// Pages of one deletion round; the rest follows in the next, so that dispatch is never held up for long.
const PRUNE_PAGES_MAX: usize = 20;

/// Asks the scheduler for a tick or a refill now; cheap to clone.
#[derive(Clone)]
pub struct Ticker {
    lifecycle: Arc<Lifecycle>,
    asked: Arc<AtomicBool>,
    refill_asked: Arc<AtomicBool>,
}

impl Ticker {
    /// A ticker for the scheduler of this lifecycle.
    pub fn new(lifecycle: Arc<Lifecycle>) -> Ticker {
        Ticker { lifecycle, asked: Arc::default(), refill_asked: Arc::default() }
    }

    /// The scheduler ticks as soon as it can; does not wait for it.
    pub fn tick_now(&self) {
        self.asked.store(true, Ordering::Release);
        self.lifecycle.timers().wake().wake();
    }

    /// The scheduler refills the lanes that are cut as soon as it can; does not wait for it.
    pub fn refill_now(&self) {
        self.refill_asked.store(true, Ordering::Release);
        self.lifecycle.timers().wake().wake();
    }
}

/// Decides how long a job waits whose lease ran out.
pub type PolicyOf = Arc<dyn Fn(&str) -> RetryPolicy + Send + Sync>;

/// The duty.
pub struct Scheduler {
    lifecycle: Arc<Lifecycle>,
    metrics: Arc<Metrics>,
    ticker: Ticker,
    policy_of: PolicyOf,
    retention: Duration,
    starvation: Option<Duration>,
    next_guard: Instant,
    next_tick: Instant,
    // After a tick that failed: until when only being asked brings another on, and how long the next such time is.
    no_tick_before: Instant,
    tick_retry: Duration,
    next_watch: Instant,
    next_refill: Instant,
    next_missed: Instant,
    next_prune: Instant,
    prune_after: Option<Seq>,
    is_first: bool,
    // Whether a search for lost ids has begun that looked farther back.
    has_looked_deep: bool,
    // Whether Redis was away at the last tick.
    was_away: bool,
}

impl Scheduler {
    /// A scheduler that ticks at once. Ended jobs are kept for `retention`; a job that has been due for `starvation` is promoted.
    pub fn new(
        lifecycle: Arc<Lifecycle>,
        metrics: Arc<Metrics>,
        ticker: Ticker,
        policy_of: PolicyOf,
        retention: Duration,
        starvation: Option<Duration>,
    ) -> Scheduler {
        let now = Instant::now();
        Scheduler {
            lifecycle,
            metrics,
            ticker,
            policy_of,
            retention,
            starvation,
            next_guard: now,
            next_tick: now,
            no_tick_before: now,
            tick_retry: TICK_RETRY,
            next_watch: now,
            next_refill: now,
            next_missed: now,
            next_prune: now + PRUNE_FIRST.mul_f64(0.5 + random::unit() / 2.0),
            prune_after: None,
            is_first: true,
            has_looked_deep: false,
            was_away: false,
        }
    }

    /// Whether the lanes have to be looked at again and again: those in this process do not change behind its back.
    fn watches(&self) -> bool {
        self.lifecycle.policy().lanes_are_shared || self.is_first
    }

    /// Returns whether plain SQL has left more to make regular than one tick does.
    fn tick(&mut self) -> Result<bool, StoreError> {
        let lifecycle = &self.lifecycle;
        let expired = lifecycle.expire(|job| self.verdict_on(job));
        Metrics::add(&self.metrics.expired, *expired.as_ref().unwrap_or(&0));
        let taken_over = lifecycle.take_over_from_dead();
        let recalled = lifecycle.recall_lost(!self.has_looked_deep);
        self.has_looked_deep |= *recalled.as_ref().unwrap_or(&false);
        let regular = lifecycle.regularise();
        // Whatever went wrong before: what is due and well is to run.
        lifecycle.dispatch().and(expired.map(drop)).and(taken_over).and(recalled.map(drop))?;
        regular
    }

    /// A tick, and when the next is to be. One that failed holds up nothing else.
    fn tick_at(&mut self, now: Instant) -> Result<(), StoreError> {
        self.was_away = self.lifecycle.lanes_are_away();
        let result = self.tick();
        if let Ok(is_more) = result {
            let is_away = self.lifecycle.lanes_are_away();
            let tick = self.lifecycle.policy().tick;
            let pause = if is_away { tick.min(AWAY_TICK) } else { tick };
            self.next_tick = if is_more { now } else { now + pause };
            self.tick_retry = TICK_RETRY;
            self.is_first = false;
        } else {
            self.no_tick_before = Instant::now() + self.tick_retry.mul_f64(0.5 + random::unit() / 2.0);
            self.tick_retry = (self.tick_retry * 2).min(TICK_RETRY_MAX);
            self.next_tick = self.no_tick_before;
        }
        result.map(drop)
    }

    /// When leases that ran out are to be ended.
    fn next_expiry(&self) -> Option<Instant> {
        self.lifecycle.next_expiry().map(|at| at.max(self.no_tick_before))
    }

    /// Moves what has waited too long, at its time.
    fn guard(&mut self, now: Instant) -> Result<(), StoreError> {
        match self.starvation.filter(|_| now >= self.next_guard) {
            Some(limit) => {
                self.next_guard = now + limit / GUARD_ROUNDS;
                self.lifecycle.promote_starved(limit)
            }
            None => Ok(()),
        }
    }

    /// Fills up lanes that were cut, and dispatches what the timers had no room for before it is due.
    fn refill_and_catch_up(&mut self, now: Instant) -> Result<(), StoreError> {
        if self.ticker.refill_asked.swap(false, Ordering::AcqRel) || now >= self.next_refill {
            self.next_refill = now + REFILL_EVERY;
            self.lifecycle.refill()?;
        }
        if now >= self.next_missed && self.lifecycle.next_missed().is_some_and(|at| now >= at) {
            self.next_missed = now + MISSED_EVERY;
            self.lifecycle.dispatch()?;
        }
        Ok(())
    }

    fn verdict_on(&self, job: &Expired) -> Verdict {
        let report = Report::retry("worker lost: its lease ran out, so the replica that ran it died or was cut off");
        judge(report, job.retry_count, job.max_retries, &(self.policy_of)(&job.job_type), random::unit())
    }

    /// Deletes what is old, up to some pages; between them pushes what has become due.
    fn prune(&mut self) -> Result<(), StoreError> {
        // Moved on first: what fails is not tried again in every round.
        self.next_prune = Instant::now() + PRUNE_PAUSE;
        let (lifecycle, store) = (&self.lifecycle, self.lifecycle.store());
        for _ in 0..PRUNE_PAGES_MAX {
            lifecycle.push_due_timers(Instant::now());
            // In this order, so that the result of a call is never kept longer than its jobs are.
            if store.prune_idempotency()? || store.prune_stats(self.retention)? {
                continue;
            }
            let pruned = store.prune_jobs(self.retention + PRUNE_PAUSE, self.prune_after)?;
            self.prune_after = pruned.next;
            if pruned.deleted > 0 {
                log::debug!(jobs = pruned.deleted; "deleted ended jobs");
            }
            if pruned.next.is_none() {
                self.next_prune = Instant::now() + PRUNE_EVERY;
                return Ok(());
            }
        }
        self.next_prune = Instant::now();
        Ok(())
    }
}

impl Duty for Scheduler {
    const NAME: &'static str = "scheduler";

    fn round(&mut self) -> Result<Duration, StoreError> {
        let now = Instant::now();
        self.lifecycle.push_due_timers(now);
        let mut tick = self.ticker.asked.swap(false, Ordering::AcqRel) || now >= self.next_tick;
        let mut result = Ok(());
        if self.watches() && now >= self.next_watch {
            self.next_watch = now + WATCH_EVERY;
            let looked = self.lifecycle.watch_lanes().map(|is_news| tick |= is_news);
            result = looked.and(self.lifecycle.notice_cuts());
        }
        // Whoever noticed it first: what was in Redis has to be found in the table, and the other way round.
        tick |= self.lifecycle.lanes_are_away() != self.was_away;
        tick |= self.next_expiry().is_some_and(|at| now >= at);
        tick |= self.lifecycle.take_look(now);
        // Whatever goes wrong in one of them, the others have their turn.
        if tick {
            result = result.and(self.tick_at(now));
        }
        if result.as_ref().is_err_and(StoreError::is_outage) {
            return result.map(|()| Duration::ZERO); // All else would meet it too, and wait for it.
        }
        result = result.and(self.refill_and_catch_up(now));
        result = result.and(self.guard(now));
        if now >= self.next_prune {
            result = result.and(self.prune());
        }
        if !tick && self.lifecycle.is_sweeping() {
            result = result.and(self.lifecycle.sweep_on());
        }
        result?;
        let next_timer = self.lifecycle.push_due_timers(Instant::now());
        let mut next = self.next_tick.min(self.next_prune);
        if self.watches() {
            next = next.min(self.next_watch);
        }
        if self.lifecycle.is_sweeping() {
            next = now;
        }
        if self.lifecycle.is_cut() {
            next = next.min(self.next_refill);
        }
        if let Some(missed) = self.lifecycle.next_missed() {
            next = next.min(missed.max(self.next_missed));
        }
        if self.starvation.is_some() {
            next = next.min(self.next_guard);
        }
        let others = [self.next_expiry(), self.lifecycle.next_look()];
        next = others.into_iter().flatten().fold(next, Instant::min);
        Ok(left_until(next_timer.map_or(next, |timer| timer.min(next))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ReplicaId;
    use crate::lifecycle::Policy;
    use crate::queue::Lanes;
    use crate::store::{Options, Store};

    #[test]
    fn a_deletion_that_fails_is_not_tried_again_at_once() {
        let file = std::env::temp_dir().join(format!("trilane-{}.db", uuid::Uuid::new_v4()));
        let connection_string = Store::sqlite_connection_string(&file);
        let store = Store::open(&Options { connection_string, connections_max: 1, wait: Duration::from_secs(20) });
        let policy = Policy {
            replica: ReplicaId(41),
            replica_name: "test".to_owned(),
            tick: Duration::from_mins(2),
            lease: Duration::from_secs(30),
            lane_buffer_max: 10,
            lanes_are_shared: false,
            has_lanes: true,
        };
        let lifecycle = Arc::new(Lifecycle::new(store.expect("the store opens"), Lanes::memory(10), policy));
        let ticker = Ticker::new(Arc::clone(&lifecycle));
        let policy_of: PolicyOf = Arc::new(|_| RetryPolicy { base: Duration::ZERO, cap: Duration::ZERO });
        let day = Duration::from_hours(24);
        let mut scheduler = Scheduler::new(lifecycle, Arc::default(), ticker, policy_of, day, None);
        scheduler.next_prune = Instant::now();

        let pruned = scheduler.prune();

        assert!(pruned.is_err(), "there are no tables");
        assert!(scheduler.next_prune > Instant::now() + PRUNE_PAUSE / 2);
        let _ = std::fs::remove_file(file);
    }
}
