//! The handlers file: whatever stands in it, it is read or refused, each problem with a place in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trilane::handlers::{HandlersFileError, parse};

fuzz_target!(|text: &str| {
    match parse(text, "handlers.toml") {
        Ok(registry) => assert!(!registry.is_empty()),
        Err(HandlersFileError::Invalid(problems)) => {
            assert!(!problems.is_empty());
            let lines = text.split('\n').count();
            for problem in problems {
                assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem:?}");
            }
        }
        Err(HandlersFileError::Unreadable { error, .. }) => panic!("nothing is read: {error}"),
    }
});
