//! A small HTTP/1.1 server on threads: `tiny_http` 0.12, cut down to what Trilane uses and hardened (`vendor/README.md`).
//!
//! * One thread accepts, one thread serves each connection, one watches all of them (`watch`).
//! * A connection's own thread calls the [`Service`] with each request, one after the other, so a slow client holds nothing but its own
//!   connection, and what it pipelines waits in its socket.
//! * Everything that a client can make large or long has a limit: [`Limits`].

mod client;
mod common;
mod head;
mod request;
mod watch;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

pub use common::{HTTPVersion, Header, HeaderField, Method, StatusCode};
pub use request::{Request, Writer};
pub use watch::Counts;

use client::Client;
use watch::{Admission, Watch};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;
/// The stack of a thread that serves a connection. Only what is touched of it takes memory.
const STACK_BYTES: usize = 1 << 20;
/// The pause after an accept that failed for want of something, while which something may be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long those who had connected before the port is closed may take to ask and to be answered.
const LAST_WAIT: Duration = Duration::from_millis(250);
/// Between two looks at them.
const LAST_LOOK_EVERY: Duration = Duration::from_millis(1);

/// What one client, and all together, may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. At the limit those that do nothing make room; where none does, a new one is refused with 503.
    pub connections_max: usize,
    /// Bytes of a head: request line and headers.
    pub head_bytes_max: usize,
    /// Headers of a request, at most 128.
    pub headers_max: usize,
    /// How long a connection may be silent between two requests.
    pub idle: Duration,
    /// How long the first byte of a connection's first request, and then all of a head, may take.
    pub head: Duration,
    /// How long each [`BODY_STEP_BYTES`] of a body, or its rest, may take.
    pub body: Duration,
    /// How long a client may take for each [`ANSWER_STEP_BYTES`] of an answer.
    pub answer: Duration,
    /// How long a connection that is over is kept for its last answer to be read.
    pub leave: Duration,
    /// What `head`, `body` and `answer` are at most during a stop.
    pub hurry: Duration,
}

/// A body must come at least this fast: so many bytes within [`Limits::body`].
pub const BODY_STEP_BYTES: usize = 16 << 10;
/// An answer must be taken at least this fast: so many bytes within [`Limits::answer`].
pub const ANSWER_STEP_BYTES: usize = 32 << 10;
/// A body that nobody read is read to its end, for the sake of the connection, where no more than this is left of it.
pub const UNREAD_BYTES_MAX: u64 = 64 << 10;

