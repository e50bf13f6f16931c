//! With real processes: scripts run by /bin/sh.

use std::fs;
use std::thread;
use std::time::Duration;

use super::*;
use crate::handlers::testing::{LONG, Scratch, claimed, report_of, report_within, wait_until};
use crate::handlers::{PIPE_GRACE, STDERR_CHARS_MAX, StopFlag, TERM_GRACE};

/// Added to a wait that must end by itself, for a busy machine.
const SLACK: Duration = Duration::from_secs(10);

fn script(script: &str) -> CommandHandler {
    CommandHandler::new("/bin/sh", ["-c", script])
}

fn reason_of(report: Report) -> String {
    match report {
        Report::Done => panic!("done, not failed"),
        Report::Retry { reason, .. } | Report::Permanent { reason } => reason,
    }
}

/// Whether the process that wrote its id to that file runs; a zombie does not.
fn is_running(scratch: &Scratch, file: &str) -> bool {
    let id: u32 = scratch.read(file).trim().parse().expect("a process id");
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn the_payload_is_the_standard_input_and_exit_code_0_is_done() {
    let scratch = Scratch::new();
    let payload = r#"{"to":"é🦀@example.com"}"#;

    let report = report_of(&script("cat > payload").directory(scratch.path()), "send_email", payload);

    assert_eq!(report, Report::Done);
    assert_eq!(scratch.read("payload"), payload);
}

#[test]
fn a_payload_larger_than_a_pipe_arrives_whole() {
    let scratch = Scratch::new();
    let payload = "0123456789".repeat(300_000);

    let report = report_of(&script("cat > payload").directory(scratch.path()), "a", &payload);

    assert_eq!(report, Report::Done);
    assert!(scratch.read("payload") == payload);
}

#[test]
fn a_payload_that_is_not_read_is_no_error() {
    let payload = "x".repeat(3_000_000);

    assert_eq!(report_of(&script("exit 0"), "a", &payload), Report::Done);
    assert_eq!(report_of(&script("exec 0<&-; exit 0"), "a", &payload), Report::Done);
    assert_eq!(report_of(&script("head -c 10 > /dev/null"), "a", &payload), Report::Done);
}

#[test]
fn the_environment_tells_the_job_and_no_secret_of_the_service() {
    let scratch = Scratch::new();
    let handler = script("env > seen").directory(scratch.path()).variable("MODE", "live").variable("DB_OWN", "mine");
    let service = [
        ("PATH", env!("PATH")),
        ("LANG", "C"),
        ("DB_PASSWORD", "s3cret"),
        ("DB_CONNECTION", "Pwd=s3cret"),
        ("REDIS_URL", "redis://:s3cret@host"),
        ("API_TOKENS", "s3cret"),
        ("TRILANE_API_TOKENS", "s3cret"),
        ("TRILANE_HTTP_ADDR", "127.0.0.1:8080"),
        ("TRILANE_JOB_ID", "another"),
    ];
    let job = claimed("send_email", "{}");
    let attempt = Attempt { job: &job, deadline: Instant::now() + LONG, stop: &StopFlag::new() };

    let report = handler.run_under(&attempt, service.map(|(name, value)| (name.into(), value.into())).into_iter());

    assert_eq!(report, Report::Done);
    let seen = scratch.read("seen");
    let id = format!("TRILANE_JOB_ID={}", job.id);
    let expected = [
        &id,
        "TRILANE_JOB_TYPE=send_email",
        "TRILANE_ATTEMPT=2",
        "TRILANE_TOKEN=42",
        "TRILANE_LANE=high",
        "TRILANE_HTTP_ADDR=127.0.0.1:8080",
        "LANG=C",
        "MODE=live",
        "DB_OWN=mine",
    ];
    for line in expected {
        assert!(seen.lines().any(|seen| seen == line), "{line} in\n{seen}");
    }
    assert!(!seen.contains("s3cret"), "{seen}");
    assert!(JOB_VARIABLES.iter().all(|name| seen.contains(&format!("{name}="))));
}

#[test]
fn the_arguments_are_no_shell_text() {
    let scratch = Scratch::new();
    let handler = CommandHandler::new("touch", ["--", "a b; $HOME `id`"]).directory(scratch.path());

    assert_eq!(report_of(&handler, "a", ""), Report::Done);
    assert!(scratch.file("a b; $HOME `id`").exists());
}

#[test]
fn any_other_exit_code_is_a_failed_attempt_with_the_end_of_standard_error() {
    let report = report_of(&script("echo out; echo 'no such user' >&2; exit 3"), "a", "");
    assert_eq!(report, Report::retry("/bin/sh ended with exit status: 3: no such user"));

    let report = report_of(&script("echo only standard output; exit 75"), "a", "");
    assert_eq!(report, Report::retry("/bin/sh ended with exit status: 75; nothing on standard error"));
}

#[test]
fn a_signal_is_a_failed_attempt() {
    let report = report_of(&script("echo 'out of memory' >&2; kill -KILL $$"), "a", "");

    assert_eq!(report, Report::retry("/bin/sh ended with signal: 9 (SIGKILL): out of memory"));
}

#[test]
fn the_permanent_exit_codes_are_those_of_the_handler() {
    let handler = |code| script(&format!("echo why >&2; exit {code}")).permanent_exit_codes([0, 64, 65, 75]);

    assert_eq!(report_of(&handler(64), "a", ""), Report::permanent("/bin/sh ended with exit status: 64: why"));
    assert!(matches!(report_of(&handler(66), "a", ""), Report::Retry { .. }));
    assert!(matches!(report_of(&handler(75), "a", ""), Report::Retry { .. }), "75 stays a retry");
    assert_eq!(report_of(&handler(0), "a", ""), Report::Done, "0 stays done");
}

#[test]
fn a_program_that_cannot_be_started_is_a_failed_attempt_that_says_why() {
    let scratch = Scratch::new();
    fs::write(scratch.file("plain"), "not a program").expect("a file");
    let plain = scratch.file("plain").display().to_string();
    let no_arguments = std::iter::empty::<String>;

    let missing = report_of(&CommandHandler::new("/no/such/program", no_arguments()), "a", "");
    let unknown = report_of(&CommandHandler::new("no-such-program-in-path", no_arguments()), "a", "");
    let not_executable = report_of(&CommandHandler::new(&plain, no_arguments()), "a", "");
    let nowhere = report_of(&script("exit 0").directory("/no/such/directory"), "a", "");

    assert_eq!(missing, Report::retry("cannot run /no/such/program: No such file or directory (os error 2)"));
    assert_eq!(unknown, Report::retry("cannot run no-such-program-in-path: No such file or directory (os error 2)"));
    assert_eq!(not_executable, Report::retry(format!("cannot run {plain}: Permission denied (os error 13)")));
    assert_eq!(nowhere, Report::retry("cannot run /bin/sh: its directory /no/such/directory does not exist"));
}

#[test]
fn standard_error_of_100_mb_leaves_its_last_2000_characters() {
    let report = report_of(&script("head -c 100000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1"), "a", "");

    let reason = reason_of(report);
    let stderr = reason.strip_prefix("/bin/sh ended with exit status: 1: ").expect("the status first");
    assert!(stderr.starts_with("…xxx") && stderr.ends_with("xxxthe end"));
    assert_eq!(stderr.chars().count(), STDERR_CHARS_MAX);
}

#[test]
fn standard_error_that_is_not_text_becomes_a_readable_reason() {
    let reason = reason_of(report_of(&script("printf 'a\\000b\\377c\\033[31m' >&2; exit 1"), "a", ""));

    assert!(reason.ends_with(": a\u{fffd}b\u{fffd}c\u{fffd}[31m"), "{reason:?}");
}

#[test]
fn standard_output_of_any_size_is_discarded() {
    assert_eq!(report_of(&script("head -c 100000000 /dev/zero"), "a", ""), Report::Done);
}

#[test]
fn at_the_time_limit_the_whole_group_is_ended() {
    let scratch = Scratch::new();
    // The child of a child ignores SIGTERM and holds standard error open.
    let handler = script(
        "echo $$ > leader; echo waiting >&2; (sh -c 'trap \"\" TERM; echo $$ > inner; while :; do sleep 1; done') & wait",
    );
    let job = claimed("a", "");
    let handler = handler.directory(scratch.path());
    let attempt_started = Instant::now();

    let report = report_within(&handler, &job, Duration::from_secs(2));

    let took = attempt_started.elapsed();
    let reason = reason_of(report);
    assert!(
        reason.starts_with("/bin/sh was ended at its time limit, after ") && reason.ends_with(": waiting"),
        "{reason}"
    );
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(2) + TERM_GRACE + SLACK, "{took:?}");
    wait_until("the inner process is gone", || !is_running(&scratch, "inner"));
    let leader = format!("/proc/{}", scratch.read("leader").trim());
    assert!(!fs::exists(leader).expect("/proc is readable"), "reaped, not a zombie");
}

