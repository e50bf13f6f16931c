//! One suite over every dialect: what each method of the store promises, and each move of the state machine.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test ends by a panic, and may tell on its way there")]

#[path = "conformance/held.rs"]
mod held;
#[path = "conformance/odd.rs"]
mod odd;
#[path = "support/stores.rs"]
mod stores;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use stores::{TestStore, dialects, execute, execute_all, number, on_every_dialect};
use trilane::job::{ClaimedJob, Lane, NewJob, ReplicaId, Seq, Start, Status, Token};
use trilane::retry::Verdict;
use trilane::store::{
    Cancelled, DeadLetterFilter, Dialect, Horizon, Idempotency, JobFilter, Outcome, Revived, Store, StoreError, Stored,
    Submitted,
};
use uuid::Uuid;

const REPLICA: ReplicaId = ReplicaId(41);
const OTHER: ReplicaId = ReplicaId(42);
const LEASE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_mins(2);
const HORIZON_MS: Option<u64> = Some(120_000);

fn jobs(count: usize, lane: Lane) -> Vec<NewJob> {
    let job = |n| NewJob { lane, ..NewJob::new("send_email", format!("{{\"n\":{n}}}")) };
    (0..count).map(job).collect()
}

fn submit(store: &Store, jobs: &[NewJob]) -> Vec<Stored> {
    let jobs: Vec<&NewJob> = jobs.iter().collect();
    let results = store.submit(&jobs, REPLICA, HORIZON_MS).expect("stored");
    results.into_iter().map(|result| result.expect("no key was taken")).collect()
}

fn submit_one(store: &Store, job: NewJob) -> Stored {
    submit(store, &[job])[0]
}

fn claim(store: &Store, seqs: &[Seq]) -> Vec<ClaimedJob> {
    store.claim(seqs, REPLICA, LEASE).expect("claimed").jobs
}

fn claim_one(store: &Store, stored: Stored) -> ClaimedJob {
    claim(store, &[stored.seq]).pop().expect("the job was free")
}

fn outcome(job: &ClaimedJob, verdict: Verdict) -> Outcome {
    Outcome::of(job, Duration::from_millis(5), verdict)
}

fn finish(store: &Store, job: &ClaimedJob, verdict: Verdict) -> bool {
    let accepted = store.finish(&[outcome(job, verdict)], REPLICA, Some(TICK)).expect("finished");
    !accepted.is_empty()
}

fn retry(delay: Duration) -> Verdict {
    Verdict::Retry { delay, error: "no answer".into() }
}

fn bury() -> Verdict {
    Verdict::Bury { reason: "address refused \u{1F980} \0 \"quoted\"".into() }
}

/// Searches one lane for lost ids; those above it are taken for empty. Returns how many were given back.
fn recall_lost(store: &Store, lane: Lane, head: Option<Seq>, grace: Duration, deep: bool) -> usize {
    let heads = Lane::ALL.map(|of| head.filter(|_| of == lane));
    let mut recalled = 0;
    for mut sweep in store.begin_sweep(heads, grace, deep).expect("begun") {
        while sweep.lane() == lane && !sweep.is_done() {
            recalled += store.sweep(&mut sweep).expect("searched");
            store.swept(&sweep).expect("noted");
        }
    }
    recalled
}

fn recall_with_replica(store: &Store, stopping: Option<ReplicaId>) -> usize {
    store.recall_with_replica(Duration::from_mins(1), stopping, || ()).expect("recalled").count
}

/// A number of seconds before `time`, in SQL.
fn before(dialect: Dialect, time: &str, seconds: i64) -> String {
    match dialect {
        Dialect::Mssql => format!("DATEADD(second, -{seconds}, {time})"),
        Dialect::Postgres => format!("{time} - interval '{seconds} seconds'"),
        Dialect::Sqlite => format!("{time} - {seconds} * 1000"),
    }
}

/// Moves the dispatch of jobs, in the order of their numbers, into the past.
fn dispatch_earlier(connection_string: &str, dialect: Dialect, seqs: &[Seq], seconds: i64) {
    let (Some(first), Some(last)) = (seqs.first(), seqs.last()) else { return };
    let earlier = before(dialect, "DispatchedAt", seconds);
    let sql = format!("UPDATE Jobs SET DispatchedAt = {earlier} WHERE Seq BETWEEN {first} AND {last}");
    execute(connection_string, &sql);
}

fn status(store: &Store, id: Uuid) -> Status {
    Status::parse(&store.job(id).expect("read").expect("there").status).expect("known")
}

fn letters(store: &Store) -> usize {
    store.dead_letters(&DeadLetterFilter::default(), None, 1_000).expect("read").len()
}

#[test]
fn a_submitted_job_is_read_back_as_it_was() {
    on_every_dialect(|store| {
        let job = NewJob {
            lane: Lane::High,
            max_retries: 7,
            timeout: Some(Duration::from_millis(1_500)),
            unique_key: Some("order-1 ❄".into()),
            ..NewJob::new("a:b.c-D_9", "{\"quote\":\"it's \\\"so\\\"\",\"emoji\":\"🦀👩‍🚀\",\"zero\":\"\\u0000\"}")
        };

        let stored = submit_one(store, job.clone());

        let read = store.job(job.id).expect("read").expect("there");
        assert_eq!(
            (read.seq, read.id, &read.job_type, &read.payload),
            (stored.seq, job.id, &job.job_type, &job.payload)
        );
        assert_eq!((read.priority.as_str(), read.max_retries, read.retry_count), ("high", 7, 0));
        assert_eq!((read.status.as_str(), read.timeout_ms), ("queued", Some(1_500)));
        assert_eq!((read.created_at, read.run_at), (stored.created_at, stored.run_at));
        assert_eq!(read.unique_key.as_deref(), Some("order-1 ❄"));
        assert_eq!(stored.due_in_ms, Some(0));
    });
}

#[test]
fn a_payload_of_256_kib_of_emoji_comes_back_unchanged() {
    on_every_dialect(|store| {
        let payload = format!("\"{}\"", "🦀\\\"'ä漢".repeat(256 * 1024 / 14));
        let job = NewJob::new("big", payload.clone());

        let stored = submit_one(store, job.clone());

        assert_eq!(store.job(job.id).expect("read").expect("there").payload, payload);
        assert_eq!(claim_one(store, stored).payload, payload);
    });
}

#[test]
fn payloads_too_long_for_one_statement_together_are_stored_in_order() {
    on_every_dialect(|store| {
        let jobs: Vec<NewJob> = (0..10)
            .map(|n| NewJob::new("big", format!("{{\"n\":{n},\"text\":\"{}\"}}", "ä".repeat(150_000))))
            .collect();

        submit(store, &jobs);

        let listed = store.jobs(&JobFilter::default(), None, 20).expect("read");
        assert!(listed.iter().map(|job| (job.id, &job.payload)).eq(jobs.iter().map(|job| (job.id, &job.payload))));
    });
}

#[test]
fn jobs_arrive_in_the_order_of_their_call_even_beyond_one_batch() {
    on_every_dialect(|store| {
        let jobs = jobs(2_500, Lane::Low);

        let stored = submit(store, &jobs);

        assert!(stored.windows(2).all(|pair| pair[0].seq < pair[1].seq));
        let listed = store.jobs(&JobFilter::default(), None, 5_000).expect("read");
        assert!(listed.iter().map(|job| job.id).eq(jobs.iter().map(|job| job.id)));
    });
}

#[test]
fn a_delayed_job_counts_as_dispatched_only_within_the_horizon() {
    on_every_dialect(|store| {
        let after =
            |seconds| NewJob { start: Start::After(Duration::from_secs(seconds)), ..NewJob::new("later", "{}") };

        let soon = submit_one(store, after(60));
        let late = submit_one(store, after(600));

        let due = soon.due_in_ms.expect("dispatched");
        assert!((59_000..=60_000).contains(&due), "{due}");
        assert_eq!(soon.run_at.as_millis() - soon.created_at.as_millis(), 60_000);
        assert_eq!(late.due_in_ms, None);
    });
}

