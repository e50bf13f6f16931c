//! One request of `tiny_http` to the API, and the answer back to the client.
//!
//! An answer that is known whole is one write, head and body together. A stream that fails halfway is made invalid: a client must not
//! take half a listing for all of it.

use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use tiny_http::{HTTPVersion, Refusal, StatusCode};

use super::share::{LISTING_WAIT, Share, Shares};
use crate::api::{self, Answer, Api, Body, Headers, Kind, Problem};

/// The `Server` header.
const SERVER: &str = "trilane";
/// How much of a stream is sent at once, in bytes.
const CHUNK_BYTES: usize = 32 << 10;
/// Ends a chunked answer that is not whole: where a client expects the length of the next chunk, this is none.
const BROKEN_OFF: &[u8] = b"!broken off\r\n";
/// When to come back after 503, in seconds: what is short is given back within moments.
const RETRY_SECONDS: u32 = 1;

/// Has a request answered, and sends the answer; the connection is closed then if `close` says so.
pub(super) fn serve(mut request: tiny_http::Request<'_>, api: &Api, shares: &Shares, close: &dyn Fn() -> bool) {
    let head = Head::of(&mut request);
    let listing = api.lists(&head.target).then(|| shares.listings.take_within(1, LISTING_WAIT));
    let refusal = match &listing {
        Some(None) => Some(unavailable("too many listings are under way; ask again later")),
        _ => head.refusal(),
    };
    // The share is kept until the answer is sent.
    let (answer, _share) = match refusal {
        Some(problem) => (problem.into(), shares.bodies.nothing()),
        None => answer(&mut request, &head, api, shares),
    };
    finish(request, &head, answer, close());
}

/// Answers a request that comes during a stop.
pub(super) fn refuse(mut request: tiny_http::Request<'_>) {
    let head = Head::of(&mut request);
    let problem = unavailable("this replica is being stopped; send the request again");
    finish(request, &head, problem.into(), true);
}

/// What is sent where there is no request to be answered. The connection is closed then.
pub(super) fn refusal(refusal: Refusal) -> Vec<u8> {
    let problem = match refusal {
        Refusal::Malformed(why) => Problem::new(Kind::BadRequest, why),
        Refusal::Slow => Problem::new(Kind::RequestTimeout, "the request did not come in time; send it again"),
        Refusal::Expectation => Problem::new(Kind::ExpectationFailed, "the header Expect knows 100-continue alone"),
        Refusal::HeadTooLarge => Problem::new(Kind::HeadTooLarge, "send fewer or shorter headers"),
        Refusal::Coding => Problem::new(Kind::NotImplemented, "the header Transfer-Encoding knows chunked alone"),
        Refusal::Full => unavailable("too many connections are open; try again later"),
        Refusal::Version => Problem::new(Kind::VersionNotSupported, "use HTTP/1.1"),
    };
    let answer = Answer::from(problem);
    let Body::Whole(text) = answer.body else { return Vec::new() }; // OK: a problem is whole
    let mut bytes = head_of_answer(answer.status, &answer.headers, &Length::Whole(text.len()), After::Close);
    bytes.extend(text);
    bytes
}

fn unavailable(detail: &str) -> Problem {
    Problem::new(Kind::Unavailable, detail).retry_after(RETRY_SECONDS)
}

/// The answer, and the share of the memory for bodies that the request keeps until it is sent.
fn answer<'a>(request: &mut tiny_http::Request<'_>, head: &Head, api: &Api, shares: &'a Shares) -> (Answer, Share<'a>) {
    let mut body = RequestBody { request, read: 0, share: shares.bodies.nothing(), is_short: false };
    let answer = catch_unwind(AssertUnwindSafe(|| {
        api.answer(api::Request {
            method: &head.method,
            target: &head.target,
            headers: &head.headers,
            body_length: head.body_length,
            body: &mut body,
        })
    }));
    let answer = if body.is_short {
        unavailable("too many large requests are under way; none of these jobs was stored, send them again later")
            .into()
    } else {
        answer.unwrap_or_else(|_| Problem::internal("panic", &"the handler panicked; see above").into())
    };
    (answer, body.share)
}

