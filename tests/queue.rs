//! One suite over every kind of lanes: in memory, in Redis, and in a Redis without `BLMPOP`; then what only Redis can
//! do to us. The shared Redis is the one that `TRILANE_TEST_REDIS` names; what is killed, stopped or filled up here
//! is a server of the test's own.

#![expect(clippy::panic, reason = "a test ends by a panic")]

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trilane::job::{Lane, Seq};
use trilane::queue::{LaneState, Lanes, POP_IDS_MAX, QueueError};

use self::server::{TestServer, wait_until};

#[path = "support/redis_server.rs"]
mod server;

const NO_WAIT: Duration = Duration::ZERO;
const WAIT: Duration = Duration::from_secs(2);
/// A pop that is woken must return this soon after the push. Generous, as the machine is shared; 1 ms is usual.
const WAKE_MAX: Duration = Duration::from_millis(250);
const CAPACITY: usize = 200_000;

/// Lanes, and what must outlive them.
struct Fixture {
    lanes: Lanes,
    shared: Option<(String, String)>,
    _server: Option<TestServer>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some((url, prefix)) = &self.shared {
            let mut connection = connect(url);
            for key in ["queue:jobs:high", "queue:jobs:medium", "queue:jobs:low", "trilane:epoch"] {
                redis::cmd("DEL")
                    .arg(format!("{prefix}{key}"))
                    .exec(&mut connection)
                    .expect("the shared Redis answers");
            }
        }
    }
}

fn in_memory() -> Fixture {
    Fixture { lanes: Lanes::memory(CAPACITY), shared: None, _server: None }
}

fn in_redis() -> Fixture {
    let (url, prefix) = (shared_redis(), new_prefix());
    Fixture { lanes: Lanes::redis(&url, &prefix).expect("a good URL"), shared: Some((url, prefix)), _server: None }
}

/// `rename-command` hides the command as a server before 7.0 lacks it.
fn in_redis_without_blmpop() -> Fixture {
    let server = TestServer::start(&["--rename-command", "BLMPOP", ""]);
    Fixture { lanes: Lanes::redis(server.url(), "").expect("a good URL"), shared: None, _server: Some(server) }
}

fn shared_redis() -> String {
    std::env::var("TRILANE_TEST_REDIS").expect(
        "TRILANE_TEST_REDIS must be the URL of a Redis for the tests: run `make test`, which starts one and sets it",
    )
}

fn new_prefix() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}:", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn connect(url: &str) -> redis::Connection {
    redis::Client::open(url).and_then(|client| client.get_connection()).expect("the test's Redis answers")
}

fn seqs(range: std::ops::RangeInclusive<i64>) -> Vec<Seq> {
    range.map(Seq).collect()
}

fn every_lane(room: usize) -> [(Lane, usize); 3] {
    Lane::ALL.map(|lane| (lane, room))
}

