//! Counters of this process, in the Prometheus text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// What this process has done since it started.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Jobs stored by calls to this process.
    pub submitted: AtomicU64,
    /// Jobs of calls that were told to come back.
    pub declined: AtomicU64,
    /// Jobs claimed.
    pub claimed: AtomicU64,
    /// Outcomes stored: completed.
    pub completed: AtomicU64,
    /// Outcomes stored: to be retried.
    pub retried: AtomicU64,
    /// Outcomes stored: given up.
    pub failed: AtomicU64,
    /// Outcomes refused, as their lease was lost or their job cancelled.
    pub refused: AtomicU64,
    /// Claims given back at a stop.
    pub released: AtomicU64,
    /// Jobs whose lease ran out under any replica, taken back by this one.
    pub expired: AtomicU64,
}

/// A value that goes up and down, or only up where its name ends with `_total`, with its help text.
pub struct Gauge {
    /// Name, with labels where it has any.
    pub name: String,
    /// Help text; the same for one name.
    pub help: &'static str,
    /// Value.
    pub value: u64,
}

impl Metrics {
    /// Adds to one of the counters.
    pub fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// All counters, and the given gauges.
    pub fn render(&self, gauges: &[Gauge]) -> String {
        let counters = [
            ("submitted", "Jobs stored by calls to this process.", &self.submitted),
            ("declined", "Jobs of calls that were told to come back, by 429 or 503.", &self.declined),
            ("claimed", "Jobs claimed.", &self.claimed),
            ("completed", "Outcomes stored: completed.", &self.completed),
            ("retried", "Outcomes stored: to be retried.", &self.retried),
            ("failed", "Outcomes stored: given up, with a dead letter.", &self.failed),
            ("refused", "Outcomes refused: the lease was lost or the job cancelled.", &self.refused),
            ("released", "Claims given back at a stop.", &self.released),
            ("expired", "Jobs taken back whose lease ran out.", &self.expired),
        ];
        let mut text = String::new();
        for (name, help, counter) in counters {
            let value = counter.load(Ordering::Relaxed);
            // OK: writing to a String cannot fail
            let _ = write!(
                text,
                "# HELP trilane_jobs_{name}_total {help}\n# TYPE trilane_jobs_{name}_total counter\ntrilane_jobs_{name}_total {value}\n"
            );
        }
        let mut last = "";
        for gauge in gauges {
            let family = gauge.name.split('{').next().unwrap_or_default();
            if family != last {
                let kind = if family.ends_with("_total") { "counter" } else { "gauge" };
                let _ = write!(text, "# HELP {family} {}\n# TYPE {family} {kind}\n", gauge.help); // OK: as above
                last = family;
            }
            let _ = writeln!(text, "{} {}", gauge.name, gauge.value); // OK: as above
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_written_with_their_help_once_a_family() {
        let metrics = Metrics::default();
        Metrics::add(&metrics.completed, 3);
        let gauge = |lane| Gauge { name: format!("trilane_lane_length{{lane=\"{lane}\"}}"), help: "Ids.", value: 2 };

        let text = metrics.render(&[gauge("high"), gauge("low")]);

        assert!(text.contains("\ntrilane_jobs_completed_total 3\n"));
        assert_eq!(text.matches("# TYPE trilane_lane_length gauge").count(), 1);
        assert!(text.ends_with("trilane_lane_length{lane=\"low\"} 2\n"));
    }
}