#[test]
fn each_lane_has_a_horizon_of_its_own() {
    on_every_dialect(|store| {
        let after = |lane, seconds| NewJob {
            lane,
            start: Start::After(Duration::from_secs(seconds)),
            ..NewJob::new("x", "{}")
        };
        let new = [
            after(Lane::Low, 0),
            after(Lane::High, 0),
            after(Lane::Medium, 30),
            after(Lane::Low, 60),
            after(Lane::High, 60),
        ];
        let horizon = Horizon([Some(TICK), Some(Duration::from_secs(10)), None]);

        let results = store.submit(&new.iter().collect::<Vec<_>>(), REPLICA, horizon).expect("stored");

        let stored: Vec<Stored> = results.into_iter().map(|result| result.expect("no key")).collect();
        let is_dispatched: Vec<bool> = stored.iter().map(|stored| stored.due_in_ms.is_some()).collect();
        assert_eq!(is_dispatched, [false, true, false, false, true]);
        let found = store.dispatch(Lane::Low, OTHER, TICK, 10).expect("dispatched").due;
        assert_eq!(found.iter().map(|due| due.seq).collect::<Vec<_>>(), [stored[0].seq, stored[3].seq]);
    });
}

#[test]
fn the_next_due_of_a_lane_is_that_of_its_first_job_that_is_not_dispatched() {
    on_every_dialect(|store| {
        let after =
            |seconds| NewJob { start: Start::After(Duration::from_secs(seconds)), ..NewJob::new("later", "{}") };
        assert_eq!(store.next_due(Lane::Medium).expect("asked"), None);
        let new = [after(900), after(600)];
        store.submit(&new.iter().collect::<Vec<_>>(), REPLICA, HORIZON_MS).expect("stored");
        submit_one(store, after(60));

        let due = store.next_due(Lane::Medium).expect("asked").expect("two wait");
        assert!((500_000..=600_000).contains(&due), "{due}");
        assert_eq!(store.next_due(Lane::Low).expect("asked"), None);
        assert!(!store.is_due(Lane::Medium).expect("asked"));
        store.submit(&[&after(0)], REPLICA, None).expect("stored");
        assert_eq!(store.next_due(Lane::Medium).expect("asked"), Some(0));
        assert!(store.is_due(Lane::Medium).expect("asked"));
    });
}

#[test]
fn run_at_is_kept_to_the_millisecond() {
    on_every_dialect(|store| {
        let at = "2031-02-03T04:05:06.789Z".parse().expect("a time");
        let job = NewJob { start: Start::At(at), ..NewJob::new("later", "{}") };

        let stored = submit_one(store, job.clone());

        assert_eq!(stored.run_at, at);
        assert_eq!(store.job(job.id).expect("read").expect("there").run_at, at);
    });
}

#[test]
fn without_a_horizon_nothing_is_dispatched_and_the_scheduler_finds_it() {
    on_every_dialect(|store| {
        let new = NewJob::new("x", "{}");
        let stored = store.submit(&[&new], REPLICA, None).expect("stored")[0].expect("no key");

        let found = store.dispatch(Lane::Medium, OTHER, TICK, 10).expect("dispatched");

        assert_eq!(stored.due_in_ms, None);
        assert_eq!(found.due.iter().map(|due| due.seq).collect::<Vec<_>>(), [stored.seq]);
        assert!(store.dispatch(Lane::Medium, OTHER, TICK, 10).expect("dispatched").due.is_empty());
    });
}

#[test]
fn a_unique_key_admits_one_live_job() {
    on_every_dialect(|store| {
        let keyed = || NewJob { unique_key: Some("invoice-7".into()), ..NewJob::new("x", "{}") };
        let (first, second, third) = (keyed(), keyed(), NewJob::new("x", "{}"));

        let results = store.submit(&[&first, &second, &third], REPLICA, HORIZON_MS).expect("stored");

        assert_eq!(results[1].expect_err("taken").held_by, first.id);
        assert!(results[0].is_ok() && results[2].is_ok());
        let again = store.submit(&[&second], REPLICA, HORIZON_MS).expect("answered");
        assert_eq!(again[0].expect_err("taken").held_by, first.id);
        assert!(store.job(second.id).expect("read").is_none());
    });
}

#[test]
fn keys_that_differ_in_anything_are_different_keys() {
    on_every_dialect(|store| {
        let keys = ["k", "K", "k ", " k", "ké", "ke", "k\"\\", "k🦀"];
        let keyed = |key: &str| NewJob { unique_key: Some(key.into()), ..NewJob::new("x", "{}") };
        let jobs: Vec<NewJob> = keys.iter().map(|key| keyed(key)).collect();

        let stored = submit(store, &jobs);

        for (key, job) in keys.iter().zip(&jobs) {
            let again = store.submit(&[&keyed(key)], REPLICA, HORIZON_MS).expect("answered");
            assert_eq!(again[0].expect_err("taken").held_by, job.id, "{key:?}");
            let call = Idempotency { key: (*key).to_owned(), request_hash: [0; 32] };
            let now = store.submit_once(&[&NewJob::new("x", "{}")], &call, REPLICA, HORIZON_MS).expect("stored");
            assert!(matches!(now, Submitted::Now(_)), "{key:?}");
        }
        assert!(finish(store, &claim_one(store, stored[2]), Verdict::Complete));
        let results = |key| store.submit(&[&keyed(key)], REPLICA, HORIZON_MS).expect("answered")[0];
        assert!(results("k ").is_ok() && results("k").is_err(), "only the key of the ended job is free");
    });
}

#[test]
fn a_unique_key_is_free_again_when_its_job_ends() {
    on_every_dialect(|store| {
        let keyed = || NewJob { unique_key: Some("invoice-8".into()), ..NewJob::new("x", "{}") };
        let end = |how: &dyn Fn(Stored, Uuid)| {
            let job = keyed();
            let stored = store.submit(&[&job], REPLICA, HORIZON_MS).expect("answered")[0].expect("the key is free");
            how(stored, job.id);
        };

        end(&|stored, _| assert!(finish(store, &claim_one(store, stored), Verdict::Complete)));
        end(&|stored, _| assert!(finish(store, &claim_one(store, stored), bury())));
        end(&|_, id| assert!(matches!(store.cancel(id).expect("answered"), Cancelled::Done(_))));
        end(&|stored, _| assert!(finish(store, &claim_one(store, stored), retry(Duration::ZERO))));

        let job = keyed();
        assert!(
            store.submit(&[&job], REPLICA, HORIZON_MS).expect("answered")[0].is_err(),
            "a retrying job keeps its key"
        );
    });
}

#[test]
fn an_idempotency_key_stores_its_call_once() {
    on_every_dialect(|store| {
        let (job, again) = (NewJob::new("x", "{}"), NewJob::new("x", "{}"));
        let key = |hash| Idempotency { key: "call-1".into(), request_hash: [hash; 32] };

        let first = store.submit_once(&[&job], &key(1), REPLICA, HORIZON_MS).expect("stored");
        let second = store.submit_once(&[&again], &key(1), REPLICA, HORIZON_MS).expect("answered");
        let other = store.submit_once(&[&again], &key(2), REPLICA, HORIZON_MS).expect("answered");

        assert!(matches!(&first, Submitted::Now(results) if results.len() == 1));
        assert_eq!(second, Submitted::Before(vec![Ok(job.id)]));
        assert_eq!(other, Submitted::Mismatch);
        assert_eq!(store.jobs(&JobFilter::default(), None, 10).expect("read").len(), 1);
    });
}

#[test]
fn concurrent_calls_with_one_idempotency_key_store_it_once() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        let key = Idempotency { key: "call-2".into(), request_hash: [7; 32] };

        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let job = NewJob::new("x", "{}");
                    fresh.store.submit_once(&[&job], &key, REPLICA, HORIZON_MS).expect("answered")
                });
            }
        });

        assert_eq!(fresh.store.jobs(&JobFilter::default(), None, 10).expect("read").len(), 1, "{dialect:?}");
    }
}

