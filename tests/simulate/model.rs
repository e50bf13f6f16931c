//! What must be true after each step, and what each step may have changed.

use std::collections::{BTreeMap, BTreeSet};

use trilane::retry::Verdict;
use uuid::Uuid;

use crate::clock;
use crate::database::{Row, State};

/// An id may reach a worker this much before its time (`EARLY_MS` of the store).
const EARLY_MS: i64 = 50;

/// Who did the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Actor {
    Submitter,
    Cancel(Uuid),
    Revive(Uuid),
    Scheduler,
    Keeper,
    /// Of the replica with this number.
    Feeder(i64),
    Finisher,
    /// The stop of the replica with this number.
    Stop(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Complete,
    Retry,
    Bury,
}

/// What is known to be true, from what was seen.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) state: State,
    acknowledged: BTreeSet<Uuid>,
    /// Tokens of the attempts of each job that failed.
    failures: BTreeMap<i64, BTreeSet<i64>>,
    completed: BTreeSet<i64>,
    /// Outcomes: completed, retried, failed.
    pub(crate) stats: [u64; 3],
    sent: BTreeMap<(i64, i64), Sent>,
    begun: BTreeSet<(i64, i64)>,
    /// Seen by those who count.
    pub(crate) moves: BTreeMap<&'static str, usize>,
}

type Check = Result<(), String>;

fn ensure(is_so: bool, what: impl FnOnce() -> String) -> Check {
    if is_so { Ok(()) } else { Err(what()) }
}

impl Model {
    /// A client was told that this job is stored.
    pub(crate) fn acknowledge(&mut self, id: Uuid) {
        self.acknowledged.insert(id);
    }

    /// A handler was begun.
    pub(crate) fn begin(&mut self, seq: i64, token: i64) -> Check {
        ensure(self.begun.insert((seq, token)), || format!("job {seq} is begun twice under token {token}"))?;
        let lease = self.state.leases.get(&token);
        let is_live = lease.is_some_and(|lease| lease.until > clock::database_ms());
        ensure(is_live, || format!("job {seq} is begun under token {token}, whose lease is over: {lease:?}"))
    }

    /// A handler gave its outcome.
    pub(crate) fn send(&mut self, seq: i64, token: i64, verdict: &Verdict) -> Check {
        let sent = match verdict {
            Verdict::Complete => Sent::Complete,
            Verdict::Retry { .. } => Sent::Retry,
            Verdict::Bury { .. } => Sent::Bury,
        };
        ensure(self.sent.insert((seq, token), sent).is_none(), || format!("two outcomes of {seq} under token {token}"))
    }

    /// Attempts of a job that were begun.
    pub(crate) fn attempts(&self, seq: i64) -> usize {
        self.begun.range((seq, i64::MIN)..=(seq, i64::MAX)).count()
    }

    /// Attempts of a job that must have been begun where nothing went wrong but in handlers.
    pub(crate) fn attempts_needed(&self, seq: i64) -> usize {
        self.failures.get(&seq).map_or(0, BTreeSet::len) + usize::from(self.completed.contains(&seq))
    }

    /// Whether a cancelled job, of which an attempt may have begun or not.
    pub(crate) fn is_cancelled(&self, seq: i64) -> bool {
        self.state.jobs.iter().any(|job| job.seq == seq && job.status == "cancelled")
    }

