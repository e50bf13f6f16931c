//! Gathers names and values from the environment and a `.env` file, and changes neither. The environment wins.
//!
//! The file is read as dotenv files are: `NAME=value` lines, `#` comments, quotes. In plain and double-quoted values
//! `$NAME` is replaced, from the environment or from a line above, and `\` escapes; single quotes keep a password as it
//! is.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use super::problem::Problem;
use super::reader::concerns;

/// Everything in `file` and `env`, and what of it cannot be read. An absent file is an empty one.
///
/// A name in `env` wins over the same name in the file, even with an empty value, which unsets it.
pub(super) fn gather(
    file: &Path,
    env: impl Iterator<Item = (OsString, OsString)>,
) -> (BTreeMap<String, String>, Vec<Problem>) {
    let mut gathered = BTreeMap::new();
    let mut problems = Vec::new();

    match std::fs::read_to_string(file) {
        Ok(text) => read_lines(file, &text, &mut gathered, &mut problems),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            let expected = format!("expected a readable file, in UTF-8: {error}");
            problems.push(problem(file.display().to_string(), expected));
        }
    }

    for (name, value) in env {
        let Ok(name) = name.into_string() else { continue }; // OK: every setting has a name in ASCII
        match value.into_string() {
            Ok(value) => _ = gathered.insert(name, value),
            Err(_) if concerns(&name) => problems.push(problem(name, "expected a value in UTF-8".to_owned())),
            Err(_) => {}
        }
    }
    (gathered, problems)
}

/// Adds the entries of `text`, which is that of `file`.
fn read_lines(file: &Path, text: &str, gathered: &mut BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    // Editors on Windows begin a file with a byte-order mark; dotenvy takes spaces at the end of a file for a broken
    // line.
    let text = format!("{}\n", text.trim_start_matches('\u{feff}').trim_end());
    let lines_read = Cell::new(0);
    let mut entries = dotenvy::from_read_iter(LineByLine { rest: text.as_bytes(), lines_read: &lines_read });

    loop {
        let line = first_entry(&text, lines_read.get());
        let at = format!("{}:{line}", file.display());
        match entries.next() {
            None => break,
            Some(Ok((name, value))) => {
                if concerns(&name) && gathered.contains_key(&name) {
                    problems.push(problem(at, format!("{name} is set a second time; keep one of the lines")));
                }
                gathered.insert(name, value);
            }
            // OK: without the line, which may hold a secret
            Some(Err(_)) => problems.push(problem(
                at,
                "expected NAME=value; a value with spaces, quotes, $, # or \\ goes in single quotes".to_owned(),
            )),
        }
    }
}

/// Number of the first line behind the first `lines_read` that is neither blank nor a comment.
fn first_entry(text: &str, lines_read: usize) -> usize {
    let is_entry = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let skipped = text.lines().skip(lines_read).take_while(|line| !is_entry(line)).count();
    lines_read + skipped + 1
}

fn problem(name: String, expected: String) -> Problem {
    Problem { name, value: None, expected }
}

/// Gives at most one line a call, so that the buffer behind it never reads ahead and `lines_read` tells where it
/// stands: dotenvy names no line in its errors.
struct LineByLine<'a> {
    rest: &'a [u8],
    lines_read: &'a Cell<usize>,
}

