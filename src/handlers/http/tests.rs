//! With a real HTTP server on the loopback interface: `tiny_http` where it answers, a bare socket where it must not.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use tiny_http::{Limits, Notice, Refusal, Request, Server, Service};

use super::*;
use crate::handlers::StopFlag;
use crate::handlers::testing::{LONG, Scratch, claimed, report_of, report_within};

/// Added to a wait that must end by itself, for a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// What a server saw of one call.
struct Seen {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    from: Option<std::net::SocketAddr>,
}

impl Seen {
    fn header(&self, name: &str) -> Vec<&str> {
        let of_name = |(seen, _): &&(String, String)| seen.eq_ignore_ascii_case(name);
        self.headers.iter().filter(of_name).map(|(_, value)| value.as_str()).collect()
    }
}

/// A server that gives each call the same answer, and the calls that it saw.
fn server(status: u16, headers: &[(&str, &str)], body: &str) -> (String, Receiver<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let (send, seen) = mpsc::channel();
    let mut answer = format!("HTTP/1.1 {status} As told\r\n");
    for (name, value) in headers {
        answer.extend([name, ": ", value, "\r\n"]);
    }
    answer.extend(["Content-Length: ", &body.len().to_string(), "\r\n\r\n", body]);
    let limits = Limits {
        connections_max: 64,
        head_bytes_max: 16 << 10,
        headers_max: 64,
        idle: LONG,
        head: LONG,
        body: LONG,
        answer: LONG,
        leave: LONG,
        hurry: LONG,
    };
    let server = Server::start(listener, limits, Arc::new(Recorder { answer, seen: send })).expect("threads");
    // It serves until the process ends.
    std::mem::forget(server);
    (url, seen)
}

struct Recorder {
    answer: String,
    seen: mpsc::Sender<Seen>,
}

impl Service for Recorder {
    fn serve(&self, mut request: Request<'_>) {
        let mut text = String::new();
        request.as_reader().read_to_string(&mut text).expect("a body");
        let seen = Seen {
            method: request.method().to_string(),
            path: request.url().to_owned(),
            headers: request.headers().iter().map(|h| (h.field.to_string(), h.value.to_string())).collect(),
            body: text,
            from: request.remote_addr().copied(),
        };
        // OK: the client may be gone, and the test over
        let _ = request.into_writer().write_all(self.answer.as_bytes());
        let _ = self.seen.send(seen);
    }

    fn refusal(&self, refusal: Refusal) -> Vec<u8> {
        panic!("{refusal:?}");
    }

    fn notice(&self, notice: Notice<'_>) {
        panic!("{notice:?}");
    }
}

/// A server that reads one request from each connection, one after the other, and hands the connection to `serve`.
fn raw_server(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            if read_request(&mut peer).is_ok() {
                serve(peer);
            }
        }
    });
    url
}

/// Reads a request to its end: a connection closed before is reset, and the answer may be lost.
fn read_request(peer: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        peer.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    peer.read_exact(&mut vec![0; length.parse().expect("a number")])
}

fn handler(url: &str) -> HttpHandler {
    HttpHandler::new(url).expect("a good url")
}

fn reason_of(report: Report) -> String {
    match report {
        Report::Done => panic!("done, not failed"),
        Report::Retry { reason, .. } | Report::Permanent { reason } => reason,
    }
}

