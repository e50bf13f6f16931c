//! The documents say what is, and all of it.

use std::collections::BTreeSet;
use std::path::Path;

use trilane::config::{SETTINGS, markdown_table};
use trilane::handlers;
use trilane::metrics::Metrics;

use super::source::{Source, assert_none, files_below, product, product_at, root, text_of};

const TABLE_BEGIN: &str = "<!-- settings:begin -->";
const TABLE_END: &str = "<!-- settings:end -->";
/// What every setting begins with.
const PREFIXES: [&str; 3] = ["TRILANE_", "DB_", "REDIS_"];

#[test]
fn the_readme_has_the_table_of_settings() {
    let readme = text_of("README.md");
    let (before, rest) = readme.split_once(TABLE_BEGIN).expect("README.md has the line settings:begin");
    let (table, behind) = rest.split_once(TABLE_END).expect("README.md has the line settings:end");
    let wanted = format!("\n{}", markdown_table());

    if std::env::var_os("TRILANE_TEST_UPDATE").is_some() {
        let updated = [before, TABLE_BEGIN, &wanted, TABLE_END, behind].concat();
        std::fs::write(root().join("README.md"), updated).expect("README.md is written");
        return;
    }
    let different = wanted.lines().find(|line| !table.lines().any(|other| other == *line));
    let wrong: Vec<String> = (table != wanted)
        .then(|| {
            format!(
                "README.md: the table differs from src/config/table.rs, first at {:?}",
                different.unwrap_or("its order")
            )
        })
        .into_iter()
        .collect();
    assert_none(&wrong, "refresh it: TRILANE_TEST_UPDATE=1 cargo test --test tidy settings");
}

#[test]
fn every_name_that_the_settings_read_stands_in_their_table() {
    let mut wrong = Vec::new();
    for source in product_at("src/config") {
        for literal in source.literals() {
            let names = setting_names(literal.text).into_iter().filter(|name| !is_setting(name));
            wrong.extend(names.map(|name| format!("{}:{}: {name}", source.path, literal.line)));
        }
    }
    assert_none(&wrong, "give it a row in SETTINGS of src/config/table.rs, or spell it as it stands there");
}

#[test]
fn no_document_names_a_setting_that_is_none() {
    let given_to_commands: BTreeSet<String> = product_at("src/handlers/command.rs")
        .flat_map(Source::literals)
        .map(|literal| literal.text.to_owned())
        .collect();
    let mut wrong = Vec::new();
    for path in documents().into_iter().chain(other_documents()) {
        for (index, line) in text_of(&path).lines().enumerate() {
            let unknown =
                setting_names(line).into_iter().filter(|name| !is_setting(name) && !given_to_commands.contains(name));
            wrong.extend(unknown.map(|name| format!("{path}:{}: {name}", index + 1)));
        }
    }
    assert_none(&wrong, "spell it as in the table of settings in README.md");
}

#[test]
fn no_document_names_a_file_that_is_missing() {
    let mut wrong = Vec::new();
    for path in documents() {
        let folder = Path::new(&path).parent().unwrap_or(Path::new("")).to_owned();
        for (line, name) in named_files(&text_of(&path)) {
            if !root().join(&folder).join(&name).exists() && !root().join(&name).exists() {
                wrong.push(format!("{path}:{line}: {name}"));
            }
        }
    }
    for (path, comments) in commented() {
        for (index, line) in comments.lines().enumerate() {
            let pages =
                line.split(|c: char| !(c.is_alphanumeric() || "./_-".contains(c))).map(|word| word.trim_matches('.'));
            let missing = pages.filter(|page| {
                Path::new(page).extension().is_some_and(|extension| extension == "md") && !root().join(page).exists()
            });
            wrong.extend(missing.map(|page| format!("{path}:{}: {page}", index + 1)));
        }
    }
    assert_none(&wrong, "write the file, or name the one that is meant");
}

