//! One run: replicas, Redis, clients and what goes wrong, chosen step by step by the seed.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use trilane::job::{Lane, NewJob, Seq, Start};
use trilane::queue::{Answer, SimulatedLanes};
use trilane::retry::Report;
use trilane::store::{Cancelled, Revived, StoreError};
use uuid::Uuid;

use crate::clock;
use crate::database::Database;
use crate::model::{Actor, Model};
use crate::replica::{Kind, LEASE, Replica, Settings, Stage, TICK};
use crate::rng::Rng;
use crate::trouble::{self, Crash};

const REPLICAS_MAX: usize = 4;
const JOBS_MAX: usize = 10;
/// Once faults have stopped, every job has ended after this time: its delay, what a dead replica holds (a lease, or a minute unseen), a retry,
/// and a few ticks.
const END_MAX: Duration = Duration::from_mins(30);
/// After the last job has ended, every lease has.
const REST: Duration = Duration::from_mins(3);

pub(crate) struct World<'d> {
    database: &'d Database,
    lanes: SimulatedLanes,
    settings: Settings,
    pub(crate) rng: Rng,
    replicas: Vec<Replica>,
    pub(crate) model: Model,
    pub(crate) trace: String,
    /// Whether things go wrong, other than in handlers.
    has_faults: bool,
    /// The database is away until then.
    away_until: Duration,
    replicas_begun: usize,
    pub(crate) crashes: usize,
    pub(crate) step: usize,
}

type Step = Result<(), String>;
/// What a replica does in one step.
type Act<'a> = &'a mut dyn FnMut(&mut Replica, &mut Rng) -> Result<String, StoreError>;

#[derive(Clone, Copy)]
enum Choice {
    Submit,
    Insert,
    Schedule,
    Keep,
    Feed,
    Begin,
    Report,
    Finish,
    Pass,
    Cancel,
    Revive,
    Wake,
    Redis,
    Database,
    Crash,
    Start,
    Stop,
    Pause,
}

const CHOICES: [(usize, Choice); 18] = [
    (10, Choice::Submit),
    (2, Choice::Insert),
    (14, Choice::Schedule),
    (8, Choice::Keep),
    (18, Choice::Feed),
    (14, Choice::Begin),
    (10, Choice::Report),
    (12, Choice::Finish),
    (14, Choice::Pass),
    (2, Choice::Cancel),
    (2, Choice::Revive),
    (1, Choice::Wake),
    (4, Choice::Redis),
    (2, Choice::Database),
    (2, Choice::Crash),
    (3, Choice::Start),
    (3, Choice::Stop),
    (1, Choice::Pause),
];

