//! Reads single settings out of a map of names and values, and collects everything that is wrong with them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::problem::{Problem, SettingsError};
use super::secret::{REDACTED, Secret};
use super::table::{SETTINGS, Setting, setting};

/// What every setting of this program begins with, but for those that the original system had.
const PREFIX: &str = "TRILANE_";
/// Names that begin with this belong to the test suite.
const TEST_PREFIX: &str = "TRILANE_TEST_";
/// How much of a refused value a message repeats, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// Whether `name` is a setting, or claims to be one.
pub(super) fn concerns(name: &str) -> bool {
    setting(name).is_some() || name.to_ascii_uppercase().starts_with(PREFIX)
}

/// Whether Kubernetes set this for a Service in the namespace: one named `trilane` gives every pod `TRILANE_PORT`,
/// `TRILANE_SERVICE_HOST` and `TRILANE_PORT_8080_TCP_ADDR`, one named `db` gives `DB_PORT=tcp://10.0.0.7:1433`.
fn is_service_link(name: &str, value: &str) -> bool {
    let is_address = |protocol| name.contains("_PORT_") && name.contains(protocol);
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || ["_TCP", "_UDP", "_SCTP"].into_iter().any(is_address)
}

/// Reads settings by name; what cannot be read becomes a problem, and its default stands in until the end.
pub(super) struct Reader<'a> {
    env: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(env: &'a BTreeMap<String, String>, problems: Vec<Problem>) -> Reader<'a> {
        Reader { env, problems }
    }

    /// `settings` where nothing was wrong.
    pub(super) fn finish<T>(mut self, settings: T) -> Result<T, SettingsError> {
        let place = |problem: &Problem| SETTINGS.iter().position(|setting| setting.name == problem.name);
        self.problems.sort_by_key(place); // OK: a broken line has no place and comes first
        self.refuse_unknown_names();
        if self.problems.is_empty() {
            Ok(settings)
        } else {
            Err(SettingsError { problems: self.problems })
        }
    }

    /// The value given for `name`. One of nothing but white space counts as not given: compose files pass such.
    pub(super) fn given(&self, name: &str) -> Option<&'a str> {
        let value = self.env.get(name)?;
        (!value.trim().is_empty() && !is_service_link(name, value)).then_some(value.as_str())
    }

    /// The value of `name` in force: the one given, or its default, which may be empty.
    pub(super) fn value(&self, name: &str) -> &'a str {
        self.given(name).unwrap_or_else(|| setting(name).map_or("", |setting| setting.default))
    }

    /// Whether nothing was found wrong with any of `names`: a relation of a broken value would only confuse.
    pub(super) fn sound(&self, names: &[&str]) -> bool {
        !self.problems.iter().any(|problem| names.contains(&problem.name.as_str()))
    }

    /// Notes that `name`, with the value given or its default, is refused.
    pub(super) fn refuse(&mut self, name: &str, expected: impl Into<String>) {
        let value = match (setting(name), self.value(name)) {
            (_, "") => None,
            (Some(Setting { secret: false, .. }), value) => Some(shown(value)),
            _ => Some(REDACTED.to_owned()),
        };
        self.problems.push(Problem { name: name.to_owned(), value, expected: expected.into() });
    }

    /// A whole number within the range of `name`.
    pub(super) fn number<T: TryFrom<u64>>(&mut self, name: &'static str) -> T {
        let setting = known(name);
        self.parse(name, &whole_number_of(setting), |text| T::try_from(within(setting, text)?).ok())
    }

    /// A time in the unit of `name`.
    pub(super) fn duration(&mut self, name: &'static str) -> Duration {
        let setting = known(name);
        self.parse(name, &whole_number_of(setting), |text| time_within(setting, text))
    }

    /// A time in the unit of `name`, or `None` for `off`.
    pub(super) fn duration_or_off(&mut self, name: &'static str) -> Option<Duration> {
        let setting = known(name);
        self.parse(name, &whole_number_of(setting), |text| {
            let is_off = text.eq_ignore_ascii_case("off");
            if is_off {
                Some(None)
            } else {
                time_within(setting, text).map(Some)
            }
        })
    }

    /// The one of `all` that is called as the value of `name`, in any case.
    pub(super) fn choice<T: Copy>(&mut self, name: &'static str, all: &[T], as_str: fn(T) -> &'static str) -> T {
        self.parse(name, "", |text| all.iter().copied().find(|choice| as_str(*choice).eq_ignore_ascii_case(text)))
    }

    /// The value of `name`, as `read` reads it from the text given or from the default; `kind` says what beside the
    /// range was expected.
    pub(super) fn parse<T>(&mut self, name: &'static str, kind: &str, read: impl Fn(&str) -> Option<T>) -> T {
        let Setting { range, default, .. } = known(name);
        if let Some(text) = self.given(name) {
            if let Some(value) = read(text.trim()) {
                return value;
            }
            self.refuse(name, format!("expected {kind}{range} (default {default})"));
        }
        read(default).expect("every default is read by a test")
    }

    /// A text without control characters, of a length within the range of `name` and of `allowed` characters; white
    /// space around it is cut off. The default where none is given, and `None` where that is empty.
    pub(super) fn text(&mut self, name: &'static str, allowed: fn(char) -> bool) -> Option<String> {
        let setting = known(name);
        let text = self.given(name).map_or(setting.default, str::trim);
        if text.is_empty() {
            return None;
        }
        if !fits(text, setting, allowed) {
            self.refuse(name, format!("expected {}", setting.range));
        }
        Some(text.to_owned())
    }

    /// A secret of `allowed` characters as it was given, white space included, without control characters.
    pub(super) fn secret(&mut self, name: &'static str, allowed: fn(char) -> bool) -> Option<Secret> {
        let setting = known(name);
        let value = self.given(name)?;
        if !fits(value, setting, allowed) {
            self.refuse(name, format!("expected {}, no line break or other control character", setting.range));
        }
        Some(Secret::new(value))
    }

    fn refuse_unknown_names(&mut self) {
        let is_unknown = |name: &str, value: &str| {
            concerns(name) && setting(name).is_none() && !name.starts_with(TEST_PREFIX) && !is_service_link(name, value)
        };
        for (name, _) in self.env.iter().filter(|(name, value)| is_unknown(name, value)) {
            let expected = match nearest(name) {
                Some(known) => format!("no such setting; did you mean {known}?"),
                None => "no such setting; the README lists all".to_owned(),
            };
            // OK: without its value, which may be a secret under a misspelt name
            self.problems.push(Problem { name: name.clone(), value: None, expected });
        }
    }
}

