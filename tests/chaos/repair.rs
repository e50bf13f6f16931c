//! A replica is killed while it repairs what another one, or Redis, has lost: the next one repairs it, once.

use serde_json::Value;
use trilane::store::Dialect;

use super::checker::judge::Run;
use super::client::{Client, Got};
use super::ledger::Ledger;
use super::redis_server::TestServer;
use super::scene::{RECOVERED, Scene};
use super::site::Site;
use super::storm::flush;
use super::trilane::wait_until;

const JOBS: usize = 50;

/// Every case, with its name.
pub(crate) fn cases() -> Vec<(String, Box<dyn FnOnce() + Send>)> {
    let mut cases: Vec<(String, Box<dyn FnOnce() + Send>)> = Vec::new();
    for dialect in super::scene::dialects() {
        let on = dialect.as_str().to_lowercase();
        let name = format!("repair::killed_at_expire_in_transaction_on_{on}_counts_the_lost_attempts_once");
        cases.push((name, Box::new(move || killed_as_leases_are_ended(dialect))));
        if dialect != Dialect::Sqlite {
            let name = format!("repair::killed_at_epoch_begun_on_{on}_leaves_no_job_undispatched");
            cases.push((name, Box::new(move || killed_as_redis_is_filled_again(dialect))));
        }
    }
    cases
}

fn killed_as_leases_are_ended(dialect: Dialect) {
    let scene = Scene::on(dialect);
    let mut first = scene.start();
    scene.ledger.close_gates();
    let mut client = Client::new(&scene.ledger, 1);
    client.submit(first.address(), &[scene.ledger.job("held"), scene.ledger.job("held")]);
    wait_until(RECOVERED, "both run", || scene.site.jobs("Status = 'running'") == 2);
    first.kill();

    let settings = scene.settings().with("FAILPOINTS", "expire.in_transaction=return");
    let killed = settings.with("TRILANE_HTTP_ADDR", "127.0.0.1:0").run(scene.site.folder(), &[]);

    assert_eq!(killed.code, None, "it was killed: {killed:?}");
    assert_eq!(scene.site.jobs("Status = 'running'"), 2, "what it had begun is undone");
    assert_eq!(scene.workers_lost(), 0);
    scene.ledger.let_go();
    let _next = scene.start();
    scene.settle();
    let verdict = scene.check(Run::default());
    assert_eq!((verdict.counts.completed, scene.workers_lost()), (2, 2), "an attempt of each is lost, once");
}

/// It takes jobs and runs none, so all its ids are in the lanes as Redis loses them.
fn killed_as_redis_is_filled_again(dialect: Dialect) {
    let redis = TestServer::start_tcp(&[]);
    let site = Site::new(dialect, Some(redis.url()));
    let scene = Scene { ledger: Ledger::open(site.folder()), site };
    let settings = scene.settings().with("TRILANE_ROLE", "api");
    // The first epoch is that of a new Redis.
    let mut victim = scene.site.start(&settings.with("FAILPOINTS", "epoch.begun=1*off->return"));
    let mut client = Client::new(&scene.ledger, 1);
    let jobs: Vec<Value> = (0..JOBS).map(|_| scene.ledger.job("quick")).collect();
    let submitted = client.submit(victim.address(), &jobs);
    assert!(matches!(submitted, Got::Answer(200, _)));
    let length = || victim.metric("trilane_lane_length{lane=\"medium\"}");
    wait_until(RECOVERED, "all are in the lane", || length() == i64::try_from(JOBS).expect("few"));

    flush(redis.url());
    wait_until(RECOVERED, "it dies as it has begun a new epoch", || victim.exit_code().is_some());

    let dispatched = scene.site.jobs("Status = 'queued' and DispatchedAt is not null");
    assert_eq!(dispatched, i64::try_from(JOBS).expect("few"), "they look dispatched, and no lane has their ids");
    let _next = scene.start();
    scene.settle();
    let verdict = scene.check(Run::default());
    assert_eq!((verdict.counts.completed, verdict.counts.run_twice), (JOBS, 0));
}
