use std::io;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::fake::{Fake, Told, ask};
use super::super::message::Body;
use super::super::{Api, PROBLEM_JSON};
use super::*;
use crate::job::Lane;

fn post(api: &Api, body: &str) -> Told {
    post_with(api, &[], body.as_bytes())
}

fn post_with(api: &Api, headers: &[(&str, &str)], body: &[u8]) -> Told {
    ask(api, "POST", "/enqueue", headers, body)
}

/// What is told of the body of a job API call that nothing was stored of.
fn refused(body: &str) -> Told {
    let fake = Arc::new(Fake::default());
    let told = post(&fake.api(), body);
    assert!(fake.state().submissions.is_empty());
    assert_eq!(told.header("Content-Type"), Some(PROBLEM_JSON));
    told
}

#[test]
fn an_array_of_jobs_is_stored_and_told_in_the_original_shape() {
    let fake = Arc::new(Fake::default());
    let body =
        r#"[{"type":"send_email","payload":"{\"to\":\"a@b\"}","priority":"High"},{"type":"report","max_retries":0}]"#;

    let told = post(&fake.api(), body);

    assert_eq!((told.status, told.header("Content-Type")), (200, Some("application/json")));
    let success = &told.json()["success"];
    assert_eq!(success[0]["type"], "send_email");
    assert_eq!(success[0]["payload"], "{\"to\":\"a@b\"}");
    assert_eq!((&success[0]["priority"], &success[1]["max_retries"]), (&json!("high"), &json!(0)));
    assert_eq!(told.json()["failed"], json!([]));
    assert_eq!(fake.state().submissions[0].jobs[0].lane, Lane::High);
}

#[test]
fn one_job_alone_is_stored_too() {
    let told = post(&Arc::new(Fake::default()).api(), "\u{feff} {\"type\":\"t\"}\r\n");

    assert_eq!((told.status, told.json()["success"].as_array().map(Vec::len)), (200, Some(1)));
}

