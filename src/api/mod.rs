//! Requests to answers, without sockets: who may ask, which route it is, what the backend says, how that is told.
//!
//! Runs on the HTTP threads (`threads/http.rs`), which bring the request and take the answer to the client. Must not touch sockets
//! or the HTTP library, and reaches stores and queue only through [`Backend`].
//!
//! A request goes through here in this order: probes (open to everyone), then `guard`, then `routes`, then one handler.

mod backend;
mod enqueue;
#[cfg(test)]
pub(crate) mod fake;
mod guard;
mod job_json;
mod list;
mod message;
mod operations;
mod problem;
mod query;
mod routes;

use std::sync::Arc;

pub use backend::{Backend, SharedBackend, StoreState};
pub use message::{Answer, Body, Headers, JSON, Request};
pub use problem::{Kind, PROBLEM_JSON, Problem};

use guard::Guard;
use routes::Route;

/// What the API needs to know of the settings.
#[derive(Clone)]
pub struct ApiOptions {
    /// Tokens of which a request must bring one; with none, every request that this host can send is let in.
    pub tokens: Vec<String>,
    /// The largest body, in bytes.
    pub body_bytes_max: usize,
    /// The largest payload of one job, in bytes of JSON text.
    pub payload_bytes_max: usize,
    /// The most jobs in one call.
    pub jobs_per_call_max: usize,
    /// Only `/healthz`, `/readyz` and `/metrics`: for replicas of the role `worker`.
    pub probes_only: bool,
}

/// The HTTP API over a backend. Shared by all HTTP threads.
pub struct Api {
    backend: SharedBackend,
    guard: Guard,
    options: ApiOptions,
}

impl Api {
    /// The API over `backend`.
    pub fn new(backend: SharedBackend, options: ApiOptions) -> Api {
        Api { backend, guard: Guard::new(&options.tokens), options }
    }

    /// Answers one request. Blocks as long as the backend and the reader of the body do; a [`Body::Stream`] asks the backend
    /// again while it is read.
    pub fn answer(&self, mut request: Request<'_>) -> Answer {
        self.route(&mut request).unwrap_or_else(Answer::from)
    }

    /// Whether a request for `target` may be answered with a listing, which holds memory until its client has taken it.
    pub fn lists(&self, target: &str) -> bool {
        let (path, _) = routes::split_target(target);
        !self.options.probes_only && matches!(routes::find(path, "GET", false), Ok(Route::Jobs | Route::DeadLetters))
    }

    fn route(&self, request: &mut Request<'_>) -> Result<Answer, Problem> {
        let (path, query) = routes::split_target(request.target);
        let found = routes::find(path, request.method, self.options.probes_only);
        // Probes are open, and so are the counters of a worker, which serves nothing else and may listen off loopback without tokens.
        let is_open = match &found {
            Ok(Route::Health | Route::Ready) => true,
            Ok(Route::Metrics) => self.options.probes_only && self.options.tokens.is_empty(),
            _ => false,
        };
        // What is wrong with the path is told to those alone who may ask.
        if !is_open {
            self.guard.check(request.headers)?;
        }
        let route = found?;
        if request.method == "POST" {
            guard::check_media_type(request.headers)?;
        }

        let backend = self.backend.as_ref();
        match route {
            Route::Health => Ok(operations::health()),
            Route::Ready => Ok(operations::ready(backend)),
            Route::Metrics => Ok(operations::metrics(backend)),
            Route::OpenApi => Ok(operations::open_api()),
            Route::Enqueue => enqueue::enqueue(backend, &self.options, request),
            Route::Jobs => list::jobs(Arc::clone(&self.backend), path, query),
            Route::DeadLetters => list::dead_letters(Arc::clone(&self.backend), path, query),
            Route::Job(id) => operations::job(backend, id),
            Route::Cancel(id) => operations::cancel(backend, id),
            Route::Revive(id) => operations::revive(backend, id),
            Route::Wake => Ok(operations::wake(backend)),
        }
    }
}
