//! Judges by hand what a run left behind, on a database at rest:
//!
//! ```sh
//! cargo run --example checker -- 'Driver={PostgreSQL Unicode};Server=…;' CLIENTS.log EFFECTS.log [--goes-on] [--calm]
//! ```
//!
//! * `CLIENTS.log`: what clients asked and were told, a JSON object a line (`history::Said`); each job carries a `mark` in its payload.
//! * `EFFECTS.log`: what handlers did, `start|done|failed JOB ATTEMPT TOKEN` a line; it may be empty.
//! * `--goes-on`: jobs may still be live. `--calm`: nothing was killed, stopped or cut off, so no job may have run twice.
//!
//! The suite (`make chaos`, `make test`) uses the same code; a run that fails keeps its folder, with both logs. Rows older than
//! `TRILANE_RETENTION_DAYS` are deleted by Trilane and would count as lost here.
//!
//! Exit code 0: no rule is broken. 1: some are, each printed. 2: wrong arguments, or something cannot be read.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

#[path = "mod.rs"]
mod checker;
#[cfg(test)]
mod faulty;

use std::path::Path;
use std::process::ExitCode;

use checker::judge::{Run, judge, listed};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (flags, paths): (Vec<&String>, Vec<&String>) =
        arguments.iter().partition(|argument| argument.starts_with("--"));
    let ([connection_string, clients, effects], true) =
        (&paths[..], flags.iter().all(|flag| ["--goes-on", "--calm"].contains(&flag.as_str())))
    else {
        eprintln!("usage: checker CONNECTION_STRING CLIENTS.log EFFECTS.log [--goes-on] [--calm]");
        return ExitCode::from(2);
    };
    let has = |name: &str| flags.iter().any(|flag| *flag == name);
    let history = match checker::read::history(connection_string, Path::new(clients), Path::new(effects)) {
        Ok(history) => history,
        Err(error) => {
            eprintln!("checker: {error}");
            return ExitCode::from(2);
        }
    };
    let verdict = judge(&history, Run { goes_on: has("--goes-on"), is_calm: has("--calm") });
    println!("{:#?}", verdict.counts);
    println!("{}", listed(&verdict.violations));
    if verdict.violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
