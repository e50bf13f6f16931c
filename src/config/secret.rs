//! Values that must not be shown: passwords, tokens, connection strings. Pure.

use std::fmt;

/// What stands where a secret would.
pub const REDACTED: &str = "[redacted]";

/// A value that prints as `[redacted]`, in `Debug` and in `Display`.
///
/// It has no `==`, on purpose: compare a token that a client sent in constant time.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides `value`.
    pub fn new(value: impl Into<String>) -> Secret {
        Secret(value.into())
    }

    /// The value itself, for the one call that needs it. Neither print nor log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// `url` as `scheme://host:port/path`, without user, password, query and fragment.
///
/// Where an `@` stands behind the host, a password may have been written without percent-encoding; then only the scheme
/// is shown, and of a text that is no URL nothing.
pub fn url_without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return REDACTED.to_owned() };
    let (authority, behind) = split_authority(rest);
    if behind.contains('@') {
        return format!("{scheme}://{REDACTED}");
    }

    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = behind.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

/// The part of a URL between `://` and its path, and the rest.
pub(super) fn split_authority(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_prints_as_redacted() {
        let secret = Secret::new("hunter2");

        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[redacted] [redacted] Some([redacted])");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_url_is_shown_without_user_password_and_query() {
        let shown = url_without_secrets;

        assert_eq!(shown("redis://127.0.0.1:6379/2"), "redis://127.0.0.1:6379/2");
        assert_eq!(shown("rediss://user:p%40ss@cache.internal:6380/0?x=y#insecure"), "rediss://cache.internal:6380/0");
        assert_eq!(shown("redis://:pa@ss@host:6379"), "redis://host:6379");
        assert_eq!(shown("redis+unix:///run/redis.sock?db=1&pass=hunter2"), "redis+unix:///run/redis.sock");
    }

    #[test]
    fn a_url_that_may_hold_a_raw_password_shows_its_scheme_alone() {
        for url in ["redis://:p/w@host", "redis://:p?w@host", "redis://:p#w@host", "unix:///run/redis.sock?pass=a@b"] {
            assert_eq!(url_without_secrets(url), format!("{}://[redacted]", url.split_once(':').expect("a URL").0));
        }
        assert_eq!(url_without_secrets("hunter2"), "[redacted]");
    }

    proptest! {
        #[test]
        fn no_part_of_a_password_is_shown_however_it_is_written(
            password in "[a-z]{6}[a-z@:/?#%&=]{0,4}[a-z]{6}", host in "[A-Z]{1,5}", path in "/[0-9]{0,2}",
        ) {
            prop_assume!(!password.contains("://")); // A URL by itself.
            for url in [
                format!("redis://:{password}@{host}:6379{path}"),
                format!("rediss://user:{password}@{host}{path}?x={password}"),
                format!("unix:///run/R?pass={password}"),
                format!("redis://{host}{path}#{password}"),
                password.clone(),
            ] {
                let shown = url_without_secrets(&url);
                prop_assert!(!shown.contains(&password[..6]) && !shown.contains(&password[password.len() - 6..]), "{url}: {shown}");
            }
        }
    }
}
