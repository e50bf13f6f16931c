//! How the HTTP handler reaches the network: an agent whose name look-ups are bounded, and whose waits end when the attempt
//! is stopped.
//!
//! ureq knows time-outs, but nothing that ends a call from outside, and an attempt that lost its lease must not sit on its
//! worker until its time limit. So waits for input are cut in slices, and between two of them the stop flag of the attempt
//! that runs on this thread is looked at. This uses `ureq::unversioned`, which may change in a minor version: all of it is
//! in this file.

use std::cell::RefCell;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, NextTimeout, RustlsConnector, TcpConnector,
    Transport, time,
};
use ureq::{Agent, Error, config::Config};

use super::StopFlag;

/// The longest time to look up a name, and again to connect and agree on TLS.
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// The longest time to send the body of a request.
pub const SEND_WAIT: Duration = Duration::from_secs(30);
/// The most name look-ups under way at once, each on a thread of its own: the system's call cannot be ended, so one that
/// hangs lives on after its attempt, until the system gives up.
pub const LOOKUPS_MAX: usize = 64;

/// The longest wait before the stop flag is looked at again.
const STOP_WAIT: Duration = Duration::from_millis(50);
/// The most open connections kept for later calls, in all and to one host.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// The largest head of a response.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// The stop flag of the attempt that runs on this thread. ureq does all its I/O on the thread of the caller.
    static STOP: RefCell<Option<StopFlag>> = const { RefCell::new(None) };
}

/// An agent that shares its connections among all calls, follows no redirect, and takes every status for an answer.
///
/// Trusts the public certificate authorities, or only those of `trusted`. Uses the proxy that `HTTPS_PROXY`, `HTTP_PROXY` or
/// `ALL_PROXY` names, but for the hosts in `NO_PROXY`.
pub(super) fn agent(trusted: Option<RootCerts>) -> Agent {
    let mut tls = TlsConfig::builder();
    if let Some(trusted) = trusted {
        tls = tls.root_certs(trusted);
    }
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(IDLE_CONNECTIONS_MAX)
        .max_idle_connections_per_host(IDLE_CONNECTIONS_MAX)
        .max_response_header_size(RESPONSE_HEAD_BYTES_MAX)
        .tls_config(tls.build())
        .user_agent(concat!("trilane/", env!("CARGO_PKG_VERSION")))
        .build();
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(StoppableConnector)
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, BoundedResolver::default())
}

/// Runs `call` so that its network waits end soon after `stop` is set.
pub(super) fn stoppable<T>(stop: &StopFlag, call: impl FnOnce() -> T) -> T {
    /// Takes the flag away again, also when `call` panics.
    struct Cleared;
    impl Drop for Cleared {
        fn drop(&mut self) {
            STOP.set(None);
        }
    }
    STOP.set(Some(stop.clone()));
    let _cleared = Cleared;
    call()
}

fn is_stopped() -> bool {
    STOP.with_borrow(|stop| stop.as_ref().is_some_and(StopFlag::is_set))
}

fn stopped() -> Error {
    Error::Io(io::Error::other("the attempt was stopped"))
}

/// Wraps each new connection in a [`Stoppable`], below TLS.
#[derive(Debug)]
struct StoppableConnector;

impl<In: Transport> Connector<In> for StoppableConnector {
    type Out = Stoppable<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, chained: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(chained.map(Stoppable))
    }
}

/// A connection whose waits for input end when the attempt is stopped.
///
/// Writes are not cut in slices: one that times out may have written a part, which is lost count of. They end with
/// [`SEND_WAIT`].
#[derive(Debug)]
struct Stoppable<T>(T);

impl<T: Transport> Transport for Stoppable<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.0.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if is_stopped() {
            return Err(stopped());
        }
        self.0.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let started = Instant::now();
        loop {
            if is_stopped() {
                return Err(stopped());
            }
            let left = timeout.after.saturating_sub(started.elapsed());
            let slice = NextTimeout { after: time::Duration::Exact(left.min(STOP_WAIT)), ..timeout };
            match self.0.await_input(slice) {
                // A read that timed out has taken nothing, so it can be tried again.
                Err(Error::Timeout(_)) if left > STOP_WAIT => {}
                done => return done,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.0.is_open()
    }

    fn is_tls(&self) -> bool {
        self.0.is_tls()
    }
}

