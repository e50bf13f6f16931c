//! The SQL: every statement is used, described, and there for each database.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, assert_none, files_below, product_at, text_of};

const DIALECTS: [&str; 3] = ["mssql", "postgres", "sqlite"];
/// The code that runs the statements.
const STORE: &str = "src/store/";

/// Statements that one database alone has or lacks, each with its reason. A companion (`x_before`, `x_after`) of SQLite's is
/// not listed: it stands in for the rows that its driver does not return.
const DIFFERENT: [(&str, &[&str], &str); 8] = [
    (
        "submit_claimed",
        &["postgres"],
        "elsewhere `submit` and `claim` in one transaction: the numbers are not known before the rows are stored",
    ),
    ("claim_free", &["postgres"], "elsewhere `claim` waits for no row: READPAST, and one writer"),
    ("held_elsewhere", &["mssql", "postgres"], "SQLite has one writer, who holds all rows"),
    ("lease_add", &["sqlite"], "elsewhere `claim` begins the lease in its own statement"),
    ("session_b", &["sqlite"], "a pragma sets one thing; elsewhere session_a sets all"),
    ("session_c", &["sqlite"], "as session_b"),
    ("session_d", &["sqlite"], "as session_b"),
    ("has_snapshots", &["mssql"], "READ_COMMITTED_SNAPSHOT is a setting of SQL Server alone"),
];

/// Functions of src/store whose argument is the name of a statement.
const CALLS: [&str; 8] = ["query", "execute", "change", "statement", "waiting", "leases", "recall", "jobs_of"];

/// A statement of a file, with what stands in its comments.
struct Statement {
    line: usize,
    header: String,
    text: String,
}

#[test]
fn every_statement_is_used() {
    let literals = literals_of_the_store();
    let mut unused = Vec::new();
    for dialect in DIALECTS {
        let statements = statements(dialect);
        for (name, statement) in &statements {
            let owner = name.strip_suffix("_before").or_else(|| name.strip_suffix("_after"));
            let is_companion = dialect == "sqlite"
                && owner.is_some_and(|owner| statements.contains_key(owner) && literals.contains(owner));
            if !literals.contains(name.as_str()) && !is_companion {
                unused.push(format!("{}:{}: {name}", file_of(dialect), statement.line));
            }
        }
    }
    assert_none(
        &unused,
        "delete it, or run it in src/store by its name. If it is no statement but a comment, wrap it otherwise: a line \
         `-- word: …` begins a statement",
    );
}

#[test]
fn every_statement_that_the_store_names_exists() {
    let known: BTreeSet<String> = DIALECTS.iter().flat_map(|dialect| statements(dialect).into_keys()).collect();
    let mut missing = Vec::new();
    for source in product_at(STORE) {
        for literal in source.literals() {
            let is_name =
                literal.text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') && !literal.text.is_empty();
            if is_name && is_argument(source, literal.before) && !known.contains(literal.text) {
                missing.push(format!("{}:{}: {}", source.path, literal.line, literal.text));
            }
        }
    }
    assert_none(&missing, "write the statement in sql/*/queries.sql under `-- name: what it does`");
}

#[test]
fn the_three_databases_have_the_same_statements() {
    let all: Vec<(&str, BTreeMap<String, Statement>)> =
        DIALECTS.iter().map(|dialect| (*dialect, statements(dialect))).collect();
    let names: BTreeSet<&String> = all.iter().flat_map(|(_, statements)| statements.keys()).collect();
    let mut wrong = Vec::new();
    for name in names {
        let having: Vec<&str> =
            all.iter().filter(|(_, statements)| statements.contains_key(name)).map(|(dialect, _)| *dialect).collect();
        let is_companion = having == ["sqlite"] && (name.ends_with("_before") || name.ends_with("_after"));
        let expected = DIFFERENT
            .iter()
            .find(|(different, _, _)| different == name)
            .map_or(&DIALECTS[..], |(_, in_these, _)| in_these);
        if having != expected && !is_companion {
            wrong.push(format!("{name} stands in {}, and should in {}", having.join(", "), expected.join(", ")));
        }
    }
    assert_none(
        &wrong,
        "write the missing one; a real difference goes into DIFFERENT of tests/tidy/statements.rs, with its reason",
    );
}

