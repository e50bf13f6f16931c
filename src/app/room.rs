//! Room for calls of the API at the database: what they do not take is left for the threads that keep the service going.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::store::StoreError;

/// Connections kept for submitter, scheduler, feeder, finisher and keeper, each of which takes one at a time, and one for `/readyz`.
const KEPT_FOR_DUTIES: u32 = 6;

/// See the module.
pub(super) struct Rooms {
    /// For all calls but submissions, which wait for the submitter.
    pub(super) calls: Room,
    /// For `/readyz`, which is to answer however many calls wait.
    pub(super) probes: Room,
}

impl Rooms {
    /// What a pool of `connections_max` leaves to the API; at least one for each, and then the duties may have to wait for one.
    pub(super) fn beside_duties(connections_max: u32, wait: Duration) -> Rooms {
        let places = usize::try_from(connections_max.saturating_sub(KEPT_FOR_DUTIES)).unwrap_or(usize::MAX);
        Rooms { calls: Room::new(places, wait), probes: Room::new(1, wait) }
    }
}

/// As many places as calls may use connections at once.
pub(super) struct Room {
    // Full when all places are taken.
    takes: Sender<()>,
    leaves: Receiver<()>,
    wait: Duration,
}

impl Room {
    /// For `places` calls at once, and at least one; the others wait up to `wait`.
    fn new(places: usize, wait: Duration) -> Room {
        let (takes, leaves) = bounded(places.max(1));
        Room { takes, leaves, wait }
    }

    /// Runs a call of the API once there is room for it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if there was none in time, or as the call.
    pub(super) fn call<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let none = |_| StoreError::Unavailable("as many calls as may use it at once do already".into());
        self.takes.send_timeout((), self.wait).map_err(none)?;
        let _place = Place(&self.leaves);
        call()
    }
}

/// A place, given back when dropped.
struct Place<'r>(&'r Receiver<()>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv(); // OK: it holds one for each place that is taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_for_which_there_is_no_room_in_time_is_refused_and_a_place_comes_free_with_its_call() {
        let room = Rooms::beside_duties(8, Duration::from_millis(1)).calls;
        let taken = room.call(|| {
            room.call(|| {
                let refused = room.call(|| Ok(()));
                assert!(matches!(refused, Err(StoreError::Unavailable(_))), "two places");
                room.takes.len().eq(&2).then_some(()).ok_or_else(|| StoreError::Corrupt("two are taken".into()))
            })
        });
        assert!(taken.is_ok());

        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = room.call(|| -> Result<(), StoreError> { panic!("on purpose") });
        }));

        assert!(panicked.is_err() && room.takes.is_empty());
    }
}
