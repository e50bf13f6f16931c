//! The verdict over a history: which rules it breaks, and what happened in it. A pure function.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::history::{Deed, Effect, History, Job, Said};

/// What must hold of every history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// An acknowledged job has its row.
    Kept,
    /// A job is stored once, also where its call was repeated under an idempotency key.
    StoredOnce,
    /// Every row was submitted by a client.
    Asked,
    /// What was refused is not stored.
    RefusedIsNotStored,
    /// A job ends (but where the run goes on).
    Ends,
    /// Its status is one that there is.
    KnownStatus,
    /// A job that has ended says when, and no other does.
    EndTime,
    /// A failed job has one dead letter, and no other job has one.
    OneLetter,
    /// A job is cancelled if that was acknowledged, and never unasked.
    Cancel,
    /// A job is not tried more often than it may be.
    AttemptsBound,
    /// The outcome is that of the last claim, and no handler began after it.
    Fenced,
    /// What completed is what its handler has done.
    DoneIsDone,
    /// Every outcome was stored once: the statistics agree with the rows.
    CountedOnce,
    /// No lease is left without a job that runs under it.
    LeaseEnds,
    /// A unique key is held by a live job, and by one that asked for it.
    KeyEnds,
    /// Without a fault no handler is begun twice for the same attempt.
    CalmRunsOnce,
}

#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) what: String,
}

/// A line each.
pub(crate) fn listed(violations: &[Violation]) -> String {
    let line = |violation: &Violation| format!("\nBROKEN {:?}: {}", violation.rule, violation.what);
    violations.iter().map(line).collect::<Vec<String>>().concat()
}

/// What the reader of the verdict knows about the run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Run {
    /// Jobs may still be live, and leases in force.
    pub(crate) goes_on: bool,
    /// Nothing was killed, stopped or cut off.
    pub(crate) is_calm: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    pub(crate) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) acknowledged: usize,
    /// Rows of calls whose answer no client has seen.
    pub(crate) unanswered: usize,
    pub(crate) live: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    pub(crate) cancelled: usize,
    /// Acknowledged, and without a row, an end, or (failed) a dead letter.
    pub(crate) lost: usize,
    pub(crate) finished_twice: i64,
    /// Begun again though the handler had not reported that it failed.
    pub(crate) run_twice: usize,
}

const LIVE: [&str; 3] = ["queued", "running", "retrying"];

/// Judges a history.
pub(crate) fn judge(history: &History, run: Run) -> Verdict {
    let mut judge = Judge { history, run, told: Told::of(history), verdict: Verdict::default() };
    judge.submissions();
    judge.ends();
    judge.letters();
    judge.attempts();
    judge.fences();
    judge.totals();
    judge.leases_and_keys();
    judge.effects();
    judge.verdict
}

struct Judge<'a> {
    history: &'a History,
    run: Run,
    told: Told<'a>,
    verdict: Verdict,
}

/// What clients asked and were told.
#[derive(Default)]
struct Told<'a> {
    asked: HashSet<&'a str>,
    refused: HashSet<&'a str>,
    /// Mark and id.
    stored: BTreeSet<(&'a str, &'a str)>,
    acknowledged: HashSet<&'a str>,
    cancels: HashSet<&'a str>,
    cancelled: HashSet<&'a str>,
    /// How often each.
    revives: HashMap<&'a str, i64>,
    revived: HashMap<&'a str, i64>,
}

impl<'a> Told<'a> {
    fn of(history: &'a History) -> Told<'a> {
        let mut told = Told::default();
        for line in &history.clients {
            match &line.said {
                Said::Submits { marks } => told.asked.extend(marks.iter().map(String::as_str)),
                Said::Refused { marks } => told.refused.extend(marks.iter().map(String::as_str)),
                Said::Stored { jobs } => {
                    told.stored.extend(jobs.iter().map(|(mark, id)| (&**mark, &**id)));
                    told.acknowledged.extend(jobs.iter().map(|(mark, _)| &**mark));
                }
                Said::Cancels { id } => drop(told.cancels.insert(id)),
                Said::Cancelled { id } => drop(told.cancelled.insert(id)),
                Said::Revives { id } => *told.revives.entry(id).or_default() += 1,
                Said::Revived { id } => *told.revived.entry(id).or_default() += 1,
            }
        }
        told
    }
}

impl Judge<'_> {
    fn refuse(&mut self, rule: Rule, what: String) {
        self.verdict.violations.push(Violation { rule, what });
    }

