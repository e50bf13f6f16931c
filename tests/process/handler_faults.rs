//! Handlers that misbehave: the worker is free again, nothing of them is left, and the reason is short and says what happened.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trilane::app::Service;
use trilane::config::Settings;
use trilane::handlers::{Attempt, Registry};
use trilane::retry::Report;

use super::site::Site;
use super::trilane::{SOON, Trilane, text, wait_until};

const WORKERS: usize = 4;
/// Time limit of those that would never end.
const LIMIT_MS: u64 = 1_000;
/// What a reason holds at most: 2,000 characters of the handler's own, and what is said about them.
const REASON_CHARS_MAX: usize = 2_200;
/// Of resident memory, for all of them together: 16 MB are pages that SQLite keeps.
const GROWTH_KIB_MAX: u64 = 40 * 1024;
/// Connections to the database and to HTTP targets that are kept for the next one.
const FILES_KEPT_MAX: usize = 40;
/// All of them at once, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(2);

/// A command, the status that its job ends with, and what its reason says.
const COMMANDS: [(&str, &str, &str, &str); 12] = [
    ("hangs", "sleep 1000", "failed", "was ended at its time limit"),
    ("ignores_sigterm", "trap '' TERM; while :; do sleep 1; done", "failed", "was ended at its time limit"),
    ("leaves_a_child_with_its_pipes", "sleep 1000 & exit 0", "completed", ""),
    (
        "leaves_children_that_ignore_sigterm",
        "for n in 1 2 3 4 5; do (trap '' TERM; sleep 1000) & done; exit 1",
        "failed",
        "exit status: 1",
    ),
    ("leaves_a_daemon", "(setsid sh -c 'sleep 3; echo late >&2' &) ; exit 0", "completed", ""),
    ("fills_stderr", "head -c 100000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1", "failed", "the end"),
    ("fills_stdout", "head -c 100000000 /dev/zero; exit 0", "completed", ""),
    ("closes_stdin", "exec 0<&-; exit 0", "completed", ""),
    ("never_reads", "sleep 1000", "failed", "was ended at its time limit"),
    ("crashes", "kill -SEGV $$", "failed", "signal: 11 (SIGSEGV)"),
    ("prints_rubbish", "head -c 3000 /dev/urandom >&2; exit 3", "failed", "exit status: 3"),
    ("is_no_program", "", "failed", "cannot run /no/such/program"),
];

/// A path of [`Rude`], the status that its job ends with, and what its reason says.
const CALLS: [(&str, &str, &str); 8] = [
    ("never_answers", "failed", "was ended at its time limit"),
    ("answers_byte_by_byte", "failed", "was ended at its time limit"),
    ("endless_head", "failed", "failed:"),
    ("endless_body", "completed", ""),
    ("endless_error", "failed", "500"),
    ("redirects", "failed", "which is not followed"),
    ("resets", "failed", "failed:"),
    ("is_not_http", "failed", "failed:"),
];

fn handlers(site: &Site, rude: &Rude) -> String {
    let commands = COMMANDS.map(|(name, script, _, _)| match script {
        "" => format!("[{name}]\ncommand = [\"/no/such/program\"]\n"),
        script => format!("[{name}]\ncommand = [\"sh\", \"-c\", {script:?}]\n"),
    });
    let calls = CALLS.map(|(name, _, _)| format!("[{name}]\nhttp = \"http://{}/{name}\"\n", rude.address));
    site.file("handlers.toml", &format!("{}{}[\"*\"]\nlog = true\n", commands.concat(), calls.concat()))
}

#[test]
fn handlers_that_misbehave_leave_all_workers_free_and_nothing_behind() {
    let (site, rude) = (Site::sqlite(), Rude::start());
    let settings = site.settings().with("TRILANE_HANDLERS", handlers(&site, &rude));
    let process = site.start(&settings.with("TRILANE_WORKERS", WORKERS));
    let quick = || {
        let ids = process.enqueue(&vec![json!({ "type": "quick" }); 50]);
        process.wait_for_status(&ids, "completed");
    };
    quick();
    let before = (process.threads(), process.open_files(), process.memory_kib());

    let commands = COMMANDS.iter().map(|(name, _, status, why)| (*name, *status, *why));
    let cases: Vec<(&str, &str, &str)> = commands.chain(CALLS).collect();
    // More than a pipe holds.
    let payload = "x".repeat(200_000);
    let job = |name: &str| json!({ "type": name, "payload": payload, "max_retries": 0, "timeout_ms": LIMIT_MS });
    let ids: Vec<String> = cases.iter().map(|(name, _, _)| process.enqueue_one(job(name))).collect();
    site.wait_for_jobs(PATIENCE, 0, "Status not in ('completed', 'failed')");

    for (id, (name, status, why)) in ids.iter().zip(&cases) {
        assert_ended(&process.job(id), name, status, why);
    }
    quick();
    assert_eq!(process.metric("trilane_jobs_running"), 0);
    assert_eq!(process.threads(), before.0, "as many workers as before, and no other thread");
    wait_until(SOON, "all its processes are reaped", || process.children() == 0);
    let (files, memory_kib) = (process.open_files(), process.memory_kib());
    eprintln!("open files {} then {files}, memory {} KiB then {memory_kib}", before.1, before.2);
    assert!(files <= before.1 + FILES_KEPT_MAX, "{} files open, then {files}", before.1);
    assert!(memory_kib <= before.2 + GROWTH_KIB_MAX, "{} KiB, then {memory_kib}", before.2);
}

