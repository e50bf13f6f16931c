//! Whether a store is away: said once when it goes and once when it is back.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::lock;
use crate::wake::Wake;

/// The present state of a store, and when and by what its outage began.
pub struct Outage {
    name: &'static str,
    since: Mutex<Option<(Instant, String)>>,
    ended: Mutex<Option<Instant>>,
    settling: Duration,
    begun: Arc<Wake>,
}

impl Outage {
    /// Of the store that people call `name`; not away.
    pub fn new(name: &'static str) -> Outage {
        Outage {
            name,
            since: Mutex::new(None),
            ended: Mutex::new(None),
            settling: Duration::ZERO,
            begun: Arc::default(),
        }
    }

    /// The same, but for so long after the end of an outage no error begins another: it is of a call that had begun before. What is truly
    /// away is met again.
    #[must_use]
    pub fn settling(mut self, settling: Duration) -> Outage {
        self.settling = settling;
        self
    }

    /// Called when an outage begins; who looks for its end waits on it.
    pub fn begun(&self) -> Arc<Wake> {
        Arc::clone(&self.begun)
    }

    /// It is away now; logs the first of these.
    pub fn begins(&self, error: &dyn Display) {
        let mut since = self.lock();
        let is_straggler = lock(&self.ended).is_some_and(|ended| ended.elapsed() < self.settling);
        if since.is_none() && !is_straggler {
            *since = Some((Instant::now(), error.to_string()));
            self.begun.wake();
            log::warn!(error:% = error; "{} is away; Trilane goes on without it and looks for it", self.name);
        }
    }

    /// It answers; logs the first of these after an outage, with its length. Returns whether there was one.
    pub fn ends(&self) -> bool {
        let Some((since, _)) = self.lock().take() else { return false };
        *lock(&self.ended) = Some(Instant::now());
        let seconds = since.elapsed().as_secs_f64();
        log::info!(outage_seconds:? = (seconds * 1000.0).round() / 1000.0; "{} is back", self.name);
        true
    }

    /// Whether it is away.
    pub fn is_on(&self) -> bool {
        self.lock().is_some()
    }

    /// What the present outage began with.
    pub fn error(&self) -> Option<String> {
        self.lock().as_ref().map(|(_, error)| error.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        lock(&self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_call_that_began_before_the_end_begins_no_other_outage() {
        let outage = Outage::new("the database").settling(Duration::from_mins(1));
        outage.begins(&"cut");
        assert!(outage.is_on() && outage.ends());

        outage.begins(&"a call that had waited meanwhile");
        assert!(!outage.is_on());

        let outage = Outage::new("Redis");
        outage.begins(&"cut");
        assert!(outage.ends());
        outage.begins(&"cut again");
        assert!(outage.is_on());
    }
}
