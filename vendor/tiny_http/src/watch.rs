//! Who is connected, what each connection does and since when; it ends those that take too long, and makes room for new ones.
//!
//! A connection's thread only notes what it begins to do (`Connection::enter`). The thread `http-watch` looks at those notes and shuts
//! sockets down, which wakes a thread that waits in one. So no read and no write needs a time-out of its own.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Limits, Notice, Service};

/// Between two looks at the connections, at most.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Connections that may be refused at once, beyond the limit; further ones are told without being waited for.
const REFUSED_MAX: usize = 32;
/// A head, or a step of a body, may take this long before its connection makes room for others at the limit.
const GRACE: Duration = Duration::from_millis(250);
/// The same for a step of an answer: it may be of something that was done.
const ANSWER_GRACE: Duration = Duration::from_secs(2);
/// How long the thread that accepts waits for one that is being closed, at once.
const LEAVE_WAIT: Duration = Duration::from_millis(100);
/// A notice ends when its reason has not come up for this long.
const NOTICE_QUIET: Duration = Duration::from_secs(5);

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing yet.
    New = 0,
    /// Waits for the next request.
    Kept = 1,
    /// Sends a head.
    Head = 2,
    /// Sends a body.
    Body = 3,
    /// Waits for the service.
    Work = 4,
    /// Is sent an answer.
    Answer = 5,
    /// Is over, but for the client to read the last answer.
    Leave = 6,
    /// Was too slow with a head or a body, and is told so.
    Late = 7,
    /// Shut down by the watch.
    Cut = 8,
}

/// The low bits of a state are its phase, the others its beginning in milliseconds.
const PHASE_BITS: u32 = 4;

/// One connection. Its socket is closed with the last handle of it.
pub(crate) struct Connection {
    id: u64,
    pub(crate) socket: TcpStream,
    state: AtomicU64,
    begun: Instant,
    refused: bool,
}

impl Connection {
    /// Notes that the connection begins something, or the next step of it.
    ///
    /// # Errors
    /// It was cut.
    pub(crate) fn enter(&self, phase: Phase) -> io::Result<()> {
        let before = self.state.swap(state(phase, self.begun), Ordering::SeqCst);
        if phase_of(before) == Phase::Cut as u64 {
            self.state.store(before, Ordering::SeqCst);
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was closed by the server"));
        }
        Ok(())
    }

    pub(crate) fn is_in(&self, phase: Phase) -> bool {
        phase_of(self.state.load(Ordering::SeqCst)) == phase as u64
    }

    /// Shuts it down, unless it has gone on since `seen`. Returns whether it did.
    fn turn(&self, seen: u64, phase: Phase, how: Shutdown) -> bool {
        let now = state(phase, self.begun);
        let turned = self.state.compare_exchange(seen, now, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if turned {
            // OK: a socket that cannot be shut down is not connected any more
            let _ = self.socket.shutdown(how);
        }
        turned
    }
}

fn state(phase: Phase, begun: Instant) -> u64 {
    (millis(begun.elapsed()) << PHASE_BITS) | phase as u64
}

fn phase_of(state: u64) -> u64 {
    state & ((1 << PHASE_BITS) - 1)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> PHASE_BITS)
}

/// What the connections do and did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Accepted so far.
    pub accepted: u64,
    /// Open now, without those being refused.
    pub open: u64,
    /// Answered 503 at the limit of connections.
    pub refused: u64,
    /// Closed to make room for others.
    pub displaced: u64,
    /// Closed because the client was too slow: with a head, a body, or reading an answer.
    pub slow: u64,
}

#[derive(Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    next_id: u64,
    // Of them, those that are only refused.
    refusing: usize,
    // Threads that serve connections, with those of connections that were cut and not yet left.
    threads: usize,
    counts: Counts,
    failing: Span,
    full: Span,
    // The watch has somebody to look after.
    is_awake: bool,
}

/// A time of trouble: its beginning, and when it last came up.
#[derive(Default)]
struct Span(Option<(Instant, Instant)>);

impl Span {
    /// Returns whether it is new.
    fn note(&mut self) -> bool {
        let now = Instant::now();
        let first = self.0.map_or(now, |(first, _)| first);
        self.0.replace((first, now)).is_none()
    }

    /// How long it took, if it is over.
    fn end(&mut self) -> Option<Duration> {
        let (first, last) = self.0.filter(|(_, last)| last.elapsed() >= NOTICE_QUIET)?;
        self.0 = None;
        Some(last - first)
    }
}

/// Whether a new connection may stay.
pub(crate) enum Admission {
    Served(Guard),
    Refused(Guard),
    /// There is no thread for it, not even to be refused.
    Dropped(TcpStream),
}

