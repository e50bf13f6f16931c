//! Reads all settings, and checks what they say of each other. Pure.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Settings;
use super::choices::{LEVELS, LogFormat, Migrate, Role, yes_or_no};
use super::database::Database;
use super::reader::{Reader, fits};
use super::secret::{Secret, split_authority};
use super::table::setting;
use crate::retry::RetryPolicy;

impl Settings {
    /// Each setting by itself; what cannot be read becomes a problem of `reader`.
    pub(super) fn read(reader: &mut Reader<'_>) -> Settings {
        let data_dir = reader.text("TRILANE_DATA_DIR", |char| char != ';').unwrap_or_default();
        Settings {
            database: Database::read(reader, &data_dir),
            data_dir: PathBuf::from(data_dir),
            database_pool_max: reader.number("TRILANE_DB_POOL_MAX"),
            database_wait: reader.duration("TRILANE_DB_WAIT_SECONDS"),
            database_startup_wait: reader.duration("TRILANE_DB_STARTUP_WAIT_SECONDS"),
            migrate: reader.choice("TRILANE_MIGRATE", &Migrate::ALL, Migrate::as_str),
            redis_url: read_redis_url(reader),
            redis_prefix: reader
                .text("TRILANE_REDIS_PREFIX", |char| is_of_name(char) || "{}".contains(char))
                .unwrap_or_default(),
            http_addr: reader.parse("TRILANE_HTTP_ADDR", "", |text| text.parse().ok()),
            http_connections_max: reader.number("TRILANE_HTTP_CONNECTIONS_MAX"),
            http_client_wait: reader.duration("TRILANE_HTTP_CLIENT_SECONDS"),
            http_idle_wait: reader.duration("TRILANE_HTTP_IDLE_SECONDS"),
            api_tokens: read_api_tokens(reader),
            body_bytes_max: reader.number("TRILANE_BODY_BYTES_MAX"),
            payload_bytes_max: reader.number("TRILANE_PAYLOAD_BYTES_MAX"),
            jobs_per_call_max: reader.number("TRILANE_JOBS_PER_CALL_MAX"),
            submit_wait: reader.duration("TRILANE_SUBMIT_WAIT_SECONDS"),
            submit_queue_max: reader.number("TRILANE_SUBMIT_QUEUE_MAX"),
            role: reader.choice("TRILANE_ROLE", &Role::ALL, Role::as_str),
            replica_name: reader.text("TRILANE_REPLICA_NAME", is_of_name),
            workers: reader.number("TRILANE_WORKERS"),
            handlers_file: reader.text("TRILANE_HANDLERS", |_| true).map(PathBuf::from),
            tick: reader.duration("TRILANE_TICK_SECONDS"),
            lease: reader.duration("TRILANE_LEASE_SECONDS"),
            lane_buffer_max: reader.number("TRILANE_LANE_BUFFER_MAX"),
            drain: reader.duration("TRILANE_DRAIN_SECONDS"),
            job_timeout: reader.duration("TRILANE_JOB_TIMEOUT_SECONDS"),
            retry: RetryPolicy {
                base: reader.duration("TRILANE_RETRY_BASE_MS"),
                cap: reader.duration("TRILANE_RETRY_CAP_MS"),
            },
            starvation: reader.duration_or_off("TRILANE_STARVATION_SECONDS"),
            hand_off: reader.choice("TRILANE_HAND_OFF", &[true, false], yes_or_no),
            retention: reader.duration("TRILANE_RETENTION_DAYS"),
            log: reader.choice("TRILANE_LOG", &LEVELS, |level| level.as_str()),
            log_format: reader.choice("TRILANE_LOG_FORMAT", &LogFormat::ALL, LogFormat::as_str),
        }
    }

