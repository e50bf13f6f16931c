//! A process of Trilane whose handler does nothing but note that it ran.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use trilane::app::Service;
use trilane::config::Settings;
use trilane::handlers::{Attempt, Registry};
use trilane::logging;
use trilane::retry::Report;
use trilane::threads::signals;

use crate::http::{Connection, JOB_TYPE};
use crate::notes::{self, Writer};
use crate::proc::{Cpu, cpu_of, peak_memory_of};

/// The argument with which this program is such a process.
pub(crate) const ARGUMENT: &str = "replica";
/// Further: that it starts once the gate of the notes is open.
pub(crate) const GATED: &str = "gated";
const START_WAIT: Duration = Duration::from_mins(1);
const STOP_WAIT: Duration = Duration::from_secs(30);

type Error = Box<dyn std::error::Error>;

/// Is such a process, with the settings of the environment, until it is told to stop.
pub(crate) fn serve(is_gated: bool) -> Result<(), Error> {
    let settings = Settings::load()?;
    logging::init(&settings);
    let notes = Arc::new(Writer::from_environment()?);
    let mut registry = Registry::new();
    let handler_notes = Arc::clone(&notes);
    registry.register(JOB_TYPE, move |attempt: &Attempt<'_>| match handler_notes.ran(&attempt.job.payload) {
        Ok(()) => Report::Done,
        Err(error) => Report::permanent(error.to_string()),
    });
    let stop_asked = signals::listen()?;
    if is_gated {
        notes.ready()?;
        notes.wait_for_go();
    }
    let service = Service::start(&settings, registry)?;
    if !is_gated {
        notes.ready()?;
    }
    service.wait(&stop_asked);
    service.stop();
    Ok(())
}

/// A running process of this kind; stopped when dropped.
pub(crate) struct Replica {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
}

impl Replica {
    /// Starts one that leaves its notes in `folder`, and waits until it serves.
    pub(crate) fn start(folder: &Path, settings: &[(&str, String)]) -> Result<Replica, Error> {
        // Free now; nobody else takes ports at random in a bench.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = folder.join(format!("log.{}", address.port()));
        let mut command = Command::new(std::env::current_exe()?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TRILANE_") || name.starts_with("DB_")) {
            command.env_remove(name);
        }
        command
            .arg(ARGUMENT)
            .env_remove("REDIS_URL")
            .env(notes::FOLDER, folder)
            .env("TRILANE_HTTP_ADDR", address.to_string())
            .env("TRILANE_LOG", "warn")
            .envs(settings.iter().map(|(name, value)| (*name, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let mut replica = Replica { child: command.spawn()?, address, log };
        replica.wait_until_ready(folder)?;
        Ok(replica)
    }

    fn wait_until_ready(&mut self, folder: &Path) -> Result<(), Error> {
        let ready = folder.join(format!("ready.{}", self.child.id()));
        let deadline = Instant::now() + START_WAIT;
        while !ready.exists() {
            if self.child.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(format!("a replica did not start: {}", fs::read_to_string(&self.log)?).into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub(crate) fn connect(&self) -> io::Result<Connection> {
        Connection::open(self.address)
    }

    pub(crate) fn cpu(&self) -> Cpu {
        cpu_of(self.child.id())
    }

    /// The most memory it has held so far, in MiB.
    pub(crate) fn peak_memory_mib(&self) -> f64 {
        peak_memory_of(self.child.id())
    }

    /// What it has complained of.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: takes plain numbers; the child has not been waited for, so its number is its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + STOP_WAIT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                // It is asked to end in vain; there is nothing more to measure here.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
