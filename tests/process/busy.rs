//! A process that runs two jobs, and has claimed 40 more for when they are done.

use serde_json::json;

use super::site::Site;
use super::trilane::{SOON, Settings, Trilane};

pub(crate) struct Busy {
    pub(crate) process: Trilane,
    /// Run until the gate `gate` is opened. The first has no retries.
    pub(crate) gated: Vec<String>,
    pub(crate) buffered: Vec<String>,
}

impl Busy {
    /// Starts the process on a site where no other runs jobs, and brings it into that state.
    pub(crate) fn start(site: &Site, settings: &Settings) -> Busy {
        let settings = settings.clone().with("TRILANE_HANDLERS", site.gate_handlers("gate"));
        let process = site.start(&settings.with("TRILANE_WORKERS", 2));
        // Only a process that knows its jobs to be short claims more of them than it has idle workers.
        let known = process.enqueue(&vec![json!({ "type": "quick" }); 50]);
        process.wait_for_status(&known, "completed");

        let gated = [json!({ "type": "gate", "max_retries": 0 }), json!({ "type": "gate", "max_retries": 1 })];
        let mut ids = process.enqueue(&[&gated[..], &vec![json!({ "type": "quick" }); 40]].concat());
        site.wait_for_jobs(SOON, 42, "Status = 'running' and Type in ('gate', 'quick')");
        let buffered = ids.split_off(2);
        Busy { process, gated: ids, buffered }
    }
}
