//! Clients that are slow, silent or too many.

use std::process::Command;

use super::*;

/// How long a client may take where a test waits for that.
const SHORT: Duration = Duration::from_millis(300);
/// Who waits for it would wait in vain.
const NEVER: Duration = Duration::from_hours(1);

fn short() -> HttpOptions {
    HttpOptions { client_wait: SHORT, idle_wait: SHORT, ..options() }
}

fn patient(connections_max: usize) -> HttpOptions {
    HttpOptions { connections_max, client_wait: NEVER, idle_wait: NEVER, ..options() }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn open(server: &HttpThreads) -> u64 {
    server.server.counts().open
}

/// Connects, and waits until the server has taken it in.
fn connect(server: &HttpThreads) -> Client {
    let before = server.server.counts().accepted;
    let client = Client::connect(server.local_addr());
    wait_until("the connection is taken in", || server.server.counts().accepted > before);
    client
}

#[test]
fn a_head_that_comes_byte_by_byte_gets_408() {
    let server = serve_with(&Arc::new(Fake::default()), &short());
    let begun = Instant::now();
    let mut client = connect(&server);

    let mut bytes = get("/healthz").into_bytes();
    bytes.truncate(bytes.len() - 2);
    for byte in bytes.iter().cycle() {
        if client.try_send(&[*byte]).is_err() || server.server.counts().slow > 0 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "never: it is too slow");
        std::thread::sleep(Duration::from_millis(20));
    }

    assert!(begun.elapsed() >= SHORT);
    let reply = client.read_reply();
    assert_eq!(reply.status, 408);
    assert!(reply.head.contains("\r\nConnection: close\r\n") && reply.head.contains("problem+json"), "{}", reply.head);
    wait_until("its thread has left", || open(&server) == 0);
}

#[test]
fn empty_lines_before_a_head_do_not_buy_time() {
    let server = serve_with(&Arc::new(Fake::default()), &short());
    let mut client = connect(&server);

    let deadline = soon();
    while client.try_send(b"\r\n").is_ok() && server.server.counts().slow == 0 {
        assert!(Instant::now() < deadline, "never: it is too slow");
        std::thread::sleep(Duration::from_millis(20));
    }

    assert_eq!(client.read_reply().status, 408);
}

#[test]
fn a_body_that_does_not_come_gets_408() {
    let server = serve_with(&Arc::new(Fake::default()), &short());

    for head in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
        let mut client = connect(&server);
        client.send(format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n").as_bytes());
        let reply = client.read_reply();

        assert_eq!(reply.status, 408, "{head}");
        assert!(reply.head.contains("\r\nConnection: close\r\n"), "{}", reply.head);
    }
    wait_until("the threads have left", || open(&server) == 0);
    assert_eq!(server.server.counts().slow, 2);
}