macro_rules! for_every_kind {
    ($($claim:ident)*) => {
        mod with_memory { $(#[test] fn $claim() { super::$claim(&super::in_memory().lanes); })* }
        mod with_redis { $(#[test] fn $claim() { super::$claim(&super::in_redis().lanes); })* }
        mod with_redis_without_blmpop { $(#[test] fn $claim() { super::$claim(&super::in_redis_without_blmpop().lanes); })* }
    };
}

for_every_kind! {
    ids_come_out_in_the_order_they_went_in
    a_higher_lane_is_taken_first_whatever_came_first
    the_order_of_the_lanes_is_the_callers
    a_pop_takes_up_to_the_room_of_the_lane_it_takes_from
    a_lane_without_room_is_left_alone
    one_pop_gives_no_more_than_the_limit
    a_pop_that_waits_wakes_when_an_id_comes
    a_pop_that_waits_takes_the_highest_of_a_push_of_many
    a_pop_waits_as_long_as_it_was_told
    ids_given_back_are_popped_next_in_their_order
    a_push_of_nothing_changes_nothing
    the_state_shows_lengths_and_next_ids
    the_state_of_an_empty_lane_has_no_head
    an_epoch_begins_once_among_many_who_try
    the_beginner_of_an_epoch_may_ask_again
    a_hundred_thousand_ids_come_out_whole_and_in_order
    each_id_goes_to_one_of_many_who_pop
    after_an_interrupt_no_pop_waits
    lanes_answer_and_have_no_complaint
}

fn ids_come_out_in_the_order_they_went_in(lanes: &Lanes) {
    lanes.push(Lane::Medium, &seqs(1..=3)).expect("pushed");
    lanes.push(Lane::Medium, &[Seq(i64::MAX)]).expect("pushed");

    let popped = lanes.pop(&every_lane(10), NO_WAIT).expect("popped");

    assert_eq!(popped, Some((Lane::Medium, vec![Seq(1), Seq(2), Seq(3), Seq(i64::MAX)])));
}

fn a_higher_lane_is_taken_first_whatever_came_first(lanes: &Lanes) {
    lanes.push(Lane::Low, &[Seq(1)]).expect("pushed");
    lanes.push(Lane::Medium, &[Seq(2)]).expect("pushed");
    lanes.push(Lane::High, &[Seq(3)]).expect("pushed");

    let popped: Vec<_> = (0..4).map(|_| lanes.pop(&every_lane(10), NO_WAIT).expect("popped")).collect();

    let expected = [(Lane::High, 3), (Lane::Medium, 2), (Lane::Low, 1)];
    assert_eq!(popped[..3], expected.map(|(lane, seq)| Some((lane, vec![Seq(seq)]))));
    assert_eq!(popped[3], None);
}

fn the_order_of_the_lanes_is_the_callers(lanes: &Lanes) {
    lanes.push_many(&[(Lane::High, seqs(1..=1)), (Lane::Low, seqs(2..=2))]).expect("pushed");

    let popped = lanes.pop(&[(Lane::Low, 1), (Lane::High, 1)], NO_WAIT).expect("popped");

    assert_eq!(popped, Some((Lane::Low, seqs(2..=2))));
}

fn a_pop_takes_up_to_the_room_of_the_lane_it_takes_from(lanes: &Lanes) {
    lanes
        .push_many(&[(Lane::High, seqs(1..=7)), (Lane::Medium, seqs(11..=19)), (Lane::Low, seqs(21..=29))])
        .expect("pushed");
    let room = [(Lane::High, 5), (Lane::Medium, 3), (Lane::Low, 1)];

    assert_eq!(lanes.pop(&room, NO_WAIT).expect("popped"), Some((Lane::High, seqs(1..=5))));
    assert_eq!(lanes.pop(&room, NO_WAIT).expect("popped"), Some((Lane::High, seqs(6..=7))));
    assert_eq!(lanes.pop(&room, NO_WAIT).expect("popped"), Some((Lane::Medium, seqs(11..=13))));
    assert_eq!(lanes.pop(&room[2..], NO_WAIT).expect("popped"), Some((Lane::Low, seqs(21..=21))));
}

fn a_lane_without_room_is_left_alone(lanes: &Lanes) {
    lanes.push_many(&[(Lane::High, seqs(1..=2)), (Lane::Low, seqs(3..=3))]).expect("pushed");

    let popped = lanes.pop(&[(Lane::High, 0), (Lane::Medium, 4), (Lane::Low, 4)], NO_WAIT).expect("popped");
    let start = Instant::now();
    let nothing = lanes.pop(&every_lane(0), WAIT).expect("popped");

    assert_eq!(popped, Some((Lane::Low, seqs(3..=3))));
    assert_eq!(nothing, None);
    assert!(start.elapsed() < WAIT / 2, "without room there is nothing to wait for");
}

fn one_pop_gives_no_more_than_the_limit(lanes: &Lanes) {
    lanes.push(Lane::High, &seqs(1..=2_500)).expect("pushed");

    let (_, popped) = lanes.pop(&every_lane(usize::MAX), NO_WAIT).expect("popped").expect("something");

    assert_eq!(popped.len(), POP_IDS_MAX);
}

fn a_pop_that_waits_wakes_when_an_id_comes(lanes: &Lanes) {
    // A first pop opens the connection.
    lanes.pop(&every_lane(5), NO_WAIT).expect("popped");

    for lane in Lane::ALL {
        let (popped, woken_after) = pop_while(lanes, || lanes.push(lane, &[Seq(7)]).expect("pushed"));

        assert_eq!(popped, Some((lane, vec![Seq(7)])));
        assert!(woken_after < WAKE_MAX, "woken after {woken_after:?}");
    }
}

fn a_pop_that_waits_takes_the_highest_of_a_push_of_many(lanes: &Lanes) {
    let lots = [(Lane::Low, seqs(1..=3)), (Lane::High, seqs(4..=6))];

    let (popped, _) = pop_while(lanes, || lanes.push_many(&lots).expect("pushed"));

    let (lane, ids) = popped.expect("something");
    assert_eq!((lane, ids[0]), (Lane::High, Seq(4)));
}

/// Lets a pop wait, acts, and returns what the pop gave and how long after the act.
fn pop_while(lanes: &Lanes, act: impl FnOnce()) -> (Option<(Lane, Vec<Seq>)>, Duration) {
    thread::scope(|scope| {
        let pop = scope.spawn(|| {
            let popped = lanes.pop(&every_lane(5), WAIT).expect("popped");
            (popped, Instant::now())
        });
        // Nobody can see from outside that a pop waits; so it is given time to. Too little makes the test easier, not
        // wrong.
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        act();
        let (popped, end) = pop.join().expect("the pop does not panic");
        (popped, end.saturating_duration_since(start))
    })
}

fn a_pop_waits_as_long_as_it_was_told(lanes: &Lanes) {
    let wait = Duration::from_millis(300);
    let start = Instant::now();

    let popped = lanes.pop(&every_lane(5), wait).expect("popped");

    assert_eq!(popped, None);
    let waited = start.elapsed();
    assert!(waited >= wait && waited < wait + Duration::from_millis(700), "waited {waited:?}");
}

fn ids_given_back_are_popped_next_in_their_order(lanes: &Lanes) {
    lanes.push(Lane::High, &seqs(1..=2_600)).expect("pushed");
    let (_, taken) = lanes.pop(&every_lane(900), NO_WAIT).expect("popped").expect("something");
    let (_, more) = lanes.pop(&every_lane(900), NO_WAIT).expect("popped").expect("something");

    // More than one command can carry.
    lanes.push_front(Lane::High, &[taken, more].concat()).expect("given back");

    assert_eq!(pop_all(lanes), seqs(1..=2_600));
}

fn a_push_of_nothing_changes_nothing(lanes: &Lanes) {
    lanes.push(Lane::High, &[]).expect("pushed");
    lanes.push_front(Lane::High, &[]).expect("pushed");
    lanes.push_many(&[]).expect("pushed");
    lanes.push_many(&[(Lane::High, vec![]), (Lane::Low, seqs(1..=1))]).expect("pushed");

    assert_eq!(lanes.state().expect("state").map(|lane| lane.len), [0, 0, 1]);
}

fn the_state_shows_lengths_and_next_ids(lanes: &Lanes) {
    lanes.push_many(&[(Lane::Low, seqs(5..=9)), (Lane::High, seqs(1..=2))]).expect("pushed");
    lanes.push_front(Lane::Low, &seqs(3..=4)).expect("given back");

    let state = lanes.state().expect("state");

    let expected = [(2, Some(Seq(1))), (0, None), (7, Some(Seq(3)))];
    assert_eq!(state, expected.map(|(len, head)| LaneState { len, head }));
}

fn the_state_of_an_empty_lane_has_no_head(lanes: &Lanes) {
    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");
    lanes.pop(&every_lane(1), NO_WAIT).expect("popped");

    assert_eq!(lanes.state().expect("state"), [LaneState::default(); 3]);
}

fn an_epoch_begins_once_among_many_who_try(lanes: &Lanes) {
    assert_eq!(lanes.epoch().expect("epoch"), None);
    let names: Vec<String> = (0..8).map(|beginner| format!("epoch of {beginner}")).collect();

    let barrier = Barrier::new(names.len());
    let began: Vec<&String> = thread::scope(|scope| {
        let beginners: Vec<_> = names
            .iter()
            .map(|name| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    lanes.begin_epoch(name).expect("begun").then_some(name)
                })
            })
            .collect();
        beginners.into_iter().filter_map(|beginner| beginner.join().expect("no panic")).collect()
    });

    assert_eq!(began.len(), 1);
    assert_eq!(lanes.epoch().expect("epoch").as_ref(), Some(began[0]));
}

fn the_beginner_of_an_epoch_may_ask_again(lanes: &Lanes) {
    assert!(lanes.begin_epoch("mine").expect("begun"));

    assert!(lanes.begin_epoch("mine").expect("asked again"));
    assert!(!lanes.begin_epoch("another's").expect("too late"));
}

fn a_hundred_thousand_ids_come_out_whole_and_in_order(lanes: &Lanes) {
    let all = seqs(1..=100_500);
    lanes.push(Lane::Low, &all).expect("pushed");

    assert_eq!(lanes.state().expect("state")[2], LaneState { len: 100_500, head: Some(Seq(1)) });
    assert!(pop_all(lanes) == all, "some are missing, double or out of order");
}

fn pop_all(lanes: &Lanes) -> Vec<Seq> {
    let mut all = Vec::new();
    while let Some((_, ids)) = lanes.pop(&every_lane(POP_IDS_MAX), NO_WAIT).expect("popped") {
        all.extend(ids);
    }
    all
}

fn each_id_goes_to_one_of_many_who_pop(lanes: &Lanes) {
    let popped: Vec<Seq> = thread::scope(|scope| {
        // More than connections are kept for.
        let poppers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let Some((_, ids)) = lanes.pop(&every_lane(37), Duration::from_millis(500)).expect("popped") {
                        mine.extend(ids);
                    }
                    mine
                })
            })
            .collect();
        for chunk in seqs(1..=9_000).chunks(90) {
            lanes.push(Lane::Medium, chunk).expect("pushed");
        }
        poppers.into_iter().flat_map(|popper| popper.join().expect("no panic")).collect()
    });

    assert_eq!(popped.len(), 9_000);
    assert_eq!(popped.into_iter().collect::<BTreeSet<_>>().len(), 9_000);
}

