//! The workloads, each on stores of its own, each once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trilane::store::Dialect;

use crate::http::{self, Connection};
use crate::limit::{self, per_second};
use crate::notes::{self, LATENCY, MODE};
use crate::proc::Cpu;
use crate::replica::Replica;
use crate::report::{Figure, figure, quantile};
use crate::site::{Counters, Observer, Site};

type Error = Box<dyn std::error::Error>;
type Figures = Result<Vec<Figure>, Error>;

pub(crate) const JOBS_PER_CALL: usize = 1_000;
/// Connections of a client that submits as fast as it can.
const SUBMITTERS: usize = 4;
pub(crate) const API: (&str, &str) = ("TRILANE_ROLE", "api");

/// What comes before the workers start, in a workload that drains.
pub(crate) struct Before {
    /// Jobs that ended earlier.
    pub(crate) finished: usize,
    /// Jobs that wait in the low lane, behind those that are measured.
    pub(crate) waiting: usize,
}

pub(crate) const NOTHING: Before = Before { finished: 0, waiting: 0 };

/// W1: jobs submitted in batches, workers off; then workers on, until the last outcome is committed.
pub(crate) fn drain(dialect: Dialect, jobs: usize, replicas: usize, before: &Before) -> Figures {
    let site = Site::new(dialect)?;
    let mut observer = site.observer()?;
    for (count, add) in [
        (before.finished, Observer::add_finished as fn(&Observer, usize) -> _),
        (before.waiting, Observer::add_waiting),
    ] {
        if count > 0 {
            add(&observer, count)?;
        }
    }
    observer.settle()?;
    let enqueue = submit_all(&site.start(&[API])?, jobs)?;
    observer.settle()?;

    let counters = observer.counters()?;
    let workers: Vec<Replica> = (0..replicas).map(|_| site.start(&[])).collect::<Result<_, _>>()?;
    let ended = observer.wait_until_completed(site.folder(), jobs)?;
    let started = notes::first(site.folder()).ok_or("no job ran")?;
    let cpu: f64 = workers.iter().map(|replica| replica.cpu().0).sum();
    let done = observer.counters()?;
    let ran = notes::count(site.folder());
    if before.waiting == 0 && ran != u64::try_from(jobs)? {
        return Err(format!("{ran} runs of {jobs} jobs").into());
    }
    let memory = workers.iter().map(Replica::peak_memory_mib).fold(0.0, f64::max);
    let mut figures = vec![
        figure("enqueue", enqueue, "jobs/s"),
        figure("drain", per_second(jobs, nanoseconds(started, ended)), "jobs/s"),
        figure("process CPU", cpu / thousands(jobs), "s per 1,000 jobs"),
        figure("process memory, peak", memory, "MiB"),
    ];
    figures.extend(costs(dialect, &counters, &done, jobs));
    complain(&workers);
    Ok(figures)
}

/// Limit: the same rows through the store alone.
pub(crate) fn limit(dialect: Dialect, jobs: usize) -> Figures {
    let limit = limit::measure(&Site::new(dialect)?, jobs)?;
    Ok(vec![figure("limit of enqueue", limit.insert, "jobs/s"), figure("limit of drain", limit.drain, "jobs/s")])
}

/// Submits jobs in batches, by several clients. Returns how many a second.
pub(crate) fn submit_all(replica: &Replica, jobs: usize) -> Result<f64, Error> {
    let calls: Vec<String> =
        (0..jobs).step_by(JOBS_PER_CALL).map(|from| http::many(from..jobs.min(from + JOBS_PER_CALL))).collect();
    let started = Instant::now();
    by_clients(SUBMITTERS, |number| {
        let mut connection = replica.connect()?;
        calls.iter().skip(number).step_by(SUBMITTERS).map(|body| connection.enqueue(body)).collect()
    })?;
    Ok(per_second(jobs, started.elapsed()))
}

/// Runs clients side by side, each with its number. Returns what they have together.
fn by_clients<T: Send>(
    count: usize,
    client: impl Fn(usize) -> std::io::Result<Vec<T>> + Sync,
) -> Result<Vec<T>, Error> {
    let client = &client;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count).map(|number| scope.spawn(move || client(number))).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| "a client panicked")??);
        }
        Ok(all)
    })
}

