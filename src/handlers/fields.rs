//! Reads the fields of one TOML table and notes every problem with its place, so that all are told at once. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong with a handlers file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the file, as it was given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

/// The problems found so far, in a text of a name.
pub(super) struct Problems<'t> {
    name: &'t str,
    text: &'t str,
    found: Vec<(usize, String)>,
}

/// Byte range of something in the text.
pub(super) type Span = Range<usize>;

impl<'t> Problems<'t> {
    pub(super) fn new(name: &'t str, text: &'t str) -> Problems<'t> {
        Problems { name, text, found: Vec::new() }
    }

    pub(super) fn add(&mut self, span: &Span, message: impl Into<String>) {
        self.found.push((span.start, message.into()));
    }

    /// All of them, in the order of the text.
    pub(super) fn into_list(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|(start, _)| *start);
        let found = std::mem::take(&mut self.found);
        found.into_iter().map(|(start, message)| self.placed(start, message)).collect()
    }

    fn placed(&self, start: usize, message: String) -> Problem {
        let before = self.text.get(..start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Problem {
            file: self.name.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message,
        }
    }
}

/// The fields of the table of one job type. Each is taken once; what is left over at the end is unknown.
pub(super) struct Fields<'f, 't, 'i> {
    job_type: &'f str,
    problems: &'f mut Problems<'t>,
    left: BTreeMap<String, (Span, Spanned<DeValue<'i>>)>,
}

impl<'f, 't, 'i> Fields<'f, 't, 'i> {
    pub(super) fn new(job_type: &'f str, table: DeTable<'i>, problems: &'f mut Problems<'t>) -> Fields<'f, 't, 'i> {
        let left = table.into_iter().map(|(key, value)| (key.get_ref().to_string(), (key.span(), value))).collect();
        Fields { job_type, problems, left }
    }

    /// Notes a problem of this table.
    pub(super) fn refuse(&mut self, span: &Span, message: impl fmt::Display) {
        self.problems.add(span, format!("{}: {message}", self.job_type));
    }

    /// Where the field is, if it is there and not taken.
    pub(super) fn place_of(&self, key: &str) -> Option<Span> {
        self.left.get(key).map(|(span, _)| span.clone())
    }

    /// Takes a whole number in `range`.
    pub(super) fn number(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let number = as_number(value.get_ref()).filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            self.refuse(&value.span(), format_args!("`{key}` must be a whole number from {least} to {most}"));
        }
        number
    }

    /// Takes whole numbers, each in `range`.
    pub(super) fn numbers(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<Vec<Spanned<u64>>> {
        let value = self.take(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.refuse(&value.span(), format_args!("`{key}` must be an array of whole numbers"));
            return None;
        };
        let mut numbers = Vec::new();
        for item in items {
            let number = as_number(item.get_ref()).filter(|number| range.contains(number));
            if number.is_none() {
                let (least, most) = (range.start(), range.end());
                self.refuse(&item.span(), format_args!("`{key}` holds whole numbers from {least} to {most}"));
            }
            numbers.extend(number.map(|number| Spanned::new(item.span(), number)));
        }
        Some(numbers)
    }

    /// Takes a text.
    pub(super) fn text(&mut self, key: &str) -> Option<Spanned<String>> {
        let value = self.take(key)?;
        let text = as_text(&value);
        if text.is_none() {
            self.refuse(&value.span(), format_args!("`{key}` must be a text in quotes"));
        }
        text
    }

    /// Takes an array of texts.
    pub(super) fn texts(&mut self, key: &str) -> Option<Spanned<Vec<Spanned<String>>>> {
        let value = self.take(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.refuse(
                &value.span(),
                format_args!("`{key}` must be an array of texts, such as [\"/bin/program\", \"--option\"]"),
            );
            return None;
        };
        let mut texts = Vec::new();
        for item in items {
            match as_text(item) {
                Some(text) => texts.push(text),
                None => self.refuse(&item.span(), format_args!("`{key}` holds texts in quotes")),
            }
        }
        Some(Spanned::new(value.span(), texts))
    }

    /// Takes a table of texts. A text `env:NAME` stands for the variable of that name in `environment`.
    pub(super) fn variables(&mut self, key: &str, environment: &Environment<'_>) -> Vec<(Spanned<String>, String)> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.refuse(
                &value.span(),
                format_args!("`{key}` must be a table of texts, such as {{ Name = \"value\" }}"),
            );
            return Vec::new();
        };
        let mut variables = Vec::new();
        for (name, value) in table {
            match as_text(value) {
                Some(text) => {
                    let name = Spanned::new(name.span(), name.get_ref().to_string());
                    variables.extend(self.resolve(text, environment).map(|value| (name, value)));
                }
                None => self.refuse(&value.span(), format_args!("`{key}` holds texts in quotes")),
            }
        }
        variables
    }

    /// `text` itself, or the value of the variable that it names by `env:NAME`.
    pub(super) fn resolve(&mut self, text: Spanned<String>, environment: &Environment<'_>) -> Option<String> {
        let Some(name) = text.get_ref().strip_prefix(ENVIRONMENT_PREFIX) else {
            return Some(text.into_inner());
        };
        let value = environment(name).filter(|value| !value.is_empty());
        if value.is_none() {
            self.refuse(&text.span(), format_args!("the environment variable `{name}` must be set, and not be empty"));
        }
        value
    }

    /// Takes `true`; `false` is refused.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        let Some(value) = self.take(key) else { return false };
        let is_true = value.get_ref().as_bool() == Some(true);
        if !is_true {
            self.refuse(&value.span(), format_args!("`{key}` can only be true"));
        }
        is_true
    }

    /// Takes a field that fits only another kind of handler, and says so.
    pub(super) fn refuse_field(&mut self, key: &str, belongs_to: &str) {
        if let Some((span, _)) = self.left.remove(key) {
            self.refuse(&span, format_args!("`{key}` belongs to a handler with `{belongs_to}`"));
        }
    }

    /// Takes a field unread.
    pub(super) fn forget(&mut self, key: &str) {
        self.left.remove(key);
    }

    /// Refuses every field that was not taken; `known` are all that a table can have.
    pub(super) fn finish(mut self, known: &[&str]) {
        for (key, (span, value)) in std::mem::take(&mut self.left) {
            let job_type = self.job_type;
            let message = if value.get_ref().is_table() {
                format!("unknown key `{key}`; a type with a dot is written in quotes: [\"{job_type}.{key}\"]")
            } else {
                let distance = |known: &&&str| strsim::damerau_levenshtein(known, &key);
                let near = known.iter().min_by_key(distance).filter(|near| distance(near) <= 1 + key.len() / 5);
                match near {
                    Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                    None => format!("unknown key `{key}`; expected one of {}", known.join(", ")),
                }
            };
            self.refuse(&span, message);
        }
    }

    fn take(&mut self, key: &str) -> Option<Spanned<DeValue<'i>>> {
        self.left.remove(key).map(|(_, value)| value)
    }
}

/// Looks an environment variable up; `None` where it is not set or not UTF-8.
pub type Environment<'e> = dyn Fn(&str) -> Option<String> + 'e;

/// Start of a text that names an environment variable.
const ENVIRONMENT_PREFIX: &str = "env:";

fn as_number(value: &DeValue<'_>) -> Option<u64> {
    let number = value.as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn as_text(value: &Spanned<DeValue<'_>>) -> Option<Spanned<String>> {
    value.get_ref().as_str().map(|text| Spanned::new(value.span(), text.to_owned()))
}
