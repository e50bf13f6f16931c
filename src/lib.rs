//! Trilane: a distributed job scheduler and job server on SQL Server, PostgreSQL or SQLite.
pub mod clock;
pub mod config;
pub mod job;
pub mod retry;
pub mod store;