impl Read for LineByLine<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let line = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
        let count = line.min(buffer.len());
        let (given, rest) = self.rest.split_at(count);
        buffer[..count].copy_from_slice(given);
        self.lines_read.set(self.lines_read.get() + usize::from(given.ends_with(b"\n")));
        self.rest = rest;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a file of this text gives, and the problems with it.
    fn read(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
        let (mut gathered, mut problems) = (BTreeMap::new(), Vec::new());
        read_lines(Path::new(".env"), text, &mut gathered, &mut problems);
        (gathered, problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn comments_quotes_carriage_returns_and_a_byte_order_mark_are_understood() {
        let (gathered, problems) =
            read("\u{feff}DB_HOST=db # main\r\n\r\n# note\r\nexport DB_PASS='pa$$ \"w#rd'\r\nDB_USER=\"the user\"  ");

        assert_eq!(problems, [""; 0]);
        assert_eq!(gathered["DB_HOST"], "db");
        assert_eq!(gathered["DB_PASS"], "pa$$ \"w#rd");
        assert_eq!(gathered["DB_USER"], "the user");
    }

    #[test]
    fn every_broken_line_is_named_with_its_number_and_without_its_text() {
        let (gathered, problems) = read(
            "# one\n\nDB_PASS hunter2\nDB_USER=sa\n\n# six\nDB_NAME=two words\n\n\
             DB_HOST=srv\\SQL\nDB_PASS='hunter2\n\nX=1",
        );

        let expected = "expected NAME=value; a value with spaces, quotes, $, # or \\ goes in single quotes";
        assert_eq!(problems, [3, 7, 9, 10].map(|line| format!(".env:{line}: {expected}")));
        assert_eq!(gathered, BTreeMap::from([("DB_USER".to_owned(), "sa".to_owned())]));
    }

    #[test]
    fn a_line_longer_than_any_buffer_counts_once() {
        let (gathered, problems) = read(&format!("LONG={}\nbroken\n", "x".repeat(100_000)));

        assert_eq!(gathered["LONG"].len(), 100_000);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with(".env:2: "), "{problems:?}");
    }

    #[test]
    fn a_setting_that_is_set_twice_is_refused() {
        let (_, problems) = read("DB_NAME=a\nOTHER=1\nOTHER=2\nDB_NAME=b");

        assert_eq!(problems, [".env:4: DB_NAME is set a second time; keep one of the lines"]);
    }

    #[test]
    fn the_environment_wins_over_the_file_and_an_absent_file_is_no_problem() {
        let directory = std::env::temp_dir().join(format!("trilane-dotenv-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&directory).expect("a new directory");
        let file = directory.join(".env");
        let env = || [("DB_HOST", "from-env"), ("REDIS_URL", "")].map(|(n, v)| (n.into(), v.into())).into_iter();

        let absent = gather(&file, env());
        std::fs::write(&file, "DB_HOST=from-file\nDB_NAME=jobs\nREDIS_URL=redis://from-file\n").expect("written");
        let present = gather(&file, env());
        let unreadable = gather(&directory, env());
        std::fs::remove_dir_all(&directory).expect("removed");

        assert_eq!((absent.0.len(), absent.1.len()), (2, 0));
        assert_eq!(present.1, []);
        assert_eq!(present.0["DB_HOST"], "from-env");
        assert_eq!(present.0["DB_NAME"], "jobs");
        assert_eq!(present.0["REDIS_URL"], "");
        assert!(unreadable.1[0].to_string().contains("expected a readable file"), "{:?}", unreadable.1);
    }

    #[cfg(unix)]
    #[test]
    fn a_setting_that_is_not_utf_8_is_refused_and_other_names_are_not_looked_at() {
        use std::os::unix::ffi::OsStringExt;
        let broken = || OsString::from_vec(vec![b'x', 0xff]);
        let env = [("DB_NAME".into(), broken()), ("OTHER".into(), broken()), (broken(), broken())];

        let (gathered, problems) = gather(Path::new("/nowhere/.env"), env.into_iter());

        assert_eq!(gathered.len(), 0);
        assert_eq!(problems.iter().map(Problem::to_string).collect::<Vec<_>>(), ["DB_NAME: expected a value in UTF-8"]);
    }

    proptest! {
        #[test]
        fn a_value_in_single_quotes_is_kept_as_it_is_or_its_line_named(value in "[ -&(-~]{0,40}|[a-z\\\\]{0,5}") {
            let (gathered, problems) = read(&format!("A='{value}'\nB=1"));

            // dotenvy takes a quote behind a backslash for a part of the value.
            let ends_open = value.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
            prop_assert_eq!(problems.len(), usize::from(ends_open));
            prop_assert_eq!(gathered.get("A"), (!ends_open).then_some(&value));
        }

        #[test]
        fn any_file_is_read_or_its_lines_named(text in "(\\PC{0,20}|[A-Z]{1,3}=|'|\"|\\$[A-Z{}]{0,3}|#|\\\\|\n|\r|\0){0,30}") {
            let (_, problems) = read(&text);

            let lines = text.trim_end().split('\n').count();
            for problem in problems {
                let line: usize = problem.split(':').nth(1).expect("a line").parse().expect("a number");
                prop_assert!((1..=lines).contains(&line), "{problem} of {lines}");
            }
        }
    }
}
