//! The keys that Trilane uses in Redis, and nothing else there. Pure.

use crate::job::Lane;

/// The four keys under one prefix. Two services share one Redis database by different prefixes.
#[derive(Debug)]
pub(super) struct Keys {
    lanes: [String; 3],
    epoch: String,
}

impl Keys {
    /// `queue:jobs:high|medium|low` and `trilane:epoch`, each behind `prefix` as it is given: no separator is added.
    pub(super) fn new(prefix: &str) -> Keys {
        Keys {
            lanes: Lane::ALL.map(|lane| format!("{prefix}queue:jobs:{lane}")),
            epoch: format!("{prefix}trilane:epoch"),
        }
    }

    /// A list of [`crate::job::Seq`] in decimal digits: pushed on the left, popped on the right.
    pub(super) fn lane(&self, lane: Lane) -> &str {
        &self.lanes[lane.index()]
    }

    /// The lane whose list has this key.
    pub(super) fn lane_of(&self, key: &[u8]) -> Option<Lane> {
        Lane::ALL.into_iter().find(|lane| self.lane(*lane).as_bytes() == key)
    }

    /// A text that is there as long as Redis keeps its data; it never expires.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_the_original_system_behind_the_prefix() {
        assert_eq!(Keys::new("").lane(Lane::High), "queue:jobs:high");
        assert_eq!(Keys::new("a:").lane(Lane::Low), "a:queue:jobs:low");
        assert_eq!(Keys::new("a:").epoch(), "a:trilane:epoch");
    }

    #[test]
    fn a_key_leads_back_to_its_lane() {
        let keys = Keys::new("a:");

        for lane in Lane::ALL {
            assert_eq!(keys.lane_of(keys.lane(lane).as_bytes()), Some(lane));
        }
        assert_eq!(keys.lane_of(b"queue:jobs:high"), None);
    }
}
