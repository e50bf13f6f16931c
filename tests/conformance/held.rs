//! Rows that another session holds: all others go on without a wait, and none is lost.

use std::time::{Duration, Instant};

use odbc_api::Connection;
use trilane::job::{Lane, Seq, Status};
use trilane::retry::Verdict;
use trilane::store::{Dialect, Store};

use super::stores::{TestStore, connect, dialects, number};
use super::{
    LEASE, OTHER, REPLICA, TICK, bury, claim, finish, jobs, letters, outcome, recall_lost, status, submit, submit_one,
};

/// Less than a session waits for a lock.
const AT_ONCE: Duration = Duration::from_millis(1_500);

/// On each database that locks rows.
fn with_rows_locked(test: impl Fn(&TestStore, &dyn Fn(Seq) -> Connection<'static>)) {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        let hold = |seq: Seq| {
            let foreign = connect(&fresh.connection_string);
            foreign.set_autocommit(false).expect("a transaction");
            let sql = format!("UPDATE Jobs SET UpdatedAt = UpdatedAt WHERE Seq = {seq}");
            foreign.execute(&sql, (), None).map(drop).expect("nobody has it");
            foreign
        };
        if dialect != Dialect::Sqlite {
            test(&fresh, &hold);
        }
    }
}

fn seqs(store: &Store, count: usize) -> Vec<Seq> {
    submit(store, &jobs(count, Lane::Medium)).iter().map(|stored| stored.seq).collect()
}

#[test]
fn a_claim_leaves_out_a_row_that_another_session_holds_and_says_so() {
    with_rows_locked(|fresh, hold| {
        let store = &fresh.store;
        let seqs = seqs(store, 4);
        let foreign = hold(seqs[1]);

        let first = store.claim(&seqs[..2], REPLICA, LEASE).expect("claimed");
        let begun = Instant::now();
        let second = store.claim(&seqs[1..3], REPLICA, LEASE).expect("claimed");
        let none = store.claim(&seqs[..2], REPLICA, LEASE).expect("claimed");

        assert!(begun.elapsed() < AT_ONCE, "waited for once, and not again: {:?}", begun.elapsed());
        let got = [&first, &second, &none].map(|claim| claim.jobs.iter().map(|job| job.seq).collect::<Vec<_>>());
        assert_eq!(got, [vec![seqs[0]], vec![seqs[2]], vec![]]);
        assert_eq!([first.left, second.left, none.left], [[seqs[1]], [seqs[1]], [seqs[1]]]);
        assert_eq!(number(&fresh.connection_string, "SELECT COUNT(*) FROM Leases"), 2, "none for nothing");
        foreign.rollback().expect("it ends");
        assert_eq!(claim(store, &[seqs[1]]).len(), 1);
    });
}

#[test]
fn a_lost_row_that_another_session_holds_is_found_once_it_is_free() {
    with_rows_locked(|fresh, hold| {
        let store = &fresh.store;
        let seqs = seqs(store, 3);
        let foreign = hold(seqs[1]);
        std::thread::sleep(Duration::from_millis(20)); // OK: a grace of zero must have passed
        let begun = Instant::now();

        if store.dialect() == Dialect::Postgres {
            assert_eq!(recall_lost(store, Lane::Medium, None, Duration::ZERO, false), 2);
            assert_eq!(recall_lost(store, Lane::Medium, None, Duration::ZERO, false), 0);
            assert!(begun.elapsed() < AT_ONCE, "without a wait: {:?}", begun.elapsed());
            let swept =
                "SELECT COUNT(*) FROM Lanes WHERE Lane = 'medium' AND SweptTo < (SELECT MIN(DispatchedAt) FROM Jobs)";
            assert_eq!(number(&fresh.connection_string, swept), 1, "not swept past it");
        }
        foreign.rollback().expect("it ends");
        let free = if store.dialect() == Dialect::Postgres { 1 } else { 3 };
        assert_eq!(recall_lost(store, Lane::Medium, None, Duration::ZERO, false), free);
    });
}