    /// What the settings say of each other; [`Database::read`] has checked its own.
    pub(super) fn check_relations(&self, reader: &mut Reader<'_>) {
        let is_open = !is_loopback(self.http_addr) && self.api_tokens.is_empty() && self.role != Role::Worker;
        if is_open && reader.sound(&["TRILANE_HTTP_ADDR", "TRILANE_API_TOKENS", "TRILANE_ROLE"]) {
            reader.refuse(
                "TRILANE_HTTP_ADDR",
                "can be reached from other hosts, so it needs TRILANE_API_TOKENS; set them, or a loopback \
                 address such as 127.0.0.1:8080",
            );
        }
        let mut at_most = |name, other, holds: bool, of: &str, or: &str| {
            if !holds && reader.sound(&[name, other]) {
                let limit = reader.value(other);
                reader.refuse(name, format!("must be at most {of}{other} ({limit}), or {or}"));
            }
        };
        at_most(
            "TRILANE_DB_WAIT_SECONDS",
            "TRILANE_LEASE_SECONDS",
            3 * self.database_wait <= self.lease,
            "a third of ",
            "one slow renewal loses every job that is running",
        );
        at_most(
            "TRILANE_PAYLOAD_BYTES_MAX",
            "TRILANE_BODY_BYTES_MAX",
            self.payload_bytes_max <= self.body_bytes_max,
            "",
            "no request can carry such a payload",
        );
        at_most(
            "TRILANE_JOBS_PER_CALL_MAX",
            "TRILANE_SUBMIT_QUEUE_MAX",
            self.jobs_per_call_max <= self.submit_queue_max,
            "",
            "a full call never fits and always gets 429",
        );
        at_most(
            "TRILANE_RETRY_BASE_MS",
            "TRILANE_RETRY_CAP_MS",
            self.retry.base <= self.retry.cap,
            "",
            "the first wait is already cut",
        );
    }
}

/// Whether only this host can reach `address`, also where it is IPv4 written as IPv6.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Whether `char` may stand in a name of this program: `A-Za-z0-9._:-`.
fn is_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || "._:-".contains(char)
}

fn read_api_tokens(reader: &mut Reader<'_>) -> Vec<Secret> {
    let name = "TRILANE_API_TOKENS";
    let (Some(text), Some(setting)) = (reader.given(name), setting(name)) else { return Vec::new() };
    let tokens: Vec<&str> = text.split(',').map(str::trim).filter(|token| !token.is_empty()).collect();

    let misfit = tokens.iter().position(|token| !fits(token, setting, |char| char.is_ascii_graphic()));
    if tokens.is_empty() || misfit.is_some() {
        let which = misfit.map(|index| format!("; number {} is not", index + 1)).unwrap_or_default();
        reader.refuse(name, format!("expected {}{which}; `openssl rand -hex 24` makes one", setting.range));
    }
    tokens.into_iter().map(Secret::new).collect()
}

fn read_redis_url(reader: &mut Reader<'_>) -> Option<Secret> {
    let url = reader.secret("REDIS_URL", |_| true)?;
    if reader.sound(&["REDIS_URL"]) && !is_redis_url(url.expose()) {
        reader.refuse(
            "REDIS_URL",
            "expected redis://[[user]:password@]host[:port][/db], rediss://… for TLS, or unix:///path; in the \
             password write @ : / ? # % as %40 %3A %2F %3F %23 %25",
        );
    }
    Some(url)
}

/// Whether `url` has the form of a URL of Redis or Valkey. The `redis` crate reads it again, but later, and not in
/// level 0.
fn is_redis_url(url: &str) -> bool {
    let Some((scheme, rest)) = url.split_once("://") else { return false };
    let (authority, behind) = split_authority(rest);
    if url.contains(char::is_whitespace) {
        return false;
    }
    match scheme {
        "redis" | "rediss" | "valkey" | "valkeys" => {
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let behind_host = host.rsplit_once(']').map_or(host, |(_, port)| port);
            let is_port = behind_host.split_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok());
            !behind.contains('@') && !host.is_empty() && !host.starts_with(':') && is_port
        }
        "unix" | "redis+unix" | "valkey+unix" => authority.is_empty() && behind.len() > 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_url_has_a_known_scheme_a_host_and_a_port_or_a_path() {
        for url in [
            "redis://127.0.0.1",
            "redis://:pass@[::1]:6379/1",
            "rediss://user:p%40ss@cache.internal:6380/0#insecure",
            "valkey://cache/0?protocol=resp3",
            "unix:///run/redis.sock?db=1",
        ] {
            assert!(is_redis_url(url), "{url}");
        }
        for url in [
            "127.0.0.1:6379",
            "http://cache",
            "redis://",
            "redis://:6379",
            "redis://cache:port",
            "redis://:p/w@cache",
            "unix://",
            "redis://a b",
        ] {
            assert!(!is_redis_url(url), "{url}");
        }
    }

    #[test]
    fn an_ipv4_loopback_address_written_as_ipv6_is_one() {
        let is = |address: &str| is_loopback(address.parse().expect("an address"));

        assert!(is("127.0.0.1:1") && is("127.9.9.9:1") && is("[::1]:1") && is("[::ffff:127.0.0.1]:1"));
        assert!(!is("0.0.0.0:1") && !is("[::]:1") && !is("10.0.0.7:1") && !is("[::ffff:10.0.0.7]:1"));
    }
}
