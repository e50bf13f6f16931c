//! What a replica costs that has nothing to do.

use std::time::{Duration, Instant};

use serde_json::json;

use super::site::Site;
use super::stores::number;
use super::trilane::{SOON, wait_for, wait_until};

/// What the issue allows.
const STATEMENTS_A_MINUTE_MAX: f64 = 10.0;
const CORE_PERCENT_MAX: f64 = 1.0;
const MEMORY_KIB_MAX: u64 = 30 * 1024;

/// As keeper and scheduler have it.
const BEAT: Duration = Duration::from_secs(20);
const TICKS_A_MINUTE: f64 = 0.5;

/// Statements that the database of this site was sent, those whose text is like this. Asked in another database, so as not to count
/// itself.
fn statements_like(site: &Site, text: &str) -> i64 {
    let admin = std::env::var("TRILANE_TEST_POSTGRES").expect("it is set where the site could be made");
    let name = site.database_name();
    let counted = "select cast(coalesce(sum(s.calls), 0) as bigint) from pg_stat_statements as s join pg_database as d on d.oid = s.dbid";
    number(&admin, &format!("{counted} where d.datname = '{name}' and s.query like '{text}'"))
}

fn statements(site: &Site) -> i64 {
    statements_like(site, "%")
}

/// Waits until no statement has come for a second. Returns how many came so far.
fn settled(site: &Site) -> i64 {
    let (mut last, mut since) = (statements(site), Instant::now());
    wait_for(SOON, "the database is left alone", || {
        let now = statements(site);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() >= Duration::from_secs(1)).then_some(last)
    })
}

#[test]
fn an_idle_replica_is_quiet_and_small() {
    let site = Site::postgres_and_redis();
    let process = site.start(&site.settings());
    let id = process.enqueue_one(json!({ "type": "send_email" }));
    process.wait_for_status(&[id], "completed");
    wait_until(SOON, "the lease of that job is removed", || site.number("select count(*) from Leases") == 0);
    let before = settled(&site);
    let beats = || statements_like(&site, "%Replicas%");

    // Up to the next beat nothing is due that happens as rarely as that; what happens more often would show.
    let (beats_before, from, used) = (beats(), Instant::now(), process.core_seconds());
    wait_until(BEAT + SOON, "it shows itself as alive", || beats() != beats_before);
    let beat = settled(&site) - before;
    let (elapsed, used) = (from.elapsed(), process.core_seconds() - used);
    let before = settled(&site);
    process.post("/scheduler/wake", &json!(null));
    wait_until(SOON, "the scheduler ticks", || statements(&site) != before);
    let tick = settled(&site) - before;

    let beats_a_minute = 60.0 / BEAT.as_secs_f64();
    let statements_a_minute = f64::from(u32::try_from(beat).expect("few")) * beats_a_minute
        + f64::from(u32::try_from(tick).expect("few")) * TICKS_A_MINUTE;
    let core_percent = 100.0 * used / elapsed.as_secs_f64();
    let memory_kib = process.memory_kib();
    let measured = format!(
        "{statements_a_minute} statements a minute ({beat} a beat, {tick} a tick), {core_percent:.2} % of a core over {elapsed:.0?}, \
         {memory_kib} KiB"
    );
    eprintln!("{measured}");
    assert!(statements_a_minute <= STATEMENTS_A_MINUTE_MAX, "{measured}");
    assert!(core_percent < CORE_PERCENT_MAX, "{measured}");
    assert!(memory_kib < MEMORY_KIB_MAX, "{measured}");
}
