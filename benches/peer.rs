//! The client that a comparison with other systems calls (`peers.py`): the same work as theirs, through HTTP.
//!
//! `peer bulk N`, `peer single PRODUCERS SECONDS` and `peer paced RATE SECONDS`. The first two serve themselves, by a process without
//! workers; the last one speaks to the workers at `TRILANE_HTTP_ADDR`. Results are lines of JSON, or notes in the shared folder.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::http::Connection;
use crate::notes;
use crate::replica::Replica;
use crate::workloads::{API, JOBS_PER_CALL, paced_requests, single_requests, submit_all};

type Error = Box<dyn std::error::Error>;

/// The argument with which this program is such a client.
pub(crate) const ARGUMENT: &str = "peer";
/// What a process of ours must know of its stores.
const STORES: [&str; 2] = ["DB_CONNECTION", "REDIS_URL"];

pub(crate) fn run(arguments: &[&str]) -> Result<(), Error> {
    match *arguments {
        ["bulk", jobs] => {
            let jobs: usize = jobs.parse()?;
            let rate = submit_all(&api()?, jobs)?;
            let mode = format!("bulk POST /enqueue {JOBS_PER_CALL}");
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            let seconds = jobs as f64 / rate;
            println!("{}", json!({ "n": jobs, "secs": seconds, "mode": mode }));
        }
        ["single", producers, seconds] => {
            let (api, time) = (api()?, Duration::from_secs_f64(seconds.parse()?));
            let latencies = single_requests(producers.parse()?, time, || api.connect())?;
            println!("{}", json!({ "n": latencies.len(), "secs": time.as_secs_f64() }));
        }
        ["paced", rate, seconds] => {
            let mut connection = Connection::open(std::env::var("TRILANE_HTTP_ADDR")?.parse()?)?;
            let sent = paced_requests(&mut connection, rate.parse()?, Duration::from_secs(seconds.parse()?))?;
            let mut file = BufWriter::new(File::create(folder()?.join("sent"))?);
            sent.iter().enumerate().try_for_each(|(n, at)| writeln!(file, "{n} {at}"))?;
            file.flush()?;
        }
        _ => return Err(format!("{ARGUMENT}: bulk N, single PRODUCERS SECONDS or paced RATE SECONDS").into()),
    }
    Ok(())
}

fn api() -> Result<Replica, Error> {
    let stores = STORES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?)));
    let settings: Vec<_> = stores.chain([(API.0, API.1.to_owned())]).collect();
    Replica::start(&folder()?, &settings)
}

fn folder() -> Result<PathBuf, Error> {
    Ok(std::env::var_os(notes::FOLDER).ok_or_else(|| format!("{} is not set", notes::FOLDER))?.into())
}
