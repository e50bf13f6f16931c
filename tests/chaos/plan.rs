//! Which faults come when: a pure function of a seed.

use super::random::Random;

/// One step of a fault, or of its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// SIGKILL.
    Kill(usize),
    /// SIGKILL, and a start that dies by itself at a fault point after some passes.
    Arm(usize, &'static str, u64),
    /// SIGTERM.
    Terminate(usize),
    /// Starts a replica that does not run.
    Start(usize),
    /// SIGSTOP.
    Stop(usize),
    /// SIGCONT.
    Continue(usize),
    RedisKill,
    RedisStart,
    RedisFlush,
    RedisStop,
    RedisContinue,
    DatabaseKill,
    DatabaseStart,
    DatabaseStop,
    DatabaseContinue,
    /// The server ends all connections of Trilane.
    CutConnections,
}

/// A step at a time, in milliseconds from the start. A step that ends a fault names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) at_ms: u64,
    pub(crate) step: Step,
    pub(crate) ends: Option<&'static str>,
}

/// What there is to break.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    pub(crate) replicas: usize,
    pub(crate) has_redis: bool,
    /// Whether the database is a server of the run's own.
    pub(crate) owns_database: bool,
    pub(crate) lease_ms: u64,
}

/// Every place of `src/fault.rs` that a running replica passes.
pub(crate) const POINTS: [&str; 13] = [
    "submit.committed",
    "submit_claimed.committed",
    "submit_once.committed",
    "claim.popped",
    "claim.claimed",
    "worker.begun",
    "worker.done",
    "finish.in_transaction",
    "finish.committed",
    "tick.dispatched",
    "timers.due",
    "epoch.begun",
    "expire.in_transaction",
];

/// Those of repairs: passed only where something is to be repaired (`repair.rs`).
pub(crate) const POINTS_OF_REPAIRS: [&str; 2] = ["epoch.begun", "expire.in_transaction"];

/// Between two faults, at least and at most.
const PAUSE_MS: std::ops::Range<u64> = 500..2_500;

/// Faults for `length_ms`, all of which have ended `length_ms` and 10 s after the start, but for replicas that are not started again.
pub(crate) fn plan(seed: u64, length_ms: u64, site: Site) -> Vec<Planned> {
    let mut random = Random::new(seed);
    let mut kinds =
        vec!["kill", "kill for good", "kill at a point", "kill at a point", "stop and continue", "terminate"];
    if site.has_redis {
        kinds.extend(["redis killed", "redis flushed", "redis paused"]);
    }
    if site.owns_database {
        kinds.extend(["connections cut", "database killed", "database paused"]);
    }
    if site.replicas > 1 {
        kinds.push("rolling restart");
    }
    let mut plan = Vec::new();
    // Until when each replica, Redis and the database are under a fault: one at a time.
    let (mut replicas, mut redis, mut database) = (vec![0; site.replicas], 0, 0);
    let mut now = random.within(PAUSE_MS);
    while now < length_ms {
        let kind = random.pick(&kinds);
        let slot = random.below(site.replicas);
        let busy = match kind {
            "redis killed" | "redis flushed" | "redis paused" => &mut redis,
            "connections cut" | "database killed" | "database paused" => &mut database,
            "rolling restart" => {
                let busy = replicas.iter().copied().max().unwrap_or(0);
                replicas.fill(busy);
                &mut replicas[0]
            }
            _ => &mut replicas[slot],
        };
        if *busy <= now {
            let steps = steps(kind, slot, site, &mut random);
            let end = now + steps.last().map_or(0, |(after, _)| *after);
            *busy = end + 1_000;
            let last = steps.len().saturating_sub(1);
            plan.extend(steps.into_iter().enumerate().map(|(index, (after, step))| Planned {
                at_ms: now + after,
                step,
                ends: (index == last).then_some(kind),
            }));
            if kind == "rolling restart" {
                replicas.fill(end + 1_000);
            }
        }
        now += random.within(PAUSE_MS);
    }
    plan.sort_by_key(|planned| planned.at_ms);
    plan
}

fn steps(kind: &str, slot: usize, site: Site, random: &mut Random) -> Vec<(u64, Step)> {
    match kind {
        "kill" => vec![(0, Step::Kill(slot)), (random.within(0..4_000), Step::Start(slot))],
        // Not while the others have work for it, that is.
        "kill for good" if site.replicas > 1 => vec![(0, Step::Kill(slot)), (15_000, Step::Start(slot))],
        "kill at a point" => {
            let (point, passes) = (random.pick(&POINTS), random.within(0..20));
            let passes = if POINTS_OF_REPAIRS.contains(&point) { 0 } else { passes };
            vec![(0, Step::Arm(slot, point, passes))]
        }
        "stop and continue" => {
            vec![(0, Step::Stop(slot)), (site.lease_ms + random.within(500..6_000), Step::Continue(slot))]
        }
        "terminate" => vec![(0, Step::Terminate(slot))],
        "redis killed" => vec![(0, Step::RedisKill), (random.within(100..5_000), Step::RedisStart)],
        "redis flushed" => vec![(0, Step::RedisFlush)],
        "redis paused" => vec![(0, Step::RedisStop), (random.within(500..8_000), Step::RedisContinue)],
        "connections cut" => vec![(0, Step::CutConnections)],
        "database killed" => vec![(0, Step::DatabaseKill), (random.within(100..4_000), Step::DatabaseStart)],
        "database paused" => vec![(0, Step::DatabaseStop), (random.within(500..6_000), Step::DatabaseContinue)],
        "rolling restart" => (0..site.replicas).map(|slot| (slot as u64 * 1_000, Step::Terminate(slot))).collect(),
        _ => vec![(0, Step::Kill(slot)), (1_000, Step::Start(slot))],
    }
}

pub(crate) fn a_seed_decides_the_plan() {
    let site = Site { replicas: 5, has_redis: true, owns_database: true, lease_ms: 3_000 };
    let steps = plan(1, 1_200_000, site);

    assert_eq!(steps, plan(1, 1_200_000, site));
    assert_ne!(steps, plan(2, 1_200_000, site));
    for planned in [Step::RedisKill, Step::RedisFlush, Step::DatabaseKill, Step::DatabaseStop, Step::CutConnections] {
        assert!(steps.iter().any(|step| step.step == planned), "twenty minutes have a {planned:?}");
    }
    for point in POINTS {
        assert!(steps.iter().any(|step| matches!(step.step, Step::Arm(_, at, _) if at == point)), "and a {point}");
    }
}
