//! The SQLite file: its disk is full, another program holds it, it may not be written to, it is taken away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Cost, GIVES_WAY, outages, pause, under_load};
use super::site::Site;
use super::stores;
use super::trilane::{SOON, Settings, Trilane, wait_until};

/// `TRILANE_SUBMIT_WAIT_SECONDS` of these processes.
const SUBMIT_WAIT: Duration = Duration::from_secs(2);
/// What a machine under load adds to it.
const SLACK: Duration = Duration::from_secs(4);
/// When the last of the threads that write has given way: each tries for up to 7 s, and they take turns.
const TURNS_TAKEN: Duration = Duration::from_secs(45);

fn quick() -> Value {
    json!({ "type": "quick", "max_retries": 0 })
}

fn settings(site: &Site) -> Settings {
    let settings = site.settings().with("TRILANE_HANDLERS", site.counting_handlers("gate"));
    settings.with("TRILANE_SUBMIT_WAIT_SECONDS", SUBMIT_WAIT.as_secs())
}

/// A job whose command runs until the gate is opened.
fn begin_one(site: &Site, process: &Trilane) -> String {
    let id = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);
    id
}

fn assert_all_done(site: &Site, process: &Trilane, ids: &[String]) {
    process.wait_for_status(ids, "completed");
    assert_eq!(site.times_done("gate"), 1, "what was done is not done again");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
    let twice = "select (select sum(Completed) from JobStats) - (select count(*) from Jobs where Status = 'completed')";
    wait_until(SOON, "each is counted as completed once", || site.number(twice) == 0);
}

/// A disk of a few megabytes, where this user may mount one; else none, and a limit of the size of files takes its place.
struct SmallDisk {
    folder: PathBuf,
    is_mounted: bool,
}

impl SmallDisk {
    const BYTES: usize = 8 << 20;

    fn new(site: &Site) -> SmallDisk {
        let folder = site.folder().join("disk");
        fs::create_dir(&folder).expect("a folder");
        let limit = format!("size={}", Self::BYTES);
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &limit, "tmpfs"]).arg(&folder).output();
        let is_mounted = mounted.is_ok_and(|output| output.status.success());
        eprintln!("a disk is mounted: {is_mounted}");
        SmallDisk { folder, is_mounted }
    }

    /// From now on the database cannot grow.
    fn fill(&self, process: &Trilane) {
        if self.is_mounted {
            // Ends with an error, for the disk is smaller.
            let _ = fs::write(self.folder.join("ballast"), vec![0; Self::BYTES]);
        } else {
            limit_files(process, "4096:");
        }
    }

    fn make_room(&self, process: &Trilane) {
        if self.is_mounted {
            fs::remove_file(self.folder.join("ballast")).expect("it was filled");
        } else {
            limit_files(process, "unlimited:");
        }
    }
}

/// The largest file that the process may write, in bytes.
fn limit_files(process: &Trilane, limit: &str) {
    let pid = process.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}")]).status();
    assert!(status.expect("prlimit is there").success());
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Lazily: a process that the test has left behind may hold it. Nothing else can be done about an error.
            let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
        }
    }
}

#[test]
fn a_full_disk_costs_no_job() {
    let site = Site::sqlite();
    let disk = SmallDisk::new(&site);
    let file = disk.folder.join("trilane.db");
    let site = site.with_sqlite_file(&file);
    let process = site.start(&settings(&site));
    let gate = begin_one(&site, &process);

    let large = json!({ "type": "quick", "payload": "x".repeat(100_000), "max_retries": 0 });
    let ((), calls) = under_load(&process, 2, &large, |calls| {
        disk.fill(&process);
        wait_until(SOON, "calls are refused", || calls.lock().expect("no panic").refused > 0);
    });
    let cost = Cost::of(&process);
    site.open_gate("gate");
    thread::sleep(pause());
    assert_eq!(process.get("/healthz").status, 200);
    cost.assert_little();
    disk.make_room(&process);

    wait_until(SOON, "calls are taken again", || process.post("/enqueue", &quick()).status == 200);
    assert!(calls.longest_refused < SUBMIT_WAIT + SLACK, "a refusal took {:?}", calls.longest_refused);
    assert_all_done(&site, &process, &[calls.taken, vec![gate]].concat());
    wait_until(SOON, "the end of the outage is told", || outages(&process, "the database").1 > 0);
    assert_eq!(outages(&process, "the database"), (1, 1), "one line at its start, one at its end");
}

