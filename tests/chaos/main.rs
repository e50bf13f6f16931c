//! Faults on real processes: kills at named places and at random times, hung replicas, wrong clocks, stops, two versions. After each run the
//! checker judges what is left.
//!
//! The tests mostly wait, so more of them run side by side than there are cores (`TESTS_AT_ONCE`). `make chaos MINUTES=10` runs the
//! storms in their long form, and then the others.

#![expect(
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test ends by a panic, and may tell on its way there; what it tells is rounded"
)]

mod checker;
mod client;
mod clocks;
mod fleet;
mod kill;
mod killer;
mod ledger;
mod plan;
mod postgres;
mod random;
mod repair;
mod scene;
mod stopping;
mod storm;
mod unconfirmed;
mod zombie;

#[path = "../support/proxy.rs"]
#[expect(dead_code, reason = "the tests of the process use the rest")]
mod proxy;
#[path = "../support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the lanes use the rest")]
mod redis_server;
#[path = "../support/site.rs"]
#[expect(dead_code, reason = "the tests of the process use the rest")]
mod site;
#[path = "../support/stores.rs"]
#[expect(dead_code, reason = "the suite of the store uses the rest")]
mod stores;
#[path = "../support/trilane.rs"]
#[expect(dead_code, reason = "the tests of the process use the rest")]
mod trilane;
#[path = "../support/upstream.rs"]
#[expect(dead_code, reason = "the tests of the process use the rest")]
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
    let replaced = if std::env::var_os(stopping::OLD_PROGRAM).is_some() {
        "stopping::a_rolling_upgrade_from_an_older_version_fails_no_request_and_costs_no_attempt"
    } else {
        "stopping::a_rolling_restart_on_every_database_fails_no_request_and_costs_no_attempt"
    };
    trials.extend([
        trial(
            "stopping::a_rolling_restart_of_five_replicas_fails_no_request_and_costs_no_attempt",
            stopping::a_rolling_restart_of_five_replicas_fails_no_request_and_costs_no_attempt,
        ),
        trial(replaced, stopping::one_after_the_other_on_every_database_fails_no_request_and_costs_no_attempt),
        trial("stopping::a_schema_of_a_newer_version_is_refused", stopping::a_schema_of_a_newer_version_is_refused),
        trial(
            "unconfirmed::a_call_whose_commit_was_cut_is_not_told_that_nothing_was_stored",
            unconfirmed::a_call_whose_commit_was_cut_is_not_told_that_nothing_was_stored,
        ),
        trial(
            "zombie::its_outcomes_are_refused_and_its_handlers_told",
            zombie::its_outcomes_are_refused_and_its_handlers_told,
        ),
        trial("clocks::an_hour_off_either_way_changes_nothing", clocks::an_hour_off_either_way_changes_nothing),
        trial("killer::a_job_that_kills_its_worker_on_postgresql_ends_as_a_dead_letter", killer::on_postgres),
        trial("killer::a_job_that_kills_its_worker_on_sqlite_ends_as_a_dead_letter", killer::on_sqlite),
    ]);
    trials.extend(kill::cases().into_iter().chain(repair::cases()).map(|(name, test)| trial(&name, test)));
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
