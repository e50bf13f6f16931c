//! Too many connections, slow ones, and none left for others: good clients are served, and it all goes back after.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::SetOnDrop;
use super::raw::{Raw, Usage, usage};
use super::site::Site;
use super::trilane::{PROGRAM, SOON, Trilane, text, wait_until};

/// Connections of the large flood, where the system lets this process have so many file handles.
const FLOOD: usize = 10_000;
/// Handles for the rest of the tests.
const OTHER_HANDLES: usize = 500;
/// The limit that the process has by default.
const CONNECTIONS_MAX: u64 = 1_024;
/// Threads beyond that: of connections being refused, or just cut.
const MORE_THREADS: u64 = 80;
/// What so many connections may take, in a build without optimisation.
const MORE_MEMORY_MIB: u64 = 160;
/// What of it the allocator may keep.
const KEPT_MEMORY_MIB: u64 = 64;
/// The longest that a good client may find nobody, on a busy machine.
const GAP_MAX: Duration = Duration::from_secs(10);

/// What a client does that wants to be in the way.
const STARTS: [&str; 5] = [
    "",
    "G",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n[",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[",
];
const LISTING: &str = "GET /getAllJobs HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// Connects, with one of the starts; what is refused or cut already is left out.
fn hostile(address: &str, number: usize) -> Option<Raw> {
    let mut connection = Raw::try_connect(address).ok()?;
    connection.send(STARTS[number % STARTS.len()].as_bytes()).ok().map(|()| connection)
}

/// Jobs whose listing fits in no socket's buffer.
fn fill(process: &Trilane) {
    let payload = "x".repeat(200_000);
    for _ in 0..10 {
        process.enqueue(&vec![json!({ "type": "t", "payload": payload, "delay_ms": 3_600_000 }); 4]);
    }
}

/// Submits over new connections until told to end. Returns how often it was, and the longest time between two successes.
fn submit_until(process: &Trilane, is_over: &AtomicBool) -> (usize, Duration) {
    let (mut count, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
    while !is_over.load(Ordering::SeqCst) {
        let body = r#"{"type":"t"}"#;
        let request = format!(
            "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let Ok(mut connection) = Raw::try_connect(process.address()) else { continue };
        let answer = connection.send(request.as_bytes()).map(|()| connection.read_all()).unwrap_or_default();
        if answer.starts_with(b"HTTP/1.1 200 ") {
            (count, gap, last) = (count + 1, gap.max(last.elapsed()), Instant::now());
        } else {
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 503 "), "{}", String::from_utf8_lossy(&answer));
        }
    }
    (count, gap.max(last.elapsed()))
}

#[test]
fn a_flood_of_silent_and_slow_clients_does_not_keep_a_good_one_out() {
    let _loaded = super::quieten_the_machine();
    let flood = FLOOD.min(raise_own_file_handles().saturating_sub(OTHER_HANDLES));
    eprintln!("{flood} connections");
    assert!(flood as u64 >= 2 * CONNECTIONS_MAX, "it is no flood; raise the hard limit of file handles (ulimit -Hn)");
    let site = Site::sqlite();
    let process = site.start(&site.settings().with("TRILANE_HTTP_CLIENT_SECONDS", 5));
    fill(&process);
    let before = usage(process.pid());
    let is_over = AtomicBool::new(false);

    let (peak, submitted, gap) = thread::scope(|scope| {
        let good = scope.spawn(|| submit_until(&process, &is_over));
        let set = SetOnDrop(&is_over);
        let mut connections = Vec::with_capacity(flood);
        let mut peak = before;
        for number in 0..flood {
            connections.extend(hostile(process.address(), number));
            if number % 500 == 0 {
                // Some of them ask for much, and take nothing.
                if let Ok(mut reader) = Raw::try_connect(process.address()) {
                    let _ = reader.send(LISTING.as_bytes());
                    connections.push(reader);
                }
                peak = larger(peak, usage(process.pid()));
            }
        }
        // The slow ones go on, byte by byte.
        for _ in 0..3 {
            for connection in &mut connections {
                let _ = connection.send(b" ");
            }
            peak = larger(peak, usage(process.pid()));
        }
        drop(connections);
        drop(set);
        let (submitted, gap) = good.join().expect("no panic");
        (peak, submitted, gap)
    });

    eprintln!("before {before:?}, peak {peak:?}, {submitted} submitted, longest gap {gap:?}");
    assert!(submitted > 0 && gap < GAP_MAX, "{submitted} submitted, longest gap {gap:?}");
    assert!(peak.threads > CONNECTIONS_MAX / 2, "it is no flood: {peak:?}");
    assert!(peak.threads <= before.threads + CONNECTIONS_MAX + MORE_THREADS, "{peak:?}");
    assert!(peak.memory_mib <= before.memory_mib + MORE_MEMORY_MIB, "{before:?}, {peak:?}");
    wait_until(SOON, "everything is given back", || {
        let now = usage(process.pid());
        now.threads <= before.threads + 2
            && now.file_handles <= before.file_handles + 4
            && now.memory_mib <= before.memory_mib + KEPT_MEMORY_MIB
    });
    assert!(process.metric("trilane_http_connections_ended_total{why=\"displaced\"}") > 0);
    assert_eq!(process.get("/readyz").status, 200);
    wait_until(SOON, "it is told", || process.has_logged("http has room for connections again"));
    assert!(process.log().matches("http has as many connections as it may").count() <= 3, "{}", process.log());
    assert!(!process.has_logged("panicked"), "{}", process.log());
}

fn larger(one: Usage, other: Usage) -> Usage {
    Usage {
        threads: one.threads.max(other.threads),
        memory_mib: one.memory_mib.max(other.memory_mib),
        file_handles: one.file_handles.max(other.file_handles),
    }
}

#[test]
fn with_few_file_handles_connections_leave_enough_for_the_stores() {
    let site = Site::postgres_and_redis();
    let settings = site
        .settings()
        .with("TRILANE_DB_POOL_MAX", 6)
        .with("TRILANE_WORKERS", 2)
        .with(PROGRAM, concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/few_handles.sh"))
        .with("FEW_HANDLES", 300)
        .with("FEW_HANDLES_PROGRAM", env!("CARGO_BIN_EXE_trilane"));
    let process = site.start(&settings.with("TRILANE_HANDLERS", site.quick_handlers()));

    let connections: Vec<Raw> = (0..1_000).filter_map(|number| hostile(process.address(), number)).collect();
    // A new connection may get 503 while those of the flood are as new.
    wait_until(SOON, "there is room", || process.try_get("/healthz").is_ok_and(|answer| answer.status == 200));
    let ids: Vec<String> = (0..20).map(|_| process.enqueue_one(json!({ "type": "quick" }))).collect();
    process.wait_for_status(&ids, "completed");
    let ready = process.get("/readyz");
    drop(connections);

    assert_eq!((ready.status, text(&ready.body["stores"]["redis"]["status"])), (200, "ok"), "{}", ready.body);
    assert_eq!(process.log().matches("the limit of open files allows fewer connections").count(), 1);
    assert!(!process.has_logged("http can accept no new connections"), "{}", process.log());
    assert!(!process.has_logged(" is away"), "{}", process.log());
}

#[test]
fn a_process_that_has_no_file_handle_left_serves_again_by_itself() {
    let site = Site::postgres_and_redis();
    let process = site.start(&site.settings().with("TRILANE_HANDLERS", site.quick_handlers()));
    process.enqueue_one(json!({ "type": "quick" }));
    site.wait_for_jobs(SOON, 1, "Status = 'completed'");

    // Every handle that the process still gets is taken by connections.
    let limit = usage(process.pid()).file_handles + 20;
    limit_file_handles(process.pid(), limit);
    let mut connections: Vec<Raw> = Vec::new();
    wait_until(SOON, "it runs out of handles", || {
        connections.extend((0..20).filter_map(|number| hostile(process.address(), number)));
        process.has_logged("http can accept no new connections")
    });
    let begun = Instant::now();
    wait_until(SOON, "a job is stored", || {
        process.try_get("/healthz").is_ok_and(|answer| answer.status == 200)
            && process.post_with("/enqueue", &json!({ "type": "quick" }), &[]).is_ok_and(|answer| answer.status == 200)
    });
    let served_after = begun.elapsed();
    drop(connections);
    limit_file_handles(process.pid(), 1_024);

    eprintln!("served again after {served_after:?}");
    wait_until(SOON, "it is told", || process.has_logged("http accepts connections again"));
    wait_until(SOON, "what was stored is run", || site.jobs("Status <> 'completed'") == 0);
    assert_eq!(process.get("/readyz").status, 200);
    assert_eq!(process.log().matches("http can accept no new connections").count(), 1, "{}", process.log());
    assert!(!process.has_logged("panicked"), "{}", process.log());
}

#[test]
fn a_stop_is_not_held_up_by_connections_that_are_stuck() {
    let site = Site::sqlite();
    let mut process = site.start(&site.settings().with("TRILANE_HTTP_CLIENT_SECONDS", 600));
    fill(&process);
    let mut connections: Vec<Raw> = (0..100).filter_map(|number| hostile(process.address(), number)).collect();
    for _ in 0..5 {
        let mut reader = Raw::connect(process.address());
        reader.send(LISTING.as_bytes()).expect("sent");
        connections.push(reader);
    }
    wait_until(SOON, "all are there", || process.metric("trilane_http_connections") >= 105);

    let begun = Instant::now();
    process.signal("TERM");
    let code = process.wait_for_exit(SOON);

    eprintln!("stopped after {:?}", begun.elapsed());
    assert_eq!(code, 0);
    assert!(connections[0].is_closed_within(SOON));
}

/// Lets this process have as many file handles as the system gives it. Returns how many.
fn raise_own_file_handles() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are to a live value of the type that the calls want.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    usize::try_from(limit.rlim_max).unwrap_or(usize::MAX)
}

/// Sets the limit of a running process; what it has open it keeps.
fn limit_file_handles(pid: u32, most: usize) {
    let pid = libc::pid_t::try_from(pid).expect("a process");
    // SAFETY: the pointers are null, or to a live value of the type that the call wants.
    let done = unsafe {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = most as u64;
        libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(done, 0, "the limit can be set");
}
