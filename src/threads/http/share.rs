//! What all requests under way share: memory for bodies, and places for listings.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The most listings under way at once; each holds a chunk of rows until its client has taken it.
const LISTINGS_MAX: usize = 16;
/// How long a listing waits for its place.
pub(super) const LISTING_WAIT: Duration = Duration::from_millis(500);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Memory for large bodies, in bytes, unless the largest body allowed needs more.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// So many of the largest bodies allowed find room.
const BODIES_MAX: usize = 4;

/// See the module.
pub(super) struct Shares {
    /// Bytes of bodies that are being read or worked on, without small ones.
    pub(super) bodies: Pool,
    /// Listings.
    pub(super) listings: Pool,
}

impl Shares {
    /// A body up to this, in bytes, counts for nothing: there are at most as many as connections.
    pub(super) const FREE_BODY_BYTES: usize = 16 << 10;

    pub(super) fn new(body_bytes_max: usize) -> Shares {
        Shares {
            bodies: Pool::new(BODIES_BYTES_MAX.max(body_bytes_max.saturating_mul(BODIES_MAX))),
            listings: Pool::new(LISTINGS_MAX),
        }
    }
}

/// So much of something.
pub(super) struct Pool {
    max: usize,
    taken: AtomicUsize,
}

impl Pool {
    fn new(max: usize) -> Pool {
        Pool { max, taken: AtomicUsize::new(0) }
    }

    /// The same, if there is within `wait`.
    pub(super) fn take_within(&self, count: usize, wait: Duration) -> Option<Share<'_>> {
        let deadline = Instant::now() + wait;
        loop {
            let share = self.take(count);
            if share.is_some() || Instant::now() >= deadline {
                return share;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.max - self.taken.load(Ordering::SeqCst)
    }

    /// A share that may grow.
    pub(super) fn nothing(&self) -> Share<'_> {
        Share { pool: self, count: 0 }
    }

    /// A share of so much, if there is that much left.
    pub(super) fn take(&self, count: usize) -> Option<Share<'_>> {
        let mut share = self.nothing();
        share.grow_to(count).then_some(share)
    }
}

/// Given back when dropped, also by a panic.
pub(super) struct Share<'a> {
    pool: &'a Pool,
    count: usize,
}

impl Share<'_> {
    /// Takes more, if there is more left. Returns whether it did.
    pub(super) fn grow_to(&mut self, count: usize) -> bool {
        let more = count.saturating_sub(self.count);
        let taken = self.pool.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
            taken.checked_add(more).filter(|taken| *taken <= self.pool.max)
        });
        if taken.is_ok() {
            self.count += more;
        }
        taken.is_ok()
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.pool.taken.fetch_sub(self.count, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_no_larger_than_what_is_left_and_is_given_back() {
        let pool = Pool::new(10);

        let mut share = pool.take(6).expect("there is room");
        assert!(pool.take(5).is_none() && share.grow_to(10) && !share.grow_to(11));
        assert!(pool.take(1).is_none());
        drop(share);

        assert!(pool.take(10).is_some());
    }
}