/// W2: connections that submit one job a request for some time; workers off.
pub(crate) fn single(dialect: Dialect, connections: usize, time: Duration) -> Figures {
    let site = Site::new(dialect)?;
    let replica = site.start(&[API])?;
    let latencies = single_requests(connections, time, || replica.connect())?;
    let named = |name: &str| format!("{connections} connections, {name}");
    Ok(vec![
        figure(named("requests"), per_second(latencies.len(), time), "per second"),
        figure(named("p50"), quantile(&latencies, 0.5), "ms"),
        figure(named("p99"), quantile(&latencies, 0.99), "ms"),
    ])
}

/// The requests of W2 to whatever answers them. Returns how long each took, in milliseconds, sorted.
pub(crate) fn single_requests(
    connections: usize,
    time: Duration,
    connect: impl Fn() -> std::io::Result<Connection> + Sync,
) -> Result<Vec<f64>, Error> {
    let deadline = Instant::now() + time;
    let mut latencies = by_clients(connections, |number| {
        let mut connection = connect()?;
        let mut latencies = Vec::new();
        while Instant::now() < deadline {
            let asked = Instant::now();
            connection.enqueue(&http::one(number))?;
            latencies.push(asked.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok(latencies)
    })?;
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

/// W3: single jobs at a steady pace to idle workers: from just before the request to the handler's start.
pub(crate) fn latency(dialect: Dialect, rate: usize, time: Duration, warm_up: Duration) -> Figures {
    let site = Site::new(dialect)?;
    let replica = site.start(&[(MODE, LATENCY)])?;
    let sent = paced_requests(&mut replica.connect()?, rate, warm_up + time)?;
    let latencies = latencies(&site, &sent, count_in(rate, warm_up))?;
    complain(std::slice::from_ref(&replica));
    Ok(spread("submission to start", &latencies))
}

/// Single jobs at a steady pace. Returns the moment before each.
pub(crate) fn paced_requests(connection: &mut Connection, rate: usize, time: Duration) -> std::io::Result<Vec<i64>> {
    let jobs = count_in(rate, time);
    let mut sent = Vec::with_capacity(jobs);
    let started = Instant::now();
    for n in 0..jobs {
        thread::sleep((started + pace(n, rate)).saturating_duration_since(Instant::now()));
        sent.push(notes::now_ns());
        connection.enqueue(&http::one(n))?;
    }
    Ok(sent)
}

/// W4: submitting and running together, at full speed for `time`; then at half of that rate.
pub(crate) fn flow(dialect: Dialect, time: Duration) -> Figures {
    /// Submitted and not yet run, at most: so that submitting does not take the machine from running.
    const OUTSTANDING_MAX: u64 = 20_000;
    const CALL: usize = 100;
    let site = Site::new(dialect)?;
    let mut observer = site.observer()?;
    let before = observer.counters()?;
    let replica = site.start(&[])?;
    let body = http::many(0..CALL);
    let submitted = AtomicU64::new(0);
    let started = Instant::now();
    let deadline = started + time;
    by_clients(SUBMITTERS, |_| {
        let mut connection = replica.connect()?;
        while Instant::now() < deadline {
            if submitted.load(Ordering::Relaxed) > notes::count(site.folder()) + OUTSTANDING_MAX {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            connection.enqueue(&body)?;
            submitted.fetch_add(CALL as u64, Ordering::Relaxed);
        }
        Ok(Vec::<()>::new())
    })?;
    let jobs = usize::try_from(submitted.into_inner())?;
    observer.wait_until_completed(site.folder(), jobs)?;
    let rate = per_second(jobs, started.elapsed());
    let cpu = replica.cpu();
    let after = observer.counters()?;
    let mut figures = vec![
        figure("flow", rate, "jobs/s"),
        figure("process CPU", cpu.0 / thousands(jobs), "s per 1,000 jobs"),
        figure("process memory, peak", replica.peak_memory_mib(), "MiB"),
    ];
    figures.extend(costs(dialect, &before, &after, jobs));
    complain(std::slice::from_ref(&replica));
    drop(replica);
    figures.extend(flow_at(dialect, rate / 2.0, time / 4)?);
    Ok(figures)
}

/// From submission to start at a steady rate, submitted in batches of 10 by several connections.
fn flow_at(dialect: Dialect, rate: f64, time: Duration) -> Figures {
    const CALL: usize = 10;
    let site = Site::new(dialect)?;
    let replica = site.start(&[(MODE, LATENCY)])?;
    let calls_per_second = (rate / as_f64(CALL * SUBMITTERS)).max(1.0);
    let started = Instant::now();
    let sent = by_clients(SUBMITTERS, |number| {
        let mut connection = replica.connect()?;
        let mut sent = Vec::new();
        for call in 0.. {
            let due = started + Duration::from_secs_f64(as_f64(call) / calls_per_second);
            if due > started + time {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let first = (call * SUBMITTERS + number) * CALL;
            sent.push((first, notes::now_ns()));
            connection.enqueue(&http::many(first..first + CALL))?;
        }
        Ok(sent)
    })?;
    let mut moments = vec![0; sent.len() * CALL];
    for (first, at) in sent {
        moments.resize(moments.len().max(first + CALL), 0);
        moments[first..first + CALL].fill(at);
    }
    let known = moments.iter().rposition(|at| *at != 0).map_or(0, |last| last + 1);
    let latencies = latencies(&site, &moments[..known], 0)?;
    complain(std::slice::from_ref(&replica));
    Ok(spread("submission to start at half of it", &latencies))
}

/// Milliseconds from the moments of submission (0: none with that number) to the starts, sorted; without the first few.
fn latencies(site: &Site, sent: &[i64], without: usize) -> Result<Vec<f64>, Error> {
    let wanted = sent.iter().filter(|at| **at != 0).count();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut started = notes::moments(site.folder());
    while started.len() < wanted {
        if Instant::now() > deadline {
            return Err(format!("only {} of {wanted} jobs ran", started.len()).into());
        }
        thread::sleep(Duration::from_millis(100));
        started = notes::moments(site.folder());
    }
    let mut latencies: Vec<f64> = sent
        .iter()
        .enumerate()
        .skip(without)
        .filter(|(_, at)| **at != 0)
        .filter_map(|(n, at)| Some(nanoseconds(*at, *started.get(&n)?).as_secs_f64() * 1_000.0))
        .collect();
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

fn spread(name: &str, sorted: &[f64]) -> Vec<Figure> {
    [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)]
        .map(|(part_name, part)| figure(format!("{name}, {part_name}"), quantile(sorted, part), "ms"))
        .into()
}

fn costs(dialect: Dialect, before: &Counters, after: &Counters, jobs: usize) -> Vec<Figure> {
    if dialect != Dialect::Postgres {
        return Vec::new();
    }
    let per_thousand = |count: i64| {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let count = count as f64;
        count / thousands(jobs)
    };
    let Cpu(cpu) = Cpu(after.cpu.0 - before.cpu.0);
    vec![
        figure("statements", per_thousand(after.statements - before.statements), "per 1,000 jobs"),
        figure("commits", per_thousand(after.commits - before.commits), "per 1,000 jobs"),
        figure("log written", per_thousand(after.log_bytes - before.log_bytes) / 1_000.0, "bytes per job"),
        figure("database CPU", cpu / thousands(jobs), "s per 1,000 jobs"),
        figure("deadlocks", per_thousand(after.deadlocks - before.deadlocks) * thousands(jobs), ""),
    ]
}

fn complain(replicas: &[Replica]) {
    for log in replicas.iter().map(Replica::log).filter(|log| !log.is_empty()) {
        eprintln!("a replica complained:\n{log}");
    }
}

fn thousands(jobs: usize) -> f64 {
    as_f64(jobs) / 1_000.0
}

fn as_f64(count: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let count = count as f64;
    count
}

fn count_in(rate: usize, time: Duration) -> usize {
    usize::try_from(time.as_millis()).unwrap_or(usize::MAX) * rate / 1_000
}

fn pace(n: usize, rate: usize) -> Duration {
    Duration::from_secs_f64(as_f64(n) / as_f64(rate))
}

fn nanoseconds(from: i64, to: i64) -> Duration {
    Duration::from_nanos(u64::try_from(to - from).unwrap_or_default())
}