#[test]
fn every_make_target_stands_in_make_help() {
    let makefile = text_of("Makefile");
    let name_of = |line: &str| -> Option<String> {
        let (name, rest) = line.split_once(':')?;
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        (is_name && !rest.starts_with('=')).then(|| name.to_owned())
    };
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY:")).unwrap_or_default();
    let phony: Vec<&str> = phony.split_whitespace().collect();
    let mut wrong = Vec::new();
    for (index, line) in makefile.lines().enumerate() {
        let Some(name) = name_of(line) else { continue };
        // As `help` finds them.
        let is_shown = line.contains(':')
            && line.contains(" ## ")
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if !is_shown || !phony.contains(&name.as_str()) {
            wrong.push(format!("Makefile:{}: {name}", index + 1));
        }
    }
    assert!(phony.len() > 3, "the rule no longer finds the targets of the Makefile");
    assert_none(&wrong, "write `name: ## what it does` with a name of a-z and -, and add it to .PHONY");
}

#[test]
fn the_handlers_file_of_the_readme_is_read() {
    let readme = text_of("README.md");
    let example = block(&readme, "toml").expect("README.md shows a handlers file");
    let file = std::env::temp_dir().join(format!("trilane-tidy-{}.toml", std::process::id()));
    std::fs::write(&file, example).expect("the example is written");

    let read = handlers::load_under(&file, &|_| Some("a value".to_owned()));

    std::fs::remove_file(&file).expect("the example is removed");
    let wrong: Vec<String> = read.err().iter().map(ToString::to_string).collect();
    assert_none(&wrong, "mend the toml example of README.md");
}

#[test]
fn the_rust_example_of_the_readme_is_the_one_that_is_compiled() {
    let readme = text_of("README.md");
    let library = text_of("src/lib.rs");
    let documentation: String =
        library.lines().filter_map(|line| line.strip_prefix("//!")).fold(String::new(), |mut text, line| {
            let line = line.strip_prefix(' ').unwrap_or(line);
            if !line.starts_with("# ") {
                text.push_str(line);
                text.push('\n');
            }
            text
        });
    let compiled = block(&documentation, "no_run").expect("src/lib.rs has an example");

    assert_eq!(
        block(&readme, "rust"),
        Some(compiled),
        "\n→ copy the example of src/lib.rs to README.md, without its hidden lines\n"
    );
}

#[test]
fn every_path_that_is_served_stands_in_the_readme_and_in_openapi() {
    let (readme, openapi) = (text_of("README.md"), text_of("src/api/openapi.json"));
    let openapi: serde_json::Value = serde_json::from_str(&openapi).expect("src/api/openapi.json is JSON");
    let mut served = BTreeSet::new();
    for literal in product_at("src/api/routes.rs").flat_map(Source::literals) {
        let is_path =
            literal.text.strip_prefix('/').is_some_and(|path| path.starts_with(|c: char| c.is_ascii_lowercase()));
        served.extend(is_path.then_some(literal.text));
    }
    assert!(served.len() > 5, "the rule no longer finds the routes in src/api/routes.rs");

    let mut wrong = Vec::new();
    for path in served {
        if !readme.contains(path) {
            wrong.push(format!("README.md lacks {path}"));
        }
        if openapi["paths"].get(path).is_none() {
            wrong.push(format!("src/api/openapi.json lacks {path}"));
        }
    }
    assert_none(&wrong, "describe it there");
}

#[test]
fn every_warning_and_error_that_is_logged_is_explained() {
    let operations = text_of("docs/OPERATIONS.md");
    let mut wrong = Vec::new();
    for source in product() {
        for (line, message) in warnings(source) {
            if !operations.contains(&message) {
                wrong.push(format!("{}:{line}: {message}", source.path));
            }
        }
    }
    assert_none(&wrong, "give it a row under Log lines in docs/OPERATIONS.md, word by word, with … for each {value}");
}

#[test]
fn every_metric_is_explained() {
    let operations = text_of("docs/OPERATIONS.md");
    let counters = Metrics::default().render(&[]);
    let counters =
        counters.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned);
    let gauges =
        product_at("src/app").flat_map(Source::literals).filter(|literal| literal.text.starts_with("trilane_"));
    let gauges = gauges.filter_map(|literal| literal.text.split('{').next().map(str::to_owned));
    let wrong: Vec<String> = counters.chain(gauges).filter(|name| !operations.contains(name.as_str())).collect();

    assert_none(&wrong, "give it a row under Metrics in docs/OPERATIONS.md");
}

