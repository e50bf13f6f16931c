use serde_json::json;

use super::*;

/// Checks the one job that `text` is.
fn check(text: &str) -> Result<NewJob, String> {
    match read(text, 10).expect("JSON") {
        Node::Job(fields) => fields.check(100).map_err(|refused| refused.error),
        _ => panic!("not a job: {text}"),
    }
}

/// Checks a job of type `t` with one field more.
fn with(field: &str, value: &str) -> Result<NewJob, String> {
    check(&format!("{{\"type\":\"t\",\"{field}\":{value}}}"))
}

fn error(field: &str, value: &str) -> String {
    with(field, value).expect_err("refused")
}

#[test]
fn a_job_needs_no_more_than_its_type() {
    let job = check(r#"{"type":"send_email"}"#).expect("valid");

    let NewJob { job_type, payload, lane, max_retries, start, timeout, unique_key, .. } = job;
    assert_eq!((job_type.as_str(), payload.as_str(), lane, max_retries), ("send_email", "{}", Lane::Medium, 3));
    assert_eq!((start, timeout, unique_key), (Start::Now, None, None));
}

#[test]
fn every_field_is_read() {
    let text = json!({"type": "t", "payload": {"a": 1}, "priority": "HIGH", "max_retries": 0, "delay_ms": 1500,
        "timeout_ms": 86_400_000, "unique_key": "order 7"});

    let job = check(&text.to_string()).expect("valid");

    assert_eq!((job.payload.as_str(), job.lane, job.max_retries), (r#"{"a":1}"#, Lane::High, 0));
    assert_eq!(job.start, Start::After(Duration::from_millis(1_500)));
    assert_eq!((job.timeout, job.unique_key), (Some(TIMEOUT_MAX), Some("order 7".into())));
}

#[test]
fn null_is_as_if_the_field_were_not_given_but_for_the_payload() {
    let text = r#"{"type":"t","payload":null,"priority":null,"max_retries":null,"run_at":null,"delay_ms":null,
        "timeout_ms":null,"unique_key":null}"#;

    let job = check(text).expect("valid");

    assert_eq!((job.payload.as_str(), job.lane, job.max_retries), ("null", Lane::Medium, 3));
    assert_eq!(check(r#"{"type":null}"#), Err("type is missing".into()));
}

#[test]
fn a_payload_is_kept_as_json_text() {
    let kept = |value: &str| with("payload", value).expect("valid").payload;

    assert_eq!(kept(r#""{\"to\":\"a@b\"}""#), r#"{"to":"a@b"}"#);
    assert_eq!(kept(r#""plain \"text\" 🦀""#), r#""plain \"text\" 🦀""#);
    assert_eq!(kept(r#"{ "a" : [1, 2.50, 1e400] }"#), r#"{ "a" : [1, 2.50, 1e400] }"#);
    assert_eq!(kept(r#""42""#), "42");
    assert_eq!(kept(r#""""#), r#""""#);
    assert_eq!(kept("true"), "true");
}

#[test]
fn a_payload_may_have_so_many_bytes() {
    assert!(with("payload", &json!("x".repeat(98)).to_string()).is_ok());
    assert_eq!(error("payload", &json!("x".repeat(99)).to_string()), "payload has 101 bytes, at most 100 are allowed");
    assert_eq!(error("payload", r#""\ud83e""#), "payload holds half of a surrogate pair");
}

#[test]
fn a_type_is_checked() {
    let wrong = "type must be 1 to 100 characters of A-Za-z0-9._:-, got";
    assert_eq!(check("{}"), Err("type is missing".into()));
    assert_eq!(check(r#"{"type":"a b"}"#), Err(format!("{wrong} \"a b\"")));
    assert_eq!(check(r#"{"type":7}"#), Err(format!("{wrong} 7")));
    assert_eq!(check(&json!({"type": "x".repeat(101)}).to_string()), Err(format!("{wrong} \"{}…", "x".repeat(58))));
}

#[test]
fn whole_numbers_keep_to_their_range() {
    assert_eq!(with("max_retries", "100").expect("valid").max_retries, 100);
    for value in ["-1", "101", "1.5", "3.0", "1e1", "\"3\"", "true", "[]", "99999999999999999999999"] {
        let expected = format!("max_retries must be a whole number from 0 to 100, got {value}");
        assert_eq!(error("max_retries", value), expected);
    }
    assert_eq!(with("timeout_ms", "1").expect("valid").timeout, Some(Duration::from_millis(1)));
    for value in ["0", "86400001"] {
        let expected = format!("timeout_ms must be a whole number from 1 to 86400000, got {value}");
        assert_eq!(error("timeout_ms", value), expected);
    }
    assert_eq!(error("delay_ms", "-5"), "delay_ms must be a whole number from 0 to 315360000000, got -5");
}

#[test]
fn a_priority_is_read_in_any_case() {
    assert_eq!(with("priority", "\"Low\"").expect("valid").lane, Lane::Low);
    for value in ["\"urgent\"", "1", "\"\""] {
        let expected = format!("priority must be \"high\", \"medium\" or \"low\", got {value}");
        assert_eq!(error("priority", value), expected);
    }
}

#[test]
fn a_start_is_a_time_or_a_delay() {
    let at = "2026-11-23T14:45:00.250Z".parse().expect("valid");
    assert_eq!(with("run_at", "\"2026-11-23T15:45:00.25+01:00\"").expect("valid").start, Start::At(at));
    assert_eq!(with("delay_ms", "0").expect("valid").start, Start::After(Duration::ZERO));
    for value in ["\"2026-11-23 14:45:00\"", "1795444321", "\"soon\""] {
        assert!(error("run_at", value).contains(&format!("such as \"2026-11-23T14:45:00Z\", got {value}")));
    }
    let both = r#"{"type":"t","run_at":"2026-11-23T14:45:00Z","delay_ms":1}"#;
    assert_eq!(check(both), Err("give run_at or delay_ms, not both".into()));
}

#[test]
fn a_unique_key_is_a_short_clean_string() {
    let kept = |key: &str| with("unique_key", &json!(key).to_string()).map(|job| job.unique_key);

    assert_eq!(kept(&"🦀".repeat(100)), Ok(Some("🦀".repeat(100))));
    for wrong in ["", " a", "a ", "a\u{0}b", "a\nb", &"x".repeat(201), &"🦀".repeat(101)] {
        assert!(kept(wrong).expect_err("refused").starts_with("unique_key must be a string of 1 to 200"), "{wrong:?}");
    }
    assert!(error("unique_key", "7").ends_with("got 7"));
}

#[test]
fn unknown_and_repeated_fields_are_named_and_the_right_ones_suggested() {
    assert_eq!(error("maxRetries", "1"), r#"unknown field "maxRetries", did you mean "max_retries"?"#);
    assert_eq!(error("Payload", "1"), r#"unknown field "Payload", did you mean "payload"?"#);
    assert!(error("queue", "1").starts_with(r#"unknown field "queue", known are type, payload, priority"#));
    assert_eq!(check(r#"{"type":"t","type":"u"}"#), Err("type is given twice".into()));
    assert_eq!(check(r#"{"type":"t","ty\u0070e":"u"}"#), Err("type is given twice".into()));
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let error = check(r#"{"priority":"urgent","max_retries":-1,"queue":"x"}"#).expect_err("refused");

    for part in ["unknown field \"queue\"", "type is missing", "priority must be", "max_retries must be", "; "] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_body_is_read_as_one_job_or_many_or_neither() {
    let what = |text: &str| match read(text, 2).expect("JSON") {
        Node::Job(_) => "a job".to_owned(),
        Node::Many(nodes, count) => format!("{} of {count}", nodes.len()),
        Node::Other(what) => what.to_owned(),
    };

    assert_eq!(what(" {} "), "a job");
    assert_eq!(what("[{},[1],3,4]"), "2 of 4");
    assert_eq!(what("[]"), "0 of 0");
    assert_eq!(what("\"x\""), "a string");
    assert_eq!(
        (what("1"), what("-1.5"), what("null"), what("false")),
        ("a number".into(), "a number".into(), "null".into(), "a boolean".into())
    );
}

#[test]
fn deep_nesting_is_no_danger() {
    let deep = "[".repeat(100_000);
    assert!(read(&format!("{{\"type\":\"t\",\"payload\":{deep}"), 10).is_err());
    let closed = format!("{deep}{}", "]".repeat(100_000));
    assert!(read(&format!("[{{\"type\":\"t\",\"payload\":{closed}}}]"), 10).is_ok());
    assert!(read(&format!("[{closed}]"), 10).is_ok());
}
