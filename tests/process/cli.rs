//! What the program answers on the command line, and what it says when it cannot start.

use std::slice::from_ref;

use super::site::Site;
use super::trilane::{SOON, Settings};

/// An ODBC connection string to a port where nobody listens.
const NO_SERVER: &str = "Driver={PostgreSQL Unicode};Server=127.0.0.1;Port=1;Database=x;UID=x;PWD=hunter2;";

#[test]
fn check_shows_the_settings_without_secrets_and_tries_the_stores() {
    let site = Site::postgres_and_redis();
    let token = "0123456789abcdef-token";
    let settings = site.settings().with("TRILANE_WORKERS", 7).with("TRILANE_API_TOKENS", token);

    let ended = settings.run(site.folder(), &["check"]);

    assert_eq!(ended.code, Some(0), "{ended:?}");
    for line in [
        "TRILANE_WORKERS = 7",
        "TRILANE_TICK_SECONDS = 120",
        "DB_CONNECTION = [redacted]",
        "database: ok, PostgreSQL",
        "redis: ok",
    ] {
        assert!(ended.stdout.contains(line), "{line} is not in {}", ended.stdout);
    }
    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!all.contains(token) && !all.contains("PWD="), "{all}");
    assert!(all.contains("no schema yet"), "it changes nothing: {all}");
}

#[test]
fn check_fails_where_a_store_does_not_answer_and_keeps_its_password() {
    let site = Site::sqlite();
    let settings =
        Settings::default().with("DB_CONNECTION", NO_SERVER).with("REDIS_URL", "redis://:hunter2@127.0.0.1:1/");

    let ended = settings.run(site.folder(), &["check"]);

    let all = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.code, Some(1), "{all}");
    assert!(all.contains("database: FAILED: ") && all.contains("redis: FAILED: "), "{all}");
    assert!(!all.contains("hunter2"), "{all}");
}

#[test]
fn without_migrations_an_empty_database_is_refused_with_advice_and_migrate_makes_it_fit() {
    for site in [Site::postgres(), Site::sqlite()] {
        let off = site.settings().with("TRILANE_MIGRATE", "off").with("TRILANE_HTTP_ADDR", "127.0.0.1:0");

        let refused = off.run(site.folder(), &[]);
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("trilane migrate"), "{refused:?}");

        let migrated = off.run(site.folder(), &["migrate"]);
        assert_eq!(migrated.code, Some(0), "{migrated:?}");
        let again = off.run(site.folder(), &["migrate"]);
        assert!(again.code == Some(0) && again.stdout.contains("up to date"), "{again:?}");
        assert_eq!(site.start(&off).get("/readyz").status, 200);
    }
}

#[test]
fn wrong_settings_are_told_all_at_once_with_the_nearest_name() {
    let site = Site::sqlite();
    let settings = site
        .settings()
        .with("TRILANE_WORKRES", 5)
        .with("TRILANE_TICK_SECONDS", "often")
        .with("TRILANE_HTTP_ADDR", "8080");

    for arguments in [&[][..], &["check"], &["migrate"]] {
        let ended = settings.run(site.folder(), arguments);

        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(
            ended.stderr.contains("TRILANE_WORKRES") && ended.stderr.contains("did you mean TRILANE_WORKERS?"),
            "{ended:?}"
        );
        assert!(
            ended.stderr.contains("TRILANE_TICK_SECONDS (often)") && ended.stderr.contains("TRILANE_HTTP_ADDR (8080)"),
            "{ended:?}"
        );
    }
}

#[test]
fn a_wrong_handlers_file_is_refused_with_its_line() {
    let site = Site::sqlite();
    let file = site.file("handlers.toml", "[fine]\nlog = true\n[wrong]\nhtpp = \"http://127.0.0.1/\"\n");

    let ended = site.settings().with("TRILANE_HANDLERS", file).run(site.folder(), &[]);

    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("handlers.toml:4:1: ") && ended.stderr.contains("htpp"), "{ended:?}");
}

#[test]
fn a_taken_port_is_told_with_advice() {
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    let settings = site.settings().with("TRILANE_HTTP_ADDR", process.address());

    let ended = settings.run(site.folder(), &[]);

    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = format!("{} is taken by another process", process.address());
    assert!(ended.stderr.contains(&told) && ended.stderr.contains("TRILANE_HTTP_ADDR"), "{ended:?}");
}

#[test]
fn health_tells_whether_the_service_is_alive() {
    let site = Site::sqlite();
    let mut process = site.start(&site.settings());
    let settings = site.settings().with("TRILANE_HTTP_ADDR", process.address());

    assert_eq!(settings.run(site.folder(), &["health"]).code, Some(0));
    process.signal("TERM");
    assert_eq!(process.wait_for_exit(SOON), 0);
    assert_eq!(settings.run(site.folder(), &["health"]).code, Some(1));
}

#[test]
fn without_a_database_named_the_jobs_are_in_a_file_that_the_next_start_finds() {
    let site = Site::sqlite();
    let settings = Settings::default();
    let mut process = site.start(&settings);
    let id = process.enqueue_one(serde_json::json!({ "type": "send_email", "payload": "🦀" }));
    process.wait_for_status(from_ref(&id), "completed");
    process.signal("TERM");
    assert_eq!(process.wait_for_exit(SOON), 0);

    let process = site.start(&settings);

    assert_eq!(process.job(&id)["payload"], "\"🦀\"");
    assert!(site.folder().join("data").is_dir());
}

#[test]
fn a_start_waits_for_a_database_that_is_not_there_yet_and_gives_up_in_time() {
    let site = Site::sqlite();
    let settings = Settings::default()
        .with("DB_CONNECTION", NO_SERVER)
        .with("TRILANE_HTTP_ADDR", "127.0.0.1:0")
        .with("TRILANE_DB_STARTUP_WAIT_SECONDS", 1);

    let ended = settings.run(site.folder(), &[]);

    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("is not there yet") && !ended.stderr.contains("hunter2"), "{ended:?}");
}
