//! The real program as a process of a test's own, and a client that talks to it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take that takes a moment on a quiet machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A setting of a test: another program than the one just built.
pub(crate) const PROGRAM: &str = "TRILANE_TEST_PROGRAM";
/// How much of a log is shown when a test fails.
const LOG_LINES_SHOWN: usize = 60;

/// Looks until it is so; fails the test if it is not within `limit`.
pub(crate) fn wait_until(limit: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    wait_for(limit, what, || is_so().then_some(()));
}

/// Looks until there is something, and returns it; fails the test if there is nothing within `limit`.
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// The settings of one process, which gets no others.
#[derive(Clone, Default)]
pub(crate) struct Settings(BTreeMap<String, String>);

impl Settings {
    pub(crate) fn with(mut self, name: &str, value: impl Display) -> Settings {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// The program with these settings, in `folder`, where it finds no `.env`.
    pub(crate) fn command(&self, folder: &Path) -> Command {
        let program = self.0.get(PROGRAM).map_or(env!("CARGO_BIN_EXE_trilane"), String::as_str);
        let mut command = Command::new(program);
        let concerns = |name: &str| name.starts_with("TRILANE_") || name.starts_with("DB_") || name == "REDIS_URL";
        for (name, _) in std::env::vars().filter(|(name, _)| concerns(name)) {
            command.env_remove(name);
        }
        command.envs(&self.0).env_remove(PROGRAM).current_dir(folder).stdin(Stdio::null());
        command
    }

    /// Runs the program with arguments to its end.
    pub(crate) fn run(&self, folder: &Path, arguments: &[&str]) -> Ended {
        let output = self.command(folder).args(arguments).output().expect("the program can be run");
        Ended::of(&output)
    }
}

/// What the program left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    fn of(output: &Output) -> Ended {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// A running process. When dropped it is killed, and if the test fails its log is shown.
pub(crate) struct Trilane {
    child: Child,
    log: PathBuf,
    address: String,
    agent: ureq::Agent,
}

impl Trilane {
    /// Starts it on a free port, and waits until it serves. Its log is kept in `folder`.
    pub(crate) fn start(folder: &Path, settings: &Settings) -> Trilane {
        let log = folder.join(format!("{}.log", uuid::Uuid::new_v4()));
        let file = File::create(&log).expect("a file for the log");
        let settings = settings.clone().with("TRILANE_HTTP_ADDR", "127.0.0.1:0");
        let child = settings.command(folder).stdout(Stdio::null()).stderr(file).spawn().expect("the program starts");
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(SOON))
            .build()
            .into();
        let mut process = Trilane { child, log, address: String::new(), agent };
        process.address = wait_for(SOON, "the process serves", || {
            assert!(process.exit_code().is_none(), "the process ended at its start");
            process.served_address()
        });
        process
    }

    fn served_address(&self) -> Option<String> {
        let lines = BufReader::new(File::open(&self.log).expect("the log")).lines();
        let serving =
            lines.map_while(Result::ok).find(|line| line.contains(" serves ") && line.contains(" replica="))?;
        serving.split(' ').find_map(|field| field.strip_prefix("address=")).map(str::to_owned)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }

    pub(crate) fn has_logged(&self, text: &str) -> bool {
        self.log().contains(text)
    }

    // ---- its life ----

    /// Sends it `TERM`, `INT`, `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().expect("kill is there");
        assert!(status.success(), "cannot signal the process");
    }

    /// At once, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Waits until it has ended by itself. Returns its exit code.
    pub(crate) fn wait_for_exit(&mut self, limit: Duration) -> i32 {
        wait_for(limit, "the process ends", || self.exit_code())
    }

    /// Its exit code, or -1 after a signal; `None` while it runs.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("its state")?;
        Some(status.code().unwrap_or(-1))
    }

    // ---- what it costs the machine ----

    /// Seconds of a core that it has used.
    pub(crate) fn core_seconds(&self) -> f64 {
        /// Ticks in a second: fixed in Linux.
        const CLOCK_TICKS_A_SECOND: f64 = 100.0;
        let stat = self.proc("stat");
        let behind_name = stat.rsplit(')').next().expect("the name of the program is in brackets");
        let ticks =
            behind_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("a number"));
        ticks.sum::<f64>() / CLOCK_TICKS_A_SECOND
    }

    /// Its resident memory.
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = self.proc("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells");
        resident.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Its open files, sockets and pipes.
    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// The names of its threads, sorted.
    pub(crate) fn threads(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").map_while(Result::ok);
        // A thread may end meanwhile.
        let mut names: Vec<String> =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect();
        names.sort_unstable();
        names.iter().map(|name| name.trim().to_owned()).collect()
    }

    /// Processes that it has started and that are not reaped yet, zombies among them.
    pub(crate) fn children(&self) -> usize {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").map_while(Result::ok);
        let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        children.map(|list| list.split_whitespace().count()).sum()
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid())).expect("it runs")
    }

    // ---- its HTTP ----

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.try_get(path).expect("an answer")
    }

    pub(crate) fn try_get(&self, path: &str) -> Result<Answer, ureq::Error> {
        Answer::of(self.agent.get(format!("http://{}{path}", self.address)).call()?)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, body, &[]).expect("an answer")
    }

    pub(crate) fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.post(format!("http://{}{path}", self.address)).content_type("application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send(body.to_string())?)
    }

    /// Submits jobs, all of which must be taken. Returns their ids.
    pub(crate) fn enqueue(&self, jobs: &[Value]) -> Vec<String> {
        let answer = self.post("/enqueue", &json!(jobs));
        assert_eq!((answer.status, &answer.body["failed"]), (200, &json!([])), "{}", answer.body);
        let ids = answer.body["success"].as_array().expect("an array").iter();
        ids.map(|job| text(&job["id"]).to_owned()).collect()
    }

    pub(crate) fn enqueue_one(&self, job: Value) -> String {
        self.enqueue(&[job]).remove(0)
    }

    /// `GET /jobs/{id}`.
    pub(crate) fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/jobs/{id}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Waits until each of the jobs has the status. Returns them.
    pub(crate) fn wait_for_status(&self, ids: &[String], status: &str) -> Vec<Value> {
        let wait = |id: &String| {
            wait_for(SOON, &format!("job {id} is {status}"), || {
                let job = self.job(id);
                (job["status"] == status).then_some(job)
            })
        };
        ids.iter().map(wait).collect()
    }

    /// The value of a line of `GET /metrics`.
    pub(crate) fn metric(&self, name: &str) -> i64 {
        let answer = self.get("/metrics");
        let text = answer.body.as_str().expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    }
}

impl Drop for Trilane {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing more to do for it either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("handled by the log handler")).collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            eprintln!("---- log of process {} ----\n{}", self.pid(), shown.join("\n"));
        }
    }
}

/// What a request got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// JSON, or a string where it is none.
    pub(crate) body: Value,
    pub(crate) is_replayed: bool,
    /// In seconds.
    pub(crate) retry_after: Option<u64>,
}

impl Answer {
    fn of(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
        let status = response.status().as_u16();
        let is_replayed = response.headers().contains_key("idempotency-replayed");
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let text = response.body_mut().with_config().limit(64 * 1024 * 1024).read_to_string()?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body, is_replayed, retry_after })
    }
}

/// A JSON string.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

/// A JSON string that is a time, in milliseconds since 1970.
pub(crate) fn millis(value: &Value) -> i64 {
    text(value).parse::<trilane::clock::Timestamp>().expect("a time").as_millis()
}
