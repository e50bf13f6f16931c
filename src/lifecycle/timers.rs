//! Ids that wait in this process for the moment they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::job::{Lane, Seq};
use crate::wake::Wake;

/// Ids that wait at most; beyond it the rows stay in the table until there is room. About 5 MB.
const TIMERS_MAX: usize = 100_000;
/// Where the heap is full, ids due this soon are taken all the same, so that they are pushed in time,
pub(super) const NEAR: Duration = Duration::from_millis(100);
/// and this many of them at most.
const NEAR_MAX: usize = 10_000;
/// Ids of a lane that is cut are given back to the table this much before they are due, so that one statement gives back many.
const GIVEN_BACK_AHEAD: Duration = Duration::from_secs(1);

/// Ids by the moment they are due. Lost with its process: crash window "timer heap lost with its replica"; the rows say who was to push
/// them, and a dead replica's are dispatched anew.
///
/// Bounded: [`Timers::reach`] says how far ahead ids may be taken. Each who takes a batch asks before it, so the limit is passed by the
/// batches under way at most (one of each of submitter, finisher and scheduler).
pub struct Timers {
    state: Mutex<State>,
    wake: Arc<Wake>,
    max: usize,
}

#[derive(Default)]
struct State {
    // By lane, in the order of `Lane::ALL`.
    heaps: [BinaryHeap<Reverse<(Instant, Seq)>>; 3],
    // When the first of those is due for which there was no room.
    missed: Option<Instant>,
}

impl State {
    fn len(&self) -> usize {
        self.heaps.iter().map(BinaryHeap::len).sum()
    }

    fn next(&self) -> Option<Instant> {
        self.heaps.iter().filter_map(|heap| heap.peek()).map(|Reverse((due, _))| *due).min()
    }
}

impl Default for Timers {
    fn default() -> Timers {
        Timers::with_room(TIMERS_MAX)
    }
}

impl Timers {
    /// For `max` ids.
    pub(super) fn with_room(max: usize) -> Timers {
        Timers { state: Mutex::default(), wake: Arc::default(), max }
    }

    /// Keeps an id until `due`.
    pub fn add(&self, due: Instant, lane: Lane, seq: Seq) {
        let mut state = self.lock();
        let is_next = state.next().is_none_or(|next| due < next);
        state.heaps[lane.index()].push(Reverse((due, seq)));
        drop(state);
        if is_next {
            self.wake.wake();
        }
    }

    /// Called when an id comes that is due before all others; the scheduler waits on it.
    pub fn wake(&self) -> Arc<Wake> {
        Arc::clone(&self.wake)
    }

    /// How far ahead ids may be taken now: up to `all`, or less where the heap is full.
    pub(super) fn reach(&self, all: Duration) -> Duration {
        match self.len() {
            len if len < self.max => all,
            len if len < self.max.saturating_add(NEAR_MAX) => all.min(NEAR),
            _ => Duration::ZERO,
        }
    }

    /// An id due at `due` stays in the table, as it was beyond [`Timers::reach`].
    pub(super) fn miss(&self, due: Instant) {
        let mut state = self.lock();
        if state.missed.is_none_or(|missed| due < missed) {
            state.missed = Some(due);
            drop(state);
            self.wake.wake();
        }
    }

    /// To be called before the table is asked for what was missed.
    pub(super) fn forget_missed(&self) {
        self.lock().missed = None;
    }

