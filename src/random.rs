//! Random numbers for jitter and names; not for secrets. Their bits are those of a random UUID, which asks the operating system.

/// A number below `end`; zero where `end` is zero.
pub fn below(end: u64) -> u64 {
    bits() % end.max(1)
}

/// A number in `[0, 1)`.
pub fn unit() -> f64 {
    let bits = u32::try_from(bits() >> 32).unwrap_or(0); // OK: 32 bits are left
    f64::from(bits) / (f64::from(u32::MAX) + 1.0)
}

/// A number above zero that fits 53 bits, so that it passes unchanged through JSON.
pub fn id() -> i64 {
    i64::try_from(bits() >> 11).unwrap_or(1).max(1)
}

/// From now on the numbers of this thread follow from `seed`, so that a simulation can be repeated.
#[cfg(feature = "failpoints")]
pub fn seed(seed: u64) {
    SEEDED.set(Some(seed));
}

#[cfg(feature = "failpoints")]
thread_local! { static SEEDED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) } }

fn bits() -> u64 {
    #[cfg(feature = "failpoints")]
    if let Some(state) = SEEDED.get() {
        SEEDED.set(Some(state.wrapping_add(0x9E37_79B9_7F4A_7C15)));
        return mixed(state);
    }
    // The low half of a version 4 UUID has 62 random bits behind two fixed ones; the high half has others to fill these.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    low << 2 ^ high
}

/// `SplitMix64` (Steele, Lea and Flood, 2014).
#[cfg(feature = "failpoints")]
fn mixed(state: u64) -> u64 {
    let state = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ state >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ state >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_differ() {
        for _ in 0..1_000 {
            assert!(below(7) < 7 && (0.0..1.0).contains(&unit()) && (1..1 << 53).contains(&id()));
        }
        assert_eq!(below(0), 0);
        assert_ne!(id(), id());
        assert!((0..100).map(|_| below(7)).any(|number| number == 6));
    }
}
