//! A PostgreSQL server of a test's own, to be killed, stopped or filled up: in a folder of its own, ended by its own process ids when
//! dropped. Where the tests run as root it runs as another user, as it must; the binaries are those that `services.sh` found.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::stores;
use super::trilane::wait_until;

const START_WAIT: Duration = Duration::from_mins(1);
pub(crate) const USER: &str = "trilane";
/// As large as it must be; each connection costs the server memory and time at its start.
const CONNECTIONS_MAX: u32 = 40;

pub(crate) struct PostgresServer {
    folder: PathBuf,
    bin: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl PostgresServer {
    pub(crate) fn start() -> PostgresServer {
        let folder = std::env::temp_dir().join(format!("trilane-postgres-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).expect("a folder for the server");
        if is_root() {
            let owned = Command::new("chown").args([account(), folder.display().to_string().as_str()]).status();
            assert!(owned.expect("chown is there").success(), "the folder is given to the server's user");
        }
        let mut server = PostgresServer { folder, bin: bin(), port: free_port(), child: None };
        let made = server
            .command("initdb")
            .args([
                "--pgdata=data",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--username",
                USER,
            ])
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("initdb runs").success(), "initdb");
        server.restart();
        server
    }

    /// An ODBC connection string; its user may do anything.
    pub(crate) fn connection_string(&self) -> String {
        // The driver is that of the server of all tests.
        let shared = std::env::var("TRILANE_TEST_POSTGRES").expect("it is set: run the tests by `make test`");
        let driver = shared.split(';').next().unwrap_or_default();
        format!("{driver};Server=127.0.0.1;Port={};Database=postgres;UID={USER};", self.port)
    }

    /// Starts it, on the same port and the same tables, and waits until it answers.
    pub(crate) fn restart(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log")).expect("a log");
        let port = self.port.to_string();
        let options = [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            &format!("max_connections={CONNECTIONS_MAX}"),
            "shared_buffers=16MB",
        ];
        let mut command = self.command("postgres");
        command.args(["-D", "data", "-p", &port]).args(options.iter().flat_map(|option| ["-c", option]));
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().expect("the server starts"));
        let admin = self.connection_string();
        wait_until(START_WAIT, "PostgreSQL is up", || {
            let ended = self.child.as_mut().expect("just started").try_wait().expect("its state");
            assert!(ended.is_none(), "{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
            stores::try_execute(&admin, "select 1").is_ok()
        });
    }

    /// The server and all its sessions, at once, as a crash of the host would.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let sessions = Self::sessions_of(&child);
        // First the one that would start them anew.
        child.kill().expect("the server can be killed");
        child.wait().expect("it ends");
        signal("KILL", &sessions);
        wait_until(START_WAIT, "its sessions have ended", || {
            sessions.iter().all(|id| !Path::new(&format!("/proc/{id}")).exists())
        });
    }

    /// Stops the server and all its sessions; none of them answers until [`PostgresServer::go_on`].
    pub(crate) fn hang(&self) {
        let child = self.child.as_ref().expect("it runs");
        signal("STOP", &[child.id()]);
        signal("STOP", &Self::sessions_of(child));
    }

    pub(crate) fn go_on(&self) {
        let child = self.child.as_ref().expect("it runs");
        signal("CONT", &Self::sessions_of(child));
        signal("CONT", &[child.id()]);
    }

    fn sessions_of(child: &Child) -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).expect("it runs");
        list.split_whitespace().map(|id| id.parse().expect("a number")).collect()
    }

    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            let group = format!("--regid={}", account());
            command.args([&format!("--reuid={}", account()), &group, "--clear-groups", "--pdeathsig=KILL", "--"]);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        // A group of its own, so that Ctrl-C at the terminal ends the test first.
        command.current_dir(&self.folder).stdin(Stdio::null()).process_group(0);
        command
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.child.is_some() && !thread::panicking() {
            self.go_on();
        }
        if let Some(mut child) = self.child.take() {
            // Its sessions end when they find it gone, or are killed here; what ended by itself needs nothing more.
            let sessions = Self::sessions_of(&child);
            let _ = child.kill();
            let _ = child.wait();
            signal("KILL", &sessions);
        }
        // What cannot be removed stays in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn signal(name: &str, ids: &[u32]) {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    // One of them may have ended meanwhile.
    let _ =
        Command::new("kill").arg(format!("-{name}")).args(&ids).stderr(Stdio::null()).status().expect("kill is there");
}

fn is_root() -> bool {
    // SAFETY: a call without arguments that always succeeds.
    unsafe { libc::geteuid() == 0 }
}

fn account() -> &'static str {
    let is_there = Command::new("id").args(["-u", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if is_there.expect("id is there").success() {
        "postgres"
    } else {
        "nobody"
    }
}

/// The newest server on this machine, found as `services.sh` does.
fn bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().map_while(Result::ok);
    let mut bins: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists() && bin.join("postgres").exists())
        .collect();
    bins.sort();
    if let Some((_, bin)) = bins.pop() {
        return bin;
    }
    let told = Command::new("pg_config").arg("--bindir").output().expect("a PostgreSQL server is installed");
    PathBuf::from(String::from_utf8_lossy(&told.stdout).trim())
}

/// Free a moment ago, and below the ports that the system gives to clients.
fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(37).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(step % 2_000).expect("below 2,000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
