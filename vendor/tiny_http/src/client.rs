//! One connection: reads heads and bodies, and decides whether and how it goes on.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};

use crate::head::{HEADERS_MAX, Head, check_start, is_text, parse};
use crate::request::Request;
use crate::watch::{Connection, Guard, Phase};
use crate::{ANSWER_STEP_BYTES, BODY_STEP_BYTES, Refusal, Service, UNREAD_BYTES_MAX};

/// What is read of a socket at once. Reads of a body into as much room or more go past the buffer.
const BUFFER_BYTES: usize = 8 << 10;
/// The longest line that begins a chunk, or that stands behind the last one.
const CHUNK_LINE_BYTES_MAX: usize = 256;
/// The most bytes of extensions and trailers of a chunked body.
const CHUNK_EXTRA_BYTES_MAX: usize = 16 << 10;
/// The most bytes that are read of a client that is only waited for to take its last answer.
const LEAVE_BYTES_MAX: usize = 1 << 20;

/// What is left of the body of the current request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Bytes; 0 at its end.
    Bytes(u64),
    /// Bytes of a chunk, then its line end.
    Chunk(u64),
    /// Behind a chunk: its line end, then the size of the next.
    ChunkEnd,
    /// The size of a chunk.
    ChunkSize,
    /// Behind the last chunk: trailers, up to an empty line.
    Trailers,
}

/// A connection and what was read of it.
pub(crate) struct Client {
    connection: Guard,
    address: SocketAddr,
    buffer: Vec<u8>,
    // What of the buffer was read and not yet used.
    start: usize,
    end: usize,
    left: Left,
    chunk_extra: usize,
    // Since the last step of a body was noted.
    step: usize,
    // The client waits for `100 Continue` before it sends the body.
    must_continue: bool,
    // Another request may follow.
    keeps: bool,
    // What is sent back may be lost if the socket is closed at once: something of the client was not read.
    is_unread: bool,
}

/// Why there is no head.
enum NoHead {
    /// The connection is over.
    Over,
    Refused(Refusal),
}

impl From<io::Error> for NoHead {
    fn from(_: io::Error) -> NoHead {
        NoHead::Over
    }
}

impl Client {
    pub(crate) fn new(connection: Guard, address: SocketAddr) -> Client {
        Client {
            connection,
            address,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            left: Left::Bytes(0),
            chunk_extra: 0,
            step: 0,
            must_continue: false,
            keeps: true,
            is_unread: false,
        }
    }

    /// Serves one request after the other, until the connection ends.
    pub(crate) fn run(&mut self, service: &dyn Service) {
        loop {
            match self.read_head() {
                Ok(head) => service.serve(Request::new(self, head)),
                Err(NoHead::Over) => return,
                Err(NoHead::Refused(refusal)) => return self.refuse(service, refusal),
            }
            if !self.keeps {
                return self.leave();
            }
            if self.skip_body().is_err() || self.connection.enter(Phase::Kept).is_err() {
                return;
            }
        }
    }

    /// Says why the connection is closed, and closes it.
    pub(crate) fn refuse(&mut self, service: &dyn Service, refusal: Refusal) {
        self.is_unread = true;
        // OK: a client that does not take it does not get it
        if self.write_all(&service.refusal(refusal)).is_ok() {
            self.leave();
        }
    }

    /// Waits until the client has read what was sent to it: a socket that is closed with something unread in it takes back what the
    /// other side has not read yet. OK: errors, as the connection is over
    fn leave(&mut self) {
        if !self.is_unread && self.left == Left::Bytes(0) && self.start == self.end {
            return;
        }
        if self.connection.enter(Phase::Leave).is_err() || self.connection.socket.shutdown(Shutdown::Write).is_err() {
            return;
        }
        self.buffer.resize(BUFFER_BYTES, 0);
        let mut read = 0;
        while read < LEAVE_BYTES_MAX {
            match (&self.connection.socket).read(&mut self.buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => read += count,
            }
        }
    }

    pub(crate) fn address(&self) -> &SocketAddr {
        &self.address
    }

    // ---- heads ----

