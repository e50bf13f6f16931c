//! What goes wrong inside a step: at a fault point (src/fault.rs) the replica crashes, or a call of its store fails. Each thread simulates a world of
//! its own, so what is armed is the thread's.

use std::cell::Cell;
use std::panic::resume_unwind;

use crate::model::Actor;
use crate::rng::Rng;

/// The fault points at which a crash is simulated.
const POINTS: [&str; 8] = [
    "submit.committed",
    "submit_claimed.committed",
    "claim.popped",
    "claim.claimed",
    "finish.in_transaction",
    "finish.committed",
    "tick.dispatched",
    "timers.due",
];
/// Those at which a call of the store fails, and how: nothing is done, all is undone, all is stored.
pub(crate) const BEGIN: &str = "store.begin";
pub(crate) const COMMIT: &str = "store.commit";
pub(crate) const COMMITTED: &str = "store.committed";
const FAILURES: [(usize, (&str, &str)); 5] = [
    (1, (BEGIN, "unavailable")),
    (1, (BEGIN, "contended")),
    (1, (BEGIN, "timed out")),
    (2, (COMMIT, "unconfirmed")),
    (4, (COMMITTED, "unconfirmed")),
];

type Armed = Option<(&'static str, &'static str, usize)>;

thread_local! {
    static CRASH: Cell<Option<(&'static str, u32)>> = const { Cell::new(None) };
    static FAILURE: Cell<Armed> = const { Cell::new(None) };
    static IS_AWAY: Cell<bool> = const { Cell::new(false) };
    static FAILED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// A simulated crash.
pub(crate) struct Crash(pub(crate) &'static str);

/// Has the fault points of this process call the world of their thread.
pub(crate) fn arm_fault_points() {
    for point in POINTS {
        fail::cfg_callback(point, move || pass(point)).expect("a fault point takes a callback");
    }
    for point in [BEGIN, COMMIT, COMMITTED] {
        fail::cfg_callback(point, move || call(point)).expect("a fault point takes a callback");
    }
}

/// Those that `actor` may pass.
fn points_of(actor: Actor) -> &'static [&'static str] {
    match actor {
        Actor::Submitter => &["submit.committed", "submit_claimed.committed"],
        Actor::Feeder(_) => &["claim.popped", "claim.claimed"],
        Actor::Finisher => &["finish.in_transaction", "finish.committed"],
        Actor::Scheduler => &["finish.in_transaction", "tick.dispatched", "timers.due"],
        Actor::Cancel(_) | Actor::Revive(_) | Actor::Keeper | Actor::Stop(_) => &[],
    }
}

/// Decides what goes wrong in what `actor` does next, while the database `is_away` or not.
pub(crate) fn arm(actor: Actor, is_away: bool, rng: &mut Rng) {
    let points = points_of(actor);
    if !points.is_empty() && rng.chance(12) {
        CRASH.set(Some((rng.pick(points), u32::from(rng.chance(20)))));
    }
    if rng.chance(10) {
        let (point, how) = rng.weighted(&FAILURES);
        FAILURE.set(Some((point, how, rng.weighted(&[(3, 0), (1, 1), (1, 2), (1, 4)]))));
    }
    IS_AWAY.set(is_away);
}

/// From now on nothing goes wrong. Returns where a call of the store has failed, if one has.
pub(crate) fn disarm() -> Option<&'static str> {
    CRASH.set(None);
    FAILURE.set(None);
    IS_AWAY.set(false);
    FAILED.take()
}

fn pass(point: &'static str) {
    match CRASH.get() {
        Some((armed, 0)) if armed == point => {
            CRASH.set(None);
            resume_unwind(Box::new(Crash(point)));
        }
        Some((armed, left)) if armed == point => CRASH.set(Some((armed, left - 1))),
        _ => {}
    }
}

fn call(point: &'static str) {
    let how = match FAILURE.get() {
        _ if IS_AWAY.get() && point == BEGIN => "unavailable",
        Some((armed, how, 0)) if armed == point => {
            FAILURE.set(None);
            how
        }
        Some((armed, how, left)) if armed == point => return FAILURE.set(Some((armed, how, left - 1))),
        _ => return,
    };
    FAILED.set(Some(point));
    trilane::fault::fail_with(how);
}
