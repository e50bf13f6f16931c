//! signals: turns SIGTERM and SIGINT into a stop.
//!
//! 1. The first asks for a stop.
//! 2. The second ends the process at once, and the commands of its jobs with it.
//!
//! A limit on the size of files (`ulimit -f`) is to be an error of a write, not the end of the process: SIGXFSZ is ignored.

use std::io;

use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::spawn;
use crate::handlers;

/// Exit code after a second signal, as shells give it for SIGINT.
const EXIT_AT_ONCE: i32 = 130;

/// Listens from now on. The receiver gets one message, at the first signal.
///
/// # Errors
/// If the handlers cannot be set, or the system has no thread to give.
pub fn listen() -> io::Result<Receiver<()>> {
    // SAFETY: it sets no handler, so there is no code to be safe.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, receiver) = bounded(1);
    spawn("signals", move || {
        for (count, signal) in signals.forever().enumerate() {
            if count == 0 {
                log::info!(signal = signal; "stop asked for; a second signal leaves at once");
                let _ = sender.try_send(()); // OK: nobody listens when the service stops for another reason
            } else {
                log::warn!(signal = signal; "left at once by a second signal");
                handlers::abandon_all();
                std::process::exit(EXIT_AT_ONCE);
            }
        }
    })?;
    Ok(receiver)
}