#[test]
fn a_file_that_another_program_holds_is_waited_for_within_limits() {
    let site = Site::sqlite();
    // So that statements end without the lock while it is held.
    let connection_string = site.connection_string().replace("Timeout=10000;", "Timeout=2000;");
    assert!(connection_string.contains("Timeout=2000;"), "{connection_string}");
    let process = site.start(&settings(&site).with("DB_CONNECTION", connection_string));
    let gate = begin_one(&site, &process);
    let foreign = stores::connect(site.connection_string());

    let ((), calls) = under_load(&process, 4, &quick(), |calls| {
        wait_until(SOON, "calls are taken", || calls.lock().expect("no panic").taken.len() > 50);
        foreign.execute("begin immediate", (), None).map(drop).expect("it is free at times");
        let cost = Cost::of(&process);
        wait_until(SOON, "calls are refused", || calls.lock().expect("no panic").refused > 0);
        site.open_gate("gate");
        thread::sleep(pause());
        wait_until(TURNS_TAKEN, "statements end before they have the lock", || process.has_logged(GIVES_WAY));
        assert_eq!((process.get("/healthz").status, process.get("/readyz").status), (200, 200));
        cost.assert_little();
        foreign.execute("rollback", (), None).map(drop).expect("it is given up");
        let taken = calls.lock().expect("no panic").taken.len();
        wait_until(SOON, "calls are taken again", || calls.lock().expect("no panic").taken.len() > taken + 50);
    });

    assert!(calls.longest_refused < SUBMIT_WAIT + SLACK, "a refusal took {:?}", calls.longest_refused);
    assert_all_done(&site, &process, &[calls.taken, vec![gate]].concat());
}

#[test]
fn a_file_that_is_taken_away_takes_no_more_jobs_and_is_used_again_once_it_is_back() {
    let site = Site::sqlite();
    let file = site.folder().join("trilane.db");
    let site = site.with_sqlite_file(&file);
    let process = site.start(&settings(&site));
    let ids = process.enqueue(&vec![quick(); 20]);
    process.wait_for_status(&ids, "completed");

    let away = site.folder().join("away.db");
    move_database(&file, &away);
    let answer = process.post("/enqueue", &quick());
    assert_eq!((answer.status, answer.retry_after.is_some()), (503, true), "{answer:?}");
    assert_eq!(process.get("/readyz").status, 503);
    assert!(!file.exists(), "no empty one takes its place");
    move_database(&away, &file);

    wait_until(SOON, "calls are taken again", || process.post("/enqueue", &quick()).status == 200);
    process.wait_for_status(&ids, "completed");
    wait_until(SOON, "the end of the outage is told", || outages(&process, "the database") == (1, 1));
}

fn move_database(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let named = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
        if named(from).exists() {
            fs::rename(named(from), named(to)).expect("it is moved");
        }
    }
}

#[test]
fn a_file_or_folder_that_may_not_be_written_to_is_told_at_the_start() {
    let site = Site::sqlite();
    let disk = SmallDisk::new(&site);
    let folder = if disk.is_mounted {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.folder).status();
        assert!(remounted.expect("mount is there").success());
        disk.folder.as_path()
    } else {
        Path::new("/proc") // where nobody makes a file
    };
    let settings = Settings::default().with("TRILANE_DATA_DIR", folder.display());

    let ended = settings
        .with("TRILANE_DB_STARTUP_WAIT_SECONDS", 1)
        .with("TRILANE_HTTP_ADDR", "127.0.0.1:0")
        .run(site.folder(), &[]);

    assert_eq!(ended.code, Some(1), "{ended:?}");
    let file = folder.join("trilane.db");
    let told = format!("the SQLite file {} cannot be used", file.display());
    assert!(ended.stderr.contains(&told) && ended.stderr.contains("must be able to write it"), "{ended:?}");
}
