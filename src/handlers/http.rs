//! The handler that posts each attempt to a URL: for work that another service does.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::value::RawValue;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};
use ureq::{Agent, Body};

use super::tail::readable;
use super::{Attempt, Handler, network};
use crate::clock::Timestamp;
use crate::job::{Lane, Token};
use crate::retry::{DELAY_MAX, Report};

/// How much of the body of a response is read: its beginning, into the reason of a failed attempt.
pub const BODY_BYTES_MAX: u64 = 2_000;
/// How long the body of a response is waited for. The status has decided by then.
pub const BODY_WAIT: Duration = Duration::from_secs(2);

/// How much of a `Location` is shown, in bytes.
const LOCATION_BYTES_MAX: usize = 500;
/// The largest file of trusted certificates, in bytes.
const CA_FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Start of the names of headers that belong to Trilane.
const OWN_PREFIX: &str = "trilane-";
/// Headers that every call sets, or that the connection does.
const OWN_HEADERS: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::USER_AGENT,
];
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// One for all calls, so that they share its connections. See [`network::agent`].
static AGENT: LazyLock<Agent> = LazyLock::new(|| network::agent(None));

/// What is wrong with the settings of an [`HttpHandler`]. The message never holds a value, which may be a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpHandlerError {
    /// The URL cannot be called.
    #[error("expected a URL as https://host/path, {0}")]
    Url(&'static str),
    /// The header cannot be sent.
    #[error("header `{name}`: {why}")]
    Header {
        /// As it was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The trusted certificates cannot be read.
    #[error("{0}")]
    CaFile(String),
}

/// Posts the job as JSON to a URL and goes by the status of the answer.
///
/// * Body: `{"id","type","payload","priority","attempt","max_retries","token","created_at"}`; `payload` is the JSON value, or
///   a string where it is not JSON.
/// * Headers: `Content-Type`, `User-Agent: trilane/<version>`, `Trilane-Job-Id`, `Trilane-Attempt`, `Trilane-Token`,
///   `Idempotency-Key: <job id>`, and those of [`HttpHandler::header`].
/// * 2xx is done. 408, 425, 429, 5xx and whatever keeps an answer from coming are failed attempts; `Retry-After` (seconds or
///   a date, up to [`DELAY_MAX`]) sets the delay. Every other status is permanent; a redirect is not followed.
/// * The call ends with the time limit of the attempt or a stop; looking up the name and connecting each take up to
///   [`super::CONNECT_WAIT`], sending up to [`super::SEND_WAIT`].
/// * The reason holds the first [`BODY_BYTES_MAX`] bytes of the answer, and of the URL no query and no password.
#[derive(Clone)]
pub struct HttpHandler {
    agent: Agent,
    url: Uri,
    shown_url: String,
    headers: HeaderMap,
}

impl HttpHandler {
    /// Calls `url`, which is `http` or `https`.
    ///
    /// # Errors
    /// [`HttpHandlerError::Url`].
    pub fn new(url: &str) -> Result<HttpHandler, HttpHandlerError> {
        let url: Uri = url.parse().map_err(|_| HttpHandlerError::Url("and it is none"))?;
        match url.scheme_str() {
            Some("http" | "https") => {}
            Some(_) => return Err(HttpHandlerError::Url("with http or https in front")),
            None => return Err(HttpHandlerError::Url("with its scheme in front")),
        }
        let host = url.host().filter(|host| !host.is_empty()).ok_or(HttpHandlerError::Url("with a host"))?;
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(HttpHandlerError::Url("without a user in it: send an Authorization header"));
        }
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let shown_url = format!("{}://{host}{port}{}", url.scheme_str().unwrap_or_default(), url.path());
        Ok(HttpHandler { agent: AGENT.clone(), url, shown_url, headers: HeaderMap::new() })
    }

    /// Sends one more header with each call.
    ///
    /// # Errors
    /// [`HttpHandlerError::Header`]: it is malformed, given twice, or one that Trilane sets itself.
    pub fn header(mut self, name: &str, value: &str) -> Result<HttpHandler, HttpHandlerError> {
        let error = |why| HttpHandlerError::Header { name: name.to_owned(), why };
        let key: HeaderName = name.parse().map_err(|_| error("not a name that a header can have"))?;
        if key.as_str().starts_with(OWN_PREFIX) || key == IDEMPOTENCY_KEY || OWN_HEADERS.contains(&key) {
            return Err(error("is set by Trilane itself"));
        }
        let mut value = HeaderValue::from_str(value).map_err(|_| error("holds a character that no header can"))?;
        value.set_sensitive(true); // kept out of every debug output
        match self.headers.insert(key, value) {
            None => Ok(self),
            Some(_) => Err(error("is given twice")),
        }
    }

    /// Trusts the certificate authorities in a PEM file, and no others. Such a handler has connections of its own.
    ///
    /// # Errors
    /// [`HttpHandlerError::CaFile`]: it cannot be read, is larger than 1 MiB, or holds no certificate.
    pub fn ca_file(mut self, path: &Path) -> Result<HttpHandler, HttpHandlerError> {
        let error = |why: String| HttpHandlerError::CaFile(format!("{}: {why}", path.display()));
        let mut pem = Vec::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(CA_FILE_BYTES_MAX + 1).read_to_end(&mut pem))
            .map_err(|why| error(why.to_string()))?;
        if pem.len() as u64 > CA_FILE_BYTES_MAX {
            return Err(error(format!("larger than {CA_FILE_BYTES_MAX} bytes")));
        }
        let mut certificates: Vec<Certificate<'static>> = Vec::new();
        for item in parse_pem(&pem) {
            match item {
                Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
                Ok(_) => {}
                Err(why) => return Err(error(why.to_string())),
            }
        }
        if certificates.is_empty() {
            return Err(error("holds no certificate, expected PEM".into()));
        }
        self.agent = network::agent(Some(RootCerts::from(certificates)));
        Ok(self)
    }

    fn call(&self, attempt: &Attempt<'_>, left: Duration) -> Result<Response<Body>, ureq::Error> {
        let job = attempt.job;
        let id = job.id.to_string();
        let body = serde_json::to_vec(&Call::of(attempt)).map_err(std::io::Error::from)?;
        let mut request = self
            .agent
            .post(&self.url)
            .config()
            .timeout_global(Some(left))
            .timeout_resolve(Some(network::CONNECT_WAIT))
            .timeout_connect(Some(network::CONNECT_WAIT))
            .timeout_send_body(Some(network::SEND_WAIT))
            .timeout_recv_body(Some(BODY_WAIT))
            .build();
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request
            .header(header::CONTENT_TYPE, "application/json")
            .header(IDEMPOTENCY_KEY, &id)
            .header("trilane-job-id", &id)
            .header("trilane-attempt", job.attempt().to_string())
            .header("trilane-token", job.token.to_string())
            .send(&body[..])
    }

    fn report(&self, mut response: Response<Body>, now: SystemTime) -> Report {
        let status = response.status();
        let (verdict, delay) = judge(status, response.headers(), now);
        let location = response.headers().get(header::LOCATION).map(|value| {
            let bytes = value.as_bytes();
            readable(&bytes[..bytes.len().min(LOCATION_BYTES_MAX)])
        });
        // Also after a success: only a connection whose answer is read to its end serves the next call.
        let answer = beginning(response.body_mut());
        let advice = match location {
            Some(location) if status.is_redirection() => {
                format!(" to {location}, which is not followed: give the handler the final URL")
            }
            _ => String::new(),
        };
        let answer = if answer.is_empty() {
            answer
        } else {
            format!(": {answer}")
        };
        let reason = format!("POST {} answered {status}{advice}{answer}", self.shown_url);
        match verdict {
            Verdict::Done => Report::Done,
            Verdict::Retry => Report::Retry { reason, delay },
            Verdict::Permanent => Report::Permanent { reason },
        }
    }
}

