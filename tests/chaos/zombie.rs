//! A replica that is stopped (SIGSTOP) longer than its leases, and goes on.

use trilane::store::Dialect;

use super::checker::history::Deed;
use super::checker::judge::Run;
use super::client::Client;
use super::scene::{RECOVERED, Scene};
use super::trilane::wait_until;

pub(crate) fn its_outcomes_are_refused_and_its_handlers_told() {
    let scene = Scene::on(Dialect::Postgres);
    let zombie = scene.start();
    let mut client = Client::new(&scene.ledger, 1);
    scene.ledger.close_gates();
    client.submit(zombie.address(), &[scene.ledger.job("gate"), scene.ledger.job("held")]);
    let effects = |deed| {
        let history = scene.ledger.history(scene.site.connection_string());
        history.effects.iter().filter(|effect| effect.deed == deed).count()
    };
    wait_until(RECOVERED, "both run", || effects(Deed::Start) == 2);
    let first = scene.ledger.history(scene.site.connection_string()).effects;

    zombie.signal("STOP");
    wait_until(RECOVERED, "its leases have run out", || scene.leases_in_force(Dialect::Postgres) == 0);
    // One of its handlers is done while it cannot hear of it, the other goes on.
    scene.ledger.let_go();
    wait_until(RECOVERED, "one handler is done", || effects(Deed::Done) == 1);
    let other = scene.start();
    scene.site.wait_for_jobs(RECOVERED, 1, "Type = 'held' and Status = 'completed'");
    wait_until(RECOVERED, "the other handler runs twice", || effects(Deed::Start) == 4);

    zombie.signal("CONT");
    wait_until(RECOVERED, "its handler is told", || !scene.ledger.told().is_empty());
    wait_until(RECOVERED, "its outcomes are refused", || zombie.metric("trilane_jobs_refused_total") == 2);
    assert_eq!(scene.site.jobs("Type = 'gate' and Status = 'running'"), 1, "the other's attempt goes on");
    scene.ledger.open_gate();

    scene.settle();
    let told = scene.ledger.told();
    assert!(told.len() == 1 && first.iter().any(|effect| effect.token == told[0]), "the first attempt alone: {told:?}");
    let verdict = scene.check(Run::default());
    assert_eq!((verdict.counts.completed, verdict.counts.run_twice), (2, 2));
    assert_eq!(scene.workers_lost(), 2, "an attempt of each");
    let completed = [&zombie, &other].map(|replica| replica.metric("trilane_jobs_completed_total"));
    assert_eq!(completed, [0, 2], "the other's outcomes stand");
    // It is a good replica again.
    client.submit(zombie.address(), &vec![scene.ledger.job("quick"); 1]);
    scene.settle();
    scene.check(Run::default());
}
