//! A small HTTP server that jobs are posted to: it answers as the test says, and counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tiny_http::{Header, Request, Response, Server};

/// Threads that answer, so that slow ones do not hold up all.
const THREADS: usize = 4;

/// One attempt at a job.
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) job: String,
    pub(crate) attempt: u32,
}

/// What the server answers: a status, and `Retry-After` in seconds.
pub(crate) type Reply = (u16, Option<u32>);

type Calls = Mutex<HashMap<(String, u32), u32>>;

pub(crate) struct Upstream {
    server: Arc<Server>,
    calls: Arc<Calls>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    /// Answers every call by `reply`.
    pub(crate) fn start(reply: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Upstream {
        let server = Arc::new(Server::http("127.0.0.1:0").expect("a port is free"));
        let (calls, reply) = (Arc::new(Calls::default()), Arc::new(reply));
        let thread = |_| {
            let (server, calls, reply) = (Arc::clone(&server), Arc::clone(&calls), Arc::clone(&reply));
            std::thread::spawn(move || while answer(&server, &calls, &*reply) {})
        };
        let threads = (0..THREADS).map(thread).collect();
        Upstream { server, calls, threads }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.server_addr())
    }

    /// How often the same attempt at the same job came at most, and how many attempts came in all.
    pub(crate) fn repeats_and_attempts(&self) -> (u32, usize) {
        let calls = self.calls.lock().expect("no panic");
        (calls.values().copied().max().unwrap_or(0), calls.len())
    }
}

/// Answers one request. Returns whether there are more to come.
fn answer(server: &Server, calls: &Calls, reply: &dyn Fn(&Call) -> Reply) -> bool {
    let Ok(request) = server.recv() else { return false };
    let call = Call {
        path: request.url().to_owned(),
        job: header(&request, "Trilane-Job-Id"),
        attempt: header(&request, "Trilane-Attempt").parse().expect("a number"),
    };
    *calls.lock().expect("no panic").entry((call.job.clone(), call.attempt)).or_default() += 1;
    let (status, retry_after) = reply(&call);
    let mut response = Response::from_string("as the test says").with_status_code(status);
    if let Some(seconds) = retry_after {
        response.add_header(Header::from_bytes("Retry-After", seconds.to_string()).expect("a header"));
    }
    let _ = request.respond(response); // A process that was killed does not wait for its answer.
    true
}

fn header(request: &Request, name: &'static str) -> String {
    let header = request.headers().iter().find(|header| header.field.equiv(name));
    header.expect("every call has it").value.to_string()
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for _ in &self.threads {
            self.server.unblock();
        }
        for thread in self.threads.drain(..) {
            drop(thread.join()); // OK: if it panicked, the test fails by what is missing
        }
    }
}
