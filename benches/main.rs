//! What `make bench` runs: Trilane as a process of its own under the workloads W1 to W6, beside what the database and the HTTP library give
//! by themselves. docs/PERFORMANCE.md says what each is, and what was measured.
//!
//! `cargo bench --bench trilane -- [--store sqlite|postgres|mssql]… [--only W1|W2|…]… [--jobs N]… [--runs N] [--quick]`, with the servers
//! that tests/support/services.sh starts. Prints one table; each run is appended to `benches/results/`.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::panic,
    reason = "it is a program for a person at a terminal"
)]

mod bare;
mod http;
mod limit;
mod notes;
mod peer;
mod proc;
mod replica;
mod report;
mod site;
#[path = "../tests/support/stores.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod stores;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use trilane::store::Dialect;

use crate::bare::BareHttp;
use crate::http::Connection;
use crate::limit::per_second;
use crate::report::{Figure, Report, figure};
use crate::workloads::{Before, NOTHING};

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: cargo bench --bench trilane -- [--store sqlite|postgres|mssql]... [--only W1|W2|W3|W4|W5|W6]... \
                     [--jobs N]... [--runs N] [--quick]";

/// What to measure, and how large.
struct Plan {
    stores: Vec<Dialect>,
    only: Vec<String>,
    jobs: Vec<usize>,
    runs: usize,
    connections: Vec<usize>,
    single: Duration,
    latency: Duration,
    flow: Duration,
    rows: Vec<usize>,
    replicas: Vec<usize>,
}

impl Plan {
    fn full() -> Plan {
        Plan {
            stores: vec![Dialect::Postgres, Dialect::Sqlite],
            only: Vec::new(),
            jobs: vec![20_000, 200_000],
            runs: 3,
            connections: vec![1, 16, 64, 256],
            single: Duration::from_secs(10),
            latency: Duration::from_secs(15),
            flow: Duration::from_mins(1),
            rows: vec![1_000_000, 10_000_000],
            replicas: vec![1, 2, 5],
        }
    }

    /// Everything once and small: it shows that the bench works, and measures nothing.
    fn quick() -> Plan {
        Plan {
            jobs: vec![2_000],
            runs: 1,
            connections: vec![4],
            single: Duration::from_secs(1),
            latency: Duration::from_secs(1),
            flow: Duration::from_secs(2),
            rows: vec![2_000],
            replicas: vec![2],
            ..Plan::full()
        }
    }

    fn parse(arguments: &[String]) -> Result<Plan, Error> {
        let mut plan = if arguments.iter().any(|argument| argument == "--quick") {
            Plan::quick()
        } else {
            Plan::full()
        };
        let (mut stores, mut jobs) = (Vec::new(), Vec::new());
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().map(String::as_str).ok_or_else(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--bench" | "--quick" => {} // the first is cargo's
                "--store" => stores.push(dialect(value()?)?),
                "--only" => plan.only.push(value()?.to_uppercase()),
                "--jobs" => jobs.push(value()?.parse()?),
                "--runs" => plan.runs = value()?.parse()?,
                other => return Err(format!("unknown: {other}\n{USAGE}").into()),
            }
        }
        if !stores.is_empty() {
            plan.stores = stores;
        }
        if !jobs.is_empty() {
            plan.jobs = jobs;
        }
        Ok(plan)
    }

    fn wants(&self, workload: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == workload)
    }
}