#[test]
fn outcomes_and_releases_leave_out_rows_that_another_session_holds() {
    with_rows_locked(|fresh, hold| {
        let store = &fresh.store;
        let seqs = seqs(store, 4);
        let claimed = claim(store, &seqs);
        let (foreign, begun) = (hold(seqs[1]), Instant::now());

        let outcomes = [outcome(&claimed[0], Verdict::Complete), outcome(&claimed[1], bury())];
        let (accepted, held) = store.finish_free(&outcomes, REPLICA, Some(TICK)).expect("finished");
        let given_back: Vec<_> = claimed[1..3].iter().map(|job| (job.seq, job.token)).collect();
        let (released, left) = store.release(&given_back, REPLICA).expect("released");
        // As a replica that does not know its lease.
        let unknown = store.release_unknown(REPLICA, &[]).expect("released");

        assert!(begun.elapsed() < AT_ONCE, "without a wait: {:?}", begun.elapsed());
        assert_eq!(accepted.iter().map(|accepted| accepted.seq).collect::<Vec<_>>(), [seqs[0]]);
        assert_eq!(
            (held.into_iter().collect::<Vec<_>>(), left.into_iter().collect::<Vec<_>>()),
            (vec![seqs[1]], vec![seqs[1]])
        );
        let released = [released, unknown].map(|jobs| jobs.iter().map(|job| job.seq).collect::<Vec<_>>());
        assert_eq!(released, [vec![seqs[2]], vec![seqs[3]]]);
        assert_eq!(number(&fresh.connection_string, "SELECT COUNT(*) FROM Leases"), 1, "a job runs under it");
        foreign.rollback().expect("it ends");
        assert!(finish(store, &claimed[1], bury()), "it still runs under its token");
        assert!(!finish(store, &claimed[1], bury()), "once");
        assert_eq!(letters(store), 1);
    });
}

#[test]
fn a_lease_that_ran_out_with_a_row_held_keeps_no_other_from_being_ended() {
    with_rows_locked(|fresh, hold| {
        let store = &fresh.store;
        let both = submit(store, &jobs(2, Lane::Medium));
        let other = submit_one(store, jobs(1, Lane::Low).remove(0));
        let expired = |seqs: &[Seq]| store.claim(seqs, OTHER, Duration::ZERO).expect("claimed").jobs;
        let (both, other) = (expired(&[both[0].seq, both[1].seq]), expired(&[other.seq]));
        let (foreign, begun) = (hold(both[0].seq), Instant::now());
        std::thread::sleep(Duration::from_millis(20)); // OK: the leases must have run out
        let expire = || store.expire(REPLICA, |_| bury()).expect("ended").map(|jobs| jobs.len());

        assert_eq!([expire(), expire()], [Some(1), None]);

        assert!(begun.elapsed() < AT_ONCE, "without a wait: {:?}", begun.elapsed());
        assert_eq!(status(store, other[0].id), Status::Failed);
        assert_eq!(status(store, both[1].id), Status::Running, "a lease is ended whole");
        foreign.rollback().expect("it ends");
        let until = Instant::now() + Duration::from_mins(1);
        while expire().is_none() {
            assert!(Instant::now() < until, "it is looked at again");
            std::thread::sleep(Duration::from_millis(100)); // OK: a poll
        }
        assert!(both.iter().all(|job| status(store, job.id) == Status::Failed));
    });
}

#[test]
fn a_claim_that_gets_nothing_leaves_no_lease() {
    for dialect in dialects() {
        let fresh = TestStore::new(dialect);
        let store = &fresh.store;
        store.migrate().expect("migrated");
        let seqs = seqs(store, 2);
        assert_eq!(claim(store, &seqs).len(), 2);

        assert!(claim(store, &seqs).is_empty());

        assert_eq!(number(&fresh.connection_string, "SELECT COUNT(*) FROM Leases"), 1, "{dialect:?}");
    }
}