/// What is done with requests.
pub trait Service: Send + Sync + 'static {
    /// Answers a request, on the thread of its connection. A request that is dropped without an answer closes the connection.
    fn serve(&self, request: Request<'_>);

    /// The whole answer, with `Connection: close`, to what is no request, or may not be served.
    fn refusal(&self, refusal: Refusal) -> Vec<u8>;

    /// Is told what an operator should know. Must not block.
    fn notice(&self, notice: Notice<'_>);
}

/// Why a connection is closed with an answer that the service did not ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: what is wrong with the head.
    Malformed(&'static str),
    /// 408: the head did not come in time.
    Slow,
    /// 417: an `Expect` other than `100-continue`.
    Expectation,
    /// 431: more than [`Limits::head_bytes_max`] or [`Limits::headers_max`].
    HeadTooLarge,
    /// 501: a `Transfer-Encoding` other than `chunked`.
    Coding,
    /// 503: [`Limits::connections_max`].
    Full,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    Version,
}

/// What an operator should know. Each begins once, and ends once it has not happened for a while.
#[derive(Debug)]
pub enum Notice<'a> {
    /// No connection can be accepted: no file handle, no memory, no thread. It is tried again and again.
    AcceptFails(&'a io::Error),
    /// The end of it, with its length.
    Accepts(Duration),
    /// All connections are taken: idle ones are closed, or new ones refused.
    Full,
    /// The end of it, with its length and what happened since the server was started.
    Room(Duration, Counts),
}

/// A running server. Dropping it closes the port and all connections.
pub struct Server {
    listener: Arc<TcpListener>,
    watch: Arc<Watch>,
    service: Arc<dyn Service>,
}

impl Server {
    /// Serves what connects to `listener`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(listener: TcpListener, limits: Limits, service: Arc<dyn Service>) -> io::Result<Server> {
        // The standard library's backlog is shorter, and what does not fit in waits for its next try, a second later.
        SockRef::from(&listener).listen(BACKLOG)?;
        let server =
            Server { listener: Arc::new(listener), watch: Arc::new(Watch::new(limits)), service: Arc::clone(&service) };
        let (watch, watching) = (Arc::clone(&server.watch), Arc::clone(&service));
        thread::Builder::new().name("http-watch".to_owned()).spawn(move || watch.run(watching.as_ref()))?;
        // A handle of its own, so that the port is free as soon as the thread has ended.
        let (watch, listener) = (Arc::clone(&server.watch), Arc::clone(&server.listener));
        thread::Builder::new().name("http-accept".to_owned()).spawn(move || accept_all(&listener, &watch, &service))?;
        Ok(server)
    }

    /// The address that is served.
    ///
    /// # Errors
    /// Those of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// From now on clients get no more than [`Limits::hurry`] for anything.
    pub fn hurry(&self) {
        self.watch.hurry();
    }

    /// Closes the port, and lets those be served who had connected before: what waits to be accepted when a port is closed is cut without
    /// a word.
    fn close_port(&self) {
        self.watch.leave();
        let deadline = Instant::now() + LAST_WAIT;
        let socket = SockRef::from(self.listener.as_ref());
        // The queue gets no longer meanwhile. OK: errors, as in `shutdown` below
        let _ = socket.listen(0);
        let _ = socket.set_nonblocking(true);
        while let (Ok((stream, address)), true) = (self.listener.accept(), Instant::now() < deadline) {
            let _ = stream.set_nonblocking(false); // OK: it is so already where systems do not inherit it
            welcome(stream, address, &self.watch, &self.service);
        }
        // It ends the accept that waits. OK: that it fails means that there is nothing to end.
        let _ = socket.shutdown(std::net::Shutdown::Both);
        while self.watch.serves() && Instant::now() < deadline {
            thread::sleep(LAST_LOOK_EVERY);
        }
    }

    /// What the connections do and did.
    pub fn counts(&self) -> Counts {
        self.watch.counts()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close_port();
        self.watch.close();
    }
}

fn accept_all(listener: &TcpListener, watch: &Arc<Watch>, service: &Arc<dyn Service>) {
    while !watch.is_leaving() {
        match listener.accept() {
            Ok((socket, address)) => welcome(socket, address, watch, service),
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                if watch.is_leaving() {
                    return;
                }
                watch.accept_failed(&error, service.as_ref());
                // A connection that does nothing may hold what is wanting.
                watch.make_room();
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Errors that speak of the connection that was to be accepted, not of the server.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut)
}

/// Says so and does not wait. OK: errors; what has come is read, for it would take back what is said.
fn dismiss(socket: &TcpStream, refusal: &[u8]) {
    if socket.set_nonblocking(true).is_ok() {
        let mut socket = socket;
        let _ = socket.read(&mut [0; 4 << 10]);
        let _ = socket.write(refusal);
    }
}

fn welcome(socket: TcpStream, address: SocketAddr, watch: &Arc<Watch>, service: &Arc<dyn Service>) {
    // An answer is written at once, and must not wait for the last one to be acknowledged. OK: without it, it is only slower.
    let _ = socket.set_nodelay(true);
    let (connection, refused) = match watch.admit(socket, service.as_ref()) {
        Admission::Served(connection) => (connection, false),
        Admission::Refused(connection) => (connection, true),
        Admission::Dropped(socket) => return dismiss(&socket, &service.refusal(Refusal::Full)),
    };
    let for_thread = Arc::clone(service);
    let spawned = thread::Builder::new().name("http".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        let mut client = Client::new(connection, address);
        if refused {
            client.refuse(for_thread.as_ref(), Refusal::Full);
        } else {
            client.run(for_thread.as_ref());
        }
    });
    // The closure is dropped, and its connection closed.
    if let Err(error) = spawned {
        watch.accept_failed(&error, service.as_ref());
        watch.make_room();
        thread::sleep(ACCEPT_PAUSE);
    }
}
