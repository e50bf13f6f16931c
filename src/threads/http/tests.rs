//! The HTTP threads over real sockets, with a backend in memory.

mod client;
mod hostile;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::*;
use crate::api::fake::Fake;
use client::{Client, Reply};

const JOB: &str = r#"{"type":"t"}"#;
/// The length of a long body that is not too long.
const LONG: usize = 3_000;

fn options() -> HttpOptions {
    let (client_wait, idle_wait) = (Duration::from_secs(10), Duration::from_mins(1));
    HttpOptions { connections_max: 64, client_wait, idle_wait, body_bytes_max: 4_000 }
}

/// Starts a server over `fake`.
fn serve(fake: &Arc<Fake>) -> HttpThreads {
    serve_with(fake, &options())
}

fn serve_with(fake: &Arc<Fake>, options: &HttpOptions) -> HttpThreads {
    let server = HttpServer::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    server.start(Arc::new(fake.api()), options, &HttpCounts::default()).expect("threads")
}

fn post(body: &str) -> String {
    format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Makes every submit of `fake` tell that it has begun, and wait until it is let go.
fn hold_submits(fake: &Fake) -> (Receiver<()>, Sender<()>) {
    let (tell, begun) = crossbeam_channel::unbounded();
    let (go, wait) = crossbeam_channel::unbounded::<()>();
    fake.state().on_submit = Some(Arc::new(Box::new(move || {
        let _ = tell.send(());
        let _ = wait.recv_timeout(Duration::from_secs(10));
    })));
    (begun, go)
}

#[test]
fn requests_on_one_connection_are_answered_one_after_the_other() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());

    let enqueued = client.ask(&post(JOB));
    let listed = client.ask(&get("/getAllJobs"));
    let unknown = client.ask(&get("/nothing"));

    assert_eq!((enqueued.status, listed.status, unknown.status), (200, 200, 404));
    assert!(enqueued.head.contains("\r\nDate: ") && enqueued.head.contains("\r\nServer: trilane\r\n"));
    assert!(enqueued.head.contains(&format!("\r\nContent-Length: {}\r\n", enqueued.body.len())));
    assert!(listed.head.contains("\r\nTransfer-Encoding: chunked\r\n"));
    assert!(listed.body.starts_with("[{") && listed.body.ends_with("}]"));
    assert!(unknown.head.contains("\r\nContent-Type: application/problem+json\r\n"));
}

#[test]
fn head_is_answered_as_get_without_the_body() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());

    for target in ["/healthz", "/getAllJobs", "/nothing"] {
        client.send(get(target).replace("GET", "HEAD").as_bytes());
        let head = client.read_head();

        assert!(head.contains("\r\nContent-Length: ") || head.contains("\r\nTransfer-Encoding: chunked"), "{head}");
    }
    assert_eq!(client.ask(&get("/healthz")).body, r#"{"status":"ok"}"#);
}

#[test]
fn a_chunked_body_is_read_and_bounded() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let head = "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());

    let whole =
        Client::connect(server.local_addr()).ask(&format!("{head}{}{}0\r\n\r\n", chunk("{\"type\""), chunk(":\"t\"}")));
    let large = Client::connect(server.local_addr()).ask(&format!("{head}{}", chunk(&" ".repeat(4_001))));

    assert_eq!((whole.status, large.status), (200, 413));
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on_or_not() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let head = |length: usize| {
        format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };

    let mut welcome = Client::connect(server.local_addr());
    welcome.send(head(JOB.len()).as_bytes());
    let go_on = welcome.read_head();
    let stored = welcome.ask(JOB);
    drop(welcome);
    let refused = Client::connect(server.local_addr()).ask(&head(4_001));

    assert!(go_on.starts_with("HTTP/1.1 100 "), "{go_on}");
    assert_eq!((stored.status, refused.status), (200, 413));
}

#[test]
fn an_answer_does_not_wait_for_a_body_that_is_not_wanted() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());

    // The body follows only after the answer is here; then the connection goes on.
    let unknown = client.ask(&format!("POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LONG}\r\n\r\n"));
    client.send(&vec![b'x'; LONG]);
    let next = client.ask(&get("/healthz"));
    let bodily = client.ask(&format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LONG}\r\n\r\n"));

    assert_eq!((unknown.status, next.status, bodily.status), (404, 200, 400));
    assert!(unknown.head.contains("\r\nServer: trilane\r\n") && !unknown.head.contains("tiny"));
}

