//! A model of leases and fencing, small enough to look at every state that can come about.
//!
//! Two replicas and one or two jobs; ids that get lost, or come twice; replicas that die, or stand still for as long as it takes to do harm; claims
//! and outcomes whose answer is lost; leases whose time passes by the database's clock, at any moment, are renewed too late or not, and ended.
//! A step of the model is what one statement or transaction of the service does at once; between two of them anything else may happen.
//!
//! tests/simulate runs the code itself, on chosen paths; this runs no code, on all paths.

#![expect(clippy::print_stderr, reason = "a test tells what it has found")]

use std::collections::{HashMap, HashSet};

use stateright::{Checker, Model, Property};

const REPLICAS: usize = 2;

/// What is left out, to see that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// An outcome is stored though its job runs under another token.
    TokenCheck,
    /// A claim takes a job that runs.
    StatusCheck,
    /// Nobody looks for lost ids.
    Recall,
    /// Nobody ends leases.
    Expiry,
}

#[derive(Clone, Copy, Debug)]
struct Service {
    jobs: usize,
    /// Attempts of a job.
    attempts: u8,
    /// Copies of an id in the lane.
    copies: u8,
    faults: u8,
    without: Without,
}

/// All of what can happen to one job.
const ONE: Service = Service { jobs: 1, attempts: 2, copies: 2, faults: 3, without: Without::Nothing };
/// Two jobs that share replicas and lane.
const TWO: Service = Service { jobs: 2, attempts: 1, copies: 1, faults: 1, without: Without::Nothing };

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Status {
    /// `DispatchedAt` is null.
    Free,
    Dispatched,
    Running,
    Completed,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Job {
    status: Status,
    token: u8,
    attempts: u8,
    /// Copies of its id in the lane.
    copies: u8,
    /// Outcomes that ended it.
    ends: u8,
    /// Whether one was stored that came from another lease than the last.
    by_stale_token: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lease {
    token: u8,
    job: usize,
    replica: usize,
    is_over: bool,
    /// Its replica died, or never learned of it.
    is_orphan: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Claimed,
    Begun,
    Done,
    Failed,
}

/// What a replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Replica {
    popped: Option<usize>,
    held: Option<(usize, u8, Phase)>,
    is_unsure: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    jobs: Vec<Job>,
    leases: Vec<Lease>,
    replicas: Vec<Replica>,
    last_token: u8,
    faults_left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Dispatch(usize),
    Recall(usize),
    Pop(usize, usize),
    Claim(usize),
    Begin(usize),
    Return(usize, Phase),
    Store(usize),
    ReleaseUnknown(usize),
    /// The time of a lease passes, by the database's clock.
    Pass(usize),
    Renew(usize),
    /// A scheduler ends a lease that is over.
    End(usize),
    /// A keeper finds its lease gone.
    Lose(usize),
    // ---- faults ----
    DispatchUnheard(usize),
    ClaimUnheard(usize),
    StoreUnheard(usize),
    LoseId(usize),
    RepeatId(usize),
    Die(usize),
}

impl Action {
    fn is_fault(self) -> bool {
        use Action::{ClaimUnheard, Die, DispatchUnheard, LoseId, RepeatId, StoreUnheard};
        matches!(self, DispatchUnheard(_) | ClaimUnheard(_) | StoreUnheard(_) | LoseId(_) | RepeatId(_) | Die(_))
    }
}

fn is_ended(job: Job) -> bool {
    matches!(job.status, Status::Completed | Status::Failed)
}

impl State {
    fn lease(&self, token: u8) -> Option<usize> {
        self.leases.iter().position(|lease| lease.token == token)
    }

    fn push(&mut self, job: usize, copies: u8) {
        self.jobs[job].copies = (self.jobs[job].copies + 1).min(copies);
    }

    fn claim(&mut self, replica: usize, is_heard: bool, without: Without) {
        let Some(id) = self.replicas[replica].popped.take() else { return };
        let waits = matches!(self.jobs[id].status, Status::Free | Status::Dispatched);
        let may = waits || (without == Without::StatusCheck && self.jobs[id].status == Status::Running);
        if may {
            self.last_token += 1;
            let token = self.last_token;
            (self.jobs[id].status, self.jobs[id].token) = (Status::Running, token);
            self.leases.push(Lease { token, job: id, replica, is_over: false, is_orphan: !is_heard });
            if is_heard {
                self.replicas[replica].held = Some((id, token, Phase::Claimed));
            }
        }
        self.replicas[replica].is_unsure |= !is_heard;
    }

    fn store(&mut self, replica: usize, is_heard: bool, service: &Service) {
        let Some((id, token, phase)) = self.replicas[replica].held else { return };
        let job = &mut self.jobs[id];
        let is_own = job.token == token || service.without == Without::TokenCheck;
        if job.status == Status::Running && is_own {
            job.by_stale_token |= job.token != token;
            judge(job, phase == Phase::Done, service.attempts);
        }
        if is_heard {
            self.replicas[replica].held = None;
            // Settled, so the keeper removes the lease.
            self.leases.retain(|lease| lease.token != token);
        }
    }
}

/// What becomes of a job after an attempt.
fn judge(job: &mut Job, is_done: bool, attempts_max: u8) {
    job.attempts += u8::from(!is_done);
    job.status = match is_done {
        true => Status::Completed,
        false if job.attempts >= attempts_max => Status::Failed,
        false => Status::Free,
    };
    job.ends += u8::from(is_ended(*job));
}

impl Model for Service {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let job = Job { status: Status::Free, token: 0, attempts: 0, copies: 0, ends: 0, by_stale_token: false };
        vec![State {
            jobs: vec![job; self.jobs],
            leases: Vec::new(),
            replicas: vec![Replica::default(); REPLICAS],
            last_token: 0,
            faults_left: self.faults,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (id, job) in state.jobs.iter().enumerate() {
            match job.status {
                Status::Free => actions.extend([Action::Dispatch(id), Action::DispatchUnheard(id)]),
                // In the lane it is not lost; popped and not yet claimed it may look so.
                Status::Dispatched if job.copies == 0 && self.without != Without::Recall => {
                    actions.push(Action::Recall(id));
                }
                _ => {}
            }
            if job.copies > 0 {
                actions.extend([Action::LoseId(id), Action::RepeatId(id)]);
            }
        }
        for (index, replica) in state.replicas.iter().enumerate() {
            match replica.held {
                Some((_, token, phase)) => {
                    let lease = state.lease(token);
                    match phase {
                        // Not after its time, by the replica's own clock, which is no later than the database's.
                        Phase::Claimed if lease.is_some_and(|lease| !state.leases[lease].is_over) => {
                            actions.push(Action::Begin(index));
                        }
                        Phase::Begun => {
                            actions.extend([Phase::Done, Phase::Failed].map(|phase| Action::Return(index, phase)));
                        }
                        Phase::Done | Phase::Failed => {
                            actions.extend([Action::Store(index), Action::StoreUnheard(index)]);
                        }
                        Phase::Claimed => {}
                    }
                    // What runs on is a zombie; what was not begun is dropped.
                    if lease.is_none() && phase == Phase::Claimed {
                        actions.push(Action::Lose(index));
                    }
                }
                None if replica.popped.is_some() => actions.extend([Action::Claim(index), Action::ClaimUnheard(index)]),
                None if replica.is_unsure => {
                    actions.push(Action::ReleaseUnknown(index));
                }
                None => {
                    let waiting = (0..state.jobs.len()).filter(|id| state.jobs[*id].copies > 0);
                    actions.extend(waiting.map(|id| Action::Pop(index, id)));
                }
            }
            if !(replica.popped.is_none() && replica.held.is_none() && !replica.is_unsure) {
                actions.push(Action::Die(index));
            }
        }
        for (index, lease) in state.leases.iter().enumerate() {
            if !lease.is_over {
                actions.push(Action::Pass(index));
            } else if self.without != Without::Expiry {
                actions.push(Action::End(index));
            }
            if lease.is_over && !lease.is_orphan {
                actions.push(Action::Renew(index));
            }
        }
        if state.faults_left == 0 {
            actions.retain(|action| !action.is_fault());
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        state.faults_left -= u8::from(action.is_fault());
        match action {
            Action::Dispatch(id) => {
                state.jobs[id].status = Status::Dispatched;
                state.push(id, self.copies);
            }
            Action::DispatchUnheard(id) => state.jobs[id].status = Status::Dispatched,
            Action::Recall(id) => state.jobs[id].status = Status::Free,
            Action::Pop(replica, id) => {
                state.jobs[id].copies -= 1;
                state.replicas[replica].popped = Some(id);
            }
            Action::Claim(replica) => state.claim(replica, true, self.without),
            Action::ClaimUnheard(replica) => state.claim(replica, false, self.without),
            Action::Begin(replica) => state.replicas[replica].held.as_mut()?.2 = Phase::Begun,
            Action::Return(replica, phase) => state.replicas[replica].held.as_mut()?.2 = phase,
            Action::Store(replica) => state.store(replica, true, self),
            Action::StoreUnheard(replica) => state.store(replica, false, self),
            Action::ReleaseUnknown(replica) => {
                state.replicas[replica].is_unsure = false;
                for lease in before.leases.iter().filter(|lease| lease.replica == replica && lease.is_orphan) {
                    let job = &mut state.jobs[lease.job];
                    if job.status == Status::Running && job.token == lease.token {
                        job.status = Status::Dispatched;
                        state.push(lease.job, self.copies);
                    }
                }
                state.leases.retain(|lease| lease.replica != replica || !lease.is_orphan);
            }
            Action::Pass(lease) => state.leases[lease].is_over = true,
            Action::Renew(lease) => state.leases[lease].is_over = false,
            Action::End(lease) => {
                let lease = state.leases.remove(lease);
                let job = &mut state.jobs[lease.job];
                if job.status == Status::Running && job.token == lease.token {
                    judge(job, false, self.attempts);
                }
            }
            Action::Lose(replica) => state.replicas[replica].held = None,
            Action::LoseId(id) => state.jobs[id].copies -= 1,
            Action::RepeatId(id) => state.push(id, self.copies),
            Action::Die(replica) => {
                state.replicas[replica] = Replica::default();
                for lease in state.leases.iter_mut().filter(|lease| lease.replica == replica) {
                    lease.is_orphan = true;
                }
            }
        }
        state.leases.sort_unstable_by_key(|lease| lease.token);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_END, |_, state: &State| state.jobs.iter().all(|job| job.ends <= 1)),
            Property::always(NEWEST_TOKEN, |_, state: &State| !state.jobs.iter().any(|job| job.by_stale_token)),
            Property::always("no job has more attempts than it may", |service: &Service, state: &State| {
                state.jobs.iter().all(|job| job.attempts <= service.attempts)
            }),
            Property::always(ONE_LEASE, |_, state: &State| {
                let held = state.replicas.iter().filter_map(|replica| replica.held);
                // Of a handler that has returned the outcome may be stored, though nobody heard of it.
                let mut at_work = held.filter(|(_, _, phase)| matches!(phase, Phase::Claimed | Phase::Begun));
                at_work.all(|(id, token, _)| {
                    let is_over = state.lease(token).is_none_or(|lease| state.leases[lease].is_over);
                    is_over || state.jobs[id].token == token
                })
            }),
            Property::always(COVERED, |_, state: &State| {
                state.jobs.iter().all(|job| job.status != Status::Running || state.lease(job.token).is_some())
            }),
            Property::eventually(ENDS, |_, state: &State| state.jobs.iter().copied().all(is_ended)),
            // The checks above are of no use in a model in which these never happen.
            Property::sometimes("a job completes", |_, state: &State| {
                state.jobs.iter().any(|job| job.status == Status::Completed)
            }),
            Property::sometimes(
                "a zombie has an outcome while another runs the job",
                |service: &Service, state: &State| {
                    let held: Vec<_> = state.replicas.iter().filter_map(|replica| replica.held).collect();
                    let is_there = matches!(held[..], [(a, _, Phase::Done), (b, _, Phase::Begun)] if a == b);
                    is_there || service.attempts == 1 // With one attempt there is none.
                },
            ),
        ]
    }
}

const ONE_END: &str = "a job ends once";
const NEWEST_TOKEN: &str = "an outcome is stored by the newest token only";
const ONE_LEASE: &str = "while a lease lasts, its job runs under no other";
const COVERED: &str = "what runs has a lease that can be ended";
const ENDS: &str = "every job ends";

/// What was found of the properties' contrary, and of what is sometimes so.
fn found(service: Service) -> HashSet<&'static str> {
    let checker = service.checker().spawn_bfs().join();
    eprintln!("{service:?}: {} states", checker.unique_state_count());
    let mut names = HashSet::new();
    for (name, path) in checker.discoveries() {
        eprintln!("{name}: {:?}", path.into_actions());
        names.insert(name);
    }
    names
}

