//! Requests that no client should send, one after the other: each is answered or refused, and none harms the process.

use std::fmt::Write as _;
use std::thread;

use super::raw::{Raw, statuses, usage};
use super::site::Site;
use super::trilane::{SOON, Trilane, wait_until};

/// A request that every server understands, and the last of its connection.
const LAST: &str = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// More than the largest body.
const OVERSIZE: usize = (1 << 20) + 1;
/// No endless request may get the process to take this many bytes.
const ENDLESS_BYTES_MAX: usize = 64 << 20;

/// What is sent on one connection, and the status codes that come back before it is closed.
struct Case {
    name: String,
    sent: Vec<u8>,
    expected: Vec<u16>,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: &str, sent: impl AsRef<[u8]>, expected: &[u16]) {
        self.0.push(Case { name: name.to_owned(), sent: sent.as_ref().to_vec(), expected: expected.to_vec() });
    }

    /// A GET with these lines as its further headers.
    fn header(&mut self, line: &str, expected: &[u16]) {
        self.add(line, format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n{LAST}"), expected);
    }

    /// A POST with these header lines and this body. A good request follows.
    fn body(&mut self, lines: &str, body: &str, expected: &[u16]) {
        self.add(&format!("{lines} {body:.40}"), post(lines, body) + LAST, expected);
    }

    fn chunks(&mut self, body: &str, expected: &[u16]) {
        self.body("Transfer-Encoding: chunked", body, expected);
    }
}

fn post(lines: &str, body: &str) -> String {
    format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n{body}")
}

fn cases() -> Vec<Case> {
    let mut cases = Cases::default();
    lines(&mut cases);
    headers(&mut cases);
    bodies(&mut cases);
    chunks(&mut cases);
    cases.0
}

