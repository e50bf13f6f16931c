//! The HTTP threads: `http-accept`, `http-watch`, and a thread `http` for each connection.
//!
//! 1. `tiny_http` (`vendor/README.md`) accepts connections, reads requests within its limits, and calls this module with each, on the
//!    thread of its connection. So a slow client holds up nothing but its own connection.
//! 2. The API answers the request; a panic there becomes a 500, and the thread lives on.
//! 3. The answer is sent (`wire`), a listing as it is read from the store.
//! 4. At a stop: what is under way is finished, what still comes is refused with 503, until the port is closed.
//!
//! Must not know routes, JSON or stores: those are the API's.
//!
//! # What is bounded
//! Connections, and so threads, and with them file handles (`handles`); heads, headers and bodies; the memory of all large bodies and
//! the number of listings under way (`share`); and the time for everything that a client does. `docs/OPERATIONS.md` has the numbers.

mod handles;
mod share;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tiny_http::{Counts, Limits, Notice, Refusal, Request, Server, Service};

use crate::api::Api;
pub use handles::raise_to as raise_file_handles;
use share::Shares;

/// The most bytes of a head: request line and headers.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The most headers of a request.
const HEADERS_MAX: usize = 64;
/// An answer may be taken slower than a request is sent, by this factor: what waits in the system's buffers counts as not taken.
const ANSWER_PATIENCE: u32 = 3;
/// How long a connection that is over is kept for its last answer to be read.
const LEAVE_WAIT: Duration = Duration::from_secs(2);
/// The most that clients are waited for during a stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How often a stop looks whether requests are still under way.
const STOP_LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the settings say of the server.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The most open connections.
    pub connections_max: usize,
    /// How long a client may take: for a head, for each step of a body, and thrice that for each step of an answer.
    pub client_wait: Duration,
    /// How long a connection may be silent between two requests.
    pub idle_wait: Duration,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
}

impl HttpOptions {
    fn limits(&self) -> Limits {
        Limits {
            connections_max: self.connections_max,
            head_bytes_max: HEAD_BYTES_MAX,
            headers_max: HEADERS_MAX,
            idle: self.idle_wait,
            head: self.client_wait,
            body: self.client_wait,
            answer: ANSWER_PATIENCE * self.client_wait,
            leave: LEAVE_WAIT,
            hurry: STOP_PATIENCE,
        }
    }
}

/// What is known of connections: for metrics, from before the server is started.
#[derive(Clone, Default)]
pub struct HttpCounts(Arc<OnceLock<Weak<Server>>>);

impl HttpCounts {
    /// The numbers of now; zeroes while nothing is served.
    pub fn get(&self) -> Counts {
        self.0.get().and_then(Weak::upgrade).map(|server| server.counts()).unwrap_or_default()
    }
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process listens there.
    #[error("{0} is taken by another process; stop it or set TRILANE_HTTP_ADDR")]
    Taken(SocketAddr),
    /// The address belongs to no interface of this host.
    #[error("{0} is not an address of this host; set TRILANE_HTTP_ADDR, for example to 127.0.0.1:8080")]
    NotHere(SocketAddr),
    /// Ports below 1024 need a privilege.
    #[error("this user may not listen on {0}; set TRILANE_HTTP_ADDR to a port from 1024 on")]
    NotAllowed(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// A bound address. Connections wait in its backlog until the server is started.
pub struct HttpServer {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl HttpServer {
    /// Binds `addr`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`], which says what to do.
    pub fn bind(addr: SocketAddr) -> Result<HttpServer, BindError> {
        let bound = TcpListener::bind(addr).and_then(|listener| Ok((listener.local_addr()?, listener)));
        match bound {
            Ok((local_addr, listener)) => Ok(HttpServer { listener, local_addr }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::AddrInUse => BindError::Taken(addr),
                io::ErrorKind::AddrNotAvailable => BindError::NotHere(addr),
                io::ErrorKind::PermissionDenied => BindError::NotAllowed(addr),
                _ => BindError::Other(addr, error),
            }),
        }
    }

    /// The address that is bound, with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Starts to serve; what `counts` gives is of this server from now on.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start(self, api: Arc<Api>, options: &HttpOptions, counts: &HttpCounts) -> io::Result<HttpThreads> {
        let shared = Arc::new(Shared {
            api,
            shares: Shares::new(options.body_bytes_max),
            busy: AtomicUsize::new(0),
            is_stopping: OnceLock::new(),
        });
        let server = Arc::new(Server::start(self.listener, options.limits(), Arc::<Shared>::clone(&shared))?);
        let _ = counts.0.set(Arc::downgrade(&server)); // OK: they are of the first server
        Ok(HttpThreads { shared, server, local_addr: self.local_addr })
    }
}

/// The running HTTP threads. Dropping them closes the port and all connections.
pub struct HttpThreads {
    shared: Arc<Shared>,
    server: Arc<Server>,
    local_addr: SocketAddr,
}

impl HttpThreads {
    /// The address that is served.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops: requests under way are finished, all that come get 503 and `Connection: close`. Returns as soon as none is under way, at
    /// the latest at `deadline`, with the number that still was; what comes is refused until the second value is dropped.
    pub fn stop(self, deadline: Instant) -> (usize, Refusing) {
        let _ = self.shared.is_stopping.set(()); // OK: a stop that has begun goes on
        self.server.hurry();
        let busy = || self.shared.busy.load(Ordering::SeqCst);
        while busy() > 0 && Instant::now() < deadline {
            thread::sleep(STOP_LOOK_EVERY);
        }
        (busy(), Refusing { _server: self.server })
    }
}

/// Requests that come late are refused until this is dropped; then the port and all connections are closed.
pub struct Refusing {
    _server: Arc<Server>,
}

/// What the threads share.
struct Shared {
    api: Arc<Api>,
    shares: Shares,
    // Requests under way.
    busy: AtomicUsize,
    // Set once, when a stop begins.
    is_stopping: OnceLock<()>,
}

impl Service for Shared {
    fn serve(&self, request: Request<'_>) {
        let busy = Busy::new(&self.busy);
        // Only once it is counted, so that a stop either sees it or is seen.
        if self.is_stopping.get().is_some() {
            drop(busy);
            return wire::refuse(request);
        }
        let is_stopping = || self.is_stopping.get().is_some();
        wire::serve(request, &self.api, &self.shares, &is_stopping);
    }

    fn refusal(&self, refusal: Refusal) -> Vec<u8> {
        wire::refusal(refusal)
    }

    fn notice(&self, notice: Notice<'_>) {
        let millis = |time: Duration| time.as_millis();
        match notice {
            Notice::AcceptFails(error) => {
                log::warn!(error:%; "http can accept no new connections; it goes on trying");
            }
            Notice::Accepts(outage) => log::info!(outage_ms = millis(outage); "http accepts connections again"),
            Notice::Full => {
                log::warn!(
                    "http has as many connections as it may; those that do nothing are closed, or new ones refused"
                );
            }
            Notice::Room(time, Counts { open, refused, displaced, .. }) => {
                handles::give_memory_back();
                log::info!(
                    time_ms = millis(time), connections = open, refused_total = refused, displaced_total = displaced;
                    "http has room for connections again"
                );
            }
        }
    }
}

/// Counts a request as under way until it is dropped, after a panic too.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Busy<'a> {
        count.fetch_add(1, Ordering::SeqCst);
        Busy(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