#[test]
fn a_call_holds_the_whole_job_and_is_done_with_2xx() {
    let (url, seen) = server(204, &[], "");
    let handler = handler(&url).header("Authorization", "Bearer s3cret").expect("a header");
    let job = claimed("process_payment", r#"{ "amount": 12.50, "to": "é🦀" }"#);

    let report = report_within(&handler, &job, LONG);

    assert_eq!(report, Report::Done);
    let seen = seen.recv().expect("one call");
    let id = job.id.to_string();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/hook"));
    let expected = format!(
        r#"{{"id":"{id}","type":"process_payment","payload":{{ "amount": 12.50, "to": "é🦀" }},"priority":"high","attempt":2,"max_retries":3,"token":42,"created_at":"{}"}}"#,
        job.created_at
    );
    assert_eq!(seen.body, expected);
    let version = concat!("trilane/", env!("CARGO_PKG_VERSION"));
    let expected = [
        ("Content-Type", "application/json"),
        ("User-Agent", version),
        ("Trilane-Job-Id", &id),
        ("Trilane-Attempt", "2"),
        ("Trilane-Token", "42"),
        ("Idempotency-Key", &id),
        ("Authorization", "Bearer s3cret"),
    ];
    for (name, value) in expected {
        assert_eq!(seen.header(name), [value], "{name}");
    }
}

#[test]
fn a_payload_that_is_not_json_is_sent_as_a_string() {
    let (url, seen) = server(200, &[], "");

    assert_eq!(report_of(&handler(&url), "a", "not \"json\""), Report::Done);

    let body: serde_json::Value =
        serde_json::from_str(&seen.recv().expect("one call").body).expect("json all the same");
    assert_eq!(body["payload"], "not \"json\"");
}

#[test]
fn the_status_decides_whether_another_attempt_may_help() {
    let retried = [408, 425, 429, 500, 501, 502, 503, 504, 599];
    let permanent = [300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 409, 410, 413, 422, 451];
    let verdict = |status| {
        let status = StatusCode::from_u16(status).expect("a status");
        judge(status, &HeaderMap::new(), SystemTime::UNIX_EPOCH).0
    };

    for status in 200..=299 {
        assert_eq!(verdict(status), Verdict::Done, "{status}");
    }
    for status in retried {
        assert_eq!(verdict(status), Verdict::Retry, "{status}");
    }
    for status in permanent {
        assert_eq!(verdict(status), Verdict::Permanent, "{status}");
    }
}

#[test]
fn a_failed_call_tells_the_status_and_the_beginning_of_the_answer() {
    let (url, _seen) = server(422, &[], "no such account\n");
    let report = report_of(&handler(&format!("{url}?key=s3cret")), "a", "{}");
    assert_eq!(report, Report::permanent(format!("POST {url} answered 422 Unprocessable Entity: no such account")));

    let (url, _seen) = server(503, &[], "");
    let report = report_of(&handler(&url), "a", "{}");
    assert_eq!(report, Report::retry(format!("POST {url} answered 503 Service Unavailable")));
}

#[test]
fn of_a_large_answer_only_the_beginning_is_kept() {
    let body = "é".repeat(1_000_000);
    let (url, _seen) = server(500, &[], &body);

    let reason = reason_of(report_of(&handler(&url), "a", "{}"));

    let (_, shown) = reason.split_once("Error: ").expect("the status first");
    assert_eq!(shown, format!("{}…", "é".repeat(1_000)));
}

#[test]
fn a_redirect_is_not_followed_and_names_the_place() {
    let (other, other_seen) = server(200, &[], "");
    let (url, _seen) = server(307, &[("Location", &other)], "");

    let report = report_of(&handler(&url), "a", "{}");

    let advice = format!(
        "POST {url} answered 307 Temporary Redirect to {other}, which is not followed: give the handler the final URL"
    );
    assert_eq!(report, Report::permanent(advice));
    assert!(other_seen.try_recv().is_err(), "the other place is not called");
}

#[test]
fn retry_after_sets_the_delay_of_the_next_attempt() {
    let (url, _seen) = server(429, &[("Retry-After", "17")], "slow down");
    let report = report_of(&handler(&url), "a", "{}");
    assert!(
        matches!(report, Report::Retry { delay: Some(delay), .. } if delay == Duration::from_secs(17)),
        "{report:?}"
    );

    let (url, _seen) = server(400, &[("Retry-After", "17")], "");
    assert!(matches!(report_of(&handler(&url), "a", "{}"), Report::Permanent { .. }), "it makes nothing retryable");
}

#[test]
fn retry_after_is_read_as_seconds_or_a_date_and_capped() {
    let now = httpdate::parse_http_date("Mon, 23 Nov 2026 14:45:00 GMT").expect("a date");
    let read = |value: &'static str, date: Option<&'static str>| {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        headers.extend(date.map(|date| (header::DATE, HeaderValue::from_static(date))));
        retry_after(&headers, now)
    };

    assert_eq!(read("0", None), Some(Duration::ZERO));
    assert_eq!(read(" 120 ", None), Some(Duration::from_mins(2)));
    assert_eq!(read("99999999", None), Some(DELAY_MAX));
    assert_eq!(read("99999999999999999999999999", None), Some(DELAY_MAX));
    assert_eq!(read("Mon, 23 Nov 2026 14:46:30 GMT", None), Some(Duration::from_secs(90)));
    assert_eq!(read("Mon, 23 Nov 2026 14:44:00 GMT", None), Some(Duration::ZERO), "already past");
    assert_eq!(read("Tue, 23 Nov 2027 14:44:00 GMT", None), Some(DELAY_MAX));
    for nonsense in ["", "soon", "-5", "1.5", "+5"] {
        assert_eq!(read(nonsense, None), None, "{nonsense:?}");
    }
    // Our clock is a year behind that of the server.
    let (date, later) = ("Tue, 23 Nov 2027 14:45:00 GMT", "Tue, 23 Nov 2027 14:45:07 GMT");
    assert_eq!(read(later, Some(date)), Some(Duration::from_secs(7)));
}

#[test]
fn what_keeps_an_answer_from_coming_is_a_failed_attempt() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let refused = report_of(&handler(&format!("http://{free}/")), "a", "{}");
    let nameless = report_of(&handler("http://name.invalid/"), "a", "{}");
    let not_http = report_of(&handler(&raw_server(|mut peer| drop(peer.write_all(b"SSH-2.0-x\r\n\r\n")))), "a", "{}");
    let hung_up = report_of(&handler(&raw_server(drop)), "a", "{}");

    for report in [refused, nameless, not_http, hung_up] {
        let Report::Retry { reason, delay: None } = report else { panic!("{report:?}") };
        assert!(reason.starts_with("POST http://") && reason.contains(" failed: "), "{reason}");
    }
}