fn after_an_interrupt_no_pop_waits(lanes: &Lanes) {
    lanes.interrupt();
    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");
    let start = Instant::now();

    let something = lanes.pop(&every_lane(5), WAIT).expect("popped");
    let nothing = lanes.pop(&every_lane(5), WAIT).expect("popped");

    assert_eq!((something, nothing), (Some((Lane::High, seqs(1..=1))), None));
    assert!(start.elapsed() < WAIT / 2, "took {:?}", start.elapsed());
}

fn lanes_answer_and_have_no_complaint(lanes: &Lanes) {
    lanes.ping().expect("they answer");

    assert_eq!(lanes.check_server(), Ok(None));
    assert_eq!(lanes.foreign_entries(), 0);
}

// Memory.

#[test]
fn memory_without_room_for_all_takes_none() {
    let lanes = Lanes::memory(3);
    lanes.push(Lane::Low, &seqs(1..=2)).expect("pushed");

    let refusals = [
        lanes.push(Lane::Low, &seqs(3..=4)),
        lanes.push_front(Lane::Low, &seqs(3..=4)),
        lanes.push_many(&[(Lane::High, seqs(5..=5)), (Lane::Low, seqs(3..=3)), (Lane::Low, seqs(4..=4))]),
    ];

    for refusal in refusals {
        assert_eq!(refusal, Err(QueueError::Full { lane: Lane::Low, ids: 2, capacity: 3 }));
    }
    assert_eq!(lanes.state().expect("state").map(|lane| lane.len), [0, 0, 2]);
    lanes.push(Lane::Low, &seqs(3..=3)).expect("one has room");
}

