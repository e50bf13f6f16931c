//! The shape of the code: sizes, and what must not be left behind.

use super::source::{Source, assert_none, files_below, product, sources, text_of};

/// What docs/STYLE.md aims at, and where it stops to be a matter of taste: lines outside tests, comments included.
const FILE_LINES_AIM: usize = 350;
const FILE_LINES_MAX: usize = 450;
const FUNCTION_LINES_AIM: usize = 70;
const FUNCTION_LINES_MAX: usize = 90;

#[test]
fn files_and_functions_are_small() {
    let mut wrong = Vec::new();
    for source in product() {
        let lines = source.lines();
        note(&mut wrong, lines, FILE_LINES_AIM, FILE_LINES_MAX, &source.path);
        for (name, line, lines) in source.functions() {
            note(
                &mut wrong,
                lines,
                FUNCTION_LINES_AIM,
                FUNCTION_LINES_MAX,
                &format!("{}:{line}: fn {name}", source.path),
            );
        }
    }
    assert_none(&wrong, "cut it where a reader would pause (docs/STYLE.md)");
}

#[test]
fn nothing_is_left_to_do() {
    // In two parts, so that this file does not find itself.
    let marks = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let macros = ["todo", "unimplemented", "dbg"];
    let mut wrong = Vec::new();
    for source in all_sources() {
        for (line, text) in numbered(&source.comments) {
            wrong.extend(
                marks.iter().filter(|mark| has_word(text, mark)).map(|mark| format!("{}:{line}: {mark}", source.path)),
            );
        }
        for name in macros {
            let calls = source.words(name).filter(|place| source.code[place + name.len()..].starts_with('!'));
            wrong.extend(calls.map(|place| format!("{}:{}: {name}!", source.path, source.line_of(place))));
        }
    }
    for path in other_files() {
        for (line, text) in numbered(&text_of(&path)) {
            wrong.extend(marks.iter().filter(|mark| has_word(text, mark)).map(|mark| format!("{path}:{line}: {mark}")));
        }
    }
    assert_none(&wrong, "do it, or open an issue and take the mark out");
}

#[test]
fn the_product_prints_only_through_the_log_and_the_command_line() {
    let mut wrong = Vec::new();
    for source in product() {
        for name in ["println", "print", "eprintln", "eprint"] {
            let calls = source.words(name).filter(|place| source.code[place + name.len()..].starts_with("!("));
            wrong.extend(calls.map(|place| format!("{}:{}: {name}!", source.path, source.line_of(place))));
        }
    }
    assert_none(&wrong, "log it, or write it in src/cli.rs, where a closed pipe is no panic");
}

#[test]
fn no_code_is_commented_out() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        for (line, text) in numbered(&source.comments) {
            let is_code =
                text.trim_start().strip_prefix("//").filter(|text| !text.starts_with(['/', '!'])).is_some_and(is_rust);
            if is_code {
                wrong.push(format!("{}:{line}: {}", source.path, text.trim()));
            }
        }
    }
    for path in files_below("sql", &["sql"]) {
        for (line, text) in numbered(&text_of(&path)) {
            if text.trim_start().strip_prefix("--").is_some_and(is_sql) {
                wrong.push(format!("{path}:{line}: {}", text.trim()));
            }
        }
    }
    assert_none(&wrong, "delete it: git keeps it. If it is prose, let it not end like code");
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent = |source: &&Source| source.path != "src/main.rs" && !source.comments.trim_start().starts_with("//!");
    let wrong: Vec<String> = product().iter().filter(silent).map(|source| source.path.clone()).collect();

    assert_none(&wrong, "begin it with `//!`: its duty, its thread, what it must not do");
}

/// Notes what is beyond its limit, and shows what is beyond the aim (`cargo test --test tidy -- --nocapture`).
fn note(wrong: &mut Vec<String>, lines: usize, aim: usize, max: usize, what: &str) {
    if lines > max {
        wrong.push(format!("{what}: {lines} lines, at most {max}"));
    } else if lines > aim {
        eprintln!("{what}: {lines} lines, better {aim}");
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|other| other == word)
}

fn is_rust(comment: &str) -> bool {
    let text = comment.trim();
    let begins =
        ["let ", "use ", "fn ", "pub ", "impl ", "match ", "return ", "#["].iter().any(|word| text.starts_with(word));
    let ends = text.ends_with([';', '{', '}']);
    ends && (begins || text.ends_with(");") || text.ends_with(") {") || text == "}")
}

fn is_sql(comment: &str) -> bool {
    let text = comment.trim().to_lowercase();
    let begins = ["select ", "insert ", "update ", "delete ", "create ", "alter ", "drop "]
        .iter()
        .any(|word| text.starts_with(word));
    begins && text.ends_with([';', ',', '('])
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn all_sources() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

/// What people wrote here that is not Rust.
fn other_files() -> Vec<String> {
    let mut files: Vec<String> = ["sql", "deploy", "docs", "tests"]
        .iter()
        .flat_map(|folder| files_below(folder, &["sql", "sh", "md", "toml", "service"]))
        .collect();
    files.extend(["Makefile", "Dockerfile", "README.md", "CHANGELOG.md", "docker-compose.yml"].map(str::to_owned));
    files
}
