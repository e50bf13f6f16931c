//! Any text comes back as it was stored, from every database: payloads, errors, unique keys.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test ends by a panic, and may tell on its way there")]

#[path = "support/stores.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod stores;

use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use trilane::job::{ClaimedJob, NewJob, ReplicaId, Seq};
use trilane::retry::Verdict;
use trilane::store::{DeadLetterFilter, Outcome, Store};

use self::stores::on_every_dialect;

const REPLICA: ReplicaId = ReplicaId(7);
const LEASE: Duration = Duration::from_mins(10);
/// Batches of jobs for each database.
const CASES: u32 = 40;

/// Text with what drivers, encodings and JSON trip over.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<String>(),
        "[a-z '\"\\\\;%_?{}\\[\\]$:@/*-]{0,10}",
        Just("🦀👩\u{200d}🚀".to_owned()),
        Just("\u{feff}\u{fffd}\u{ffff}\u{7f}\u{80}\u{1}\r\n\t".to_owned()),
        Just("ä".repeat(3_999)),
        Just(" ".to_owned()),
    ];
    proptest::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

/// A payload as the API stores it: JSON text, in which NUL and halves of surrogate pairs can only be written out.
fn payload() -> impl Strategy<Value = String> {
    let odd = prop_oneof![Just(""), Just("\\u0000"), Just("\\ud83e"), Just("\\udd80\\ud83e")];
    (text(), odd).prop_map(|(text, odd)| {
        let text = serde_json::to_string(&text).expect("text is JSON");
        format!("{{\"a\": {text}, \"b\":\"{odd}\"}}")
    })
}

fn unique_key() -> impl Strategy<Value = Option<String>> {
    let kept = |key: String| {
        let key: String = key.chars().filter(|char| !char.is_control()).take(90).collect();
        Some(key.trim().to_owned()).filter(|key| !key.is_empty())
    };
    text().prop_map(kept)
}

fn round_trip(
    store: &Store,
    letters_read: &Cell<Option<Seq>>,
    jobs: &[(String, Option<String>, String)],
) -> Result<(), TestCaseError> {
    let new = |(payload, unique_key, _): &(String, Option<String>, String)| NewJob {
        unique_key: unique_key.clone(),
        ..NewJob::new("x", payload.clone())
    };
    let new: Vec<NewJob> = jobs.iter().map(new).collect();
    let results = store.submit(&new.iter().collect::<Vec<_>>(), REPLICA, Some(0)).expect("stored");
    // Two jobs of one batch may have drawn one key.
    let seqs: Vec<Seq> = results.iter().filter_map(|result| Some(result.as_ref().ok()?.seq)).collect();
    let claimed = store.claim(&seqs, REPLICA, LEASE).expect("claimed").jobs;
    prop_assert_eq!(claimed.len(), seqs.len());

    let given = |id| new.iter().zip(jobs).find(|(job, _)| job.id == id).expect("submitted").1;
    let outcome =
        |job: &ClaimedJob| Outcome::of(job, Duration::ZERO, Verdict::Bury { reason: given(job.id).2.clone() });
    for job in &claimed {
        prop_assert_eq!((&job.payload, &job.unique_key), (&given(job.id).0, &given(job.id).1));
    }
    let outcomes: Vec<Outcome> = claimed.iter().map(outcome).collect();
    let accepted = store.finish(&outcomes, REPLICA, None).expect("stored");
    prop_assert_eq!(accepted.len(), outcomes.len());

    let letters = store.dead_letters(&DeadLetterFilter::default(), letters_read.get(), 100).expect("read");
    letters_read.set(letters.last().map(|letter| letter.seq));
    prop_assert_eq!(letters.len(), outcomes.len());
    for letter in letters {
        let (payload, unique_key, error) = given(letter.original_job_id);
        // PostgreSQL has no NUL.
        let error = error.replace('\0', "\u{FFFD}");
        prop_assert_eq!((&letter.payload, &letter.reason), (payload, &error));
        let job = store.job(letter.original_job_id).expect("read").expect("there");
        prop_assert_eq!((&job.payload, &job.unique_key, job.last_error), (payload, unique_key, Some(error)));
    }
    Ok(())
}

#[test]
fn any_text_comes_back_as_it_was_stored() {
    on_every_dialect(|store| {
        let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
        let jobs = proptest::collection::vec((payload(), unique_key(), text()), 1..12);
        let letters_read = Cell::new(None);
        let result = runner.run(&jobs, |jobs| round_trip(store, &letters_read, &jobs));
        result.unwrap_or_else(|error| panic!("{}: {error}", store.dialect().as_str()));
    });
}
