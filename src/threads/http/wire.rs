//! One request of `tiny_http` to the API, and the answer back to the client.
//!
//! The answers are written here, not by `tiny_http`, for three reasons found in its source (0.12.0):
//! * after an error of its reader `tiny_http` ends a chunked answer as if it were whole, and a client would take half a listing
//!   for all; here such an answer is made invalid, so that every client fails on it;
//! * it drops every `Connection` header, so it cannot ask a client to connect anew;
//! * it writes head and body apart, which costs up to 40 ms where the system waits for more (Nagle's algorithm).
//!
//! One case is left to `tiny_http`: an answer to a request whose body was not read. Its writer can only be had by dropping the
//! reader, which first waits for the rest of the body, but the client may wait for the answer before it sends that.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use tiny_http::{HTTPVersion, Header, Response, StatusCode};

use crate::api::{self, Answer, Api, Body, Headers, Kind, Problem};

/// The `Server` header.
const SERVER: &str = "trilane";
/// A request body up to this, in bytes, is read by `tiny_http` before the request gets here.
const BODY_READ_BEFORE: u64 = 1_024;
/// How much of a stream is sent at once, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Ends a chunked answer that is not whole: where a client expects the length of the next chunk, this is none.
const BROKEN_OFF: &[u8] = b"!broken off\r\n";

/// Has a request answered, and sends the answer; `close` asks the client to close the connection then.
pub(super) fn serve(mut request: tiny_http::Request, api: &Api, close: bool) {
    let head = Head::of(&request);
    let mut body = RequestBody { request: &mut request, left: head.body_length, upgraded: head.upgrade };
    let answer = catch_unwind(AssertUnwindSafe(|| match head.refusal() {
        Some(problem) => problem.into(),
        None => api.answer(api::Request {
            method: &head.method,
            target: &head.target,
            headers: &head.headers,
            body_length: head.body_length,
            body: &mut body,
        }),
    }));
    let unread = head.waits_for(body.left);
    let answer = answer.unwrap_or_else(|_| Problem::internal("panic", &"the handler panicked; see above").into());
    finish(request, &head, answer, unread, close);
}

/// Answers a request that comes during a stop.
pub(super) fn refuse(request: tiny_http::Request) {
    let head = Head::of(&request);
    let problem =
        Problem::new(Kind::Unavailable, "this replica is being stopped; send the request again").retry_after(1);
    let unread = head.waits_for(head.body_length);
    finish(request, &head, problem.into(), unread, true);
}

fn finish(request: tiny_http::Request, head: &Head, answer: Answer, unread: bool, close: bool) {
    let answer = head.sendable(answer);
    let close = close || head.close;
    let sent = match answer.body {
        Body::Whole(text) if unread => send_by_tiny_http(request, answer.status, &answer.headers, text),
        Body::Whole(text) => {
            let mut bytes = head_of_answer(answer.status, &answer.headers, &Length::Whole(text.len()), close);
            if !head.is_head() {
                bytes.extend(text);
            }
            send(request, &bytes)
        }
        Body::Stream(_) if head.is_head() => {
            send(request, &head_of_answer(answer.status, &answer.headers, &Length::Chunked, close))
        }
        Body::Stream(stream) if head.http_1_0 => {
            let bytes = head_of_answer(answer.status, &answer.headers, &Length::UntilClose, true);
            send_stream(request, bytes, stream, false)
        }
        Body::Stream(stream) => {
            let bytes = head_of_answer(answer.status, &answer.headers, &Length::Chunked, close);
            send_stream(request, bytes, stream, true)
        }
    };
    if let Err(error) = sent {
        log::debug!(error:%; "a client went away before it had its answer");
    }
}

/// What is known of a request before its body is read.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the head")]
struct Head {
    method: String,
    target: String,
    headers: Headers,
    body_length: Option<u64>,
    chunked: bool,
    // The client offers to change the protocol, as Java's and curl's clients for HTTP/2 do; it is not taken up.
    upgrade: bool,
    expects_continue: bool,
    http_1_0: bool,
    close: bool,
}

impl Head {
    fn of(request: &tiny_http::Request) -> Head {
        let headers: Headers = request
            .headers()
            .iter()
            .map(|header| (header.field.as_str().to_string(), header.value.to_string()))
            .collect();
        let connection = headers.get("Connection").unwrap_or_default().to_ascii_lowercase();
        let http_1_0 = *request.http_version() <= HTTPVersion(1, 0);
        Head {
            method: request.method().to_string(),
            target: request.url().to_owned(),
            body_length: request.body_length().map(|length| length as u64),
            chunked: headers.get("Transfer-Encoding").is_some(),
            upgrade: connection.contains("upgrade"),
            expects_continue: headers.get("Expect").is_some(),
            http_1_0,
            // As tiny_http decides it.
            close: connection.contains("close")
                || connection.contains("upgrade")
                || (http_1_0 && !connection.contains("keep-alive")),
            headers,
        }
    }

    fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// What cannot be answered over this connection, whatever it asks for.
    fn refusal(&self) -> Option<Problem> {
        let reads_only = matches!(self.method.as_str(), "GET" | "HEAD");
        if self.chunked && self.upgrade {
            // tiny_http does not decode the body then, and nothing tells where it ends.
            let detail =
                "send Content-Length, or do not offer an upgrade to HTTP/2 (Java: HttpClient.Version.HTTP_1_1)";
            Some(Problem::new(Kind::LengthRequired, detail))
        } else if reads_only && self.waits_for(self.body_length) {
            Some(Problem::new(Kind::BadRequest, format!("{} takes no body", self.method)))
        } else {
            None
        }
    }

    /// The answer, or why it cannot be sent: over HTTP/1.0 only the end of the connection can end what has no length.
    fn sendable(&self, answer: Answer) -> Answer {
        if matches!(answer.body, Body::Stream(_)) && self.http_1_0 && !self.close {
            let detail = "use HTTP/1.1, or do without Connection: keep-alive, or ask for pages with limit";
            Problem::new(Kind::BadRequest, detail).into()
        } else {
            answer
        }
    }

    /// Whether `tiny_http`, to drop the request, waits for a body of which `left` bytes were not read.
    fn waits_for(&self, left: Option<u64>) -> bool {
        let in_memory = self.body_length.is_some_and(|length| length <= BODY_READ_BEFORE) && !self.expects_continue;
        left.is_some_and(|left| left > 0) && !in_memory && !self.upgrade
    }
}

/// Reads the body of a request, and not what stands behind it.
struct RequestBody<'a> {
    request: &'a mut tiny_http::Request,
    // Of `Content-Length`.
    left: Option<u64>,
    // tiny_http hands out the whole connection then, so a body without a length has none.
    upgraded: bool,
}

impl Read for RequestBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left else {
            return if self.upgraded {
                Ok(0)
            } else {
                self.request.as_reader().read(buffer)
            };
        };
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if count == 0 {
            return Ok(0);
        }
        let read = self.request.as_reader().read(&mut buffer[..count])?;
        self.left = Some(left - read as u64);
        Ok(read)
    }
}

/// How a client knows where an answer ends.
enum Length {
    Whole(usize),
    Chunked,
    UntilClose,
}

fn head_of_answer(status: u16, headers: &[(&'static str, String)], length: &Length, close: bool) -> Vec<u8> {
    let reason = StatusCode(status).default_reason_phrase();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut head = format!("HTTP/1.1 {status} {reason}\r\nDate: {date}\r\n");
    for (name, value) in all_headers(headers) {
        head.extend([name, ": ", value, "\r\n"]);
    }
    match length {
        Length::Whole(bytes) => head.extend(["Content-Length: ", &bytes.to_string(), "\r\n"]),
        Length::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Length::UntilClose => {}
    }
    if close {
        head.push_str("Connection: close\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// The headers of an answer. No cache may keep it, and no browser may guess what it is.
fn all_headers<'a>(own: &'a [(&'static str, String)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    let standing = [("Server", SERVER), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")];
    standing.into_iter().chain(own.iter().map(|(name, value)| (*name, value.as_str())))
}

fn send(request: tiny_http::Request, bytes: &[u8]) -> io::Result<()> {
    let mut writer = request.into_writer();
    writer.write_all(bytes)?;
    writer.flush()
}

/// Sends a stream, in chunks or as it is until the connection ends. If it fails, the client is not left to believe it whole:
/// in chunks one is broken; else the text ends without its closing bracket.
fn send_stream(
    request: tiny_http::Request,
    head: Vec<u8>,
    mut stream: Box<dyn Read + Send>,
    chunked: bool,
) -> io::Result<()> {
    let mut writer = request.into_writer();
    let mut bytes = head;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        // The stream logs its errors itself, and the panic hook a panic.
        let read = catch_unwind(AssertUnwindSafe(|| stream.read(&mut buffer).ok())).unwrap_or_default();
        match (read, chunked) {
            (Some(count), true) => {
                // OK: a chunk of length 0 is the end
                bytes.extend(format!("{count:x}\r\n").bytes());
                bytes.extend(&buffer[..count]);
                bytes.extend(b"\r\n");
            }
            (Some(count), false) => bytes.extend(&buffer[..count]),
            (None, true) => bytes.extend(BROKEN_OFF),
            (None, false) => {}
        }
        writer.write_all(&bytes)?;
        bytes.clear();
        if read.unwrap_or(0) == 0 {
            return writer.flush();
        }
    }
}

fn send_by_tiny_http(
    request: tiny_http::Request,
    status: u16,
    headers: &[(&'static str, String)],
    text: Vec<u8>,
) -> io::Result<()> {
    let headers = all_headers(headers).filter_map(|(name, value)| Header::from_bytes(name, value).ok()).collect();
    let length = text.len();
    let response = Response::new(StatusCode(status), headers, io::Cursor::new(text), Some(length), None);
    request.respond(response.with_chunked_threshold(usize::MAX))
}
