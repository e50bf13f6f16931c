//! Whether a store is away: said once when it goes and once when it is back.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::wake::Wake;

/// The present state of a store, and when and by what its outage began.
pub struct Outage {
    name: &'static str,
    since: Mutex<Option<(Instant, String)>>,
    begun: Arc<Wake>,
}

impl Outage {
    /// Of the store that people call `name`; not away.
    pub fn new(name: &'static str) -> Outage {
        Outage { name, since: Mutex::new(None), begun: Arc::default() }
    }

    /// Called when an outage begins; who looks for its end waits on it.
    pub fn begun(&self) -> Arc<Wake> {
        Arc::clone(&self.begun)
    }

    /// It is away now; logs the first of these.
    pub fn begins(&self, error: &dyn Display) {
        let mut since = self.lock();
        if since.is_none() {
            *since = Some((Instant::now(), error.to_string()));
            self.begun.wake();
            log::warn!(error:% = error; "{} is away; Trilane goes on without it and looks for it", self.name);
        }
    }

    /// It answers; logs the first of these after an outage, with its length. Returns whether there was one.
    pub fn ends(&self) -> bool {
        let Some((since, _)) = self.lock().take() else { return false };
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
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
