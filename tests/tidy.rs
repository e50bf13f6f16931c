//! The rules of this project that a program can check. A rule that fails says where, and what to do; `make lint` runs all.
//!
//! They read the files of the repository and need neither database nor Redis.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test ends by a panic, and may tell on its way there")]

#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/statements.rs"]
mod statements;
