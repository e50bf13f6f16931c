//! Ids that wait in this process for the moment they are due.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::job::{Lane, Seq};
use crate::wake::Wake;

/// Ids that wait at most; beyond it the rows stay in the table until there is room. About 5 MB.
const TIMERS_MAX: usize = 100_000;

/// A heap of ids by the moment they are due. Lost with its process: crash window "timer heap lost with its replica"; the rows say
/// who was to push them, and a dead replica's are dispatched anew.
#[derive(Default)]
pub struct Timers {
    heap: Mutex<BinaryHeap<Reverse<(Instant, Lane, Seq)>>>,
    wake: Arc<Wake>,
}

impl Timers {
    /// Keeps an id until `due`.
    pub fn add(&self, due: Instant, lane: Lane, seq: Seq) {
        let mut heap = self.lock();
        let is_next = heap.peek().is_none_or(|Reverse((next, _, _))| due < *next);
        heap.push(Reverse((due, lane, seq)));
        drop(heap);
        if is_next {
            self.wake.wake();
        }
    }

    /// Called when an id comes that is due before all others; the scheduler waits on it.
    pub fn wake(&self) -> Arc<Wake> {
        Arc::clone(&self.wake)
    }

    /// Whether there is room for the ids of another batch.
    pub fn has_room(&self) -> bool {
        self.lock().len() < TIMERS_MAX
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes out what is due at `now`, and tells the moment of the next.
    pub fn take_due(&self, now: Instant) -> (Vec<(Lane, Seq)>, Option<Instant>) {
        let mut heap = self.lock();
        let mut due = Vec::new();
        while let Some(Reverse((at, lane, seq))) = heap.peek().copied() {
            if at > now {
                return (due, Some(at));
            }
            heap.pop();
            due.push((lane, seq));
        }
        (due, None)
    }

    fn lock(&self) -> MutexGuard<'_, BinaryHeap<Reverse<(Instant, Lane, Seq)>>> {
        self.heap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_due_comes_out_in_the_order_of_its_time() {
        let timers = Timers::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        timers.add(at(30), Lane::High, Seq(3));
        timers.add(at(10), Lane::Low, Seq(1));
        timers.add(at(20), Lane::High, Seq(2));

        let (due, next) = timers.take_due(at(20));

        assert_eq!(due, [(Lane::Low, Seq(1)), (Lane::High, Seq(2))]);
        assert_eq!(next, Some(at(30)));
        assert_eq!(timers.take_due(at(99)), (vec![(Lane::High, Seq(3))], None));
    }

    proptest! {
        #[test]
        fn ids_come_out_once_each_by_time_then_lane_then_arrival(
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
                let (due, next) = timers.take_due(now);

                let count = left.partition_point(|(at, _, _)| *at <= now);
                let expected: Vec<(Lane, Seq)> = left.drain(..count).map(|(_, lane, seq)| (lane, seq)).collect();
                prop_assert_eq!(due, expected);
                prop_assert_eq!(next, left.first().map(|(at, _, _)| *at));
                prop_assert_eq!(timers.len(), left.len());
            }
        }
    }
}