#[test]
fn memory_wakes_a_waiting_pop_at_once_when_interrupted() {
    let lanes = Lanes::memory(1);

    let (popped, woken_after) = pop_while(&lanes, || lanes.interrupt());

    assert_eq!(popped, None);
    assert!(woken_after < WAKE_MAX, "woken after {woken_after:?}");
}

// Redis.

#[test]
fn entries_that_are_no_numbers_are_dropped_and_counted_and_harm_no_other() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    let key = format!("{prefix}queue:jobs:high");
    let entries = ["1", "{\"id\":\"of the original system\"}", "2", "", "9223372036854775808", "3"];
    redis::cmd("LPUSH").arg(&key).arg(&entries).exec(&mut connect(url)).expect("pushed");

    let popped = fixture.lanes.pop(&every_lane(10), NO_WAIT).expect("popped");

    assert_eq!(popped, Some((Lane::High, seqs(1..=3))));
    assert_eq!(fixture.lanes.foreign_entries(), 3);

    redis::cmd("LPUSH").arg(&key).arg(b"\xff\xfe").exec(&mut connect(url)).expect("pushed");
    assert_eq!(fixture.lanes.state().expect("state")[0], LaneState { len: 1, head: None });
    assert_eq!(fixture.lanes.pop(&every_lane(10), NO_WAIT).expect("popped"), None);
    assert_eq!(fixture.lanes.foreign_entries(), 4);
}

