//! deadlines: ends attempts whose time limit is over.
//!
//! 1. Sets the stop flag of an attempt at its deadline.
//! 2. If the handler has not returned some time after that, gives the attempt up and puts a new worker in the place of its own: a thread
//!    cannot be killed, but the number of workers stays what it was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Duty;
use super::worker::Workers;
use crate::store::StoreError;
use crate::wake::left_until;

/// How long a handler may take to return after its deadline: a command is killed within 7 s of it.
const GRACE: Duration = Duration::from_secs(10);
/// How often the table of attempts is read at least: no attempt is told later than this.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The duty.
pub struct Deadlines {
    workers: Arc<Workers>,
}

impl Deadlines {
    /// For these workers.
    pub fn new(workers: Arc<Workers>) -> Deadlines {
        Deadlines { workers }
    }
}

impl Duty for Deadlines {
    const NAME: &'static str = "deadlines";

    fn round(&mut self) -> Result<Duration, StoreError> {
        let next = self.workers.enforce_deadlines(Instant::now(), GRACE);
        Ok(next.map_or(LOOK_EVERY, |next| left_until(next).min(LOOK_EVERY)))
    }
}