#[test]
fn a_claimed_job_cannot_be_claimed_again() {
    on_every_dialect(|store| {
        let stored = submit(store, &jobs(3, Lane::High));
        let seqs: Vec<Seq> = stored.iter().map(|job| job.seq).collect();

        let first = claim(store, &[seqs[2], seqs[0]]);
        let second = store.claim(&seqs, OTHER, LEASE).expect("claimed").jobs;

        assert_eq!(first.iter().map(|job| job.seq).collect::<Vec<_>>(), [seqs[2], seqs[0]], "in the order asked for");
        assert_eq!(second.iter().map(|job| job.seq).collect::<Vec<_>>(), [seqs[1]]);
        assert!(second[0].token > first[0].token);
        assert_eq!((first[0].attempt(), first[0].lane), (1, Lane::High));
    });
}

#[test]
fn concurrent_claimers_never_get_one_job_twice() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        let seqs: Vec<Seq> = submit(&fresh.store, &jobs(600, Lane::Low)).iter().map(|job| job.seq).collect();

        let claimed: Vec<Seq> = std::thread::scope(|scope| {
            let claimers: Vec<_> = (0..6i64)
                .map(|number| {
                    let (store, seqs) = (fresh.another(), &seqs);
                    scope.spawn(move || {
                        let mut mine = Vec::new();
                        // Overlapping windows from different ends, so that claimers meet.
                        let windows: Vec<&[Seq]> = seqs.chunks(40).collect();
                        let order: Box<dyn Iterator<Item = &&[Seq]>> = if number % 2 == 0 {
                            Box::new(windows.iter())
                        } else {
                            Box::new(windows.iter().rev())
                        };
                        for window in order {
                            let jobs = store.claim(window, ReplicaId(number + 1), LEASE).expect("claimed").jobs;
                            mine.extend(jobs.iter().map(|job| job.seq));
                        }
                        mine
                    })
                })
                .collect();
            claimers.into_iter().flat_map(|claimer| claimer.join().expect("no panic")).collect()
        });

        assert_eq!(claimed.len(), 600, "{dialect:?}");
        assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 600, "{dialect:?}");
    }
}

#[test]
fn concurrent_claim_next_never_gets_one_job_twice() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        let new = jobs(300, Lane::Low);
        let new: Vec<&NewJob> = new.iter().collect();
        fresh.store.submit(&new, REPLICA, None).expect("stored");

        let claimed: Vec<Seq> = std::thread::scope(|scope| {
            let claimers: Vec<_> = (1..=4)
                .map(|number| {
                    let store = fresh.another();
                    scope.spawn(move || {
                        let mut mine = Vec::new();
                        let mut empty = 0;
                        while empty < 20 {
                            let jobs = store.claim_next(Lane::Low, 25, ReplicaId(number), LEASE).expect("claimed").jobs;
                            empty = if jobs.is_empty() { empty + 1 } else { 0 };
                            mine.extend(jobs.iter().map(|job| job.seq));
                        }
                        mine
                    })
                })
                .collect();
            claimers.into_iter().flat_map(|claimer| claimer.join().expect("no panic")).collect()
        });

        assert_eq!(claimed.len(), 300, "{dialect:?}");
        assert_eq!(claimed.iter().collect::<HashSet<_>>().len(), 300, "{dialect:?}");
    }
}

#[test]
fn claim_next_takes_what_is_due_in_order_and_leaves_the_rest() {
    on_every_dialect(|store| {
        let later = NewJob { start: Start::After(Duration::from_mins(1)), ..NewJob::new("x", "{}") };
        let early =
            NewJob { start: Start::At("2020-01-01T00:00:00Z".parse().expect("time")), ..NewJob::new("x", "{}") };
        let new = [NewJob::new("x", "{}"), later, early];
        store.submit(&new.iter().collect::<Vec<_>>(), REPLICA, None).expect("stored");

        let claimed = store.claim_next(Lane::Medium, 10, REPLICA, LEASE).expect("claimed").jobs;

        assert_eq!(claimed.iter().map(|job| job.id).collect::<Vec<_>>(), [new[2].id, new[0].id]);
    });
}

#[test]
fn a_job_that_is_not_due_is_not_claimed() {
    on_every_dialect(|store| {
        let later = NewJob { start: Start::After(Duration::from_secs(5)), ..NewJob::new("x", "{}") };

        let stored = submit_one(store, later);

        assert!(claim(store, &[stored.seq]).is_empty());
    });
}

#[test]
fn every_outcome_moves_its_job_and_is_refused_under_another_token() {
    on_every_dialect(|store| {
        let cases: [(Verdict, Status); 3] = [
            (Verdict::Complete, Status::Completed),
            (retry(Duration::from_mins(5)), Status::Retrying),
            (bury(), Status::Failed),
        ];
        for (verdict, becomes) in cases {
            let job = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
            let stale = ClaimedJob { token: Token(job.token.0 - 1), ..job.clone() };

            assert!(!finish(store, &stale, verdict.clone()), "a stale token must not become {becomes}");
            assert_eq!(status(store, job.id), Status::Running);
            let of_both = [outcome(&job, verdict.clone()), outcome(&stale, verdict.clone())];
            let stored = || store.outcomes_stored(&of_both, REPLICA).expect("looked");
            assert_eq!(stored(), []);
            assert!(finish(store, &job, verdict.clone()));
            assert_eq!(status(store, job.id), becomes);
            assert!(!finish(store, &job, verdict), "an outcome is stored once");
            assert_eq!(stored().iter().map(|stored| stored.token).collect::<Vec<_>>(), [job.token]);
        }
        assert_eq!(letters(store), 1);
    });
}

#[test]
fn outcomes_of_several_leases_and_kinds_are_stored_together() {
    on_every_dialect(|store| {
        let claimed: Vec<ClaimedJob> =
            submit(store, &jobs(6, Lane::Low)).into_iter().map(|stored| claim_one(store, stored)).collect();
        let verdicts = [Verdict::Complete, bury(), retry(Duration::ZERO), Verdict::Complete, bury(), Verdict::Complete];
        let mut outcomes: Vec<Outcome> =
            claimed.iter().zip(verdicts).map(|(job, verdict)| outcome(job, verdict)).collect();
        // The token of another job that this replica holds: it fits the batch, but not this job.
        outcomes[5].token = claimed[0].token;

        let accepted = store.finish(&outcomes, REPLICA, Some(TICK)).expect("finished");

        let accepted: HashSet<Seq> = accepted.iter().map(|accepted| accepted.seq).collect();
        assert_eq!(accepted, claimed[..5].iter().map(|job| job.seq).collect());
        let statuses: Vec<&str> = claimed.iter().map(|job| status(store, job.id).as_str()).collect();
        assert_eq!(statuses, ["completed", "failed", "retrying", "completed", "failed", "running"]);
        assert_eq!(letters(store), 2);
    });
}

#[test]
fn a_retry_counts_the_attempt_keeps_its_error_and_is_dispatched_within_the_horizon() {
    on_every_dialect(|store| {
        let near = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        let far = claim_one(store, submit_one(store, NewJob::new("x", "{}")));

        let near_outcome = outcome(&near, retry(Duration::from_secs(3)));
        let far_outcome = outcome(&far, retry(Duration::from_secs(500)));
        let accepted = store.finish(&[near_outcome, far_outcome], REPLICA, Some(TICK)).expect("finished");

        let due = |seq| accepted.iter().find(|accepted| accepted.seq == seq).expect("accepted").due_in_ms;
        assert_eq!((due(near.seq), due(far.seq)), (Some(3_000), None));
        let job = store.job(near.id).expect("read").expect("there");
        assert_eq!(
            (job.status.as_str(), job.retry_count, job.last_error.as_deref()),
            ("retrying", 1, Some("no answer"))
        );
        let attempts = store.failed_attempts(near.id).expect("read");
        assert_eq!(attempts.len(), 1);
        assert_eq!((attempts[0].attempt, attempts[0].error.as_str(), attempts[0].token), (1, "no answer", near.token));
    });
}

