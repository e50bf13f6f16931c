//! Reads the handlers file, TOML that maps job types to handlers. In place of the built-in list; read once, at start-up.
//!
//! ```toml
//! [send_email]
//! command = ["/usr/local/bin/send-email", "--stdin"]
//! directory = "/srv/mail"                 # absolute; that of the service by default
//! env = { MODE = "live", KEY = "env:MAIL_KEY" }
//! permanent_exit_codes = [64, 65]         # no other attempt after these; 0 is done and 75 a retry
//! timeout_seconds = 30                    # for jobs that name none; up to a day
//! retry_base_ms = 1000                    # both or none
//! retry_cap_ms = 60000
//!
//! [process_payment]
//! http = "https://example.internal/hooks/pay"
//! headers = { Authorization = "env:PAY_TOKEN" }
//! ca_file = "/etc/ssl/internal-ca.pem"    # the public authorities by default
//!
//! [noop]
//! log = true
//!
//! ["*"]                                   # every other type
//! log = true
//! ```
//!
//! `env:NAME` stands for an environment variable of the service, so that secrets stay out of the file: as the URL, as a
//! header's value, as a value in `env`. It must be set. Whatever is wrong in the file is told at once, with its place.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::command::JOB_VARIABLES;
use super::fields::{Environment, Fields, Problem, Problems, Span};
use super::{CommandHandler, EVERY_OTHER_TYPE, EXIT_RETRY, Entry, HttpHandler, HttpHandlerError, LogHandler, Registry};
use crate::job::{TIMEOUT_MAX, is_type_name};
use crate::retry::{DELAY_MAX, RetryPolicy};

/// The largest handlers file, in bytes.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Fields of every handler; exactly one of the first three.
const COMMON_FIELDS: [&str; 6] = ["command", "http", "log", "timeout_seconds", "retry_base_ms", "retry_cap_ms"];
const COMMAND_FIELDS: [&str; 3] = ["directory", "env", "permanent_exit_codes"];
const HTTP_FIELDS: [&str; 2] = ["headers", "ca_file"];

