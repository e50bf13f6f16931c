//! Runs one external process to its end, with everything it started, on the thread of its worker.
//!
//! No thread is started: the pipes do not block and are polled together with the deadline and the stop flag, so nothing can
//! be left behind by a process that keeps them open. The process leads a process group of its own. When the attempt is
//! over, so is the group: what is left of it is killed, and the leader is reaped. Only what moved to another group
//! (`setsid`) lives on; it cannot hold the worker up.
//!
//! No command outlives this process, for its job will run again elsewhere. An orderly exit kills every group
//! ([`abandon_all`]). Where the process is killed itself the kernel kills each leader: its parent-death signal belongs to the
//! thread that started it, and that thread waits here until the group has ended. What a leader had started then lives on;
//! a service manager or container, which ends all of them together, closes that gap.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Attempt;
use super::tail::Tail;

/// How long a process group has between SIGTERM, at its time limit or a stop, and SIGKILL. It comes on top of the limit: a
/// command gets the whole time that it was promised. SIGKILL follows at once where the command has ended and nothing holds
/// its standard error open.
pub const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long standard error is read on after the command itself has ended, when something it started holds it open.
pub const PIPE_GRACE: Duration = Duration::from_millis(500);
/// How long to wait for a process to vanish after SIGKILL. One in an uninterruptible wait (a dead network file system) is
/// then left to a later attempt to reap.
pub const REAP_WAIT: Duration = Duration::from_secs(5);

/// The longest wait before the deadline, the stop flag and the process are looked at again.
const POLL_WAIT_MAX: Duration = Duration::from_millis(50);
/// The wait after something happened; it doubles up to [`POLL_WAIT_MAX`].
const POLL_WAIT_MIN: Duration = Duration::from_millis(1);
/// How much is read or written at once: what a pipe holds on Linux.
const CHUNK_BYTES: usize = 64 * 1024;

/// The groups of the attempts under way, by their leaders' ids. None of the leaders is reaped.
static GROUPS: Mutex<Vec<libc::pid_t>> = Mutex::new(Vec::new());
/// Processes that did not vanish within [`REAP_WAIT`].
static LEFT_BEHIND: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// How a process came to its end.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Made to, at its time limit.
    TimedOut,
    /// Made to, because the attempt was stopped.
    Stopped,
}

/// Runs `command` with `input` on its standard input until it ends, or is made to at the deadline or a stop.
///
/// Returns the end and the tail of its standard error; standard output is discarded. `input` that the process does not
/// read is no error. Returns within [`TERM_GRACE`] + [`REAP_WAIT`] of the deadline or the stop.
///
/// # Errors
/// When the process cannot be started, or its exit status cannot be read.
pub(super) fn run(command: &mut Command, input: &[u8], attempt: &Attempt<'_>) -> io::Result<(End, String)> {
    reap_left_behind();
    keep_files_from_children();
    die_with_this_process(command);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let mut group = Group::start(command)?;
    let mut pipes = Pipes::of(&mut group, input)?;
    let forced = watch(&group, &mut pipes, attempt);
    let status = group.end();
    let end = match forced {
        Some(end) => end,
        None => End::Exited(status?),
    };
    Ok((end, pipes.stderr_tail.into_text()))
}

/// Moves bytes until the leader has ended and its pipes are closed, or time is up. Returns the end that was forced, if any.
fn watch(group: &Group, pipes: &mut Pipes<'_>, attempt: &Attempt<'_>) -> Option<End> {
    enum Phase {
        Running,
        Ended { until: Instant },
        Terminated { until: Instant, end: End },
    }
    let mut phase = Phase::Running;
    let mut wait = POLL_WAIT_MIN;
    loop {
        wait = if pipes.pump(wait) {
            POLL_WAIT_MIN
        } else {
            (wait * 2).min(POLL_WAIT_MAX)
        };
        let now = Instant::now();
        let is_over = group.has_ended();
        let is_quiet = is_over && pipes.stderr.is_none();
        phase = match phase {
            Phase::Running if is_quiet => return None,
            Phase::Running if is_over => Phase::Ended { until: now + PIPE_GRACE },
            Phase::Running if now >= attempt.deadline || attempt.stop.is_set() => {
                let end = if now >= attempt.deadline {
                    End::TimedOut
                } else {
                    End::Stopped
                };
                group.signal(libc::SIGTERM);
                Phase::Terminated { until: now + TERM_GRACE, end }
            }
            Phase::Ended { until } if is_quiet || now >= until => return None,
            Phase::Terminated { until, end } if is_quiet || now >= until => return Some(end),
            phase => phase,
        };
    }
}

/// A process that leads a group of its own. When dropped, the group is killed and the leader reaped.
struct Group {
    /// `None` once it is reaped: its id may then belong to another process, and is not used any more.
    leader: Option<Child>,
}

