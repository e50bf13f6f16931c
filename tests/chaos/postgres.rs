//! A PostgreSQL server of a run's own: killed, paused and started again without disturbing other tests.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::redis_server::free_port;
use super::trilane::wait_until;

const START_WAIT: Duration = Duration::from_mins(1);

pub(crate) struct Postgres {
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Postgres {
    /// A new cluster in a folder of its own.
    pub(crate) fn start() -> Postgres {
        let folder = std::env::temp_dir().join(format!("trilane-chaos-postgres-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&folder).expect("a folder for the server");
        let mut postgres = Postgres { bin: bin(), folder, port: free_port(), child: None };
        if let Some(user) = other_user() {
            let status = Command::new("chown").arg(&user).arg(&postgres.folder).status().expect("chown is there");
            assert!(status.success(), "the folder cannot be given to {user}");
        }
        // Of this machine, and for the length of a test: anybody here may come in.
        let output = postgres
            .command("initdb")
            .args([
                "--pgdata=data",
                "--username=trilane",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        postgres.restart();
        postgres
    }

    /// Through the driver that the other tests use.
    pub(crate) fn connection_string(&self) -> String {
        let others =
            std::env::var("TRILANE_TEST_POSTGRES").expect("TRILANE_TEST_POSTGRES is set: run the tests by `make test`");
        let driver = others.split(';').find(|pair| pair.starts_with("Driver=")).expect("it names a driver").to_owned();
        format!("{driver};Server=127.0.0.1;Port={};Database=postgres;UID=trilane;PWD=none;", self.port)
    }

    /// Starts it, at the same port and on the same data, and waits until it takes statements.
    pub(crate) fn restart(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).expect("a log");
        let port = self.port.to_string();
        let child = self
            .command("postgres")
            .args(["-D", "data", "-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "max_connections=200"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        self.child = Some(child);
        wait_until(START_WAIT, "PostgreSQL answers", || self.answers());
    }

    fn answers(&self) -> bool {
        let port = self.port.to_string();
        let asked = Command::new(self.bin.join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &port])
            .status()
            .expect("pg_isready is there");
        asked.success()
    }

    /// At once, every process of it, as a crash of the machine would.
    pub(crate) fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let others = Self::others(child.id());
        child.kill().expect("it can be killed");
        for process in others {
            signal("KILL", process);
        }
        child.wait().expect("it ends");
    }

    /// Sends `STOP` or `CONT` to every process of it.
    pub(crate) fn signal(&self, name: &str) {
        let Some(child) = &self.child else { return };
        signal(name, child.id());
        for process in Self::others(child.id()) {
            signal(name, process);
        }
    }

    /// The children of its first process.
    fn others(first: u32) -> Vec<u32> {
        let file = format!("/proc/{first}/task/{first}/children");
        let children = fs::read_to_string(file).expect("Linux tells the children of a process");
        children.split_whitespace().map(|id| id.parse().expect("a number")).collect()
    }

    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = match other_user() {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--reuid={user}")).arg("--regid=nogroup").args([
                    "--clear-groups",
                    "--pdeathsig=KILL",
                    "--",
                ]);
                command.arg(program);
                command
            }
        };
        command.current_dir(&self.folder);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
        // What cannot be removed stays in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn signal(name: &str, process: u32) {
    // It may have ended meanwhile.
    let _ = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).stderr(Stdio::null()).status();
}

/// PostgreSQL does not run as root.
fn other_user() -> Option<String> {
    let is_root = fs::metadata("/proc/self").expect("Linux").uid() == 0;
    is_root.then(|| {
        let users = fs::read_to_string("/etc/passwd").expect("users");
        let name = if users.lines().any(|line| line.starts_with("postgres:")) {
            "postgres"
        } else {
            "nobody"
        };
        name.to_owned()
    })
}

/// The newest server of this machine; Debian keeps each version in a folder of its own.
fn bin() -> PathBuf {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().map_while(Result::ok);
    let mut versions: Vec<u32> = folders.filter_map(|folder| folder.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable();
    let debian = versions.last().map(|version| Path::new("/usr/lib/postgresql").join(format!("{version}/bin")));
    debian.filter(|bin| bin.join("initdb").exists()).unwrap_or_else(|| {
        let output = Command::new("pg_config").arg("--bindir").output().expect("PostgreSQL is installed");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}
