//! The settings that are one of a few words. Pure.

use log::LevelFilter;

/// What one process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves the API and runs jobs.
    All,
    /// Serves the API alone.
    Api,
    /// Runs jobs; serves only `/healthz`, `/readyz` and `/metrics`.
    Worker,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::All, Role::Api, Role::Worker];

    /// Name in settings and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::All => "all",
            Role::Api => "api",
            Role::Worker => "worker",
        }
    }
}

/// Whether a start brings the tables up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migrate {
    /// It does.
    Auto,
    /// It refuses to run on tables that are not.
    Off,
}

impl Migrate {
    /// Every choice.
    pub const ALL: [Migrate; 2] = [Migrate::Auto, Migrate::Off];

    /// Name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Migrate::Auto => "auto",
            Migrate::Off => "off",
        }
    }
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Every form.
    pub const ALL: [LogFormat; 2] = [LogFormat::Text, LogFormat::Json];

    /// Name in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// Whether a connection to SQL Server must be encrypted, in the words of Microsoft's driver 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encrypt {
    /// Everything is encrypted, or the connection fails.
    Yes,
    /// The login is encrypted where the server can, the rest where the server insists.
    No,
    /// TDS 8.0: encrypted from the first byte, the certificate always checked. SQL Server 2022 and later.
    Strict,
}

impl Encrypt {
    /// Every choice.
    pub const ALL: [Encrypt; 3] = [Encrypt::Yes, Encrypt::No, Encrypt::Strict];

    /// Name in settings and in the connection strings of Microsoft's driver.
    pub fn as_str(self) -> &'static str {
        match self {
            Encrypt::Yes => "yes",
            Encrypt::No => "no",
            Encrypt::Strict => "strict",
        }
    }
}

/// Every level, from silent to loudest.
pub(super) const LEVELS: [LevelFilter; 6] = [
    LevelFilter::Off,
    LevelFilter::Error,
    LevelFilter::Warn,
    LevelFilter::Info,
    LevelFilter::Debug,
    LevelFilter::Trace,
];

/// `yes` or `no`.
pub(super) fn yes_or_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
