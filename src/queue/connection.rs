//! Connections to one Redis server: opened on first use, every wait bounded, a broken one dropped at once.
//!
//! A [`Link`] opens its connection on the thread that uses it, not on one of `r2d2`'s: the caller gets the true error
//! at once, rather than a text after the pool's whole wait, and nothing tries again in the background.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{
    Client, Connection, ConnectionAddr, IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisError, ServerError,
    Value,
};

use super::QueueError;
use crate::job::cut;

/// Connections for everything but pops that wait.
pub(super) const POOL_CONNECTIONS_MAX: u32 = 8;
/// How long a call waits for one of them.
pub(super) const POOL_WAIT: Duration = Duration::from_secs(1);
/// A connection that lay idle this long is closed.
pub(super) const POOL_IDLE_MAX: Duration = Duration::from_mins(5);
/// How long the server has for a reply, beyond the time that a command itself asks to wait.
pub(super) const REPLY_WAIT: Duration = Duration::from_secs(2);
/// How long opening a connection may take, at each of the server's addresses.
const CONNECT_WAIT: Duration = Duration::from_secs(1);
/// After a failed attempt to connect nobody tries again for [`RECONNECT_PAUSE_TIMES`] as long as it took, within these
/// bounds: a port that refuses is tried often, and a host that is silent takes little of anyone's time.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(200);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);
const RECONNECT_PAUSE_TIMES: u32 = 4;
/// How much of a server's own words an error repeats.
const REFUSAL_CHARS_MAX: usize = 300;

/// Where the server is, and whether it could last be reached.
pub(super) struct Server {
    client: Client,
    /// Sent first on every connection: password, database, name.
    hello: Pipeline,
    address: String,
    failure: Mutex<Option<ConnectFailure>>,
}

struct ConnectFailure {
    error: QueueError,
    retry_at: Instant,
}

impl Server {
    pub(super) fn new(url: &str) -> Result<Server, QueueError> {
        let reject = |why: String| QueueError::Rejected(format!("the URL of Redis cannot be used: {why}"));
        // OK: the texts of these errors name what is wrong and never repeat the URL.
        let info = url.into_connection_info().map_err(|error| reject(error.to_string()))?;
        match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                return Err(reject("#insecure would trust any server; name its certificate in SSL_CERT_FILE".into()));
            }
            ConnectionAddr::TcpTls { .. } => install_crypto(),
            _ => {}
        }
        let settings = info.redis_settings();
        let address = match settings.db() {
            0 => info.addr().to_string(),
            database => format!("{}, database {database}", info.addr()),
        };
        let hello = hello(settings);
        // `redis` could say hello itself, but calls every refusal a wrong password and may wait its time four times
        // over.
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let silent = RedisConnectionInfo::default().set_skip_set_lib_name();
        let client = Client::open(info.set_tcp_settings(tcp).set_redis_settings(silent))
            .map_err(|error| reject(error.to_string()))?;
        Ok(Server { client, hello, address, failure: Mutex::new(None) })
    }

    /// Host and port, or path, and database; no user, no password.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn connect(&self) -> Result<Connection, QueueError> {
        let start = Instant::now();
        if let Some(failure) = &*self.last_failure()
            && start < failure.retry_at
        {
            return Err(failure.error.clone());
        }
        let outcome = self.open();
        *self.last_failure() = outcome.as_ref().err().map(|error| {
            let pause = start.elapsed().saturating_mul(RECONNECT_PAUSE_TIMES);
            let retry_at = Instant::now() + pause.clamp(RECONNECT_PAUSE_MIN, RECONNECT_PAUSE_MAX);
            ConnectFailure { error: error.clone(), retry_at }
        });
        outcome
    }

    fn open(&self) -> Result<Connection, QueueError> {
        let opened = self.client.get_connection_with_timeout(CONNECT_WAIT).and_then(|mut connection| {
            connection.set_write_timeout(Some(REPLY_WAIT))?;
            let replies = talk(&mut connection, &self.hello, REPLY_WAIT)?;
            Ok((connection, replies))
        });
        let (connection, replies) = opened.map_err(|error| self.lost(&error))?;
        let name = self.hello.len() - 1;
        for (command, reply) in replies.iter().enumerate() {
            let Some(error) = server_error(reply) else { continue };
            match self.refused(error).error {
                QueueError::Rejected(_) if command == name => {} // some forbid names, which harms nothing
                QueueError::Rejected(why) => return Err(QueueError::Unavailable(why)),
                error => return Err(error),
            }
        }
        Ok(connection)
    }

    /// A connection that could not be opened, or broke.
    fn lost(&self, error: &RedisError) -> QueueError {
        let what = if error.is_timeout() {
            "it did not answer in time".into()
        } else {
            error.to_string()
        };
        QueueError::Unavailable(format!("Redis at {} cannot be reached: {what}", self.address))
    }

    /// An error that the server replied with, by its code.
    fn refused(&self, error: &ServerError) -> Refused {
        let text = cut(error.details().unwrap_or_default(), REFUSAL_CHARS_MAX);
        let (is_transient, keeps_connection, advice) = match error.code() {
            "OOM" => (true, true, "; raise its maxmemory, or see what else fills it"),
            "MISCONF" => (true, true, "; it cannot save to its disk"),
            "NOREPLICAS" | "BUSY" | "TRYAGAIN" => (true, true, ""),
            // Another server may answer by now under the same name, and a new connection brings the password. DENIED is
            // protected mode, whose own text gives advice.
            "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "UNBLOCKED" | "DENIED" => (true, false, ""),
            "READONLY" => (true, false, "; it is a replica, or became one"),
            "NOAUTH" | "WRONGPASS" => (true, false, "; its URL needs the right password"),
            // The one refusal without a code of its own.
            "ERR" if text.starts_with("max number of clients") => (true, false, "; raise its maxclients"),
            "WRONGTYPE" => (false, true, "; the key is used by something else: set another key prefix"),
            "NOPERM" => (false, true, "; docs/OPERATIONS.md lists what its user must be allowed"),
            "MOVED" | "ASK" | "CROSSSLOT" => (false, true, "; Redis Cluster is not supported"),
            _ => (false, true, ""),
        };
        let message = format!("Redis at {} refused: {} {text}{advice}", self.address, error.code());
        let error = if is_transient {
            QueueError::Unavailable(message)
        } else {
            QueueError::Rejected(message)
        };
        Refused { error, keeps_connection }
    }

    fn last_failure(&self) -> MutexGuard<'_, Option<ConnectFailure>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Refused {
    error: QueueError,
    keeps_connection: bool,
}

