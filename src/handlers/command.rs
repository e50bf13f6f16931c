//! The handler that runs an external program for each attempt: any language, one process a job.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Instant;

use super::process::{self, End};
use super::{Attempt, Handler};
use crate::retry::Report;

/// The exit code that asks for another attempt, also where it is none of the codes that a type calls permanent: `EX_TEMPFAIL`
/// of sysexits.h.
pub const EXIT_RETRY: i32 = 75;

/// Settings of the service that its commands do not see.
const SECRETS: [&str; 3] = ["REDIS_URL", "API_TOKENS", "TRILANE_API_TOKENS"];
/// Start of the names of the settings that say how to reach the database.
const DATABASE_PREFIX: &str = "DB_";
/// What every attempt tells its command in the environment.
pub(super) const JOB_VARIABLES: [&str; 5] =
    ["TRILANE_JOB_ID", "TRILANE_JOB_TYPE", "TRILANE_ATTEMPT", "TRILANE_TOKEN", "TRILANE_LANE"];

/// Runs a program without a shell, with the payload on its standard input.
///
/// * Environment: that of the service without its secrets (`DB_*`, `REDIS_URL`, `TRILANE_API_TOKENS`), and `TRILANE_JOB_ID`,
///   `TRILANE_JOB_TYPE`, `TRILANE_ATTEMPT` (1 for the first), `TRILANE_TOKEN`, `TRILANE_LANE`.
/// * Exit code 0 is done, [`EXIT_RETRY`] and any other a failed attempt; those set by
///   [`CommandHandler::permanent_exit_codes`] are permanent. A signal, or a program that cannot be started, is a failed
///   attempt: both may be mended without the job.
/// * Standard output is discarded. The reason is the end of standard error, up to [`super::STDERR_CHARS_MAX`] characters.
/// * At the time limit or a stop the whole process group gets SIGTERM and, [`super::TERM_GRACE`] later, SIGKILL. That is a
///   failed attempt, whatever the program then answers. What it leaves running when it ends by itself is killed too: nothing
///   of a job outlives its attempt, unless it left the group.
#[derive(Clone)]
pub struct CommandHandler {
    program: String,
    arguments: Vec<String>,
    directory: Option<PathBuf>,
    environment: Vec<(String, String)>,
    permanent_exit_codes: BTreeSet<i32>,
}

impl CommandHandler {
    /// Runs `program` with `arguments`. A program without a slash in it is looked up in `PATH`.
    pub fn new<A: Into<String>>(program: impl Into<String>, arguments: impl IntoIterator<Item = A>) -> CommandHandler {
        CommandHandler {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            directory: None,
            environment: Vec::new(),
            permanent_exit_codes: BTreeSet::new(),
        }
    }

    /// Runs it in `directory` rather than that of the service.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> CommandHandler {
        self.directory = Some(directory.into());
        self
    }

    /// Sets one more variable of its environment, also one that would be removed.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> CommandHandler {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// After one of these exit codes there is no other attempt. Code 0 stays done, and [`EXIT_RETRY`] a retry.
    #[must_use]
    pub fn permanent_exit_codes(mut self, codes: impl IntoIterator<Item = i32>) -> CommandHandler {
        self.permanent_exit_codes = codes.into_iter().collect();
        self
    }

    fn run_under(&self, attempt: &Attempt<'_>, service: impl Iterator<Item = (OsString, OsString)>) -> Report {
        if attempt.stop.is_set() || attempt.left(Instant::now()).is_zero() {
            return Report::retry(format!("{} was not started: the attempt was already over", self.program));
        }
        let started = Instant::now();
        let mut command = self.command(attempt, service);
        match process::run(&mut command, attempt.job.payload.as_bytes(), attempt) {
            Ok((End::Exited(status), stderr)) => self.report(status, &stderr),
            Ok((forced, stderr)) => {
                let why = if matches!(forced, End::TimedOut) {
                    "ended at its time limit"
                } else {
                    "stopped"
                };
                let seconds = started.elapsed().as_secs_f64();
                Report::retry(with_stderr(&format!("{} was {why}, after {seconds:.1} s", self.program), &stderr))
            }
            Err(error) => Report::retry(self.explain(&error)),
        }
    }

    fn command(&self, attempt: &Attempt<'_>, service: impl Iterator<Item = (OsString, OsString)>) -> Command {
        let job = attempt.job;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(service.filter(|(name, _)| !is_secret(&name.to_string_lossy())))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("TRILANE_JOB_ID", job.id.to_string())
            .env("TRILANE_JOB_TYPE", &job.job_type)
            .env("TRILANE_ATTEMPT", job.attempt().to_string())
            .env("TRILANE_TOKEN", job.token.to_string())
            .env("TRILANE_LANE", job.lane.as_str());
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    fn report(&self, status: ExitStatus, stderr: &str) -> Report {
        let reason = || with_stderr(&format!("{} ended with {status}", self.program), stderr);
        match status.code() {
            Some(0) => Report::Done,
            Some(code) if code != EXIT_RETRY && self.permanent_exit_codes.contains(&code) => {
                Report::permanent(reason())
            }
            Some(_) | None => Report::retry(reason()),
        }
    }

    /// Names what is missing: the system says "no such file" of the directory as of the program.
    fn explain(&self, error: &std::io::Error) -> String {
        match &self.directory {
            Some(directory) if !directory.is_dir() => {
                format!("cannot run {}: its directory {} does not exist", self.program, directory.display())
            }
            _ => format!("cannot run {}: {error}", self.program),
        }
    }
}

impl Handler for CommandHandler {
    fn run(&self, attempt: &Attempt<'_>) -> Report {
        self.run_under(attempt, std::env::vars_os())
    }
}

fn is_secret(name: &str) -> bool {
    name.starts_with(DATABASE_PREFIX) || SECRETS.contains(&name)
}

fn with_stderr(what: &str, stderr: &str) -> String {
    if stderr.is_empty() {
        format!("{what}; nothing on standard error")
    } else {
        format!("{what}: {stderr}")
    }
}

#[cfg(test)]
mod tests;