#[test]
fn a_job_ends_once_by_its_newest_token_whatever_goes_wrong() {
    for service in [ONE, TWO] {
        let checker = service.checker().spawn_bfs().join();

        eprintln!("{service:?}: {} states", checker.unique_state_count());
        checker.assert_properties();
    }
}

#[test]
fn without_the_token_a_late_outcome_is_stored() {
    assert!(found(Service { faults: 0, without: Without::TokenCheck, ..ONE }).contains(NEWEST_TOKEN));
}

#[test]
fn without_a_look_at_the_status_a_running_job_is_claimed() {
    let service = Service { faults: 1, without: Without::StatusCheck, attempts: 1, copies: 1, ..ONE };

    assert!(found(service).contains(ONE_LEASE));
}

#[test]
fn without_recall_a_lost_id_is_a_lost_job() {
    assert!(found(Service { faults: 1, without: Without::Recall, ..ONE }).contains(ENDS));
}

/// [`Property::eventually`] does not see a circle in which nothing ever ends. So this looks, from every state that can come about, for a way
/// to the end on which nothing more goes wrong, and returns a state that has none.
fn dead_end(service: Service) -> Option<State> {
    let mut states = service.init_states();
    let mut numbers: HashMap<State, usize> = states.iter().cloned().zip(0..).collect();
    let mut leads_here: Vec<Vec<usize>> = vec![Vec::new()];
    let mut next = 0;
    while next < states.len() {
        let mut actions = Vec::new();
        service.actions(&states[next], &mut actions);
        for action in actions {
            let Some(state) = service.next_state(&states[next], action) else { continue };
            let number = *numbers.entry(state.clone()).or_insert_with(|| {
                states.push(state);
                leads_here.push(Vec::new());
                states.len() - 1
            });
            if !action.is_fault() {
                leads_here[number].push(next);
            }
        }
        next += 1;
    }

    let mut ends: Vec<bool> = states.iter().map(|state| state.jobs.iter().copied().all(is_ended)).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|number| ends[*number]).collect();
    while let Some(number) = open.pop() {
        for &before in &leads_here[number] {
            if !std::mem::replace(&mut ends[before], true) {
                open.push(before);
            }
        }
    }
    ends.iter().position(|ends| !ends).map(|number| states.swap_remove(number))
}

#[test]
fn from_every_state_there_is_a_way_to_the_end() {
    assert_eq!(dead_end(ONE), None);
    assert_eq!(dead_end(TWO), None);
}

#[test]
fn without_expiry_or_recall_there_are_dead_ends() {
    for without in [Without::Expiry, Without::Recall] {
        assert!(dead_end(Service { faults: 1, without, ..ONE }).is_some(), "{without:?}");
    }
}