#[test]
fn a_buried_job_has_one_dead_letter_with_its_payload_and_reason() {
    on_every_dialect(|store| {
        let job = NewJob { lane: Lane::High, ..NewJob::new("send_email", "{\"to\":\"🦀\"}") };
        let claimed = claim_one(store, submit_one(store, job.clone()));

        assert!(finish(store, &claimed, bury()));

        let letters = store.dead_letters(&DeadLetterFilter::default(), None, 10).expect("read");
        assert_eq!(letters.len(), 1);
        let letter = &letters[0];
        assert_eq!((letter.original_job_id, &letter.job_type, &letter.payload), (job.id, &job.job_type, &job.payload));
        assert_eq!(
            (letter.priority.as_str(), letter.reason.as_str()),
            ("high", "address refused 🦀 \u{FFFD} \"quoted\"")
        );
        let read = store.job(job.id).expect("read").expect("there");
        assert!(read.finished_at.is_some());
        assert_eq!(read.last_error, Some(letter.reason.clone()));
    });
}

#[test]
fn a_released_job_is_queued_again_with_its_attempt() {
    on_every_dialect(|store| {
        let fresh = claim_one(store, submit_one(store, NewJob { lane: Lane::Low, ..NewJob::new("x", "{}") }));
        let tried = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        assert!(finish(store, &tried, retry(Duration::ZERO)));
        let tried = claim(store, &[tried.seq]).pop().expect("due");

        let (released, left) =
            store.release(&[(fresh.seq, fresh.token), (tried.seq, tried.token)], REPLICA).expect("released");

        assert_eq!((released.len(), left.len()), (2, 0));
        assert!(released.iter().any(|job| job.seq == fresh.seq && job.lane == Lane::Low));
        assert_eq!((status(store, fresh.id), status(store, tried.id)), (Status::Queued, Status::Retrying));
        assert!(!finish(store, &fresh, Verdict::Complete), "the token is void");
        assert_eq!(claim(store, &[fresh.seq])[0].attempt(), 1);
        assert_eq!(claim(store, &[tried.seq])[0].attempt(), 2);
    });
}

#[test]
fn a_queued_a_retrying_and_a_running_job_can_be_cancelled_and_an_ended_one_cannot() {
    on_every_dialect(|store| {
        let queued = NewJob::new("x", "{}");
        submit_one(store, queued.clone());
        let running = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        let retrying = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        assert!(finish(store, &retrying, retry(Duration::from_secs(9))));
        let done = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        assert!(finish(store, &done, Verdict::Complete));

        for id in [queued.id, running.id, retrying.id] {
            assert!(matches!(store.cancel(id).expect("answered"), Cancelled::Done(_)));
            assert_eq!(status(store, id), Status::Cancelled);
        }

        assert!(matches!(store.cancel(done.id).expect("answered"), Cancelled::TooLate(_)));
        assert_eq!(store.cancel(Uuid::new_v4()).expect("answered"), Cancelled::NotFound);
        assert!(!finish(store, &running, Verdict::Complete), "the outcome of a cancelled job is refused");
        assert_eq!(store.not_held(&[(running.seq, running.token)]).expect("read"), [(running.seq, running.token)]);
        assert!(store.dispatch(Lane::Medium, REPLICA, TICK, 10).expect("dispatched").due.is_empty());
    });
}

#[test]
fn a_dead_letter_is_revived_with_all_its_retries() {
    on_every_dialect(|store| {
        let job = NewJob { lane: Lane::High, max_retries: 1, ..NewJob::new("x", "{\"a\":1}") };
        let claimed = claim_one(store, submit_one(store, job.clone()));
        assert!(finish(store, &claimed, retry(Duration::ZERO)));
        let claimed = claim(store, &[claimed.seq]).pop().expect("due");
        assert!(finish(store, &claimed, bury()));
        let letter = store.dead_letters(&DeadLetterFilter::default(), None, 1).expect("read").remove(0);

        let revived = store.revive(letter.id, REPLICA).expect("answered");

        assert!(
            matches!(revived, Revived::Queued(released) if released.seq == claimed.seq && released.lane == Lane::High)
        );
        assert_eq!((status(store, job.id), letters(store)), (Status::Queued, 0));
        assert_eq!(claim(store, &[claimed.seq])[0].attempt(), 1);
        assert_eq!(store.revive(letter.id, REPLICA).expect("answered"), Revived::NotFound);
    });
}

#[test]
fn a_dead_letter_is_not_revived_while_another_job_has_its_key() {
    on_every_dialect(|store| {
        let keyed = || NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") };
        let claimed = claim_one(store, submit_one(store, keyed()));
        assert!(finish(store, &claimed, bury()));
        let holder = keyed();
        submit_one(store, holder.clone());

        assert_eq!(store.revive(claimed.id, REPLICA).expect("answered"), Revived::KeyTaken(holder.id));

        store.cancel(holder.id).expect("cancelled");
        assert!(matches!(store.revive(claimed.id, REPLICA).expect("answered"), Revived::Queued(_)));
    });
}

#[test]
fn an_expired_lease_returns_the_job_once_and_counts_as_a_failed_attempt() {
    on_every_dialect(|store| {
        let stored = submit_one(store, NewJob::new("x", "{}"));
        let lost = store.claim(&[stored.seq], OTHER, Duration::ZERO).expect("claimed").jobs.remove(0);
        let held = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        std::thread::sleep(Duration::from_millis(5)); // OK: lets the lease of zero length run out by the database's clock

        let verdict = |_: &trilane::store::Expired| retry(Duration::ZERO);
        assert!(store.beat(REPLICA, "test", 0, Duration::from_mins(1)).expect("beats").leases_expired);
        let expired = store.expire(REPLICA, verdict).expect("expired").expect("a lease had run out");

        assert_eq!(expired.iter().map(|job| (job.seq, job.replica)).collect::<Vec<_>>(), [(lost.seq, OTHER)]);
        assert!(store.expire(REPLICA, verdict).expect("expired").is_none());
        assert_eq!(status(store, held.id), Status::Running);
        assert!(!finish(store, &lost, Verdict::Complete), "the dead replica's outcome is refused");
        let job = store.job(lost.id).expect("read").expect("there");
        assert_eq!((job.status.as_str(), job.retry_count), ("retrying", 1));
        assert_eq!(store.dispatch(Lane::Medium, REPLICA, TICK, 10).expect("dispatched").due[0].seq, lost.seq);
    });
}

#[test]
fn a_lease_is_renewed_until_another_ends_it() {
    on_every_dialect(|store| {
        let first = store
            .claim(&[submit_one(store, NewJob::new("x", "{}")).seq], REPLICA, Duration::ZERO)
            .expect("claimed")
            .jobs;
        let second = claim_one(store, submit_one(store, NewJob::new("x", "{}")));

        assert!(store.renew(&[first[0].token, second.token], LEASE).expect("renewed").is_empty());
        assert!(store.expire(OTHER, |_| bury()).expect("expired").is_none(), "it was renewed in time");
        store.end_leases(&[second.token]).expect("ended");

        assert_eq!(store.renew(&[first[0].token, second.token], LEASE).expect("renewed"), [second.token]);
    });
}