#[test]
fn good_jobs_are_stored_and_bad_ones_named_by_their_place() {
    let fake = Arc::new(Fake::default());

    let told = post(&fake.api(), r#"[{"type":"a b"},{"type":"good"},7,[],{"type":"t","max_retries":-1}]"#);

    assert_eq!(told.status, 200);
    assert_eq!(told.json()["success"][0]["type"], "good");
    let failed = told.json()["failed"].clone();
    assert_eq!((&failed[0]["index"], &failed[0]["type"]), (&json!(0), &json!("a b")));
    assert_eq!(
        failed[1],
        json!({"index": 2, "type": null, "error": "a job must be a JSON object with at least \"type\", got a number"})
    );
    assert_eq!(failed[2]["error"], "a job must be a JSON object with at least \"type\", got an array");
    assert_eq!(failed[3]["error"], "max_retries must be a whole number from 0 to 100, got -1");
    assert_eq!(fake.state().jobs.len(), 1);
}

#[test]
fn a_job_whose_unique_key_is_taken_is_named_with_the_job_that_has_it() {
    let fake = Arc::new(Fake::default());
    let api = fake.api();
    let first = post(&api, r#"{"type":"t","unique_key":"k"}"#).json()["success"][0]["id"].clone();

    let some = post(&api, r#"[{"type":"bad type"},{"type":"u","unique_key":"k"},{"type":"v"}]"#);
    let none = post(&api, r#"[{"type":"u","unique_key":"k"}]"#);
    let mixed = post(&api, r#"[{"type":"bad type"},{"type":"u","unique_key":"k"}]"#);

    let failed = some.json()["failed"].clone();
    assert_eq!((some.status, failed[0]["index"].clone(), failed[1]["index"].clone()), (200, json!(0), json!(1)));
    assert_eq!((&failed[1]["existing_id"], &failed[1]["type"]), (&first, &json!("u")));
    assert_eq!(failed[0].get("existing_id"), None);
    assert_eq!((none.status, &none.json()["failed"][0]["existing_id"]), (409, &first));
    assert_eq!(mixed.status, 422);
}

#[test]
fn when_no_job_is_valid_the_answer_is_422_and_names_each() {
    let told = refused(r#"[{"type":""},{}]"#);

    assert_eq!(told.status, 422);
    let json = told.json();
    assert_eq!((&json["type"], &json["status"]), (&json!("urn:trilane:problem:no-valid-job"), &json!(422)));
    assert_eq!((&json["success"], &json["failed"][1]["error"]), (&json!([]), &json!("type is missing")));
}

#[test]
fn malformed_json_is_told_with_line_and_column() {
    let told = refused("[{\"type\":\"t\"},\n {\"type\":}]");
    let json = told.json();

    assert_eq!((told.status, &json["line"], &json["column"]), (400, &json!(2), &json!(10)));
    for body in ["", "[", "{\"type\":\"t\"} x", "[{\"type\":\"t\"},]", "{'type':'t'}"] {
        assert_eq!(refused(body).status, 400, "{body}");
    }
}

#[test]
fn a_body_that_is_not_utf_8_is_told_with_line_and_column() {
    let told = post_with(&Arc::new(Fake::default()).api(), &[], b"[\n {\"type\":\"\xff\"}]");

    assert_eq!((told.status, &told.json()["line"], &told.json()["column"]), (400, &json!(2), &json!(11)));
}

#[test]
fn a_body_that_is_no_job_and_no_array_is_422() {
    for body in ["[]", "\"x\"", "17", "null"] {
        assert_eq!(refused(body).status, 422, "{body}");
    }
}

#[test]
fn too_many_jobs_or_bytes_are_413() {
    let jobs = |count: usize| Value::from(vec![json!({"type": "t"}); count]).to_string();

    assert_eq!(post(&Arc::new(Fake::default()).api(), &jobs(10)).status, 200);
    assert!(refused(&jobs(11)).text.contains("has 11 jobs, at most 10"));
    let large = refused(&format!("[{}]", " ".repeat(4_000)));
    assert_eq!(large.status, 413);
    assert!(large.text.contains("4000 bytes"));
}

/// A body that must not be read, or that never ends, or that fails.
struct Strange(io::Result<u8>);

impl io::Read for Strange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Ok(byte) => {
                buffer.fill(*byte);
                Ok(buffer.len())
            }
            Err(error) => Err(error.kind().into()),
        }
    }
}

fn post_strange(body: io::Result<u8>, body_length: Option<u64>) -> u16 {
    let headers = Headers::default();
    let mut body = Strange(body);
    let request = Request { method: "POST", target: "/enqueue", headers: &headers, body_length, body: &mut body };
    let answer = Arc::new(Fake::default()).api().answer(request);
    assert!(matches!(answer.body, Body::Whole(_)));
    answer.status
}

#[test]
fn a_body_is_read_within_its_bounds_whatever_the_client_says() {
    // Declared too large: not read at all, so an error of the reader is not seen.
    assert_eq!(post_strange(Err(io::ErrorKind::BrokenPipe.into()), Some(4_001)), 413);
    // Endless, with no length given.
    assert_eq!(post_strange(Ok(b' '), None), 413);
    assert_eq!(post_strange(Err(io::ErrorKind::WouldBlock.into()), Some(10)), 408);
    assert_eq!(post_strange(Err(io::ErrorKind::ConnectionReset.into()), None), 400);
}

#[test]
fn a_body_shorter_than_it_said_is_400() {
    let headers = Headers::default();
    let mut body: &[u8] = b"{\"type\":\"t\"}";
    let body_length = Some(100);

    let request = Request { method: "POST", target: "/enqueue", headers: &headers, body_length, body: &mut body };

    assert_eq!(Arc::new(Fake::default()).api().answer(request).status, 400);
}

#[test]
fn a_repeat_with_the_same_idempotency_key_gets_the_first_answer() {
    let fake = Arc::new(Fake::default());
    let api = fake.api();
    let key = [("Idempotency-Key", "order-7")];
    let body = br#"[{"type":"t"},{"type":"bad type"}]"#;

    let first = post_with(&api, &key, body);
    let again = post_with(&api, &key, body);
    let other = post_with(&api, &key, br#"{"type":"t"}"#);

    assert_eq!((first.status, again.status), (200, 200));
    assert_eq!(first.text, again.text);
    assert_eq!((first.header("Idempotency-Replayed"), again.header("Idempotency-Replayed")), (None, Some("true")));
    assert_eq!(other.status, 422);
    assert_eq!(other.json()["type"], "urn:trilane:problem:idempotency-mismatch");
    assert_eq!(fake.state().jobs.len(), 1);
}

#[test]
fn an_idempotency_key_is_given_once_and_visible() {
    let api = Arc::new(Fake::default()).api();
    let status = |headers: &[(&str, &str)]| post_with(&api, headers, br#"{"type":"t"}"#).status;

    assert_eq!(status(&[("idempotency-key", &"k".repeat(200))]), 200);
    for wrong in ["", "a b", "é", &"k".repeat(201)] {
        assert_eq!(status(&[("Idempotency-Key", wrong)]), 400, "{wrong:?}");
    }
    assert_eq!(status(&[("Idempotency-Key", "a"), ("Idempotency-Key", "b")]), 400);
}

#[test]
fn what_the_submitter_refuses_is_told_with_when_to_come_back() {
    let fake = Arc::new(Fake::default());
    let api = fake.api();
    let told = |error: SubmitError| {
        fake.state().submit_error = Some(error);
        let told = post(&api, r#"{"type":"t"}"#);
        (told.status, told.header("Retry-After").is_some(), told.text)
    };

    assert!(matches!(told(SubmitError::Overloaded), (429, true, _)));
    assert!(matches!(told(SubmitError::Unavailable), (503, true, _)));
    assert!(matches!(told(SubmitError::TimedOut), (503, true, _)));
    assert!(matches!(told(SubmitError::Stopping), (503, true, _)));
    let (status, _, text) = told(SubmitError::Rejected("column SECRET".into()));
    assert_eq!(status, 500);
    assert!(!text.contains("SECRET"));
}

#[test]
fn an_answer_of_the_wrong_length_is_not_passed_on() {
    let submitted = SubmitResult { results: Vec::new(), replayed: true };

    let problem = outcome(submitted, &[0], &["t".into()], Vec::new()).err().expect("refused");

    assert_eq!(Answer::from(problem).status, 500);
}

/// Any JSON value.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..4)
                .prop_map(|pairs| Value::from(pairs.into_iter().collect::<serde_json::Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn any_payload_is_stored_as_the_value_that_was_sent(payload in json_value(), spaces in "[ \n\t]{0,3}") {
        let fake = Arc::new(Fake::default());

        let told = post(&fake.api(), &format!("{spaces}[{{\"type\":{spaces}\"t\", \"payload\":{payload}}}]{spaces}"));

        let stored = fake.state().submissions[0].jobs[0].payload.clone();
        let sent = match &payload {
            Value::String(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => text.clone(),
            value => value.to_string(),
        };
        prop_assert_eq!((told.status, stored), (200, sent));
    }

    #[test]
    fn a_body_that_is_cut_short_is_refused_with_the_place_of_the_cut(lines in 0usize..5, cut in 0usize..39) {
        let body = format!("{}[{{\"type\":\"é🦀\",\"payload\":{{\"a\":[1,2]}}}}]", "\n".repeat(lines));
        let end = lines + cut;
        prop_assume!(body.is_char_boundary(end) && end < body.len());

        let told = refused(&body[..end]);

        // Columns count bytes, and what is cut is missed behind the last of them.
        let place = if cut == 0 { (lines, 0) } else { (lines + 1, cut) };
        let place = if end == 0 { (1, 0) } else { (place.0 + usize::from(cut == 0), place.1) };
        prop_assert_eq!(told.status, 400);
        prop_assert_eq!((&told.json()["line"], &told.json()["column"]), (&json!(place.0), &json!(place.1)));
    }

    #[test]
    fn any_body_gets_an_answer(body in proptest::collection::vec(any::<u8>(), 0..60)) {
        let told = post_with(&Arc::new(Fake::default()).api(), &[], &body);

        prop_assert!([200, 400, 413, 422].contains(&told.status));
    }

    #[test]
    fn jobs_of_any_fields_are_stored_or_named(
        jobs in proptest::collection::vec(proptest::collection::vec(("type|payload|priority|max_retries|run_at|delay_ms|timeout_ms|unique_key|x", json_value()), 0..4), 1..5),
    ) {
        let objects = jobs.iter().map(|fields| Value::from(fields.iter().cloned().collect::<serde_json::Map<_, _>>()));
        let body = Value::from(objects.collect::<Vec<_>>()).to_string();

        let told = post(&Arc::new(Fake::default()).api(), &body);

        let count = |name: &str| told.json()[name].as_array().map_or(0, Vec::len);
        prop_assert_eq!(count("success") + count("failed"), jobs.len());
        prop_assert!([200, 422].contains(&told.status));
    }
}
