//! Which database, and how to say so to an ODBC driver. Pure: which drivers are installed is the store's to know.

use std::fmt::Write;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::choices::{Encrypt, yes_or_no};
use super::reader::{Reader, fits};
use super::secret::Secret;
use super::table::setting;

/// File of the embedded database in `TRILANE_DATA_DIR`.
const SQLITE_FILE: &str = "trilane.db";
/// How long SQLite waits for another connection's lock, in milliseconds; far longer than one batch.
const SQLITE_LOCK_WAIT_MS: u32 = 10_000;
/// What describes the server of `DB_HOST`, and nothing else.
const SERVER_NAMES: [&str; 7] =
    ["DB_PORT", "DB_NAME", "DB_USER", "DB_PASS", "DB_DRIVER", "TRILANE_DB_ENCRYPT", "TRILANE_DB_TRUST_CERTIFICATE"];

/// Where the jobs are stored.
#[derive(Clone, Debug)]
pub enum Database {
    /// The embedded database: one file, for processes on one machine.
    Sqlite {
        /// The file; it and its directory need not exist.
        path: PathBuf,
    },
    /// Any database of the three dialects, by a connection string as the operator wrote it.
    Odbc {
        /// The connection string.
        connection: Secret,
    },
    /// An SQL Server, by its parts.
    SqlServer {
        /// Host name or IP address.
        host: String,
        /// TCP port.
        port: u16,
        /// Database on it.
        name: String,
        /// Login.
        user: String,
        /// Password of the login.
        password: Secret,
        /// Name or path of the ODBC driver, without braces; the store chooses where `None`.
        driver: Option<String>,
        /// Whether the connection must be encrypted.
        encrypt: Encrypt,
        /// Whether any certificate is accepted.
        trust_certificate: bool,
    },
}

impl Database {
    /// The database that the settings name, an SQLite file in `data_dir` where they name none.
    pub(super) fn read(reader: &mut Reader<'_>, data_dir: &str) -> Database {
        let connection = reader.secret("DB_CONNECTION", |_| true);
        let host = reader.text("DB_HOST", |char| char.is_ascii_alphanumeric() || ".-_:".contains(char));
        let server = Database::SqlServer {
            host: host.clone().unwrap_or_default(),
            port: reader.number("DB_PORT"),
            name: reader.text("DB_NAME", is_ascii).unwrap_or_default(),
            user: reader.text("DB_USER", is_ascii).unwrap_or_default(),
            password: reader.secret("DB_PASS", is_ascii).unwrap_or_else(|| Secret::new("")),
            driver: read_driver(reader),
            encrypt: reader.choice("TRILANE_DB_ENCRYPT", &Encrypt::ALL, Encrypt::as_str),
            trust_certificate: reader.choice("TRILANE_DB_TRUST_CERTIFICATE", &[true, false], yes_or_no),
        };
        check_relations(reader, connection.as_ref(), host.as_deref());

        match (host, connection) {
            (Some(_), _) => server,
            (None, Some(connection)) => Database::Odbc { connection },
            (None, None) => Database::Sqlite { path: PathBuf::from(data_dir).join(SQLITE_FILE) },
        }
    }

