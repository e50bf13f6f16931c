//! The body of `POST /enqueue`: whatever it is, the answer is a right one, and what is submitted keeps its limits.
#![no_main]

mod backend;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let (status, answer) = backend::answer(&backend::api(), "POST", "/enqueue", body);

    match status {
        200 | 409 | 422 => {
            // Every job of the body has its place, unless the body as a whole is none.
            if let (Some(success), Some(failed)) = (answer["success"].as_array(), answer["failed"].as_array()) {
                let jobs = match serde_json::from_slice::<serde_json::Value>(
                    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body),
                ) {
                    Ok(serde_json::Value::Array(jobs)) => jobs.len(),
                    Ok(_) => 1,
                    // Half of a surrogate pair is kept in a payload, and is none of this crate's values.
                    Err(_) => success.len() + failed.len(),
                };
                assert_eq!(success.len() + failed.len(), jobs, "{answer}");
            }
        }
        400 => {
            let (line, column) = (answer["line"].as_u64(), answer["column"].as_u64());
            let lines = 1 + body.iter().filter(|byte| **byte == b'\n').count() as u64;
            assert!(line.is_some_and(|line| line <= lines) && column.is_some(), "{answer}");
        }
        413 => {}
        other => panic!("{other}: {answer}"),
    }
});