#[test]
fn every_thread_stands_in_the_architecture() {
    let architecture = text_of("docs/ARCHITECTURE.md");
    let threads = product_at("src/threads/").filter_map(|source| {
        let name = source.path.strip_prefix("src/threads/")?.strip_suffix(".rs")?.to_owned();
        (!name.contains('/') && name != "mod").then_some(name)
    });
    let wrong: Vec<String> = threads.filter(|name| !architecture.contains(&format!("| {name}"))).collect();

    assert_none(&wrong, "give the thread a row in the table of docs/ARCHITECTURE.md");
}

/// The messages of a file's warnings and errors, with `…` for each value, and their lines.
fn warnings(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for call in ["log::warn!(", "log::error!("] {
        for (place, _) in source.code.match_indices(call) {
            let arguments = &source.code[place + call.len()..];
            let Some(end) = end_of_arguments(arguments) else { continue };
            // Fields stand before a semicolon, the message behind it.
            let skipped = arguments[..end].find(';').unwrap_or(0);
            let start = place + call.len() + skipped;
            let message = source.literals().find(|literal| literal.place >= start);
            found.extend(message.map(|message| (source.line_of(place), with_ellipses(message.text))));
        }
    }
    // A message that is a value alone is made elsewhere.
    found.retain(|(_, message)| message != "…");
    found
}

/// Before the parenthesis that closes a call.
fn end_of_arguments(code: &str) -> Option<usize> {
    let mut depth = 0;
    for (place, character) in code.char_indices() {
        match character {
            '(' => depth += 1,
            ')' if depth == 0 => return Some(place),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn with_ellipses(message: &str) -> String {
    let mut pieces = message.split('{');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        text.push('…');
        text.push_str(piece.split_once('}').map_or(piece, |(_, behind)| behind));
    }
    text
}

fn is_setting(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name) || name.starts_with("TRILANE_TEST")
}

/// The words of a text that begin like a setting.
fn setting_names(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'));
    let is_name = |word: &&str| {
        PREFIXES.iter().any(|prefix| word.len() > prefix.len() && word.starts_with(prefix)) && !word.ends_with('_')
    };
    words.filter(is_name).map(str::to_owned).collect()
}

/// The first block of a Markdown text that is marked as `language`.
fn block(text: &str, language: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("\n```{language}\n"))?;
    rest.split_once("```").map(|(block, _)| block.to_owned())
}

/// The files that a Markdown text names, by link or in back-ticks, and the lines where it does.
fn named_files(text: &str) -> Vec<(usize, String)> {
    const FOLDERS: [&str; 7] = ["src/", "sql/", "tests/", "docs/", "deploy/", "benches/", ".ci/"];
    const ENDINGS: [&str; 8] = [".md", ".toml", ".yml", ".lock", ".service", ".sql", ".sh", ".rs"];
    let mut named = Vec::new();
    let mut is_block = false;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with("```") {
            is_block = !is_block;
        }
        let links = line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let links = links.filter(|link| !link.is_empty() && !link.contains("://"));
        let quoted = line.split('`').skip(1).step_by(2);
        let is_path = |word: &&str| {
            let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c));
            let is_ours = FOLDERS.iter().any(|folder| word.starts_with(folder));
            is_plain
                && (is_ours
                    || (!word.contains('/') && word.len() > 4 && ENDINGS.iter().any(|ending| word.ends_with(ending))))
        };
        let quoted = quoted.filter(is_path).filter(|_| !is_block);
        named.extend(links.chain(quoted).map(|name| (index + 1, name.to_owned())));
    }
    named
}

/// The pages that people read.
fn documents() -> Vec<String> {
    let mut pages = files_below("docs", &["md"]);
    pages.extend(files_below("sql", &["md"]));
    pages.extend(["README.md", "CHANGELOG.md"].map(str::to_owned));
    pages
}

/// What else names settings.
fn other_documents() -> Vec<String> {
    let mut files = files_below("deploy", &["env", "service", "sh", "sql", "yml", "yaml"]);
    files
        .extend(["Dockerfile", "docker-compose.yml", "docker-compose.postgres.yml", ".env.example"].map(str::to_owned));
    files
}

/// The comments of code and SQL, by file.
fn commented() -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> =
        product().iter().map(|source| (source.path.clone(), source.comments.clone())).collect();
    files.extend(files_below("sql", &["sql"]).into_iter().map(|path| (path.clone(), text_of(&path))));
    files
}
