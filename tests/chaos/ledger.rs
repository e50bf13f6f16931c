//! What the checker reads besides the tables: the log of the clients and that of the handlers; and the handlers that write it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::checker::history::{History, Line, Said};
use super::checker::judge::{Run, Verdict, judge, listed};
use super::checker::read;
use super::upstream::{Call, Reply, Upstream};

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("in our time")
}

pub(crate) struct Ledger {
    folder: PathBuf,
    clients: Mutex<File>,
    next: AtomicU64,
    upstream: Upstream,
}

const CLIENTS: &str = "clients.log";
const EFFECTS: &str = "effects.log";
const GATE: &str = "gate";
const HELD: &str = "held";
const TOLD: &str = "told.log";

impl Ledger {
    /// Keeps both logs in `folder`.
    pub(crate) fn open(folder: &Path) -> Ledger {
        let clients = Mutex::new(File::create(folder.join(CLIENTS)).expect("a log"));
        let effects = folder.join(EFFECTS);
        let log = Mutex::new(OpenOptions::new().create(true).append(true).open(&effects).expect("a log"));
        let held = folder.join(HELD);
        let upstream = Upstream::start(move |call| serve(call, &log, &held));
        Ledger { folder: folder.to_owned(), clients, next: AtomicU64::new(0), upstream }
    }

    /// Written and flushed when it returns.
    pub(crate) fn say(&self, said: Said) {
        let line = serde_json::to_string(&Line { at: now_ms(), said }).expect("it can be written");
        let mut file = self.clients.lock().expect("no panic");
        file.write_all(format!("{line}\n").as_bytes()).expect("the log is written");
    }

    pub(crate) fn new_mark(&self) -> String {
        format!("m-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A job of this type under a new mark.
    pub(crate) fn job(&self, job_type: &str) -> Value {
        json!({ "type": job_type, "payload": { "mark": self.new_mark() }, "max_retries": 50 })
    }

    /// The handlers that write down what they do:
    ///
    /// | type | what it does |
    /// |---|---|
    /// | `quick` | is done at once |
    /// | `slow` | takes 0.3 s |
    /// | `flaky` | fails at every attempt but each third |
    /// | `late` | fails at its first attempt |
    /// | `hopeless` | always fails |
    /// | `shell` | a command, takes 0.05 s |
    /// | `gate` | a command, goes on until the gate is opened; told to stop, it writes that down |
    /// | `held` | is done once it is let go |
    /// | `killer` | kills the replica that runs it |
    pub(crate) fn handlers(&self) -> String {
        let http = ["quick", "slow", "flaky", "late", "hopeless", "held"]
            .map(|name| format!("[{name}]\nhttp = {:?}\n", self.upstream.url(&format!("/{name}"))));
        let folder = self.folder.display();
        let write = |deed: &str| {
            format!("echo \"{deed} $TRILANE_JOB_ID $TRILANE_ATTEMPT $TRILANE_TOKEN\" >> {folder}/{EFFECTS}")
        };
        let (start, done) = (write("start"), write("done"));
        let shell = format!("{start}; sleep 0.05; {done}");
        let told = format!("echo $TRILANE_JOB_ID $TRILANE_TOKEN >> {folder}/{TOLD}; exit 75");
        let gate = format!("trap '{told}' TERM; {start}; while [ -e {folder}/{GATE} ]; do sleep 0.05; done; {done}");
        // Its parent, if that is what it is taken for.
        let killer = format!("{start}; [ \"$(cat /proc/$PPID/comm)\" = trilane ] && kill -KILL $PPID; exit 75");
        let commands = [("shell", shell), ("gate", gate), ("killer", killer)]
            .map(|(name, script)| format!("[{name}]\ncommand = [\"sh\", \"-c\", {script:?}]\n"));
        let path = self.folder.join("handlers.toml");
        std::fs::write(&path, [http.concat(), commands.concat()].concat()).expect("the file is written");
        path.display().to_string()
    }

    /// From now on jobs of the types `gate` and `held` go on.
    pub(crate) fn close_gates(&self) {
        for gate in [GATE, HELD] {
            File::create(self.folder.join(gate)).expect("a file");
        }
    }

    pub(crate) fn open_gate(&self) {
        std::fs::remove_file(self.folder.join(GATE)).expect("the gate was closed");
    }

    pub(crate) fn let_go(&self) {
        std::fs::remove_file(self.folder.join(HELD)).expect("they were held");
    }

    /// The tokens under which jobs of the type `gate` were told to stop.
    pub(crate) fn told(&self) -> Vec<i64> {
        let text = std::fs::read_to_string(self.folder.join(TOLD)).unwrap_or_default();
        text.lines().map(|line| line.split(' ').nth(1).expect("two words").parse().expect("a token")).collect()
    }

    /// What the run left behind.
    pub(crate) fn history(&self, connection_string: &str) -> History {
        read::history(connection_string, &self.folder.join(CLIENTS), &self.folder.join(EFFECTS))
            .expect("the checker can read it")
    }

    /// Judges the run; fails the test if it broke a rule.
    pub(crate) fn check(&self, connection_string: &str, run: Run) -> Verdict {
        let verdict = judge(&self.history(connection_string), run);
        assert!(verdict.violations.is_empty(), "the checker refuses the run: {}", listed(&verdict.violations));
        verdict
    }
}

fn serve(call: &Call, log: &Mutex<File>, held: &Path) -> Reply {
    let write = |deed: &str| {
        let line = format!("{deed} {} {} {}\n", call.job, call.attempt, call.token);
        log.lock().expect("no panic").write_all(line.as_bytes()).expect("the log is written");
    };
    write("start");
    let fails = match call.path.as_str() {
        "/slow" => {
            thread::sleep(Duration::from_millis(300));
            false
        }
        "/held" => {
            while held.exists() {
                thread::sleep(Duration::from_millis(10));
            }
            false
        }
        "/flaky" => !call.attempt.is_multiple_of(3),
        "/late" => call.attempt == 1,
        "/hopeless" => true,
        _ => false,
    };
    write(if fails { "failed" } else { "done" });
    (if fails { 503 } else { 200 }, None)
}
