//! A driver is tried before it is trusted: 100 KB of text with emoji goes to the database and back before anything else does.

use odbc_api::Connection;

use super::batch::Counts;
use super::dialect::Dialect;
use super::error::StoreError;
use super::pool::begin_session;
use super::session::{Param, Session, TextMode};

/// UTF-8 bytes of the text that is sent.
const PROBE_BYTES: usize = 100 * 1024;

/// What the probe found.
pub(super) struct Found {
    pub(super) text: TextMode,
    pub(super) counts: Counts,
    /// The driver, and how text goes through it.
    pub(super) driver: String,
}

/// Finds out how text goes through this driver unchanged.
pub(super) fn text_mode(
    connection: Connection<'static>,
    dialect: Dialect,
    connection_string: &str,
) -> Result<Found, StoreError> {
    // Narrow text loses emoji on the way to SQL Server, so it is not even tried there.
    let modes: &[TextMode] = match dialect {
        Dialect::Mssql => &[TextMode::Wide, TextMode::WideChunks],
        Dialect::Postgres | Dialect::Sqlite => &[TextMode::Narrow, TextMode::Wide],
    };
    let driver = driver_name(connection_string);
    let mut session = Session::new(connection, dialect, modes[0], Counts::Units);
    // With the settings of every later session, for on SQL Server they decide how much text comes back.
    begin_session(&mut session)?;
    let mut findings = Vec::new();
    for &mode in modes {
        session.set_text_mode(mode);
        match comes_back_unchanged(&mut session) {
            Ok(counts) => return Ok(Found { text: mode, counts, driver: format!("{driver}, {}", describe(mode)) }),
            Err(finding @ StoreError::Unavailable(_)) => return Err(finding),
            Err(finding) => findings.push(format!("{}: {finding}", describe(mode))),
        }
    }
    Err(StoreError::Corrupt(format!(
        "the ODBC driver {driver} changes text on its way to {} and back, so jobs would be damaged; use another driver or version ({})",
        dialect.as_str(),
        findings.join("; ")
    )))
}

/// Fails unless the text comes back as it was sent. Tells what SQL Server counted in it.
fn comes_back_unchanged(session: &mut Session) -> Result<Counts, StoreError> {
    let sent = probe_text();
    let (mut received, mut counted) = (String::new(), None);
    let is_counted = session.dialect() == Dialect::Mssql;
    session.query("probe", &[Param::Text(&sent)], |row| {
        received = row.text(1)?;
        counted = if is_counted {
            usize::try_from(row.int(2)?).ok()
        } else {
            None
        };
        Ok(())
    })?;
    if received == sent {
        let is_right = |counts: &Counts| !is_counted || counted == Some(counts.of(&sent));
        return [Counts::Units, Counts::Characters].into_iter().find(is_right).ok_or_else(|| {
            StoreError::Corrupt(format!("the server counts {counted:?} characters in {}", Counts::Characters.of(&sent)))
        });
    }
    let same = sent.chars().zip(received.chars()).take_while(|(a, b)| a == b).count();
    let (sent, received) = (sent.chars().count(), received.chars().count());
    Err(StoreError::Corrupt(format!("sent {sent} characters, got {received}, the first {same} of them unchanged")))
}

/// Text in which a cut or a change at any place shows: numbered pieces of one to four UTF-8 bytes a character.
fn probe_text() -> String {
    let mut text = String::with_capacity(PROBE_BYTES + 64);
    let mut number = 0;
    while text.len() < PROBE_BYTES {
        text.push_str(&number.to_string());
        text.push_str(" \"quoted\" 'and' \\ ä ß 漢字 🦀👩\u{200d}🚀\n");
        number += 1;
    }
    text
}

fn describe(mode: TextMode) -> &'static str {
    match mode {
        TextMode::Narrow => "text as UTF-8",
        TextMode::Wide => "text as UTF-16",
        TextMode::WideChunks => "text as UTF-16 in chunks of 4,000",
    }
}

/// The driver or data source that a connection string names.
fn driver_name(connection_string: &str) -> &str {
    named(connection_string, "Driver").or_else(|| named(connection_string, "DSN")).unwrap_or("(unnamed)")
}

/// What a connection string says of `key`.
fn named<'s>(connection_string: &'s str, key: &str) -> Option<&'s str> {
    connection_string.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case(key).then(|| value.trim().trim_matches(['{', '}']))
    })
}

/// Whether nobody checks whom this speaks to: FreeTDS takes any certificate, unless its own file names the authorities. On this host only who
/// asks for encryption cares.
pub(super) fn is_unverified(connection_string: &str, dialect: Dialect) -> bool {
    let named = |key| named(connection_string, key).unwrap_or_default().to_ascii_lowercase();
    let driver = driver_name(connection_string).to_ascii_lowercase();
    if dialect != Dialect::Mssql || !(driver.contains("freetds") || driver.contains("tdsodbc")) {
        return false;
    }
    let is_encrypted = !matches!(named("Encrypt").as_str(), "" | "no" | "false" | "0" | "optional")
        || !matches!(named("Encryption").as_str(), "" | "off");
    let server = named("Server");
    let host = server.trim_start_matches("tcp:").split([',', '\\']).next().unwrap_or_default();
    let is_here = host.starts_with("127.") || matches!(host, "" | "localhost" | "::1" | "." | "(local)");
    is_encrypted || !is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_holds_every_width_of_character() {
        let text = probe_text();

        assert!(text.len() >= PROBE_BYTES);
        assert!((1..=4).all(|bytes| text.chars().any(|character| character.len_utf8() == bytes)));
    }

    #[test]
    fn freetds_is_trusted_without_a_check_only_on_this_host_and_without_encryption() {
        let of = |text| is_unverified(text, Dialect::Mssql);

        assert!(of("Driver={FreeTDS};Server=db.example,1433;UID=x"));
        assert!(of("Driver={FreeTDS};Server=127.0.0.1;Port=1433;Encryption=require"));
        assert!(of("Driver=/usr/lib/libtdsodbc.so;Server=tcp:10.0.0.7;Encrypt=yes"));
        assert!(!of("Driver={FreeTDS};Server=127.0.0.1,1433;Encrypt=no"));
        assert!(!of("Driver={ODBC Driver 18 for SQL Server};Server=db.example;Encrypt=yes"));
    }

    #[test]
    fn the_driver_is_named_without_the_secrets_around_it() {
        assert_eq!(driver_name("Server=x;PWD=secret;driver={FreeTDS};"), "FreeTDS");
    }
}