#[test]
fn a_server_without_tls_is_a_failed_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}/", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            // OK: a client that has hung up has its report as well
            let mut hello = [0; 1024];
            let _ = peer.read(&mut hello);
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });

    let reason = reason_of(report_of(&handler(&url), "a", "{}"));

    assert!(reason.contains(" failed: "), "{reason}");
}

#[test]
fn a_server_that_hangs_costs_the_time_limit_and_no_more() {
    let (keep, kept) = mpsc::channel();
    let url = raw_server(move |peer| drop(keep.send(peer)));

    let started = Instant::now();
    let report = report_within(&handler(&url), &claimed("a", "{}"), Duration::from_millis(400));

    let took = started.elapsed();
    assert!(reason_of(report).contains("was ended at its time limit, after "));
    assert!(took >= Duration::from_millis(400) && took < SLACK, "{took:?}");
    drop(kept);
}

#[test]
fn a_server_that_never_reads_costs_the_time_limit_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let payload = format!("\"{}\"", "x".repeat(30_000_000));

    let started = Instant::now();
    let report = report_within(&handler(&url), &claimed("a", &payload), Duration::from_millis(400));

    assert!(matches!(report, Report::Retry { .. }), "the connection is accepted by the system, but not read");
    assert!(started.elapsed() < SLACK);
}