    /// Jobs that have not ended.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Row> {
        self.state.jobs.iter().filter(|job| !is_final(&job.status))
    }

    /// `actor` has done something; `handlers` run, each a job and its token.
    pub(crate) fn check(&mut self, state: State, actor: Actor, handlers: &[(i64, i64)]) -> Check {
        let old = std::mem::take(&mut self.state);
        let mut rows = state.jobs.iter();
        for before in &old.jobs {
            let after = rows.next().filter(|after| after.seq == before.seq);
            let after = after.ok_or_else(|| format!("job {} is gone", before.seq))?;
            if before != after {
                self.check_move(&old, before, after, actor)
                    .map_err(|why| format!("{why}, by {actor:?}\n  before: {before:?}\n  after:  {after:?}"))?;
            }
        }
        for new in rows {
            let is_claimed = new.status == "running"
                && new.token.is_some_and(|token| token > old.last_token && state.leases.contains_key(&token));
            let is_right = new.token.is_none() || is_claimed;
            ensure(actor == Actor::Submitter && is_right, || format!("{new:?} came from nowhere"))?;
        }
        for (token, lease) in state.leases.iter().filter(|(token, _)| !old.leases.contains_key(token)) {
            ensure(*token > old.last_token, || format!("token {token} was given out before"))?;
            let is_claim = actor == Actor::Feeder(lease.replica) || actor == Actor::Submitter;
            ensure(is_claim, || format!("lease {token} was begun by {actor:?}"))?;
        }
        self.state = state;
        self.check_state()?;
        self.check_handlers(handlers)
    }

    fn check_move(&mut self, old: &State, before: &Row, after: &Row, actor: Actor) -> Check {
        let now = clock::database_ms();
        let seq = before.seq;
        let token = before.token.unwrap_or(0);
        let (same_token, same_count) = (before.token == after.token, before.retry_count == after.retry_count);
        let one_more = after.retry_count == before.retry_count + 1;
        let was_begun = self.begun.contains(&(seq, token));
        let sent = self.sent.get(&(seq, token)).copied().filter(|_| actor == Actor::Finisher);
        let ran_out = actor == Actor::Scheduler && old.leases.get(&token).is_some_and(|lease| lease.until < now);
        let is_new_claim = after.token > Some(old.last_token)
            && matches!(actor, Actor::Feeder(replica) if after.leased_by == Some(replica))
            && after.run_at <= now + EARLY_MS;
        let (name, is_right) = match (before.status.as_str(), after.status.as_str()) {
            ("running", "running") if same_token => ("touched", same_count),
            // Given back and claimed again in one round.
            ("running", "running") => {
                ("claimed anew", is_new_claim && same_count && !was_begun && before.leased_by == after.leased_by)
            }
            (from, to) if from == to => ("waits", same_token && same_count),
            ("queued" | "retrying", "running") => ("claimed", is_new_claim && same_count),
            ("running", "completed") => {
                self.stats[0] += 1;
                ensure(self.completed.insert(seq), || format!("job {seq} completed twice"))?;
                ("completed", same_token && same_count && sent == Some(Sent::Complete))
            }
            ("running", "retrying") if !same_count => {
                self.stats[1] += 1;
                self.failures.entry(seq).or_default().insert(token);
                let name = if ran_out { "expired" } else { "retried" };
                (name, same_token && one_more && (sent == Some(Sent::Retry) || ran_out))
            }
            ("running", "failed") => {
                self.stats[2] += 1;
                self.failures.entry(seq).or_default().insert(token);
                let is_used_up = ran_out && before.retry_count >= before.max_retries;
                let name = if ran_out { "expired for good" } else { "buried" };
                (name, same_token && same_count && (sent == Some(Sent::Bury) || is_used_up))
            }
            ("running", to @ ("queued" | "retrying")) => {
                let by_feeder =
                    matches!(actor, Actor::Feeder(replica) if before.leased_by == Some(replica) && !was_begun);
                let by_stop = matches!(actor, Actor::Stop(replica) if before.leased_by == Some(replica));
                let is_right_status = (to == "queued") == (before.retry_count == 0);
                ("released", same_token && same_count && is_right_status && (by_feeder || by_stop))
            }
            (_, "cancelled") if !is_final(&before.status) => {
                ("cancelled", actor == Actor::Cancel(before.id) && same_count)
            }
            ("failed", "queued") => {
                let is_asked = matches!(actor, Actor::Revive(id) if id == before.id);
                ("revived", is_asked && after.retry_count == 0 && after.token.is_none())
            }
            (from, "failed") if !is_final(from) => {
                let is_odd = from == "waiting" || !["high", "medium", "low"].contains(&before.lane.as_str());
                ("odd", is_odd && same_count && before.token.is_none())
            }
            _ => ("moved", false),
        };
        *self.moves.entry(name).or_default() += 1;
        ensure(is_right, || format!("job {seq} may not be {name}"))
    }

    fn check_state(&self) -> Check {
        let state = &self.state;
        for job in &state.jobs {
            ensure(job.retry_count <= job.max_retries, || format!("too many attempts: {job:?}"))?;
            let letters = state.letters.get(&job.id).copied().unwrap_or(0);
            ensure(letters == u32::from(job.status == "failed"), || format!("{letters} dead letters of {job:?}"))?;
            if job.status == "running" {
                let token = job.token.unwrap_or(0);
                let is_covered = state.leases.get(&token).is_some_and(|lease| lease.seqs.contains(&job.seq));
                ensure(is_covered, || format!("no lease covers {job:?}, so nobody would take it back"))?;
            }
        }
        for id in &self.acknowledged {
            ensure(state.jobs.iter().any(|job| job.id == *id), || format!("the acknowledged job {id} is lost"))?;
        }
        let keys = self.live().filter_map(|job| Some((job.unique_key.clone()?, job.id)));
        let keys: BTreeMap<String, Uuid> = keys.collect();
        ensure(keys == state.keys, || format!("unique keys: {:?}, and live jobs have {keys:?}", state.keys))?;
        ensure(self.stats == state.stats, || {
            format!("statistics: {:?}, and there were {:?}", state.stats, self.stats)
        })?;
        ensure(self.failures == state.attempts, || {
            format!("failed attempts: {:?}, and there were {:?}", state.attempts, self.failures)
        })
    }

    /// While the lease of a running handler lasts, its job is nobody else's.
    pub(crate) fn check_handlers(&self, handlers: &[(i64, i64)]) -> Check {
        let now = clock::database_ms();
        for (seq, token) in handlers {
            let Some(job) = self.state.jobs.iter().find(|job| job.seq == *seq) else { continue };
            let is_leased = self.state.leases.get(token).is_some_and(|lease| lease.until > now);
            let is_its_own = job.status == "cancelled" || (job.status == "running" && job.token == Some(*token));
            ensure(!is_leased || is_its_own, || {
                format!("the lease {token} of a handler lasts, and its job went on: {job:?}")
            })?;
        }
        Ok(())
    }

    /// After all has come to rest nothing is left over.
    pub(crate) fn check_rest(&self) -> Check {
        let state = &self.state;
        ensure(self.live().next().is_none(), || format!("not ended: {:#?}", self.live().collect::<Vec<_>>()))?;
        ensure(state.leases.is_empty(), || format!("leases that nobody ends: {:?}", state.leases))?;
        ensure(state.keys.is_empty(), || format!("keys that nobody frees: {:?}", state.keys))
    }
}

fn is_final(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled")
}