impl Group {
    fn start(command: &mut Command) -> io::Result<Group> {
        let leader = command.spawn()?;
        groups().push(process_id(&leader));
        Ok(Group { leader: Some(leader) })
    }

    /// Whether the leader has ended. It stays a zombie until [`Group::end`], so that its id keeps naming this group.
    fn has_ended(&self) -> bool {
        self.leader.as_ref().is_none_or(has_ended)
    }

    /// Sends `signal` to every process of the group.
    fn signal(&self, signal: libc::c_int) {
        if let Some(leader) = &self.leader {
            // SAFETY: a call without pointers. The leader is not reaped, so the id is that of its group and no other.
            // Its only likely error is ESRCH, no process left, which is what the signal is for.
            unsafe { libc::killpg(process_id(leader), signal) };
        }
    }

    /// Kills what is left of the group, waits up to [`REAP_WAIT`] for the leader to vanish, and reaps it.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.signal(libc::SIGKILL);
        let give_up = Instant::now() + REAP_WAIT;
        let mut wait = POLL_WAIT_MIN;
        while !self.has_ended() && Instant::now() < give_up {
            thread::sleep(wait);
            wait = (wait * 2).min(POLL_WAIT_MAX);
        }
        let is_stuck = !self.has_ended();
        if let Some(leader) = &self.leader {
            groups().retain(|id| *id != process_id(leader));
        }
        match self.leader.take() {
            Some(mut leader) if !is_stuck => leader.wait(),
            Some(leader) => {
                left_behind().push(leader);
                Err(io::Error::new(io::ErrorKind::TimedOut, "the process does not vanish after SIGKILL"))
            }
            None => Err(io::Error::other("the process is already reaped")),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.leader.is_some() {
            // OK: whoever drops it early has an error of its own to tell
            let _ = self.end();
        }
    }
}

/// The ends of a child's pipes that are ours. They do not block.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    input: &'a [u8],
    stderr: Option<ChildStderr>,
    stderr_tail: Tail,
    chunk: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn of(group: &mut Group, input: &'a [u8]) -> io::Result<Pipes<'a>> {
        let leader = group.leader.as_mut();
        let (stdin, stderr) = leader.map_or((None, None), |child| (child.stdin.take(), child.stderr.take()));
        if let Some(stdin) = &stdin {
            unblock(stdin)?;
        }
        if let Some(stderr) = &stderr {
            unblock(stderr)?;
        }
        Ok(Pipes { stdin, input, stderr, stderr_tail: Tail::default(), chunk: vec![0; CHUNK_BYTES] })
    }

    /// Waits up to `wait` until a pipe is ready, and moves at most [`CHUNK_BYTES`] through each. Returns whether one was.
    fn pump(&mut self, wait: Duration) -> bool {
        let mut polled = [poll_for(self.stdin.as_ref(), libc::POLLOUT), poll_for(self.stderr.as_ref(), libc::POLLIN)];
        let wait_ms = libc::c_int::try_from(wait.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the pointer and the length are those of a live array, and the call keeps neither. A negative descriptor is
        // skipped. An error (a signal came) leaves every `revents` at zero, as we set it.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, wait_ms) };
        let [stdin_is_ready, stderr_is_ready] = polled.map(|entry| entry.revents != 0);
        if stdin_is_ready {
            self.write_some();
        }
        if stderr_is_ready {
            self.read_some();
        }
        stdin_is_ready || stderr_is_ready
    }

    fn write_some(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let chunk = &self.input[..self.input.len().min(CHUNK_BYTES)];
        match stdin.write(chunk) {
            Ok(written) => self.input = &self.input[written..],
            Err(error) if is_passing(&error) => return,
            // Most often a broken pipe: the process does not want the rest.
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.stdin = None;
        }
    }

    fn read_some(&mut self) {
        let Some(stderr) = &mut self.stderr else { return };
        match stderr.read(&mut self.chunk) {
            Ok(count @ 1..) => self.stderr_tail.push(&self.chunk[..count]),
            Err(error) if is_passing(&error) => {}
            Ok(0) | Err(_) => self.stderr = None,
        }
    }
}

/// Whether the same call may succeed later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What `poll` is asked of one pipe; nothing where it is closed.
fn poll_for(pipe: Option<&impl AsRawFd>, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: pipe.map_or(-1, AsRawFd::as_raw_fd), events, revents: 0 }
}

/// Makes reads and writes of our end of a pipe return at once. The other end, which the child has, stays as it is.
fn unblock(pipe: &impl AsFd) -> io::Result<()> {
    let fd = pipe.as_fd().as_raw_fd();
    // SAFETY: calls without pointers, on a descriptor that `pipe` keeps open.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `child` has ended, without reaping it. One that cannot be asked about is gone.
fn has_ended(child: &Child) -> bool {
    // SAFETY: `siginfo_t` is plain data, for which zeroes are a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: the pointer is to a live value of the type that the call fills in.
        let failed = unsafe { libc::waitid(libc::P_PID, child.id(), &raw mut info, options) } != 0;
        if failed && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        // SAFETY: after success the call has set the field; zero means that the child has not ended.
        return failed || unsafe { info.si_pid() } != 0;
    }
}

