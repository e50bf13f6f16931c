//! Query strings: names, percent-encoding, and errors that say what is known.

use std::fmt::Write;

use super::problem::{Kind, Problem};

/// The parameters of one request, each at most once, decoded.
pub(super) struct Query {
    pairs: Vec<(&'static str, String)>,
}

impl Query {
    /// Reads the part of a request target behind `?`.
    ///
    /// A `+` stays a plus sign: no parameter here holds blanks, and times do (`since=2026-11-23T14:45:00+01:00`).
    ///
    /// # Errors
    /// 400 that names an unknown, a repeated or a badly encoded parameter.
    pub(super) fn read(text: &str, known: &[&'static str]) -> Result<Query, Problem> {
        let mut pairs: Vec<(&'static str, String)> = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let decoded = decode(name).zip(decode(value));
            let Some((name, value)) = decoded else {
                return Err(bad(format!("the query parameter {part:?} is not percent-encoded UTF-8")));
            };
            let Some(name) = known.iter().find(|known| **known == name) else {
                return Err(bad(format!("unknown query parameter {name:?}; known are {}", known.join(", "))));
            };
            if pairs.iter().any(|(given, _)| given == name) {
                return Err(bad(format!("the query parameter {name} is given twice")));
            }
            pairs.push((name, value));
        }
        Ok(Query { pairs })
    }

    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter as `parse` reads it; `expected` says in the error what it should have been.
    ///
    /// # Errors
    /// 400 if `parse` gives `None`.
    pub(super) fn parse<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(bad(format!("the query parameter {name} must be {expected}, got {value:?}"))),
        }
    }

    /// The same query with `name` set to `value`, encoded.
    pub(super) fn with(&self, name: &'static str, value: &str) -> String {
        let others =
            self.pairs.iter().filter(|(given, _)| *given != name).map(|(given, value)| (*given, value.as_str()));
        let mut text = String::new();
        for (name, value) in others.chain([(name, value)]) {
            let separator = if text.is_empty() { "" } else { "&" };
            let _ = write!(text, "{separator}{name}={}", encode(value)); // OK: writing to a String cannot fail
        }
        text
    }
}

fn bad(detail: String) -> Problem {
    Problem::new(Kind::BadRequest, detail)
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

/// Leaves the unreserved characters of RFC 3986, and the colon, which a query may hold.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // OK: writing to a String cannot fail
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KNOWN: [&str; 2] = ["type", "since"];

    #[test]
    fn values_are_decoded_and_a_plus_stays_a_plus() {
        let query = Query::read("type=a%20b%C3%A9&&since=2026-11-23T14:45:00+01:00", &KNOWN).expect("valid");

        assert_eq!(query.get("type"), Some("a bé"));
        assert_eq!(query.get("since"), Some("2026-11-23T14:45:00+01:00"));
    }

    #[test]
    fn what_is_unknown_repeated_or_badly_encoded_is_named() {
        for (text, named) in [
            ("typo=x", "\"typo\"; known are type, since"),
            ("type=a&type=b", "type is given twice"),
            ("type=%zz", "%zz"),
            ("type=%ff", "%ff"),
            ("type=%4", "%4"),
        ] {
            let problem = Query::read(text, &KNOWN).err().expect("refused");

            assert!(format!("{problem:?}").replace('\\', "").contains(named), "{problem:?}");
        }
    }

    #[test]
    fn an_encoded_query_reads_back_the_same() {
        let query = Query::read("type=a%26b%3D%2B%C3%A9&since=1", &KNOWN).expect("valid");

        let text = query.with("since", "x y");
        let again = Query::read(&text, &KNOWN).expect("valid");

        assert_eq!(text, "type=a%26b%3D%2B%C3%A9&since=x%20y");
        assert_eq!((again.get("type"), again.get("since")), (Some("a&b=+é"), Some("x y")));
    }

    proptest! {
        #[test]
        fn any_query_is_read_or_refused(text in "\\PC{0,40}|(type|since|x)?(=|&|%[0-9a-f]{0,2}|\\+|é){0,20}") {
            if let Ok(query) = Query::read(&text, &KNOWN) {
                prop_assert!(query.pairs.len() <= KNOWN.len());
            }
        }

        #[test]
        fn any_value_reads_back_the_same(job_type in any::<String>(), since in any::<String>()) {
            let query = Query { pairs: vec![("type", job_type.clone())] };

            let again = Query::read(&query.with("since", &since), &KNOWN).expect("valid");

            prop_assert_eq!((again.get("type"), again.get("since")), (Some(job_type.as_str()), Some(since.as_str())));
        }
    }
}