/// Why a handlers file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HandlersFileError {
    /// It cannot be read.
    #[error("cannot read the handlers file {path}: {error}")]
    Unreadable {
        /// As it was given.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// It can be read and is wrong.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// Reads the handlers file at `path`.
///
/// # Errors
/// [`HandlersFileError::Unreadable`], also when it is larger than [`FILE_BYTES_MAX`] or not UTF-8;
/// [`HandlersFileError::Invalid`] with all that is wrong in it.
pub fn load(path: &Path) -> Result<Registry, HandlersFileError> {
    load_under(path, &|variable| std::env::var(variable).ok())
}

/// As [`load`], with `environment` to look up what the file names by `env:NAME`, say where a `.env` file adds to it.
///
/// # Errors
/// Those of [`load`].
pub fn load_under(path: &Path, environment: &Environment<'_>) -> Result<Registry, HandlersFileError> {
    let name = path.display().to_string();
    match read(path) {
        Ok(text) => parse_under(&text, &name, environment),
        Err(error) => Err(HandlersFileError::Unreadable { path: name, error }),
    }
}

/// Reads the text of a handlers file; `name` stands for the file in messages.
///
/// # Errors
/// [`HandlersFileError::Invalid`] with all that is wrong in it.
pub fn parse(text: &str, name: &str) -> Result<Registry, HandlersFileError> {
    parse_under(text, name, &|variable| std::env::var(variable).ok())
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

fn parse_under(text: &str, name: &str, environment: &Environment<'_>) -> Result<Registry, HandlersFileError> {
    let mut problems = Problems::new(name, text);
    let (document, syntax_errors) = DeTable::parse_recoverable(text);
    for error in &syntax_errors {
        problems.add(&error.span().unwrap_or_default(), error.message());
    }
    let mut registry = Registry::new();
    if syntax_errors.is_empty() {
        if document.get_ref().is_empty() {
            problems.add(&(0..0), "names no job type, such as [send_email]");
        }
        for (job_type, value) in document.into_inner() {
            add_type(&mut registry, &job_type.span(), job_type.get_ref(), value, &mut problems, environment);
        }
    }
    match problems.into_list() {
        list if list.is_empty() => Ok(registry),
        list => Err(HandlersFileError::Invalid(list)),
    }
}

/// Adds one type to the registry, or its problems to the others.
fn add_type(
    registry: &mut Registry,
    place: &Span,
    job_type: &str,
    value: Spanned<DeValue<'_>>,
    problems: &mut Problems<'_>,
    environment: &Environment<'_>,
) {
    if job_type != EVERY_OTHER_TYPE && !is_type_name(job_type) {
        problems.add(place, format!("`{job_type}` cannot be a job type: 1 to 100 of A-Z a-z 0-9 . _ : -, or \"*\""));
        return;
    }
    let DeValue::Table(table) = value.into_inner() else {
        problems.add(place, format!("`{job_type}` must be a table, [{job_type}], with the handler of that type in it"));
        return;
    };
    let mut fields = Fields::new(job_type, table, problems);
    let entry = entry_of(place, &mut fields, environment);
    fields.finish(&[&COMMON_FIELDS[..], &COMMAND_FIELDS, &HTTP_FIELDS].concat());
    if let Some(entry) = entry {
        *registry.register(job_type, LogHandler) = entry;
    }
}

fn entry_of(place: &Span, fields: &mut Fields<'_, '_, '_>, environment: &Environment<'_>) -> Option<Entry> {
    let timeout = fields.number("timeout_seconds", 1..=TIMEOUT_MAX.as_secs()).map(Duration::from_secs);
    let retry = retry_of(fields);
    let kinds: Vec<&str> = COMMON_FIELDS[..3].iter().copied().filter(|kind| fields.place_of(kind).is_some()).collect();
    let [kind] = kinds[..] else {
        let found = if kinds.is_empty() {
            "none".to_owned()
        } else {
            kinds.join(" and ")
        };
        fields.refuse(place, format_args!("expected exactly one of `command`, `http`, `log = true`; found {found}"));
        for kind in COMMON_FIELDS.iter().chain(&COMMAND_FIELDS).chain(&HTTP_FIELDS) {
            fields.forget(kind); // OK: whether they are right depends on the kind
        }
        return None;
    };
    if kind != "command" {
        for field in COMMAND_FIELDS {
            fields.refuse_field(field, "command");
        }
    }
    if kind != "http" {
        for field in HTTP_FIELDS {
            fields.refuse_field(field, "http");
        }
    }
    let entry = match kind {
        "command" => Entry::new(command_of(fields, environment)?),
        "http" => Entry::new(http_of(fields, environment)?),
        _ => fields.flag("log").then(|| Entry::new(LogHandler))?,
    };
    Some(Entry { retry, timeout, ..entry })
}

fn retry_of(fields: &mut Fields<'_, '_, '_>) -> Option<RetryPolicy> {
    let delay_max_ms = DELAY_MAX.as_secs() * 1_000;
    let base_place = fields.place_of("retry_base_ms");
    let cap_place = fields.place_of("retry_cap_ms");
    let base_ms = fields.number("retry_base_ms", 1..=delay_max_ms);
    let cap_ms = fields.number("retry_cap_ms", 1..=delay_max_ms);
    match (base_place, cap_place) {
        (Some(place), None) => fields.refuse(&place, "`retry_base_ms` needs `retry_cap_ms` beside it"),
        (None, Some(place)) => fields.refuse(&place, "`retry_cap_ms` needs `retry_base_ms` beside it"),
        (_, Some(place)) if base_ms.zip(cap_ms).is_some_and(|(base, cap)| base > cap) => {
            fields.refuse(&place, "`retry_cap_ms` must not be below `retry_base_ms`, the first delay");
        }
        _ => {}
    }
    let (base, cap) = (Duration::from_millis(base_ms?), Duration::from_millis(cap_ms?));
    Some(RetryPolicy { base, cap })
}

fn command_of(fields: &mut Fields<'_, '_, '_>, environment: &Environment<'_>) -> Option<CommandHandler> {
    let arguments = fields.texts("command");
    let directory = fields.text("directory");
    let variables = fields.variables("env", environment);
    let codes = fields.numbers("permanent_exit_codes", 1..=255).unwrap_or_default();

    for code in codes.iter().filter(|code| *code.get_ref() == EXIT_RETRY as u64) {
        fields.refuse(&code.span(), format_args!("exit code {EXIT_RETRY} always asks for another attempt"));
    }
    for (name, value) in &variables {
        let text = name.get_ref();
        if text.is_empty() || text.contains(['=', '\0']) || value.contains('\0') {
            fields.refuse(&name.span(), format_args!("`{}` cannot be a variable of that value", text.escape_debug()));
        } else if JOB_VARIABLES.contains(&text.as_str()) {
            fields.refuse(&name.span(), format_args!("`{text}` is set by Trilane itself"));
        }
    }
    if let Some(place) = directory.as_ref().filter(|path| !path.get_ref().starts_with('/')).map(Spanned::span) {
        fields.refuse(&place, "`directory` must be an absolute path");
    }
    let arguments = arguments?;
    let place = arguments.span();
    let Some((program, arguments)) = arguments.get_ref().split_first() else {
        fields.refuse(&place, "`command` must name a program");
        return None;
    };
    if program.get_ref().is_empty() || (program.get_ref().contains('/') && !program.get_ref().starts_with('/')) {
        fields.refuse(&program.span(), "the program must be an absolute path, or a name to be found in PATH");
    }
    for argument in std::iter::once(program).chain(arguments).filter(|text| text.get_ref().contains('\0')) {
        fields.refuse(&argument.span(), "an argument cannot hold a NUL character");
    }
    let mut handler =
        CommandHandler::new(program.get_ref(), arguments.iter().map(|argument| argument.get_ref().as_str()))
            .permanent_exit_codes(codes.iter().filter_map(|code| i32::try_from(*code.get_ref()).ok()));
    for (name, value) in variables {
        handler = handler.variable(name.into_inner(), value);
    }
    Some(match directory {
        Some(directory) => handler.directory(directory.into_inner()),
        None => handler,
    })
}

fn http_of(fields: &mut Fields<'_, '_, '_>, environment: &Environment<'_>) -> Option<HttpHandler> {
    let url = fields.text("http");
    let headers = fields.variables("headers", environment);
    let ca_file = fields.text("ca_file");

    let url = url?;
    let place = url.span();
    let url = fields.resolve(url, environment)?;
    let mut handler = accept(fields, &place, HttpHandler::new(&url))?;
    for (name, value) in headers {
        // A refused header must not hide the problems of the others.
        let with_header = handler.clone().header(name.get_ref(), &value);
        handler = accept(fields, &name.span(), with_header).unwrap_or(handler);
    }
    match ca_file {
        Some(path) => accept(fields, &path.span(), handler.ca_file(Path::new(path.get_ref()))),
        None => Some(handler),
    }
}

fn accept(
    fields: &mut Fields<'_, '_, '_>,
    place: &Span,
    result: Result<HttpHandler, HttpHandlerError>,
) -> Option<HttpHandler> {
    result.map_err(|error| fields.refuse(place, error)).ok()
}

/// The problems, one on a line.
fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
