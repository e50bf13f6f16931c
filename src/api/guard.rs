//! Who may ask: tokens, and without tokens the defence against web pages that reach for the server of this host.
//!
//! With tokens every request brings one. Without them the server is bound to loopback (`config` sees to it), and everything on
//! this host may ask, but a browser on this host also runs pages of strangers. Three rules keep them out:
//! * a form can post only as `application/x-www-form-urlencoded`, `multipart/form-data` or `text/plain`: every POST that says
//!   what it is must be JSON;
//! * a page's own requests carry its `Origin`: that must be ours;
//! * a page whose name was made to point to 127.0.0.1 (DNS rebinding) sends that name as `Host`: that must be this host.

use std::net::IpAddr;

use sha2::{Digest, Sha256};

use super::message::Headers;
use super::problem::{Kind, Problem};

/// Lets requests in or not.
pub(super) struct Guard {
    // Only the digests are kept: they all have one length, and comparing them tells nothing of the tokens.
    tokens: Vec<[u8; 32]>,
}

impl Guard {
    pub(super) fn new(tokens: &[String]) -> Guard {
        Guard { tokens: tokens.iter().map(|token| Sha256::digest(token).into()).collect() }
    }

    /// Lets a request in by its headers.
    ///
    /// # Errors
    /// 401 with `WWW-Authenticate`; without tokens 403.
    pub(super) fn check(&self, headers: &Headers) -> Result<(), Problem> {
        if self.tokens.is_empty() {
            check_host(headers)?;
            check_origin(headers)
        } else {
            self.check_token(headers)
        }
    }

    fn check_token(&self, headers: &Headers) -> Result<(), Problem> {
        let Some(authorization) = headers.get("Authorization") else {
            let detail = "send one of the server's TRILANE_API_TOKENS in the header Authorization: Bearer <token>";
            return Err(unauthorized(detail, "Bearer realm=\"trilane\""));
        };
        let token = authorization
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        if token.is_some_and(|token| self.knows(token)) {
            Ok(())
        } else {
            let detail = "the token is none of the server's TRILANE_API_TOKENS; send Authorization: Bearer <token>";
            Err(unauthorized(detail, "Bearer realm=\"trilane\", error=\"invalid_token\""))
        }
    }

    /// Compares with every token, all bytes of each, so that the time tells nothing.
    fn knows(&self, token: &str) -> bool {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut known = false;
        for own in &self.tokens {
            let difference = own.iter().zip(&digest).fold(0, |sum, (a, b)| sum | (a ^ b));
            known |= std::hint::black_box(difference) == 0;
        }
        known
    }
}

fn unauthorized(detail: &str, challenge: &str) -> Problem {
    Problem::new(Kind::Unauthorized, detail).with_header("WWW-Authenticate", challenge)
}

fn check_host(headers: &Headers) -> Result<(), Problem> {
    let strange = headers.all("Host").find(|host| !is_this_host(host));
    match strange {
        None => Ok(()),
        Some(host) => Err(Problem::new(
            Kind::Forbidden,
            format!(
                "without TRILANE_API_TOKENS the header Host must be localhost, 127.0.0.1 or [::1], got {host:?}; set TRILANE_API_TOKENS, or let \
                 the proxy in front send Host: localhost"
            ),
        )),
    }
}

/// Whether a `Host` names this host, with any port or none.
fn is_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

fn check_origin(headers: &Headers) -> Result<(), Problem> {
    let host = headers.get("Host").unwrap_or_default();
    let strange = headers.all("Origin").find(|origin| {
        // OK: "null", the origin of sandboxed pages and files, has no scheme, so it is strange
        origin.split_once("://").is_none_or(|(_, authority)| !authority.eq_ignore_ascii_case(host))
    });
    match strange {
        None => Ok(()),
        Some(origin) => Err(Problem::new(
            Kind::Forbidden,
            format!(
                "the header Origin ({origin:?}) is not this server ({host:?}); web pages of other sites may not ask here"
            ),
        )),
    }
}

