//! A Rust file taken apart into code, comments and string literals, so that a rule about one is not fooled by the others.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// One Rust file. `code` and `comments` have its lines, so that a line number means the same in each.
pub(crate) struct Source {
    /// From the root of the repository, with slashes.
    pub(crate) path: String,
    /// Without comments, and with every string literal replaced by its number in `literals`, in quotes: `"0"`, `"1"`, …
    /// What is compiled for tests alone is blank.
    pub(crate) code: String,
    /// The comments, with their slashes.
    pub(crate) comments: String,
    literals: Vec<String>,
    test_modules: Vec<String>,
}

/// A string literal, and the line where it begins, from 1.
pub(crate) struct Literal<'s> {
    pub(crate) text: &'s str,
    pub(crate) line: usize,
    /// Where it stands in the code.
    pub(crate) place: usize,
    /// The code before it, without blanks at its end.
    pub(crate) before: &'s str,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        let mut source = Source {
            path: path.to_owned(),
            code: String::with_capacity(text.len()),
            comments: String::with_capacity(text.len()),
            literals: Vec::new(),
            test_modules: Vec::new(),
        };
        source.take_apart(text);
        source.blank_tests();
        source
    }

    /// Every string literal outside tests.
    pub(crate) fn literals(&self) -> impl Iterator<Item = Literal<'_>> {
        let mut place = 0;
        std::iter::from_fn(move || {
            let open = place + self.code[place..].find('"')?;
            let close = open + 1 + self.code[open + 1..].find('"')?;
            place = close + 1;
            let number: usize = self.code[open + 1..close].parse().ok()?;
            Some(Literal {
                text: &self.literals[number],
                line: self.line_of(open),
                place: open,
                before: self.code[..open].trim_end(),
            })
        })
    }

    /// The line of a byte of `code`, from 1.
    pub(crate) fn line_of(&self, place: usize) -> usize {
        1 + self.code[..place].matches('\n').count()
    }

    /// Every place in `code` where `word` stands, not as part of a longer name.
    pub(crate) fn words<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        let is_of_name = |character: char| character.is_alphanumeric() || character == '_';
        self.code.match_indices(word).map(|(place, _)| place).filter(move |place| {
            !self.code[..*place].ends_with(is_of_name) && !self.code[place + word.len()..].starts_with(is_of_name)
        })
    }

    /// Lines of code outside tests, from the first to the last.
    pub(crate) fn lines(&self) -> usize {
        self.code.trim_end().lines().count()
    }

    /// Its functions outside tests: name, first line, number of lines.
    pub(crate) fn functions(&self) -> Vec<(&str, usize, usize)> {
        let mut functions = Vec::new();
        for place in self.words("fn") {
            let rest = &self.code[place + 2..];
            let name = rest.trim_start().split(['(', '<']).next().unwrap_or_default();
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            let Some(end) = end_of_item(rest, false).filter(|_| is_name) else { continue }; // OK: `fn(u8)` is a type
            functions.push((name, self.line_of(place), 1 + rest[..end].matches('\n').count()));
        }
        functions
    }

    fn take_apart(&mut self, text: &str) {
        let mut rest = text;
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            let is_in_name = before.is_alphanumeric() || before == '_';
            let (token, literal) = match first {
                '/' if rest.starts_with("//") => (rest.find('\n').unwrap_or(rest.len()), None),
                '/' if rest.starts_with("/*") => (end_of_comment(rest), None),
                '"' => plain_literal(rest, 0),
                'b' | 'c' if !is_in_name && rest[1..].starts_with('"') => plain_literal(rest, 1),
                'r' | 'b' | 'c' if !is_in_name && raw_start(rest).is_some() => raw_literal(rest),
                '\'' => (end_of_character(rest), None),
                _ => (first.len_utf8(), None),
            };
            let (piece, behind) = rest.split_at(token);
            if let Some(literal) = literal {
                self.code.extend(["\"", &self.literals.len().to_string(), "\""]);
                self.literals.push(literal);
                self.keep_lines(piece, "");
            } else if piece.len() > 1 && piece.starts_with('/') {
                self.comments.push_str(piece);
                self.code.extend(piece.chars().filter(|character| *character == '\n'));
            } else if piece.len() > 1 && piece.starts_with('\'') && piece.ends_with('\'') {
                self.code.push_str("' '");
            } else {
                self.keep_lines(piece, piece);
            }
            before = piece.chars().last().unwrap_or(' ');
            rest = behind;
        }
    }

    /// Adds `code`, and the line breaks of `piece` wherever they are missing.
    fn keep_lines(&mut self, piece: &str, code: &str) {
        let breaks: String = piece.chars().filter(|character| *character == '\n').collect();
        self.code.push_str(if code.is_empty() { &breaks } else { code });
        self.comments.push_str(&breaks);
    }

    /// Blanks each item behind `#[cfg(test)]`, and notes the modules among them that are files.
    fn blank_tests(&mut self) {
        const MARK: &str = "#[cfg(test)]";
        const ITEMS: [&str; 10] = ["#", "pub", "fn ", "mod ", "use ", "impl", "struct ", "enum ", "const ", "static "];
        while let Some(start) = self.code.find(MARK) {
            let item = start + MARK.len();
            let is_field = !ITEMS.iter().any(|word| self.code[item..].trim_start().starts_with(word));
            let end = end_of_item(&self.code[item..], is_field).map_or(self.code.len(), |end| item + end);
            let words: Vec<&str> = self.code[item..end].split_whitespace().collect();
            if let Some(name) = words.iter().position(|word| *word == "mod").and_then(|at| words.get(at + 1)) {
                self.test_modules.extend(name.strip_suffix(';').map(str::to_owned));
            }
            let blank: String = self.code[start..end].chars().filter(|character| *character == '\n').collect();
            self.code.replace_range(start..end, &blank);
        }
    }

    /// The paths, without `.rs`, of the modules that are compiled for tests alone.
    fn test_paths(&self) -> impl Iterator<Item = String> + '_ {
        let (folder, file) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let folder = match file {
            "mod.rs" | "lib.rs" | "main.rs" => folder.to_owned(),
            _ => self.path.trim_end_matches(".rs").to_owned(),
        };
        self.test_modules.iter().map(move |name| format!("{folder}/{name}"))
    }
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file of the repository.
pub(crate) fn text_of(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path} cannot be read: {error}"))
}

