//! A request and its answer in plain words, apart from sockets and from the HTTP library.

use std::io::Read;

use serde::Serialize;

use super::problem::Problem;

/// The media type of every ordinary answer.
pub const JSON: &str = "application/json";

/// A request: its head, and the reader of its body.
pub struct Request<'a> {
    /// `GET`, `POST`, …
    pub method: &'a str,
    /// Path and query as they stand in the request line, or a whole URL as a proxy sends it.
    pub target: &'a str,
    /// All headers.
    pub headers: &'a Headers,
    /// From `Content-Length`, in bytes; `None` if there is none, and then the body may have any length.
    pub body_length: Option<u64>,
    /// The body. Nothing is read before it must be: a client that asked `Expect: 100-continue` is told to go on by the first read.
    pub body: &'a mut dyn Read,
}

/// The headers of a request, in their order.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of the first header of that name, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The values of every header of that name, in any case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl FromIterator<(String, String)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Headers {
        Headers(pairs.into_iter().collect())
    }
}

/// What is sent back.
pub struct Answer {
    /// 200, 400, …
    pub status: u16,
    /// Headers besides those of the wire (`Date`, `Server`, `Content-Length`, `Transfer-Encoding`, `Connection`).
    pub headers: Vec<(&'static str, String)>,
    /// What follows the head. The wire leaves it out for `HEAD`.
    pub body: Body,
}

/// The body of an [`Answer`].
pub enum Body {
    /// All of it.
    Whole(Vec<u8>),
    /// Read while it is sent, in bounded memory. After an error of the reader the client must see a broken answer, not a short one.
    Stream(Box<dyn Read + Send>),
}

impl Answer {
    /// An answer of a media type.
    pub fn new(status: u16, media_type: &str, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, headers: vec![("Content-Type", media_type.to_owned())], body: Body::Whole(body.into()) }
    }

    /// An answer that is sent while it is read.
    pub fn stream(media_type: &str, body: impl Read + Send + 'static) -> Answer {
        Answer {
            status: 200,
            headers: vec![("Content-Type", media_type.to_owned())],
            body: Body::Stream(Box::new(body)),
        }
    }

    /// `value` as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Answer {
        match serde_json::to_vec(value) {
            Ok(text) => Answer::new(status, JSON, text),
            Err(error) => Problem::internal("answer", &error).into(),
        }
    }

    /// The same answer with one header more.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }
}