    /// When the table has to be asked for what was missed.
    pub(super) fn next_missed(&self) -> Option<Instant> {
        self.lock().missed.map(|due| due.checked_sub(NEAR).unwrap_or(due))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out what is due at `now`, each lane in the order of time, and tells the moment of the next. Of a lane that is `cut` comes with
    /// it what is due soon after.
    pub fn take_due(&self, now: Instant, cut: [bool; 3]) -> (Vec<(Lane, Seq)>, Option<Instant>) {
        let mut state = self.lock();
        let mut due = Vec::new();
        for lane in Lane::ALL {
            let heap = &mut state.heaps[lane.index()];
            let is_due = heap.peek().is_some_and(|Reverse((at, _))| *at <= now);
            let until = if cut[lane.index()] && is_due {
                now + GIVEN_BACK_AHEAD
            } else {
                now
            };
            while let Some(Reverse((_, seq))) = heap.peek().copied().filter(|Reverse((at, _))| *at <= until) {
                heap.pop();
                due.push((lane, seq));
            }
        }
        (due, state.next())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE_CUT: [bool; 3] = [false; 3];

    #[test]
    fn what_is_due_comes_out_in_the_order_of_its_time() {
        let timers = Timers::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        timers.add(at(30), Lane::High, Seq(3));
        timers.add(at(20), Lane::Low, Seq(2));
        timers.add(at(10), Lane::Low, Seq(1));

        let (due, next) = timers.take_due(at(20), NONE_CUT);

        assert_eq!(due, [(Lane::Low, Seq(1)), (Lane::Low, Seq(2))]);
        assert_eq!(next, Some(at(30)));
        assert_eq!(timers.take_due(at(99), NONE_CUT), (vec![(Lane::High, Seq(3))], None));
    }

    #[test]
    fn of_a_lane_that_is_cut_comes_also_what_is_due_soon_but_not_before_its_first() {
        let timers = Timers::default();
        let start = Instant::now();
        for (ms, lane, seq) in [(10, Lane::Low, 1), (500, Lane::Low, 2), (5_000, Lane::Low, 3), (500, Lane::High, 4)] {
            timers.add(start + Duration::from_millis(ms), lane, Seq(seq));
        }
        let cut = [false, false, true];

        assert_eq!(timers.take_due(start, cut).0, []);
        let (due, _) = timers.take_due(start + Duration::from_millis(10), cut);

        assert_eq!(due, [(Lane::Low, Seq(1)), (Lane::Low, Seq(2))]);
    }

    #[test]
    fn a_full_heap_takes_only_what_is_due_soon_and_of_that_no_more_than_its_limit() {
        let timers = Timers::with_room(2);
        let (start, tick) = (Instant::now(), Duration::from_mins(2));
        let reach_with = |count| {
            while timers.len() < count {
                timers.add(start, Lane::High, Seq(1));
            }
            timers.reach(tick)
        };

        assert_eq!([reach_with(1), reach_with(2), reach_with(2 + NEAR_MAX)], [tick, NEAR, Duration::ZERO]);
    }

    #[test]
    fn the_first_that_was_missed_is_remembered_until_the_table_is_asked() {
        let timers = Timers::default();
        let due = Instant::now() + Duration::from_secs(5);
        timers.miss(due);
        timers.miss(due + Duration::from_secs(1));

        assert_eq!(timers.next_missed().map(|at| at + NEAR), Some(due));
        timers.forget_missed();
        assert_eq!(timers.next_missed(), None);
    }

    proptest! {
        #[test]
        fn ids_come_out_once_each_by_lane_then_time_then_arrival(
            added in proptest::collection::vec((0u64..50, 0usize..3, 0i64..1_000), 0..60), steps in proptest::collection::vec(0u64..60, 0..6),
        ) {
            let (timers, start) = (Timers::default(), Instant::now());
            let at = |ms| start + Duration::from_millis(ms);
            let mut left: Vec<(Instant, Lane, Seq)> =
                added.iter().map(|(ms, lane, seq)| (at(*ms), Lane::ALL[*lane], Seq(*seq))).collect();
            for (at, lane, seq) in &left {
                timers.add(*at, *lane, *seq);
            }
            left.sort_unstable();

            for now in steps.into_iter().chain([60]).map(at) {
                let (due, next) = timers.take_due(now, NONE_CUT);

                let count = left.partition_point(|(at, _, _)| *at <= now);
                let mut expected: Vec<(Lane, Seq)> = left.drain(..count).map(|(_, lane, seq)| (lane, seq)).collect();
                expected.sort_by_key(|(lane, _)| *lane);
                prop_assert_eq!(due, expected);
                prop_assert_eq!(next, left.first().map(|(at, _, _)| *at));
                prop_assert_eq!(timers.len(), left.len());
            }
        }
    }
}
