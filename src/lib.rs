//! Trilane: a distributed job scheduler and job server on SQL Server, PostgreSQL or SQLite.
//!
//! Clients submit jobs over HTTP, or with a plain `INSERT` in a transaction of their own; replicas of one program run them from three
//! priority lanes, retry them, and keep what cannot be done. The binary `trilane` is this library with the handlers of a file; a Rust
//! program registers its own and runs the same service:
//!
//! ```no_run
//! use trilane::{app::Service, config::Settings, handlers::{Attempt, Registry}, retry::Report, threads::signals};
//!
//! let settings = Settings::load()?;
//! let mut registry = Registry::new();
//! registry.register("send_email", |attempt: &Attempt<'_>| {
//!     if attempt.job.payload.contains('@') { Report::Done } else { Report::permanent("no address") }
//! });
//! let stop_asked = signals::listen()?;
//! let service = Service::start(&settings, registry)?;
//! service.wait(&stop_asked);
//! service.stop();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Five layers, each a module or a folder, with imports only downward; docs/ARCHITECTURE.md shows them.

pub mod api;
pub mod app;
pub mod clock;
pub mod config;
pub mod fault;
pub mod handlers;
pub mod job;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod queue;
pub mod random;
pub mod retry;
pub mod store;
pub mod threads;
pub mod wake;