fn finish(mut request: tiny_http::Request<'_>, head: &Head, answer: Answer, close: bool) {
    // HTTP/1.0 knows no chunks: there the end of a stream is that of the connection.
    let until_close = head.http_1_0 && matches!(answer.body, Body::Stream(_));
    if close || until_close {
        request.close();
    }
    let after = match (request.keeps_alive(), head.http_1_0) {
        (false, _) => After::Close,
        (true, true) => After::KeepAlive,
        (true, false) => After::Nothing,
    };
    let head_with = |length: &Length| head_of_answer(answer.status, &answer.headers, length, after);
    let sent = match answer.body {
        Body::Whole(text) => {
            let mut bytes = head_with(&Length::Whole(text.len()));
            if !head.is_head() {
                bytes.extend(text);
            }
            request.into_writer().write_all(&bytes)
        }
        Body::Stream(_) if head.is_head() => request.into_writer().write_all(&head_with(&Length::Chunked)),
        Body::Stream(stream) if until_close => send_stream(request, head_with(&Length::UntilClose), stream, false),
        Body::Stream(stream) => send_stream(request, head_with(&Length::Chunked), stream, true),
    };
    if let Err(error) = sent {
        log::debug!(error:%; "a client went away before it had its answer");
    }
}

/// What is known of a request before its body is read.
struct Head {
    method: String,
    target: String,
    headers: Headers,
    body_length: Option<u64>,
    has_body: bool,
    http_1_0: bool,
}

impl Head {
    fn of(request: &mut tiny_http::Request<'_>) -> Head {
        let headers = request.take_headers().into_iter();
        Head {
            method: request.method().as_str().to_owned(),
            target: request.url().to_owned(),
            body_length: request.body_length(),
            has_body: request.is_chunked() || request.body_length().is_some_and(|length| length > 0),
            http_1_0: *request.http_version() <= HTTPVersion(1, 0),
            headers: headers.map(|header| (header.field.into_string(), header.value.into())).collect(),
        }
    }

    fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// What is refused whatever it asks for.
    fn refusal(&self) -> Option<Problem> {
        let reads_only = matches!(self.method.as_str(), "GET" | "HEAD");
        (reads_only && self.has_body).then(|| Problem::new(Kind::BadRequest, format!("{} takes no body", self.method)))
    }
}

/// Reads the body of a request; more than a little of it only where there is memory for it.
struct RequestBody<'a, 'b, 'c> {
    request: &'a mut tiny_http::Request<'b>,
    read: usize,
    share: Share<'c>,
    is_short: bool,
}

impl Read for RequestBody<'_, '_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.request.as_reader().read(buffer)?;
        self.read += read;
        if self.read > Shares::FREE_BODY_BYTES {
            self.is_short = !self.share.grow_to(self.read);
        }
        if self.is_short {
            self.request.close();
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, "there is no memory for it now"));
        }
        Ok(read)
    }
}

/// How a client knows where an answer ends.
enum Length {
    Whole(usize),
    Chunked,
    UntilClose,
}

/// What becomes of the connection, where the client must be told.
#[derive(Clone, Copy)]
enum After {
    Close,
    KeepAlive,
    Nothing,
}

fn head_of_answer(status: u16, headers: &[(&'static str, String)], length: &Length, after: After) -> Vec<u8> {
    let reason = StatusCode(status).default_reason_phrase();
    let date = httpdate::fmt_http_date(SystemTime::now());
    let mut head = String::with_capacity(512);
    head.extend(["HTTP/1.1 ", &status.to_string(), " ", reason, "\r\nDate: ", &date, "\r\n"]);
    // No cache may keep an answer, and no browser may guess what it is.
    head.extend(["Server: ", SERVER, "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"]);
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    match length {
        Length::Whole(bytes) => head.extend(["Content-Length: ", &bytes.to_string(), "\r\n"]),
        Length::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Length::UntilClose => {}
    }
    head.push_str(match after {
        After::Close => "Connection: close\r\n",
        After::KeepAlive => "Connection: keep-alive\r\n",
        After::Nothing => "",
    });
    head.push_str("\r\n");
    head.into_bytes()
}

/// Sends a stream, in chunks or as it is until the connection ends. If it fails, the client is not left to believe it whole:
/// in chunks one is broken; else the text ends without its closing bracket.
fn send_stream(
    request: tiny_http::Request<'_>,
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
        if read.is_none() {
            writer.close();
        }
        writer.write_all(&bytes)?;
        bytes.clear();
        if read.unwrap_or(0) == 0 {
            return writer.flush();
        }
    }
}