#[test]
fn every_statement_says_what_it_takes_and_returns() {
    let mut wrong = Vec::new();
    for dialect in DIALECTS {
        for (name, statement) in statements(dialect) {
            let place = format!("{}:{}: {name}", file_of(dialect), statement.line);
            let wanted = outside_quotes(&statement.text).matches('?').count();
            let params = statement.header.split_once("Params:").map_or("", |(_, params)| params);
            let params = params.split_once("Returns").map_or(params, |(params, _)| params);
            let described = described(params);
            if described != wanted {
                wrong.push(format!("{place}: has {wanted} parameters, its header describes {described}"));
            }
            let text = statement.text.to_lowercase();
            let returns =
                text.starts_with("select") || text.contains("\nreturning ") || text.contains("output inserted");
            if wanted > 0
                && returns
                && !statement.header.contains("Returns")
                && !text.contains("output inserted.seq into")
            {
                wrong.push(format!("{place}: returns rows, and its header does not say which"));
            }
        }
    }
    assert_none(&wrong, "head it with `-- Params: 1 this  2 that.  Returns a, b` (docs/STYLE.md)");
}

#[test]
fn every_migration_is_built_in() {
    let code = text_of("src/store/dialect.rs");
    let migrations = files_below("sql", &["sql"]).into_iter().filter(|path| path.contains("/migrations/"));
    let missing: Vec<String> =
        migrations.filter(|path| !code.contains(&format!("include_str!(\"../../{path}\")"))).collect();

    assert_none(&missing, "list it in `Dialect::migrations` of src/store/dialect.rs, or delete it");
}

#[test]
fn every_database_has_the_same_migrations() {
    let of = |dialect: &str| -> Vec<String> {
        let paths = files_below(&format!("sql/{dialect}/migrations"), &["sql"]);
        paths.iter().filter_map(|path| path.rsplit('/').next().map(str::to_owned)).collect()
    };
    let first = of(DIALECTS[0]);
    let wrong: Vec<String> = DIALECTS
        .iter()
        .filter(|dialect| of(dialect) != first)
        .map(|dialect| format!("sql/{dialect}/migrations has {:?}, sql/{} has {first:?}", of(dialect), DIALECTS[0]))
        .collect();

    assert_none(&wrong, "number and name migrations alike, so that one schema version means one thing everywhere");
}

fn file_of(dialect: &str) -> String {
    format!("sql/{dialect}/queries.sql")
}

/// The statements of a file by their names, read as src/store/dialect.rs reads them.
fn statements(dialect: &str) -> BTreeMap<String, Statement> {
    let mut statements: BTreeMap<String, Statement> = BTreeMap::new();
    let mut current: Option<String> = None;
    for (index, line) in text_of(&file_of(dialect)).lines().enumerate() {
        if line.starts_with("-- define ") {
            continue;
        }
        if let Some(name) = heading(line) {
            let statement = Statement { line: index + 1, header: format!("{line}\n"), text: String::new() };
            assert!(
                statements.insert(name.to_owned(), statement).is_none(),
                "{}: {name} stands twice",
                file_of(dialect)
            );
            current = Some(name.to_owned());
            continue;
        }
        let Some(statement) = current.as_ref().and_then(|name| statements.get_mut(name)) else { continue };
        let part = if line.trim_start().starts_with("--") {
            &mut statement.header
        } else {
            &mut statement.text
        };
        part.push_str(line);
        part.push('\n');
    }
    statements
}

fn heading(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("-- ")?.split_once(": ")?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_name.then_some(name)
}

/// How many parameters a text describes: `1 this  2 that` two.
fn described(params: &str) -> usize {
    let words = params.split_whitespace().filter(|word| *word != "--");
    words.fold(0, |count, word| {
        if word == (count + 1).to_string() {
            count + 1
        } else {
            count
        }
    })
}

fn outside_quotes(sql: &str) -> String {
    sql.split('\'').step_by(2).collect()
}

fn literals_of_the_store() -> BTreeSet<&'static str> {
    product_at(STORE).flat_map(Source::literals).map(|literal| literal.text).collect()
}

/// Whether the code before a literal is a call that takes a statement's name there: `x.query(` or `leases(session, `.
fn is_argument(source: &Source, before: &str) -> bool {
    let before = before.strip_suffix(',').map_or(before, |before| before.trim_end().trim_end_matches("session"));
    let Some(call) = before.trim_end().strip_suffix('(') else { return false };
    CALLS.iter().any(|name| source.words(name).any(|place| place + name.len() == call.len()))
}