#[test]
fn a_stop_ends_the_call() {
    let (keep, kept) = mpsc::channel();
    let url = raw_server(move |peer| drop(keep.send(peer)));
    let (handler, job, stop) = (handler(&url), claimed("a", "{}"), StopFlag::new());

    let started = Instant::now();
    let report = thread::scope(|scope| {
        let running = scope.spawn(|| handler.run(&Attempt { job: &job, deadline: Instant::now() + LONG, stop: &stop }));
        let peer = kept.recv().expect("the call has arrived");
        stop.set();
        let report = running.join().expect("no panic");
        drop(peer);
        report
    });

    assert!(reason_of(report).contains("the attempt was stopped"));
    assert!(started.elapsed() < SLACK);
}

#[test]
fn an_attempt_that_is_already_over_calls_nobody() {
    let (url, seen) = server(200, &[], "");
    let (job, stop) = (claimed("a", "{}"), StopFlag::new());
    stop.set();

    let late = report_within(&handler(&url), &job, Duration::ZERO);
    let stopped = handler(&url).run(&Attempt { job: &job, deadline: Instant::now() + LONG, stop: &stop });

    assert!(reason_of(late).contains("was not sent") && reason_of(stopped).contains("was not sent"));
    assert!(seen.try_recv().is_err());
}

#[test]
fn a_body_that_trickles_is_not_waited_for_beyond_its_limit() {
    let trickle = |head: &'static str| {
        raw_server(move |mut peer| {
            thread::spawn(move || {
                let mut sent = peer.write_all(head.as_bytes());
                while sent.is_ok() {
                    sent = peer.write_all(b"x");
                    thread::sleep(Duration::from_millis(20)); // the pace of the server, which is what is tested
                }
            });
        })
    };
    let done = trickle("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
    let failed = trickle("HTTP/1.1 500 Oh\r\ncontent-length: 1000000\r\n\r\nbroken");

    let started = Instant::now();
    assert_eq!(report_of(&handler(&done), "a", "{}"), Report::Done);
    let reason = reason_of(report_of(&handler(&failed), "a", "{}"));
    let took = started.elapsed();
    assert!(reason.contains(": brokenx"), "what came is shown: {reason}");
    assert!(took >= BODY_WAIT && took < 2 * BODY_WAIT + SLACK, "{took:?}");

    let started = Instant::now();
    let job = claimed("a", "{}");
    assert_eq!(report_within(&handler(&done), &job, Duration::from_millis(300)), Report::Done);
    assert!(started.elapsed() < BODY_WAIT, "also not beyond the time limit");
}

#[test]
fn an_endless_body_is_not_read_to_its_end() {
    let url = raw_server(|mut peer| {
        thread::spawn(move || {
            let mut sent = peer.write_all(b"HTTP/1.1 500 Oh\r\n\r\n");
            while sent.is_ok() {
                sent = peer.write_all(&[b'x'; 4096]);
            }
        });
    });

    let started = Instant::now();
    let reason = reason_of(report_of(&handler(&url), "a", "{}"));

    assert!(reason.ends_with(&format!(": {}…", "x".repeat(2_000))), "{reason}");
    assert!(started.elapsed() < BODY_WAIT, "bounded by bytes, not by time");
}

#[test]
fn an_endless_head_is_refused() {
    let url = raw_server(|mut peer| {
        let mut sent = peer.write_all(b"HTTP/1.1 200 OK\r\n");
        while sent.is_ok() {
            sent = peer.write_all(b"x-filling: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n");
        }
    });

    let report = report_of(&handler(&url), "a", "{}");

    assert!(matches!(report, Report::Retry { .. }), "{report:?}");
}

#[test]
fn calls_share_a_connection_also_over_handlers_and_after_errors() {
    let (url, seen) = server(500, &[], "a short answer");
    let mut places: Vec<_> = (0..4)
        .map(|_| {
            report_of(&handler(&url), "a", "{}");
            seen.recv().expect("a call").from
        })
        .collect();
    places.dedup();

    assert_eq!(places.len(), 1, "one connection for all: {places:?}");
}