#[test]
fn jobs_are_stored_claimed_in_their_order() {
    on_every_dialect(|store| {
        let holder = submit_one(store, NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") });
        let mut new = jobs(3, Lane::High);
        new[1] = NewJob { timeout: Some(Duration::from_secs(7)), max_retries: 9, ..NewJob::new("é", "{\"ü\":1}") };
        let plain = store.submit_claimed(&new.iter().collect::<Vec<_>>(), REPLICA, LEASE).expect("stored");
        let keyed = ["k", "other"].map(|key| NewJob { unique_key: Some(key.into()), ..NewJob::new("x", "{}") });
        let keyed = store.submit_claimed(&keyed.each_ref(), REPLICA, LEASE).expect("stored");

        let claimed: Vec<ClaimedJob> = plain.into_iter().map(|result| result.expect("no key").1).collect();
        assert!(claimed.iter().all(|job| job.token == claimed[0].token), "one lease");
        assert!(claimed.is_sorted_by_key(|job| job.seq) && claimed[0].seq > holder.seq);
        for (job, new) in claimed.iter().zip(&new) {
            let shown = (&job.job_type, &job.payload, job.lane, job.max_retries, job.timeout, job.attempt());
            assert_eq!(shown, (&new.job_type, &new.payload, new.lane, new.max_retries, new.timeout, 1));
            assert_eq!((job.id, status(store, job.id)), (new.id, Status::Running));
        }
        assert_eq!(
            keyed[0].as_ref().map_err(|taken| store.job(taken.held_by).expect("read").map(|job| job.seq)).err(),
            Some(Some(holder.seq))
        );
        let other = keyed[1].as_ref().expect("its key was free").1.clone();
        assert_eq!(other.unique_key.as_deref(), Some("other"));
        let done = outcome(&claimed[0], Verdict::Complete);
        assert_eq!(store.finish(&[done], REPLICA, None).expect("stored").len(), 1);
        let released = store.release_unknown(REPLICA, &[other.token]).expect("released");
        assert_eq!(
            released.iter().map(|job| job.seq).collect::<HashSet<_>>(),
            claimed[1..].iter().map(|job| job.seq).collect()
        );
    });
}

#[test]
fn a_claim_that_its_replica_never_learned_of_is_given_back() {
    on_every_dialect(|store| {
        let known = claim_one(store, submit_one(store, NewJob::new("x", "{}")));
        let unknown = claim_one(store, submit_one(store, NewJob::new("x", "{}")));

        let released = store.release_unknown(REPLICA, &[known.token]).expect("released");

        assert_eq!(released.iter().map(|job| job.seq).collect::<Vec<_>>(), [unknown.seq]);
        assert_eq!((status(store, known.id), status(store, unknown.id)), (Status::Running, Status::Queued));
    });
}

#[test]
fn plain_sql_inserts_are_made_regular_and_dispatched() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        let ids: Vec<Uuid> = (0..5).map(|_| Uuid::new_v4()).collect();
        let rows = [
            ("send_email", "HIGH", "queued"),
            ("export_user_data", "Medium", "queued"),
            ("process_payment", "low", "QUEUED"),
            ("Notification", "urgent", "queued"),
            ("ReportGeneration", "HIGH", "pending"),
        ];
        for (id, (job_type, priority, status)) in ids.iter().zip(rows) {
            execute(
                &fresh.connection_string,
                &format!(
                    "INSERT INTO Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status) \
                     VALUES ('{id}', '{job_type}', '{{\"a\":1}}', '{priority}', 3, 0, '{status}')"
                ),
            );
        }

        let mut odd = store.regularise().expect("regular").odd;
        let mut due = Vec::new();
        for lane in Lane::ALL {
            let found = store.dispatch(lane, REPLICA, TICK, 100).expect("dispatched");
            due.extend(found.due.iter().map(|due| due.seq));
            odd.extend(found.odd);
        }
        store.bury_odd(&odd).expect("buried");

        let claimed = claim(store, &due);
        let claimed: Vec<(Uuid, Lane)> = claimed.iter().map(|job| (job.id, job.lane)).collect();
        assert_eq!(claimed, [(ids[0], Lane::High), (ids[1], Lane::Medium), (ids[2], Lane::Low)], "{dialect:?}");
        let letters = store.dead_letters(&DeadLetterFilter::default(), None, 10).expect("read");
        let reasons: Vec<&str> = letters.iter().map(|letter| letter.reason.as_str()).collect();
        assert!(reasons[0].contains("\"urgent\"") && reasons[1].contains("\"pending\""), "{reasons:?}");
        assert_eq!((status(store, ids[3]), status(store, ids[4])), (Status::Failed, Status::Failed));
        assert!(store.regularise().expect("regular").odd.is_empty());
        // Queued in no lane it would wait for ever, once its id is lost.
        assert_eq!(store.revive(ids[3], REPLICA).expect("answered"), Revived::NotFailed, "{dialect:?}");
        assert!(matches!(store.revive(ids[4], REPLICA).expect("answered"), Revived::Queued(_)));
        let before = self::letters(store);

        execute(
            &fresh.connection_string,
            "INSERT INTO Jobs (Type, Payload, Priority, Status) VALUES ('x', '{}', 'urgent', 'completed')",
        );
        store.bury_odd(&store.regularise().expect("regular").odd).expect("buried");
        assert!(store.regularise().expect("regular").odd.is_empty(), "it is not found again and again");
        assert_eq!(self::letters(store), before, "it had ended, so there is no dead letter");
    }
}

#[test]
fn an_id_lost_on_its_way_is_dispatched_again_and_one_behind_the_head_is_not() {
    on_every_dialect(|store| {
        let lost = submit_one(store, NewJob::new("x", "{}"));
        std::thread::sleep(Duration::from_millis(20)); // OK: the times of dispatch must differ
        let head = submit_one(store, NewJob::new("x", "{}"));
        std::thread::sleep(Duration::from_millis(20)); // OK: as above
        let behind = submit_one(store, NewJob::new("x", "{}"));

        let recalled = recall_lost(store, Lane::Medium, Some(head.seq), Duration::ZERO, false);

        assert_eq!(recalled, 1);
        assert_eq!(store.dispatch(Lane::Medium, OTHER, TICK, 10).expect("dispatched").due[0].seq, lost.seq);
        assert_eq!(recall_lost(store, Lane::Medium, None, Duration::from_mins(1), false), 0, "the grace");
        std::thread::sleep(Duration::from_millis(20)); // OK: as above
        assert_eq!(recall_lost(store, Lane::Medium, None, Duration::ZERO, false), 3, "the lane is empty");
        assert_eq!(recall_lost(store, Lane::High, None, Duration::ZERO, false), 0, "another lane");
        let due = store.dispatch(Lane::Medium, OTHER, TICK, 10).expect("dispatched").due;
        assert_eq!(due.iter().map(|due| due.seq).collect::<Vec<_>>(), [lost.seq, head.seq, behind.seq]);
    });
}

#[test]
fn a_head_that_was_given_back_itself_tells_nothing_of_what_is_behind_it() {
    on_every_dialect(|store| {
        let head = submit_one(store, NewJob::new("x", "{}"));
        submit_one(store, NewJob::new("x", "{}"));
        store.recall(&[head.seq]).expect("recalled");
        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed

        let recalled = recall_lost(store, Lane::Medium, Some(head.seq), Duration::ZERO, false);

        assert_eq!(recalled, 0);
    });
}

#[test]
fn a_head_that_was_released_tells_nothing_of_what_was_dispatched_before_it() {
    on_every_dialect(|store| {
        let stored = submit(store, &jobs(5, Lane::Medium));
        let claimed = claim_one(store, stored[0]);
        std::thread::sleep(Duration::from_millis(20)); // OK: the release must be later than the dispatch
        store.release(&[(claimed.seq, claimed.token)], REPLICA).expect("released");

        assert_eq!(recall_lost(store, Lane::Medium, Some(claimed.seq), Duration::ZERO, false), 0);

        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed
        assert_eq!(
            recall_lost(store, Lane::Medium, None, Duration::ZERO, false),
            5,
            "the released one can be lost too"
        );
    });
}

