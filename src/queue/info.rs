//! What a Redis server tells of itself at start-up: whether it is too old, and whether it may evict the lanes. Pure.
//!
//! All from `INFO`, which tells the policy as well as `CONFIG GET` does and is forbidden less often.

use super::QueueError;

/// The oldest server that has `RPOP` with a count.
const VERSION_MIN: (u32, u32) = (6, 2);

/// Judges `INFO server` and `INFO memory`: a sentence for the operator, or nothing. What they leave out counts as good.
pub(super) fn judge(server: &str, memory: &str) -> Result<Option<String>, QueueError> {
    // OK for Valkey too: it tells the version of Redis that it is compatible with, 7.2 or later.
    if let Some(version) = field(server, "redis_version")
        && is_too_old(version)
    {
        return Err(QueueError::Unsupported { version: version.to_owned() });
    }
    // The other policies evict nothing, or only keys that expire, and Trilane's never do.
    Ok(field(memory, "maxmemory_policy").filter(|policy| policy.starts_with("allkeys-")).map(|policy| {
        format!(
            "Redis may evict the lanes, as its maxmemory-policy is {policy}: set it to noeviction, or jobs that wait \
             start late, by up to a tick, whenever its memory runs short"
        )
    }))
}

/// The sentence for a server that refuses `INFO`.
pub(super) fn not_told(why: &str) -> String {
    format!(
        "cannot tell whether Redis is too old or may evict the lanes ({why}): make sure that its version is 6.2 or \
         later and its maxmemory-policy noeviction"
    )
}

/// The value of a line `name:value`.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A version that cannot be read is given the benefit of the doubt.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < VERSION_MIN,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_6_2_are_too_old() {
        for (version, expected) in [
            ("5.0.14", true),
            ("6.0.16", true),
            ("6.2.0", false),
            ("7.2.4", false),
            ("10.0.0", false),
            ("unstable", false),
        ] {
            let judged = judge(&format!("# Server\r\nredis_version:{version}\r\n"), "");

            assert_eq!(matches!(judged, Err(QueueError::Unsupported { .. })), expected, "{version}");
        }
    }

    #[test]
    fn only_policies_that_evict_keys_without_expiry_are_warned_of() {
        for (policy, expected) in
            [("noeviction", false), ("volatile-lru", false), ("allkeys-lru", true), ("allkeys-random", true)]
        {
            let judged = judge("", &format!("# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:{policy}\r\n"));

            assert_eq!(judged.expect("new enough").is_some(), expected, "{policy}");
        }
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_human:0B\r\n";

        assert_eq!(field(info, "maxmemory"), Some("0"));
        assert_eq!(field(info, "memory"), None);
    }
}
