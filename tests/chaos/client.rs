//! Clients: they ask at random, as a seed decides, and write down what they ask and are told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::checker::history::Said;
use super::ledger::{Ledger, now_ms};
use super::random::Random;

/// A request that takes longer is given up; what became of it is not known then.
const PATIENCE: Duration = Duration::from_secs(15);
/// Ids that a client remembers, to cancel some.
const REMEMBERED: usize = 50;
/// Tries of a call with an idempotency key.
const TRIES: usize = 6;

/// What a request came to.
pub(crate) enum Got {
    Answer(u16, Value),
    /// Nobody listens there: the request was not made.
    Nobody,
    /// No answer, or half of one: the error.
    Unknown(String),
}

pub(crate) struct Client<'a> {
    ledger: &'a Ledger,
    agent: ureq::Agent,
    random: Random,
    remembered: Vec<String>,
    may_kill: bool,
    seen: Seen,
}

/// What clients met.
#[derive(Default)]
pub(crate) struct Seen {
    /// Answers that no fault explains.
    pub(crate) surprises: Vec<String>,
    /// Requests without an answer, and those answered 503.
    pub(crate) failures: Vec<Failure>,
}

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) address: String,
    /// Milliseconds since 1970, when it was made and when it had failed.
    pub(crate) from: i64,
    pub(crate) until: i64,
    pub(crate) what: String,
}

impl<'a> Client<'a> {
    pub(crate) fn new(ledger: &'a Ledger, seed: u64) -> Client<'a> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        // A connection for each request: one that a replica cut while it was idle would look like a failed request.
        let agent = config.timeout_global(Some(PATIENCE)).max_idle_connections(0).build().into();
        Client {
            ledger,
            agent,
            random: Random::new(seed),
            remembered: Vec::new(),
            may_kill: false,
            seen: Seen::default(),
        }
    }

    /// Asks on and on until it is over, `pause` between two requests. `address` says where to; nobody may be there.
    pub(crate) fn run(&mut self, is_over: &AtomicBool, pause: Duration, address: &dyn Fn(&mut Random) -> String) {
        while !is_over.load(Ordering::SeqCst) {
            self.act(address);
            thread::sleep(pause);
        }
    }

    fn act(&mut self, address: &dyn Fn(&mut Random) -> String) {
        let to = address(&mut self.random);
        match self.random.below(100) {
            // Once in a while one that takes its replica with it.
            0 if self.may_kill && self.random.below(5) == 0 => {
                let mut job = self.ledger.job("killer");
                job["max_retries"] = json!(1);
                drop(self.submit(&to, &[job]));
            }
            0..40 => drop(self.submit(&to, &[self.ledger.job("quick")])),
            40..60 => {
                let count = 2 + self.random.below(12);
                let jobs: Vec<Value> = (0..count).map(|_| self.any_job()).collect();
                drop(self.submit(&to, &jobs));
            }
            60..75 => self.submit_once(address),
            75..82 => {
                let mut job = self.ledger.job("slow");
                job["unique_key"] = json!(format!("key {}", self.random.below(3)));
                drop(self.submit(&to, &[job]));
            }
            82..90 => {
                let mut job = self.any_job();
                job["delay_ms"] = json!(self.random.below(3_000));
                drop(self.submit(&to, &[job]));
            }
            90..93 => self.cancel(&to),
            93..96 => {
                let mut job = self.ledger.job("slow");
                job["delay_ms"] = json!(self.random.below(600));
                if let Got::Answer(200, body) = self.submit(&to, &[job]) {
                    self.remembered = vec![text(&body["success"][0]["id"])];
                    let to = address(&mut self.random);
                    self.cancel(&to);
                }
            }
            _ => self.revive(&to),
        }
    }

    fn any_job(&mut self) -> Value {
        let mut job = match self.random.below(20) {
            0..12 => self.ledger.job("quick"),
            12..14 => self.ledger.job("slow"),
            14..16 => self.ledger.job("flaky"),
            16 => self.ledger.job("late"),
            17 => self.ledger.job("shell"),
            _ => {
                let mut job = self.ledger.job("hopeless");
                job["max_retries"] = json!(1);
                job
            }
        };
        job["priority"] = json!(self.random.pick(&["high", "medium", "low"]));
        job
    }

