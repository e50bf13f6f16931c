//! Lanes in this process, for a replica without Redis. They are empty at every start; the scheduler fills them from
//! the database.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{LaneState, Pushed};
use crate::job::{Lane, Seq};

pub(super) struct MemoryLanes {
    capacity: usize,
    inner: Mutex<Inner>,
    /// Signalled when an id comes or the pops are interrupted.
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Popped at the front.
    lanes: [VecDeque<Seq>; 3],
    epoch: Option<String>,
    interrupted: bool,
}

impl MemoryLanes {
    pub(super) fn new(capacity: usize) -> MemoryLanes {
        MemoryLanes { capacity, inner: Mutex::default(), changed: Condvar::new() }
    }

    /// Each lane takes what it has room for; what is refused is wholly in the database's hands.
    pub(super) fn push(&self, lots: &[(Lane, &[Seq])]) -> Pushed {
        let mut inner = self.lock();
        let mut pushed = Pushed::default();
        for (lane, seqs) in lots.iter().filter(|(_, seqs)| !seqs.is_empty()) {
            let waiting = &mut inner.lanes[lane.index()];
            let room = self.capacity.saturating_sub(waiting.len());
            let (taken, refused) = seqs.split_at(room.min(seqs.len()));
            waiting.extend(taken);
            // OK: a usize fits u64
            pushed.lengths[lane.index()] = Some(waiting.len() as u64);
            if !refused.is_empty() {
                pushed.refused.push((*lane, refused.to_vec()));
            }
        }
        // All, as each waits for lanes of its own.
        self.changed.notify_all();
        pushed
    }

    pub(super) fn push_front(&self, lane: Lane, seqs: &[Seq]) {
        let mut inner = self.lock();
        for seq in seqs.iter().rev() {
            inner.lanes[lane.index()].push_front(*seq);
        }
        self.changed.notify_all();
    }

    pub(super) fn pop(&self, open: &[(Lane, usize)], wait: Duration) -> Option<(Lane, Vec<Seq>)> {
        let nothing = |inner: &mut Inner| !inner.interrupted && first_filled(inner, open).is_none();
        let (mut inner, _) =
            self.changed.wait_timeout_while(self.lock(), wait, nothing).unwrap_or_else(PoisonError::into_inner);

        let (lane, room) = first_filled(&inner, open)?;
        let waiting = &mut inner.lanes[lane.index()];
        let count = room.min(waiting.len());
        Some((lane, waiting.drain(..count).collect()))
    }

    pub(super) fn state(&self) -> [LaneState; 3] {
        let inner = self.lock();
        // OK: a usize fits u64
        [0, 1, 2]
            .map(|lane| LaneState { len: inner.lanes[lane].len() as u64, head: inner.lanes[lane].front().copied() })
    }

    pub(super) fn epoch(&self) -> Option<String> {
        self.lock().epoch.clone()
    }

    pub(super) fn begin_epoch(&self, name: &str) -> bool {
        self.lock().epoch.get_or_insert_with(|| name.to_owned()) == name
    }

    pub(super) fn interrupt(&self) {
        self.lock().interrupted = true;
        self.changed.notify_all();
    }

    /// Nothing can panic halfway through a change, so a poisoned lock guards sound lanes.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn first_filled(inner: &Inner, open: &[(Lane, usize)]) -> Option<(Lane, usize)> {
    open.iter().copied().find(|(lane, _)| !inner.lanes[lane.index()].is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPACITY: usize = 6;

    proptest! {
        #[test]
        fn a_lane_is_a_queue_with_a_limit(
            steps in proptest::collection::vec((0usize..3, 0usize..3, proptest::collection::vec(0i64..9, 0..5)), 0..40),
        ) {
            let lanes = MemoryLanes::new(CAPACITY);
            let mut model: [VecDeque<Seq>; 3] = Default::default();

            for (what, index, seqs) in steps {
                let (lane, seqs): (Lane, Vec<Seq>) = (Lane::ALL[index], seqs.into_iter().map(Seq).collect());
                match what {
                    0 => {
                        let room = CAPACITY.saturating_sub(model[index].len());
                        let (taken, refused) = seqs.split_at(seqs.len().min(room));
                        let pushed = lanes.push(&[(lane, &seqs)]);
                        prop_assert_eq!(pushed.refused.into_iter().flat_map(|(_, seqs)| seqs).collect::<Vec<Seq>>(), refused);
                        model[index].extend(taken);
                    }
                    1 => {
                        lanes.push_front(lane, &seqs);
                        seqs.iter().rev().for_each(|seq| model[index].push_front(*seq));
                    }
                    _ => {
                        let open = [(Lane::High, 2), (lane, 1)];
                        let first = open.iter().find(|(lane, _)| !model[lane.index()].is_empty());
                        let expected = first.map(|(lane, room)| {
                            let waiting = &mut model[lane.index()];
                            (*lane, waiting.drain(..waiting.len().min(*room)).collect::<Vec<Seq>>())
                        });
                        prop_assert_eq!(lanes.pop(&open, Duration::ZERO), expected);
                    }
                }
                let state = lanes.state();
                for (lane, waiting) in state.iter().zip(&model) {
                    prop_assert_eq!(lane.len, waiting.len() as u64);
                    prop_assert_eq!(lane.head, waiting.front().copied());
                }
            }
        }
    }
}
