//! What this replica holds: its leases, and where each of their jobs stands.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::job::{ClaimedJob, Seq, Token};
use crate::wake::StopFlag;

/// Leases left to run out that are remembered at most. One that is forgotten too early is taken for a claim that this replica never learned
/// of, and its job is given back with its attempt not counted.
const FORSAKEN_MAX: usize = 1_000;

/// The leases of this replica. The feeder adds to it, workers begin jobs, the finisher settles them, the keeper renews.
#[derive(Default)]
pub struct Held {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    leases: HashMap<Token, Lease>,
    // Leases without jobs, to be removed from the table.
    ended: Vec<Token>,
    // Leases left to run out, the last FORSAKEN_MAX of them.
    forsaken: VecDeque<Token>,
    // At a stop nothing more is begun.
    closed: bool,
}

/// Whether a job may be begun.
pub enum Begin {
    /// It is begun, and told by this flag to stop.
    Begun(StopFlag),
    /// Its lease was lost, or the replica stops.
    Never,
    /// Its lease could not be renewed in time, and may be yet.
    NotYet,
}

struct Lease {
    valid_until: Instant,
    jobs: HashMap<Seq, Standing>,
    is_forsaken: bool,
}

enum Standing {
    /// In a channel.
    Buffered,
    /// In its handler, or waiting for its outcome to be stored.
    Begun { since: Instant, stop: StopFlag },
}

impl State {
    fn begin(&mut self, job: &ClaimedJob, now: Instant) -> Begin {
        if self.closed {
            return Begin::Never;
        }
        let Some(lease) = self.leases.get_mut(&job.token) else { return Begin::Never };
        if now >= lease.valid_until {
            return Begin::NotYet;
        }
        let stop = StopFlag::new();
        lease.jobs.insert(job.seq, Standing::Begun { since: now, stop: stop.clone() });
        Begin::Begun(stop)
    }
}

impl Held {
    /// Takes over a claim. Its jobs are expected to be begun and settled one by one.
    pub fn add(&self, jobs: &[ClaimedJob], valid_until: Instant) {
        let mut state = self.lock();
        for job in jobs {
            let lease = state.leases.entry(job.token).or_insert_with(|| Lease {
                valid_until,
                jobs: HashMap::new(),
                is_forsaken: false,
            });
            lease.jobs.insert(job.seq, Standing::Buffered);
        }
    }

