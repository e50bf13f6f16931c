//! What the database itself gives: the same statements straight through the store, with no HTTP, Redis or threads of ours between.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use trilane::job::{ClaimedJob, NewJob, ReplicaId, Seq};
use trilane::retry::Verdict;
use trilane::store::{BATCH_MAX, Outcome};

use crate::http::{JOB_TYPE, payload};
use crate::site::Site;

type Error = Box<dyn std::error::Error>;

const LEASE: Duration = Duration::from_secs(30);
/// Claimed batches on their way to their outcome.
const BATCHES_BETWEEN: usize = 4;

/// Jobs a second.
pub(crate) struct Limit {
    /// Stored, one session, a full batch a commit.
    pub(crate) insert: f64,
    /// Claimed by one session and completed by another, a full batch a commit each.
    pub(crate) drain: f64,
}

/// Stores `jobs`, then claims and completes them.
pub(crate) fn measure(site: &Site, jobs: usize) -> Result<Limit, Error> {
    let store = &site.database().store;
    let replica = ReplicaId(1);
    let rows: Vec<NewJob> = (0..jobs).map(|n| NewJob::new(JOB_TYPE, payload(n))).collect();

    let started = Instant::now();
    let mut seqs: Vec<Seq> = Vec::with_capacity(jobs);
    for batch in rows.chunks(BATCH_MAX) {
        let batch: Vec<&NewJob> = batch.iter().collect();
        let stored = store.submit(&batch, replica, Some(0))?;
        seqs.extend(stored.into_iter().filter_map(|stored| Some(stored.ok()?.seq)));
    }
    let insert = per_second(jobs, started.elapsed());
    site.observer()?.settle()?;

    let (sender, receiver) = bounded::<Vec<ClaimedJob>>(BATCHES_BETWEEN);
    let started = Instant::now();
    let finisher = site.database().another();
    let completed = thread::scope(|scope| {
        let completing = scope.spawn(move || {
            let mut count = 0;
            for jobs in receiver {
                let outcomes: Vec<Outcome> =
                    jobs.iter().map(|job| Outcome::of(job, Duration::ZERO, Verdict::Complete)).collect();
                count += finisher.finish(&outcomes, replica, None).map_err(|error| error.to_string())?.len();
            }
            Ok::<usize, String>(count)
        });
        for batch in seqs.chunks(BATCH_MAX) {
            // A closed channel means that the finisher has failed, which is told below.
            if sender.send(store.claim(batch, replica, LEASE).map_err(|error| error.to_string())?.jobs).is_err() {
                break;
            }
        }
        drop(sender);
        completing.join().map_err(|_| "the finisher panicked".to_owned())?
    })?;
    if completed != jobs {
        return Err(format!("only {completed} of {jobs} jobs were completed").into());
    }
    Ok(Limit { insert, drain: per_second(jobs, started.elapsed()) })
}

pub(crate) fn per_second(jobs: usize, time: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of jobs are far below 2^52")]
    let jobs = jobs as f64;
    jobs / time.as_secs_f64()
}
