use std::fmt;
use std::io::{self, Read, Write};
use std::net::SocketAddr;

use crate::client::Client;
use crate::common::{HTTPVersion, Header, Method};
use crate::head::Head;

/// A request, on the thread of its connection.
///
/// It is answered by [`Request::into_writer`]. One that is dropped before closes its connection.
pub struct Request<'a> {
    client: &'a mut Client,
    head: Head,
    is_answered: bool,
}

impl<'a> Request<'a> {
    pub(crate) fn new(client: &'a mut Client, head: Head) -> Request<'a> {
        Request { client, head, is_answered: false }
    }

    /// Returns the method requested by the client (eg. `GET`, `POST`, etc.).
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// Returns the resource requested by the client.
    pub fn url(&self) -> &str {
        &self.head.target
    }

    /// Returns a list of all headers sent by the client.
    pub fn headers(&self) -> &[Header] {
        &self.head.headers
    }

    /// Takes the headers out, which saves copies of them.
    pub fn take_headers(&mut self) -> Vec<Header> {
        std::mem::take(&mut self.head.headers)
    }

    /// Returns the HTTP version of the request.
    pub fn http_version(&self) -> &HTTPVersion {
        &self.head.version
    }

    /// Returns the length of the body in bytes; `None` if there is no `Content-Length`. One beyond 64 bits is [`u64::MAX`].
    pub fn body_length(&self) -> Option<u64> {
        self.head.body_length
    }

    /// Whether the body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.head.is_chunked
    }

    /// Returns the address of the client.
    pub fn remote_addr(&self) -> Option<&SocketAddr> {
        Some(self.client.address())
    }

    /// Allows to read the body of the request.
    ///
    /// If the client sent `Expect: 100-continue`, the first read tells it to go on. Where the body does not come in time, a read
    /// fails with `TimedOut`.
    pub fn as_reader(&mut self) -> &mut dyn Read {
        self
    }

    /// Whether the connection can go on behind the answer, as the client wants it and what it sent allows it. To be asked once nothing
    /// more will be read of the body.
    pub fn keeps_alive(&self) -> bool {
        self.client.keeps()
    }

    /// Closes the connection behind the answer, which should say so.
    pub fn close(&mut self) {
        self.client.close();
    }

    /// Turns the `Request` into a writer with raw access to the socket, without a buffer.
    pub fn into_writer(mut self) -> Writer<'a> {
        self.is_answered = true;
        if !self.client.keeps() {
            self.client.close();
        }
        Writer { request: self }
    }
}

impl Read for Request<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.client.read_body(out)
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Request({} {} from {})", self.head.method, self.head.target, self.client.address())
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        // Also while a panic unwinds: half an answer may have been sent.
        if !self.is_answered || std::thread::panicking() {
            self.client.close();
        }
    }
}

/// Writes an answer.
pub struct Writer<'a> {
    request: Request<'a>,
}

impl Writer<'_> {
    /// No other request follows on this connection: the answer is not whole, or its end is that of the connection.
    pub fn close(&mut self) {
        self.request.close();
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.request.client.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