#[test]
fn a_revived_job_at_the_head_tells_what_was_dispatched_before_it() {
    on_every_dialect(|store| {
        let stored = submit(store, &jobs(5, Lane::Medium));
        let claimed = claim_one(store, stored[0]);
        assert!(finish(store, &claimed, bury()));
        std::thread::sleep(Duration::from_millis(20)); // OK: the revival must be later than the dispatch
        assert!(matches!(store.revive(claimed.id, REPLICA).expect("answered"), Revived::Queued(_)));

        assert_eq!(recall_lost(store, Lane::Medium, Some(claimed.seq), Duration::ZERO, false), 4);
    });
}

#[test]
fn lost_ids_are_found_page_by_page_however_many_share_a_moment() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        let seqs: Vec<Seq> = submit(store, &jobs(12_500, Lane::Low)).iter().map(|stored| stored.seq).collect();
        // 6,000 of one moment, more than a page; the others in theirs. Of each thousand one is lost, the rest is done.
        let of = |n: usize| seqs[n].0;
        let run = |sql: String| execute(&fresh.connection_string, &sql);
        run(format!(
            "UPDATE Jobs SET DispatchedAt = (SELECT DispatchedAt FROM Jobs WHERE Seq = {0}) WHERE Seq BETWEEN {0} AND {1}",
            of(4_000),
            of(9_999)
        ));
        let lost: Vec<Seq> = seqs.iter().copied().step_by(1_000).collect();
        let numbers: Vec<String> = lost.iter().map(|seq| seq.0.to_string()).collect();
        run(format!("UPDATE Jobs SET Status = 'completed' WHERE Seq NOT IN ({})", numbers.join(",")));
        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed

        let mut sweep = store.begin_sweep([None; 3], Duration::ZERO, false).expect("begun").pop().expect("of low");
        let mut pages = Vec::new();
        while !sweep.is_done() {
            pages.push(store.sweep(&mut sweep).expect("searched"));
        }

        assert!((2..=4).contains(&pages.len()), "{dialect:?}: {pages:?}");
        assert_eq!(pages.iter().sum::<usize>(), 13, "{dialect:?}: {pages:?}");
        let found = store.dispatch(Lane::Low, OTHER, TICK, 100).expect("dispatched").due;
        assert_eq!(found.iter().map(|due| due.seq).collect::<HashSet<_>>(), lost.into_iter().collect(), "{dialect:?}");
    }
}

#[test]
fn a_search_that_was_broken_off_is_taken_up_where_it_was() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        // Farther back than any search looks behind the point up to which all was searched.
        execute(&fresh.connection_string, &format!("UPDATE Lanes SET SweptTo = {}", before(dialect, "SweptTo", 7_200)));
        let seqs: Vec<Seq> = submit(store, &jobs(6_000, Lane::Low)).iter().map(|stored| stored.seq).collect();
        dispatch_earlier(&fresh.connection_string, dialect, &seqs[..5_500], 6_000);
        dispatch_earlier(&fresh.connection_string, dialect, &seqs[5_500..], 3_000);
        let begin = || store.begin_sweep([None; 3], Duration::ZERO, false).expect("begun").pop().expect("of low");
        let mut broken_off = begin();
        let first = store.sweep(&mut broken_off).expect("searched");
        store.swept(&broken_off).expect("noted");
        assert!((4_000..=5_500).contains(&first) && !broken_off.is_done(), "{dialect:?}: {first}");

        let (mut next, mut rest) = (begin(), 0);
        while !next.is_done() {
            rest += store.sweep(&mut next).expect("searched");
        }

        assert_eq!(first + rest, 6_000, "{dialect:?}");
        store.swept(&next).expect("noted");
        dispatch_earlier(&fresh.connection_string, dialect, &[submit_one(store, NewJob::new("x", "{}")).seq], 3_000);
        assert_eq!(
            recall_lost(store, Lane::Medium, None, Duration::ZERO, false),
            1,
            "{dialect:?}: each lane by itself"
        );
    }
}

#[test]
fn a_row_that_was_committed_behind_a_search_is_found_by_the_next() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        recall_lost(store, Lane::Low, None, Duration::ZERO, false);
        submit(store, &jobs(1, Lane::Low));
        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed
        assert_eq!(recall_lost(store, Lane::Low, None, Duration::ZERO, false), 1, "so it has been searched up to now");
        let seqs: Vec<Seq> = submit(store, &jobs(2, Lane::Low)).iter().map(|stored| stored.seq).collect();
        dispatch_earlier(&fresh.connection_string, dialect, &seqs[..1], 110);
        dispatch_earlier(&fresh.connection_string, dialect, &seqs[1..], 500);

        assert_eq!(recall_lost(store, Lane::Low, None, Duration::from_secs(10), false), 1, "{dialect:?}: of 110 s ago");
        assert_eq!(recall_lost(store, Lane::Low, None, Duration::from_secs(10), true), 1, "{dialect:?}: of 500 s ago");
    }
}

#[test]
fn of_jobs_given_those_that_wait_are_known_and_among_them_those_due_for_longer_than_the_limit() {
    on_every_dialect(|store| {
        let early =
            || NewJob { start: Start::At("2020-01-01T00:00:00Z".parse().expect("time")), ..NewJob::new("x", "{}") };
        let stored = submit(store, &[early(), NewJob::new("x", "{}"), early()]);
        let seqs: Vec<Seq> = stored.iter().map(|job| job.seq).collect();
        claim(store, &seqs[2..]);

        let waiting = store.starved(&seqs, Duration::from_mins(1)).expect("read");

        assert_eq!(waiting, HashMap::from([(seqs[0], true), (seqs[1], false)]), "the third runs");
    });
}

#[test]
fn a_promoted_job_is_not_lost_while_it_waits_in_the_high_lane() {
    on_every_dialect(|store| {
        let seqs: Vec<Seq> = submit(store, &jobs(2, Lane::Low)).iter().map(|stored| stored.seq).collect();
        std::thread::sleep(Duration::from_millis(20)); // OK: the times of dispatch must differ
        store.promote(&seqs[..1], REPLICA).expect("promoted");
        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed
        let recalled = |heads| {
            let sweeps = store.begin_sweep(heads, Duration::ZERO, false).expect("begun");
            sweeps.into_iter().map(|mut sweep| store.sweep(&mut sweep).expect("searched")).sum::<usize>()
        };

        assert_eq!(recalled([Some(seqs[0]), None, Some(seqs[1])]), 0, "each is the head of a lane");
        assert_eq!(recalled([Some(seqs[0]), None, None]), 1, "the low lane is empty, so the other is lost");
        assert_eq!(recalled([None, None, None]), 1, "now the promoted one as well");
    });
}

#[test]
fn ids_in_the_timers_of_a_dead_or_stopping_replica_are_dispatched_again() {
    on_every_dialect(|store| {
        let after = |seconds| NewJob { start: Start::After(Duration::from_secs(seconds)), ..NewJob::new("x", "{}") };
        let submit_by = |replica, seconds| {
            store.submit(&[&after(seconds)], replica, HORIZON_MS).expect("stored")[0].expect("no key").seq
        };
        let (own, of_dead) = (submit_by(REPLICA, 60), submit_by(OTHER, 60));
        // In its lane, by a replica that has left since: not to be dispatched twice.
        submit_by(OTHER, 0);
        store.beat(REPLICA, "alive", 0, Duration::from_mins(1)).expect("beats");

        assert_eq!(recall_with_replica(store, None), 1);
        let due = store.dispatch(Lane::Medium, REPLICA, TICK, 10).expect("dispatched").due;
        assert_eq!(due.iter().map(|due| due.seq).collect::<Vec<_>>(), [of_dead]);

        assert_eq!(recall_with_replica(store, Some(REPLICA)), 2);
        let due = store.dispatch(Lane::Medium, OTHER, TICK, 10).expect("dispatched").due;
        assert_eq!(due.len(), 2);
        assert!(due.iter().any(|due| due.seq == own && due.in_ms > 50_000));
    });
}

