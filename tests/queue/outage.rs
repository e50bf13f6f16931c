//! Redis away, killed, hanging, full, demoted or crowded: never a long wait, always a reason, and back by itself.

use std::thread;
use std::time::{Duration, Instant};

use trilane::job::{Lane, Seq};
use trilane::queue::Lanes;

use super::server::{TestServer, wait_until};
use super::{NO_WAIT, WAIT, assert_unavailable, connect, every_lane, seqs};

#[test]
fn lanes_are_made_while_redis_is_away_and_work_once_it_is_there() {
    let mut server = TestServer::start(&[]);
    server.kill();
    let lanes = Lanes::redis(server.url(), "").expect("needs no server");

    let start = Instant::now();
    assert_unavailable(&lanes.push(Lane::High, &seqs(1..=1)), "No such file");
    assert_unavailable(&lanes.pop(&every_lane(1), WAIT), "No such file");
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "an absent Redis costs no wait, but it took {:?}",
        start.elapsed()
    );
    server.restart();

    wait_until("Redis is used again", || lanes.ping().is_ok());
    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");
    assert_eq!(lanes.pop(&every_lane(1), WAIT).expect("popped"), Some((Lane::High, seqs(1..=1))));
}

#[test]
fn a_redis_killed_under_a_waiting_pop_is_unavailable_and_comes_back() {
    let mut server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");
    lanes.pop(&every_lane(1), NO_WAIT).expect("popped");

    let (popped, took) = thread::scope(|scope| {
        let pop = scope.spawn(|| (lanes.pop(&every_lane(1), WAIT), Instant::now()));
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        server.kill();
        let (popped, end) = pop.join().expect("no panic");
        (popped, end - start)
    });

    assert_unavailable(&popped, "");
    assert!(took < WAIT / 2, "took {took:?}");
    for _ in 0..20 {
        assert_unavailable(&lanes.push(Lane::High, &seqs(2..=2)), "");
    }
    server.restart();
    wait_until("Redis is used again", || lanes.push(Lane::High, &seqs(3..=3)).is_ok());
    assert_eq!(lanes.pop(&every_lane(1), WAIT).expect("popped"), Some((Lane::High, seqs(3..=3))));
    assert_eq!(lanes.epoch().expect("epoch"), None, "it came back without its data");
}

#[test]
fn a_redis_restarted_between_two_calls_is_not_even_noticed() {
    let mut server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    // Several connections in the pool, each of which will be found closed.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| lanes.push(Lane::Low, &seqs(1..=50_000)).expect("pushed"));
        }
    });
    lanes.pop(&every_lane(1), NO_WAIT).expect("popped");

    server.kill();
    server.restart();

    for _ in 0..5 {
        lanes.ping().expect("a new connection is made");
    }
    assert_eq!(lanes.pop(&every_lane(1), NO_WAIT), Ok(None));
}

#[test]
fn a_redis_that_hangs_costs_a_bounded_time_and_comes_back() {
    let server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    lanes.ping().expect("it answers");

    server.signal("STOP");
    let start = Instant::now();
    // Many commands in one round trip, each of whose replies stays away.
    assert_unavailable(&lanes.push(Lane::High, &seqs(1..=90_000)), "did not answer in time");
    let first = start.elapsed();
    assert_unavailable(&lanes.ping(), "did not answer in time");
    let start = Instant::now();
    for _ in 0..100 {
        assert_unavailable(&lanes.ping(), "did not answer in time");
    }
    let next_hundred = start.elapsed();
    server.signal("CONT");

    // 2 s for what is left to write, 2 s for the reply.
    assert!(first < Duration::from_secs(6), "the first call took {first:?}");
    assert!(next_hundred < Duration::from_secs(1), "known to hang, yet 100 calls took {next_hundred:?}");
    wait_until("Redis is used again", || lanes.ping().is_ok());
}

#[test]
fn a_full_redis_is_unavailable_for_pushes_and_still_gives_what_it_has() {
    let server = TestServer::start(&["--maxmemory-policy", "noeviction"]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    lanes.push(Lane::High, &seqs(1..=2)).expect("pushed");
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).exec(&mut connect(server.url())).expect("set");

    let error = assert_unavailable(&lanes.push(Lane::High, &seqs(3..=3)), "OOM");

    assert!(error.is_transient() && error.to_string().contains("maxmemory"), "{error}");
    assert_eq!(lanes.pop(&every_lane(5), NO_WAIT).expect("popped"), Some((Lane::High, seqs(1..=2))));
}

#[test]
fn a_replica_is_unavailable_until_it_is_promoted() {
    let server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    lanes.ping().expect("it answers");
    redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).exec(&mut connect(server.url())).expect("demoted");

    assert_unavailable(&lanes.push(Lane::High, &seqs(1..=1)), "READONLY");
    assert_unavailable(&lanes.pop(&every_lane(1), NO_WAIT), "READONLY");
    // So the next call finds the new master, if the name leads to it by now.
    wait_until("connections to a replica are given up", || connections(server.url()) == 0);

    redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).exec(&mut connect(server.url())).expect("promoted");
    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");
}

#[test]
fn a_pop_waiting_at_a_server_that_becomes_a_replica_is_unavailable() {
    let server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");

    let popped = thread::scope(|scope| {
        let pop = scope.spawn(|| lanes.pop(&every_lane(1), WAIT));
        wait_until("the pop waits", || blocked_clients(server.url()) == 1);
        redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).exec(&mut connect(server.url())).expect("demoted");
        pop.join().expect("no panic")
    });

    assert_unavailable(&popped, "UNBLOCKED");
}

fn blocked_clients(url: &str) -> u32 {
    let info: String = redis::cmd("INFO").arg("clients").query(&mut connect(url)).expect("info");
    let field = info.lines().find_map(|line| line.strip_prefix("blocked_clients:")).expect("a field of INFO");
    field.trim().parse().expect("a number")
}

#[test]
fn a_redis_with_too_many_clients_is_unavailable_and_says_so() {
    let server = TestServer::start(&["--maxclients", "1"]);
    let mut occupant = None;
    wait_until("the only place is taken", || {
        occupant = redis::Client::open(server.url()).and_then(|client| client.get_connection()).ok();
        occupant.is_some()
    });

    // Often enough to meet it before and after our first command is written.
    for _ in 0..50 {
        let lanes = Lanes::redis(server.url(), "").expect("a good URL");
        assert_unavailable(&lanes.ping(), "max number of clients");
    }

    drop(occupant);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    wait_until("there is room", || lanes.ping().is_ok());
}

#[test]
fn connections_are_few_named_and_kept() {
    let server = TestServer::start(&[]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");

    for round in 0..50 {
        lanes.push(Lane::High, &[Seq(round)]).expect("pushed");
        lanes.pop(&every_lane(1), NO_WAIT).expect("popped");
        lanes.state().expect("state");
    }

    assert_eq!(connections(server.url()), 2);
}

fn connections(url: &str) -> usize {
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut connect(url)).expect("a list");
    clients.lines().filter(|client| client.contains(" name=trilane ")).count()
}
