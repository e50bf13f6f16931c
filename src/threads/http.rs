//! The HTTP threads, `http-1` … `http-N`.
//!
//! 1. Takes the next request from `tiny_http`.
//! 2. Has the API answer it; a panic there becomes a 500, and the thread lives on.
//! 3. Sends the answer (`wire`), a listing as it is read from the store.
//! 4. Looks after the accept thread of `tiny_http`, which an error ends for good (`listening`).
//! 5. At a stop: finishes what is under way, refuses what still comes with 503, and leaves. `http-late` goes on refusing while the
//!    rest of the service stops: a client that keeps a connection would otherwise wait for the end of the process.
//!
//! Must not know routes, JSON or stores: those are the API's.
//!
//! # What is bounded, and what is not yet
//! Bounded are the threads here, the body that the API reads, the memory of a listing, and the time of a stop.
//! `tiny_http` 0.12 leaves open: the number of connections and of its threads (one for each), the length of a head, and the time
//! that a client takes to send a head or a body, or to take an answer. A client that sends a head and then no body, or takes
//! no answer, holds one HTTP thread until its connection ends. And a request that declares a `Content-Length` beyond the
//! memory of the machine ends the process, for `tiny_http` sets aside that much when it drops what was not read.

mod listening;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::join_until;
use crate::api::Api;
use listening::{Incoming, Listening};

/// How long a thread waits for a request before it looks around.
const REQUEST_WAIT: Duration = Duration::from_secs(1);
/// The same during a stop.
const REQUEST_WAIT_STOPPING: Duration = Duration::from_millis(20);
/// How long the last thread may take to notice that it is no longer needed.
const REFUSING_END_WAIT: Duration = Duration::from_millis(200);

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

    /// Starts `threads` HTTP threads, at least one.
    ///
    /// # Errors
    /// The system gives no more threads or file handles.
    pub fn start(self, api: Arc<Api>, threads: usize) -> io::Result<HttpThreads> {
        let listening = Arc::new(Listening::new(self.listener)?);
        let shared = Arc::new(Shared { api, listening, busy: AtomicUsize::new(0), stop_at: OnceLock::new() });
        let threads = threads.max(1);
        let (alive, all_left) = crossbeam_channel::bounded(0);
        let started = HttpThreads { shared, threads, local_addr: self.local_addr, all_left };
        for number in 1..=threads {
            let shared = Arc::clone(&started.shared);
            let alive = alive.clone();
            // On an error `started` is dropped, and with it every thread that runs already ends.
            thread::Builder::new().name(format!("http-{number}")).spawn(move || shared.run(&alive))?;
        }
        Ok(started)
    }
}

/// Nothing is ever sent: when the last thread drops its end, the other end knows.
enum Never {}

/// The running HTTP threads. Dropping them begins a stop and does not wait for it.
pub struct HttpThreads {
    shared: Arc<Shared>,
    threads: usize,
    local_addr: SocketAddr,
    all_left: Receiver<Never>,
}

impl HttpThreads {
    /// The address that the threads serve.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops: requests under way are finished, new ones get 503 and `Connection: close` meanwhile. Returns as soon as all threads
    /// have left, at the latest at `deadline`, with the number of requests that were still under way then; their threads are left
    /// behind.
    pub fn stop(self, deadline: Instant) -> usize {
        self.begin_stop(deadline);
        match self.all_left.recv_deadline(deadline) {
            Err(RecvTimeoutError::Disconnected) => 0,
            Err(RecvTimeoutError::Timeout) => self.shared.busy.load(Ordering::SeqCst),
            Ok(never) => match never {},
        }
    }

    /// Goes on refusing requests with 503 and `Connection: close` after a stop that ends at `deadline`, until what it returns is dropped.
    /// To be called before [`HttpThreads::stop`].
    ///
    /// # Errors
    /// The system gives no more threads; then requests that come late are not answered.
    pub fn refuse_late(&self, deadline: Instant) -> io::Result<Refusing> {
        let is_over = Arc::new(AtomicBool::new(false));
        let (listening, all_left, over) =
            (Arc::clone(&self.shared.listening), self.all_left.clone(), Arc::clone(&is_over));
        let thread = thread::Builder::new().name("http-late".to_owned()).spawn(move || {
            // Until then the others refuse.
            let _ = all_left.recv_deadline(deadline);
            while !over.load(Ordering::SeqCst) {
                if let Some(incoming) = listening.next(REQUEST_WAIT) {
                    wire::refuse(incoming.request);
                }
            }
        })?;
        Ok(Refusing { listening: Arc::clone(&self.shared.listening), is_over, thread })
    }

    fn begin_stop(&self, deadline: Instant) {
        let _ = self.shared.stop_at.set(deadline); // OK: a stop that has begun goes on
        self.shared.listening.wake(self.threads);
    }
}

impl Drop for HttpThreads {
    fn drop(&mut self) {
        self.begin_stop(Instant::now());
    }
}

/// Requests that come late are refused until this is dropped; then the port is closed.
pub struct Refusing {
    listening: Arc<Listening>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.listening.wake(1);
        // It may hang in a client that takes no answer; then it ends with the process.
        join_until(&self.thread, Instant::now() + REFUSING_END_WAIT);
    }
}

/// What the threads share.
struct Shared {
    api: Arc<Api>,
    listening: Arc<Listening>,
    // Requests under way.
    busy: AtomicUsize,
    // Set once, when a stop begins: its deadline.
    stop_at: OnceLock<Instant>,
}

impl Shared {
    /// The life of one thread.
    fn run(&self, _alive: &Sender<Never>) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.turn())) {
                Ok(true) => {}
                Ok(false) => {
                    // It may have taken the wake-up of another thread too.
                    self.listening.wake(1);
                    return;
                }
                // The panic hook has logged it. OK: what tiny_http or a stream did is dropped with its connection.
                Err(_) => thread::yield_now(),
            }
        }
    }

    /// Serves the next request, if one comes soon. Returns whether the thread should go on.
    fn turn(&self) -> bool {
        let Some(deadline) = self.stop_at.get() else {
            self.listening.mend();
            if let Some(incoming) = self.listening.next(REQUEST_WAIT) {
                self.serve(incoming);
            }
            return true;
        };
        match self.listening.next(REQUEST_WAIT_STOPPING) {
            Some(incoming) => {
                wire::refuse(incoming.request);
                true
            }
            None => self.busy.load(Ordering::SeqCst) > 0 && Instant::now() < *deadline,
        }
    }

    fn serve(&self, incoming: Incoming) {
        let _busy = Busy::new(&self.busy);
        // A connection that is to close is closed by the client: tiny_http has no way to close it.
        let close = incoming.retired || self.stop_at.get().is_some();
        wire::serve(incoming.request, &self.api, close);
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