#[test]
fn what_was_due_in_the_timers_of_a_dead_replica_a_moment_ago_is_dispatched_again() {
    on_every_dialect(|store| {
        store.beat(OTHER, "dead", 0, Duration::from_mins(1)).expect("beats");
        let overdue = store.submit(&[&NewJob::new("x", "{}")], OTHER, HORIZON_MS).expect("stored")[0].expect("no key");
        std::thread::sleep(Duration::from_millis(30)); // OK: time must pass by the database's clock

        let recalled = store.recall_with_replica(Duration::from_millis(20), None, || ()).expect("recalled");

        assert_eq!((recalled.count, recalled.dead), (1, vec![OTHER]));
        let due = store.dispatch(Lane::Medium, REPLICA, TICK, 10).expect("dispatched").due;
        assert_eq!(due[0].seq, overdue.seq);
    });
}

#[test]
fn a_replica_not_seen_for_long_is_dead_and_forgotten() {
    on_every_dialect(|store| {
        store.beat(OTHER, "old", 0, Duration::from_mins(1)).expect("beats");
        std::thread::sleep(Duration::from_millis(30)); // OK: time must pass by the database's clock

        let beat = store.beat(REPLICA, "new", 3, Duration::from_millis(20)).expect("beats");
        store.bury_replicas(&[REPLICA], Duration::from_millis(20)).expect("none to bury");

        assert!(beat.replicas_dead);
        let again = store.beat(REPLICA, "new", 3, Duration::from_millis(20)).expect("beats");
        assert!(again.replicas_dead, "one whose timers were not recalled stays");
        store.bury_replicas(&[REPLICA, OTHER], Duration::from_millis(20)).expect("buried");
        assert!(!store.beat(REPLICA, "new", 3, Duration::from_mins(1)).expect("beats").replicas_dead);
        store.forget_replica(REPLICA).expect("forgotten");
    });
}

#[test]
fn listings_are_filtered_and_paged_in_the_order_of_arrival() {
    on_every_dialect(|store| {
        let all = submit(store, &[jobs(3, Lane::High), jobs(2, Lane::Low)].concat());
        submit_one(store, NewJob::new("other", "{}"));
        claim(store, &[all[0].seq]);
        let count = |filter: JobFilter| store.jobs(&filter, None, 100).expect("read").len();

        let page = store.jobs(&JobFilter::default(), Some(all[1].seq), 2).expect("read");

        assert_eq!(page.iter().map(|job| job.seq).collect::<Vec<_>>(), [all[2].seq, all[3].seq]);
        assert_eq!(count(JobFilter { status: Some(Status::Running), ..JobFilter::default() }), 1);
        assert_eq!(count(JobFilter { job_type: Some("other".into()), ..JobFilter::default() }), 1);
        assert_eq!(count(JobFilter { lane: Some(Lane::Low), ..JobFilter::default() }), 2);
        assert_eq!(count(JobFilter { since: Some(all[0].created_at), ..JobFilter::default() }), 6);
        let future = "2999-01-01T00:00:00Z".parse().expect("a time");
        assert_eq!(count(JobFilter { since: Some(future), ..JobFilter::default() }), 0);
    });
}

#[test]
fn only_ended_jobs_older_than_the_retention_are_pruned() {
    on_every_dialect(|store| {
        let stored = submit(store, &jobs(4, Lane::Low));
        let claimed: Vec<ClaimedJob> = stored.iter().take(3).map(|stored| claim_one(store, *stored)).collect();
        assert!(finish(store, &claimed[0], Verdict::Complete));
        assert!(finish(store, &claimed[1], bury()));
        store.cancel(claimed[2].id).expect("cancelled");

        assert_eq!(store.prune_jobs(Duration::from_mins(1), None).expect("pruned").deleted, 0);
        std::thread::sleep(Duration::from_millis(20)); // OK: time must pass by the database's clock
        let pruned = store.prune_jobs(Duration::ZERO, None).expect("pruned");

        assert_eq!(pruned.deleted, 2);
        let left: Vec<Seq> =
            store.jobs(&JobFilter::default(), None, 10).expect("read").iter().map(|job| job.seq).collect();
        assert_eq!(left, [stored[1].seq, stored[3].seq], "the failed and the queued one stay");
    });
}

#[test]
fn old_results_of_calls_and_old_statistics_are_forgotten_a_batch_at_a_time() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        let count = |table: &str| number(&fresh.connection_string, &format!("select count(*) from {table}"));
        let (key_bytes, old) = match dialect {
            Dialect::Mssql => (", KeyBytes", "DATEADD(hour, -25, SYSUTCDATETIME())"),
            Dialect::Postgres => ("", "now() - interval '25 hours'"),
            Dialect::Sqlite => ("", "cast((julianday('now') - 2440587.5) * 86400000 as integer) - 25 * 3600000"),
        };
        for chunk in 0..3 {
            let rows =
                |row: &dyn Fn(i32) -> String| (0..500).map(|n| row(chunk * 500 + n)).collect::<Vec<_>>().join(",");
            let bytes = if key_bytes.is_empty() { "" } else { ", 1" };
            let keys = rows(&|n| format!("('old {n}'{bytes}, 'x', '[]', {old})"));
            execute(
                &fresh.connection_string,
                &format!(
                    "INSERT INTO IdempotencyKeys (IdempotencyKey{key_bytes}, RequestHash, Results, CreatedAt) VALUES {keys}"
                ),
            );
            let stats = rows(&|n| format!("({old}, 'low', 't{n}', 1)"));
            execute(
                &fresh.connection_string,
                &format!("INSERT INTO JobStats (Minute, Lane, Type, ReplicaId) VALUES {stats}"),
            );
        }
        let young = Idempotency { key: "young".into(), request_hash: [0; 32] };
        store.submit_once(&[&NewJob::new("x", "{}")], &young, REPLICA, HORIZON_MS).expect("stored");
        let day = Duration::from_hours(24);

        let mut left = Vec::new();
        while store.prune_idempotency().expect("pruned") {
            left.push(count("IdempotencyKeys"));
        }
        while store.prune_stats(day).expect("pruned") {
            left.push(count("JobStats"));
        }

        assert_eq!(left, [501, 500], "{dialect:?}: a thousand first");
        assert_eq!((count("IdempotencyKeys"), count("JobStats")), (1, 0), "{dialect:?}");
        let again = store.submit_once(&[&NewJob::new("x", "{}")], &young, REPLICA, HORIZON_MS).expect("answered");
        assert!(matches!(again, Submitted::Before(_)), "{dialect:?}: the young one is still known");
    }
}

#[test]
fn outcomes_are_counted_by_lane_and_type() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        let finished =
            [("x", Verdict::Complete), ("X", Verdict::Complete), ("x", bury()), ("x", retry(Duration::ZERO))];
        let outcomes = finished.map(|(job_type, verdict)| {
            outcome(&claim_one(store, submit_one(store, NewJob::new(job_type, "{}"))), verdict)
        });
        store.finish(&outcomes, REPLICA, Some(TICK)).expect("finished");

        let sum = |column: &str| {
            number(&fresh.connection_string, &format!("select cast(sum({column}) as bigint) from JobStats"))
        };

        assert_eq!((sum("Completed"), sum("Failed"), sum("Retried")), (2, 1, 1), "{dialect:?}");
        assert_eq!(sum("DurationMs"), 20, "{dialect:?}");
        // Of a single letter's case: sums over each of them, in as many minutes as the test took.
        assert_eq!(number(&fresh.connection_string, "select count(distinct Minute) * 2 - count(*) from JobStats"), 0);
    }
}

