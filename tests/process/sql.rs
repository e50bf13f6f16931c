//! Jobs that are inserted by plain SQL while Trilane runs, as the original's seed script does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use super::SetOnDrop;
use super::site::Site;
use super::trilane::{SOON, Settings, text};

const SAMPLES: [(&str, &str, &str); 5] = [
    ("send_email", r#"{"to": "user@example.com", "subject": "Grüße 🦀"}"#, "HIGH"),
    ("export_user_data", r#"{"userId": 42}"#, "MEDIUM"),
    ("process_payment", r#"{"amount": 99.5}"#, "LOW"),
    ("Notification", "{}", "High"),
    ("ReportGeneration", r#"["daily"]"#, "low"),
];

fn insert(site: &Site, job_type: &str, payload: &str, priority: &str) {
    site.execute(&format!(
        "insert into Jobs (Type, Payload, Priority, MaxRetries, RetryCount, Status) \
         values ('{job_type}', '{payload}', '{priority}', 3, 0, 'queued')"
    ));
}

fn are_run(sites: [Site; 2], settings: impl Fn(&Site) -> Settings, wakes: bool) {
    for site in sites {
        let process = site.start(&settings(&site));
        let known = process.enqueue_one(json!({ "type": "send_email" }));
        process.wait_for_status(&[known], "completed");

        for (job_type, payload, priority) in SAMPLES {
            insert(&site, job_type, payload, priority);
        }
        insert(&site, "send_email", "not JSON", "HIGH");
        insert(&site, "send_email", "{}", "urgent");
        if wakes {
            assert_eq!(process.post("/scheduler/wake", &json!(null)).status, 202);
        }

        site.wait_for_jobs(SOON, 6, "Status = 'completed'");
        site.wait_for_jobs(SOON, 2, "Status = 'failed'");
        for (job_type, payload, priority) in SAMPLES {
            let listed = process.get(&format!("/getAllJobs?type={job_type}&status=completed&limit=9")).body;
            let job = listed.as_array().and_then(|jobs| jobs.last()).expect("it is listed");
            assert_eq!((text(&job["payload"]), text(&job["priority"])), (payload, &*priority.to_lowercase()));
        }
        let letters = process.get("/failed-jobs").body;
        let reasons: Vec<&str> =
            letters.as_array().expect("an array").iter().map(|letter| text(&letter["reason"])).collect();
        assert!(reasons.len() == 2 && reasons.iter().any(|reason| reason.contains("urgent")), "{reasons:?}");
        assert!(reasons.iter().any(|reason| reason.contains("JSON")), "{reasons:?}");
    }
}

#[test]
fn jobs_inserted_by_sql_while_the_scheduler_ticks_are_not_taken_for_odd_ones() {
    let site = Site::postgres_and_redis();
    let process = site.start(&site.settings());
    let is_over = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                process.post("/scheduler/wake", &json!(null));
            }
        });
        let _over = SetOnDrop(&is_over);
        for _ in 0..200 {
            insert(&site, "send_email", "{}", "LOW");
        }
        site.wait_for_jobs(SOON, 200, "Status in ('completed', 'failed')");
    });

    assert_eq!(process.get("/failed-jobs").body, json!([]));
}

#[test]
fn jobs_inserted_by_sql_are_run_once_the_scheduler_is_woken() {
    are_run([Site::postgres_and_redis(), Site::sqlite()], Site::settings, true);
}

#[test]
fn a_row_that_can_neither_be_run_nor_buried_holds_up_no_other() {
    let site = Site::postgres_and_redis();
    let process = site.start(&site.settings().with("TRILANE_TICK_SECONDS", 3_600));
    site.execute("alter table FailedJobs add constraint ClientsRule check (Reason = '')");
    site.execute("insert into Jobs (Type, Payload, Priority, Status) values ('x', '{}', 'high', 'waiting')");
    insert(&site, "send_email", "{}", "high");
    insert(&site, "send_email", "{}", "low");

    assert_eq!(process.post("/scheduler/wake", &json!(null)).status, 202);

    site.wait_for_jobs(SOON, 2, "Status = 'completed' and RetryCount = 0");
    assert!(!process.has_logged("goes to FailedJobs"), "it does not");
    site.execute("alter table FailedJobs drop constraint ClientsRule");
    site.wait_for_jobs(SOON, 1, "Status = 'failed'");
}

#[test]
fn jobs_inserted_by_sql_are_run_by_the_tick_alone() {
    are_run([Site::postgres(), Site::sqlite()], |site| site.settings().with("TRILANE_TICK_SECONDS", 1), false);
}
