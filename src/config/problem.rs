//! What is wrong with the settings, for the operator. Pure.

use std::fmt;

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, or `file:line` of a broken line.
    pub name: String,
    /// Its value, `[redacted]` where that is secret; `None` where none was given or it tells nothing.
    pub value: Option<String>,
    /// What was expected, or what to do.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} ({value}): {}", self.name, self.expected),
            None => write!(f, "{}: {}", self.name, self.expected),
        }
    }
}

/// Everything that is wrong with the settings. Displays one [`Problem`] a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    pub(super) problems: Vec<Problem>,
}

impl SettingsError {
    /// The problems, at least one: broken lines, then values in the order of [`SETTINGS`](super::SETTINGS), then
    /// unknown names.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.problems.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for SettingsError {}