    fn submissions(&mut self) {
        let mut by_mark: BTreeMap<&str, Vec<&Job>> = BTreeMap::new();
        for job in &self.history.tables.jobs {
            match &job.mark {
                Some(mark) if self.told.asked.contains(&**mark) => by_mark.entry(mark).or_default().push(job),
                mark => self.refuse(Rule::Asked, format!("job {} was submitted by nobody (mark {mark:?})", job.id)),
            }
        }
        for (mark, jobs) in &by_mark {
            if jobs.len() > 1 {
                self.refuse(Rule::StoredOnce, format!("{mark} is stored {} times, one is {}", jobs.len(), jobs[0].id));
            }
            if self.told.refused.contains(mark) {
                self.refuse(Rule::RefusedIsNotStored, format!("{mark} was refused, and is job {}", jobs[0].id));
            }
        }
        for (mark, id) in self.told.stored.clone() {
            if !by_mark.get(mark).is_some_and(|jobs| jobs.iter().any(|job| job.id == id)) {
                self.verdict.counts.lost += 1;
                self.refuse(Rule::Kept, format!("{mark} was acknowledged as job {id}, which is not there"));
            }
        }
        self.verdict.counts.acknowledged = self.told.acknowledged.len();
        self.verdict.counts.unanswered = by_mark.keys().filter(|mark| !self.told.acknowledged.contains(*mark)).count();
    }

    fn ends(&mut self) {
        for job in &self.history.tables.jobs {
            let counts = &mut self.verdict.counts;
            match &*job.status {
                "completed" => counts.completed += 1,
                "failed" => counts.failed += 1,
                "cancelled" => counts.cancelled += 1,
                status if LIVE.contains(&status) => counts.live += 1,
                status => self.refuse(Rule::KnownStatus, format!("job {} is {status:?}", job.id)),
            }
            if job.finished_at.is_none() != LIVE.contains(&&*job.status) {
                self.refuse(Rule::EndTime, format!("job {} is {}, ended at {:?}", job.id, job.status, job.finished_at));
            }
            if LIVE.contains(&&*job.status) && !self.run.goes_on {
                self.verdict.counts.lost += usize::from(self.is_acknowledged(job));
                self.refuse(Rule::Ends, format!("job {} is {} to the end", job.id, job.status));
            }
            let (asked, told) = (self.told.cancels.contains(&*job.id), self.told.cancelled.contains(&*job.id));
            if job.status == "cancelled" && !asked {
                self.refuse(Rule::Cancel, format!("job {} is cancelled, and nobody asked for it", job.id));
            }
            if job.status != "cancelled" && told {
                self.refuse(Rule::Cancel, format!("job {} was cancelled, and is {}", job.id, job.status));
            }
        }
    }

    fn is_acknowledged(&self, job: &Job) -> bool {
        job.mark.as_deref().is_some_and(|mark| self.told.acknowledged.contains(mark))
    }

    fn letters(&mut self) {
        let mut letters: BTreeMap<&str, usize> = BTreeMap::new();
        for letter in &self.history.tables.letters {
            *letters.entry(&letter.job).or_default() += 1;
        }
        for job in &self.history.tables.jobs {
            let count = letters.remove(&*job.id).unwrap_or(0);
            if count != usize::from(job.status == "failed") {
                self.verdict.counts.lost += usize::from(count == 0 && self.is_acknowledged(job));
                self.refuse(Rule::OneLetter, format!("job {} is {} with {count} dead letters", job.id, job.status));
            }
        }
        for id in letters.keys() {
            self.refuse(Rule::OneLetter, format!("a dead letter is of job {id}, which is not there"));
        }
    }

    fn attempts(&mut self) {
        let mut failed: HashMap<i64, i64> = HashMap::new();
        for attempt in &self.history.tables.attempts {
            *failed.entry(attempt.seq).or_default() += 1;
        }
        for job in &self.history.tables.jobs {
            let lives = 1 + self.told.revives.get(&*job.id).copied().unwrap_or(0);
            let tried = failed.get(&job.seq).copied().unwrap_or(0) + i64::from(job.status == "completed");
            let most = (job.max_retries + 1) * lives;
            if tried > most || job.retry_count > job.max_retries {
                let what = format!("job {}: {tried} of {most} attempts, {} retries", job.id, job.retry_count);
                self.refuse(Rule::AttemptsBound, what);
            }
        }
    }