    /// Begins a job, unless its lease was lost or the replica stops: then `None`, and the job must not be run.
    ///
    /// Where the lease could not be renewed in time (the database is away), waits until it is renewed or lost: another replica may have
    /// the job by now.
    pub fn begin(&self, job: &ClaimedJob) -> Option<StopFlag> {
        let mut state = self.lock();
        loop {
            match state.begin(job, Instant::now()) {
                Begin::Begun(stop) => return Some(stop),
                Begin::Never => return None,
                Begin::NotYet => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// [`Held::begin`] as far as it can be decided at `now`, without waiting.
    pub fn try_begin(&self, job: &ClaimedJob, now: Instant) -> Begin {
        self.lock().begin(job, now)
    }

    /// Forgets jobs whose outcome is stored or refused, or that were given back.
    pub fn settle(&self, jobs: impl IntoIterator<Item = (Seq, Token)>) {
        let mut state = self.lock();
        for (seq, token) in jobs {
            let Some(lease) = state.leases.get_mut(&token) else { continue };
            lease.jobs.remove(&seq);
            if lease.jobs.is_empty() {
                let is_forsaken = lease.is_forsaken;
                state.leases.remove(&token);
                if is_forsaken {
                    state.forsaken.push_back(token);
                } else {
                    state.ended.push(token);
                }
            }
        }
        let too_many = state.forsaken.len().saturating_sub(FORSAKEN_MAX);
        drop(state.forsaken.drain(..too_many));
    }

    /// Forgets a job whose outcome the database refuses: once the other jobs of its lease are settled, the lease is not renewed any more, and
    /// the job counts as lost when it runs out.
    pub fn forsake(&self, seq: Seq, token: Token) {
        let mut state = self.lock();
        if let Some(lease) = state.leases.get_mut(&token) {
            lease.is_forsaken = true;
        }
        drop(state);
        self.settle([(seq, token)]);
    }

    /// The leases to be renewed.
    pub fn tokens(&self) -> Vec<Token> {
        self.lock().leases.keys().copied().collect()
    }

    /// The leases that this replica knows to be its own: those to be renewed, and those left to run out.
    pub fn known(&self) -> Vec<Token> {
        let state = self.lock();
        state.leases.keys().chain(&state.forsaken).copied().collect()
    }

    /// All of `tokens` were renewed until `valid_until`.
    pub fn renewed(&self, tokens: &[Token], valid_until: Instant) {
        let mut state = self.lock();
        for token in tokens {
            if let Some(lease) = state.leases.get_mut(token) {
                lease.valid_until = valid_until;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// `tokens` belong to this replica no longer: their jobs are told to stop, and none of them is begun.
    pub fn lose(&self, tokens: &[Token]) {
        let mut state = self.lock();
        for token in tokens {
            for standing in state.leases.remove(token).into_iter().flat_map(|lease| lease.jobs.into_values()) {
                if let Standing::Begun { stop, .. } = standing {
                    stop.set();
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes out the leases that have no jobs any more.
    pub fn take_ended(&self) -> Vec<Token> {
        std::mem::take(&mut self.lock().ended)
    }

    /// Jobs that have been running for at least `time`.
    pub fn begun_before(&self, time: Duration) -> Vec<(Seq, Token)> {
        self.jobs(|standing| matches!(standing, Standing::Begun { since, .. } if since.elapsed() >= time))
    }

    /// Tells jobs to stop that were cancelled.
    pub fn stop(&self, jobs: &[(Seq, Token)]) {
        let state = self.lock();
        for (seq, token) in jobs {
            if let Some(Standing::Begun { stop, .. }) = state.leases.get(token).and_then(|lease| lease.jobs.get(seq)) {
                stop.set();
            }
        }
    }

    /// From now on nothing is begun. Returns the jobs that were not.
    pub fn close(&self) -> Vec<(Seq, Token)> {
        self.lock().closed = true;
        self.changed.notify_all();
        self.jobs(|standing| matches!(standing, Standing::Buffered))
    }

    /// Every job that was not settled.
    pub fn unsettled(&self) -> Vec<(Seq, Token)> {
        self.jobs(|_| true)
    }

    fn jobs(&self, wanted: impl Fn(&Standing) -> bool) -> Vec<(Seq, Token)> {
        let state = self.lock();
        let of_lease = |(token, lease): (&Token, &Lease)| {
            let wanted = lease.jobs.iter().filter(|(_, standing)| wanted(standing));
            wanted.map(|(seq, _)| (*seq, *token)).collect::<Vec<_>>()
        };
        state.leases.iter().flat_map(of_lease).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::job::Lane;

    fn job(seq: i64, token: i64) -> ClaimedJob {
        ClaimedJob {
            seq: Seq(seq),
            id: uuid::Uuid::nil(),
            job_type: "x".into(),
            payload: "{}".into(),
            lane: Lane::Low,
            retry_count: 0,
            max_retries: 0,
            token: Token(token),
            timeout: None,
            unique_key: None,
            created_at: Timestamp::from_millis(0),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    #[test]
    fn a_lease_ends_when_its_last_job_is_settled() {
        let held = Held::default();
        held.add(&[job(1, 7), job(2, 7)], soon());

        held.settle([(Seq(1), Token(7))]);
        assert!(held.take_ended().is_empty());
        held.settle([(Seq(2), Token(7))]);

        assert_eq!(held.take_ended(), [Token(7)]);
        assert!(held.tokens().is_empty());
    }

    #[test]
    fn of_the_leases_left_to_run_out_only_the_last_are_remembered() {
        let held = Held::default();
        let all = i64::try_from(FORSAKEN_MAX).expect("few") + 1;

        for number in 1..=all {
            held.add(&[job(number, number)], soon());
            held.forsake(Seq(number), Token(number));
        }

        assert_eq!(held.known().len(), FORSAKEN_MAX);
        assert!(held.known().contains(&Token(all)) && !held.known().contains(&Token(1)));
        assert!(held.tokens().is_empty() && held.take_ended().is_empty());
    }

    #[test]
    fn a_job_of_a_lost_lease_is_told_to_stop_or_not_begun() {
        let held = Held::default();
        let (running, waiting) = (job(1, 7), job(2, 7));
        held.add(&[running.clone(), waiting.clone()], soon());
        let stop = held.begin(&running).expect("it is held");

        held.lose(&[Token(7)]);

        assert!(stop.is_set());
        assert!(held.begin(&waiting).is_none());
    }

    #[test]
    fn a_job_whose_lease_was_not_renewed_in_time_waits_for_it() {
        let held = Held::default();
        held.add(&[job(1, 7)], Instant::now());

        std::thread::scope(|scope| {
            let begun = scope.spawn(|| held.begin(&job(1, 7)).is_some());
            held.renewed(&[Token(7)], soon());

            assert!(begun.join().expect("no panic"));
        });
    }

    #[test]
    fn a_stop_gives_back_what_was_not_begun() {
        let held = Held::default();
        held.add(&[job(1, 7), job(2, 8)], soon());
        held.begin(&job(1, 7)).expect("it is held");

        assert_eq!(held.close(), [(Seq(2), Token(8))]);
        assert!(held.begin(&job(2, 8)).is_none());
        assert_eq!(held.unsettled().len(), 2);
    }

    proptest! {
        #[test]
        fn every_lease_ends_once_its_jobs_are_settled_or_is_lost(
            leases in proptest::collection::vec(1i64..5, 1..6), steps in proptest::collection::vec((0usize..4, 0usize..100), 0..60),
        ) {
            let held = Held::default();
            let mut jobs: Vec<(Seq, Token)> = Vec::new();
            for (token, count) in leases.iter().enumerate() {
                let token = i64::try_from(token).expect("few");
                let claimed: Vec<ClaimedJob> = (0..*count).map(|seq| job(10 * token + seq, token)).collect();
                held.add(&claimed, soon());
                jobs.extend(claimed.iter().map(|job| (job.seq, job.token)));
            }
            let mut ended: Vec<Token> = Vec::new();
            let mut gone: Vec<Token> = Vec::new();

            for (what, which) in steps {
                let Some(&(seq, token)) = jobs.get(which % jobs.len().max(1)) else { break };
                match what {
                    0 => prop_assert!(matches!(held.try_begin(&job(seq.0, token.0), Instant::now()), Begin::Begun(_))),
                    1 | 2 => {
                        if what == 1 { held.settle([(seq, token)]) } else { held.forsake(seq, token) }
                        jobs.retain(|job| *job != (seq, token));
                        gone.extend((!jobs.iter().any(|(_, of)| *of == token)).then_some(token));
                    }
                    _ => {
                        held.lose(&[token]);
                        jobs.retain(|(_, of)| *of != token);
                        prop_assert!(matches!(held.try_begin(&job(seq.0, token.0), Instant::now()), Begin::Never));
                    }
                }
                ended.extend(held.take_ended());
                let mut unsettled = held.unsettled();
                unsettled.sort_unstable();
                jobs.sort_unstable();
                prop_assert_eq!(&unsettled, &jobs);
                prop_assert_eq!(held.tokens().len(), jobs.chunk_by(|a, b| a.1 == b.1).count());
                let both = ended.len() + held.known().len() - held.tokens().len();
                prop_assert_eq!(both, gone.len(), "ended or left to run out, each once");
            }
        }
    }
}