#[test]
fn the_keys_are_those_of_the_original_system() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    fixture.lanes.push(Lane::Medium, &seqs(1..=3)).expect("pushed");
    fixture.lanes.begin_epoch("now").expect("begun");

    let list: Vec<String> = redis::cmd("LRANGE")
        .arg(format!("{prefix}queue:jobs:medium"))
        .arg(0)
        .arg(-1)
        .query(&mut connect(url))
        .expect("a list");
    let epoch: String =
        redis::cmd("GET").arg(format!("{prefix}trilane:epoch")).query(&mut connect(url)).expect("a text");

    assert_eq!(list, ["3", "2", "1"]);
    assert_eq!(epoch, "now");
}

#[test]
fn lanes_under_another_prefix_are_other_lanes() {
    let (one, other) = (in_redis(), in_redis());
    one.lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");

    assert_eq!(other.lanes.pop(&every_lane(1), NO_WAIT).expect("popped"), None);
    assert!(other.lanes.begin_epoch("other").expect("begun"));
    assert_eq!(one.lanes.epoch().expect("epoch"), None);
}

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
fn user_password_and_database_are_taken_from_the_url() {
    let mut server = TestServer::start_tcp(&["--requirepass", "p@ss/w:rd"]);
    let address = server.address().to_owned();
    server.set_url(format!("redis://:p%40ss%2Fw%3Ard@{address}/3"));
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let as_user = Lanes::redis(&format!("redis://default:p%40ss%2Fw%3Ard@{address}/3"), "").expect("a good URL");

    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");

    let elsewhere = Lanes::redis(&format!("redis://:p%40ss%2Fw%3Ard@{address}/0"), "").expect("a good URL");
    assert_eq!(elsewhere.pop(&every_lane(1), NO_WAIT).expect("popped"), None);
    assert_eq!(as_user.pop(&every_lane(1), NO_WAIT).expect("popped"), Some((Lane::High, seqs(1..=1))));
    assert_eq!(lanes.to_string(), format!("Redis at {address}, database 3"));
}

#[test]
fn a_wrong_password_is_told_without_telling_the_password() {
    let server = TestServer::start_tcp(&["--requirepass", "right"]);
    let address = server.address();

    for (url, expected) in [
        (format!("redis://:hunter2@{address}"), "WRONGPASS"),
        (format!("redis://somebody:hunter2@{address}/1"), "WRONGPASS"),
        (format!("redis://{address}"), "NOAUTH"),
        (format!("redis://:right@{address}/99"), "out of range"),
    ] {
        let lanes = Lanes::redis(&url, "").expect("a good URL");
        let error = assert_unavailable(&lanes.ping(), expected);
        assert_unavailable(&lanes.pop(&every_lane(1), WAIT), expected);

        let told = format!("{error} {error:?} {lanes} {lanes:?}");
        assert!(!told.contains("hunter2") && !told.contains("right@"), "{told}");
        assert!(told.contains(address), "{told}");
    }
}

#[test]
fn a_url_that_cannot_be_is_refused_at_once_without_telling_the_password() {
    for url in [
        "",
        "localhost:6379",
        "http://:hunter2@localhost",
        "redis://:hunter2@localhost:port",
        "redis://:hunter2@localhost/zero",
        "redis://:hunter2@/0",
        "rediss://:hunter2@localhost/#insecure",
        "rediss://:hunter2@localhost/#other",
        "redis://:hunter2@localhost/?protocol=hunter3",
    ] {
        let refusal = Lanes::redis(url, "").expect_err(url);

        assert!(matches!(refusal, QueueError::Rejected(_)) && !refusal.is_transient(), "{url}: {refusal}");
        assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
    }
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
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");

    assert_unavailable(&lanes.ping(), "max number of clients");

    drop(occupant);
    wait_until("there is room", || lanes.ping().is_ok());
}

