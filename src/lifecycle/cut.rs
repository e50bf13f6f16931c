//! Which lanes are cut: more is due in the table than their list holds, so that nothing is put behind the list past what waits there.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::job::Lane;

/// One count for each lane: odd while it is cut, and changed by everything that leaves a due row in the table. So a look at the table that
/// finds nothing ends the cut only if no row was left there after it began.
///
/// Of this replica alone. Another learns of it from the lane's length, or by its own look at the table.
#[derive(Default)]
pub(super) struct Cut([AtomicU64; 3]);

impl Cut {
    pub(super) fn is_on(&self, lane: Lane) -> bool {
        self.seen(lane) % 2 == 1
    }

    pub(super) fn is_any(&self) -> bool {
        Lane::ALL.into_iter().any(|lane| self.is_on(lane))
    }

    /// A due row stays in the table, committed, or the lane is full. Returns whether the lane was not cut before.
    pub(super) fn begin(&self, lane: Lane) -> bool {
        let next = |count: u64| count.wrapping_add(if count % 2 == 1 { 2 } else { 1 });
        // OK: the closure always gives a value
        let before = self.0[lane.index()].fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| Some(next(count)));
        before.is_ok_and(|count| count % 2 == 0)
    }

    /// To be taken before a look at the table.
    pub(super) fn seen(&self, lane: Lane) -> u64 {
        self.0[lane.index()].load(Ordering::Acquire)
    }

    /// The table had nothing more for the lane, in a look begun when the count was `seen`.
    pub(super) fn end(&self, lane: Lane, seen: u64) {
        if seen % 2 == 1 {
            // OK to fail: a row was left there meanwhile
            let _ =
                self.0[lane.index()].compare_exchange(seen, seen.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_left_after_a_look_has_begun_keeps_the_lane_cut() {
        let cut = Cut::default();
        assert!(cut.begin(Lane::Low) && !cut.begin(Lane::Low));

        let seen = cut.seen(Lane::Low);
        cut.begin(Lane::Low);
        cut.end(Lane::Low, seen);
        assert!(cut.is_on(Lane::Low) && !cut.is_on(Lane::High));

        cut.end(Lane::Low, cut.seen(Lane::Low));
        assert!(!cut.is_any());
        cut.end(Lane::Low, cut.seen(Lane::Low));
        assert!(!cut.is_any(), "an end that follows an end changes nothing");
    }
}
