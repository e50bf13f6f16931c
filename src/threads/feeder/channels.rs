//! The way of claimed jobs to the workers: one channel for each lane, and a bell.
//!
//! Workers do not sleep on the lanes' channels but on the bell, which is rung once all jobs of a batch are in: so a batch of 1,000 short jobs
//! wakes each worker once, and not 1,000 times some worker.

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::job::{ClaimedJob, Lane};

/// Claimed jobs of one lane that wait for a worker at most.
pub const BUFFER_MAX: usize = 2_000;

/// Where jobs are handed out.
#[derive(Clone)]
pub struct ToWorkers {
    lanes: [Sender<ClaimedJob>; 3],
    bell: Sender<()>,
}

/// Where workers find them. When nobody hands out any more, what is left is still found.
#[derive(Clone)]
pub struct FromFeeder {
    lanes: [Receiver<ClaimedJob>; 3],
    bell: Receiver<()>,
}

/// Channels to so many workers.
pub fn channels(workers: usize) -> (ToWorkers, FromFeeder) {
    let lanes = Lane::ALL.map(|_| bounded(BUFFER_MAX));
    let (ring, hear) = bounded(workers.max(1));
    let senders = lanes.each_ref().map(|(sender, _)| sender.clone());
    (ToWorkers { lanes: senders, bell: ring }, FromFeeder { lanes: lanes.map(|(_, receiver)| receiver), bell: hear })
}

impl ToWorkers {
    /// Jobs of a lane that wait for a worker.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.lanes[lane.index()].len()
    }

    /// Jobs of all lanes that wait for a worker.
    pub fn waiting_in_all(&self) -> usize {
        self.lanes.iter().map(Sender::len).sum()
    }

    /// Hands jobs out, each by the channel of a lane, and wakes as many idle workers as there are jobs. Waits while a channel is full.
    pub fn send(&self, jobs: impl IntoIterator<Item = (Lane, ClaimedJob)>) {
        let mut count = 0;
        for (lane, job) in jobs {
            count += 1;
            let lane = &self.lanes[lane.index()];
            if let Err(TrySendError::Full(job)) = lane.try_send(job) {
                self.ring(BUFFER_MAX); // Of what fills it nobody may know yet.
                drop(lane.send(job)); // OK: the feeder keeps a receiver, so it never fails
            }
        }
        self.ring(count);
    }

    /// A bell that is full has been rung for every worker there is.
    fn ring(&self, times: usize) {
        for _ in 0..times {
            if self.bell.try_send(()).is_err() {
                return;
            }
        }
    }
}

impl FromFeeder {
    /// The next job: high before medium before low. Waits for one; `None` once no more can come.
    pub fn next(&self) -> Option<ClaimedJob> {
        loop {
            if let Some(job) = self.try_next() {
                return Some(job);
            }
            if self.bell.recv().is_err() {
                return self.try_next();
            }
        }
    }

    /// The next job that waits.
    pub fn try_next(&self) -> Option<ClaimedJob> {
        self.lanes.iter().find_map(|lane| lane.try_recv().ok())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use super::*;
    use crate::threads::testing::claimed;

    #[test]
    fn every_job_finds_a_worker_however_they_come() {
        let (to, from) = channels(3);
        let taken = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..3 {
                let (from, taken) = (from.clone(), &taken);
                scope.spawn(move || {
                    while let Some(job) = from.next() {
                        taken.lock().expect("no panic").push(job.seq.0);
                    }
                });
            }
            drop(from);
            let mut seqs = 1..;
            // One by one, a few, and more than a channel holds.
            for count in [1, 1, 1, 2, 3, 4, 7, 2 * BUFFER_MAX + 1, 1] {
                let lanes = Lane::ALL.into_iter().cycle();
                to.send(seqs.by_ref().take(count).zip(lanes).map(|(seq, lane)| (lane, claimed(seq, lane))));
                thread::yield_now();
            }
            drop(to);
        });

        let mut taken = taken.into_inner().expect("no panic");
        taken.sort_unstable();
        assert_eq!(taken, (1..=20 + 2 * i64::try_from(BUFFER_MAX).expect("few") + 1).collect::<Vec<_>>());
    }

    #[test]
    fn an_idle_worker_is_woken_for_each_job() {
        let (to, from) = channels(2);
        to.send([(Lane::Low, claimed(1, Lane::Low)), (Lane::High, claimed(2, Lane::Low))]);
        assert_eq!(from.bell.len(), 2);

        to.send([(Lane::Low, claimed(3, Lane::Low))]);

        assert_eq!(from.bell.len(), 2, "there are no more workers");
        assert_eq!(
            [from.next(), from.next(), from.next()].map(|job| job.map(|job| job.seq.0)),
            [Some(2), Some(1), Some(3)]
        );
    }
}
