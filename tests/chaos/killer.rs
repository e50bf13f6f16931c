//! A job that kills its worker every time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use trilane::store::Dialect;

use super::checker::judge::Run;
use super::client::{Client, Got};
use super::fleet::Fleet;
use super::scene::{RECOVERED, Scene};
use super::trilane::wait_until;

pub(crate) fn on_postgres() {
    ends_as_a_dead_letter(Dialect::Postgres, 2);
}

pub(crate) fn on_sqlite() {
    ends_as_a_dead_letter(Dialect::Sqlite, 1);
}

fn ends_as_a_dead_letter(dialect: Dialect, replicas: usize) {
    let scene = Scene::on(dialect);
    let fleet = Fleet::start(replicas, &scene.settings(), scene.site.folder().to_owned());
    let mut client = Client::new(&scene.ledger, 1);
    let lane = |mut job: serde_json::Value| {
        job["priority"] = json!("high");
        job
    };
    let mut killer = lane(scene.ledger.job("killer"));
    killer["max_retries"] = json!(1);
    let Got::Answer(200, _) = client.submit(fleet.address(0), &[killer]) else { panic!("it is taken") };

    // Others of its lane, all the time; each is waited for.
    let (mut others, mut while_it_lived) = (0, 0);
    let is_over = || scene.site.jobs("Type = 'killer' and Status = 'failed'") == 1;
    wait_until(RECOVERED, "the job that kills has become a dead letter", || {
        fleet.mind();
        let address = fleet.address(others % replicas).to_owned();
        if matches!(client.submit(&address, &[lane(scene.ledger.job("quick"))]), Got::Answer(200, _)) {
            others += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
        while_it_lived = scene.site.jobs("Type = 'quick' and Status = 'completed'");
        is_over()
    });

    assert!(while_it_lived > 10, "its lane went on: {while_it_lived} of {others}");
    assert_eq!(fleet.deaths.load(Ordering::Relaxed), 2, "it had two attempts");
    let reason = "gave up after attempt 2: worker lost%";
    assert_eq!(scene.site.number(&format!("select count(*) from FailedJobs where Reason like '{reason}'")), 1);
    scene.settle();
    assert_eq!(fleet.stop(), Vec::<String>::new());
    let verdict = scene.check(Run::default());
    assert_eq!(verdict.counts.failed, 1, "the others have retries left");
}