    fn read_head(&mut self) -> Result<Head, NoHead> {
        let limits = self.connection_limits();
        // Where the search for the next line end goes on.
        let mut searched = self.start;
        // Its time begins with its first byte, and with nothing else: not even with an empty line before it.
        let mut begun = self.start < self.end;
        if begun {
            self.connection.enter(Phase::Head)?;
        }
        loop {
            while let Some(place) = position(&self.buffer[searched..self.end], b'\n') {
                let place = searched + place;
                searched = place + 1;
                if place == self.start || self.buffer[place - 1] != b'\r' {
                    return Err(NoHead::Refused(Refusal::Malformed("a line ends with CR LF, not with LF alone")));
                }
                if place == self.start + 1 {
                    // An empty line before a request is let pass (RFC 9112, section 2.2).
                    self.start = searched;
                    continue;
                }
                if let Some((head, length)) =
                    parse(&self.buffer[self.start..searched], limits.1).map_err(NoHead::Refused)?
                {
                    self.start += length;
                    return self.begin(head).map_err(NoHead::Refused);
                }
            }
            check_start(&self.buffer[self.start..self.end], searched - self.start).map_err(NoHead::Refused)?;
            searched = self.end;
            if self.end - self.start >= limits.0 {
                return Err(NoHead::Refused(Refusal::HeadTooLarge));
            }
            let moved = self.start;
            if self.fill(limits.0)? == 0 {
                let is_late = self.connection.is_in(Phase::Late);
                return Err(if is_late {
                    NoHead::Refused(Refusal::Slow)
                } else {
                    NoHead::Over
                });
            }
            // What was left has moved to the front.
            searched -= moved - self.start;
            if !std::mem::replace(&mut begun, true) {
                self.connection.enter(Phase::Head)?;
            }
        }
    }

    fn connection_limits(&self) -> (usize, usize) {
        let limits = self.connection.watch.limits();
        (limits.head_bytes_max, limits.headers_max.min(HEADERS_MAX))
    }

    /// Makes ready for the body.
    fn begin(&mut self, head: Head) -> Result<Head, Refusal> {
        // An error means that it was cut; then reading and writing fail too.
        let _ = self.connection.enter(Phase::Work);
        self.left = if head.is_chunked {
            Left::ChunkSize
        } else {
            Left::Bytes(head.body_length.unwrap_or(0))
        };
        (self.chunk_extra, self.step) = (0, 0);
        let connection = |token: &str| {
            let mut values = head.headers.iter().filter(|header| header.field.equiv("Connection"));
            values.any(|header| header.value.as_str().split(',').any(|word| word.trim().eq_ignore_ascii_case(token)))
        };
        let is_1_0 = head.version <= (1, 0);
        self.keeps = !connection("close") && (!is_1_0 || connection("keep-alive"));
        let mut expectations = head.headers.iter().filter(|header| header.field.equiv("Expect"));
        if !expectations.all(|header| header.value.as_str().eq_ignore_ascii_case("100-continue")) {
            return Err(Refusal::Expectation);
        }
        let expects = head.headers.iter().any(|header| header.field.equiv("Expect"));
        // A client that already sends its body does not wait (RFC 9110, section 10.1.1).
        self.must_continue = expects && !is_1_0 && self.left != Left::Bytes(0) && self.start == self.end;
        Ok(head)
    }

    // ---- bodies ----

    /// Whether another request can follow once this one is answered.
    pub(crate) fn keeps(&self) -> bool {
        let unread = match self.left {
            Left::Bytes(0) => true,
            Left::Bytes(left) => left <= UNREAD_BYTES_MAX && !self.must_continue,
            _ => false,
        };
        self.keeps && unread
    }

    /// No other request follows.
    pub(crate) fn close(&mut self) {
        self.keeps = false;
    }