/// One connection that opens itself when it is used and closes itself when it fails.
pub(super) struct Link {
    server: Arc<Server>,
    connection: Option<Connection>,
    /// Whether the server at the other end may know `BLMPOP` (Redis 7, Valkey). Found out anew with each connection.
    pub(super) has_blmpop: bool,
}

impl Link {
    pub(super) fn new(server: Arc<Server>) -> Link {
        Link { server, connection: None, has_blmpop: true }
    }

    /// Sends all commands at once and returns a reply for each.
    ///
    /// # Errors
    /// If no connection can be had, it breaks, or one of the replies is an error: the first one.
    pub(super) fn ask(&mut self, commands: &Pipeline) -> Result<Vec<Value>, QueueError> {
        let replies = self.exchange(commands, REPLY_WAIT)?;
        match replies.iter().find_map(server_error) {
            Some(error) => Err(self.refuse(error)),
            None => Ok(replies),
        }
    }

    /// As [`Link::ask`], but errors that the server replies with are returned as replies, and it has `wait` for each
    /// of them.
    pub(super) fn exchange(&mut self, commands: &Pipeline, wait: Duration) -> Result<Vec<Value>, QueueError> {
        if let Some(mut connection) = self.connection.take() {
            match talk(&mut connection, commands, wait) {
                Ok(replies) => {
                    self.connection = Some(connection);
                    return Ok(replies);
                }
                // Closed since it was last used, as by a restart. That is no outage yet: once more on a new one. What
                // was perhaps done already is done twice, which every command used here bears.
                Err(error) if error.is_connection_dropped() => {}
                Err(error) => return Err(self.server.lost(&error)),
            }
        }
        let mut connection = self.server.connect()?;
        self.has_blmpop = true;
        let replies = talk(&mut connection, commands, wait).map_err(|error| self.server.lost(&error))?;
        self.connection = Some(connection);
        Ok(replies)
    }

    /// What follows from an error that the server replied with.
    pub(super) fn refuse(&mut self, error: &ServerError) -> QueueError {
        let refused = self.server.refused(error);
        if !refused.keeps_connection {
            self.connection = None;
        }
        refused.error
    }
}

/// Hands out [`Link`]s to the pool, which bounds their number. They connect by themselves.
pub(super) struct Links(pub(super) Arc<Server>);

impl r2d2::ManageConnection for Links {
    type Connection = Link;
    type Error = Infallible;

    fn connect(&self) -> Result<Link, Infallible> {
        Ok(Link::new(Arc::clone(&self.0)))
    }

    fn is_valid(&self, _: &mut Link) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Link) -> bool {
        false
    }
}

/// The error in a reply, if it is one.
pub(super) fn server_error(reply: &Value) -> Option<&ServerError> {
    match reply {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

/// Sends all commands in one write, then reads a reply to each, and stops at the first that fails to come:
/// `Pipeline::query` would wait its time for every one of them. After an error the connection is of no more use.
fn talk(connection: &mut Connection, commands: &Pipeline, wait: Duration) -> Result<Vec<Value>, RedisError> {
    connection.set_read_timeout(Some(wait))?;
    match connection.send_packed_command(&commands.get_packed_pipeline()) {
        // A server that turns a client away says why before it hangs up.
        Err(error) if error.is_connection_dropped() => match connection.recv_response() {
            Ok(why @ Value::ServerError(_)) => Ok(vec![why]),
            _ => Err(error),
        },
        Err(error) => Err(error),
        Ok(()) => (0..commands.len()).map(|_| connection.recv_response()).collect(),
    }
}

/// What a new connection sends first. Its name is what `CLIENT LIST` shows.
fn hello(settings: &RedisConnectionInfo) -> Pipeline {
    let mut hello = redis::pipe();
    if let Some(password) = settings.password() {
        hello.cmd("AUTH").arg(settings.username()).arg(password);
    }
    if settings.db() != 0 {
        hello.cmd("SELECT").arg(settings.db());
    }
    hello.cmd("CLIENT").arg("SETNAME").arg("trilane");
    hello
}

/// `redis` brings rustls without its cryptography, and the first TLS connection would panic.
fn install_crypto() {
    // OK to ignore: an error means that the process has one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