#[test]
fn a_long_body_that_comes_steadily_is_not_slow() {
    let fake = Arc::new(Fake::default());
    let server = HttpServer::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let api = fake.api_with(|options| options.body_bytes_max = 1 << 20);
    let server = server.start(Arc::new(api), &short(), &HttpCounts::default()).expect("threads");
    let mut client = connect(&server);

    // Each step comes in time, all of them together would not.
    let step = vec![b' '; tiny_http::BODY_STEP_BYTES];
    let steps = 16;
    let length = steps * step.len() + JOB.len();
    client.send(format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n").as_bytes());
    let begun = Instant::now();
    for _ in 0..steps {
        client.send(&step);
        std::thread::sleep(SHORT / 8);
    }

    assert_eq!(client.ask(JOB).status, 200);
    assert!(begun.elapsed() > SHORT);
}

#[test]
fn a_client_that_takes_no_answer_is_cut() {
    let fake = Arc::new(Fake::default());
    fake.fill(30_000, "t", &"x".repeat(900));
    let server = serve_with(&fake, &short());
    let mut client = connect(&server);

    client.send(get("/getAllJobs").as_bytes());
    wait_until("it is cut", || server.server.counts().slow == 1 && open(&server) == 0);

    assert!(std::panic::catch_unwind(move || client.read_reply()).is_err(), "the listing is not whole");
}

#[test]
fn silent_connections_are_closed() {
    let server = serve_with(&Arc::new(Fake::default()), &short());
    let mut fresh = connect(&server);
    let mut kept = connect(&server);
    assert_eq!(kept.ask(&get("/healthz")).status, 200);

    assert!(fresh.is_ended() && kept.is_ended());

    wait_until("their threads have left", || open(&server) == 0);
    assert_eq!(server.server.counts().slow, 0);
}

#[test]
fn at_the_limit_connections_that_do_nothing_make_room() {
    let server = serve_with(&Arc::new(Fake::default()), &patient(8));
    let mut good = connect(&server);
    assert_eq!(good.ask(&get("/healthz")).status, 200);

    let mut silent: Vec<Client> = (0..7).map(|_| connect(&server)).collect();
    silent[6].send(b"GET /healthz HT");
    // They have had their time to say something.
    std::thread::sleep(Duration::from_millis(300));
    for round in 0..20 {
        let reply = Client::connect(server.local_addr()).ask(&post(JOB));
        assert_eq!(reply.status, 200, "round {round}");
    }
    // All seven in turn, before the one that was served.
    let more: Vec<Client> = (0..8).map(|_| Client::connect(server.local_addr())).collect();

    assert!(silent.iter_mut().all(Client::is_ended));
    let counts = server.server.counts();
    assert!(counts.open <= 8 && counts.displaced >= 7 && counts.refused == 0, "{counts:?}");
    drop(more);
}

#[test]
fn a_connection_that_was_served_outlives_silent_ones() {
    let server = serve_with(&Arc::new(Fake::default()), &patient(4));
    let mut good = connect(&server);
    assert_eq!(good.ask(&get("/healthz")).status, 200);

    let mut silent = Vec::new();
    for _ in 0..12 {
        silent.push(connect(&server));
        std::thread::sleep(Duration::from_millis(100));
    }

    assert_eq!(good.ask(&get("/healthz")).status, 200);
    assert!(server.server.counts().displaced >= 6);
}

#[test]
fn at_the_limit_of_requests_under_way_a_new_connection_gets_503() {
    let fake = Arc::new(Fake::default());
    let (begun, go) = hold_submits(&fake);
    let server = serve_with(&fake, &patient(3));
    let mut working: Vec<Client> = (0..3).map(|_| Client::connect(server.local_addr())).collect();
    for client in &mut working {
        client.send(post(JOB).as_bytes());
        begun.recv_deadline(soon()).expect("it begins");
    }

    let refused = Client::connect(server.local_addr()).ask(&get("/healthz"));
    drop(go);
    let all_done = working.iter_mut().all(|client| client.read_reply().status == 200);

    assert_eq!(refused.status, 503);
    assert!(refused.head.contains("\r\nRetry-After: 1\r\n"), "{}", refused.head);
    assert!(refused.head.contains("\r\nConnection: close\r\n"), "{}", refused.head);
    assert!(all_done, "what was under way is not disturbed");
    assert_eq!(Client::connect(server.local_addr()).ask(&post(JOB)).status, 200);
    assert_eq!(server.server.counts().refused, 1);
}

#[test]
fn large_bodies_share_a_bounded_memory_and_small_ones_go_past_it() {
    const LARGE: usize = 20 << 20;
    let fake = Arc::new(Fake::default());
    let server = HttpServer::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let api = fake.api_with(|options| options.body_bytes_max = LARGE);
    let options = HttpOptions { body_bytes_max: LARGE, ..patient(64) };
    let server = server.start(Arc::new(api), &options, &HttpCounts::default()).expect("threads");
    let head = format!("POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: {LARGE}\r\n\r\n");

    // The memory is that of four; all but the last byte of each is sent.
    let holders: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = connect(&server);
            client.send(head.as_bytes());
            client.send(&vec![b' '; LARGE - 1]);
            client
        })
        .collect();
    wait_until("all of it is read", || server.shared.shares.bodies.left() < 64 << 10);
    let mut fifth = connect(&server);
    fifth.send(head.as_bytes());
    fifth.send(&vec![b' '; 128 << 10]);
    let refused = fifth.read_reply();
    let small = connect(&server).ask(&post(JOB));
    drop(holders);

    assert_eq!((refused.status, small.status), (503, 200));
    assert!(refused.head.contains("\r\nRetry-After: 1\r\n"), "{}", refused.head);
    wait_until("all of it is given back", || server.shared.shares.bodies.left() == 4 * LARGE);
}