fn process_id(child: &Child) -> libc::pid_t {
    libc::pid_t::try_from(child.id()).unwrap_or(libc::pid_t::MAX) // OK: it was a pid_t before std made it a u32
}

/// Marks every open file of this process as not for children, as those of std already are: a database driver's socket, open
/// in a command, would outlive the service and keep its session alive.
///
/// Of a file that another thread opens without that mark while the child starts, one may still slip through.
fn keep_files_from_children() {
    #[cfg(target_os = "linux")]
    {
        const FIRST: libc::c_uint = 3; // after standard input, output and error
        // SAFETY: a call without pointers. It closes nothing here and only takes effect when another program is started. On
        // a kernel before 5.11 it fails and changes nothing.
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    }
}

/// Kills every command that runs, with its group. For a process that is about to exit: no attempt at a command ends any more, so
/// none can be reported as failed because of this.
pub fn abandon_all() {
    let groups = groups();
    for id in groups.iter() {
        // SAFETY: a call without pointers. The leader is not reaped while it is listed, so the id is that of its group.
        unsafe { libc::killpg(*id, libc::SIGKILL) };
    }
    std::mem::forget(groups); // whoever ends a group waits for it, until the exit
}

/// Has the kernel kill the command when this process dies.
fn die_with_this_process(command: &mut Command) {
    #[cfg(target_os = "linux")]
    {
        let service = std::process::id();
        let prepare = move || {
            // SAFETY: calls that take plain numbers, and that are allowed between fork and exec.
            let is_alive = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // This process ignores it (`signals`); a command is to have the usual.
                libc::signal(libc::SIGXFSZ, libc::SIG_DFL);
                u32::try_from(libc::getppid()) == Ok(service)
            };
            // Else it died before it was asked for, and nobody waits for the command.
            if is_alive {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        };
        // SAFETY: the closure allocates nothing and takes no lock.
        unsafe { command.pre_exec(prepare) };
    }
}

fn groups() -> MutexGuard<'static, Vec<libc::pid_t>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps those of [`LEFT_BEHIND`] that have ended meanwhile.
fn reap_left_behind() {
    left_behind().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

fn left_behind() -> MutexGuard<'static, Vec<Child>> {
    LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::StopFlag;
    use crate::handlers::testing::{claimed, in_seconds, wait_until};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_dropped_group_is_killed_and_reaped() {
        let child = shell("sleep 1000").process_group(0).spawn().expect("sh starts");
        let id = child.id();

        drop(Group { leader: Some(child) });

        assert!(!std::fs::exists(format!("/proc/{id}")).expect("/proc is readable"), "neither running nor a zombie");
    }

    #[test]
    fn an_ended_leader_keeps_its_id_until_its_group_ends() {
        let child = shell("exit 3").process_group(0).spawn().expect("sh starts");
        let id = child.id();
        let mut group = Group { leader: Some(child) };

        wait_until("the leader has ended", || group.has_ended());
        assert!(std::fs::exists(format!("/proc/{id}")).expect("/proc is readable"), "a zombie, not reaped");

        assert_eq!(group.end().expect("its status").code(), Some(3));
        assert!(!std::fs::exists(format!("/proc/{id}")).expect("/proc is readable"));
    }

    #[test]
    fn one_left_behind_is_reaped_by_a_later_attempt() {
        let child = shell("exit 0").spawn().expect("sh starts");
        let id = child.id();
        wait_until("it is a zombie", || has_ended(&child));
        left_behind().push(child);

        reap_left_behind();

        assert!(left_behind().iter().all(|child| child.id() != id));
        assert!(!std::fs::exists(format!("/proc/{id}")).expect("/proc is readable"));
    }

    #[test]
    fn a_file_open_in_this_process_is_not_open_in_the_command() {
        // As a C library opens one: without the mark that std sets.
        // SAFETY: the path is a C string; the descriptor is closed below.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
        assert!(fd > 2);
        let job = claimed("a", "");
        let attempt = Attempt { job: &job, deadline: in_seconds(20), stop: &StopFlag::new() };

        let (end, listing) = run(&mut shell("ls -l /proc/self/fd >&2"), b"", &attempt).expect("sh starts");
        // SAFETY: nobody else has this descriptor.
        unsafe { libc::close(fd) };

        assert!(matches!(end, End::Exited(status) if status.success()));
        assert!(listing.contains(" 2 -> "), "{listing}");
        assert!(!listing.contains(&format!(" {fd} -> ")), "{listing}");
    }
}
