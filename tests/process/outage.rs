//! Redis goes away under load, and comes back empty.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::redis_server::TestServer;
use super::site::Site;
use super::trilane::{SOON, Trilane, wait_for, wait_until};
use super::{SetOnDrop, load_the_machine};

const JOBS_PER_CALL: i64 = 20;

#[test]
fn jobs_are_taken_and_run_while_redis_is_killed_and_after_it_is_back_empty() {
    let _machine = load_the_machine();
    let mut redis = TestServer::start_tcp(&[]);
    let site = Site::with_redis(redis.url());
    let replicas = [site.start(&site.settings()), site.start(&site.settings())];
    let (submitted, is_over) = (AtomicI64::new(0), AtomicBool::new(false));
    let wait_for_more = |count: i64| {
        let wanted = submitted.load(Ordering::SeqCst) + count;
        wait_until(SOON, "submitting goes on", || submitted.load(Ordering::SeqCst) >= wanted);
        submitted.load(Ordering::SeqCst)
    };
    let wait_for_completed = |count: i64| {
        wait_until(Duration::from_secs(40), &format!("{count} jobs are completed"), || {
            site.jobs("Status = 'completed'") >= count
        });
    };

    thread::scope(|scope| {
        scope.spawn(|| {
            for replica in replicas.iter().cycle().take_while(|_| !is_over.load(Ordering::SeqCst)) {
                let job = json!({ "type": "send_email", "priority": "low" });
                replica.enqueue(&vec![job; usize::try_from(JOBS_PER_CALL).expect("few")]);
                submitted.fetch_add(JOBS_PER_CALL, Ordering::SeqCst);
            }
        });
        let _over = SetOnDrop(&is_over);
        wait_for_more(500);

        redis.kill();
        wait_until(SOON, "both notice", || replicas.iter().all(|replica| away(replica) == 1));
        let while_away = wait_for_more(500);
        wait_for_completed(while_away);
        assert!(replicas.iter().all(|replica| away(replica) == 1), "all of that without Redis");
        assert_eq!(replicas[0].get("/readyz").status, 200, "Redis is not needed to serve");

        redis.restart();
        wait_until(SOON, "both find it", || replicas.iter().all(|replica| away(replica) == 0));
        wait_for_more(500);
    });

    let count = submitted.load(Ordering::SeqCst);
    wait_for_completed(count);
    let in_lanes = redis::cmd("DBSIZE")
        .query::<i64>(&mut redis::Client::open(redis.url()).expect("a URL").get_connection().expect("it answers"));
    assert_eq!(in_lanes, Ok(1), "only the epoch: the lanes were used again and are empty");
    assert_eq!(site.jobs("1 = 1"), count);
    assert_eq!(site.number("select cast(sum(Completed) as bigint) from JobStats"), count, "each completed once");
    assert_eq!(site.number("select count(*) from JobAttempts"), 0);
}

#[test]
fn an_outage_of_the_database_costs_no_job_and_no_attempt() {
    let site = Site::postgres_and_redis();
    let (proxy, connection_string) = site.proxy();
    let settings = site.settings().with("DB_CONNECTION", connection_string).with("TRILANE_DB_WAIT_SECONDS", 1);
    let process = site.start(&settings.with("TRILANE_HANDLERS", site.gate_handlers("gate")));
    let quick = json!({ "type": "quick" });
    let gate = process.enqueue_one(json!({ "type": "gate", "max_retries": 0 }));
    let done = process.enqueue(&vec![quick.clone(); 20]);
    process.wait_for_status(&done, "completed");
    wait_until(SOON, "the command runs", || site.commands_at_gate("gate") > 0);

    proxy.cut();
    let refused = process.post("/enqueue", &quick);
    let ready = process.get("/readyz");
    let alive = process.get("/healthz");
    site.open_gate("gate");
    wait_until(SOON, "the handler is done", || process.metric("trilane_jobs_running") == 0);
    let stored = site.jobs("Status = 'completed'");
    proxy.mend();

    assert_eq!((refused.status, ready.status, alive.status), (503, 503, 200), "{refused:?} {ready:?}");
    assert_eq!(stored, 20, "the outcome of the job waits in the process");
    wait_until(SOON, "jobs are taken again", || process.post("/enqueue", &quick).status == 200);
    site.wait_for_jobs(SOON, 22, "Status = 'completed'");
    // A request may still meet a connection that broke.
    let path = format!("/jobs/{gate}");
    let job = wait_for(SOON, "it is readable", || Some(process.get(&path)).filter(|answer| answer.status == 200)).body;
    assert_eq!((&job["retry_count"], &job["attempts"]), (&json!(0), &json!([])), "{job}");
    wait_until(SOON, "the end of the outage is told", || process.has_logged("the database is back"));
    assert_eq!(process.log().matches("the database is away").count(), 1, "an outage is one line at its start");
}

fn away(replica: &Trilane) -> i64 {
    replica.metric("trilane_redis_away")
}