fn dialect(name: &str) -> Result<Dialect, Error> {
    match name {
        "sqlite" => Ok(Dialect::Sqlite),
        "postgres" => Ok(Dialect::Postgres),
        "mssql" => Ok(Dialect::Mssql),
        _ => Err(format!("no store {name}\n{USAGE}").into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [replica::ARGUMENT] => replica::serve(false),
        [replica::ARGUMENT, replica::GATED] => replica::serve(true),
        [peer::ARGUMENT, arguments @ ..] => peer::run(arguments),
        _ => Plan::parse(&arguments).and_then(|plan| measure(&plan)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(plan: &Plan) -> Result<(), Error> {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let file = folder.join(format!("{seconds}.jsonl"));
    let mut report = Report::default();
    for run in 1..=plan.runs {
        for store in &plan.stores {
            let mut add = |workload: &str, figures: Vec<Figure>| {
                eprintln!("run {run} of {}: {workload} on {} is done", plan.runs, store.as_str());
                report.add(&file, workload, store.as_str(), figures)
            };
            for_one_store(plan, *store, run == 1, &mut add)?;
        }
    }
    println!("{}", report.table());
    eprintln!("each run: {}", file.display());
    Ok(())
}

fn for_one_store(
    plan: &Plan,
    store: Dialect,
    is_first_run: bool,
    add: &mut dyn FnMut(&str, Vec<Figure>) -> std::io::Result<()>,
) -> Result<(), Error> {
    if plan.wants("W1") {
        for jobs in &plan.jobs {
            let limit = workloads::limit(store, *jobs)?;
            let drain = workloads::drain(store, *jobs, 1, &NOTHING)?;
            add(&format!("W1 {jobs}"), with_ratios(drain, limit))?;
        }
    }
    if plan.wants("W2") {
        for connections in &plan.connections {
            let mut figures = workloads::single(store, *connections, plan.single)?;
            if *connections == 64 || plan.connections.len() == 1 {
                figures.extend(beside_bare_http(*connections, plan.single, value(&figures, "requests"))?);
            }
            add("W2", figures)?;
        }
    }
    if plan.wants("W3") {
        add("W3", workloads::latency(store, 100, plan.latency, Duration::from_secs(1))?)?;
    }
    if plan.wants("W4") {
        add("W4", workloads::flow(store, plan.flow)?)?;
    }
    // Millions of rows take minutes to be put there, so these are measured once.
    if plan.wants("W5") && is_first_run {
        let jobs = plan.jobs[0];
        let empty = workloads::drain(store, jobs, 1, &NOTHING)?;
        for finished in &plan.rows {
            let full = workloads::drain(store, jobs, 1, &Before { finished: *finished, waiting: 0 })?;
            add(&format!("W5 {finished} finished"), beside_empty(full, &empty))?;
        }
        let waiting = plan.rows[0];
        let full = workloads::drain(store, jobs, 1, &Before { finished: 0, waiting })?;
        add(&format!("W5 {waiting} waiting"), beside_empty(full, &empty))?;
    }
    if plan.wants("W6") && store != Dialect::Sqlite {
        for replicas in &plan.replicas {
            let jobs = plan.jobs[plan.jobs.len() - 1];
            add(&format!("W6 {replicas} replicas"), workloads::drain(store, jobs, *replicas, &NOTHING)?)?;
        }
    }
    Ok(())
}

fn with_ratios(mut drain: Vec<Figure>, limit: Vec<Figure>) -> Vec<Figure> {
    let ratios = ["enqueue", "drain"].map(|name| {
        let ratio = value(&drain, name) / value(&limit, &format!("limit of {name}"));
        figure(format!("{name} / limit"), ratio, "")
    });
    drain.extend(limit);
    drain.extend(ratios);
    drain
}

fn beside_bare_http(connections: usize, time: Duration, requests: f64) -> Result<Vec<Figure>, Error> {
    let bare = BareHttp::start()?;
    let address = bare.address().ok_or("no address")?;
    let bare = per_second(workloads::single_requests(connections, time, || Connection::open(address))?.len(), time);
    Ok(vec![
        figure(format!("{connections} connections, empty answers"), bare, "per second"),
        figure(format!("{connections} connections, requests / empty answers"), requests / bare, ""),
    ])
}

fn beside_empty(mut figures: Vec<Figure>, empty: &[Figure]) -> Vec<Figure> {
    figures.push(figure("drain / empty table", value(&figures, "drain") / value(empty, "drain"), ""));
    figures
}

/// The first figure whose name ends so.
fn value(figures: &[Figure], name: &str) -> f64 {
    figures
        .iter()
        .find(|figure| figure.name == name || figure.name.ends_with(&format!(", {name}")))
        .map_or(f64::NAN, |figure| figure.value)
}
