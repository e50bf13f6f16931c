use std::path::PathBuf;
use std::slice::from_ref;

use super::*;
use crate::job::{ClaimedJob, Lane, NewJob, ReplicaId, Seq, Start};
use crate::retry::Verdict;
use crate::store::{Options, Outcome};

/// A lifecycle on a store of its own; its lanes are in this process, but it takes them for shared ones.
struct Fixture {
    lifecycle: Lifecycle,
    folder: PathBuf,
}

impl Fixture {
    fn new(lane_buffer_max: usize, capacity: usize) -> Fixture {
        let folder = std::env::temp_dir().join(format!("trilane-{}", Uuid::new_v4()));
        std::fs::create_dir(&folder).expect("a folder for the test");
        let connection_string = Store::sqlite_connection_string(&folder.join("test.db"));
        let store = Store::open(&Options { connection_string, connections_max: 4, wait: Duration::from_secs(20) });
        let store = store.expect("the store opens");
        store.migrate().expect("the schema is made");
        let policy = Policy {
            replica: ReplicaId(41),
            replica_name: "test".to_owned(),
            tick: Duration::from_mins(2),
            lease: Duration::from_secs(30),
            lane_buffer_max,
            lanes_are_shared: true,
            has_lanes: true,
        };
        Fixture { lifecycle: Lifecycle::new(store, Lanes::memory(capacity), policy), folder }
    }

    fn submit(&self, jobs: &[NewJob]) -> Vec<Seq> {
        let jobs: Vec<&NewJob> = jobs.iter().collect();
        let results = self.lifecycle.submit(&jobs).expect("stored");
        results.into_iter().map(|result| result.expect("no key").seq).collect()
    }

    fn pop(&self, lane: Lane, count: usize) -> Vec<Seq> {
        let popped = self.lifecycle.lanes.pop(&[(lane, count)], Duration::ZERO).expect("popped");
        popped.map(|(_, seqs)| seqs).unwrap_or_default()
    }

    fn length(&self, lane: Lane) -> u64 {
        self.lifecycle.lane_lengths().expect("they answer")[lane.index()]
    }