/// A connection as its thread has it: at its end, also by a panic, the watch forgets it.
pub(crate) struct Guard {
    connection: Arc<Connection>,
    pub(crate) watch: Arc<Watch>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watch.forget(&self.connection);
    }
}

impl Deref for Guard {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// See the module.
pub(crate) struct Watch {
    limits: Limits,
    begun: Instant,
    open: Mutex<Open>,
    // A connection has come, or the end.
    come: Condvar,
    // A connection has left.
    left: Condvar,
    is_hurried: AtomicBool,
    is_leaving: AtomicBool,
    is_closed: AtomicBool,
}

impl Watch {
    pub(crate) fn new(limits: Limits) -> Watch {
        Watch {
            limits,
            begun: Instant::now(),
            open: Mutex::default(),
            come: Condvar::new(),
            left: Condvar::new(),
            is_hurried: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::SeqCst)
    }

    /// From now on nobody new is waited for.
    pub(crate) fn leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
    }

    /// Whether a client is about to ask something, to be answered, or to read its answer.
    pub(crate) fn serves(&self) -> bool {
        let phases =
            [Phase::New, Phase::Head, Phase::Body, Phase::Work, Phase::Answer, Phase::Leave].map(|phase| phase as u64);
        let state = |connection: &Arc<Connection>| phase_of(connection.state.load(Ordering::SeqCst));
        self.lock().connections.values().any(|connection| phases.contains(&state(connection)))
    }

    pub(crate) fn hurry(&self) {
        self.is_hurried.store(true, Ordering::SeqCst);
    }

    pub(crate) fn counts(&self) -> Counts {
        let open = self.lock();
        Counts { accepted: open.next_id, open: (open.connections.len() - open.refusing) as u64, ..open.counts }
    }

