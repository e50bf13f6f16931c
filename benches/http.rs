//! A client on one keep-alive connection: as little work as a request can be, so that the server is what is measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

/// A server that does not answer for this long is stuck.
const WAIT_MAX: Duration = Duration::from_mins(1);

pub(crate) struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        Ok(Connection { stream, request: Vec::new(), answer: vec![0; 64 * 1024] })
    }

    /// Submits jobs by one `POST /enqueue`, which must be taken.
    pub(crate) fn enqueue(&mut self, body: &str) -> io::Result<()> {
        let status = self.send("POST", "/enqueue", body)?;
        if status == 200 {
            Ok(())
        } else {
            Err(io::Error::other(format!("POST /enqueue answered {status}")))
        }
    }

    /// Sends a request and reads its whole answer. Returns the status.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<u16> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        self.stream.write_all(&self.request)?;
        self.read_answer()
    }

    fn read_answer(&mut self) -> io::Result<u16> {
        let mut filled = 0;
        let head = loop {
            filled += self.read_more(filled)?;
            if let Some(end) = find(&self.answer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = String::from_utf8_lossy(&self.answer[..head]).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("no status line"))?;
        let mut left = Body::of(&text)?;
        let mut seen = head;
        while !left.is_read(&self.answer[seen..filled]) {
            if left.is_chunked() && filled < self.answer.len() / 2 {
                filled += self.read_more(filled)?;
                continue;
            }
            left.forget(&self.answer[seen..filled]);
            (seen, filled) = (0, 0);
            filled += self.read_more(filled)?;
        }
        Ok(status)
    }

    fn read_more(&mut self, from: usize) -> io::Result<usize> {
        match self.stream.read(&mut self.answer[from..])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        }
    }
}

/// What is still to come of an answer's body.
enum Body {
    Bytes(usize),
    /// Ends by a chunk of no length; the last bytes that were seen, which may hold the beginning of it.
    Chunks(Vec<u8>),
}

const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

impl Body {
    fn of(head: &str) -> io::Result<Body> {
        let value = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        if let Some(length) = value("content-length") {
            return length.parse().map(Body::Bytes).map_err(io::Error::other);
        }
        match value("transfer-encoding") {
            Some(coding) if coding.eq_ignore_ascii_case("chunked") => Ok(Body::Chunks(Vec::new())),
            _ => Err(io::Error::other("an answer whose end cannot be told")),
        }
    }

    fn is_chunked(&self) -> bool {
        matches!(self, Body::Chunks(_))
    }

    fn is_read(&self, bytes: &[u8]) -> bool {
        match self {
            Body::Bytes(left) => bytes.len() >= *left,
            Body::Chunks(before) => [before, bytes].concat().ends_with(LAST_CHUNK),
        }
    }

    fn forget(&mut self, bytes: &[u8]) {
        match self {
            Body::Bytes(left) => *left -= bytes.len(),
            Body::Chunks(before) => {
                before.extend_from_slice(bytes);
                before.drain(..before.len().saturating_sub(LAST_CHUNK.len()));
            }
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The type of every job here, and its payload.
pub(crate) const JOB_TYPE: &str = "mail";

#[derive(Serialize)]
struct Job {
    r#type: &'static str,
    payload: String,
}

fn job(n: usize) -> Job {
    Job { r#type: JOB_TYPE, payload: payload(n) }
}

pub(crate) fn payload(n: usize) -> String {
    format!(r#"{{"to":"user1@example.com","subject":"Welcome!","n":{n}}}"#)
}

/// The body that submits job `n`.
pub(crate) fn one(n: usize) -> String {
    json!(job(n)).to_string()
}

/// The body that submits these jobs together.
pub(crate) fn many(numbers: std::ops::Range<usize>) -> String {
    json!(numbers.map(job).collect::<Vec<_>>()).to_string()
}
