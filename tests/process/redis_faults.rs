//! Redis fails in every way that it can: jobs are taken and run all the same, and each outage is one line at its start and one at its
//! end. That it is killed and comes back empty stands in `outage`.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use serde_json::json;

use super::faults::{outages, pause};
use super::redis_server::TestServer;
use super::site::Site;
use super::trilane::{SOON, Trilane, wait_until};

const WORKERS: i64 = 2;
/// More than the process claims ahead, so that the rest has to come back into the lanes.
const BACKLOG: i64 = 3_000;
/// No call waits longer for a Redis that does not answer: 2 s for a reply, and what a slow machine adds.
const CALL_MAX: Duration = Duration::from_secs(8);

/// A process on a Redis of its own, whose workers can be kept busy.
struct Scene {
    redis: TestServer,
    site: Site,
    process: Trilane,
    submitted: i64,
}

impl Scene {
    fn new(options: &[&str]) -> Scene {
        let redis = TestServer::start_tcp(options);
        let site = Site::with_redis(redis.url());
        let settings = site.settings().with("TRILANE_HANDLERS", site.gate_handlers("gate"));
        let process = site.start(&settings.with("TRILANE_WORKERS", WORKERS));
        let mut scene = Scene { redis, site, process, submitted: 0 };
        scene.submit("quick", 20);
        scene.wait_for_completed();
        scene
    }

    fn submit(&mut self, job_type: &str, count: i64) {
        let begun = Instant::now();
        let job = json!({ "type": job_type, "priority": "low", "max_retries": 0 });
        self.process.enqueue(&vec![job; usize::try_from(count).expect("few")]);
        assert!(begun.elapsed() < CALL_MAX, "the call took {:?}", begun.elapsed());
        self.submitted += count;
    }

    /// Keeps all workers busy, and submits more than they can soon take.
    fn submit_backlog(&mut self) {
        self.site.file("gate", "");
        self.submit("gate", WORKERS);
        self.site.wait_for_jobs(SOON, WORKERS, "Type = 'gate' and Status = 'running'");
        self.submit("quick", BACKLOG);
    }

    fn wait_for_completed(&self) {
        self.site.wait_for_jobs(SOON, self.submitted, "Status = 'completed'");
    }

    fn wait_for_away(&self, is_away: i64) {
        let what = if is_away == 1 {
            "it is noticed"
        } else {
            "it is used again"
        };
        wait_until(SOON, what, || self.process.metric("trilane_redis_away") == is_away);
    }

    /// `fault` begins; jobs run without Redis. It ends; the lanes are filled again and used.
    fn goes_on(
        mut self,
        fault: impl FnOnce(&mut TestServer, &str),
        why: &str,
        mend: impl FnOnce(&mut TestServer, &str),
    ) {
        let prefix = self.site.redis_prefix();
        fault(&mut self.redis, &prefix);
        self.submit("quick", 50);
        self.wait_for_completed();
        self.wait_for_away(1);
        let ready = self.process.get("/readyz");
        self.submit("quick", 50);
        self.wait_for_completed();
        self.submit_backlog();
        assert_eq!(ready.status, 200, "Redis is not needed to serve: {ready:?}");
        assert!(ready.body.to_string().contains(why), "{ready:?}");
        assert_eq!(self.process.metric("trilane_redis_away"), 1);

        mend(&mut self.redis, &prefix);
        self.wait_for_away(0);
        self.site.open_gate("gate");
        self.wait_for_completed();

        self.assert_none_ran_twice();
        assert_eq!(outages(&self.process, "Redis"), (1, 1), "one line at its start, one at its end");
    }

    fn assert_none_ran_twice(&self) {
        assert_eq!(self.process.metric("trilane_jobs_claimed_total"), self.submitted, "none was begun twice");
        assert_eq!(self.process.metric("trilane_jobs_completed_total"), self.submitted);
        assert_eq!(self.site.number("select count(*) from JobAttempts"), 0);
    }
}

/// Asks the server as a person does.
fn ask(redis: &TestServer, command: &[&str]) {
    let mut connection = redis::Client::open(redis.url()).expect("a URL").get_connection().expect("it answers");
    redis::cmd(command[0]).arg(&command[1..]).exec(&mut connection).expect("it does it");
}

fn lane(prefix: &str) -> String {
    format!("{prefix}queue:jobs:low")
}

#[test]
fn a_redis_that_hangs_is_done_without_and_used_again() {
    let hung = Cell::new(Instant::now());
    Scene::new(&[]).goes_on(
        |redis, _| {
            redis.signal("STOP");
            hung.set(Instant::now());
        },
        "did not answer in time",
        |redis, _| {
            // As long as it was told to; the jobs above have run meanwhile.
            std::thread::sleep(pause().saturating_sub(hung.get().elapsed()));
            redis.signal("CONT");
        },
    );
}