fn assert_ended(job: &Value, name: &str, status: &str, why: &str) {
    let told: String = job.to_string().chars().take(500).collect();
    assert_eq!(job["status"], status, "{name}: {told}");
    if status == "failed" {
        let reason = text(&job["last_error"]);
        assert!(reason.contains(why), "{name}: {reason}");
        assert!(reason.chars().count() <= REASON_CHARS_MAX && !reason.contains('\0'), "{name}: {reason}");
    }
}

#[test]
fn a_command_that_ignores_a_cancellation_is_killed_and_its_job_stays_cancelled() {
    let site = Site::sqlite();
    let gate = site.file("gate", "");
    let script = format!("trap '' TERM; while [ -e {gate} ]; do sleep 0.05; done");
    let handlers = site.file("handlers.toml", &format!("[stubborn]\ncommand = [\"sh\", \"-c\", {script:?}]\n"));
    let settings = site.settings().with("TRILANE_LEASE_SECONDS", 3).with("TRILANE_DB_WAIT_SECONDS", 1);
    let process = site.start(&settings.with("TRILANE_HANDLERS", handlers));
    let id = process.enqueue_one(json!({ "type": "stubborn" }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);

    assert_eq!(process.post(&format!("/jobs/{id}/cancel"), &json!(null)).status, 200);

    wait_until(SOON, "the worker is free", || process.metric("trilane_jobs_running") == 0);
    assert_eq!(site.commands_at_gate("gate"), 0);
    wait_until(SOON, "its outcome is refused", || process.metric("trilane_jobs_refused_total") == 1);
    let job = process.job(&id);
    assert_eq!((&job["status"], &job["attempts"]), (&json!("cancelled"), &json!([])));
}

/// Has two jobs run this script, which waits at the gate in so many processes, until `act` has ended the service.
fn commands_end_with(script: &str, processes: usize, act: impl FnOnce(&mut Trilane)) -> Site {
    let site = Site::sqlite();
    let script = script.replace("GATE", &site.file("gate", ""));
    let handlers = site.file("handlers.toml", &format!("[waits]\ncommand = [\"sh\", \"-c\", {script:?}]\n"));
    let settings = site.settings().with("TRILANE_HANDLERS", handlers).with("TRILANE_DRAIN_SECONDS", 600);
    let mut process = site.start(&settings);
    process.enqueue(&vec![json!({ "type": "waits" }); 2]);
    wait_until(SOON, "the commands run", || site.commands_at_gate("gate") == 2 * processes);

    act(&mut process);

    wait_until(SOON, "the commands are gone", || site.commands_at_gate("gate") == 0);
    site
}

#[test]
fn commands_end_with_a_process_that_is_killed() {
    commands_end_with("while [ -e GATE ]; do sleep 0.05; done", 1, Trilane::kill);
}

#[test]
fn commands_and_their_children_end_with_a_process_that_leaves_at_once() {
    let script = "trap '' TERM; (while [ -e GATE ]; do sleep 0.05; done) & while [ -e GATE ]; do sleep 0.05; done";
    let site = commands_end_with(script, 2, |process| {
        process.signal("TERM");
        wait_until(SOON, "the stop has begun", || process.has_logged("a second signal leaves at once"));
        process.signal("TERM");
        assert_eq!(process.wait_for_exit(SOON), 130);
    });

    assert_eq!(site.jobs("Status = 'running' and RetryCount = 0"), 2, "no attempt counts as failed");
}

// ---- handlers in Rust ----

/// The names of the workers' threads in this process. No other test starts any.
fn workers() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux").map_while(Result::ok);
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    let mut workers: Vec<String> =
        names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with("worker-")).collect();
    workers.sort_unstable();
    workers
}