/// Lets a POST in whose body is JSON, or that does not say what it is.
///
/// # Errors
/// 415 with advice.
pub(super) fn check_media_type(headers: &Headers) -> Result<(), Problem> {
    if let Some(encoding) =
        headers.get("Content-Encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity"))
    {
        let detail = format!("send the body as it is, without Content-Encoding {encoding:?}");
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    match headers.all("Content-Type").find(|media_type| !is_json(media_type)) {
        None => Ok(()),
        Some(media_type) => Err(Problem::new(
            Kind::UnsupportedMediaType,
            format!(
                "send the header Content-Type: application/json (curl: -H 'Content-Type: application/json'), not {media_type:?}"
            ),
        )),
    }
}

/// `application/json`, `text/json` or anything that ends in `+json`; parameters do not matter.
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "application/json" | "text/json")
        || (essence.contains('/') && essence.ends_with("+json"))
}

#[cfg(test)]
mod tests {
    use super::super::message::Answer;
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn status(result: Result<(), Problem>) -> u16 {
        result.map_or_else(|problem| Answer::from(problem).status, |()| 200)
    }

    fn open(pairs: &[(&str, &str)]) -> u16 {
        status(Guard::new(&[]).check(&headers(pairs)))
    }

    #[test]
    fn with_tokens_a_request_must_bring_one_of_them() {
        let guard = Guard::new(&["first".to_owned(), "second".to_owned()]);
        let check =
            |value: &str| status(guard.check(&headers(&[("authorization", value), ("Host", "jobs.example.com")])));

        assert_eq!(check("Bearer first"), 200);
        assert_eq!(check("bearer  second"), 200);
        for wrong in ["Bearer third", "Bearer firs", "Bearer first2", "Bearer ", "Bearer", "first", "Basic first", ""] {
            assert_eq!(check(wrong), 401, "{wrong:?}");
        }
    }

    #[test]
    fn a_refused_token_comes_with_a_challenge_and_is_not_repeated() {
        let guard = Guard::new(&["first".to_owned()]);
        let missing: Answer = guard.check(&headers(&[])).expect_err("refused").into();
        let wrong = guard.check(&headers(&[("Authorization", "Bearer hunter2")])).expect_err("refused");

        assert!(missing.headers.iter().any(|(name, value)| *name == "WWW-Authenticate" && value.starts_with("Bearer")));
        assert!(!format!("{wrong:?}").contains("hunter2"));
    }

    #[test]
    fn without_tokens_the_host_must_be_this_one() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "127.8.8.8", "[::1]:8080", "[::1]"] {
            assert_eq!(open(&[("Host", host)]), 200, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1:80", "", "[::2]:80"]
        {
            assert_eq!(open(&[("Host", host)]), 403, "{host}");
        }
        assert_eq!(open(&[]), 200);
        assert_eq!(open(&[("Host", "localhost"), ("Host", "evil.example")]), 403);
    }

    #[test]
    fn without_tokens_the_origin_must_be_the_server_itself() {
        let from = |origin: &str| open(&[("Host", "localhost:8080"), ("Origin", origin)]);

        assert_eq!(from("http://localhost:8080"), 200);
        for origin in ["https://evil.example", "http://localhost:3000", "http://127.0.0.1:8080", "null", ""] {
            assert_eq!(from(origin), 403, "{origin:?}");
        }
    }

    #[test]
    fn a_post_must_be_json_or_say_nothing() {
        let check = |value: &str| status(check_media_type(&headers(&[("Content-Type", value)])));

        for good in ["application/json", "Application/JSON; charset=utf-8", "application/cloudevents+json", "text/json"]
        {
            assert_eq!(check(good), 200, "{good}");
        }
        for bad in ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "", "+json"] {
            assert_eq!(check(bad), 415, "{bad:?}");
        }
        assert_eq!(status(check_media_type(&headers(&[]))), 200);
        assert_eq!(status(check_media_type(&headers(&[("Content-Encoding", "gzip")]))), 415);
    }
}