/// Every file below a folder of the repository, in order, from the root of the repository.
pub(crate) fn files_below(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extensions.iter().any(|one| extension == *one)) {
                let path = path.strip_prefix(root()).expect("it is below the root");
                found.push(path.to_str().expect("names are UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file below `folder`.
pub(crate) fn sources(folder: &str) -> Vec<Source> {
    files_below(folder, &["rs"]).iter().map(|path| Source::new(path, &text_of(path))).collect()
}

/// Every Rust file below `src` that is compiled into the product.
pub(crate) fn product() -> &'static [Source] {
    static PRODUCT: LazyLock<Vec<Source>> = LazyLock::new(|| {
        let mut all = sources("src");
        let tests: Vec<String> = all.iter().flat_map(Source::test_paths).collect();
        let is_under = |path: &str, module: &str| {
            path.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        all.retain(|source| !tests.iter().any(|module| is_under(&source.path, module)));
        all
    });
    &PRODUCT
}

/// Those of [`product`] whose path begins like this.
pub(crate) fn product_at(path: &str) -> impl Iterator<Item = &'static Source> {
    product().iter().filter(move |source| source.path.starts_with(path))
}

/// Fails with all that was found, one on a line, and what to do about it.
#[track_caller]
pub(crate) fn assert_none(found: &[String], advice: &str) {
    assert!(found.is_empty(), "\n{}\n→ {advice}\n", found.join("\n"));
}

/// Behind the item that begins `code`: its `;` or closing brace, for a field also its comma. `None` if it does not end.
fn end_of_item(code: &str, is_field: bool) -> Option<usize> {
    let mut depth = 0_i32;
    for (place, character) in code.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        let is_end = matches!(character, ';' | '}') || (character == ',' && is_field);
        if is_end && depth == 0 {
            return Some(place + 1);
        }
    }
    None
}

fn end_of_comment(text: &str) -> usize {
    let (mut depth, mut place) = (0, 0);
    while place < text.len() {
        if text[place..].starts_with("/*") {
            (depth, place) = (depth + 1, place + 2);
        } else if text[place..].starts_with("*/") {
            (depth, place) = (depth - 1, place + 2);
            if depth == 0 {
                return place;
            }
        } else {
            place += text[place..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// A literal with escapes, behind `prefix` bytes: its end, and its text with the escapes that matter here undone.
fn plain_literal(text: &str, prefix: usize) -> (usize, Option<String>) {
    let mut literal = String::new();
    let mut characters = text[prefix + 1..].char_indices().peekable();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return (prefix + 1 + place + 1, Some(literal)),
            '\\' => match characters.next() {
                Some((_, 'n')) => literal.push('\n'),
                // A line break behind a backslash goes, with the blanks that follow.
                Some((_, '\n')) => while characters.next_if(|(_, character)| character.is_whitespace()).is_some() {},
                Some((_, escaped)) => literal.push(escaped),
                None => {}
            },
            other => literal.push(other),
        }
    }
    (text.len(), Some(literal))
}

/// How many bytes stand before the text of a raw literal, and how many `#`.
fn raw_start(text: &str) -> Option<(usize, usize)> {
    let behind = text.strip_prefix("br").or_else(|| text.strip_prefix("cr")).or_else(|| text.strip_prefix('r'))?;
    let hashes = behind.len() - behind.trim_start_matches('#').len();
    behind[hashes..].starts_with('"').then_some((text.len() - behind.len() + hashes + 1, hashes))
}

fn raw_literal(text: &str) -> (usize, Option<String>) {
    let Some((start, hashes)) = raw_start(text) else { return (1, None) };
    let end = format!("\"{}", "#".repeat(hashes));
    let length = text[start..].find(&end).unwrap_or(text.len() - start);
    ((start + length + end.len()).min(text.len()), Some(text[start..start + length].to_owned()))
}

/// Behind a character literal; behind the quote alone where it begins a lifetime.
fn end_of_character(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    match (characters.next(), characters.next()) {
        (Some((_, '\\')), Some((place, _))) => text[place + 1..].find('\'').map_or(1, |end| place + 1 + end + 1),
        (Some(_), Some((place, '\''))) => place + 1,
        _ => 1,
    }
}

#[test]
fn code_comments_and_literals_are_told_apart() {
    let text = "let a = 'x'; // one \"two\"\nlet b: &'a str = \"three // four\";\n/* five /* six */ */ r#\"se\"ven\"#;\n\
                #[cfg(test)]\nmod tests {\n    \"eight\";\n}\n#[cfg(test)]\nmod more;\nfn end() {\n}\n";

    let source = Source::new("src/a/b.rs", text);

    let literals: Vec<(&str, usize)> = source.literals().map(|literal| (literal.text, literal.line)).collect();
    assert_eq!(literals, [("three // four", 2), ("se\"ven", 3)]);
    assert!(source.comments.contains("one \"two\"\n") && source.comments.contains("six"));
    assert!(!source.code.contains("one") && !source.code.contains("tests"));
    assert_eq!(source.functions(), [("end", 10, 2)]);
    assert_eq!(source.test_paths().collect::<Vec<_>>(), ["src/a/b/more"]);
}
