//! A client that sends exactly what it is given, and reads no more than one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// One connection.
pub(super) struct Client {
    reader: BufReader<TcpStream>,
}

/// One answer.
pub(super) struct Reply {
    pub(super) status: u16,
    /// Status line and headers.
    pub(super) head: String,
    /// Without the framing of chunks.
    pub(super) body: String,
}

impl Client {
    pub(super) fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        Client { reader: BufReader::new(stream) }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).expect("sent");
    }

    /// The same where the server may have closed the connection.
    pub(super) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Waits until the server has closed the connection, without a word.
    pub(super) fn is_ended(&mut self) -> bool {
        match self.reader.read(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    pub(super) fn close(&mut self, how: Shutdown) {
        self.reader.get_mut().shutdown(how).expect("closed");
    }

    /// Sends `request`, and reads the answer.
    pub(super) fn ask(&mut self, request: &str) -> Reply {
        self.send(request.as_bytes());
        self.read_reply()
    }

    pub(super) fn read_reply(&mut self) -> Reply {
        let head = self.read_head();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
        let body = match length {
            Some(length) => {
                let mut body = vec![0; length.parse().expect("a length")];
                self.reader.read_exact(&mut body).expect("a body");
                String::from_utf8(body).expect("UTF-8")
            }
            None if head.contains("\r\nTransfer-Encoding: chunked\r\n") => self.read_chunks().expect("valid chunks"),
            None => panic!("no length: {head}"),
        };
        Reply { status, head, body }
    }

    /// Reads up to the empty line, with it.
    pub(super) fn read_head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.reader.read_line(&mut head).expect("a line"), 0, "closed after {head:?}");
        }
        head
    }

    /// Reads a chunked body; an error is what stands where the length of a chunk should.
    pub(super) fn read_chunks(&mut self) -> Result<String, String> {
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a line");
            let line = line.trim_end();
            let length = usize::from_str_radix(line, 16).map_err(|_| line.to_owned())?;
            let start = body.len();
            body.resize(start + length + 2, 0);
            self.reader.read_exact(&mut body[start..]).expect("a chunk");
            assert!(body.ends_with(b"\r\n"));
            body.truncate(start + length);
            if length == 0 {
                return Ok(String::from_utf8(body).expect("UTF-8"));
            }
        }
    }
}