#[test]
fn a_client_that_dies_in_its_body_sets_the_thread_free() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);

    for length in [LONG, 4_001, 1_000_000] {
        let mut dying = Client::connect(server.local_addr());
        dying
            .send(format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n[").as_bytes());
        drop(dying);
    }

    assert_eq!(Client::connect(server.local_addr()).ask(&post(JOB)).status, 200);
}

#[test]
fn an_offer_to_change_the_protocol_is_passed_over() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    let ask =
        |request: &str| Client::connect(server.local_addr()).ask(&request.replacen("\r\n", &format!("\r\n{offer}"), 1));
    let long = format!("[{JOB}{}]", " ".repeat(LONG));

    assert_eq!(ask(&post(JOB)).status, 200);
    assert_eq!(ask(&post(&long)).status, 200);
    assert_eq!(ask(&get("/getAllJobs")).status, 200);
    assert_eq!(ask("POST /enqueue HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 400);
    assert_eq!(
        ask("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n")
            .status,
        422
    );
}

#[test]
fn a_large_listing_comes_whole() {
    let fake = Arc::new(Fake::default());
    fake.fill(3_000, "t", &"x".repeat(900));
    let server = serve(&fake);

    let listed = Client::connect(server.local_addr()).ask(&get("/getAllJobs"));

    let rows: Vec<serde_json::Value> = serde_json::from_str(&listed.body).expect("an array");
    assert_eq!(rows.len(), 3_000);
}

#[test]
fn a_listing_that_fails_halfway_is_no_valid_answer() {
    let fake = Arc::new(Fake::default());
    fake.fill(200, "t", "{}");
    fake.state().reads_max = Some(1);
    let server = serve(&fake);

    let close = get("/getAllJobs").replacen("\r\n", "\r\nConnection: close\r\n", 1);
    for request in [get("/getAllJobs"), close] {
        let mut client = Client::connect(server.local_addr());
        client.send(request.as_bytes());
        assert!(client.read_head().starts_with("HTTP/1.1 200 "));
        assert_eq!(client.read_chunks(), Err("!broken off".to_owned()));
        fake.state().reads_max = Some(fake.reads() + 1);
    }
}

#[test]
fn http_1_0_is_served_and_its_listing_ends_with_the_connection() {
    let fake = Arc::new(Fake::default());
    fake.fill(200, "t", "{}");
    let server = serve(&fake);
    let read_all = |request: &str| {
        let mut stream = TcpStream::connect(server.local_addr()).expect("connected");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        text
    };

    let health = read_all("GET /healthz HTTP/1.0\r\n\r\n");
    let listed = read_all("GET /getAllJobs HTTP/1.0\r\n\r\n");
    fake.state().reads_max = Some(fake.reads() + 1);
    let broken = read_all("GET /getAllJobs HTTP/1.0\r\n\r\n");
    fake.state().reads_max = None;
    let kept = read_all("GET /getAllJobs HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let mut keeping = Client::connect(server.local_addr());
    let first = keeping.ask("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    let second = keeping.ask("GET /healthz HTTP/1.0\r\n\r\n");

    assert!(health.ends_with("\r\n\r\n{\"status\":\"ok\"}"), "{health}");
    assert!(listed.contains("\r\n\r\n[{") && listed.ends_with("}]") && !listed.contains("chunked"));
    assert!(broken.ends_with('}'));
    assert!(kept.contains("\r\nConnection: close\r\n") && kept.ends_with("}]"));
    assert!(first.head.contains("\r\nConnection: keep-alive\r\n") && second.status == 200);
}

#[test]
fn a_panic_is_a_500_and_the_thread_lives_on() {
    let fake = Arc::new(Fake::default());
    fake.state().on_submit = Some(Arc::new(Box::new(|| panic!("on purpose"))));
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());

    let failed = client.ask(&post(JOB));
    fake.state().on_submit = None;
    let stored = client.ask(&post(JOB));

    assert_eq!((failed.status, stored.status), (500, 200));
    assert!(failed.body.contains("urn:trilane:problem:internal") && !failed.body.contains("on purpose"));
}

#[test]
fn requests_of_different_connections_are_under_way_together() {
    let fake = Arc::new(Fake::default());
    let (begun, go) = hold_submits(&fake);
    let server = serve(&fake);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(server.local_addr())).collect();

    for client in &mut clients {
        client.send(post(JOB).as_bytes());
    }
    for _ in 0..3 {
        begun.recv_deadline(soon()).expect("all three begin");
    }
    drop(go);

    assert!(clients.iter_mut().all(|client| client.read_reply().status == 200));
}

#[test]
fn a_stop_finishes_what_is_under_way_and_refuses_what_comes() {
    let fake = Arc::new(Fake::default());
    let (begun, go) = hold_submits(&fake);
    let server = serve(&fake);
    let addr = server.local_addr();
    let mut early = Client::connect(addr);
    let mut late = Client::connect(addr);
    early.send(post(JOB).as_bytes());
    begun.recv_deadline(soon()).expect("the first has begun");

    let stop = std::thread::spawn(move || server.stop(soon()));
    let refused = loop {
        let reply = late.ask(&get("/healthz"));
        if reply.status != 200 {
            break reply;
        }
        // What was begun before the stop and is answered after it closes its connection too.
        if reply.head.contains("\r\nConnection: close\r\n") {
            late = Client::connect(addr);
        }
    };
    let refused_unread = Client::connect(addr)
        .ask(&format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LONG}\r\n\r\n"));
    drop(late);
    drop(go);

    assert_eq!((refused.status, refused_unread.status), (503, 503));
    assert!(refused.head.contains("\r\nConnection: close\r\n") && refused.head.contains("\r\nRetry-After: 1\r\n"));
    assert_eq!(early.read_reply().status, 200);
    assert_eq!(stop.join().expect("no panic").0, 0);
}

#[test]
fn after_a_stop_open_and_new_connections_are_refused_until_the_rest_has_stopped() {
    let server = serve(&Arc::new(Fake::default()));
    let addr = server.local_addr();
    let mut open = Client::connect(addr);
    assert_eq!(open.ask(&get("/healthz")).status, 200);

    let (left, refusing) = server.stop(soon());
    assert_eq!(left, 0);
    let over_open = open.ask(&get("/healthz"));
    let over_new = Client::connect(addr).ask(&post(JOB));
    let begun = Instant::now();
    drop(refusing);

    assert_eq!((over_open.status, over_new.status), (503, 503));
    assert!(over_open.head.contains("\r\nConnection: close\r\n"), "{}", over_open.head);
    while let Err(error) = HttpServer::bind(addr) {
        assert!(Instant::now() < begun + Duration::from_secs(10), "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn whoever_connected_before_the_port_is_closed_is_answered() {
    let server = serve(&Arc::new(Fake::default()));
    let addr = server.local_addr();
    let (_, refusing) = server.stop(soon());
    let mut clients: Vec<Client> = (0..60)
        .map(|_| {
            let mut client = Client::connect(addr);
            client.send(post(JOB).as_bytes());
            client
        })
        .collect();

    drop(refusing);

    assert!(clients.iter_mut().all(|client| client.read_reply().status == 503));
}

#[test]
fn an_idle_server_stops_at_once_and_frees_its_port() {
    let server = serve(&Arc::new(Fake::default()));
    let addr = server.local_addr();
    let begun = Instant::now();

    assert_eq!(server.stop(soon()).0, 0);

    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    while let Err(error) = HttpServer::bind(addr) {
        assert!(Instant::now() < begun + Duration::from_secs(10), "{error}");
        std::thread::yield_now();
    }
}

#[test]
fn a_stop_does_not_wait_longer_than_its_deadline() {
    let fake = Arc::new(Fake::default());
    let (begun, _go) = hold_submits(&fake);
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());
    client.send(post(JOB).as_bytes());
    begun.recv_deadline(soon()).expect("it has begun");

    let asked = Instant::now();
    let (left_behind, _refusing) = server.stop(asked + Duration::from_millis(200));

    assert_eq!(left_behind, 1);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn a_port_that_is_taken_is_told_with_advice() {
    let first = HttpServer::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let addr = first.local_addr();

    let error = HttpServer::bind(addr).err().expect("taken").to_string();
    let elsewhere =
        HttpServer::bind("192.0.2.1:8080".parse().expect("an address")).err().expect("elsewhere").to_string();

    assert_eq!(error, format!("{addr} is taken by another process; stop it or set TRILANE_HTTP_ADDR"));
    assert!(elsewhere.starts_with("192.0.2.1:8080 is not an address of this host"), "{elsewhere}");
}

#[test]
fn a_half_closed_connection_still_gets_its_answer() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake);
    let mut client = Client::connect(server.local_addr());

    client.send(post(JOB).as_bytes());
    client.close(Shutdown::Write);

    let Reply { status, .. } = client.read_reply();
    assert_eq!(status, 200);
}