/// Looks names up by the system, at most [`LOOKUPS_MAX`] at a time.
///
/// ureq's own resolver starts threads without a limit, and panics when the system has no more of them.
#[derive(Clone, Debug, Default)]
struct BoundedResolver {
    /// One clone for each look-up under way.
    under_way: Arc<()>,
}

impl Resolver for BoundedResolver {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let address = uri
            .scheme()
            .zip(uri.authority())
            .and_then(|(scheme, authority)| DefaultResolver::host_and_port(scheme, authority))
            .ok_or(Error::HostNotFound)?; // OK: the handler checked the URL
        let mut found = self.empty();
        for address in self.look_up(address, timeout)?.into_iter().take(ADDRESSES_MAX) {
            found.push(address);
        }
        if found.is_empty() {
            Err(Error::HostNotFound)
        } else {
            Ok(found)
        }
    }
}

/// The most addresses of one name that are tried: what [`ResolvedSocketAddrs`] holds.
const ADDRESSES_MAX: usize = 16;

impl BoundedResolver {
    fn look_up(&self, address: String, timeout: NextTimeout) -> Result<Vec<SocketAddr>, Error> {
        if let Ok(literal) = address.parse() {
            return Ok(vec![literal]);
        }
        let permit = Arc::clone(&self.under_way);
        if Arc::strong_count(&permit) > 1 + LOOKUPS_MAX {
            return Err(io::Error::other(format!("{LOOKUPS_MAX} name look-ups already under way")).into());
        }
        let (send, receive) = mpsc::sync_channel(1);
        thread::Builder::new().name("lookup".into()).spawn(move || {
            let found = address.to_socket_addrs().map(Vec::from_iter);
            drop(permit);
            // OK: nobody receives it when the attempt did not wait that long
            let _ = send.send(found);
        })?;
        let started = Instant::now();
        loop {
            if is_stopped() {
                return Err(stopped());
            }
            let left = timeout.after.saturating_sub(started.elapsed());
            match receive.recv_timeout(left.min(STOP_WAIT)) {
                Ok(found) => return Ok(found?),
                Err(mpsc::RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(Error::Timeout(timeout.reason)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Error::HostNotFound),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: NextTimeout = NextTimeout {
        after: time::Duration::from_secs(20),
        reason: ureq::Timeout::Resolve,
        per_read: None,
        per_write: None,
    };

    fn resolve(resolver: &BoundedResolver, uri: &str) -> Result<Vec<SocketAddr>, Error> {
        let uri: Uri = uri.parse().expect("a uri");
        resolver.resolve(&uri, &Config::default(), SHORT).map(|found| found.iter().copied().collect())
    }

    #[test]
    fn an_address_needs_no_look_up() {
        let resolver = BoundedResolver::default();
        let _all_taken: Vec<_> = (0..=LOOKUPS_MAX).map(|_| Arc::clone(&resolver.under_way)).collect();

        assert_eq!(resolve(&resolver, "http://127.0.0.1/").expect("v4"), ["127.0.0.1:80".parse().expect("address")]);
        assert_eq!(resolve(&resolver, "https://[::1]:8443/").expect("v6"), ["[::1]:8443".parse().expect("address")]);
    }

    #[test]
    fn a_name_is_looked_up_by_the_system() {
        let found = resolve(&BoundedResolver::default(), "http://localhost:81/").expect("every machine has it");

        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 81), "{found:?}");
    }

    #[test]
    fn look_ups_beyond_the_limit_are_refused_until_one_ends() {
        let resolver = BoundedResolver::default();
        let mut hanging: Vec<_> = (0..LOOKUPS_MAX).map(|_| Arc::clone(&resolver.under_way)).collect();

        let refused = resolve(&resolver, "http://localhost/").expect_err("no permit is left");
        assert!(refused.to_string().contains("64 name look-ups already under way"), "{refused}");

        hanging.pop();
        assert!(resolve(&resolver, "http://localhost/").is_ok());
    }

    #[test]
    fn a_stopped_attempt_does_not_look_up() {
        let stop = StopFlag::new();
        stop.set();

        let refused = stoppable(&stop, || resolve(&BoundedResolver::default(), "http://localhost/"));

        assert!(refused.expect_err("stopped").to_string().contains("stopped"));
        assert!(resolve(&BoundedResolver::default(), "http://localhost/").is_ok(), "the flag is gone after the call");
    }
}
