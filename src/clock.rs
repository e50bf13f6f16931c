//! Points in time as Trilane stores and shows them: UTC, to the millisecond.
//!
//! Nothing here reads a clock for a decision. Times that are kept come from the database; waits are measured with
//! [`std::time::Instant`], so a replica whose clock is wrong changes nothing.

use std::fmt;
use std::str::FromStr;

/// A point in time: milliseconds since 1970-01-01T00:00:00Z, from the year 1 to the end of 9999 less the last day (`datetime2` holds all
/// of these, and so does every time zone's way to write them).
///
/// Reads RFC 3339 (`2026-11-23T14:45:00.250+01:00`) and prints it in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// What is wrong with a text that should be a [`Timestamp`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a time as in RFC 3339 between the years 1 and 9999, such as 2026-11-23T14:45:00Z")]
pub struct NotATimestamp;

impl Timestamp {
    /// 0001-01-01T00:00:00Z.
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000);
    /// 9999-12-30T22:00:00.000Z.
    pub const MAX: Timestamp = Timestamp(253_402_207_200_000);

    /// The point `millis` after 1970-01-01T00:00:00Z, moved to the nearest end of the range where it lies outside.
    pub fn from_millis(millis: i64) -> Timestamp {
        Timestamp(millis.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Milliseconds since 1970-01-01T00:00:00Z; negative before it.
    pub fn as_millis(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => Err(fmt::Error), // OK: the range of jiff holds MIN..=MAX
        }
    }
}

impl FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time: jiff::Timestamp = text.parse().map_err(|_| NotATimestamp)?;
        let millis = time.as_millisecond();
        if (Self::MIN.0..=Self::MAX.0).contains(&millis) {
            Ok(Timestamp(millis))
        } else {
            Err(NotATimestamp)
        }
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_shown_in_utc_with_three_decimals() {
        let time: Timestamp = "2026-11-23T14:45:00.25+01:00".parse().expect("valid");

        assert_eq!(time.to_string(), "2026-11-23T13:45:00.250Z");
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for millis in [Timestamp::MIN.0, -1, 0, 1_795_444_321_007, Timestamp::MAX.0] {
            let time = Timestamp::from_millis(millis);

            assert_eq!(time.to_string().parse(), Ok(time));
        }
    }

    #[test]
    fn a_date_without_a_zone_is_refused() {
        assert_eq!("2026-11-23 14:45:00".parse::<Timestamp>(), Err(NotATimestamp));
    }

    proptest! {
        #[test]
        fn every_time_is_shown_so_that_it_reads_back(millis: i64) {
            let time = Timestamp::from_millis(millis);

            prop_assert_eq!(time.to_string().parse(), Ok(time));
            prop_assert!((Timestamp::MIN..=Timestamp::MAX).contains(&time));
        }

        #[test]
        fn any_text_is_a_time_or_refused(text in "\\PC{0,30}|[0-9]{1,5}-[0-9]{2}-[0-9]{2}T[0-9:.]{2,12}(Z|[+-][0-9:]{2,6})") {
            if let Ok(time) = text.parse::<Timestamp>() {
                prop_assert!((Timestamp::MIN..=Timestamp::MAX).contains(&time));
            }
        }
    }
}
