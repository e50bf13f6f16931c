//! Faults on real processes: kills at named places and at random times, hung replicas, wrong clocks, stops, two versions. After each run the
//! checker judges what is left.
//!
//! The tests mostly wait, so more of them run side by side than there are cores (`TESTS_AT_ONCE`). `make chaos MINUTES=10` runs the
//! storms alone, in their long form.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test ends by a panic, and may tell on its way there; what it tells is rounded"
)]

mod checker;
mod client;
mod fleet;
mod ledger;
mod plan;
mod postgres;
mod random;
mod storm;

#[path = "../support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the lanes use the rest")]
mod redis_server;
#[path = "../support/stores.rs"]
#[expect(dead_code, reason = "the suite of the store uses the rest")]
mod stores;
#[path = "../support/trilane.rs"]
#[allow(dead_code)]
mod trilane;
#[path = "../support/upstream.rs"]
mod upstream;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Each starts one or two replicas that are idle most of the time.
const TESTS_AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TESTS_AT_ONCE);
    let mut trials = vec![
        trial("plan::a_seed_decides_the_plan", plan::a_seed_decides_the_plan),
        trial("storm::on_postgresql_and_redis_no_job_is_lost", storm::on_postgres),
        trial("storm::on_sqlite_no_job_is_lost", storm::on_sqlite),
    ];
    if std::env::var_os("TRILANE_TEST_MSSQL").is_some() {
        trials.push(trial("storm::on_sql_server_and_redis_no_job_is_lost", storm::on_sql_server));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