    /// Reads what is left of a small body that nobody wanted.
    fn skip_body(&mut self) -> io::Result<()> {
        let mut rest = [0; 1 << 10];
        while self.left != Left::Bytes(0) {
            if self.read_body(&mut rest)? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Reads of the body; 0 at its end.
    ///
    /// # Errors
    /// `InvalidData` for chunks that are none, `TimedOut`, `UnexpectedEof`, and those of the socket.
    pub(crate) fn read_body(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || self.left == Left::Bytes(0) {
            return Ok(0);
        }
        if std::mem::take(&mut self.must_continue) {
            self.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let read = self.read_framed(out);
        match &read {
            // Nobody knows where the next request would begin.
            Err(_) => (self.keeps, self.is_unread) = (false, true),
            Ok(_) if self.left == Left::Bytes(0) => self.connection.enter(Phase::Work)?,
            Ok(_) => {}
        }
        read
    }

    fn read_framed(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.left {
                Left::Bytes(0) => return Ok(0),
                Left::Bytes(left) => {
                    let read = self.read_bytes(out, left)?;
                    self.left = Left::Bytes(left - read as u64);
                    return Ok(read);
                }
                Left::Chunk(left) => {
                    let read = self.read_bytes(out, left)?;
                    let left = left - read as u64;
                    self.left = if left == 0 { Left::ChunkEnd } else { Left::Chunk(left) };
                    return Ok(read);
                }
                Left::ChunkEnd => {
                    if !self.read_line()?.is_empty() {
                        return Err(invalid("a chunk is longer than its size"));
                    }
                    self.left = Left::ChunkSize;
                }
                Left::ChunkSize => {
                    let (size, extra) = chunk_size(self.read_line()?)?;
                    self.count_extra(extra)?;
                    self.left = if size == 0 { Left::Trailers } else { Left::Chunk(size) };
                }
                Left::Trailers => {
                    let length = self.read_line()?.len();
                    self.count_extra(length)?;
                    if length == 0 {
                        self.left = Left::Bytes(0);
                    }
                }
            }
        }
    }

    fn count_extra(&mut self, bytes: usize) -> io::Result<()> {
        self.chunk_extra += bytes;
        if self.chunk_extra > CHUNK_EXTRA_BYTES_MAX {
            return Err(invalid("too many chunk extensions or trailers"));
        }
        Ok(())
    }

    /// Reads at least one byte, up to `most`.
    fn read_bytes(&mut self, out: &mut [u8], most: u64) -> io::Result<usize> {
        let room = out.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        if self.start == self.end && room >= BUFFER_BYTES {
            let read = self.receive(|socket| (&*socket).read(&mut out[..room]))?;
            return if read == 0 { Err(self.ended()) } else { Ok(read) };
        }
        if self.start == self.end && self.fill_body()? == 0 {
            return Err(self.ended());
        }
        let count = room.min(self.end - self.start);
        out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }

    /// Reads a line of the framing of chunks; returns it without its end.
    fn read_line(&mut self) -> io::Result<&[u8]> {
        let mut searched = 0;
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some(place) = position(&bytes[searched..], b'\n').map(|place| searched + place) {
                let line = self.start..self.start + place;
                self.start += place + 1;
                return match self.buffer[line].split_last() {
                    Some((_, line)) if line.len() > CHUNK_LINE_BYTES_MAX => Err(too_long()),
                    Some((b'\r', line)) if line.iter().all(|byte| is_text(*byte)) => Ok(line),
                    _ => Err(invalid("a line between chunks is not text that ends with CR LF")),
                };
            }
            searched = bytes.len();
            if searched > CHUNK_LINE_BYTES_MAX {
                return Err(too_long());
            }
            if self.fill_body()? == 0 {
                return Err(self.ended());
            }
        }
    }

    fn ended(&self) -> io::Error {
        if self.connection.is_in(Phase::Late) {
            io::Error::new(io::ErrorKind::TimedOut, "the body did not come in time")
        } else {
            io::Error::new(io::ErrorKind::UnexpectedEof, "it ended too early")
        }
    }

    fn fill_body(&mut self) -> io::Result<usize> {
        if self.left != Left::Bytes(0) && !self.connection.is_in(Phase::Body) && !self.connection.is_in(Phase::Late) {
            self.connection.enter(Phase::Body)?;
        }
        let read = self.fill(BUFFER_BYTES)?;
        self.note(read)?;
        Ok(read)
    }

    /// Reads from the socket past the buffer.
    fn receive(&mut self, mut read: impl FnMut(&std::net::TcpStream) -> io::Result<usize>) -> io::Result<usize> {
        if !self.connection.is_in(Phase::Body) && !self.connection.is_in(Phase::Late) {
            self.connection.enter(Phase::Body)?;
        }
        let read = retried(|| read(&self.connection.socket))?;
        self.note(read)?;
        Ok(read)
    }

    /// Notes that a body came on.
    fn note(&mut self, read: usize) -> io::Result<()> {
        self.step += read;
        if self.step >= BODY_STEP_BYTES && !self.connection.is_in(Phase::Late) {
            self.step = 0;
            self.connection.enter(Phase::Body)?;
        }
        Ok(())
    }

    /// Reads more into the buffer, whose room is at least `most` bytes for what begins at `start`.
    fn fill(&mut self, most: usize) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            let room = (2 * self.end).clamp(BUFFER_BYTES, most.max(BUFFER_BYTES)).max(self.end + 1);
            self.buffer.resize(room, 0);
        }
        let read = retried(|| (&self.connection.socket).read(&mut self.buffer[self.end..]))?;
        self.end += read;
        Ok(read)
    }

    // ---- answers ----

    /// Sends all of it.
    ///
    /// # Errors
    /// Those of the socket, also where the client took too long.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&self.connection, bytes).inspect_err(|_| self.keeps = false)
    }
}

fn send(connection: &Connection, bytes: &[u8]) -> io::Result<()> {
    for step in bytes.chunks(ANSWER_STEP_BYTES) {
        connection.enter(Phase::Answer)?;
        (&connection.socket).write_all(step)?;
    }
    connection.enter(Phase::Work)
}

fn retried(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn too_long() -> io::Error {
    invalid("a line between chunks is too long")
}

fn position(bytes: &[u8], wanted: u8) -> Option<usize> {
    bytes.iter().position(|byte| *byte == wanted)
}

/// The size of a chunk, and how long its extensions are.
fn chunk_size(line: &[u8]) -> io::Result<(u64, usize)> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii();
    let is_right = (1..=15).contains(&digits) && (rest.is_empty() || rest[0] == b';');
    let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    size.filter(|_| is_right)
        .map(|size| (size, line.len() - digits))
        .ok_or_else(|| invalid("the size of a chunk is not valid"))
}
