//! The checker is shown histories with a fault, and refuses each for its own reason.

use super::checker::history::{Attempt, Deed, Effect, History, Job, Key, Lease, Letter, Line, Said, Tables, Totals};
use super::checker::judge::{Rule, Run, judge};

fn job(seq: i64, status: &str) -> Job {
    Job {
        seq,
        id: format!("id-{seq}"),
        status: status.to_owned(),
        max_retries: 1,
        token: Some(seq * 10),
        finished_at: ["completed", "failed", "cancelled"].contains(&status).then_some(1),
        mark: Some(format!("m-{seq}")),
        ..Job::default()
    }
}

fn effect(deed: Deed, seq: i64, token: i64) -> Effect {
    Effect { deed, job: format!("id-{seq}"), token }
}

fn said(said: Said) -> Line {
    Line { at: 0, said }
}

/// Job 1 completed at once, 2 at its second attempt, 3 failed for good, 4 was cancelled, 5 failed, was revived and completed, 6 came by
/// a call without an answer, 7 was refused and is not there.
fn sound() -> History {
    let jobs = vec![
        job(1, "completed"),
        Job { retry_count: 1, ..job(2, "completed") },
        Job { retry_count: 1, unique_key: Some("k".into()), ..job(3, "failed") },
        job(4, "cancelled"),
        job(5, "completed"),
        job(6, "completed"),
    ];
    let attempts = [(2, 11), (3, 12), (3, 30), (5, 13), (5, 14)].map(|(seq, token)| Attempt { seq, token });
    let marks = |seqs: &[i64]| seqs.iter().map(|seq| format!("m-{seq}")).collect::<Vec<_>>();
    let clients = vec![
        said(Said::Submits { marks: marks(&[1, 2, 3, 4, 5]) }),
        said(Said::Stored { jobs: (1..=5).map(|seq| (format!("m-{seq}"), format!("id-{seq}"))).collect() }),
        said(Said::Submits { marks: marks(&[6]) }),
        said(Said::Submits { marks: marks(&[7]) }),
        said(Said::Refused { marks: marks(&[7]) }),
        said(Said::Cancels { id: "id-4".into() }),
        said(Said::Cancelled { id: "id-4".into() }),
        said(Said::Revives { id: "id-5".into() }),
        said(Said::Revived { id: "id-5".into() }),
    ];
    let effects = vec![
        effect(Deed::Start, 1, 10),
        effect(Deed::Done, 1, 10),
        effect(Deed::Start, 2, 11),
        effect(Deed::Failed, 2, 11),
        effect(Deed::Start, 2, 20),
        effect(Deed::Done, 2, 20),
    ];
    let letters = vec![Letter { job: "id-3".into() }];
    let totals = Totals { completed: 4, retried: 3, failed: 2 };
    let tables = Tables { jobs, letters, attempts: attempts.into(), totals, ..Tables::default() };
    History { tables, clients, effects }
}

