//! The listening socket and the `tiny_http` server on it, which is replaced when it stops to accept.
//!
//! `tiny_http` 0.12 accepts on a thread of its own. When `accept` fails (too many open files, a connection aborted in the backlog)
//! that thread ends for good, with one error in the queue of requests; when a second handle for the new connection cannot be
//! had, or no thread, it panics, and nothing tells. In both cases it closes its handle of the listening socket: that is how it
//! is found out here. We keep a handle of our own, so the port stays ours, and connections wait in the backlog.
//!
//! The connections of the old server live on, and put their requests in the old queue, which nobody else reads. So a replaced
//! server is still asked for requests for a while. Their answers say `Connection: close`, so the clients connect anew.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tiny_http::Server;

/// How often the accept thread is looked after.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause between an error and the new server.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);
/// File handles that must be free before a new server is worth while: a few connections need two each.
const SPARE_HANDLES: usize = 8;
/// How long a replaced server is asked for requests. Connections that are silent for longer are given up by most clients.
const RETIRED_KEPT: Duration = Duration::from_mins(10);
/// The most replaced servers that are asked.
const RETIRED_MAX: usize = 8;
/// How long to wait for a request at once while replaced servers must be asked too.
const RETIRED_WAIT: Duration = Duration::from_millis(20);

/// A request, and whether it came over a connection of a replaced server.
pub(super) struct Incoming {
    pub(super) request: tiny_http::Request,
    pub(super) retired: bool,
}

/// See the module.
pub(super) struct Listening {
    listener: TcpListener,
    servers: Mutex<Servers>,
    care: Mutex<Care>,
}

struct Servers {
    current: Arc<Server>,
    retired: Vec<(Instant, Arc<Server>)>,
}

/// What is known of the accept thread of the current server.
struct Care {
    handle: Handle,
    next_look: Instant,
    // Since when it does not accept.
    outage: Option<Instant>,
}

/// The handle of the listening socket that the accept thread owns: open as long as the thread lives.
struct Handle {
    // `None` where there is no /proc; then only the errors that tiny_http tells are known.
    link: Option<(PathBuf, PathBuf)>,
    failed: bool,
}

impl Handle {
    fn is_open(&self) -> bool {
        let same = |(path, socket): &(PathBuf, PathBuf)| std::fs::read_link(path).is_ok_and(|now| now == *socket);
        !self.failed && self.link.as_ref().is_none_or(same)
    }
}

impl Listening {
    /// Starts to accept.
    ///
    /// # Errors
    /// There is no file handle left.
    pub(super) fn new(listener: TcpListener) -> io::Result<Listening> {
        let (current, handle) = open(&listener)?;
        let servers = Mutex::new(Servers { current, retired: Vec::new() });
        let care = Mutex::new(Care { handle, next_look: Instant::now() + LOOK_INTERVAL, outage: None });
        Ok(Listening { listener, servers, care })
    }

    /// The next request, if one comes within `wait`.
    pub(super) fn next(&self, wait: Duration) -> Option<Incoming> {
        let (current, retired) = {
            let servers = lock(&self.servers);
            (Arc::clone(&servers.current), servers.retired.clone())
        };
        for (_, server) in &retired {
            if let Ok(Some(request)) = server.try_recv() {
                return Some(Incoming { request, retired: true });
            }
        }
        let wait = if retired.is_empty() {
            wait
        } else {
            wait.min(RETIRED_WAIT)
        };
        match current.recv_timeout(wait) {
            // Meanwhile the server may have been replaced.
            Ok(request) => request.map(|request| Incoming { request, retired: !self.is_current(&current) }),
            Err(error) => {
                self.begin_outage(&error.to_string());
                None
            }
        }
    }

    fn is_current(&self, server: &Arc<Server>) -> bool {
        Arc::ptr_eq(server, &lock(&self.servers).current)
    }

    /// Wakes `threads` threads that wait in [`Listening::next`].
    pub(super) fn wake(&self, threads: usize) {
        let servers = lock(&self.servers);
        for _ in 0..threads {
            servers.current.unblock();
        }
    }

    /// Looks after the accept thread once a second, and replaces the server when it has ended. Cheap, and never waits.
    pub(super) fn mend(&self) {
        let Ok(mut care) = self.care.try_lock() else { return };
        let now = Instant::now();
        if now < care.next_look {
            return;
        }
        care.next_look = now + LOOK_INTERVAL;

        match (&care.outage, care.handle.is_open()) {
            (None, true) => self.give_up_old(now),
            (None, false) => begin(&mut care, "its accept thread has panicked"),
            // It has lived for a whole interval.
            (Some(since), true) => {
                let duration_ms = since.elapsed().as_millis();
                log::info!(duration_ms:%; "http accepts connections again");
                care.outage = None;
            }
            (Some(_), false) => self.replace(&mut care),
        }
    }

    fn begin_outage(&self, error: &str) {
        let mut care = lock(&self.care);
        care.handle.failed = true;
        if care.outage.is_none() {
            begin(&mut care, error);
        }
    }

    /// Puts a new server in the place of the one that does not accept; tries again later where there are too few handles.
    fn replace(&self, care: &mut Care) {
        let spare: io::Result<Vec<TcpListener>> = (0..SPARE_HANDLES).map(|_| self.listener.try_clone()).collect();
        if spare.is_err() {
            return;
        }
        drop(spare);

        let Ok((server, handle)) = open(&self.listener) else { return };
        care.handle = handle;
        let mut servers = lock(&self.servers);
        let old = std::mem::replace(&mut servers.current, server);
        // Where one server after the other gives up, the first one has the connections that matter.
        if servers.retired.len() < RETIRED_MAX {
            servers.retired.push((Instant::now(), old));
        }
    }

    /// Drops servers that were replaced long ago. Only while the current one accepts: a `Server` that is dropped connects to
    /// itself, and would wait for that.
    fn give_up_old(&self, now: Instant) {
        let mut servers = lock(&self.servers);
        let old = servers.retired.iter().take_while(|(since, _)| now.duration_since(*since) > RETIRED_KEPT).count();
        let given_up: Vec<_> = servers.retired.drain(..old).collect();
        drop(servers);
        drop(given_up);
    }
}

/// A server on a handle of its own of the listening socket.
fn open(listener: &TcpListener) -> io::Result<(Arc<Server>, Handle)> {
    let own = listener.try_clone()?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", own.as_raw_fd()));
    let link = std::fs::read_link(&path).ok().map(|socket| (path, socket));
    let server = Server::from_listener(own, None).map_err(io::Error::other)?;
    Ok((Arc::new(server), Handle { link, failed: false }))
}

fn begin(care: &mut Care, error: &str) {
    log::warn!(error; "http accepts no new connections, for tiny_http gave up; will try again until it does");
    let now = Instant::now();
    care.outage = Some(now);
    care.next_look = now + REPAIR_PAUSE;
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // OK: nothing is left half done by a panic while one of these is locked
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tests look at.
#[cfg(test)]
impl Listening {
    pub(super) fn listener(&self) -> &TcpListener {
        &self.listener
    }

    pub(super) fn retired(&self) -> usize {
        lock(&self.servers).retired.len()
    }

    pub(super) fn in_outage(&self) -> bool {
        lock(&self.care).outage.is_some()
    }
}