fn lines(cases: &mut Cases) {
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    cases.add("pipelined", get("/healthz") + &get("/nothing") + &get("/healthz") + LAST, &[200, 404, 200, 200]);
    cases.add("empty lines first", format!("\r\n\r\n{LAST}"), &[200]);
    cases.add("a whole URL", get("http://localhost/healthz") + LAST, &[200, 200]);
    cases.add("HEAD", get("/healthz").replace("GET", "HEAD") + LAST, &[200, 200]);
    cases.add("OPTIONS", get("/healthz").replace("GET", "OPTIONS") + LAST, &[405, 200]);
    cases.add("OPTIONS *", get("*").replace("GET", "OPTIONS") + LAST, &[404, 200]);
    cases.add("CONNECT", get("localhost:80").replace("GET", "CONNECT") + LAST, &[404, 200]);
    cases.add("an unknown method", get("/healthz").replace("GET", "BREW") + LAST, &[405, 200]);
    cases.add("HTTP/1.0", "GET /healthz HTTP/1.0\r\n\r\n", &[200]);
    cases.add("HTTP/0.9", "GET /healthz\r\n", &[400]);
    cases.add("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[505]);
    for version in ["HTTP/2.0", "HTTP/3.0", "HTTP/1.2", "HTTP/0.9", "HTTP/9999999999.1"] {
        cases.add(version, format!("GET / {version}\r\n\r\n"), &[505]);
    }
    cases.add("no version of HTTP", "GET / FTP/1.1\r\n\r\n", &[400]);
    cases.add("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[400]);
    cases.add("SSH", "SSH-2.0-OpenSSH_9.2\r\n", &[400]);
    cases.add("NUL in the target", "GET /heal\0thz HTTP/1.1\r\n\r\n", &[400]);
    cases.add("NUL at the start", "\0GET / HTTP/1.1\r\n\r\n", &[400]);
    cases.add("bare LF", "GET /healthz HTTP/1.1\nHost: localhost\n\n", &[400]);
    cases.add("LF alone", "\nGET /healthz HTTP/1.1\r\n\r\n", &[400]);
    cases.add("bare CR", "GET /healthz HTTP/1.1\rHost: localhost\r\n\r\n", &[400]);
    cases.add("a blank too many", "GET  /healthz HTTP/1.1\r\n\r\n", &[400]);
    cases.add("a blank first", " GET /healthz HTTP/1.1\r\n\r\n", &[400]);
    cases.add("a blank in the target", "GET /heal thz HTTP/1.1\r\n\r\n", &[400]);
    cases.add("no target", "GET HTTP/1.1\r\n\r\n", &[400]);
    cases.add("a method that is none", "G@T / HTTP/1.1\r\n\r\n", &[400]);
    cases.add("a long target", get(&format!("/{}", "x".repeat(17 << 10))), &[431]);
    cases.add("a long method", "X".repeat(17 << 10), &[431]);
}

fn headers(cases: &mut Cases) {
    cases.header("X-Good: yes", &[200, 200]);
    cases.header("X-Empty:", &[200, 200]);
    cases.header("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ", &[200, 200]);
    cases.header("Connection: close", &[200]);
    cases.header("Connection: foo, CLOSE", &[200]);
    for bad in [
        "X-Folded: a\r\n b",
        "X-Folded: a\r\n\tb",
        " X-First: folded",
        "No colon",
        "X-Blank : a",
        "X Y: a",
        ": no name",
        "X-Nul: a\0b",
        "X-Bell: a\x07b",
        "X-Cr: a\rb",
        "X-Lf: a\nX-B: b",
        "X-Umlaut: \u{e4}",
        "Host: localhost",
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length: 0, 0",
        "Content-Length: -1",
        "Content-Length: +1",
        "Content-Length: 0x10",
        "Content-Length: 1 1",
        "Content-Length: 1e3",
        "Content-Length:",
        "Content-Length: \"1\"",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
    ] {
        cases.header(bad, &[400]);
    }
    for coding in [
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "xchunked",
        "identity",
        "",
        "chunked\r\nTransfer-Encoding: chunked",
    ] {
        cases.header(&format!("Transfer-Encoding: {coding}"), &[501]);
    }
    cases.header("Expect: a miracle", &[417]);
    let many = |count: usize| {
        (0..count).fold(String::new(), |mut lines, number| {
            // OK: a String takes any write
            let _ = write!(lines, "X-{number}: a\r\n");
            lines
        })
    };
    cases.header(many(63).trim_end(), &[200, 200]);
    cases.header(many(64).trim_end(), &[431]);
    cases.header(many(100_000).trim_end(), &[431]);
    cases.header(&format!("X-Long: {}", "x".repeat(17 << 10)), &[431]);
    cases.add(
        "Transfer-Encoding in HTTP/1.0",
        "POST /enqueue HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        &[400],
    );
}

fn bodies(cases: &mut Cases) {
    let job = r#"{"type":"t"}"#;
    let length = |length: usize| format!("Content-Length: {length}");
    cases.body(&length(job.len()), job, &[200, 200]);
    cases.body(&format!("Expect: 100-continue\r\n{}", length(job.len())), job, &[200, 200]);
    // Whichever of the two is believed, what is left of the body would be the next request.
    let both = format!("{}\r\nTransfer-Encoding: chunked", length(job.len()));
    cases.body(&both, &format!("{:x}\r\n{job}\r\n0\r\n\r\n", job.len()), &[400]);
    cases.body(&both, job, &[400]);
    cases.body(&format!("{}\r\nContent-Length: 1", length(job.len())), job, &[400]);
    cases.body(&length(0), "", &[400, 200]);
    cases.body(&length(3), "[\0]", &[400, 200]);
    cases.add("a body cut short", post(&length(100), "[{"), &[400]);
    cases.add("an oversize body", post(&length(OVERSIZE), &" ".repeat(OVERSIZE)), &[413]);
    cases.add(
        "an oversize body, announced",
        post(&format!("Expect: 100-continue\r\n{}", length(OVERSIZE)), ""),
        &[413],
    );
    for huge in ["1152921504606846976", "18446744073709551615", "18446744073709551616", "99999999999999999999999999"] {
        cases.add(huge, post(&format!("Content-Length: {huge}"), "[{"), &[413]);
    }
    cases.add("an unwanted body", post(&length(5), "12345").replace("/enqueue", "/nothing") + LAST, &[404, 200]);
    let large = "x".repeat(100_000);
    cases.add("a large unwanted body", post(&length(large.len()), &large).replace("/enqueue", "/nothing"), &[404]);
    cases.add(
        "GET with a body",
        post(&length(5), "12345").replace("POST /enqueue", "GET /healthz") + LAST,
        &[400, 200],
    );
}

fn chunks(cases: &mut Cases) {
    let job = r#"{"type":"t"}"#;
    let whole = format!("{:x}\r\n{job}\r\n0\r\n", job.len());
    cases.chunks(&format!("{whole}\r\n"), &[200, 200]);
    cases.chunks(&format!("{whole}X-Trailer: a\r\n\r\n"), &[200, 200]);
    cases.chunks(&format!("00{};name=\"value\"\r\n\r\n", whole.trim_end()), &[200, 200]);
    for bad in [
        "zz\r\n[]\r\n0\r\n\r\n",
        "-2\r\n[]\r\n0\r\n\r\n",
        "+2\r\n[]\r\n0\r\n\r\n",
        "0x2\r\n[]\r\n0\r\n\r\n",
        "\r\n[]\r\n0\r\n\r\n",
        "2 2\r\n[]\r\n0\r\n\r\n",
        "2\n[]\n0\n\n",
        "2\r\n[]0\r\n\r\n",
        "2\r\n[]  \r\n0\r\n\r\n",
        "2;\0\r\n[]\r\n0\r\n\r\n",
        "ffffffffffffffff\r\n[]",
        "ffffffffffffffffffffffffffffffffffff\r\n[]",
        "8000000000000000\r\n[]",
    ] {
        cases.chunks(bad, &[400]);
    }
    cases.add("chunks cut short", post("Transfer-Encoding: chunked", "5\r\n[{"), &[400]);
    cases.chunks(&format!("2;{}\r\n[]\r\n0\r\n\r\n", "x".repeat(300)), &[400]);
    cases.chunks(&format!("2\r\n[]\r\n0\r\n{}\r\n", "X-Trailer: a\r\n".repeat(2_000)), &[400]);
    cases.chunks(&format!("{}0\r\n\r\n", format!("1;{}\r\n \r\n", "x".repeat(200)).repeat(200)), &[400]);
    cases.add(
        "an oversize chunk",
        post("Transfer-Encoding: chunked", &format!("fffffffffffffff\r\n{}", " ".repeat(OVERSIZE))),
        &[413],
    );
}

#[test]
fn every_request_that_is_none_is_refused_and_harms_nothing() {
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    assert_eq!(process.get("/healthz").status, 200);
    let before = usage(process.pid());

    let mut wrong = String::new();
    for Case { name, sent, expected } in cases() {
        let mut connection = Raw::connect(process.address());
        // What is refused may be closed before all of it is sent.
        let _ = connection.send(&sent);
        connection.end();
        let answered = connection.read_all();
        let got = statuses(&answered);
        if got != expected {
            let _ = writeln!(wrong, "{name:?}: {got:?}, not {expected:?}"); // OK: a String takes any write
        }
    }

    assert!(wrong.is_empty(), "{wrong}");
    is_as_before(&process, before.threads);
}

#[test]
fn what_never_ends_is_cut() {
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    assert_eq!(process.get("/healthz").status, 200);
    let before = usage(process.pid());
    let head = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let chunked = post("Transfer-Encoding: chunked", "");

    let endless: Vec<(&str, String, String, u16)> = vec![
        ("a request line", "GET /".to_owned(), "x".repeat(1_000), 431),
        ("headers", head.to_owned(), "X-More: yes\r\n".repeat(100), 431),
        ("a header", format!("{head}X-Long: "), "x".repeat(1_000), 431),
        ("a body", post("Content-Length: 1152921504606846976", ""), " ".repeat(10_000), 413),
        ("chunks", chunked.clone(), "4\r\n    \r\n".repeat(1_000), 413),
        ("a chunk", format!("{chunked}fffffffffffffff\r\n"), " ".repeat(10_000), 413),
        ("a chunk extension", format!("{chunked}2;"), "x".repeat(1_000), 400),
        ("chunk extensions", chunked.clone(), format!("1;{}\r\n \r\n", "x".repeat(100)), 400),
        ("trailers", format!("{chunked}2\r\n[]\r\n0\r\n"), "X-More: yes\r\n".repeat(100), 400),
        ("a trailer", format!("{chunked}2\r\n[]\r\n0\r\nX-Long: "), "x".repeat(1_000), 400),
    ];
    for (name, start, more, expected) in endless {
        let mut connection = Raw::connect(process.address());
        connection.send(start.as_bytes()).expect("the start is taken");
        let mut sent = 0;
        while connection.send(more.as_bytes()).is_ok() {
            sent += more.len();
            assert!(sent < ENDLESS_BYTES_MAX, "{name}: the process goes on reading");
        }
        // A reset takes what was not read yet with it.
        let got = statuses(&connection.read_all());
        assert!(got.is_empty() || got == [expected], "{name}: {got:?}, not {expected}");
    }

    is_as_before(&process, before.threads);
}

#[test]
fn a_client_that_waits_to_be_told_is_told_and_may_send_its_body() {
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    let job = r#"{"type":"t"}"#;
    let mut connection = Raw::connect(process.address());

    let head = post(&format!("Expect: 100-continue\r\nConnection: close\r\nContent-Length: {}", job.len()), "");
    connection.send(head.as_bytes()).expect("sent");
    connection.wait_for(b"HTTP/1.1 100 Continue\r\n\r\n");
    connection.send(job.as_bytes()).expect("sent");

    assert_eq!(statuses(&connection.read_all()), [200]);
}

#[test]
fn clients_that_hang_up_at_any_moment_leave_nothing_behind() {
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    assert_eq!(process.get("/healthz").status, 200);
    let before = usage(process.pid());
    let request = post("Content-Length: 12", r#"{"type":"t"}"#) + "GET /getAllJobs HTTP/1.1\r\nHost: localhost\r\n\r\n";

    thread::scope(|scope| {
        for remainder in 0..4 {
            let (process, request) = (&process, request.as_bytes());
            scope.spawn(move || {
                for length in (remainder..=request.len()).step_by(4) {
                    let mut connection = Raw::connect(process.address());
                    connection.send(&request[..length]).expect("sent");
                    // Answers that nobody reads make it a reset.
                    drop(connection);
                }
            });
        }
    });

    is_as_before(&process, before.threads);
}

/// No thread is left behind, nothing has panicked, and good clients are served.
fn is_as_before(process: &Trilane, threads: u64) {
    // Those of the connections that the client of this test keeps open may come and go.
    wait_until(SOON, "the threads have left", || usage(process.pid()).threads <= threads + 1);
    assert!(!process.has_logged("panicked"), "{}", process.log());
    process.enqueue_one(serde_json::json!({ "type": "t" }));
}