#[test]
fn listings_have_a_bounded_number_of_places_and_nothing_else_needs_one() {
    let server = serve(&Arc::new(Fake::default()));
    let mut client = connect(&server);
    let places = server.shared.shares.listings.left();

    let all = server.shared.shares.listings.take(places);
    let (listing, job) = (client.ask(&get("/failed-jobs")), client.ask(&post(JOB)));
    drop(all);
    let listing_after = client.ask(&get("/failed-jobs"));

    assert_eq!((listing.status, job.status, listing_after.status), (503, 200, 200));
    assert!(listing.head.contains("\r\nRetry-After: 1\r\n"), "{}", listing.head);
    // Its place is given back once the answer is sent.
    wait_until("its place is free", || server.shared.shares.listings.left() == places);
}

#[test]
fn a_stop_does_not_wait_long_for_clients_that_are_stuck() {
    let fake = Arc::new(Fake::default());
    fake.fill(30_000, "t", &"x".repeat(900));
    let server = serve_with(&fake, &patient(64));
    let idle = connect(&server);
    let mut in_head = connect(&server);
    in_head.send(b"GET /healthz HTTP/1.1\r\n");
    let mut in_body = connect(&server);
    in_body.send(b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n[");
    let mut in_answer = connect(&server);
    in_answer.send(get("/getAllJobs").as_bytes());
    wait_until("both are under way", || server.shared.busy.load(Ordering::SeqCst) == 2);

    let (left, refusing) = server.stop(soon());
    drop(refusing);

    assert_eq!(left, 0);
    drop((idle, in_head, in_answer));
    assert_eq!(in_body.read_reply().status, 408);
}

/// Set in the process that runs out of file handles.
const CHILD: &str = "TRILANE_TEST_FEW_HANDLES";

#[test]
fn a_server_that_ran_out_of_file_handles_accepts_again() {
    if std::env::var_os(CHILD).is_some() {
        run_out_of_handles();
        return;
    }
    // The limit is of a process, so this test runs itself in one of its own.
    let name = "threads::http::tests::hostile::a_server_that_ran_out_of_file_handles_accepts_again";
    let own = std::env::current_exe().expect("a path");
    for handles in [64, 65] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -n \"$1\" && exec \"$0\" --exact \"$2\" --nocapture"])
            .arg(&own)
            .args([&handles.to_string(), name])
            .env(CHILD, "1")
            .output()
            .expect("sh runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{handles} handles: {text}{errors}");
    }
}

/// Takes every handle there is by connections: two each, one here and one in the server.
fn run_out_of_handles() {
    let fake = Arc::new(Fake::default());
    let (begun, go) = hold_submits(&fake);
    let server = serve_with(&fake, &patient(1_000));
    // This one is at work, so that it makes no room.
    let mut first = Client::connect(server.local_addr());
    first.send(post(JOB).as_bytes());
    begun.recv_deadline(soon()).expect("it begins");

    let mut connections = Vec::new();
    let deadline = soon();
    while server.server.counts().displaced == 0 {
        assert!(Instant::now() < deadline, "never: it runs out of handles");
        if let Ok(connection) = TcpStream::connect(server.local_addr()) {
            connections.push(connection);
        }
    }
    drop(go);
    assert_eq!(first.read_reply().status, 200, "what is under way is not disturbed");
    drop(connections);

    assert_eq!(Client::connect(server.local_addr()).ask(&post(JOB)).status, 200);
}