    /// The connection string for `driver`, the name or path of an installed ODBC driver.
    ///
    /// That of [`Database::Odbc`] is as it was written, and `driver` is not used. Values are quoted where they need it;
    /// only one with a `}` that also has a `;` or begins with `{` cannot be said to FreeTDS before 1.4.
    pub fn connection_string(&self, driver: &str) -> Secret {
        match self {
            Database::Odbc { connection } => connection.clone(),
            Database::Sqlite { path } => {
                // OK: not quoted. The SQLite driver knows no braces, and a path of the settings holds no semicolon.
                let path = path.display();
                Secret::new(format!("Driver={};Database={path};Timeout={SQLITE_LOCK_WAIT_MS};", braced(driver)))
            }
            Database::SqlServer { host, port, name, user, password, encrypt, trust_certificate, .. } => {
                let freetds = is_freetds(driver);
                let quoted = if freetds { quoted_for_freetds } else { braced };
                let mut text = format!("Driver={};", braced(driver));
                let _ = if freetds {
                    let encrypt = encryption_of_freetds(*encrypt);
                    write!(text, "Server={host};Port={port};TDS_Version=7.4;ClientCharset=UTF-8;Encryption={encrypt};")
                } else {
                    let (encrypt, trust) = (encrypt.as_str(), yes_or_no(*trust_certificate));
                    write!(text, "Server={host},{port};Encrypt={encrypt};TrustServerCertificate={trust};")
                }; // OK: a String takes any write
                let (name, user, password) = (quoted(name), quoted(user), quoted(password.expose()));
                // OK: a semicolon at the end. FreeTDS 1.3 takes the brace of a last value for a part of it.
                Secret::new(format!("{text}Database={name};UID={user};PWD={password};"))
            }
        }
    }
}

/// Whether `driver`, a name or a path, is FreeTDS. Any other is taken for Microsoft's.
pub fn is_freetds(driver: &str) -> bool {
    let driver = driver.to_ascii_lowercase();
    driver.contains("freetds") || driver.contains("tdsodbc")
}

/// How FreeTDS says it. Its `off` would send even the login in clear; 1.3 does not know `strict` and refuses to connect.
fn encryption_of_freetds(encrypt: Encrypt) -> &'static str {
    match encrypt {
        Encrypt::Yes => "require",
        Encrypt::No => "request",
        Encrypt::Strict => "strict",
    }
}

/// `value` in braces, a closing brace in it doubled: the quoting of ODBC.
fn braced(value: &str) -> String {
    format!("{{{}}}", value.replace('}', "}}"))
}

/// `value` for FreeTDS: as it is where possible, as FreeTDS before 1.4 knows no doubled brace.
fn quoted_for_freetds(value: &str) -> String {
    if value.contains(';') || value.starts_with('{') {
        braced(value)
    } else {
        value.to_owned()
    }
}

/// Whether `char` arrives at the server. Measured: unixODBC 2.3.11 takes the connection string for ISO 8859-1 whatever
/// the locale, so `ä` became `Ã¤` in a login through Microsoft's driver 18.6 and FreeTDS 1.3.
fn is_ascii(char: char) -> bool {
    char.is_ascii()
}

/// The driver, without the braces that it has in a connection string.
fn read_driver(reader: &mut Reader<'_>) -> Option<String> {
    let bare = |text: &str| text.trim().trim_start_matches('{').trim_end_matches('}').trim().to_owned();
    let driver = bare(reader.given("DB_DRIVER")?);
    let setting = setting("DB_DRIVER")?;
    if !fits(&driver, setting, |char| !"{};".contains(char)) {
        reader.refuse(setting.name, format!("expected {}", setting.range));
    }
    Some(driver)
}

fn check_relations(reader: &mut Reader<'_>, connection: Option<&Secret>, host: Option<&str>) {
    if let Some(connection) = connection
        && reader.sound(&["DB_CONNECTION"])
        && !names_a_driver(connection.expose())
    {
        reader.refuse(
            "DB_CONNECTION",
            "expected an ODBC connection string with Driver= or DSN=, such as \
             Driver={PostgreSQL Unicode};Server=…;Database=…;UID=…;PWD=…",
        );
    }
    if connection.is_some() && host.is_some() {
        reader.refuse("DB_CONNECTION", "names a database, and DB_HOST another; unset one of them");
    }
    let is_more = |host: &str| host.contains(':') && host.parse::<Ipv6Addr>().is_err();
    if host.is_some_and(is_more) && reader.sound(&["DB_HOST"]) {
        reader.refuse("DB_HOST", "expected a host name or IP address alone; the port goes in DB_PORT");
    }
    for name in SERVER_NAMES {
        let needed = ["DB_NAME", "DB_USER", "DB_PASS"].contains(&name);
        match (host, reader.given(name)) {
            (Some(_), None) if needed => reader.refuse(
                name,
                "is needed with DB_HOST; for a login without a password write DB_CONNECTION instead, \
                 with Trusted_Connection=yes",
            ),
            (None, Some(_)) => {
                reader.refuse(name, "describes the server of DB_HOST, which is not set; set that, or unset this");
            }
            _ => {}
        }
    }
}