impl fmt::Debug for HttpHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query of the URL may hold a secret.
        f.debug_tuple("HttpHandler").field(&self.shown_url).finish()
    }
}

impl Handler for HttpHandler {
    fn run(&self, attempt: &Attempt<'_>) -> Report {
        let left = attempt.left(Instant::now());
        if left.is_zero() || attempt.stop.is_set() {
            return Report::retry(format!("POST {} was not sent: the attempt was already over", self.shown_url));
        }
        network::stoppable(attempt.stop, || match self.call(attempt, left) {
            Ok(response) => self.report(response, SystemTime::now()),
            // Whoever ended it: the call's own limit, or the stop flag that the worker sets at the same moment.
            Err(_) if attempt.left(Instant::now()).is_zero() => Report::retry(format!(
                "POST {} was ended at its time limit, after {:.1} s",
                self.shown_url,
                left.as_secs_f64()
            )),
            Err(error) => Report::retry(format!("POST {} failed: {error}", self.shown_url)),
        })
    }
}

/// The body of a call.
#[derive(Serialize)]
struct Call<'a> {
    id: uuid::Uuid,
    r#type: &'a str,
    payload: Payload<'a>,
    priority: Lane,
    attempt: u32,
    max_retries: u32,
    token: Token,
    created_at: Timestamp,
}

/// What a payload is to the one who is called.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    /// Plain SQL can store anything.
    Text(&'a str),
}

impl<'a> Call<'a> {
    fn of(attempt: &Attempt<'a>) -> Call<'a> {
        let job = attempt.job;
        Call {
            id: job.id,
            r#type: &job.job_type,
            payload: serde_json::from_str(&job.payload).map_or(Payload::Text(&job.payload), Payload::Json),
            priority: job.lane,
            attempt: job.attempt(),
            max_retries: job.max_retries,
            token: job.token,
            created_at: job.created_at,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Retry,
    Permanent,
}

/// What an answer means, and the delay that it asks for.
fn judge(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> (Verdict, Option<Duration>) {
    match status.as_u16() {
        200..=299 => (Verdict::Done, None),
        408 | 425 | 429 | 500..=599 => (Verdict::Retry, retry_after(headers, now)),
        _ => (Verdict::Permanent, None),
    }
}

/// The delay of a `Retry-After` header, in seconds or as a date; zero where the date has passed, at most [`DELAY_MAX`].
///
/// A date is measured from the answer's own `Date`, so that neither clock has to be right; from `now` where it has none.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::trim);
    let value = text(header::RETRY_AFTER)?;
    let delay = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        value.parse().map_or(DELAY_MAX, Duration::from_secs) // all digits, so it fails only when too large
    } else {
        let at = httpdate::parse_http_date(value).ok()?;
        let from = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
        at.duration_since(from).unwrap_or_default()
    };
    Some(delay.min(DELAY_MAX))
}

/// The first [`BODY_BYTES_MAX`] bytes of an answer, as much as comes within [`BODY_WAIT`].
fn beginning(body: &mut Body) -> String {
    let mut bytes = Vec::new();
    let mut reader = body.as_reader().take(BODY_BYTES_MAX + 1);
    // OK: the status counts; a body that breaks off is shown as far as it came
    let _ = reader.read_to_end(&mut bytes);
    let is_cut = bytes.len() as u64 > BODY_BYTES_MAX;
    if is_cut {
        bytes.pop();
        format!("{}…", readable(whole_characters(&bytes)))
    } else {
        readable(&bytes)
    }
}

/// `bytes` without the beginning of a character at its end.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    }
}

#[cfg(test)]
mod tests;