    /// Ends everything.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for connection in self.lock().connections.values() {
            let _ = connection.socket.shutdown(Shutdown::Both); // OK: as in `Connection::turn`
        }
        self.come.notify_all();
        self.left.notify_all();
    }

    /// Takes a new connection in, at the limit in the place of one that does nothing.
    pub(crate) fn admit(self: &Arc<Watch>, socket: TcpStream, service: &dyn Service) -> Admission {
        let mut open = self.lock();
        // Threads of connections that were just cut may not have left yet; they do, for nothing holds them.
        while open.threads >= self.limits.connections_max + REFUSED_MAX
            && open.threads > open.connections.len()
            && !self.is_closed()
        {
            open = self.left.wait_timeout(open, LEAVE_WAIT).map_or_else(|error| error.into_inner().0, |(open, _)| open);
        }
        if self.is_closed() {
            return Admission::Dropped(socket);
        }
        let is_full = open.connections.len() - open.refusing >= self.limits.connections_max;
        let refused = is_full && self.displace(&mut open).is_none();
        let dropped = refused && open.refusing >= REFUSED_MAX;
        open.counts.refused += u64::from(refused);
        let is_news = is_full && open.full.note();
        let admission = if dropped {
            Admission::Dropped(socket)
        } else {
            let id = open.next_id;
            open.next_id += 1;
            let phase = if refused { Phase::Leave } else { Phase::New };
            let state = AtomicU64::new(state(phase, self.begun));
            let connection = Arc::new(Connection { id, socket, state, begun: self.begun, refused });
            open.connections.insert(id, Arc::clone(&connection));
            open.threads += 1;
            open.refusing += usize::from(refused);
            let guard = Guard { connection, watch: Arc::clone(self) };
            if refused {
                Admission::Refused(guard)
            } else {
                Admission::Served(guard)
            }
        };
        if !std::mem::replace(&mut open.is_awake, true) {
            self.come.notify_all();
        }
        drop(open);
        if is_news {
            service.notice(Notice::Full);
        }
        admission
    }

    pub(crate) fn forget(&self, connection: &Connection) {
        let mut open = self.lock();
        open.threads -= 1;
        self.remove(&mut open, connection);
        drop(open);
        self.left.notify_one();
    }

    /// OK: one that was displaced is no longer there
    fn remove(&self, open: &mut Open, connection: &Connection) {
        if open.connections.remove(&connection.id).is_some() && connection.refused {
            open.refusing -= 1;
        }
    }

    /// Closes a connection that does nothing, if there is one.
    pub(crate) fn make_room(&self) {
        self.displace(&mut self.lock());
    }

    /// Closes the connection that is missed least.
    fn displace(&self, open: &mut Open) -> Option<()> {
        let now = self.begun.elapsed();
        let least = open
            .connections
            .values()
            .filter(|connection| !connection.refused)
            .filter_map(|connection| {
                let state = connection.state.load(Ordering::SeqCst);
                Some((worth(state, now)?, state, connection))
            })
            .min_by_key(|(worth, state, _)| (*worth, *state >> PHASE_BITS));
        let (_, state, connection) = least?;
        let connection = Arc::clone(connection);
        // Where it has just gone on, the next look finds another.
        if connection.turn(state, Phase::Cut, Shutdown::Both) {
            self.remove(open, &connection);
            open.counts.displaced += 1;
            Some(())
        } else {
            None
        }
    }

    /// Notes that no connection can be accepted.
    pub(crate) fn accept_failed(&self, error: &io::Error, service: &dyn Service) {
        let mut open = self.lock();
        let is_news = open.failing.note();
        if !std::mem::replace(&mut open.is_awake, true) {
            self.come.notify_all();
        }
        drop(open);
        if is_news {
            service.notice(Notice::AcceptFails(error));
        }
    }

    /// The life of the thread `http-watch`.
    pub(crate) fn run(&self, service: &dyn Service) {
        let limits = &self.limits;
        let shortest = [limits.idle, limits.head, limits.body, limits.answer, limits.leave, limits.hurry];
        let pause = shortest.into_iter().fold(LOOK_EVERY, |least, limit| least.min(limit / 4));
        let pause = pause.max(Duration::from_millis(1));
        while !self.is_closed() {
            let mut open = self.lock();
            open.counts.slow += self.end_the_slow(&open);
            let accepts = open.failing.end();
            let room = open.full.end().map(|outage| (outage, open.counts));
            open.is_awake = !open.connections.is_empty() || open.failing.0.is_some() || open.full.0.is_some();
            if open.is_awake {
                drop(open);
                std::thread::sleep(pause);
            } else if accepts.is_none() && room.is_none() {
                // OK: what it returns, also poisoned, is let go at once
                drop(self.come.wait_while(open, |open| !open.is_awake && !self.is_closed()));
            } else {
                drop(open);
            }
            if let Some(outage) = accepts {
                service.notice(Notice::Accepts(outage));
            }
            if let Some((outage, counts)) = room {
                service.notice(Notice::Room(outage, counts));
            }
        }
    }

    /// Ends the connections that are over their time. Returns how many of them were slow, not idle.
    fn end_the_slow(&self, open: &Open) -> u64 {
        let now = self.begun.elapsed();
        let mut slow = 0;
        for connection in open.connections.values() {
            let seen = connection.state.load(Ordering::SeqCst);
            let Some((limit, is_slow)) = self.limit(seen) else { continue };
            if age(seen, now) <= limit {
                continue;
            }
            // One that still has to say something is told that it is late: its thread finds the end of what it reads.
            let told = is(seen, Phase::Head) || is(seen, Phase::Body);
            let ended = if told {
                connection.turn(seen, Phase::Late, Shutdown::Read)
            } else {
                connection.turn(seen, Phase::Cut, Shutdown::Both)
            };
            slow += u64::from(ended && is_slow);
        }
        slow
    }

    /// How long a connection may be as it is, and whether to be longer is to be slow.
    fn limit(&self, state: u64) -> Option<(Duration, bool)> {
        let limits = &self.limits;
        let hurried = |limit: Duration| {
            if self.is_hurried.load(Ordering::SeqCst) {
                limit.min(limits.hurry)
            } else {
                limit
            }
        };
        match phase_of(state) {
            phase if phase == Phase::New as u64 => Some((limits.head, false)),
            phase if phase == Phase::Kept as u64 => Some((limits.idle, false)),
            phase if phase == Phase::Head as u64 => Some((hurried(limits.head), true)),
            phase if phase == Phase::Body as u64 => Some((hurried(limits.body), true)),
            phase if phase == Phase::Answer as u64 => Some((hurried(limits.answer), true)),
            phase if phase == Phase::Leave as u64 || phase == Phase::Late as u64 => Some((limits.leave, false)),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is(state: u64, phase: Phase) -> bool {
    phase_of(state) == phase as u64
}

fn age(state: u64, now: Duration) -> Duration {
    now.saturating_sub(Duration::from_millis(state >> PHASE_BITS))
}

/// How much a connection is missed if it makes room, less is earlier; `None` if it may not be closed.
fn worth(state: u64, now: Duration) -> Option<u8> {
    let age = age(state, now);
    let (grace, after, before) = match phase_of(state) {
        phase if phase == Phase::Leave as u64 || phase == Phase::Late as u64 => (GRACE, Some(0), None),
        phase if phase == Phase::New as u64 || phase == Phase::Head as u64 => (GRACE, Some(1), Some(4)),
        phase if phase == Phase::Kept as u64 => (GRACE, Some(2), Some(3)),
        phase if phase == Phase::Body as u64 => (GRACE, Some(3), None),
        phase if phase == Phase::Answer as u64 => (ANSWER_GRACE, Some(3), None),
        _ => (GRACE, None, None),
    };
    if age > grace { after } else { before }
}
