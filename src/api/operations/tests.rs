use std::sync::Arc;

use serde_json::{Value, json};

use super::super::fake::{Fake, Told, ask, attempt};
use super::super::{Api, StoreState, routes};
use super::*;
use crate::job::Lane;
use crate::store::Released;

fn get(api: &Api, target: &str) -> Told {
    ask(api, "GET", target, &[], b"")
}

fn post(api: &Api, target: &str) -> Told {
    ask(api, "POST", target, &[], b"")
}

/// A backend with one job, and its id.
fn with_job() -> (Arc<Fake>, Job) {
    let fake = Arc::new(Fake::default());
    fake.fill(1, "t", "{}");
    let job = fake.state().jobs[0].clone();
    (fake, job)
}

#[test]
fn a_job_is_told_with_its_failed_attempts() {
    let (fake, job) = with_job();
    fake.state().attempts.push(attempt());

    let told = get(&fake.api(), &format!("/jobs/{}", job.id));

    assert_eq!(told.status, 200);
    let json = told.json();
    assert_eq!((&json["id"], &json["type"]), (&json!(job.id), &json!("t")));
    assert_eq!((&json["attempts"][0]["attempt"], &json["attempts"][0]["token"]), (&json!(1), &json!(7)));
}

#[test]
fn an_unknown_job_is_404() {
    let api = Arc::new(Fake::default()).api();
    let id = Uuid::now_v7();

    for told in [get(&api, &format!("/jobs/{id}")), post(&api, &format!("/jobs/{id}/cancel"))] {
        assert_eq!(told.status, 404);
        assert!(told.text.contains(&id.to_string()));
    }
    assert_eq!(get(&api, "/jobs/7").status, 404);
}

#[test]
fn a_job_is_cancelled_unless_it_is_done() {
    let (fake, job) = with_job();
    let api = fake.api();
    let cancel = |cancelled: Cancelled| {
        fake.state().cancelled = Some(cancelled);
        post(&api, &format!("/jobs/{}/cancel", job.id))
    };

    assert_eq!(cancel(Cancelled::Done(job.clone())).json()["id"], json!(job.id));
    let ended = |status: Status| Cancelled::TooLate(Job { status: status.to_string(), ..job.clone() });
    assert_eq!(cancel(ended(Status::Cancelled)).status, 200);
    let late = cancel(ended(Status::Completed));
    assert_eq!((late.status, &late.json()["job_status"]), (409, &json!("completed")));
}