#[test]
fn a_full_redis_is_done_without_and_used_again() {
    Scene::new(&["--maxmemory-policy", "noeviction"]).goes_on(
        |redis, _| ask(redis, &["CONFIG", "SET", "maxmemory", "1"]),
        "OOM",
        |redis, _| ask(redis, &["CONFIG", "SET", "maxmemory", "0"]),
    );
}

#[test]
fn a_redis_that_became_a_replica_is_done_without_until_it_is_promoted() {
    Scene::new(&[]).goes_on(
        |redis, _| ask(redis, &["REPLICAOF", "127.0.0.1", "1"]),
        "refused: ", // READONLY, or UNBLOCKED where a pop waited
        |redis, _| ask(redis, &["REPLICAOF", "NO", "ONE"]),
    );
}

#[test]
fn a_redis_whose_password_was_changed_is_done_without_until_it_is_put_right() {
    Scene::new(&[]).goes_on(
        |redis, _| {
            ask(redis, &["CONFIG", "SET", "requirepass", "another"]);
            let url = redis.url().to_owned();
            redis.set_url(url.replace("redis://", "redis://:another@"));
            ask(redis, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        },
        "NOAUTH",
        |redis, _| ask(redis, &["CONFIG", "SET", "requirepass", ""]),
    );
}

#[test]
fn a_lane_that_is_no_list_is_done_without_until_it_is_removed() {
    Scene::new(&[]).goes_on(
        |redis, prefix| ask(redis, &["SET", &lane(prefix), "of another program"]),
        "WRONGTYPE",
        |redis, prefix| ask(redis, &["DEL", &lane(prefix)]),
    );
}

/// Takes up all places but `left` of the server's, one of which is the returned connection's.
fn crowd(redis: &TestServer, left: usize) -> redis::Connection {
    let client = redis::Client::open(redis.url()).expect("a URL");
    let mut occupant = client.get_connection().expect("it answers");
    let places = (left + 1).to_string();
    for command in
        [["CONFIG", "SET", "maxclients", &places].as_slice(), &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]]
    {
        redis::cmd(command[0]).arg(&command[1..]).exec(&mut occupant).expect("it does it");
    }
    occupant
}

fn is_crowded(left: usize) {
    let occupant = RefCell::new(None);
    Scene::new(&[]).goes_on(
        |redis, _| *occupant.borrow_mut() = Some(crowd(redis, left)),
        "max number of clients",
        |_, _| {
            let mut occupant = occupant.borrow_mut().take().expect("it is crowded");
            redis::cmd("CONFIG").arg(&["SET", "maxclients", "100"]).exec(&mut occupant).expect("set");
        },
    );
}

#[test]
fn a_redis_with_no_place_for_a_client_is_done_without_until_there_is_one() {
    is_crowded(0);
}

#[test]
fn a_redis_with_one_place_where_two_are_needed_is_done_without_too() {
    is_crowded(1);
}

#[test]
fn lanes_that_are_flushed_or_evicted_under_load_are_filled_again() {
    let mut scene = Scene::new(&["--maxmemory-policy", "allkeys-lru"]);
    assert!(scene.process.has_logged("Redis may evict the lanes"), "{}", scene.process.log());
    let length = |scene: &Scene| scene.process.metric("trilane_lane_length{lane=\"low\"}");
    scene.submit_backlog();
    let before = length(&scene);
    assert!(before > 0);

    // All keys go, for none of them is needed more than another.
    ask(&scene.redis, &["CONFIG", "SET", "maxmemory", "1"]);
    wait_until(SOON, "the lane is evicted", || {
        // A server evicts before it writes.
        let mut written = redis::cmd("SET");
        written.arg(&["of", "another"]);
        let _ = written
            .exec(&mut redis::Client::open(scene.redis.url()).expect("a URL").get_connection().expect("it answers"));
        length(&scene) == 0
    });
    ask(&scene.redis, &["CONFIG", "SET", "maxmemory", "0"]);
    wait_until(SOON, "the lane is filled again", || length(&scene) == before);
    ask(&scene.redis, &["FLUSHALL"]);
    wait_until(SOON, "the lane is filled again", || length(&scene) == before);
    scene.site.open_gate("gate");
    for _ in 0..5 {
        scene.submit("quick", 200);
        ask(&scene.redis, &["FLUSHALL"]);
    }

    scene.wait_for_completed();
    scene.assert_none_ran_twice();
}
