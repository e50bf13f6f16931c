//! The target of a request: path, query string and cursor.
#![no_main]

mod backend;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|target: &str| {
    let api = backend::api();
    for method in ["GET", "POST"] {
        let (status, answer) = backend::answer(&api, method, target, b"");
        assert!([200, 202, 204, 400, 404, 405, 413, 422].contains(&status), "{status}: {answer}");
    }
    for listing in ["/getAllJobs?", "/failed-jobs?", "/getAllJobs?limit=2&cursor="] {
        let (status, answer) = backend::answer(&api, "GET", &format!("{listing}{target}"), b"");
        assert!([200, 400].contains(&status), "{status}: {answer}");
    }
});