    /// Submits, and writes down what came of it. Jobs bear their marks in their payloads.
    pub(crate) fn submit(&mut self, to: &str, jobs: &[Value]) -> Got {
        let marks = jobs.iter().map(mark_of).collect();
        self.ledger.say(Said::Submits { marks });
        let got = self.post(to, "/enqueue", &json!(jobs), None);
        self.note(jobs, &got);
        got
    }

    /// [`Client::submit`] under an idempotency key.
    pub(crate) fn submit_under(&mut self, to: &str, jobs: &[Value], key: &str) -> Got {
        self.ledger.say(Said::Submits { marks: jobs.iter().map(mark_of).collect() });
        let got = self.post(to, "/enqueue", &json!(jobs), Some(key));
        self.note(jobs, &got);
        got
    }

    /// Under an idempotency key, again and again until there is an answer, at one replica after the other.
    fn submit_once(&mut self, address: &dyn Fn(&mut Random) -> String) {
        let jobs = [self.any_job(), self.any_job()];
        let key = format!("call-{}", mark_of(&jobs[0]));
        self.ledger.say(Said::Submits { marks: jobs.iter().map(mark_of).collect() });
        for attempt in 0..TRIES {
            let to = address(&mut self.random);
            let got = self.post(&to, "/enqueue", &json!(jobs), Some(&key));
            // An earlier try may have come through, whatever this one is told.
            if let Got::Answer(200, _) = got {
                self.note(&jobs, &got);
                // Once in a while the answer was lost on the way, and the client asks again.
                if self.random.below(3) > 0 {
                    return;
                }
            } else if let Got::Answer(status @ (400..=428 | 430..=502), body) = got {
                self.seen.surprises.push(format!("{status} at try {attempt}: {body}"));
                return;
            }
            thread::sleep(Duration::from_millis(self.random.within(10..200)));
        }
    }

    fn note(&mut self, jobs: &[Value], got: &Got) {
        let Got::Answer(status, body) = got else { return };
        let refused = |indexes: &mut dyn Iterator<Item = usize>| {
            let marks: Vec<String> = indexes.filter_map(|index| jobs.get(index)).map(mark_of).collect();
            if !marks.is_empty() {
                self.ledger.say(Said::Refused { marks });
            }
        };
        match status {
            200 => {
                let success = body["success"].as_array().cloned().unwrap_or_default();
                let stored: Vec<(String, String)> =
                    success.iter().map(|job| (mark_of(job), text(&job["id"]))).collect();
                for (_, id) in &stored {
                    if self.remembered.len() < REMEMBERED {
                        self.remembered.push(id.clone());
                    } else {
                        self.remembered[self.random.below(REMEMBERED)].clone_from(id);
                    }
                }
                self.ledger.say(Said::Stored { jobs: stored });
                let failed = body["failed"].as_array().cloned().unwrap_or_default();
                refused(&mut failed.iter().filter_map(|failed| usize::try_from(failed["index"].as_u64()?).ok()));
            }
            409 | 429 => refused(&mut (0..jobs.len())),
            // It says so.
            503 if text(&body["detail"]).contains("no job was stored") => refused(&mut (0..jobs.len())),
            503 => {}
            status => self.seen.surprises.push(format!("{status} to a submission: {body}")),
        }
    }

    fn cancel(&mut self, to: &str) {
        if self.remembered.is_empty() {
            return;
        }
        let id = self.remembered[self.random.below(self.remembered.len())].clone();
        self.ledger.say(Said::Cancels { id: id.clone() });
        match self.post(to, &format!("/jobs/{id}/cancel"), &json!(null), None) {
            Got::Answer(200, _) => self.ledger.say(Said::Cancelled { id }),
            Got::Answer(status, body) if status != 409 && status != 503 => {
                self.seen.surprises.push(format!("{status} to a cancellation: {body}"));
            }
            _ => {}
        }
    }

