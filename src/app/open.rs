//! Opening the stores at a start: which driver, which schema, and how long to wait for them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{Database, Migrate, Role, Settings};
use crate::job::ReplicaId;
use crate::lifecycle::{Lifecycle, Policy};
use crate::queue::{Lanes, QueueError};
use crate::random;
use crate::store::{Options, Store, StoreError, installed_drivers};
use crate::wake::left_until;

use super::StartError;

/// Between two tries to reach the database at a start.
const STARTUP_PAUSE: Duration = Duration::from_secs(1);
/// Ids that each lane in the process holds beyond what the scheduler fills it up to: for those submitted meanwhile.
const MEMORY_LANE_SPARE: usize = 100_000;

/// Opens everything that moves jobs.
pub(super) fn lifecycle(settings: &Settings) -> Result<Lifecycle, StartError> {
    let (store, migrated) = open_store(settings, |store| match settings.migrate {
        Migrate::Auto => store.migrate().map(Some),
        Migrate::Off => store.check_schema().map(|()| None),
    })?;
    if let Some(migrated) = migrated.filter(|migrated| migrated.from != migrated.to) {
        log::info!(from = migrated.from, to = migrated.to; "the schema was migrated");
    }
    let lanes = open_lanes(settings)?;
    let policy = Policy {
        replica: ReplicaId(random::id()),
        replica_name: settings.replica_name.clone().unwrap_or_else(default_name),
        tick: settings.tick,
        lease: settings.lease,
        lane_buffer_max: settings.lane_buffer_max,
        lanes_are_shared: settings.redis_url.is_some(),
        has_lanes: settings.redis_url.is_some() || settings.role == Role::All,
    };
    Ok(Lifecycle::new(store, lanes, policy))
}

/// Opens the database and does with it what is to be done first. Both are tried again as long as the settings say: the database may go
/// away in between, and another replica may hold the schema for longer than a statement waits.
///
/// # Errors
/// The last of what may pass by itself ([`StoreError::is_transient`]) if it does not pass in time; other errors at once.
pub fn open_store<T>(
    settings: &Settings,
    first: impl Fn(&Store) -> Result<T, StoreError>,
) -> Result<(Store, T), StoreError> {
    let options = Options {
        connection_string: connection_string(&settings.database)?,
        connections_max: settings.database_pool_max,
        wait: settings.database_wait,
    };
    let deadline = Instant::now() + settings.database_startup_wait;
    let mut is_told = false;
    loop {
        let opened = Store::open(&options);
        let is_open = opened.is_ok();
        match opened.and_then(|store| first(&store).map(|done| (store, done))) {
            Err(error) if error.is_transient() && !left_until(deadline).is_zero() => {
                if !is_told {
                    log::warn!(error:% = error; "the database is not there yet; the start waits for it");
                    is_told = true;
                }
                std::thread::sleep(STARTUP_PAUSE.min(left_until(deadline)));
            }
            Err(error) if !is_open => return Err(name_file(&settings.database, error)),
            result => return result,
        }
    }
}

/// The driver of SQLite does not say which file it cannot open.
fn name_file(database: &Database, error: StoreError) -> StoreError {
    match database {
        Database::Sqlite { path } => StoreError::Corrupt(format!(
            "the SQLite file {} cannot be used: {error}; the user of this process must be able to write it and its folder, and its disk \
             needs room",
            path.display()
        )),
        _ => error,
    }
}

fn connection_string(database: &Database) -> Result<String, StoreError> {
    match database {
        Database::Odbc { connection } => Ok(connection.expose().to_owned()),
        Database::Sqlite { path } => {
            make_folder(path)?;
            Ok(Store::sqlite_connection_string(path))
        }
        Database::SqlServer { driver: Some(driver), .. } => Ok(database.connection_string(driver).expose().to_owned()),
        Database::SqlServer { driver: None, .. } => {
            let driver = sql_server_driver(&installed_drivers()?)?;
            Ok(database.connection_string(&driver).expose().to_owned())
        }
    }
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    let Some(folder) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| {
        let folder = folder.display();
        StoreError::Corrupt(format!(
            "the folder {folder} for the SQLite file cannot be made: {error}; set TRILANE_DATA_DIR"
        ))
    })
}

/// Microsoft's newest driver where one is installed, else FreeTDS.
fn sql_server_driver(installed: &[String]) -> Result<String, StoreError> {
    let microsoft =
        installed.iter().filter(|name| name.starts_with("ODBC Driver ") && name.ends_with(" for SQL Server"));
    let newest = microsoft.max_by_key(|name| name.split(' ').nth(2).and_then(|version| version.parse::<u32>().ok()));
    let free = || installed.iter().find(|name| name.to_ascii_lowercase().contains("freetds"));
    newest.or_else(free).cloned().ok_or_else(|| {
        StoreError::Corrupt(format!(
            "no ODBC driver for SQL Server is installed (found: {}); install Microsoft's ODBC Driver 18 or FreeTDS (Debian: tdsodbc), \
             or name one in DB_DRIVER",
            if installed.is_empty() { "none".to_owned() } else { installed.join(", ") }
        ))
    })
}

/// Opens the lanes: in Redis, or in the process. Redis may be away.
///
/// # Errors
/// If the URL is wrong, or the server too old.
pub fn open_lanes(settings: &Settings) -> Result<Lanes, QueueError> {
    let Some(url) = &settings.redis_url else {
        return Ok(Lanes::memory(settings.lane_buffer_max.saturating_add(MEMORY_LANE_SPARE)));
    };
    let lanes = Lanes::redis(url.expose(), &settings.redis_prefix)?;
    match lanes.check_server() {
        Ok(Some(warning)) => log::warn!("{warning}"),
        Ok(None) => {}
        Err(error) if error.is_transient() => {
            log::warn!(error:% = error; "Redis is not there yet; Trilane starts without it");
        }
        Err(error) => return Err(error),
    }
    Ok(lanes)
}

/// `host:pid`.
fn default_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "host" } else { host.trim() };
    format!("{host}:{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_driver_of_microsoft_is_preferred_to_freetds() {
        let names = ["FreeTDS", "ODBC Driver 17 for SQL Server", "ODBC Driver 18 for SQL Server", "SQLite3"];
        let names = names.map(str::to_owned);

        assert_eq!(sql_server_driver(&names).ok().as_deref(), Some("ODBC Driver 18 for SQL Server"));
        assert_eq!(sql_server_driver(&names[..1]).ok().as_deref(), Some("FreeTDS"));
        let error = sql_server_driver(&names[3..]).expect_err("there is none").to_string();
        assert!(error.contains("DB_DRIVER") && error.contains("SQLite3"), "{error}");
    }
}
