//! What follows from one attempt: complete, retry after a delay, or bury. Pure; the random number comes in.

use std::time::Duration;

use crate::job::{REASON_CHARS_MAX, cut};

/// What a handler says of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The work is done.
    Done,
    /// It failed, and another attempt may succeed.
    Retry {
        /// What went wrong, for people.
        reason: String,
        /// Wait this long before the next attempt, up to [`DELAY_MAX`]; the retry policy decides where `None`.
        delay: Option<Duration>,
    },
    /// It failed, and no other attempt can succeed.
    Permanent {
        /// What went wrong, for people.
        reason: String,
    },
}

impl Report {
    /// A failed attempt, to be retried when the policy says.
    pub fn retry(reason: impl Into<String>) -> Report {
        Report::Retry { reason: reason.into(), delay: None }
    }

    /// A failure that no other attempt can mend.
    pub fn permanent(reason: impl Into<String>) -> Report {
        Report::Permanent { reason: reason.into() }
    }
}

/// The longest delay that a handler may ask for: seven days.
pub const DELAY_MAX: Duration = Duration::from_hours(7 * 24);

/// How long to wait between attempts: after the n-th failure a random time from zero to `base` × 2ⁿ⁻¹, at most `cap`.
///
/// Full-range jitter, after Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015): of the usual forms it
/// spreads a crowd of failed jobs the widest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Upper end of the first delay.
    pub base: Duration,
    /// Upper end of every delay.
    pub cap: Duration,
}

impl RetryPolicy {
    /// The delay after failure number `failures` (1 for the first); `random` lies in `[0, 1)`.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31); // OK: 2³¹ fits u32
        let range = self.base.saturating_mul(1 << doublings).min(self.cap);
        range.mul_f64(random.clamp(0.0, 1.0))
    }
}

/// What becomes of a job after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `completed`.
    Complete,
    /// `retrying`, due after `delay`.
    Retry {
        /// From the moment the database stores the outcome.
        delay: Duration,
        /// What went wrong, cut to [`REASON_CHARS_MAX`].
        error: String,
    },
    /// `failed`, with a dead letter.
    Bury {
        /// Why, cut to [`REASON_CHARS_MAX`].
        reason: String,
    },
}

impl Verdict {
    /// What happens to the job, for logs.
    pub fn verb(&self) -> &'static str {
        match self {
            Verdict::Complete => "job completed",
            Verdict::Retry { .. } => "job failed and will be retried",
            Verdict::Bury { .. } => "job failed and is buried",
        }
    }
}

/// Decides what becomes of a job that had failed `retry_count` times before this attempt.
pub fn judge(report: Report, retry_count: u32, max_retries: u32, policy: &RetryPolicy, random: f64) -> Verdict {
    match report {
        Report::Done => Verdict::Complete,
        Report::Permanent { reason } => Verdict::Bury { reason: cut(&reason, REASON_CHARS_MAX) },
        Report::Retry { reason, .. } if retry_count >= max_retries => {
            let attempts = retry_count.saturating_add(1);
            Verdict::Bury { reason: cut(&format!("gave up after attempt {attempts}: {reason}"), REASON_CHARS_MAX) }
        }
        Report::Retry { reason, delay } => Verdict::Retry {
            delay: delay
                .map_or_else(|| policy.delay(retry_count.saturating_add(1), random), |delay| delay.min(DELAY_MAX)),
            error: cut(&reason, REASON_CHARS_MAX),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy { base: Duration::from_secs(10), cap: Duration::from_mins(1) };

    #[test]
    fn the_delay_doubles_up_to_the_cap_and_starts_at_zero() {
        let widest: Vec<u64> = (1..=5).map(|failures| POLICY.delay(failures, 1.0).as_secs()).collect();

        assert_eq!(widest, [10, 20, 40, 60, 60]);
        assert_eq!(POLICY.delay(3, 0.0), Duration::ZERO);
        assert_eq!(POLICY.delay(u32::MAX, 0.5), Duration::from_secs(30));
    }

    #[test]
    fn a_job_gets_one_attempt_more_than_its_retries() {
        let verdict = |retry_count| judge(Report::retry("no"), retry_count, 2, &POLICY, 0.5);

        assert!(matches!(verdict(0), Verdict::Retry { .. }));
        assert!(matches!(verdict(1), Verdict::Retry { .. }));
        assert_eq!(verdict(2), Verdict::Bury { reason: "gave up after attempt 3: no".into() });
    }

    #[test]
    fn a_permanent_failure_is_buried_whatever_retries_are_left() {
        let verdict = judge(Report::permanent("bad address"), 0, 100, &POLICY, 0.5);

        assert_eq!(verdict, Verdict::Bury { reason: "bad address".into() });
    }

    #[test]
    fn the_delay_that_a_handler_asks_for_is_kept_up_to_a_week() {
        let ask = |delay| judge(Report::Retry { reason: "later".into(), delay: Some(delay) }, 0, 1, &POLICY, 0.0);

        assert_eq!(
            ask(Duration::from_secs(5)),
            Verdict::Retry { delay: Duration::from_secs(5), error: "later".into() }
        );
        assert_eq!(ask(Duration::MAX), Verdict::Retry { delay: DELAY_MAX, error: "later".into() });
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_range_and_grows_with_the_failures(
            base_ms in 0u64..100_000_000, cap_ms in 0u64..604_800_000, failures: u32, random in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy { base: Duration::from_millis(base_ms), cap: Duration::from_millis(cap_ms) };

            let delay = policy.delay(failures, random);

            let doubled = u128::from(base_ms) << failures.saturating_sub(1).min(31);
            prop_assert!(delay <= policy.cap && delay.as_millis() <= doubled);
            prop_assert!(policy.delay(failures.saturating_add(1), random) >= delay);
            prop_assert_eq!(policy.delay(failures, 0.0), Duration::ZERO);
        }

        #[test]
        fn a_verdict_counts_attempts_whatever_the_row_says(
            retry_count: u32, max_retries: u32, asked in proptest::option::of(0u64..10_000_000_000), reason in ".{0,30}",
        ) {
            let delay = asked.map(Duration::from_millis);
            let verdict = judge(Report::Retry { reason, delay }, retry_count, max_retries, &POLICY, 0.999);

            match verdict {
                Verdict::Retry { delay, .. } => {
                    prop_assert!(retry_count < max_retries);
                    let longest = asked.map_or(POLICY.cap, |_| DELAY_MAX);
                    prop_assert!(delay <= longest);
                }
                Verdict::Bury { reason } => {
                    prop_assert!(retry_count >= max_retries && reason.starts_with("gave up after attempt "));
                }
                Verdict::Complete => prop_assert!(false, "it failed"),
            }
        }
    }
}