    /// An outcome keeps the token of its claim in the row; a failure leaves it in `JobAttempts`.
    fn fences(&mut self) {
        let mut failed: HashMap<i64, BTreeSet<i64>> = HashMap::new();
        for attempt in &self.history.tables.attempts {
            if !failed.entry(attempt.seq).or_default().insert(attempt.token) {
                self.refuse(Rule::Fenced, format!("seq {} failed twice under token {}", attempt.seq, attempt.token));
            }
        }
        let mut begun: HashMap<&str, i64> = HashMap::new();
        for effect in &self.history.effects {
            let last = begun.entry(&effect.job).or_insert(effect.token);
            *last = effect.token.max(*last);
        }
        for job in &self.history.tables.jobs {
            let (token, id) = (job.token.unwrap_or(0), &job.id);
            let failed = failed.remove(&job.seq).unwrap_or_default();
            let last = failed.last().max(begun.get(&**id)).copied().unwrap_or(0);
            if last > token {
                self.refuse(Rule::Fenced, format!("job {id} is {} under {token}, and ran under {last}", job.status));
            }
            if job.status == "completed" && (job.token.is_none() || failed.contains(&token)) {
                self.refuse(
                    Rule::Fenced,
                    format!("job {id} completed under token {token}, under which it failed or never ran"),
                );
            }
            // Without a token: a row that plain SQL wrote wrongly.
            if job.status == "failed" && job.token.is_some() && !failed.contains(&token) {
                self.refuse(Rule::Fenced, format!("job {id} failed, but not under its last token {token}"));
            }
        }
    }

    /// Each outcome is counted in the transaction that stores it.
    fn totals(&mut self) {
        let (totals, tables) = (self.history.tables.totals, &self.history.tables);
        let signed = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let completed = signed(self.verdict.counts.completed);
        let attempts = signed(tables.attempts.len());
        self.verdict.counts.finished_twice = (totals.completed - completed).max(0);
        if totals.completed != completed {
            self.refuse(Rule::CountedOnce, format!("{completed} jobs completed, {} times", totals.completed));
        }
        if totals.retried + totals.failed != attempts {
            let what =
                format!("{attempts} attempts failed; counted {} retried, {} failed", totals.retried, totals.failed);
            self.refuse(Rule::CountedOnce, what);
        }
        let buried = tables.jobs.iter().filter(|job| job.status == "failed" && job.token.is_some()).count();
        let least = signed(buried) + self.told.revived.values().sum::<i64>();
        let most = signed(buried) + self.told.revives.values().sum::<i64>();
        if !(least..=most).contains(&totals.failed) {
            let what = format!("{} jobs were buried, by their rows and revivals {least} to {most}", totals.failed);
            self.refuse(Rule::CountedOnce, what);
        }
    }

    fn leases_and_keys(&mut self) {
        let tables = &self.history.tables;
        let by_seq: HashMap<i64, &Job> = tables.jobs.iter().map(|job| (job.seq, job)).collect();
        for lease in tables.leases.iter().filter(|_| !self.run.goes_on) {
            let is_running = |seq| {
                by_seq.get(seq).is_some_and(|job: &&Job| job.status == "running" && job.token == Some(lease.token))
            };
            if !lease.seqs.iter().any(is_running) {
                let what = format!("lease {} is there, and no job runs under it", lease.token);
                self.verdict.violations.push(Violation { rule: Rule::LeaseEnds, what });
            }
        }
        let by_id: HashMap<&str, &Job> = tables.jobs.iter().map(|job| (&*job.id, job)).collect();
        let mut holders = HashSet::new();
        for key in &tables.keys {
            holders.insert(&*key.job);
            let is_held = by_id
                .get(&*key.job)
                .is_some_and(|job| LIVE.contains(&&*job.status) && job.unique_key.as_deref() == Some(&key.key));
            if !is_held {
                self.refuse(
                    Rule::KeyEnds,
                    format!("key {} is held by job {}, which is over, or another's", key.key, key.job),
                );
            }
        }
        for job in &tables.jobs {
            let is_live = LIVE.contains(&&*job.status);
            if is_live && job.unique_key.is_some() && !holders.contains(&*job.id) {
                self.refuse(Rule::KeyEnds, format!("job {} is {} and does not hold its key", job.id, job.status));
            }
        }
    }

    fn effects(&mut self) {
        let mut effects: BTreeMap<&str, Vec<&Effect>> = BTreeMap::new();
        for effect in &self.history.effects {
            effects.entry(&effect.job).or_default().push(effect);
        }
        let by_id: HashMap<&str, &Job> = self.history.tables.jobs.iter().map(|job| (&*job.id, job)).collect();
        for (id, effects) in effects {
            let count = |deed| effects.iter().filter(|effect| effect.deed == deed).count();
            if count(Deed::Start) > count(Deed::Failed) + 1 {
                self.verdict.counts.run_twice += 1;
                if self.run.is_calm {
                    self.refuse(Rule::CalmRunsOnce, format!("job {id} was begun again without a reason"));
                }
            }
            let Some(job) = by_id.get(id) else {
                self.refuse(Rule::Asked, format!("a handler ran job {id}, which is not there"));
                continue;
            };
            let is_done = effects.iter().any(|effect| effect.deed == Deed::Done && Some(effect.token) == job.token);
            if job.status == "completed" && !is_done {
                let what = format!("job {id} completed under {:?}; its handler was not done under that", job.token);
                self.refuse(Rule::DoneIsDone, what);
            }
        }
    }
}
