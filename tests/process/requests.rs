//! What clients ask for, over several processes.

use std::slice::from_ref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::site::Site;
use super::trilane::{SOON, text, wait_until};
use super::upstream::Upstream;

#[test]
fn a_call_repeated_with_its_idempotency_key_at_another_process_gets_the_first_answer() {
    let site = Site::postgres_and_redis();
    let processes = [site.start(&site.settings()), site.start(&site.settings())];
    let body = json!([{ "type": "send_email", "payload": {"n": 1} }, { "type": "Notification" }]);
    let ids = |body: &Value| -> Vec<String> {
        body["success"].as_array().expect("an array").iter().map(|job| text(&job["id"]).to_owned()).collect()
    };
    let call = |number: usize, body: &Value| {
        processes[number % 2].post_with("/enqueue", body, &[("Idempotency-Key", "order-7")]).expect("an answer")
    };

    let answers: Vec<_> = thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn({
                    let (call, body) = (&call, &body);
                    move || call(number, body)
                })
            })
            .collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect()
    });

    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert!(answers.iter().all(|answer| ids(&answer.body) == ids(&answers[0].body)), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| !answer.is_replayed).count(), 1);
    assert_eq!(site.jobs("1 = 1"), 2);
    let other_body = call(1, &json!([{ "type": "ReportGeneration" }]));
    assert_eq!(other_body.status, 422, "{}", other_body.body);
    site.wait_for_jobs(SOON, 2, "Status = 'completed'");
}

#[test]
fn a_unique_key_is_refused_at_every_process_until_its_job_has_ended() {
    let site = Site::postgres_and_redis();
    let settings = site.settings().with("TRILANE_HANDLERS", site.gate_handlers("gate"));
    let (one, other) = (site.start(&settings), site.start(&settings));
    let job = json!({ "type": "gate", "unique_key": "report of May" });
    let id = one.enqueue_one(job.clone());

    let refused = other.post("/enqueue", &job);

    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(refused.body["failed"][0]["existing_id"], json!(id));
    site.open_gate("gate");
    one.wait_for_status(from_ref(&id), "completed");
    let again = other.enqueue_one(job);
    assert_ne!(again, id);
    other.wait_for_status(&[again], "completed");
}

#[test]
fn cancelling_a_running_job_ends_its_command_on_another_process() {
    let site = Site::postgres_and_redis();
    // A worker asks after its jobs three times a lease.
    let settings = site.settings().with("TRILANE_LEASE_SECONDS", 3).with("TRILANE_DB_WAIT_SECONDS", 1);
    let settings = settings.with("TRILANE_HANDLERS", site.gate_handlers("gate"));
    let api = site.start(&settings.clone().with("TRILANE_ROLE", "api"));
    let worker = site.start(&settings.with("TRILANE_ROLE", "worker"));
    let id = api.enqueue_one(json!({ "type": "gate", "unique_key": "one at a time" }));
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);

    let answer = api.post(&format!("/jobs/{id}/cancel"), &json!(null));

    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("cancelled")), "{}", answer.body);
    wait_until(SOON, "the command is ended", || site.commands_at_gate("gate") == 0);
    wait_until(SOON, "the worker is free", || worker.metric("trilane_jobs_running") == 0);
    let job = api.job(&id);
    assert_eq!((&job["status"], &job["attempts"], &job["retry_count"]), (&json!("cancelled"), &json!([]), &json!(0)));
    assert_eq!(site.number("select count(*) from JobKeys"), 0, "its unique key is free");
    wait_until(SOON, "its lease is gone", || site.number("select count(*) from Leases") == 0);
}

#[test]
fn a_dead_letter_that_is_retried_runs_again() {
    for site in [Site::postgres_and_redis(), Site::sqlite()] {
        let is_mended = Arc::new(AtomicBool::new(false));
        let is_mended_now = Arc::clone(&is_mended);
        let upstream = Upstream::start(move |_| {
            if is_mended_now.load(Ordering::SeqCst) {
                (200, None)
            } else {
                (400, None)
            }
        });
        let handlers = site.file("handlers.toml", &format!("[strict]\nhttp = {:?}\n", upstream.url("/strict")));
        let process = site.start(&site.settings().with("TRILANE_HANDLERS", handlers));
        let id = process.enqueue_one(json!({ "type": "strict", "payload": "kept" }));
        process.wait_for_status(from_ref(&id), "failed");
        let letters = process.get("/failed-jobs").body;
        assert_eq!((&letters[0]["original_job_id"], &letters[1]), (&json!(id), &json!(null)), "{letters}");

        is_mended.store(true, Ordering::SeqCst);
        let answer = process.post(&format!("/failed-jobs/{}/retry", text(&letters[0]["id"])), &json!(null));

        assert_eq!(answer.status, 200, "{}", answer.body);
        let job = process.wait_for_status(&[id], "completed").remove(0);
        assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1), "the first attempt stays readable: {job}");
        assert_eq!(process.get("/failed-jobs").body, json!([]));
    }
}
