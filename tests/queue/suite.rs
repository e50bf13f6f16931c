//! What lanes of every kind do: in memory, in Redis, and in a Redis without `BLMPOP`.

use std::collections::BTreeSet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use trilane::job::{Lane, Seq};
use trilane::queue::{LaneState, Lanes, POP_IDS_MAX, Pushed};

use super::{NO_WAIT, WAIT, WAKE_MAX, every_lane, pop_all, pop_while, seqs};

macro_rules! for_every_kind {
    ($($claim:ident)*) => {
        mod with_memory { $(#[test] fn $claim() { super::$claim(&crate::in_memory().lanes); })* }
        mod with_redis { $(#[test] fn $claim() { super::$claim(&crate::in_redis().lanes); })* }
        mod with_redis_without_blmpop {
            $(#[test] fn $claim() { super::$claim(&crate::in_redis_without_blmpop().lanes); })*
        }
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
    a_push_tells_how_long_its_lanes_are_now
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
        let (popped, woken_after) = pop_while(lanes, || drop(lanes.push(lane, &[Seq(7)]).expect("pushed")));

        assert_eq!(popped, Some((lane, vec![Seq(7)])));
        assert!(woken_after < WAKE_MAX, "woken after {woken_after:?}");
    }
}

fn a_pop_that_waits_takes_the_highest_of_a_push_of_many(lanes: &Lanes) {
    let lots = [(Lane::Low, seqs(1..=3)), (Lane::High, seqs(4..=6))];

    let (popped, _) = pop_while(lanes, || drop(lanes.push_many(&lots).expect("pushed")));

    let (lane, ids) = popped.expect("something");
    assert_eq!((lane, ids[0]), (Lane::High, Seq(4)));
}

fn a_pop_waits_as_long_as_it_was_told(lanes: &Lanes) {
    let wait = Duration::from_millis(300);
    let start = Instant::now();

    let popped = lanes.pop(&every_lane(5), wait).expect("popped");

    assert_eq!(popped, None);
    let waited = start.elapsed();
    let rounding = Duration::from_millis(2);
    assert!(waited + rounding >= wait && waited < wait + Duration::from_millis(700), "waited {waited:?}");
}

fn ids_given_back_are_popped_next_in_their_order(lanes: &Lanes) {
    lanes.push(Lane::High, &seqs(1..=2_600)).expect("pushed");
    let (_, taken) = lanes.pop(&every_lane(900), NO_WAIT).expect("popped").expect("something");
    let (_, more) = lanes.pop(&every_lane(900), NO_WAIT).expect("popped").expect("something");

    // More than one command can carry.
    lanes.push_front(Lane::High, &[taken, more].concat()).expect("given back");

    assert_eq!(pop_all(lanes), seqs(1..=2_600));
}

fn a_push_tells_how_long_its_lanes_are_now(lanes: &Lanes) {
    lanes.push(Lane::Low, &seqs(1..=2_000)).expect("pushed");

    let pushed = lanes.push_many(&[(Lane::High, seqs(1..=1)), (Lane::Low, seqs(5..=9))]);

    assert_eq!(pushed, Ok(Pushed { lengths: [Some(1), None, Some(2_005)], refused: Vec::new() }));
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

#[test]
fn memory_takes_lane_by_lane_what_it_has_room_for_and_names_the_rest() {
    let lanes = Lanes::memory(3);
    lanes.push(Lane::Low, &seqs(1..=2)).expect("pushed");

    let pushed = lanes.push_many(&[(Lane::High, seqs(5..=5)), (Lane::Low, seqs(3..=4)), (Lane::Low, seqs(6..=6))]);

    let refused = vec![(Lane::Low, seqs(4..=4)), (Lane::Low, seqs(6..=6))];
    assert_eq!(pushed, Ok(Pushed { lengths: [Some(1), None, Some(3)], refused }));
    lanes.push_front(Lane::Low, &seqs(9..=9)).expect("what came out goes back in, room or not");
    assert_eq!(pop_all(&lanes), seqs(5..=5).into_iter().chain(seqs(9..=9)).chain(seqs(1..=3)).collect::<Vec<_>>());
}

#[test]
fn memory_wakes_a_waiting_pop_at_once_when_interrupted() {
    let lanes = Lanes::memory(1);

    let (popped, woken_after) = pop_while(&lanes, || lanes.interrupt());

    assert_eq!(popped, None);
    assert!(woken_after < WAKE_MAX, "woken after {woken_after:?}");
}
