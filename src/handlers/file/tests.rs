use super::*;
use crate::handlers::testing::{Scratch, report_of};
use crate::retry::Report;

/// The environment of these tests.
fn environment(name: &str) -> Option<String> {
    match name {
        "PAY_TOKEN" => Some("Bearer s3cret".into()),
        "PAY_URL" => Some("https://example.internal/pay".into()),
        "BAD_URL" => Some("s3cret".into()),
        "BROKEN" => Some("s3cret\n".into()),
        "EMPTY" => Some(String::new()),
        _ => None,
    }
}

fn read(text: &str) -> Registry {
    parse_under(text, "handlers.toml", &environment).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(text: &str) -> Vec<String> {
    match parse_under(text, "h.toml", &environment) {
        Ok(registry) => panic!("taken as {registry:?}: {text}"),
        Err(HandlersFileError::Unreadable { .. }) => panic!("not read from a file"),
        Err(HandlersFileError::Invalid(problems)) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[track_caller]
fn assert_refused(text: &str, message: &str) {
    assert_eq!(problems(text), [message], "{text}");
}

#[test]
fn the_documented_file_is_read() {
    let scratch = Scratch::new();
    let registry = read(&format!(
        r#"
        [send_email]
        command = ["sh", "-c", "cat > payload; echo \"$MODE $KEY\" > mode; exit 65"]
        directory = "{}"
        env = {{ MODE = "live", KEY = "env:PAY_TOKEN" }}
        permanent_exit_codes = [64, 65]
        timeout_seconds = 30
        retry_base_ms = 1000
        retry_cap_ms = 60000

        [process_payment]
        http = "env:PAY_URL"
        headers = {{ Authorization = "env:PAY_TOKEN", "X-Plain" = "text" }}

        ["report.daily:v2"]
        http = "http://localhost:9000/reports"
        timeout_seconds = 86_400

        ["*"]
        log = true
        "#,
        scratch.path().display()
    ));

    let types: Vec<_> = registry.types().collect();
    assert_eq!(types, ["process_payment", "report.daily:v2", "send_email", "*"]);
    let email = registry.get("send_email").expect("an entry");
    let policy = RetryPolicy { base: Duration::from_secs(1), cap: Duration::from_mins(1) };
    assert_eq!((email.timeout, email.retry), (Some(Duration::from_secs(30)), Some(policy)));
    assert!(matches!(report_of(email.handler.as_ref(), "send_email", "[1]"), Report::Permanent { .. }));
    assert_eq!((scratch.read("payload"), scratch.read("mode")), ("[1]".into(), "live Bearer s3cret\n".into()));
    let report = registry.get("report.daily:v2").expect("an entry");
    assert_eq!((report.timeout, report.retry), (Some(TIMEOUT_MAX), None));
    let other = registry.get("unheard_of").expect("the entry for every other type");
    assert_eq!(report_of(other.handler.as_ref(), "unheard_of", ""), Report::Done);
}

#[test]
fn a_type_has_exactly_one_handler() {
    let expected = "expected exactly one of `command`, `http`, `log = true`; found";

    assert_refused("[a]\n", &format!("h.toml:1:2: a: {expected} none"));
    assert_refused("[a]\ntimeout_seconds = 3\nheaders = {}\n", &format!("h.toml:1:2: a: {expected} none"));
    assert_refused("[a]\nlog = true\nhttp = 3\n", &format!("h.toml:1:2: a: {expected} http and log"));
    assert_refused("[a]\nlog = false\n", "h.toml:2:7: a: `log` can only be true");
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_known() {
    assert_refused(
        "[a]\nlog = true\n  timeout_second = 3\n",
        "h.toml:3:3: a: unknown key `timeout_second`; did you mean `timeout_seconds`?",
    );
    assert_refused(
        "[a]\nlog = true\nfoo = 1\n",
        "h.toml:3:1: a: unknown key `foo`; expected one of command, http, log, timeout_seconds, retry_base_ms, \
         retry_cap_ms, directory, env, permanent_exit_codes, headers, ca_file",
    );
    assert_refused(
        "[report]\nlog = true\n[report.daily]\nlog = true\n",
        "h.toml:3:9: report: unknown key `daily`; a type with a dot is written in quotes: [\"report.daily\"]",
    );
}

#[test]
fn a_key_of_another_kind_of_handler_is_refused() {
    assert_refused(
        "[a]\ncommand = [\"true\"]\nheaders = { A = \"b\" }\n",
        "h.toml:3:1: a: `headers` belongs to a handler with `http`",
    );
    assert_refused(
        "[a]\nhttp = \"http://localhost/\"\nenv = { A = \"b\" }\n",
        "h.toml:3:1: a: `env` belongs to a handler with `command`",
    );
    assert_refused(
        "[a]\nlog = true\npermanent_exit_codes = [3]\n",
        "h.toml:3:1: a: `permanent_exit_codes` belongs to a handler with `command`",
    );
}

#[test]
fn a_type_name_that_no_job_can_have_is_refused() {
    let expected = "cannot be a job type: 1 to 100 of A-Z a-z 0-9 . _ : -, or \"*\"";

    assert_refused("[\"send email\"]\nlog = true\n", &format!("h.toml:1:2: `send email` {expected}"));
    assert_refused("[\"\"]\nlog = true\n", &format!("h.toml:1:2: `` {expected}"));
    assert_refused(
        "# top\ntimeout_seconds = 3\n",
        "h.toml:2:1: `timeout_seconds` must be a table, [timeout_seconds], with the handler of that type in it",
    );
    assert_refused("# nothing\n", "h.toml:1:1: names no job type, such as [send_email]");
    assert_refused("", "h.toml:1:1: names no job type, such as [send_email]");
}

#[test]
fn a_number_out_of_range_is_refused() {
    let expected = "`timeout_seconds` must be a whole number from 1 to 86400";
    for bad in ["0", "86401", "-1", "1.5", "\"30\"", "99999999999999999999999", "[3]", "1979-05-27"] {
        assert_refused(&format!("[a]\nlog = true\ntimeout_seconds = {bad}\n"), &format!("h.toml:3:19: a: {expected}"));
    }
    assert_eq!(
        read("[a]\nlog = true\ntimeout_seconds = 0x1E\n").get("a").expect("a").timeout,
        Some(Duration::from_secs(30))
    );
    assert_refused(
        "[a]\nlog = true\nretry_base_ms = 1\nretry_cap_ms = 604800001\n",
        "h.toml:4:16: a: `retry_cap_ms` must be a whole number from 1 to 604800000",
    );
}

#[test]
fn a_retry_policy_is_given_whole_and_the_right_way_round() {
    assert_refused(
        "[a]\nlog = true\nretry_base_ms = 1\n",
        "h.toml:3:1: a: `retry_base_ms` needs `retry_cap_ms` beside it",
    );
    assert_refused(
        "[a]\nlog = true\nretry_cap_ms = 1\n",
        "h.toml:3:1: a: `retry_cap_ms` needs `retry_base_ms` beside it",
    );
    assert_refused(
        "[a]\nlog = true\nretry_cap_ms = 1\nretry_base_ms = 2\n",
        "h.toml:3:1: a: `retry_cap_ms` must not be below `retry_base_ms`, the first delay",
    );
}

#[test]
fn a_command_that_cannot_be_run_is_refused() {
    let line = |rest: &str| format!("[a]\ncommand = {rest}\n");

    assert_refused(&line("[]"), "h.toml:2:11: a: `command` must name a program");
    assert_refused(
        &line("\"/bin/true\""),
        "h.toml:2:11: a: `command` must be an array of texts, such as [\"/bin/program\", \"--option\"]",
    );
    assert_refused(&line("[\"true\", 3]"), "h.toml:2:20: a: `command` holds texts in quotes");
    let absolute = "the program must be an absolute path, or a name to be found in PATH";
    assert_refused(&line("[\"./run.sh\"]"), &format!("h.toml:2:12: a: {absolute}"));
    assert_refused(&line("[\"\"]"), &format!("h.toml:2:12: a: {absolute}"));
    assert_refused(&line(r#"["true", "a\u0000b"]"#), "h.toml:2:20: a: an argument cannot hold a NUL character");
    assert_refused(&line("[\"true\"]\ndirectory = \"mail\""), "h.toml:3:13: a: `directory` must be an absolute path");
    assert_refused(
        &line("[\"true\"]\npermanent_exit_codes = [0]"),
        "h.toml:3:25: a: `permanent_exit_codes` holds whole numbers from 1 to 255",
    );
    assert_refused(
        &line("[\"true\"]\npermanent_exit_codes = [1, 75]"),
        "h.toml:3:28: a: exit code 75 always asks for another attempt",
    );
    assert_refused(
        &line("[\"true\"]\nenv = { TRILANE_TOKEN = \"1\" }"),
        "h.toml:3:9: a: `TRILANE_TOKEN` is set by Trilane itself",
    );
    assert_refused(
        &line("[\"true\"]\nenv = { \"A=B\" = \"1\" }"),
        "h.toml:3:9: a: `A=B` cannot be a variable of that value",
    );
    assert_refused(&line("[\"true\"]\nenv = { A = 1 }"), "h.toml:3:13: a: `env` holds texts in quotes");
    assert_refused(
        &line("[\"true\"]\nenv = [\"A=1\"]"),
        "h.toml:3:7: a: `env` must be a table of texts, such as { Name = \"value\" }",
    );
}

#[test]
fn a_call_that_cannot_be_made_is_refused_without_a_secret() {
    let line = |rest: &str| format!("[a]\nhttp = {rest}\n");

    assert_refused(&line("true"), "h.toml:2:8: a: `http` must be a text in quotes");
    assert_refused(&line("\"example.com/hook\""), "h.toml:2:8: a: expected a URL as https://host/path, and it is none");
    assert_refused(
        &line("\"env:BAD_URL\""),
        "h.toml:2:8: a: expected a URL as https://host/path, with its scheme in front",
    );
    assert_eq!(
        problems(&line(
            "\"http://localhost/\"\nheaders = { A = \"env:BROKEN\", Trilane-Token = \"1\", \"B C\" = \"x\" }"
        )),
        [
            "h.toml:3:13: a: header `A`: holds a character that no header can",
            "h.toml:3:31: a: header `Trilane-Token`: is set by Trilane itself",
            "h.toml:3:52: a: header `B C`: not a name that a header can have",
        ]
    );
    assert_refused(
        &line("\"https://localhost/\"\nca_file = \"/no/such/file.pem\""),
        "h.toml:3:11: a: /no/such/file.pem: No such file or directory (os error 2)",
    );
}

#[test]
fn a_variable_that_is_missing_or_empty_is_refused() {
    for name in ["NOT_SET", "EMPTY"] {
        let expected = format!("the environment variable `{name}` must be set, and not be empty");
        assert_refused(
            &format!("[a]\nhttp = \"http://localhost/\"\nheaders = {{ Authorization = \"env:{name}\" }}\n"),
            &format!("h.toml:3:29: a: {expected}"),
        );
        assert_refused(&format!("[a]\nhttp = \"env:{name}\"\n"), &format!("h.toml:2:8: a: {expected}"));
        assert_refused(
            &format!("[a]\ncommand = [\"true\"]\nenv = {{ KEY = \"env:{name}\" }}\n"),
            &format!("h.toml:3:15: a: {expected}"),
        );
    }
}

#[test]
fn what_is_not_toml_is_refused_with_its_place() {
    let found = problems("[a]\nlog = true\nhttp = \"http://\n");
    assert!(found[0].starts_with("h.toml:3:"), "{found:?}");

    let found = problems("[a]\nlog = true\nlog = true\n");
    assert!(found[0].starts_with("h.toml:3:1: duplicate key"), "{found:?}");

    let found = problems("[a]\nlog = true\n[a]\nlog = true\n");
    assert!(found[0].starts_with("h.toml:3:"), "{found:?}");
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_file() {
    let found = problems("[b]\nlog = false\n\n[a]\ncommand = [\"é\"]\ntimeout_seconds = 0\nhttps = 1\n[\"c d\"]\n");

    assert_eq!(
        found,
        [
            "h.toml:2:7: b: `log` can only be true",
            "h.toml:6:19: a: `timeout_seconds` must be a whole number from 1 to 86400",
            "h.toml:7:1: a: unknown key `https`; did you mean `http`?",
            "h.toml:8:2: `c d` cannot be a job type: 1 to 100 of A-Z a-z 0-9 . _ : -, or \"*\"",
        ]
    );
    let error = HandlersFileError::Invalid(vec![
        Problem { file: "h.toml".into(), line: 1, column: 2, message: "one".into() },
        Problem { file: "h.toml".into(), line: 3, column: 4, message: "two".into() },
    ]);
    assert_eq!(error.to_string(), "h.toml:1:2: one\nh.toml:3:4: two");
}

#[test]
fn a_column_counts_characters_and_not_bytes() {
    assert_refused("[a]\ncommand = [\"é🦀\", 3]\n", "h.toml:2:18: a: `command` holds texts in quotes");
}

#[test]
fn a_file_is_loaded_by_its_path() {
    let scratch = Scratch::new();
    let path = scratch.file("handlers.toml");

    std::fs::write(&path, "[a]\nlog = true\n").expect("a file");
    assert!(load(&path).expect("a good file").get("a").is_some());

    std::fs::write(&path, "[a]\nlog = 1\n").expect("a file");
    let error = load(&path).expect_err("a bad file").to_string();
    assert_eq!(error, format!("{}:2:7: a: `log` can only be true", path.display()));
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let scratch = Scratch::new();
    let refused = |name: &str| load(&scratch.file(name)).expect_err(name).to_string();
    std::fs::write(scratch.file("latin1"), b"[a]\n# \xe9\nlog = true\n").expect("a file");
    std::fs::write(scratch.file("huge"), "# filling\n".repeat(110_000)).expect("a file");

    assert!(refused("missing").ends_with("missing: No such file or directory (os error 2)"));
    assert!(refused("latin1").contains("valid UTF-8"));
    assert!(refused("huge").ends_with("huge: larger than 1048576 bytes"));
}