    fn revive(&mut self, to: &str) {
        let Got::Answer(200, letters) = self.get(to, "/failed-jobs?limit=20") else { return };
        let Some(letters) = letters.as_array().filter(|letters| !letters.is_empty()) else { return };
        let id = text(&letters[self.random.below(letters.len())]["original_job_id"]);
        self.ledger.say(Said::Revives { id: id.clone() });
        match self.post(to, &format!("/failed-jobs/{id}/retry"), &json!(null), None) {
            Got::Answer(200, _) => self.ledger.say(Said::Revived { id }),
            Got::Answer(status, body) if ![404, 409, 503].contains(&status) => {
                self.seen.surprises.push(format!("{status} to a revival: {body}"));
            }
            _ => {}
        }
    }

    fn get(&mut self, to: &str, path: &str) -> Got {
        let from = now_ms();
        let got = got(self.agent.get(format!("http://{to}{path}")).call());
        self.look_at(to, from, got)
    }

    fn look_at(&mut self, to: &str, from: i64, got: Got) -> Got {
        let what = match &got {
            Got::Nobody => "refused".to_owned(),
            Got::Unknown(error) => error.clone(),
            Got::Answer(503, body) => text(&body["detail"]),
            Got::Answer(..) => return got,
        };
        self.seen.failures.push(Failure { address: to.to_owned(), from, until: now_ms(), what });
        got
    }

    fn post(&mut self, to: &str, path: &str, body: &Value, idempotency_key: Option<&str>) -> Got {
        let mut request = self.agent.post(format!("http://{to}{path}")).content_type("application/json");
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        let from = now_ms();
        let got = got(request.send(body.to_string()));
        self.look_at(to, from, got)
    }
}

fn got(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Got {
    let mut response = match result {
        Ok(response) => response,
        Err(ureq::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Got::Nobody,
        Err(ureq::Error::ConnectionFailed) => return Got::Nobody,
        Err(error) => return Got::Unknown(error.to_string()),
    };
    let status = response.status().as_u16();
    match response.body_mut().read_to_string() {
        Ok(text) => Got::Answer(status, serde_json::from_str(&text).unwrap_or(Value::String(text))),
        Err(error) => Got::Unknown(error.to_string()),
    }
}

/// Of a job as submitted, or as answered (then the payload is JSON in a string).
pub(crate) fn mark_of(job: &Value) -> String {
    let payload = &job["payload"];
    match payload.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok()) {
        Some(payload) => text(&payload["mark"]),
        None => text(&payload["mark"]),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// How clients ask.
#[derive(Clone, Copy)]
pub(crate) struct Asks {
    pub(crate) clients: u64,
    pub(crate) seed: u64,
    /// Of each, between two requests.
    pub(crate) pause: Duration,
    /// Whether some jobs kill the replica that runs them.
    pub(crate) may_kill: bool,
}

/// Several clients at once, for as long as `work` takes. Returns its value, and what they met.
pub(crate) fn while_clients_ask<T>(
    ledger: &Ledger,
    asks: Asks,
    address: &(dyn Fn(&mut Random) -> String + Sync),
    work: impl FnOnce() -> T,
) -> (T, Seen) {
    let (is_over, seen) = (AtomicBool::new(false), Mutex::new(Seen::default()));
    let value = thread::scope(|scope| {
        for number in 0..asks.clients {
            let (is_over, seen) = (&is_over, &seen);
            scope.spawn(move || {
                let mut client = Client::new(ledger, asks.seed.wrapping_add(number));
                client.may_kill = asks.may_kill;
                client.run(is_over, asks.pause, address);
                let mut seen = seen.lock().expect("no panic");
                seen.surprises.append(&mut client.seen.surprises);
                seen.failures.append(&mut client.seen.failures);
            });
        }
        let _over = SetOnDrop(&is_over);
        work()
    });
    (value, seen.into_inner().expect("no panic"))
}

/// Sets a flag, also where the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
