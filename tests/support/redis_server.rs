//! A Redis server of a test's own: in a directory of its own, stopped by its own process id when dropped.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const START_WAIT: Duration = Duration::from_secs(20);

pub(crate) struct TestServer {
    directory: PathBuf,
    arguments: Vec<String>,
    /// Of a socket that takes connections once the server is up.
    probe: Probe,
    url: String,
    child: Option<Child>,
}

enum Probe {
    Unix(PathBuf),
    Tcp(String),
}

impl TestServer {
    /// A server on a Unix socket that keeps nothing on disk, with `options` as on its command line.
    pub(crate) fn start(options: &[&str]) -> TestServer {
        let directory = new_directory();
        let socket = directory.join("redis.sock");
        let url = format!("unix://{}", socket.display());
        let mut arguments = strings(&["--port", "0", "--unixsocket"]);
        arguments.push(socket.display().to_string());
        Self::start_with(directory, arguments, options, Probe::Unix(socket), url)
    }

    /// As [`TestServer::start`], on a free port of 127.0.0.1.
    pub(crate) fn start_tcp(options: &[&str]) -> TestServer {
        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let url = format!("redis://{address}");
        let arguments = strings(&["--bind", "127.0.0.1", "--port", &port.to_string()]);
        Self::start_with(new_directory(), arguments, options, Probe::Tcp(address), url)
    }

    /// As [`TestServer::start_tcp`], over TLS, with a certificate that nobody trusts but who trusts
    /// [`TestServer::certificate`].
    pub(crate) fn start_tls() -> TestServer {
        let directory = new_directory();
        let file = |name: &str| directory.join(name).display().to_string();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
        let authority = ["-subj", "/CN=test authority", "-addext", "basicConstraints=critical,CA:TRUE"];
        let leaf = ["-subj", "/CN=test", "-addext", "basicConstraints=CA:FALSE"];
        let name = ["-addext", "subjectAltName=IP:127.0.0.1"];
        let (ca, ca_key, certificate, certificate_key) =
            (file("ca.pem"), file("ca.key"), file("tls.pem"), file("tls.key"));
        openssl(&[&key[..], &authority, &["-keyout", &ca_key, "-out", &ca]].concat());
        let signed = ["-CA", &ca, "-CAkey", &ca_key, "-keyout", &certificate_key, "-out", &certificate];
        openssl(&[&key[..], &leaf, &name, &signed].concat());

        let port = free_port();
        let address = format!("127.0.0.1:{port}");
        let url = format!("rediss://{address}");
        let arguments = strings(&["--bind", "127.0.0.1", "--port", "0", "--tls-port", &port.to_string()]);
        let options = ["--tls-cert-file", &certificate, "--tls-key-file", &certificate_key, "--tls-auth-clients", "no"];
        Self::start_with(directory, arguments, &options, Probe::Tcp(address), url)
    }

    fn start_with(
        directory: PathBuf,
        mut arguments: Vec<String>,
        options: &[&str],
        probe: Probe,
        url: String,
    ) -> TestServer {
        arguments.extend(strings(&["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"]));
        arguments.push(directory.display().to_string());
        arguments.extend(strings(options));
        let mut server = TestServer { directory, arguments, probe, url, child: None };
        server.restart();
        server
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn set_url(&mut self, url: String) {
        self.url = url;
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        match &self.probe {
            Probe::Tcp(address) => address,
            Probe::Unix(_) => panic!("this server has no port"),
        }
    }

    /// The authority that signed the certificate of [`TestServer::start_tls`].
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// At once, as a crash would; its data is gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the server can be killed");
            child.wait().expect("the server ends");
        }
        if let Probe::Unix(socket) = &self.probe {
            fs::remove_file(socket).expect("the socket of a killed server stays behind");
        }
    }

    /// Starts it, at the same address and with the same options, and waits until it takes connections.
    pub(crate) fn restart(&mut self) {
        let log = fs::File::create(self.directory.join("log")).expect("a log");
        let child = Command::new("redis-server")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need redis-server (Debian: apt-get install redis-server)");
        self.child = Some(child);
        let log = self.directory.join("log");
        wait_until("redis-server is up", || {
            let child = self.child.as_mut().expect("just started");
            if let Some(status) = child.try_wait().expect("its state") {
                panic!("redis-server ended with {status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            match &self.probe {
                Probe::Unix(socket) => std::os::unix::net::UnixStream::connect(socket).is_ok(),
                Probe::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
            }
        });
    }

    /// Sends it `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).status().expect("kill is there");
        assert!(status.success(), "cannot signal the server");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself; there is nothing more to do for it either way.
            let _ = child.kill();
            let _ = child.wait();
        }
        // What cannot be removed stays in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Asks until it is so; fails the test when it takes longer than anything may.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + START_WAIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {START_WAIT:?} in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn new_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("trilane-redis-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("a directory for the server");
    directory
}

/// Free a moment ago, and below the ports that the system gives to clients: connecting to one of those before the
/// server listens can connect a socket to itself.
pub(crate) fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(31).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + u16::try_from(step % 20_000).expect("below 20,000");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn openssl(arguments: &[&str]) {
    let output =
        Command::new("openssl").args(["req", "-x509"]).args(arguments).output().expect("these tests need openssl");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
