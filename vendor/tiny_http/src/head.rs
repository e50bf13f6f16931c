//! Heads of requests: what may stand in one, and what it says of the body.

use std::str::FromStr;

use crate::Refusal;
use crate::common::{HTTPVersion, Header, HeaderField, Method};

/// The most headers that can be told apart; `Limits::headers_max` may be less.
pub(crate) const HEADERS_MAX: usize = 128;

/// A head.
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) version: HTTPVersion,
    pub(crate) headers: Vec<Header>,
    pub(crate) body_length: Option<u64>,
    pub(crate) is_chunked: bool,
}

/// Whether what came so far can be the start of a head; all before `checked` is known to be lines. A TLS client, say, waits for an
/// answer, and never ends its line.
pub(crate) fn check_start(bytes: &[u8], checked: usize) -> Result<(), Refusal> {
    let starts = bytes.first().is_none_or(|byte| byte.is_ascii_graphic() || *byte == b'\r');
    if starts && bytes[checked..].iter().all(|byte| is_text(*byte) || *byte == b'\r') {
        Ok(())
    } else {
        Err(Refusal::Malformed("a head has no control characters; if this is TLS, it belongs to the proxy in front"))
    }
}

/// Reads what may be a whole head; `None` if something is missing. The number is its length.
pub(crate) fn parse(bytes: &[u8], headers_max: usize) -> Result<Option<(Head, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers[..headers_max]);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal_of(error, bytes)),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::Malformed("the request line is not valid"));
    };
    let method = Method::from_str(method).map_err(|()| Refusal::Malformed("the method is not valid"))?;
    let headers = request.headers.iter().map(|header| {
        let field = HeaderField::from_bytes(header.name).ok()?;
        let value = ascii::AsciiString::from_ascii(header.value.trim_ascii()).ok()?;
        Some(Header { field, value })
    });
    let headers: Option<Vec<Header>> = headers.collect();
    let headers = headers.ok_or(Refusal::Malformed("a header is not ASCII"))?;
    let version = HTTPVersion(1, minor);
    let (body_length, is_chunked) = framing(&headers, &version)?;
    Ok(Some((Head { method, target: target.to_owned(), version, headers, body_length, is_chunked }, length)))
}

fn refusal_of(error: httparse::Error, bytes: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::HeadTooLarge,
        httparse::Error::Version => {
            // What is no version at all is no request of a later HTTP either.
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let mut words = line.split(|byte| *byte == b' ').skip(2);
            if words.next().is_some_and(|version| version.starts_with(b"HTTP/")) && words.next().is_none() {
                Refusal::Version
            } else {
                Refusal::Malformed("the request line does not end with a version of HTTP")
            }
        }
        httparse::Error::HeaderName => Refusal::Malformed("the name of a header is not valid, or a header is folded"),
        httparse::Error::HeaderValue => Refusal::Malformed("the value of a header is not valid"),
        _ => Refusal::Malformed("the request line is not valid"),
    }
}

/// How the body ends: its length, and whether it comes in chunks. What another server on the way may read otherwise is refused, for
/// then a request could be hidden in a body (RFC 9112, sections 6.1 and 6.3).
fn framing(headers: &[Header], version: &HTTPVersion) -> Result<(Option<u64>, bool), Refusal> {
    let all = |name| headers.iter().filter(move |header| header.field.equiv(name)).map(|header| header.value.as_str());
    if all("Host").count() > 1 {
        return Err(Refusal::Malformed("there is more than one Host"));
    }
    let mut lengths = all("Content-Length");
    let length = lengths.next().map(content_length).transpose()?;
    if lengths.next().is_some() {
        return Err(Refusal::Malformed("there is more than one Content-Length"));
    }
    let mut codings = all("Transfer-Encoding");
    let Some(coding) = codings.next() else { return Ok((length, false)) };
    if length.is_some() {
        return Err(Refusal::Malformed("there are both Transfer-Encoding and Content-Length"));
    }
    if *version < (1, 1) {
        return Err(Refusal::Malformed("HTTP/1.0 knows no Transfer-Encoding"));
    }
    if codings.next().is_some() || !coding.eq_ignore_ascii_case("chunked") {
        return Err(Refusal::Coding);
    }
    Ok((None, true))
}

fn content_length(value: &str) -> Result<u64, Refusal> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::Malformed("Content-Length is not a whole number"));
    }
    // OK: what does not fit is too large for every limit
    Ok(value.parse().unwrap_or(u64::MAX))
}

/// Text of a header or of a line between chunks: no control characters but the tab.
pub(crate) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (0x20..0x7f).contains(&byte) || byte >= 0x80
}