fn broken_by(fault: impl Fn(&mut History), run: Run) -> Vec<Rule> {
    let mut history = sound();
    fault(&mut history);
    let mut rules: Vec<Rule> = judge(&history, run).violations.iter().map(|violation| violation.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

#[track_caller]
fn refuses(rules: &[Rule], fault: impl Fn(&mut History)) {
    assert_eq!(broken_by(fault, Run::default()), rules);
}

#[test]
fn a_sound_history_breaks_no_rule() {
    let verdict = judge(&sound(), Run { goes_on: false, is_calm: true });

    assert!(verdict.violations.is_empty(), "{:?}", verdict.violations);
    let counts = verdict.counts;
    assert_eq!((counts.acknowledged, counts.unanswered, counts.live), (5, 1, 0));
    assert_eq!((counts.completed, counts.failed, counts.cancelled), (4, 1, 1));
    assert_eq!((counts.lost, counts.finished_twice, counts.run_twice), (0, 0, 0));
}

#[test]
fn a_lost_job_is_seen() {
    let lose = |history: &mut History| {
        history.tables.jobs.retain(|job| job.seq != 4);
    };
    refuses(&[Rule::Kept], lose);
    let mut history = sound();
    lose(&mut history);
    assert_eq!(judge(&history, Run::default()).counts.lost, 1);
}

#[test]
fn a_job_stored_under_another_id_than_was_acknowledged_is_seen() {
    refuses(&[Rule::Kept], |history| {
        let again = Said::Stored { jobs: vec![("m-1".into(), "id-9".into())] };
        history.clients.push(said(again));
    });
}

#[test]
fn a_job_stored_twice_is_seen() {
    refuses(&[Rule::StoredOnce], |history| {
        history.tables.jobs.push(Job { seq: 8, id: "id-8".into(), ..job(6, "completed") });
        history.tables.totals.completed += 1;
    });
}

#[test]
fn a_row_that_nobody_asked_for_is_seen() {
    refuses(&[Rule::Asked], |history| history.tables.jobs[5].mark = Some("m-66".into()));
    refuses(&[Rule::Asked], |history| history.tables.jobs[5].mark = None);
}

#[test]
fn a_refused_job_that_was_stored_is_seen() {
    refuses(&[Rule::RefusedIsNotStored], |history| {
        history.tables.jobs.push(job(7, "completed"));
        history.tables.totals.completed += 1;
    });
}

#[test]
fn a_job_that_never_ends_is_seen() {
    let hang = |history: &mut History| {
        history.tables.jobs[0].status = "queued".into();
        history.tables.jobs[0].finished_at = None;
        history.effects.clear();
        history.tables.totals.completed -= 1;
    };
    refuses(&[Rule::Ends], hang);
    assert!(broken_by(hang, Run { goes_on: true, is_calm: false }).is_empty(), "the run goes on");
}

#[test]
fn a_status_that_there_is_not_is_seen() {
    refuses(&[Rule::KnownStatus], |history| {
        history.tables.jobs[5].status = "dnoe".into();
        history.tables.totals.completed -= 1;
    });
}

#[test]
fn a_job_that_ended_at_no_time_is_seen_and_one_that_has_not_ended_at_some() {
    refuses(&[Rule::EndTime], |history| history.tables.jobs[0].finished_at = None);
    let live = |history: &mut History| {
        history.tables.jobs[5] = Job { finished_at: Some(1), ..job(6, "running") };
        history.tables.totals.completed -= 1;
    };
    assert_eq!(broken_by(live, Run { goes_on: true, is_calm: false }), [Rule::EndTime]);
}

#[test]
fn a_failed_job_without_its_dead_letter_is_seen() {
    refuses(&[Rule::OneLetter], |history| history.tables.letters.clear());
}

#[test]
fn a_second_dead_letter_is_seen_and_one_of_a_completed_job_or_of_none() {
    for id in ["id-3", "id-1", "id-99"] {
        refuses(&[Rule::OneLetter], |history| history.tables.letters.push(Letter { job: id.into() }));
    }
}

#[test]
fn a_cancelled_job_that_nobody_cancelled_is_seen() {
    refuses(&[Rule::Cancel], |history| {
        history.clients.retain(|line| !matches!(line.said, Said::Cancels { .. } | Said::Cancelled { .. }));
    });
}

#[test]
fn a_cancelled_job_that_completed_is_seen() {
    refuses(&[Rule::Cancel], |history| {
        history.tables.jobs[3].status = "completed".into();
        history.tables.totals.completed += 1;
    });
}

#[test]
fn an_attempt_too_many_is_seen() {
    refuses(&[Rule::AttemptsBound], |history| {
        history.tables.attempts.push(Attempt { seq: 2, token: 12 });
        history.tables.totals.retried += 1;
    });
    refuses(&[Rule::AttemptsBound], |history| history.tables.jobs[1].retry_count = 2);
}

#[test]
fn an_outcome_under_a_stale_token_is_seen() {
    // Job 2 was claimed again, under 21, when 20 completed it.
    refuses(&[Rule::Fenced], |history| history.effects.push(effect(Deed::Start, 2, 21)));
    // Completed under the token under which it had failed.
    refuses(&[Rule::Fenced], |history| {
        history.tables.jobs[4].token = Some(14);
    });
    // Failed for good by an earlier attempt than the last.
    refuses(&[Rule::Fenced], |history| history.tables.jobs[2].token = Some(31));
}

#[test]
fn a_job_completed_by_an_attempt_that_was_not_done_is_seen() {
    refuses(&[Rule::DoneIsDone], |history| {
        history.effects.retain(|effect| effect.job != "id-1" || effect.deed != Deed::Done);
    });
}

#[test]
fn a_job_that_finished_twice_is_seen() {
    let twice = |history: &mut History| history.tables.totals.completed += 1;
    refuses(&[Rule::CountedOnce], twice);
    let mut history = sound();
    twice(&mut history);
    assert_eq!(judge(&history, Run::default()).counts.finished_twice, 1);
    refuses(&[Rule::CountedOnce], |history| history.tables.totals.completed -= 1);
    refuses(&[Rule::CountedOnce], |history| history.tables.totals.retried -= 1);
    refuses(&[Rule::CountedOnce], |history| {
        history.tables.totals.failed -= 1;
        history.tables.totals.retried += 1;
    });
}

#[test]
fn a_lease_without_a_running_job_is_seen() {
    refuses(&[Rule::LeaseEnds], |history| history.tables.leases.push(Lease { token: 20, seqs: vec![1, 2] }));
}

#[test]
fn a_key_of_a_job_that_is_over_is_seen_and_one_that_a_live_job_lacks() {
    refuses(&[Rule::KeyEnds], |history| history.tables.keys.push(Key { key: "k".into(), job: "id-3".into() }));
    let lacks = |history: &mut History| {
        history.tables.jobs.push(Job { unique_key: Some("l".into()), ..job(8, "queued") });
        history.clients.push(said(Said::Submits { marks: vec!["m-8".into()] }));
    };
    assert_eq!(broken_by(lacks, Run { goes_on: true, is_calm: false }), [Rule::KeyEnds]);
}

#[test]
fn a_job_that_ran_twice_is_counted_and_refused_where_there_was_no_fault() {
    let repeat = |history: &mut History| {
        history.effects.extend([effect(Deed::Start, 1, 9), effect(Deed::Done, 1, 9)]);
    };
    assert!(broken_by(repeat, Run::default()).is_empty());
    assert_eq!(broken_by(repeat, Run { goes_on: false, is_calm: true }), [Rule::CalmRunsOnce]);
    let mut history = sound();
    repeat(&mut history);
    assert_eq!(judge(&history, Run::default()).counts.run_twice, 1);
}
