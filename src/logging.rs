//! Log lines: one event a line, with its thread and its fields, as text or as JSON, to standard error.

use std::fmt::Write as _;
use std::io::Write as _;

use log::kv::{Key, Value, VisitSource};

use crate::config::{LogFormat, Settings};

/// Sends all log lines of the process to standard error, as the settings say.
pub fn init(settings: &Settings) {
    let format = settings.log_format;
    let mut builder = env_logger::Builder::new();
    builder.filter_level(settings.log);
    builder.filter_module("odbc_api", log::LevelFilter::Off);
    builder.filter_module("r2d2", log::LevelFilter::Off);
    for chatty in ["ureq", "ureq_proto", "rustls"] {
        builder.filter_module(chatty, settings.log.min(log::LevelFilter::Warn));
    }
    builder.format(move |out, record| {
        let line = match format {
            LogFormat::Text => text_line(record),
            LogFormat::Json => json_line(record),
        };
        writeln!(out, "{line}")
    });
    // OK: fails only where a program that uses the library has set up its own log, which then is the one to use
    let _ = builder.try_init();
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

fn thread() -> String {
    std::thread::current().name().unwrap_or("unnamed").to_owned()
}

fn text_line(record: &log::Record<'_>) -> String {
    let mut fields = TextFields(format!("{} {:<5} {}", now(), record.level(), one_line(&record.args().to_string())));
    let _ = write!(fields.0, " thread={}", thread()); // OK: writing to a String cannot fail
    let _ = record.key_values().visit(&mut fields); // OK: as above
    fields.0
}

fn json_line(record: &log::Record<'_>) -> String {
    let mut fields = JsonFields(serde_json::Map::new());
    fields.0.insert("time".into(), now().into());
    fields.0.insert("level".into(), record.level().as_str().to_ascii_lowercase().into());
    fields.0.insert("thread".into(), thread().into());
    fields.0.insert("message".into(), record.args().to_string().into());
    let _ = record.key_values().visit(&mut fields); // OK: the visitor below never fails
    serde_json::Value::Object(fields.0).to_string()
}

struct TextFields(String);

impl<'kvs> VisitSource<'kvs> for TextFields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let value = one_line(&value.to_string());
        let needs_quotes = value.is_empty() || value.contains([' ', '"', '=']);
        // OK: writing to a String cannot fail
        let _ = if needs_quotes {
            write!(self.0, " {key}={value:?}")
        } else {
            write!(self.0, " {key}={value}")
        };
        Ok(())
    }
}

struct JsonFields(serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for JsonFields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        let number =
            value.to_i64().map(serde_json::Value::from).or_else(|| value.to_f64().map(serde_json::Value::from));
        self.0.insert(key.to_string(), number.unwrap_or_else(|| value.to_string().into()));
        Ok(())
    }
}

/// An event is one line, whatever a driver or a handler puts into its message.
fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', " | ").replace(|character: char| character.is_control(), "\u{FFFD}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<T>(see: impl Fn(&log::Record<'_>) -> T) -> T {
        let fields = [("job", "a b"), ("lane", "high")];
        see(&log::Record::builder()
            .args(format_args!("two\nlines"))
            .level(log::Level::Warn)
            .key_values(&fields)
            .build())
    }

    #[test]
    fn a_text_line_is_one_line_with_its_fields_behind_it() {
        let line = record(text_line);

        assert!(line.contains("WARN  two | lines thread="), "{line}");
        assert!(line.ends_with("job=\"a b\" lane=high"), "{line}");
    }

    #[test]
    fn a_json_line_is_an_object() {
        let line: serde_json::Value = serde_json::from_str(&record(json_line)).expect("JSON");

        assert_eq!((line["message"].as_str(), line["job"].as_str()), (Some("two\nlines"), Some("a b")));
    }
}