#[test]
fn rust_handlers_that_panic_or_never_return_cost_no_worker() {
    let site = Site::sqlite();
    let (leave, left) = mpsc::channel::<()>();
    let left = Mutex::new(left);
    let mut registry = Registry::new();
    registry.register("panics", |_: &Attempt<'_>| -> Report { panic!("no ink") });
    registry.register("panics_without_text", |_: &Attempt<'_>| -> Report { std::panic::panic_any(7) });
    registry.register("hangs", move |_: &Attempt<'_>| {
        // Until the test lets it go; its stop flag does not interest it.
        let _ = left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        Report::Done
    });
    registry.register("quick", |_: &Attempt<'_>| Report::Done);
    let settings = BTreeMap::from([
        ("DB_CONNECTION".to_owned(), site.connection_string().to_owned()),
        ("TRILANE_HTTP_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("TRILANE_WORKERS".to_owned(), "2".to_owned()),
        ("TRILANE_TICK_SECONDS".to_owned(), "1".to_owned()),
        ("TRILANE_DRAIN_SECONDS".to_owned(), "1".to_owned()),
    ]);
    let service = Service::start(&Settings::from_map(&settings).expect("good settings"), registry).expect("it starts");
    // A thread gives itself its name.
    wait_until(SOON, "the workers have started", || workers() == ["worker-1", "worker-2"]);
    let insert = |job_type: &str| {
        site.execute(&format!(
            "insert into Jobs (Type, Payload, MaxRetries, TimeoutMs) values ('{job_type}', '{{}}', 0, {LIMIT_MS})"
        ));
    };

    for job_type in ["panics", "panics_without_text", "hangs", "hangs"] {
        insert(job_type);
    }
    site.wait_for_jobs(SOON, 2, "Type like 'panics%' and Status = 'failed'");
    // 10 s after the time limit, its worker is given up.
    site.wait_for_jobs(PATIENCE, 2, "Type = 'hangs' and Status = 'failed'");
    for _ in 0..20 {
        insert("quick");
    }
    site.wait_for_jobs(SOON, 20, "Type = 'quick' and Status = 'completed'");

    let reasons = "Reason like '%the handler panicked: no ink' or Reason like '%the handler panicked: without a message' \
                   or Reason like '%did not return within its time limit of 1s, nor after it was told to stop'";
    assert_eq!(site.number(&format!("select count(*) from FailedJobs where {reasons}")), 4);
    assert_eq!(workers(), ["worker-1", "worker-1", "worker-2", "worker-2"], "those that hang are left behind");
    drop(leave);
    wait_until(SOON, "those that hung end with their handlers", || workers() == ["worker-1", "worker-2"]);
    service.stop();
    assert_eq!(workers(), [""; 0]);
}

// ---- an HTTP target ----

/// A server that answers in each of the ways of [`CALLS`].
struct Rude {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
}

impl Rude {
    fn start() -> Rude {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let over = Arc::clone(&over);
                if over.load(Ordering::SeqCst) {
                    return;
                }
                // Ends at the first error: the caller has gone.
                thread::spawn(move || drop(answer(&stream, &over)));
            }
        });
        Rude { address, is_over }
    }
}

fn answer(stream: &TcpStream, is_over: &AtomicBool) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut writer = stream;
    let repeat = |text: &str, pause: Duration| -> std::io::Result<()> {
        let begun = Instant::now();
        while !is_over.load(Ordering::SeqCst) && begun.elapsed() < PATIENCE {
            (&*stream).write_all(text.as_bytes())?;
            thread::sleep(pause);
        }
        Ok(())
    };
    let (chunk, at_once) = (format!("400\r\n{}\r\n", "x".repeat(1_024)), Duration::ZERO);
    match line.split(' ').nth(1).unwrap_or_default() {
        "/answers_byte_by_byte" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")?;
            repeat("x", Duration::from_millis(50))
        }
        "/endless_head" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\n")?;
            repeat("X-More: of the same\r\n", at_once)
        }
        "/endless_body" => {
            writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            repeat(&chunk, at_once)
        }
        "/endless_error" => {
            writer.write_all(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            repeat(&chunk, at_once)
        }
        "/redirects" => {
            read_rest(&mut reader)?;
            writer.write_all(b"HTTP/1.1 302 Found\r\nLocation: /redirects\r\nContent-Length: 0\r\n\r\n")
        }
        // What was not read makes a close a reset.
        "/resets" => Ok(()),
        "/is_not_http" => writer.write_all(b"\x00\x01 SSH-2.0-no\r\n\r\n"),
        // Reads all there is, until the caller has gone.
        _ => reader.read_to_end(&mut Vec::new()).map(drop),
    }
}

/// The headers and the body of a request: a close with something unread is a reset, which overtakes the answer.
fn read_rest(reader: &mut impl BufRead) -> std::io::Result<()> {
    let (mut line, mut length) = (String::new(), 0);
    while line.trim_end() != "" || line.is_empty() {
        line.clear();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
    }
    reader.read_exact(&mut vec![0; length])
}

impl Drop for Rude {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections. If it is gone already, there is nobody to wake.
        let _ = TcpStream::connect(self.address);
    }
}