#[test]
fn a_database_of_the_original_is_taken_over_without_losing_a_row() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        let ids: Vec<Uuid> = (0..6).map(|_| Uuid::new_v4()).collect();
        for sql in original_tables(dialect) {
            execute(&fresh.connection_string, &sql);
        }
        let rows = [
            ("HIGH", "queued", 0, "'2024-01-03 10:00:00'", "'2024-01-03 10:00:00'"),
            ("medium", "Processing", 1, "'2024-01-01 10:00:00'", "'2024-01-01 10:00:05'"),
            ("low", "completed", 0, "'2024-01-02 10:00:00'", "'2024-01-02 10:00:09'"),
            ("Low", "FAILED", 3, "'2024-01-04 10:00:00'", "'2024-01-04 10:00:01'"),
            ("Medium", "retrying", 2, "NULL", "NULL"),
            ("high", "Canceled", 0, "'2024-01-05 10:00:00'", "NULL"),
        ];
        for (id, (priority, status, retries, created, updated)) in ids.iter().zip(rows) {
            execute(
                &fresh.connection_string,
                &format!(
                    "INSERT INTO Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt) \
                     VALUES ('{id}', 'send_email', '{{\"to\":\"a''b\"}}', '{priority}', 5, {retries}, '{status}', {created}, {updated})"
                ),
            );
        }
        execute(
            &fresh.connection_string,
            &format!(
                "INSERT INTO FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt) VALUES \
                 ('{}', '{}', 'send_email', '{{}}', 'low', 'no such address', '2024-01-04 10:00:01')",
                ids[0], ids[3]
            ),
        );

        store.migrate().expect("taken over");

        let jobs = store.jobs(&JobFilter::default(), None, 10).expect("read");
        let read: Vec<(Uuid, &str, i64)> =
            jobs.iter().map(|job| (job.id, job.status.as_str(), job.retry_count)).collect();
        let expected = [
            (ids[1], "queued", 1),
            (ids[2], "completed", 0),
            (ids[0], "queued", 0),
            (ids[3], "failed", 3),
            (ids[5], "cancelled", 0),
            (ids[4], "queued", 2),
        ];
        assert_eq!(read, expected, "{dialect:?}, in the order of time, those without one last");
        assert!(jobs.iter().all(|job| job.payload == "{\"to\":\"a'b\"}" && job.max_retries == 5));
        assert_eq!(jobs[1].created_at.to_string(), "2024-01-02T10:00:00.000Z");
        assert_eq!(jobs[1].finished_at.expect("ended").to_string(), "2024-01-02T10:00:09.000Z");
        assert_eq!(jobs[0].run_at, jobs[0].created_at);

        assert!(store.regularise().expect("regular").odd.is_empty());
        let due = |lane| store.dispatch(lane, REPLICA, TICK, 10).expect("dispatched").due;
        let seqs: Vec<Seq> = Lane::ALL.into_iter().flat_map(due).map(|due| due.seq).collect();
        let claimed = claim(store, &seqs);
        let claimed: Vec<(Uuid, Lane)> = claimed.iter().map(|job| (job.id, job.lane)).collect();
        assert_eq!(claimed, [(ids[0], Lane::High), (ids[1], Lane::Medium), (ids[4], Lane::Medium)], "{dialect:?}");

        let letter = store.dead_letters(&DeadLetterFilter::default(), None, 10).expect("read").remove(0);
        assert_eq!((letter.id, letter.original_job_id, letter.reason.as_str()), (ids[0], ids[3], "no such address"));
        assert!(matches!(store.revive(letter.id, REPLICA).expect("answered"), Revived::Queued(_)));
        execute(
            &fresh.connection_string,
            "INSERT INTO Jobs (Type, Payload, Priority) VALUES ('send_email', '{}', 'LOW')",
        );
        assert_eq!(store.jobs(&JobFilter::default(), None, 10).expect("read").len(), 7);
        assert_unknown_columns_are_kept(&fresh);
    }
}

/// The Note of one of the original's tables is not a column of Trilane's, so that table is kept; the other is not.
fn assert_unknown_columns_are_kept(fresh: &TestStore) {
    let left = match fresh.store.dialect() {
        Dialect::Mssql => "select case when object_id(N'JobsBeforeTrilane') is null then 0 else 1 end",
        Dialect::Postgres => "select count(*) from pg_class where oid = to_regclass('JobsBeforeTrilane')",
        Dialect::Sqlite => return,
    };
    let kept = "select count(*) from FailedJobsBeforeTrilane where Note = 'kept'";
    assert_eq!((number(&fresh.connection_string, kept), number(&fresh.connection_string, left)), (1, 0));
}

/// The tables of the original system. On SQL Server, where it ran: with the sloppiness that its script may have had.
fn original_tables(dialect: Dialect) -> Vec<String> {
    let (id, text, time, more) = match dialect {
        Dialect::Mssql => (
            "UNIQUEIDENTIFIER PRIMARY KEY DEFAULT NEWID()",
            "NVARCHAR(MAX)",
            "DATETIME DEFAULT GETDATE()",
            ", Note VARCHAR(9) DEFAULT 'kept'",
        ),
        Dialect::Postgres => (
            "UUID PRIMARY KEY DEFAULT gen_random_uuid()",
            "TEXT",
            "TIMESTAMP DEFAULT now()",
            ", Note VARCHAR(9) DEFAULT 'kept'",
        ),
        Dialect::Sqlite => ("TEXT PRIMARY KEY", "TEXT", "DATETIME DEFAULT CURRENT_TIMESTAMP", ""),
    };
    let job = id.split(' ').next().unwrap_or_default();
    vec![
        format!(
            "CREATE TABLE Jobs (Id {id}, Type VARCHAR(100) NOT NULL, Payload {text} NOT NULL, Priority VARCHAR(10) NOT NULL, \
             MaxRetries INT NOT NULL DEFAULT 3, RetryCount INT NOT NULL DEFAULT 0, Status VARCHAR(50) NOT NULL DEFAULT 'queued', \
             CreatedAt {time}, UpdatedAt {time})"
        ),
        "CREATE INDEX IX_Jobs_Status ON Jobs (Status)".to_owned(),
        format!(
            "CREATE TABLE FailedJobs (Id {id}, OriginalJobId {job} NOT NULL, Type VARCHAR(100) NOT NULL, Payload {text} NOT NULL, \
             Priority VARCHAR(10) NOT NULL, Reason {text}, FailedAt {time}{more})"
        ),
    ]
}

#[test]
fn on_sql_server_the_migration_can_be_run_by_hand_and_again() {
    for dialect in dialects().into_iter().filter(|dialect| *dialect == Dialect::Mssql) {
        let fresh = TestStore::new(dialect);
        // As sqlcmd does: at each GO, with QUOTED_IDENTIFIER off.
        let text = include_str!("../sql/mssql/migrations/0001_jobs.sql");
        let batches: Vec<&str> = ["SET QUOTED_IDENTIFIER OFF"].into_iter().chain(text.split("\nGO\n")).collect();

        execute_all(&fresh.connection_string, &batches);
        submit_one(&fresh.store, NewJob::new("x", "{}"));
        execute_all(&fresh.connection_string, &batches);

        fresh.store.check_schema().expect("it noted itself");
        let migrated = fresh.store.migrate().expect("nothing to do");
        assert_eq!((migrated.from, migrated.to), (1, 1));
        assert_eq!(fresh.store.jobs(&JobFilter::default(), None, 10).expect("read").len(), 1, "the job is still there");
    }
}

#[test]
fn migrations_run_once_even_when_replicas_start_together() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        assert!(matches!(fresh.store.check_schema(), Err(StoreError::Corrupt(why)) if why.contains("trilane migrate")));

        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| fresh.another().migrate().expect("migrated"));
            }
        });

        fresh.store.check_schema().expect("up to date");
    }
}

#[test]
fn a_newer_schema_is_refused() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        execute(&fresh.connection_string, "insert into SchemaVersion (Version, Name) values (9999, 'future')");

        for refused in [fresh.store.migrate().map(drop), fresh.store.check_schema()] {
            assert!(matches!(refused, Err(StoreError::Corrupt(why)) if why.contains("newer")), "{dialect:?}");
        }
    }
}

#[test]
fn the_databases_of_this_run_are_the_ones_asked_for() {
    for dialect in dialects() {
        assert_eq!(TestStore::new(dialect).store.dialect(), dialect);
    }
    assert!(dialects().contains(&Dialect::Postgres));
}
