//! Tests of the settings as a whole; those of one part stand beside it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

type Env = BTreeMap<String, String>;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn settings(pairs: &[(&str, &str)]) -> Settings {
    Settings::from_map(&env(pairs)).expect("good settings")
}

/// The lines of the error that these settings give.
fn problems(pairs: &[(&str, &str)]) -> Vec<String> {
    match Settings::from_map(&env(pairs)) {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

const SERVER: [(&str, &str); 4] =
    [("DB_HOST", "db.internal"), ("DB_NAME", "jobs"), ("DB_USER", "sa"), ("DB_PASS", "hunter2")];

#[test]
fn with_nothing_set_the_defaults_of_the_design_are_in_force() {
    let settings = settings(&[]);

    assert!(matches!(&settings.database, Database::Sqlite { path } if path == Path::new("./data/trilane.db")));
    assert_eq!((settings.workers, settings.lane_buffer_max), (10, 100_000));
    assert_eq!((settings.tick, settings.lease), (Duration::from_mins(2), Duration::from_secs(30)));
    assert_eq!((settings.drain, settings.retention), (Duration::from_secs(25), Duration::from_hours(7 * 24)));
    assert_eq!(settings.http_addr.to_string(), "127.0.0.1:8080");
    assert_eq!((settings.body_bytes_max, settings.payload_bytes_max), (1 << 20, 256 << 10));
    assert_eq!((settings.jobs_per_call_max, settings.submit_wait), (10_000, Duration::from_secs(10)));
    assert_eq!((settings.job_timeout, settings.starvation), (Duration::from_mins(30), None));
    assert_eq!(settings.retry, RetryPolicy { base: Duration::from_secs(15), cap: Duration::from_hours(1) });
    assert_eq!((settings.role, settings.migrate, settings.log), (Role::All, Migrate::Auto, LevelFilter::Info));
    assert!(settings.redis_url.is_none() && settings.api_tokens.is_empty() && settings.redis_prefix.is_empty());
}

#[test]
fn the_ranges_agree_with_the_limits_of_a_job() {
    let max = |name| setting(name).and_then(Setting::bounds).expect("a number").1;

    assert_eq!(Duration::from_secs(max("TRILANE_JOB_TIMEOUT_SECONDS")), crate::job::TIMEOUT_MAX);
    assert_eq!(Duration::from_millis(max("TRILANE_RETRY_CAP_MS")), crate::retry::DELAY_MAX);
}

#[test]
fn a_choice_names_exactly_its_choices_in_the_table() {
    let choices = |name| setting(name).expect("a setting").range.replace(" or ", ", ");
    let names = |names: &[&str]| names.join(", ").to_ascii_lowercase();

    assert_eq!(choices("TRILANE_ROLE"), names(&Role::ALL.map(Role::as_str)));
    assert_eq!(choices("TRILANE_MIGRATE"), names(&Migrate::ALL.map(Migrate::as_str)));
    assert_eq!(choices("TRILANE_DB_ENCRYPT"), names(&Encrypt::ALL.map(Encrypt::as_str)));
    assert_eq!(choices("TRILANE_LOG_FORMAT"), names(&LogFormat::ALL.map(LogFormat::as_str)));
    assert_eq!(choices("TRILANE_LOG"), names(&choices::LEVELS.map(|level| level.as_str())));
}

#[test]
fn every_setting_of_the_table_is_read_and_refused_by_name_when_it_is_broken() {
    for row in SETTINGS {
        let found = problems(&[(row.name, "\u{1}")]);

        assert!(
            found.iter().any(|line| line.starts_with(&format!("{} (", row.name)) && line.contains("): expected ")),
            "{found:?}"
        );
    }
}

#[test]
fn every_default_of_the_table_is_in_force_where_nothing_is_set() {
    let in_force = settings(&SERVER).in_force();

    for (row, (name, value)) in SETTINGS.iter().zip(&in_force) {
        assert_eq!(row.name, *name);
        assert!(row.default.is_empty() || row.default == value, "{name} is {value}, not {}", row.default);
    }
    assert_eq!(in_force.len(), SETTINGS.len());
}

#[test]
fn what_is_shown_as_in_force_reads_back_the_same() {
    let given = [
        ("TRILANE_DATA_DIR", "/var/lib/trilane"),
        ("REDIS_URL", "redis://cache:6379/2"),
        ("TRILANE_REDIS_PREFIX", "{trilane}:"),
        ("TRILANE_ROLE", "worker"),
        ("TRILANE_REPLICA_NAME", "one"),
        ("TRILANE_HANDLERS", "handlers.toml"),
        ("TRILANE_STARVATION_SECONDS", "60"),
        ("TRILANE_RETENTION_DAYS", "30"),
        ("TRILANE_RETRY_BASE_MS", "250"),
        ("TRILANE_LOG", "warn"),
        ("TRILANE_LOG_FORMAT", "json"),
    ];
    let first = settings(&given);

    let shown: Env = first.in_force().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let again: Env = shown.clone().into_iter().filter(|(_, value)| value != "not set").collect();
    let second = Settings::from_map(&again).expect("what is shown is good");

    for (name, value) in given {
        assert_eq!(shown[name], value);
    }
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

#[test]
fn all_problems_are_told_together_one_a_line() {
    let found = problems(&[
        ("TRILANE_WORKERS", "0"),
        ("TRILANE_HTTP_ADDR", "localhost:8080"),
        ("DB_HOST", "db.internal"),
        ("DB_USER", "sa"),
        ("DB_PASS", "hunter2\n"),
        ("TRILANE_PAYLOAD_BYTES_MAX", "2000000"),
        ("TRILANE_WORKRES", "5"),
    ]);

    let login = "for a login without a password write DB_CONNECTION instead, with Trusted_Connection=yes";
    assert_eq!(
        found,
        [
            format!("DB_NAME: is needed with DB_HOST; {login}"),
            "DB_PASS ([redacted]): expected 1 to 128 ASCII characters, no line break or other control character"
                .to_owned(),
            "TRILANE_HTTP_ADDR (localhost:8080): expected an IP address and port, such as 127.0.0.1:8080 or [::]:8080 \
             (default 127.0.0.1:8080)"
                .to_owned(),
            "TRILANE_PAYLOAD_BYTES_MAX (2000000): must be at most TRILANE_BODY_BYTES_MAX (1048576), or no request can \
             carry such a payload"
                .to_owned(),
            "TRILANE_WORKERS (0): expected a whole number of threads, 1 to 1,000 (default 10)".to_owned(),
            "TRILANE_WORKRES: no such setting; did you mean TRILANE_WORKERS?".to_owned(),
        ]
    );
}

#[test]
fn db_host_and_what_belongs_to_it_give_an_sql_server() {
    let more = [
        ("DB_PORT", "14330"),
        ("DB_DRIVER", "{FreeTDS}"),
        ("TRILANE_DB_ENCRYPT", "Strict"),
        ("TRILANE_DB_TRUST_CERTIFICATE", "yes"),
    ];
    let settings = settings(&[&SERVER[..], &more].concat());

    let Database::SqlServer { host, port, name, user, password, driver, encrypt, trust_certificate } =
        settings.database
    else {
        panic!("not an SQL Server");
    };
    assert_eq!((host.as_str(), port, name.as_str(), user.as_str()), ("db.internal", 14_330, "jobs", "sa"));
    assert_eq!((password.expose(), driver.as_deref()), ("hunter2", Some("FreeTDS")));
    assert_eq!((encrypt, trust_certificate), (Encrypt::Strict, true));
}

#[test]
fn db_host_needs_name_login_and_password() {
    let found = problems(&[("DB_HOST", "db"), ("DB_PASS", "  ")]);

    let names: Vec<&str> =
        found.iter().filter_map(|line| line.split_once(": is needed with DB_HOST")).map(|(name, _)| name).collect();
    assert_eq!(names, ["DB_NAME", "DB_USER", "DB_PASS"]);
    assert_eq!(found.len(), 3);
}

#[test]
fn db_host_is_a_host_alone() {
    for host in ["tcp:db,1433", "tcp:db", "db,1433", "db\\SQLEXPRESS", "db;UID=sa", "db:1433"] {
        let found = problems(&[&[("DB_HOST", host)], &SERVER[1..]].concat());

        assert!(found.len() == 1 && found[0].starts_with("DB_HOST ("), "{host}: {found:?}");
    }
    assert_eq!(problems(&[&[("DB_HOST", "fe80::1")], &SERVER[1..]].concat()), [""; 0]);
}

#[test]
fn db_connection_and_db_host_together_are_refused() {
    let found = problems(&[&SERVER[..], &[("DB_CONNECTION", "DSN=jobs")]].concat());

    assert_eq!(found, ["DB_CONNECTION ([redacted]): names a database, and DB_HOST another; unset one of them"]);
}

#[test]
fn what_belongs_to_db_host_is_refused_without_it() {
    for (name, value) in
        [("DB_DRIVER", "FreeTDS"), ("DB_PORT", "1433"), ("DB_NAME", "jobs"), ("TRILANE_DB_ENCRYPT", "no")]
    {
        let expected =
            format!("{name} ({value}): describes the server of DB_HOST, which is not set; set that, or unset this");

        assert_eq!(problems(&[(name, value)]), [expected.as_str()]);
        assert_eq!(problems(&[(name, value), ("DB_CONNECTION", "DSN=jobs")]), [expected]);
    }
}

#[test]
fn db_connection_must_name_a_driver_and_is_never_shown() {
    let found = problems(&[("DB_CONNECTION", "postgres://user:hunter2@host/jobs")]);

    assert!(
        found[0].starts_with("DB_CONNECTION ([redacted]): expected an ODBC connection string with Driver= or DSN="),
        "{found:?}"
    );
    let good = settings(&[("DB_CONNECTION", "Driver={SQLite3};Database=x;PWD=hunter2")]);
    assert!(matches!(&good.database, Database::Odbc { connection } if connection.expose().ends_with("PWD=hunter2")));
}

#[test]
fn an_address_off_loopback_needs_tokens_unless_the_role_is_worker() {
    let open = ("TRILANE_HTTP_ADDR", "0.0.0.0:8080");
    let token = ("TRILANE_API_TOKENS", "0123456789abcdef");

    let refused = "TRILANE_HTTP_ADDR (0.0.0.0:8080): can be reached from other hosts, so it needs TRILANE_API_TOKENS; \
                   set them, or a loopback address such as 127.0.0.1:8080";
    assert_eq!(problems(&[open]), [refused]);
    assert_eq!(problems(&[open, ("TRILANE_ROLE", "api")]), [refused]);
    assert_eq!(problems(&[open, ("TRILANE_ROLE", "worker")]), [""; 0]);
    assert_eq!(problems(&[open, token]), [""; 0]);
}

#[test]
fn a_token_is_at_least_16_visible_characters() {
    let tokens = settings(&[("TRILANE_API_TOKENS", " 0123456789abcdef , fedcba9876543210,")]).api_tokens;
    let exposed: Vec<&str> = tokens.iter().map(Secret::expose).collect();
    assert_eq!(exposed, ["0123456789abcdef", "fedcba9876543210"]);

    for (value, which) in
        [("0123456789abcdef,short", "; number 2 is not"), ("0123456789 abcdef", "; number 1 is not"), (",", "")]
    {
        let range = "16 to 512 characters each of visible ASCII, comma separated";
        let expected =
            format!("TRILANE_API_TOKENS ([redacted]): expected {range}{which}; `openssl rand -hex 24` makes one");
        assert_eq!(problems(&[("TRILANE_API_TOKENS", value)]), [expected]);
    }
}

#[test]
fn a_lease_holds_at_least_three_waits_for_a_connection() {
    let lease = |seconds| problems(&[("TRILANE_LEASE_SECONDS", seconds)]);

    assert_eq!(lease("15"), [""; 0]);
    assert_eq!(
        lease("14"),
        ["TRILANE_DB_WAIT_SECONDS (5): must be at most a third of TRILANE_LEASE_SECONDS (14), or one slow \
          renewal loses every job that is running"]
    );
}

#[test]
fn a_call_must_fit_the_submit_queue_and_the_first_retry_the_cap() {
    let found = problems(&[("TRILANE_SUBMIT_QUEUE_MAX", "9999"), ("TRILANE_RETRY_CAP_MS", "1000")]);

    assert_eq!(
        found,
        [
            "TRILANE_JOBS_PER_CALL_MAX (10000): must be at most TRILANE_SUBMIT_QUEUE_MAX (9999), or a full call \
             never fits and always gets 429",
            "TRILANE_RETRY_BASE_MS (15000): must be at most TRILANE_RETRY_CAP_MS (1000), or the first wait is \
             already cut",
        ]
    );
}

#[test]
fn a_relation_of_a_broken_value_is_not_told() {
    let found = problems(&[("TRILANE_BODY_BYTES_MAX", "1"), ("TRILANE_PAYLOAD_BYTES_MAX", "2000000")]);

    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn processes_of_one_role_are_allowed_without_redis() {
    assert_eq!(problems(&[("TRILANE_ROLE", "api")]), [""; 0]);
    assert_eq!(problems(&[("TRILANE_ROLE", "worker")]), [""; 0]);
}

#[test]
fn no_secret_is_ever_shown() {
    let secrets = [
        ("DB_PASS", "hunter2"),
        ("TRILANE_API_TOKENS", "hunter2hunter2hunter2,hunter2hunter2hunter3"),
        ("REDIS_URL", "rediss://me:hunter2@cache:6380/1"),
    ];
    let settings = settings(&[&SERVER[..3], &secrets].concat());

    let in_force: Env = settings.in_force().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(in_force["DB_PASS"], "[redacted]");
    assert_eq!(in_force["TRILANE_API_TOKENS"], "[redacted],[redacted]");
    assert_eq!(in_force["REDIS_URL"], "rediss://cache:6380/1");
    assert!(!format!("{settings:?} {in_force:?}").contains("hunter2"));

    let odbc = Settings::from_map(&env(&[("DB_CONNECTION", "Driver={SQLite3};PWD=hunter2")])).expect("good settings");
    assert_eq!(odbc.in_force()[0], ("DB_CONNECTION", "[redacted]".to_owned()));
    assert!(!format!("{odbc:?} {:?}", odbc.in_force()).contains("hunter2"));
}

#[test]
fn a_redis_url_of_a_wrong_form_is_refused_without_showing_it() {
    let found = problems(&[("REDIS_URL", "redis://:hunter2/x@cache")]);

    assert!(found[0].starts_with("REDIS_URL ([redacted]): expected redis://"), "{found:?}");
}

proptest! {
    #[test]
    fn any_value_of_any_setting_is_taken_or_refused_and_a_secret_is_not_shown(
        which in 0..SETTINGS.len(), value in "\\PC{1,30}|[0-9]{1,25}|off|-1|0x1|1e9|[a-z]{8}://[a-z:@/?#]{8,30}",
    ) {
        let setting = &SETTINGS[which];
        let shown = match Settings::from_map(&env(&[(setting.name, &value)])) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => error.to_string(),
        };

        // Shorter ones may stand in the text by chance.
        prop_assert!(!setting.secret || value.chars().count() < 8 || !shown.contains(&value), "{}: {shown}", setting.name);
    }

    #[test]
    fn a_number_is_taken_if_it_is_in_its_range(which in 0..SETTINGS.len(), number: u64, near in 0u64..3) {
        let setting = &SETTINGS[which];
        let is_number = setting.default.parse::<u64>().is_ok();
        let Some((min, max)) = setting.bounds().filter(|_| is_number) else { return Ok(()) };
        for number in [number, min.saturating_sub(1).saturating_add(near), max.saturating_sub(1).saturating_add(near)] {
            let told = problems(&[(setting.name, &number.to_string())]).join(" ");

            prop_assert_eq!(told.contains("expected"), !(min..=max).contains(&number), "{}={}: {}", setting.name, number, told);
        }
    }
}
