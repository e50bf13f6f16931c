//! The replicas of a run: each on a port of its own, started again when it dies.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::redis_server::free_port;
use super::trilane::{Settings, wait_for};

/// From the death of a replica that nobody ordered to its next start.
const BACK_AFTER: Duration = Duration::from_millis(300);
/// How long a stop may take: the drain, and what comes after it.
const STOP_WAIT: Duration = Duration::from_mins(1);

pub(crate) struct Fleet {
    slots: Vec<Mutex<Slot>>,
    addresses: Vec<String>,
    settings: Settings,
    folder: PathBuf,
    starts: AtomicU32,
    /// Deaths by a job or at a fault point.
    pub(crate) deaths: AtomicUsize,
    surprises: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Slot {
    child: Option<Child>,
    /// What it waits for before it is started again.
    back_at: Option<Instant>,
    is_asked_to_stop: bool,
    /// Whether it was started with fault points.
    is_armed: bool,
}

impl Fleet {
    /// `count` replicas, started. Their logs are kept in `folder`.
    pub(crate) fn start(count: usize, settings: &Settings, folder: PathBuf) -> Fleet {
        let fleet = Fleet {
            slots: (0..count).map(|_| Mutex::default()).collect(),
            addresses: (0..count).map(|_| format!("127.0.0.1:{}", free_port())).collect(),
            settings: settings.clone(),
            folder,
            starts: AtomicU32::new(0),
            deaths: AtomicUsize::new(0),
            surprises: Mutex::default(),
        };
        for slot in 0..count {
            fleet.start_one(slot, None);
        }
        for slot in 0..count {
            wait_for(STOP_WAIT, "every replica serves", || fleet.is_ready(slot).then_some(()));
        }
        fleet
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn address(&self, slot: usize) -> &str {
        &self.addresses[slot]
    }

    /// Whether it answers, and its database does.
    pub(crate) fn is_ready(&self, slot: usize) -> bool {
        let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(Duration::from_secs(5)));
        let agent: ureq::Agent = config.build().into();
        agent.get(format!("http://{}/readyz", self.addresses[slot])).call().is_ok()
    }

    /// Starts a replica that does not run; `points` are its fault points.
    pub(crate) fn start_one(&self, slot: usize, points: Option<String>) {
        let mut state = self.lock(slot);
        state.back_at = None;
        if state.child.is_some() {
            return;
        }
        let mut settings = self
            .settings
            .clone()
            .with("TRILANE_HTTP_ADDR", &self.addresses[slot])
            .with("TRILANE_REPLICA_NAME", format!("replica-{slot}"));
        state.is_armed = points.is_some();
        if let Some(points) = points {
            settings = settings.with("FAILPOINTS", points);
        }
        let number = self.starts.fetch_add(1, Ordering::Relaxed);
        let log = File::create(self.folder.join(format!("replica-{slot}-{number:04}.log"))).expect("a log");
        let mut command = settings.command(&self.folder);
        state.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the program starts"));
        state.is_asked_to_stop = false;
    }

    /// SIGKILL. It stays down until it is started.
    pub(crate) fn kill(&self, slot: usize) {
        let mut state = self.lock(slot);
        if let Some(mut child) = state.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
        state.back_at = None;
    }

    /// Sends it `TERM`, `STOP` or `CONT`. After `TERM` it is started again once it has ended.
    pub(crate) fn signal(&self, slot: usize, name: &str) {
        let mut state = self.lock(slot);
        let Some(child) = &state.child else { return };
        if name == "TERM" && state.is_asked_to_stop {
            return; // A second signal means: leave at once.
        }
        // It may have ended meanwhile.
        let _ =
            Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).stderr(Stdio::null()).status();
        state.is_asked_to_stop |= name == "TERM";
    }

    /// Starts what has died, when its time has come. To be called again and again.
    pub(crate) fn mind(&self) {
        for slot in 0..self.len() {
            let mut state = self.lock(slot);
            if let Some(status) = state.child.as_mut().and_then(|child| child.try_wait().expect("its state")) {
                state.child = None;
                state.back_at = Some(Instant::now() + BACK_AFTER);
                if !state.is_asked_to_stop {
                    self.deaths.fetch_add(1, Ordering::Relaxed);
                }
                let is_expected = if state.is_asked_to_stop {
                    status.success() || status.signal() == Some(9)
                } else {
                    status.signal() == Some(9)
                };
                if !is_expected {
                    let what = format!("replica {slot} ended with {status}, asked: {}", state.is_asked_to_stop);
                    self.surprises.lock().expect("no panic").push(what);
                }
            }
            let is_time = state.back_at.is_some_and(|at| Instant::now() >= at);
            drop(state);
            if is_time {
                self.start_one(slot, None);
            }
        }
    }

    /// Brings every replica up, without fault points.
    pub(crate) fn heal(&self) {
        for slot in 0..self.len() {
            self.signal(slot, "CONT");
            let is_armed = self.lock(slot).is_armed;
            if is_armed {
                self.kill(slot);
            }
            self.start_one(slot, None);
        }
    }

    /// Stops all of them in order. Returns what was not as it should be since the start.
    pub(crate) fn stop(&self) -> Vec<String> {
        for slot in 0..self.len() {
            self.signal(slot, "TERM");
        }
        for slot in 0..self.len() {
            let status = wait_for(STOP_WAIT, "a replica stops", || {
                let mut state = self.lock(slot);
                let Some(child) = &mut state.child else { return Some(None) };
                child.try_wait().expect("its state").map(Some)
            });
            if status.is_some_and(|status| !status.success()) {
                let what = format!("replica {slot} ended with {status:?} at the last stop");
                self.surprises.lock().expect("no panic").push(what);
            }
            self.lock(slot).child = None;
        }
        std::mem::take(&mut self.surprises.lock().expect("no panic"))
    }

    /// Log lines of errors and panics, of which no fault may bring any.
    pub(crate) fn errors(&self) -> Vec<String> {
        let files = fs::read_dir(&self.folder).expect("the folder").map_while(Result::ok);
        let logs = files.filter(|file| file.file_name().to_string_lossy().starts_with("replica-"));
        let texts = logs.map(|log| fs::read_to_string(log.path()).unwrap_or_default());
        let is_error = |line: &&str| line.contains(" ERROR ") || line.contains("panicked at");
        texts.flat_map(|text| text.lines().filter(is_error).map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn lock(&self, slot: usize) -> std::sync::MutexGuard<'_, Slot> {
        self.slots[slot].lock().expect("no panic")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for slot in 0..self.len() {
            self.kill(slot);
        }
    }
}
