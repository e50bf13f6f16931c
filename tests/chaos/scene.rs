//! One fault at a time: a site, its ledger, and processes with short leases and ticks.

use std::time::Duration;

use super::checker::judge::{Run, Verdict};
use super::ledger::Ledger;
use super::site::Site;
use super::stores;
use super::trilane::{Settings, Trilane, wait_until};
use trilane::store::Dialect;

pub(crate) const LEASE_MS: i64 = 3_000;
/// How long all may take to end after a fault: a beat of 20 s notices leases that ran out, and the machine may be slow.
pub(crate) const RECOVERED: Duration = Duration::from_mins(2);

pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) ledger: Ledger,
}

impl Scene {
    /// With Redis where several processes can share it.
    pub(crate) fn on(dialect: Dialect) -> Scene {
        let site = match dialect {
            Dialect::Sqlite => Site::sqlite(),
            Dialect::Postgres => Site::postgres_and_redis(),
            Dialect::Mssql => {
                let url = std::env::var("TRILANE_TEST_REDIS")
                    .expect("TRILANE_TEST_REDIS is set: run the tests by `make test`");
                Site::new(Dialect::Mssql, Some(&url))
            }
        };
        let ledger = Ledger::open(site.folder());
        Scene { site, ledger }
    }

    pub(crate) fn settings(&self) -> Settings {
        self.site
            .settings()
            .with("TRILANE_HANDLERS", self.ledger.handlers())
            .with("TRILANE_LEASE_SECONDS", LEASE_MS / 1_000)
            .with("TRILANE_DB_WAIT_SECONDS", 1)
            .with("TRILANE_TICK_SECONDS", 1)
            .with("TRILANE_WORKERS", 4)
    }

    pub(crate) fn start(&self) -> Trilane {
        self.site.start(&self.settings())
    }

    /// Waits until no job is live and no lease is left.
    pub(crate) fn settle(&self) {
        self.site.wait_for_jobs(RECOVERED, 0, "Status in ('queued', 'running', 'retrying')");
        wait_until(RECOVERED, "no lease is left", || self.site.number("select count(*) from Leases") == 0);
    }

    pub(crate) fn check(&self, run: Run) -> Verdict {
        self.ledger.check(self.site.connection_string(), run)
    }

    /// Attempts that ended with their worker.
    pub(crate) fn workers_lost(&self) -> i64 {
        self.site.number("select count(*) from JobAttempts where Error like '%worker lost%'")
    }

    /// Leases in force, by the database's clock.
    pub(crate) fn leases_in_force(&self, dialect: Dialect) -> i64 {
        let now = match dialect {
            Dialect::Sqlite => "cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)",
            Dialect::Postgres => "now()",
            Dialect::Mssql => "sysutcdatetime()",
        };
        self.site.number(&format!("select count(*) from Leases where LeaseUntil >= {now}"))
    }
}

/// SQLite and PostgreSQL, and SQL Server where it is given.
pub(crate) fn dialects() -> Vec<Dialect> {
    stores::dialects()
}