impl<'d> World<'d> {
    pub(crate) fn new(database: &'d Database, seed: u64) -> World<'d> {
        clock::begin();
        trilane::random::seed(seed);
        database.clear();
        let mut rng = Rng::new(seed);
        let settings = Settings {
            kind: rng.pick(&[Kind::Redis, Kind::Redis, Kind::Redis, Kind::Own, Kind::Table]),
            starvation: rng.pick(&[None, Some(Duration::from_mins(1))]),
            hand_off: rng.chance(50),
            lane_buffer_max: rng.pick(&[100_000, 2]),
        };
        let has_faults = !seed.is_multiple_of(8);
        let mut world = World {
            database,
            lanes: SimulatedLanes::new(),
            settings,
            rng,
            replicas: Vec::new(),
            model: Model::default(),
            trace: format!("{settings:?}, faults: {has_faults}\n"),
            has_faults,
            away_until: Duration::ZERO,
            replicas_begun: 0,
            crashes: 0,
            step: 0,
        };
        for _ in 0..=world.rng.below(3) {
            world.start();
        }
        world
    }

    /// The whole run: `steps` steps in which anything may happen, and then none in which anything goes wrong.
    pub(crate) fn run(&mut self, steps: usize) -> Step {
        // A calm step is many rounds.
        for _ in 0..if self.has_faults { steps } else { steps / 5 } {
            if self.has_faults {
                let choice = self.rng.weighted(&CHOICES);
                self.choose(choice)?;
            } else {
                self.calm_step()?;
            }
        }
        let is_calm = !self.has_faults;
        self.come_to_rest()?;
        if is_calm {
            for seq in self.model.state.jobs.iter().map(|job| job.seq) {
                let (begun, needed) = (self.model.attempts(seq), self.model.attempts_needed(seq));
                let is_right = begun == needed || (self.model.is_cancelled(seq) && begun == needed + 1);
                if !is_right {
                    return Err(format!("nothing went wrong, and job {seq} was begun {begun} times, not {needed}"));
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, line: &str) {
        self.step += 1;
        let time = clock::elapsed().as_secs_f64();
        writeln!(self.trace, "{:4} {time:10.3} s  {line}", self.step).expect("a String takes all");
    }

    fn start(&mut self) {
        self.replicas_begun += 1;
        let replica = Replica::new(self.replicas_begun, &self.database.store, &self.lanes, self.settings);
        self.note(&format!("{} starts", replica.name));
        self.replicas.push(replica);
    }

    fn check(&mut self, actor: Actor) -> Step {
        let handlers = self.replicas.iter().flat_map(|replica| &replica.running);
        let handlers: Vec<(i64, i64)> = handlers.map(|run| (run.job.seq.0, run.job.token.0)).collect();
        match self.database.look_again() {
            Some(state) => self.model.check(state, actor, &handlers),
            None => self.model.check_handlers(&handlers),
        }
    }

    /// A replica that does not stand still, or none.
    fn awake(&mut self) -> Option<usize> {
        let now = clock::elapsed();
        let awake: Vec<usize> =
            (0..self.replicas.len()).filter(|index| self.replicas[*index].paused_until <= now).collect();
        (!awake.is_empty()).then(|| self.rng.pick(&awake))
    }

    /// Lets a replica do something, and perhaps fail at a fault point in it, with its process or only the thread.
    fn act(&mut self, index: usize, actor: Actor, what: &str, act: Act<'_>) -> Step {
        if self.has_faults {
            trouble::arm(actor, clock::elapsed() < self.away_until, &mut self.rng);
        }
        let (replica, rng) = (&mut self.replicas[index], &mut self.rng);
        let name = replica.name.clone();
        let done = catch_unwind(AssertUnwindSafe(|| act(replica, rng)));
        let failed = trouble::disarm();
        if let Some(point) = failed {
            *self.model.moves.entry(point).or_default() += 1;
        }
        match done {
            // At rest only what changes something is told.
            Ok(Ok(_)) if !self.has_faults && !self.database.has_changed() => {}
            Ok(Ok(result)) => {
                let separator = if result.is_empty() { "" } else { ": " };
                self.note(&format!("{name} {what}{separator}{result}"));
            }
            Ok(Err(error)) if failed.is_some() => {
                self.replicas[index].met(&error);
                self.note(&format!("{name} {what}: {error}"));
            }
            Ok(Err(error)) => return Err(format!("{name} {what}: {error}")),
            Err(panic) => {
                let Ok(crash) = panic.downcast::<Crash>() else { return Err(format!("{name} {what}: it panicked")) };
                self.crashes += 1;
                let dies = self.rng.chance(60);
                self.note(&format!("{name} {what}: {} at {}", if dies { "dies" } else { "fails" }, crash.0));
                if dies {
                    self.replicas.remove(index);
                } else {
                    self.replicas[index].has_failed = true;
                }
            }
        }
        self.check(actor)
    }

    fn choose(&mut self, choice: Choice) -> Step {
        let Some(index) = self.awake() else {
            match choice {
                Choice::Start => self.start_one(),
                _ => self.pass_time(),
            }
            return Ok(());
        };
        match choice {
            Choice::Submit => return self.submit(index),
            Choice::Insert => return self.insert(),
            Choice::Schedule => {
                return self.act(index, Actor::Scheduler, "schedules", &mut |replica, _| {
                    replica.schedule().map(|()| String::new())
                });
            }
            Choice::Keep => {
                return self
                    .act(index, Actor::Keeper, "keeps", &mut |replica, _| replica.keep().map(|()| String::new()));
            }
            Choice::Feed => return self.feed(index),
            Choice::Begin => return self.begin(index),
            Choice::Report => return self.report(index, false),
            Choice::Finish => return self.finish(index),
            Choice::Cancel => return self.cancel(index),
            Choice::Revive => return self.revive(index),
            Choice::Stop => return self.stop(index),
            Choice::Pass => self.pass_time(),
            Choice::Wake => self.replicas[index].ticker.tick_now(),
            Choice::Redis => self.trouble_redis(),
            Choice::Database => {
                let outage = self.rng.seconds(1, 40);
                self.away_until = clock::elapsed() + outage;
                self.note(&format!("the database is away for {} s", outage.as_secs()));
            }
            Choice::Start => self.start_one(),
            Choice::Crash => {
                let replica = self.replicas.remove(index);
                self.crashes += 1;
                self.note(&format!("{} is killed", replica.name));
            }
            Choice::Pause => {
                let pause = self.rng.seconds(20, 200);
                self.replicas[index].paused_until = clock::elapsed() + pause;
                self.note(&format!("{} stands still for {} s", self.replicas[index].name, pause.as_secs()));
            }
        }
        Ok(())
    }

    fn start_one(&mut self) {
        if self.replicas.len() < REPLICAS_MAX {
            self.start();
        }
    }

    fn pass_time(&mut self) {
        let by = self.rng.weighted(&[
            (4, 1),
            (6, 100),
            (6, 1_000),
            (6, 5_000),
            (4, 11_000),
            (3, 21_000),
            (3, 31_000),
            (2, 65_000),
            (2, 121_000),
        ]);
        clock::advance(Duration::from_millis(by));
        self.note(&format!("{by} ms pass"));
    }

    fn new_job(&mut self) -> NewJob {
        let rng = &mut self.rng;
        let mut job = NewJob::new("x", "{}");
        job.lane = rng.pick(&Lane::ALL);
        job.max_retries = rng.below(4) as u32;
        job.start = match rng.below(10) {
            0..6 => Start::Now,
            6..9 => Start::After(rng.seconds(0, 150)),
            _ => Start::After(rng.seconds(150, 400)),
        };
        if rng.chance(30) {
            job.unique_key = Some(rng.pick(&["a", "b", "c"]).to_owned());
        }
        job
    }

    fn submit(&mut self, index: usize) -> Step {
        let count = 1 + self.rng.below(3);
        if self.replicas[index].stage != Stage::Serving || self.model.state.jobs.len() + count > JOBS_MAX {
            return Ok(());
        }
        let jobs: Vec<NewJob> = (0..count).map(|_| self.new_job()).collect();
        let jobs: Vec<&NewJob> = jobs.iter().collect();
        let mut answered: Vec<Uuid> = Vec::new();
        let mut taken: Vec<(String, Uuid)> = Vec::new();
        self.act(index, Actor::Submitter, "submits", &mut |replica, _| {
            let results = replica.submit(&jobs)?;
            for (job, result) in jobs.iter().zip(&results) {
                match result {
                    Ok(stored) => answered.push(stored.id),
                    Err(by) => taken.push((job.unique_key.clone().unwrap_or_default(), by.held_by)),
                }
            }
            let seqs = results.iter().map(|result| result.as_ref().map_or(0, |job| job.seq.0));
            Ok(format!("{:?}", seqs.zip(jobs.iter().map(|job| (job.lane, job.start))).collect::<Vec<_>>()))
        })?;
        for id in answered {
            self.model.acknowledge(id);
        }
        for (key, holder) in taken {
            if self.model.state.keys.get(&key) != Some(&holder) {
                return Err(format!("the key {key} was refused for {holder}, which does not hold it"));
            }
        }
        self.check(Actor::Submitter)
    }

    /// A client's plain `INSERT`; some are of no lane, or of no status.
    fn insert(&mut self) -> Step {
        if self.model.state.jobs.len() >= JOBS_MAX {
            return Ok(());
        }
        let lane = self.rng.pick(&["high", "HIGH", " Low ", "medium", "urgent"]);
        let status = self.rng.weighted(&[(5, "queued"), (1, "waiting")]);
        let delay_ms = self.rng.pick(&[0, 0, 0, 90_000]);
        let run_at = clock::database_ms() + delay_ms;
        self.database.execute(&format!(
            "insert into Jobs (Type, Payload, Priority, Status, RunAt) values ('x', '{{}}', '{lane}', '{status}', {run_at})"
        ));
        self.note(&format!("a client inserts {lane:?} {status:?} due in {delay_ms} ms"));
        let known = self.model.state.jobs.len();
        self.check(Actor::Submitter)?;
        let id = self.model.state.jobs[known].id;
        self.model.acknowledge(id);
        Ok(())
    }

    fn feed(&mut self, index: usize) -> Step {
        if !self.replicas[index].can_feed() {
            return Ok(());
        }
        let actor = Actor::Feeder(self.replicas[index].id);
        self.act(index, actor, "feeds", &mut |replica, _| {
            replica.feed()?;
            Ok(format!("holds {}", replica.held.unsettled().len()))
        })
    }

    fn begin(&mut self, index: usize) -> Step {
        if self.replicas[index].stage != Stage::Serving {
            return Ok(());
        }
        let Some((Seq(seq), token)) = self.replicas[index].begin() else { return Ok(()) };
        self.note(&format!("{} begins {seq} under {token}", self.replicas[index].name));
        self.model.begin(seq, token.0)
    }

    fn report(&mut self, index: usize, is_well: bool) -> Step {
        let replica = &mut self.replicas[index];
        if replica.running.is_empty() || replica.stage == Stage::Drained {
            return Ok(());
        }
        let run = self.rng.below(replica.running.len());
        let is_told = replica.running[run].stop.is_set();
        let report = match self.rng.below(10) {
            _ if is_well => Report::Done,
            0..5 => Report::Done,
            5..8 => Report::retry("not now"),
            8 => Report::Retry { reason: "later".into(), delay: Some(self.rng.seconds(0, 130)) },
            _ => Report::permanent("never"),
        };
        let outcome = replica.report(run, report, &mut self.rng);
        let name = &replica.name;
        let told = if is_told { " (told to stop)" } else { "" };
        let line = format!("{name} {} under {}: {:?}{told}", outcome.seq, outcome.token, outcome.verdict);
        self.note(&line);
        self.model.send(outcome.seq.0, outcome.token.0, &outcome.verdict)
    }

    fn finish(&mut self, index: usize) -> Step {
        if !self.replicas[index].has_outcomes() {
            return Ok(());
        }
        let (name, before) = (self.replicas[index].name.clone(), self.model.stats);
        let mut is_done = false;
        self.act(index, Actor::Finisher, "stores outcomes", &mut |replica, _| {
            replica.finish()?;
            is_done = true;
            Ok(String::new())
        })?;
        let Some(replica) = self.replicas.iter_mut().find(|replica| replica.name == name) else { return Ok(()) };
        for (count, (after, before)) in replica.stored.iter_mut().zip(self.model.stats.iter().zip(before)) {
            *count += after - before;
        }
        let counted = replica.counted();
        if is_done && !replica.has_failed && counted != replica.stored {
            return Err(format!("{name} has counted {counted:?}, and stored {:?}", replica.stored));
        }
        Ok(())
    }

    fn cancel(&mut self, index: usize) -> Step {
        if self.model.state.jobs.is_empty() {
            return Ok(());
        }
        let job = self.rng.below(self.model.state.jobs.len());
        let id = self.model.state.jobs[job].id;
        let was_live = self.model.live().any(|job| job.id == id);
        let seq = self.model.state.jobs[job].seq;
        let mut is_done = None;
        self.act(index, Actor::Cancel(id), &format!("cancels {seq}"), &mut |replica, _| {
            is_done = Some(matches!(replica.lifecycle.cancel(id)?, Cancelled::Done(_)));
            Ok(String::new())
        })?;
        // One of an unknown status is not cancelled; it is about to be buried.
        let is_odd = self.model.state.jobs[job].status == "waiting";
        match is_done {
            Some(is_done) if is_done != was_live && !is_odd => {
                Err(format!("cancel says {is_done}, and live is {was_live}"))
            }
            _ => Ok(()),
        }
    }

    fn revive(&mut self, index: usize) -> Step {
        let failed = self.model.state.jobs.iter().filter(|job| job.status == "failed");
        let failed: Vec<(i64, Uuid)> = failed.map(|job| (job.seq, job.id)).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let (seq, id) = self.rng.pick(&failed);
        self.act(index, Actor::Revive(id), &format!("revives {seq}"), &mut |replica, _| {
            Ok(match replica.lifecycle.revive(id)? {
                Revived::Queued(_) => "queued".into(),
                Revived::KeyTaken(_) => "its key is taken".into(),
                other => format!("{other:?}"),
            })
        })
    }

    fn trouble_redis(&mut self) {
        let lane = self.rng.pick(&Lane::ALL);
        let what = match self.rng.below(8) {
            0 => {
                self.lanes.flush();
                "loses all".into()
            }
            1 | 2 => {
                let count = 1 + self.rng.below(3);
                self.lanes.lose(lane, count);
                format!("loses {count} of {lane}")
            }
            3 if self.model.state.jobs.iter().any(|job| job.dispatched_at.is_some()) => {
                let dispatched = self.model.state.jobs.iter().filter(|job| job.dispatched_at.is_some());
                let seqs: Vec<i64> = dispatched.map(|job| job.seq).collect();
                let seq = self.rng.pick(&seqs);
                self.lanes.add(lane, Seq(seq));
                format!("has {seq} once more, in {lane}")
            }
            4 => {
                self.lanes.answer(Answer::Away);
                "is away".into()
            }
            5 => {
                self.lanes.answer(Answer::Lost);
                "is not heard".into()
            }
            _ => {
                self.lanes.answer(Answer::Given);
                "is well".to_owned()
            }
        };
        self.note(&format!("Redis {what}"));
    }

    fn stop(&mut self, index: usize) -> Step {
        if self.replicas[index].stage == Stage::Draining && self.replicas[index].has_outcomes() {
            return self.finish(index);
        }
        let actor = Actor::Stop(self.replicas[index].id);
        let name = self.replicas[index].name.clone();
        let mut has_left = self.replicas[index].stage == Stage::Drained;
        self.act(index, actor, "stops", &mut |replica, _| {
            has_left = replica.stop()?;
            Ok(if has_left {
                "has left".into()
            } else {
                format!("{:?}", replica.stage)
            })
        })?;
        if has_left {
            self.replicas.retain(|replica| replica.name != name);
        }
        Ok(())
    }

    /// One of the steps in which nothing goes wrong: clients ask for something, handlers succeed or fail, and every duty is done when it is due.
    fn calm_step(&mut self) -> Step {
        let index = self.rng.below(self.replicas.len());
        match self.rng.below(10) {
            0..3 => self.submit(index)?,
            3 => self.insert()?,
            4 => self.cancel(index)?,
            5 => self.revive(index)?,
            _ => self.report(index, false)?,
        }
        self.duties()?;
        let until = clock::elapsed() + self.rng.seconds(0, 10);
        while clock::elapsed() < until {
            self.wait_until_due(until);
            self.duties()?;
        }
        Ok(())
    }

    /// Every replica does what is due.
    fn duties(&mut self) -> Step {
        let mut index = 0;
        while index < self.replicas.len() {
            let count = self.replicas.len();
            self.duties_of(index)?;
            index += usize::from(count == self.replicas.len());
        }
        Ok(())
    }

    fn duties_of(&mut self, index: usize) -> Step {
        let now = clock::elapsed();
        if self.replicas[index].stage != Stage::Serving {
            return self.stop(index);
        }
        if self.replicas[index].keeper_due <= now {
            self.choose_quietly(index, Choice::Keep)?;
        }
        // Whenever woken, which is not told to the simulation.
        self.choose_quietly(index, Choice::Schedule)?;
        if self.replicas[index].feeder_due <= now {
            self.feed(index)?;
        }
        for _ in 0..4 {
            self.begin(index)?;
        }
        self.finish(index)
    }

    fn choose_quietly(&mut self, index: usize, choice: Choice) -> Step {
        let replica = &mut self.replicas[index];
        let (actor, done) = match choice {
            Choice::Keep => (Actor::Keeper, replica.keep()),
            _ => (Actor::Scheduler, replica.schedule()),
        };
        done.map_err(|error| format!("{}: {error}", self.replicas[index].name))?;
        self.check(actor)
    }

    fn wait_until_due(&mut self, latest: Duration) {
        let due = self.replicas.iter().map(|replica| replica.scheduler_due.min(replica.keeper_due));
        let next = due.min().unwrap_or(latest).min(latest);
        clock::advance(next.saturating_sub(clock::elapsed()).max(Duration::from_millis(1)));
    }

    /// Nothing goes wrong any more, and handlers succeed: every job ends.
    fn come_to_rest(&mut self) -> Step {
        self.note("from now on nothing goes wrong");
        self.has_faults = false;
        self.away_until = Duration::ZERO;
        self.lanes.answer(Answer::Given);
        for replica in &mut self.replicas {
            replica.paused_until = Duration::ZERO;
        }
        if self.replicas.iter().all(|replica| replica.stage != Stage::Serving) {
            self.start();
        }
        let end = clock::elapsed() + END_MAX;
        while self.model.live().next().is_some() && clock::elapsed() < end {
            self.round_of_rest(end)?;
        }
        let end = clock::elapsed() + REST.max(LEASE + TICK);
        while !self.model.state.leases.is_empty() && clock::elapsed() < end {
            self.round_of_rest(end)?;
        }
        self.model.check_rest()
    }

    fn round_of_rest(&mut self, end: Duration) -> Step {
        self.duties()?;
        for index in 0..self.replicas.len() {
            while !self.replicas[index].running.is_empty() {
                self.report(index, true)?;
            }
            self.finish(index)?;
        }
        self.wait_until_due(end);
        Ok(())
    }
}
