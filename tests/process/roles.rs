//! A process that only serves the API, and one that only runs jobs.

use serde_json::json;

use super::site::Site;
use super::trilane::{SOON, Trilane, wait_until};

fn api_and_worker(site: &Site) -> (Trilane, Trilane) {
    let role = |role| site.start(&site.settings().with("TRILANE_ROLE", role));
    (role("api"), role("worker"))
}

#[test]
fn a_process_of_the_role_api_takes_jobs_and_runs_none() {
    let site = Site::postgres_and_redis();
    let api = site.start(&site.settings().with("TRILANE_ROLE", "api"));

    let id = api.enqueue_one(json!({ "type": "send_email", "priority": "high" }));
    assert_eq!(api.post("/scheduler/wake", &json!(null)).status, 202);

    wait_until(SOON, "its id is in the lane", || api.metric("trilane_lane_length{lane=\"high\"}") == 1);
    assert_eq!(api.job(&id)["status"], "queued");
    let worker = site.start(&site.settings().with("TRILANE_ROLE", "worker"));
    api.wait_for_status(&[id], "completed");
    assert_eq!(worker.metric("trilane_jobs_completed_total"), 1);
    assert_eq!(api.metric("trilane_jobs_claimed_total"), 0);
}

#[test]
fn a_process_of_the_role_worker_serves_only_the_probes_and_metrics() {
    let site = Site::postgres_and_redis();
    let worker = site.start(&site.settings().with("TRILANE_ROLE", "worker"));

    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(worker.get(path).status, 200, "{path}");
    }
    for path in ["/", "/getAllJobs", "/failed-jobs", "/openapi.json", "/jobs/018f0000-0000-7000-8000-000000000001"] {
        assert_eq!(worker.get(path).status, 404, "{path}");
    }
    for path in ["/enqueue", "/scheduler/wake"] {
        assert_eq!(worker.post(path, &json!([{ "type": "send_email" }])).status, 404, "{path}");
    }
    assert_eq!(site.jobs("1 = 1"), 0);
}

#[test]
fn api_and_worker_without_redis_share_the_database() {
    let site = Site::postgres();
    let (api, worker) = api_and_worker(&site);

    let now = api.enqueue(&vec![json!({ "type": "send_email" }); 100]);
    api.wait_for_status(&now, "completed");
    let later = api.enqueue_one(json!({ "type": "Notification", "delay_ms": 500, "priority": "low" }));
    api.wait_for_status(&[later], "completed");

    assert_eq!(worker.metric("trilane_jobs_completed_total"), 101);
}

#[test]
fn two_processes_without_redis_share_the_work_that_either_stored() {
    let site = Site::postgres();
    let processes = [site.start(&site.settings()), site.start(&site.settings())];

    for process in &processes {
        let ids = process.enqueue(&vec![json!({ "type": "send_email" }); 500]);
        process.wait_for_status(&ids[490..], "completed");
    }

    site.wait_for_jobs(SOON, 1_000, "Status = 'completed'");
    assert_eq!(site.number("select cast(sum(Completed) as bigint) from JobStats"), 1_000, "each completed once");
}