#[test]
fn a_connection_that_the_server_closed_meanwhile_is_not_used_again() {
    let (send, closed) = mpsc::channel();
    let url = raw_server(move |mut peer| {
        drop(peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        drop(peer);
        send.send(()).unwrap_or_default();
    });
    let handler = handler(&url);

    for _ in 0..3 {
        assert_eq!(report_of(&handler, "a", "{}"), Report::Done);
        closed.recv().expect("closed");
    }
}

#[test]
fn a_url_that_cannot_be_called_is_refused() {
    for bad in
        ["", "example.com", "/hook", "ftp://example.com/", "http://", "http:///x", "https://user:pw@example.com/"]
    {
        let error = HttpHandler::new(bad).expect_err(bad);
        assert!(matches!(error, HttpHandlerError::Url(_)), "{bad}");
        assert!(!error.to_string().contains("pw"), "{error}");
    }
    let shown = format!("{:?}", handler("https://example.com:8443/hooks/pay?key=s3cret"));
    assert_eq!(shown, "HttpHandler(\"https://example.com:8443/hooks/pay\")");
}

#[test]
fn a_header_that_cannot_be_sent_is_refused_without_its_value() {
    let refused = |name: &str, value: &str| {
        let error = handler("http://example.com/").header(name, value).expect_err(name);
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error.to_string()
    };

    assert_eq!(refused("a b", "s3cret"), "header `a b`: not a name that a header can have");
    assert_eq!(refused("X-Key", "s3cret\n"), "header `X-Key`: holds a character that no header can");
    for own in ["content-type", "Content-Length", "Idempotency-Key", "Trilane-Token", "Trilane-Other", "user-agent"] {
        assert_eq!(refused(own, "s3cret"), format!("header `{own}`: is set by Trilane itself"));
    }
    let twice = handler("http://example.com/").header("X-Key", "a").and_then(|handler| handler.header("x-key", "b"));
    assert_eq!(twice.expect_err("twice").to_string(), "header `x-key`: is given twice");
}

#[test]
fn a_file_of_authorities_without_a_certificate_is_refused() {
    let scratch = Scratch::new();
    let refused = |name: &str| {
        let error = handler("https://example.com/").ca_file(&scratch.file(name)).expect_err(name);
        error.to_string()
    };
    std::fs::write(scratch.file("text"), "not a certificate").expect("a file");
    std::fs::write(scratch.file("broken"), "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")
        .expect("a file");
    std::fs::write(scratch.file("huge"), vec![b'x'; 1024 * 1024 + 1]).expect("a file");

    assert!(refused("missing").ends_with("missing: No such file or directory (os error 2)"));
    assert!(refused("text").ends_with("text: holds no certificate, expected PEM"));
    assert!(refused("broken").contains("broken: "));
    assert!(refused("huge").ends_with("huge: larger than 1048576 bytes"));
}

#[test]
fn a_panic_in_a_call_leaves_no_flag_behind_for_the_next() {
    let stop = StopFlag::new();
    stop.set();
    let panicked = std::panic::catch_unwind(|| network::stoppable(&stop, || panic!("on purpose")));
    assert!(panicked.is_err());

    let (url, _seen) = server(200, &[], "");
    assert_eq!(report_of(&handler(&url), "a", "{}"), Report::Done);
}

#[test]
fn many_threads_share_one_handler() {
    let (send, calls) = mpsc::channel();
    let url = raw_server(move |mut peer| {
        let answered = peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        send.send(answered.is_ok()).unwrap_or_default();
    });
    let handler = handler(&url);

    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| assert_eq!(report_of(&handler, "a", "{}"), Report::Done)));
        }
    });

    assert!((0..160).all(|_| calls.recv_timeout(LONG) == Ok(true)));
    assert!(calls.try_recv().is_err(), "each attempt calls once");
}
