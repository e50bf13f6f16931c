//! The command line of the binary: what it can be asked, and the exit code of each answer.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use trilane::app::{Service, open_lanes, open_store};
use trilane::config::{Settings, SettingsError};
use trilane::handlers::{self, Registry};
use trilane::store::Store;
use trilane::threads::signals;
use trilane::{logging, queue};

/// Wrong settings or arguments: starting again without changing them is of no use.
const EXIT_USAGE: u8 = 2;

const HELP: &str = "\
Trilane, a job server on SQL Server, PostgreSQL or SQLite.

Usage: trilane [COMMAND]

  (none)     serve: HTTP, scheduler and workers, as TRILANE_ROLE says
  migrate    bring the database schema up to date, and end
  check      print the settings in force, try the stores, and end
  health     ask the service on TRILANE_HTTP_ADDR whether it is alive
  --help     this text
  --version  the version

Settings come from the environment and from a file .env in the working directory;
README.md lists them all.

Exit codes: 0 done, 1 failed, 2 wrong settings or arguments, 130 left at once by a second signal.
";

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => with_settings(serve),
        ["migrate"] => with_settings(migrate),
        ["check"] => with_settings(check),
        ["health"] => with_settings(health),
        ["--help" | "-h" | "help"] => print(HELP),
        ["--version" | "-V"] => print(&format!("trilane {}\n", env!("CARGO_PKG_VERSION"))),
        others => {
            complain(&format!("unknown arguments: {}; `trilane --help` lists the commands", others.join(" ")));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// What a command ends with: a code, or what went wrong.
type Outcome = Result<ExitCode, Failure>;

struct Failure {
    text: String,
    code: u8,
}

impl Failure {
    fn usage(error: &impl ToString) -> Failure {
        Failure { text: error.to_string(), code: EXIT_USAGE }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { text: error.to_string(), code: 1 }
    }
}

fn with_settings(command: fn(&Settings) -> Outcome) -> ExitCode {
    let settings = Settings::load().map_err(|error: SettingsError| Failure::usage(&error));
    let outcome = settings.and_then(|settings| {
        logging::init(&settings);
        command(&settings)
    });
    outcome.unwrap_or_else(|failure| {
        complain(&failure.text);
        ExitCode::from(failure.code)
    })
}

fn serve(settings: &Settings) -> Outcome {
    let registry = registry(settings)?;
    let stop_asked = signals::listen()?;
    let service = Service::start(settings, registry)?;
    service.wait(&stop_asked);
    service.stop();
    // Of a worker that did not end in time.
    handlers::abandon_all();
    Ok(ExitCode::SUCCESS)
}

fn registry(settings: &Settings) -> Result<Registry, Failure> {
    let Some(path) = &settings.handlers_file else { return Ok(handlers::built_in()) };
    let environment = settings_environment()?;
    let lookup = |name: &str| environment.get(name).cloned();
    handlers::load_under(path, &lookup).map_err(|error| Failure::usage(&error))
}

/// The environment with what `.env` adds to it, for `env:NAME` in the handlers file.
fn settings_environment() -> Result<BTreeMap<String, String>, Failure> {
    Settings::environment().map_err(|error| Failure::usage(&error))
}

fn migrate(settings: &Settings) -> Outcome {
    let (_, migrated) = open_store(settings, Store::migrate)?;
    let text = if migrated.from == migrated.to {
        format!("the schema is up to date (version {})\n", migrated.to)
    } else {
        format!("the schema was migrated from version {} to {}\n", migrated.from, migrated.to)
    };
    Ok(print(&text))
}

fn check(settings: &Settings) -> Outcome {
    let registry = registry(settings)?;
    let mut lines = vec!["Settings in force".to_owned()];
    lines.extend(settings.in_force().iter().map(|(name, value)| format!("  {name} = {value}")));
    lines.extend([String::new(), "Handlers".to_owned()]);
    lines.push(format!("  {}", registry.types().collect::<Vec<_>>().join(", ")));
    lines.extend([String::new(), "Stores".to_owned()]);
    let mut stores = vec![("database", check_database(settings))];
    if settings.redis_url.is_some() {
        stores.push(("redis", check_redis(settings)));
    }
    let is_well = stores.iter().all(|(_, result)| result.is_ok());
    lines.extend(stores.into_iter().map(|(name, result)| match result {
        Ok(fine) => format!("  {name}: ok, {fine}"),
        Err(problem) => format!("  {name}: FAILED: {problem}"),
    }));
    print(&(lines.join("\n") + "\n"));
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn check_database(settings: &Settings) -> Result<String, String> {
    // A check is for somebody who waits for its answer.
    let settings = Settings { database_startup_wait: Duration::ZERO, ..settings.clone() };
    let (store, version) = open_store(&settings, Store::schema_version).map_err(|error| error.to_string())?;
    let schema = version
        .map_or("no schema yet, `trilane migrate` makes it".to_owned(), |version| format!("schema version {version}"));
    let advice = store.advice().map_err(|error| error.to_string())?;
    let advice = advice.map(|advice| format!("\n    advice: {advice}")).unwrap_or_default();
    Ok(format!("{} through {}; {schema}{advice}", store.dialect().as_str(), store.driver()))
}

fn check_redis(settings: &Settings) -> Result<String, String> {
    let lanes = open_lanes(settings).map_err(|error| error.to_string())?;
    let lengths = lanes.state().map_err(|error: queue::QueueError| error.to_string())?.map(|lane| lane.len);
    Ok(format!("lanes hold {} high, {} medium, {} low", lengths[0], lengths[1], lengths[2]))
}

fn health(settings: &Settings) -> Outcome {
    let mut address = settings.http_addr;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let agent: ureq::Agent =
        ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).proxy(None).build().into();
    agent.get(format!("http://{address}/healthz")).call()?;
    Ok(print("ok\n"))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // Nobody reads: there is nobody to tell either.
    }
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "trilane: {text}"); // OK: as above
}