#[test]
fn a_command_that_heeds_sigterm_may_clean_up() {
    let scratch = Scratch::new();
    let handler = script("trap 'echo cleaned > state; exit 0' TERM; echo up > state; while :; do sleep 0.05; done");
    let handler = handler.directory(scratch.path());

    let started = Instant::now();
    let report = report_within(&handler, &claimed("a", ""), Duration::from_secs(1));

    assert!(reason_of(report).contains("ended at its time limit"), "a failed attempt whatever it answers");
    assert_eq!(scratch.read("state"), "cleaned\n");
    assert!(started.elapsed() < Duration::from_secs(1) + TERM_GRACE, "no longer than it needs");
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace() {
    let scratch = Scratch::new();
    let handler = script("trap '' TERM; echo $$ > id; while :; do sleep 1; done").directory(scratch.path());

    let started = Instant::now();
    let report = report_within(&handler, &claimed("a", ""), Duration::from_secs(1));

    let took = started.elapsed();
    assert!(reason_of(report).contains("ended at its time limit"));
    assert!(took >= TERM_GRACE && took < Duration::from_secs(1) + TERM_GRACE + SLACK, "{took:?}");
    assert!(!is_running(&scratch, "id"));
}

#[test]
fn a_command_that_never_reads_a_large_payload_still_ends_at_its_time_limit() {
    let started = Instant::now();
    let report =
        report_within(&script("sleep 1000"), &claimed("a", &"x".repeat(3_000_000)), Duration::from_millis(300));

    assert!(reason_of(report).contains("ended at its time limit"));
    assert!(started.elapsed() < SLACK);
}

#[test]
fn a_command_that_closed_its_pipes_still_ends_at_its_time_limit() {
    let started = Instant::now();
    let report = report_within(&script("exec 0<&- 2>&-; sleep 1000"), &claimed("a", ""), Duration::from_millis(300));

    assert!(reason_of(report).contains("ended at its time limit"));
    assert!(started.elapsed() < SLACK);
}

#[test]
fn a_stop_ends_the_command() {
    let scratch = Scratch::new();
    let handler = script("echo $$ > id; sleep 1000").directory(scratch.path());
    let job = claimed("a", "");
    let stop = StopFlag::new();

    let report = thread::scope(|scope| {
        let running = scope.spawn(|| handler.run(&Attempt { job: &job, deadline: Instant::now() + LONG, stop: &stop }));
        wait_until("the command runs", || scratch.read("id").ends_with('\n'));
        stop.set();
        running.join().expect("no panic")
    });

    let reason = reason_of(report);
    assert!(reason.starts_with("/bin/sh was stopped, after "), "{reason}");
    assert!(!is_running(&scratch, "id"));
}

#[test]
fn an_attempt_that_is_already_over_starts_nothing() {
    let scratch = Scratch::new();
    let handler = script("touch started").directory(scratch.path());
    let job = claimed("a", "");
    let stopped = StopFlag::new();
    stopped.set();

    let late = report_within(&handler, &job, Duration::ZERO);
    let stopped = handler.run(&Attempt { job: &job, deadline: Instant::now() + LONG, stop: &stopped });

    assert!(reason_of(late).contains("was not started") && reason_of(stopped).contains("was not started"));
    assert!(!scratch.file("started").exists());
}

#[test]
fn a_process_left_running_neither_holds_the_worker_up_nor_lives_on() {
    let scratch = Scratch::new();
    let handler = script("sleep 1000 & echo $! > left; exit 0").directory(scratch.path());

    let started = Instant::now();
    let report = report_of(&handler, "a", "");

    assert_eq!(report, Report::Done);
    assert!(started.elapsed() < PIPE_GRACE + SLACK);
    wait_until("what it left is gone", || !is_running(&scratch, "left"));
}

#[test]
fn what_is_written_just_after_the_end_of_the_command_is_still_read() {
    let reason = reason_of(report_of(&script("(sleep 0.1; echo late >&2) & exit 1"), "a", ""));

    assert!(reason.ends_with(": late"), "{reason}");
}

#[test]
fn a_process_that_left_the_group_does_not_hold_the_worker_up() {
    let scratch = Scratch::new();
    let handler = script(
        "setsid sh -c 'echo $$ > escaped; while :; do echo noise >&2 || exit; sleep 0.01; done' & \
         while ! [ -s escaped ]; do sleep 0.01; done; exit 0",
    );

    let started = Instant::now();
    let report = report_of(&handler.directory(scratch.path()), "a", "");

    assert_eq!(report, Report::Done);
    assert!(started.elapsed() < PIPE_GRACE + SLACK);
    // It ends by itself: our end of its standard error is closed.
    wait_until("the escaped process is gone", || !is_running(&scratch, "escaped"));
}

#[test]
fn a_short_command_is_not_slowed_down_by_polling() {
    let handler = script("exit 0");
    let quickest = (0..20).map(|_| {
        let started = Instant::now();
        assert_eq!(report_of(&handler, "a", ""), Report::Done);
        started.elapsed()
    });

    let quickest = quickest.min().expect("20 commands");
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
}
