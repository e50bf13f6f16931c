//! What happens when `tiny_http` stops to accept.

use std::process::Command;

use super::*;

/// Asks over new connections until one is answered.
fn ask_until_accepted(addr: SocketAddr) -> Reply {
    let deadline = soon();
    loop {
        // A connection for which there is no second handle is closed unanswered.
        let answered = std::panic::catch_unwind(|| Client::connect(addr).ask(&get("/healthz")));
        match answered {
            Ok(reply) => return reply,
            Err(_) => assert!(Instant::now() < deadline, "never: a new connection is answered"),
        }
    }
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = soon();
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

/// Makes every `accept` fail from now on.
fn break_accept(server: &HttpThreads) {
    server.shared.listening.listener().set_nonblocking(true).expect("set");
    // The accept that waits already gets this connection; the one after it fails.
    drop(TcpStream::connect(server.local_addr()).expect("connected"));
    wait_until("the outage is noticed", || server.shared.listening.in_outage());
}

fn mend_accept(server: &HttpThreads) {
    server.shared.listening.listener().set_nonblocking(false).expect("set");
}

#[test]
fn after_an_accept_error_the_server_accepts_again_and_old_connections_live_on() {
    let fake = Arc::new(Fake::default());
    let server = serve(&fake, 2);
    let mut old = Client::connect(server.local_addr());
    assert_eq!(old.ask(&get("/healthz")).status, 200);

    break_accept(&server);
    let during = old.ask(&get("/healthz"));
    mend_accept(&server);
    let new = ask_until_accepted(server.local_addr());
    let after = old.ask(&get("/healthz"));

    assert_eq!((during.status, new.status, after.status), (200, 200, 200));
    assert!(!new.head.contains("Connection: close"));
    assert!(after.head.contains("\r\nConnection: close\r\n"), "the client should move over: {}", after.head);
}

#[test]
fn replaced_servers_do_not_pile_up() {
    let server = serve(&Arc::new(Fake::default()), 1);

    break_accept(&server);
    let retired = || server.shared.listening.retired();
    wait_until("it is replaced again and again", || retired() >= 2);
    mend_accept(&server);

    assert_eq!(ask_until_accepted(server.local_addr()).status, 200);
    assert!(retired() <= 8);
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
    let name = "threads::http::tests::outage::a_server_that_ran_out_of_file_handles_accepts_again";
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

/// Takes every handle there is by connections: three each, one here and two in `tiny_http`.
fn run_out_of_handles() {
    let server = serve(&Arc::new(Fake::default()), 2);
    let mut first = Client::connect(server.local_addr());
    assert_eq!(first.ask(&get("/healthz")).status, 200);

    let mut connections = Vec::new();
    while let Ok(connection) = TcpStream::connect(server.local_addr()) {
        connections.push(connection);
    }
    wait_until("the outage is noticed", || server.shared.listening.in_outage());
    assert_eq!(first.ask(&get("/healthz")).status, 200, "a connection that is there is served");
    drop(connections);

    assert_eq!(ask_until_accepted(server.local_addr()).status, 200);
    wait_until("the outage ends", || !server.shared.listening.in_outage());
}
