//! The database goes away at the very commit of a call: nobody can know whether its jobs are stored, and nobody claims to.

use trilane::store::Dialect;

use super::checker::judge::Run;
use super::client::{Client, Got};
use super::scene::Scene;

pub(crate) fn a_call_whose_commit_was_cut_is_not_told_that_nothing_was_stored() {
    let scene = Scene::on(Dialect::Postgres);
    let process = scene.start();
    let mut client = Client::new(&scene.ledger, 1);
    // Runs within the commit, and ends the connection that asks for it.
    scene.site.execute(
        "create function cut() returns trigger language plpgsql as \
         'begin perform pg_terminate_backend(pg_backend_pid()); return null; end'",
    );
    scene.site.execute(
        "create constraint trigger cut after insert on Jobs initially deferred for each row execute function cut()",
    );

    let cut = client.submit(process.address(), &[scene.ledger.job("quick")]);
    scene.site.execute("drop trigger cut on Jobs");

    let Got::Answer(503, problem) = cut else { panic!("an outage is a 503") };
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("may be stored or not"), "{detail}");
    super::trilane::wait_until(super::scene::RECOVERED, "jobs are taken again", || {
        matches!(client.submit(process.address(), &[scene.ledger.job("quick")]), Got::Answer(200, _))
    });
    scene.settle();
    scene.check(Run::default());
}