#[test]
fn a_dead_letter_is_revived_unless_its_key_is_taken() {
    let (fake, job) = with_job();
    let api = fake.api();
    let revive = |revived: Revived| {
        fake.state().revived = Some(revived);
        post(&api, &format!("/failed-jobs/{}/retry", job.id))
    };

    let released = Released { seq: job.seq, lane: Lane::Medium };
    assert_eq!(revive(Revived::Queued(released)).json()["id"], json!(job.id));
    assert_eq!(revive(Revived::NotFound).status, 404);
    assert_eq!(revive(Revived::NotFailed).status, 409);
    let unread = revive(Revived::Queued(Released { seq: Seq(99), ..released }));
    assert_eq!((unread.status, unread.text.as_str()), (200, r#"{"status":"queued"}"#));
    let taken = revive(Revived::KeyTaken(job.id));
    assert_eq!((taken.status, &taken.json()["existing_id"]), (409, &json!(job.id)));
}

#[test]
fn a_wake_reaches_the_scheduler() {
    let fake = Arc::new(Fake::default());

    assert_eq!(post(&fake.api(), "/scheduler/wake").status, 202);
    assert_eq!(fake.woken(), 1);
}

#[test]
fn a_replica_is_ready_unless_a_store_is_away_that_it_needs() {
    let fake = Arc::new(Fake::default());
    let told = |database: Option<&str>, redis: Option<&str>| {
        let state =
            |name, required, problem: Option<&str>| StoreState { name, required, problem: problem.map(str::to_owned) };
        fake.state().stores = vec![state("database", true, database), state("redis", false, redis)];
        get(&fake.api(), "/readyz")
    };

    assert_eq!(told(None, None).status, 200);
    let lame = told(None, Some("refused"));
    assert_eq!((lame.status, &lame.json()["stores"]["redis"]["error"]), (200, &json!("refused")));
    let down = told(Some("refused"), None);
    assert_eq!((down.status, &down.json()["status"]), (503, &json!("unavailable")));
    assert_eq!(down.json()["stores"]["database"]["status"], "unavailable");
}

#[test]
fn probes_are_open_and_everything_else_needs_a_token() {
    let fake = Arc::new(Fake::default());
    fake.state().reads_max = Some(0);
    let api = fake.api_with(|options| options.tokens = vec!["s3cret".into()]);

    assert_eq!(get(&api, "/healthz").text, r#"{"status":"ok"}"#);
    assert_eq!(get(&api, "/readyz").status, 200);
    for (method, target) in
        [("GET", "/metrics"), ("GET", "/getAllJobs"), ("POST", "/enqueue"), ("GET", "/nothing"), ("PUT", "/healthz")]
    {
        assert_eq!(ask(&api, method, target, &[], b"").status, 401, "{method} {target}");
    }
    let metrics = ask(&api, "GET", "/metrics", &[("Authorization", "Bearer s3cret")], b"");
    assert_eq!((metrics.status, metrics.text.as_str()), (200, "trilane_up 1\n"));
    assert!(
        metrics.header("Content-Type").is_some_and(|media_type| media_type.starts_with("text/plain; version=0.0.4"))
    );
}

#[test]
fn a_page_of_another_site_can_do_nothing() {
    let fake = Arc::new(Fake::default());
    let api = fake.api();
    let job = br#"{"type":"t"}"#;
    let status = |target: &str, headers: &[(&str, &str)]| ask(&api, "POST", target, headers, job).status;

    assert_eq!(status("/enqueue", &[("Content-Type", "text/plain")]), 415);
    assert_eq!(status("/scheduler/wake", &[("Content-Type", "application/x-www-form-urlencoded")]), 415);
    assert_eq!(status("/scheduler/wake", &[("Host", "localhost:8080"), ("Origin", "https://evil.example")]), 403);
    assert_eq!(status("/enqueue", &[("Host", "rebound.example:8080")]), 403);
    assert!(fake.state().submissions.is_empty());
    assert_eq!(fake.woken(), 0);
}

#[test]
fn a_replica_of_the_role_worker_serves_probes_and_metrics_alone() {
    let api = Arc::new(Fake::default()).api_with(|options| options.probes_only = true);

    assert_eq!(
        (get(&api, "/healthz").status, get(&api, "/readyz").status, get(&api, "/metrics").status),
        (200, 200, 200)
    );
    assert_eq!((get(&api, "/getAllJobs").status, post(&api, "/enqueue").status), (404, 404));
}

#[test]
fn the_description_is_json_and_names_every_route_with_its_methods() {
    let told = get(&Arc::new(Fake::default()).api(), "/openapi.json");
    let described = told.json();

    assert_eq!(described["openapi"], "3.1.0");
    let paths = described["paths"].as_object().expect("an object");
    let known: Vec<(&str, String)> =
        routes::ROUTES.iter().map(|(path, methods, _)| (*path, methods.replace(", HEAD", "").to_lowercase())).collect();
    assert_eq!(paths.len(), known.len());
    for (path, method) in known {
        assert!(paths[path][&method]["responses"].is_object(), "{method} {path}");
    }
}

#[test]
fn every_reference_in_the_description_leads_somewhere() {
    fn check(value: &Value, whole: &Value) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(reference)) = object.get("$ref") {
                    let pointer = reference.strip_prefix('#').expect("a local reference");
                    assert!(whole.pointer(pointer).is_some(), "{reference}");
                }
                object.values().for_each(|value| check(value, whole));
            }
            Value::Array(array) => array.iter().for_each(|value| check(value, whole)),
            _ => {}
        }
    }
    let whole: Value = serde_json::from_str(OPEN_API).expect("JSON");

    check(&whole, &whole);
}