    /// What waits in the table, up to `within` from now.
    fn undispatched(&self, lane: Lane, within: Duration) -> Vec<Seq> {
        let found = self.lifecycle.store.dispatch(lane, ReplicaId(1), within, 1_000).expect("dispatched");
        let seqs: Vec<Seq> = found.due.iter().map(|due| due.seq).collect();
        self.lifecycle.store.recall(&seqs).expect("recalled");
        seqs
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn jobs(count: usize, lane: Lane) -> Vec<NewJob> {
    (0..count).map(|_| NewJob { lane, ..NewJob::new("x", "{}") }).collect()
}

fn delayed(lane: Lane, delay: Duration) -> NewJob {
    NewJob { lane, start: Start::After(delay), ..NewJob::new("x", "{}") }
}

#[test]
fn what_is_submitted_to_a_full_lane_waits_in_the_table_and_follows_in_order_when_it_is_half_empty() {
    let fixture = Fixture::new(10, 100);
    let first = fixture.submit(&jobs(12, Lane::Low));

    let mixed = fixture.submit(&[jobs(3, Lane::Low), jobs(1, Lane::High), jobs(2, Lane::Low)].concat());

    assert_eq!((fixture.length(Lane::Low), fixture.length(Lane::High)), (12, 1), "the high lane is not cut");
    let mut popped = fixture.pop(Lane::Low, 6);
    fixture.lifecycle.refill().expect("refilled");
    assert_eq!(fixture.length(Lane::Low), 6, "more than half");
    popped.extend(fixture.pop(Lane::Low, 1));
    fixture.lifecycle.refill().expect("refilled");
    assert_eq!(fixture.length(Lane::Low), 10, "filled up to its limit");
    assert!(fixture.lifecycle.is_cut(), "it is full, whether more waits or not");
    popped.extend(fixture.pop(Lane::Low, 100));
    fixture.lifecycle.refill().expect("refilled");

    let low = mixed.iter().enumerate().filter(|(n, _)| *n != 3).map(|(_, seq)| *seq);
    assert_eq!(popped, first.into_iter().chain(low).collect::<Vec<_>>());
    assert!(!fixture.lifecycle.is_cut());
    fixture.submit(&jobs(1, Lane::Low));
    assert_eq!(fixture.length(Lane::Low), 1, "pushed at once again");
}

#[test]
fn a_backlog_in_the_table_goes_before_what_is_submitted_while_it_is_there() {
    let fixture = Fixture::new(10, 100);
    let new = jobs(25, Lane::Low);
    let new: Vec<&NewJob> = new.iter().collect();
    let stored = fixture.lifecycle.store.submit(&new, ReplicaId(1), None).expect("stored");
    let backlog: Vec<Seq> = stored.into_iter().map(|stored| stored.expect("no key").seq).collect();
    fixture.lifecycle.dispatch().expect("dispatched");

    let late = fixture.submit(&jobs(5, Lane::Low));

    let mut popped = Vec::new();
    while popped.len() < 30 {
        assert!(fixture.length(Lane::Low) <= 10);
        popped.extend(fixture.pop(Lane::Low, 4));
        fixture.lifecycle.refill().expect("refilled");
    }
    assert_eq!(popped, [backlog, late].concat());
}

#[test]
fn a_lane_that_another_replica_has_cut_is_noticed_by_its_length_and_the_table() {
    let fixture = Fixture::new(10, 100);
    let new = jobs(1, Lane::Low);
    fixture.lifecycle.store.submit(&[&new[0]], ReplicaId(1), None).expect("stored");
    let push = |count| fixture.lifecycle.lanes.push(Lane::Low, &vec![Seq(900); count]).expect("pushed");

    push(5);
    fixture.lifecycle.notice_cuts().expect("looked");
    assert!(!fixture.lifecycle.is_cut(), "half full: who has cut it refills it");
    push(1);
    fixture.lifecycle.notice_cuts().expect("looked");
    assert!(fixture.lifecycle.cut.is_on(Lane::Low));

    let full = Fixture::new(10, 100);
    full.lifecycle.lanes.push(Lane::High, &[Seq(900); 9]).expect("pushed");
    full.lifecycle.notice_cuts().expect("looked");
    assert!(!full.lifecycle.is_cut(), "nothing waits in the table");
    full.lifecycle.lanes.push(Lane::High, &[Seq(900)]).expect("pushed");
    full.lifecycle.notice_cuts().expect("looked");
    assert!(full.lifecycle.cut.is_on(Lane::High));
}

#[test]
fn lanes_without_room_leave_the_rest_to_the_table_and_the_other_lanes_alone() {
    let fixture = Fixture::new(10, 3);

    let seqs = fixture.submit(&[jobs(5, Lane::Low), jobs(1, Lane::High)].concat());

    assert_eq!((fixture.length(Lane::Low), fixture.length(Lane::High)), (3, 1));
    assert_eq!(fixture.undispatched(Lane::Low, Duration::ZERO), seqs[3..5]);
    assert!(fixture.lifecycle.cut.is_on(Lane::Low) && !fixture.lifecycle.cut.is_on(Lane::High));
}

#[test]
fn ids_that_come_due_for_a_cut_lane_wait_in_the_table_for_their_turn() {
    let fixture = Fixture::new(10, 100);
    let minute = Duration::from_mins(1);
    let later = fixture.submit(&[delayed(Lane::Low, minute), delayed(Lane::Low, minute), delayed(Lane::High, minute)]);
    fixture.submit(&jobs(10, Lane::Low));

    fixture.lifecycle.push_due_timers(Instant::now() + minute);

    assert_eq!((fixture.length(Lane::Low), fixture.length(Lane::High)), (10, 1));
    assert_eq!(fixture.undispatched(Lane::Low, 2 * minute), later[..2]);
    assert!(fixture.lifecycle.timers.is_empty());
}

#[test]
fn a_job_that_full_timers_do_not_take_is_dispatched_before_it_is_due() {
    let mut fixture = Fixture::new(10, 100);
    fixture.lifecycle.timers = Timers::with_room(2);
    fixture.submit(&[delayed(Lane::Low, Duration::from_mins(1)), delayed(Lane::Low, Duration::from_mins(1))]);
    assert_eq!(fixture.lifecycle.next_missed(), None);
    let delay = Duration::from_millis(1_500);
    let (from, until) = (Instant::now(), delay + Duration::from_secs(20));
    fixture.submit(&[delayed(Lane::High, delay)]);

    let look_at = fixture.lifecycle.next_missed().expect("it was missed");
    assert_eq!(fixture.lifecycle.timers.len(), 2, "no room");
    assert!(look_at >= from && look_at <= from + until, "{:?}", look_at - from);
    // Too early, for the sake of the test: the look itself finds out when the next is due.
    fixture.lifecycle.dispatch().expect("dispatched");
    let look_at = fixture.lifecycle.next_missed().expect("it is still missed");
    std::thread::sleep(look_at.saturating_duration_since(Instant::now()));
    fixture.lifecycle.dispatch().expect("dispatched");
    while fixture.length(Lane::High) == 0 {
        assert!(from.elapsed() < until, "it is pushed when it is due");
        fixture.lifecycle.push_due_timers(Instant::now());
    }

    assert!(from.elapsed() + Duration::from_millis(50) >= delay, "not before");
}

fn overdue(lane: Lane) -> NewJob {
    NewJob { lane, start: Start::At("2020-01-01T00:00:00Z".parse().expect("a time")), ..NewJob::new("x", "{}") }
}

#[test]
fn the_starvation_guard_passes_over_ids_out_of_date_and_fills_the_high_lane_to_its_limit_at_most() {
    let fixture = Fixture::new(10, 100);
    fixture.lifecycle.lanes.push(Lane::Low, &[Seq(900), Seq(901)]).expect("pushed");
    fixture.submit(&jobs(8, Lane::High));
    let starved = fixture.submit(&[overdue(Lane::Low), overdue(Lane::Low), overdue(Lane::Low)]);
    let limit = Duration::from_mins(1);

    fixture.lifecycle.promote_starved(limit).expect("promoted");

    assert_eq!((fixture.length(Lane::High), fixture.length(Lane::Low)), (10, 1), "as far as there is room");
    let promoted = fixture.pop(Lane::High, 100);
    assert_eq!(promoted[8..], starved[..2], "behind those of the high lane");
    let fresh = fixture.submit(&jobs(1, Lane::Low));
    fixture.lifecycle.refill().expect("the high lane is not cut any more");
    fixture.lifecycle.promote_starved(limit).expect("promoted");
    assert_eq!((fixture.pop(Lane::High, 9), fixture.pop(Lane::Low, 9)), (starved[2..].to_vec(), fresh));
}

#[test]
fn outages_that_follow_each_other_do_not_put_off_the_end_of_leases_for_ever() {
    let fixture = Fixture::new(10, 100);
    let (lifecycle, lease) = (&fixture.lifecycle, fixture.lifecycle.policy.lease);
    let begun = Instant::now();
    lifecycle.defer_expiry();
    assert!(lifecycle.next_expiry().expect("it looks once at a start") >= begun + lease, "one lease to renew in");

    // As if it had been put off for so long.
    *lock(&lifecycle.expiry_deferred) = Some(begun.checked_sub(2 * lease).expect("the machine has run for longer"));
    lifecycle.defer_expiry();

    assert!(lifecycle.next_expiry().expect("as above") <= Instant::now(), "it has its turn");
    lifecycle.expire(|_| crate::retry::Verdict::Complete).expect("none has run out");
    lifecycle.defer_expiry();
    assert!(*lock(&lifecycle.no_expiry_before) >= begun + lease, "another outage");
}

#[test]
fn leases_are_not_ended_on_what_a_beat_saw_before_the_database_stood_still() {
    let fixture = Fixture::new(10, 100);
    let lifecycle = &fixture.lifecycle;
    let long_ago = Instant::now().checked_sub(Duration::from_mins(1)).expect("the machine has run for longer");
    *lock(&lifecycle.no_expiry_before) = long_ago;
    assert!(lifecycle.next_expiry().is_some() && !lifecycle.wants_beat(), "it looks once at a start");

    *lock(&lifecycle.beaten) = long_ago;

    assert!(lifecycle.next_expiry().is_none() && lifecycle.wants_beat());
    lifecycle.was_due(Instant::now());
    assert!(lifecycle.wants_beat(), "that call came in time");
    lifecycle.was_due(long_ago);
    assert!(*lock(&lifecycle.no_expiry_before) > Instant::now(), "one lease to renew in");
}

#[test]
fn what_was_stored_as_redis_came_back_is_dispatched_without_a_tick() {
    let fixture = Fixture::new(10, 100);
    let lifecycle = &fixture.lifecycle;
    lifecycle.lanes_outage.begins(&"gone");
    let horizon = lifecycle.horizon();
    let (new, retried) = (jobs(1, Lane::Low), &jobs(1, Lane::High)[0]);
    let new: Vec<&NewJob> = new.iter().collect();
    let results = lifecycle.store.submit(&new, ReplicaId(41), horizon).expect("stored");
    lifecycle.store.submit(&[retried], ReplicaId(41), None).expect("stored");
    let claimed = lifecycle.store.claim_next(Lane::High, 1, ReplicaId(41), Duration::from_secs(30)).expect("claimed");
    let outcome = retry_of(&claimed.jobs[0], Duration::from_millis(1));
    let accepted = lifecycle.store.finish(from_ref(&outcome), ReplicaId(41), lifecycle.retry_horizon());

    // The tick at its return has come before the commits.
    assert!(lifecycle.lanes_outage.ends());
    let submitted = lifecycle.hand_on(&new, results, horizon);
    lifecycle.finished(from_ref(&outcome), &accepted.expect("stored"));

    assert!(lifecycle.is_cut() && lifecycle.next_missed().is_some(), "the scheduler looks at the table soon");
    lifecycle.refill().expect("refilled");
    assert_eq!(fixture.pop(Lane::Low, 10), [submitted[0].as_ref().expect("no key").seq]);
    lifecycle.dispatch().expect("dispatched");
    lifecycle.push_due_timers(Instant::now() + Duration::from_secs(1));
    assert_eq!(fixture.pop(Lane::High, 10), [outcome.seq]);
}

#[test]
fn what_redis_did_not_take_just_before_it_came_back_is_dispatched_without_a_tick() {
    let fixture = Fixture::new(10, 100);
    let lifecycle = &fixture.lifecycle;
    let seqs = fixture.submit(&jobs(1, Lane::Low));
    fixture.pop(Lane::Low, 1);
    lifecycle.lanes_outage.begins(&"gone");

    lifecycle.store.recall(&seqs).expect("recalled");
    lifecycle.left_in_table(Lane::Low);
    assert!(!lifecycle.is_cut(), "a tick follows when it is back");
    lifecycle.lanes_outage.ends();
    lifecycle.left_in_table(Lane::Low);
    lifecycle.refill().expect("refilled");

    assert_eq!(fixture.pop(Lane::Low, 10), seqs);
}

#[test]
fn a_retry_whose_commit_was_not_confirmed_is_found_stored_and_pushed_when_it_is_due() {
    let fixture = Fixture::new(10, 100);
    let (lifecycle, replica) = (&fixture.lifecycle, ReplicaId(41));
    let new = [jobs(1, Lane::Low), jobs(1, Lane::High), jobs(1, Lane::Medium)].concat();
    let new: Vec<&NewJob> = new.iter().collect();
    lifecycle.store.submit(&new, replica, None).expect("stored");
    let claim =
        |lane| lifecycle.store.claim_next(lane, 1, replica, Duration::from_secs(30)).expect("claimed").jobs.remove(0);
    let (retried, completed, unstored) = (claim(Lane::Low), claim(Lane::High), claim(Lane::Medium));
    let retried = retry_of(&retried, Duration::from_millis(1));
    let completed = Outcome { verdict: Verdict::Complete, ..retry_of(&completed, Duration::ZERO) };
    let unstored = retry_of(&unstored, Duration::ZERO);
    let both = [retried.clone(), completed.clone()];
    // As where the answer to the commit is lost: nothing follows from it.
    lifecycle.store.finish(&both, replica, lifecycle.retry_horizon()).expect("stored");

    let all = [retried.clone(), completed, unstored];
    let found = lifecycle.finished_unconfirmed(&all).expect("looked");

    assert_eq!(found, both.map(|outcome| (outcome.seq, outcome.token)));
    assert_eq!(lifecycle.timers.len(), 1);
    lifecycle.push_due_timers(Instant::now() + Duration::from_secs(1));
    assert_eq!(fixture.pop(Lane::Low, 10), [retried.seq]);
    let of_another = Outcome { verdict: Verdict::Retry { delay: Duration::ZERO, error: "lost".into() }, ..retried };
    assert_eq!(
        lifecycle.finished_unconfirmed(&[of_another]).expect("looked"),
        [],
        "its lease was ended with another error"
    );
}

fn retry_of(job: &ClaimedJob, delay: Duration) -> Outcome {
    Outcome::of(job, Duration::ZERO, Verdict::Retry { delay, error: "not now".into() })
}