/// The setting of a name that stands in this crate's own code.
fn known(name: &'static str) -> &'static Setting {
    setting(name).expect("every setting that is read stands in the table: a test reads each")
}

fn whole_number_of(setting: &Setting) -> String {
    let of = if setting.unit.is_empty() { "" } else { " of " };
    format!("a whole number{of}{}, ", setting.unit)
}

/// The whole number `text`, where it lies in the range of `setting`.
fn within(setting: &Setting, text: &str) -> Option<u64> {
    let (min, max) = setting.bounds()?;
    text.parse().ok().filter(|number| (min..=max).contains(number))
}

fn time_within(setting: &Setting, text: &str) -> Option<Duration> {
    let number = within(setting, text)?;
    Some(match setting.unit {
        "milliseconds" => Duration::from_millis(number),
        "days" => Duration::from_hours(24 * number), // OK: a range of days ends far below 2⁴⁷
        _ => Duration::from_secs(number),
    })
}

/// Whether `text` has a length within the range of `setting` and only `allowed` characters.
pub(super) fn fits(text: &str, setting: &Setting, allowed: fn(char) -> bool) -> bool {
    let chars = text.chars().count() as u64; // OK: usize is at most 64 bits
    setting.bounds().is_none_or(|(min, max)| (min..=max).contains(&chars))
        && text.chars().all(|char| !char.is_control() && allowed(char))
}

/// The known setting whose name differs from `name` in the fewest places, where those are fewer than half.
fn nearest(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let own = |name: &'_ str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let wanted = own(&upper);
    let distance = |known: &str| strsim::damerau_levenshtein(&wanted, &own(known));
    let nearest = SETTINGS.iter().map(|setting| setting.name).min_by_key(|known| distance(known))?;
    (2 * distance(nearest) < wanted.len()).then_some(nearest)
}

/// `value` on one line, cut to [`SHOWN_CHARS_MAX`].
fn shown(value: &str) -> String {
    let line: String = value.trim().escape_debug().collect();
    crate::job::cut(&line, SHOWN_CHARS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(env: &[(&str, &str)], read: impl Fn(&mut Reader<'_>)) -> Vec<String> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut reader = Reader::new(&env, Vec::new());
        read(&mut reader);
        reader.finish(()).err().map_or_else(Vec::new, |error| error.problems().iter().map(Problem::to_string).collect())
    }

    #[test]
    fn a_number_outside_its_range_is_named_with_range_unit_and_default() {
        for (value, shown) in [("0", "0"), ("1001", "1001"), ("-1", "-1"), (" ten ", "ten"), ("1e2", "1e2")] {
            let found = problems(&[("TRILANE_WORKERS", value)], |reader| {
                assert_eq!(reader.number::<usize>("TRILANE_WORKERS"), 10);
            });

            let expected = "expected a whole number of threads, 1 to 1,000 (default 10)";
            assert_eq!(found, [format!("TRILANE_WORKERS ({shown}): {expected}")]);
        }
    }

    #[test]
    fn a_number_without_a_unit_is_named_without_one() {
        let found = problems(&[("DB_PORT", "70000")], |reader| assert_eq!(reader.number::<u16>("DB_PORT"), 1433));

        assert_eq!(found, ["DB_PORT (70000): expected a whole number, 1 to 65,535 (default 1433)"]);
    }

    #[test]
    fn both_ends_of_a_range_are_allowed() {
        for value in ["1", "1000"] {
            assert_eq!(
                problems(&[("TRILANE_WORKERS", value)], |reader| _ = reader.number::<usize>("TRILANE_WORKERS")),
                [""; 0]
            );
        }
    }

    #[test]
    fn a_choice_is_read_in_any_case_and_refused_with_the_choices() {
        let read = |reader: &mut Reader<'_>| _ = reader.choice("TRILANE_MIGRATE", &["auto", "off"], |choice| choice);

        assert_eq!(problems(&[("TRILANE_MIGRATE", "OFF")], read), [""; 0]);
        assert_eq!(
            problems(&[("TRILANE_MIGRATE", "no")], read),
            ["TRILANE_MIGRATE (no): expected auto or off (default auto)"]
        );
    }

    #[test]
    fn a_time_that_may_be_off_is_off_by_default_and_in_any_case() {
        let name = "TRILANE_STARVATION_SECONDS";
        let read = |value, expected| {
            problems(&[(name, value)], |reader| assert_eq!(reader.duration_or_off(name), expected, "{value}"))
        };

        assert_eq!(read("", None), [""; 0]);
        assert_eq!(read("Off", None), [""; 0]);
        assert_eq!(read("60", Some(Duration::from_mins(1))), [""; 0]);
        assert_eq!(
            read("0", None),
            [format!("{name} (0): expected a whole number of seconds, 1 to 86,400, or off (default off)")]
        );
    }

    #[test]
    fn a_text_with_a_control_character_or_of_a_wrong_length_is_refused_on_one_line() {
        let read = |reader: &mut Reader<'_>| _ = reader.text("DB_NAME", |_| true);

        assert_eq!(problems(&[("DB_NAME", "a\nb")], read), ["DB_NAME (a\\nb): expected 1 to 128 ASCII characters"]);
        assert_eq!(problems(&[("DB_NAME", &"é".repeat(128))], read), [""; 0]);
        let long = problems(&[("DB_NAME", &"é".repeat(129))], read);
        assert_eq!(long, [format!("DB_NAME ({}…): expected 1 to 128 ASCII characters", "é".repeat(79))]);
    }

    #[test]
    fn a_secret_keeps_its_spaces_and_is_never_shown() {
        let read = |reader: &mut Reader<'_>| {
            assert_eq!(reader.secret("DB_PASS", |_| true).expect("given").expose().trim_end_matches('\n'), " hunter2 ");
        };

        assert_eq!(problems(&[("DB_PASS", " hunter2 ")], read), [""; 0]);
        let refused = problems(&[("DB_PASS", " hunter2 \n")], read);
        assert!(refused[0].starts_with("DB_PASS ([redacted]): expected 1 to 128 ASCII char"), "{refused:?}");
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest_known_and_without_its_value() {
        let unknown = |name| problems(&[(name, "hunter2")], |_| ());

        assert_eq!(unknown("TRILANE_WORKRES"), ["TRILANE_WORKRES: no such setting; did you mean TRILANE_WORKERS?"]);
        assert_eq!(unknown("TRILANE_REDIS_URL"), ["TRILANE_REDIS_URL: no such setting; did you mean REDIS_URL?"]);
        assert_eq!(unknown("trilane_workers"), ["trilane_workers: no such setting; did you mean TRILANE_WORKERS?"]);
        assert_eq!(unknown("TRILANE_XYZZY_42"), ["TRILANE_XYZZY_42: no such setting; the README lists all"]);
    }

    #[test]
    fn names_of_tests_of_kubernetes_services_and_of_others_are_left_alone() {
        for (name, value) in [
            ("TRILANE_TEST_POSTGRES", "x"),
            ("TRILANE_PORT", "tcp://10.0.0.7:8080"),
            ("TRILANE_SERVICE_HOST", "10.0.0.7"),
            ("TRILANE_SERVICE_PORT_HTTP", "8080"),
            ("TRILANE_PORT_8080_TCP", "tcp://10.0.0.7:8080"),
            ("TRILANE_PORT_8080_TCP_ADDR", "10.0.0.7"),
            ("PATH", "/bin"),
            ("DB_PORT", "tcp://10.0.0.7:1433"),
        ] {
            let found = problems(&[(name, value)], |reader| assert_eq!(reader.number::<u16>("DB_PORT"), 1433));

            assert_eq!(found, [""; 0], "{name}");
        }
    }
}