/// Whether a connection string says which driver is to read it. A URL does not.
fn names_a_driver(connection: &str) -> bool {
    connection.split(';').filter_map(|pair| pair.split_once('=')).any(|(key, value)| {
        let key = key.trim().to_ascii_lowercase();
        ["driver", "dsn", "filedsn"].contains(&key.as_str()) && !value.trim().is_empty()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(password: &str) -> Database {
        Database::SqlServer {
            host: "db.internal".into(),
            port: 1433,
            name: "jobs".into(),
            user: "sa".into(),
            password: Secret::new(password),
            driver: None,
            encrypt: Encrypt::Yes,
            trust_certificate: false,
        }
    }

    #[test]
    fn the_connection_string_of_microsofts_driver_quotes_every_value_of_the_operator() {
        let text = server("p;a}s={s").connection_string("ODBC Driver 18 for SQL Server");

        assert_eq!(
            text.expose(),
            "Driver={ODBC Driver 18 for SQL Server};Server=db.internal,1433;Encrypt=yes;TrustServerCertificate=no;\
             Database={jobs};UID={sa};PWD={p;a}}s={s};"
        );
    }

    #[test]
    fn the_connection_string_of_freetds_quotes_only_what_it_would_misread() {
        let text = |password| server(password).connection_string("/usr/lib/odbc/libtdsodbc.so").expose().to_owned();

        assert_eq!(
            text("pa}s={s"),
            "Driver={/usr/lib/odbc/libtdsodbc.so};Server=db.internal;Port=1433;TDS_Version=7.4;ClientCharset=UTF-8;\
             Encryption=require;Database=jobs;UID=sa;PWD=pa}s={s;"
        );
        assert!(text("p;a").ends_with(";PWD={p;a};"));
        assert!(text("{pa").ends_with(";PWD={{pa};"));
    }

    #[test]
    fn the_connection_string_of_sqlite_names_its_file() {
        let text = Database::Sqlite { path: "/var/lib/tri lane/trilane.db".into() }.connection_string("SQLite3");

        assert_eq!(text.expose(), "Driver={SQLite3};Database=/var/lib/tri lane/trilane.db;Timeout=10000;");
    }

    #[test]
    fn a_connection_string_of_the_operator_is_left_as_it_is() {
        let database = Database::Odbc { connection: Secret::new("DSN=jobs") };

        assert_eq!(database.connection_string("SQLite3").expose(), "DSN=jobs");
    }

    #[test]
    fn freetds_is_told_by_name_or_path() {
        assert!(is_freetds("FreeTDS") && is_freetds("/usr/lib/x86_64-linux-gnu/odbc/libtdsodbc.so"));
        assert!(!is_freetds("ODBC Driver 18 for SQL Server"));
    }

    #[test]
    fn a_connection_string_names_a_driver_or_a_dsn() {
        assert!(names_a_driver("Driver={SQLite3};Database=x") && names_a_driver(" server=x ; dsn = jobs"));
        assert!(!names_a_driver("postgres://user:pass@host/db") && !names_a_driver("Server=x;Driver="));
    }

    proptest! {
        #[test]
        fn any_password_reads_back_from_the_connection_string(password in "[ -~]{1,40}") {
            let text = server(&password).connection_string("ODBC Driver 18 for SQL Server");

            let quoted = text.expose().rsplit_once("UID={sa};PWD={").expect("a password").1;
            prop_assert_eq!(quoted.strip_suffix("};").expect("closed").replace("}}", "}"), password);
            // A brace within is doubled, so that none ends the value early.
            let ends_early = quoted[..quoted.len() - 2].replace("}}", "").contains('}');
            prop_assert!(!ends_early);
        }
    }
}
