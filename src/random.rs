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

fn bits() -> u64 {
    // The low half of a version 4 UUID has 62 random bits behind two fixed ones; the high half has others to fill these.
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    low << 2 ^ high
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
