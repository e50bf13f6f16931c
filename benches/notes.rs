//! What the handler of a measured replica leaves behind, in a folder in memory: a byte for each job, or its number and the moment it began.
//!
//! The files have the names that the harness of shared comparisons reads, so that one replica serves both: `j.<pid>`, `first.<pid>`,
//! `ready.<pid>`, `go`. Times are of `CLOCK_MONOTONIC` in nanoseconds, which all processes of a machine share.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

/// Where the files are.
pub(crate) const FOLDER: &str = "PEERS_RUN";
/// What is noted: `latency` for numbers and moments, else bytes.
pub(crate) const MODE: &str = "PEERS_MODE";
pub(crate) const LATENCY: &str = "latency";

/// Nanoseconds of a clock that every process here shares.
pub(crate) fn now_ns() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The handler's side.
pub(crate) struct Writer {
    folder: PathBuf,
    notes_moments: bool,
    file: OnceLock<File>,
}

#[derive(Deserialize)]
struct Payload {
    n: usize,
}

impl Writer {
    pub(crate) fn from_environment() -> io::Result<Writer> {
        let folder = std::env::var_os(FOLDER).ok_or_else(|| io::Error::other(format!("{FOLDER} is not set")))?;
        let notes_moments = std::env::var(MODE).is_ok_and(|mode| mode == LATENCY);
        Ok(Writer { folder: folder.into(), notes_moments, file: OnceLock::new() })
    }

    /// Says that this process is set up.
    pub(crate) fn ready(&self) -> io::Result<()> {
        fs::write(self.folder.join(format!("ready.{}", std::process::id())), "")
    }

    /// Waits until all processes of a comparison may begin.
    pub(crate) fn wait_for_go(&self) {
        while !self.folder.join("go").exists() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A handler's whole work.
    pub(crate) fn ran(&self, payload: &str) -> io::Result<()> {
        let at = now_ns();
        let mut file = match self.file.get() {
            Some(file) => file,
            None => self.open(at)?,
        };
        if self.notes_moments {
            let payload: Payload = serde_json::from_str(payload)?;
            // One write: workers share the file.
            file.write_all(format!("{} {at}\n", payload.n).as_bytes())
        } else {
            file.write_all(b".")
        }
    }

    fn open(&self, at: i64) -> io::Result<&File> {
        let id = std::process::id();
        let file = OpenOptions::new().create(true).append(true).open(self.folder.join(format!("j.{id}")))?;
        if self.file.set(file).is_ok() {
            fs::write(self.folder.join(format!("first.{id}")), at.to_string())?;
        }
        self.file.get().ok_or_else(|| io::Error::other("the file was just set"))
    }
}

/// How many handlers have run: in drain mode each has left a byte.
pub(crate) fn count(folder: &Path) -> u64 {
    files(folder, "j.").map(|path| fs::metadata(path).map_or(0, |file| file.len())).sum()
}

/// When the first handler began.
pub(crate) fn first(folder: &Path) -> Option<i64> {
    files(folder, "first.").filter_map(|path| fs::read_to_string(path).ok()?.parse().ok()).min()
}

/// When the handler of each job began, in latency mode.
pub(crate) fn moments(folder: &Path) -> HashMap<usize, i64> {
    let mut moments = HashMap::new();
    for text in files(folder, "j.").filter_map(|path| fs::read_to_string(path).ok()) {
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let (n, at) = line.trim_end().split_once(' ').unwrap_or_default();
            if let (Ok(n), Ok(at)) = (n.parse(), at.parse()) {
                moments.entry(n).or_insert(at);
            }
        }
    }
    moments
}

fn files(folder: &Path, prefix: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
    entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(|entry| entry.path())
}