#[test]
fn a_key_that_holds_something_else_is_rejected_with_advice() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    redis::cmd("SET").arg(format!("{prefix}queue:jobs:high")).arg("mine").exec(&mut connect(url)).expect("set");

    let errors = [
        fixture.lanes.push(Lane::High, &seqs(1..=1)).expect_err("a push"),
        fixture.lanes.pop(&every_lane(1), NO_WAIT).expect_err("a pop"),
        fixture.lanes.state().expect_err("the state"),
    ];

    for error in errors {
        assert!(
            matches!(&error, QueueError::Rejected(why) if why.contains("WRONGTYPE") && why.contains("prefix")),
            "{error}"
        );
        assert!(!error.is_transient());
    }
}

#[test]
fn a_user_with_only_the_documented_permissions_can_do_all() {
    let permissions = "on >pw ~queue:jobs:* ~trilane:epoch -@all +client|setname +ping +info +get +set +llen +lindex \
                       +lpush +rpush +rpop +blmpop";
    let server = TestServer::start_tcp(&[]);
    let rules: Vec<&str> = permissions.split(' ').filter(|rule| !rule.is_empty()).collect();
    redis::cmd("ACL").arg("SETUSER").arg("trilane").arg(rules).exec(&mut connect(server.url())).expect("allowed");
    let lanes = Lanes::redis(&format!("redis://trilane:pw@{}", server.address()), "").expect("a good URL");
    let elsewhere = Lanes::redis(&format!("redis://trilane:pw@{}", server.address()), "x:").expect("a good URL");

    lanes.push(Lane::High, &seqs(1..=9)).expect("pushed");
    lanes.push_front(Lane::High, &seqs(0..=0)).expect("given back");
    let popped = lanes.pop(&[(Lane::High, 5), (Lane::Low, 1)], NO_WAIT).expect("popped");
    assert_eq!(popped, Some((Lane::High, seqs(0..=4))));
    assert_eq!(lanes.state().expect("state")[0].len, 5);
    assert!(lanes.begin_epoch("e").expect("begun"));
    assert_eq!(lanes.check_server(), Ok(None));

    for error in [
        elsewhere.push(Lane::High, &seqs(1..=1)).expect_err("a push"),
        elsewhere.pop(&every_lane(1), NO_WAIT).expect_err("a pop"),
    ] {
        assert!(matches!(&error, QueueError::Rejected(why) if why.contains("NOPERM")), "{error}");
    }
}

#[test]
fn a_server_that_may_evict_or_does_not_tell_is_warned_of() {
    let server = TestServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let warning = lanes.check_server().expect("new enough").expect("a warning");
    assert!(warning.contains("allkeys-lru") && warning.contains("noeviction"), "{warning}");

    let server = TestServer::start(&["--rename-command", "INFO", ""]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let warning = lanes.check_server().expect("not known to be too old").expect("a warning");
    assert!(warning.contains("maxmemory-policy"), "{warning}");
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

    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut connect(server.url())).expect("a list");
    assert_eq!(clients.lines().filter(|client| client.contains(" name=trilane ")).count(), 2, "{clients}");
}

/// In a process of its own, as the certificate to trust comes from the environment.
#[test]
fn a_server_is_reached_over_tls_if_its_certificate_is_trusted() {
    const URL_OF_CHILD: &str = "TRILANE_TEST_REDIS_TLS";
    if let Ok(url) = std::env::var(URL_OF_CHILD) {
        let lanes = Lanes::redis(&url, "").expect("a good URL");
        lanes.push(Lane::High, &seqs(1..=5_000)).expect("pushed");
        assert_eq!(pop_all(&lanes), seqs(1..=5_000));
        assert_eq!(lanes.pop(&every_lane(1), Duration::from_millis(50)), Ok(None));
        return;
    }
    let server = TestServer::start_tls();
    let stranger = Lanes::redis(server.url(), "").expect("a good URL");

    assert_unavailable(&stranger.ping(), "certificate");

    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "a_server_is_reached_over_tls_if_its_certificate_is_trusted"])
        .env(URL_OF_CHILD, server.url())
        .env("SSL_CERT_FILE", server.certificate())
        .output()
        .expect("started");
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

fn assert_unavailable<T: std::fmt::Debug>(outcome: &Result<T, QueueError>, text: &str) -> QueueError {
    match outcome {
        Err(error @ QueueError::Unavailable(why)) if why.contains(text) => error.clone(),
        other => panic!("expected Unavailable with {text:?}, got {other:?}"),
    }
}
