//! Who may use whom: the five layers, and which module alone speaks to which library.

use super::source::{Source, assert_none, product, product_at, text_of};

/// The modules of each layer, lowest first. Imports point downward.
const LAYERS: [&[&str]; 5] = [
    &["job", "retry", "clock", "config", "wake", "random", "metrics", "logging", "fault"],
    &["store", "queue"],
    &["lifecycle"],
    &["threads", "api", "handlers"],
    &["app", "cli", "main", "lib"],
];

/// Who may use what of its own layer. Beyond these the modules of a layer do not know each other; those of layer 4 may.
const BESIDE: [(&str, &str); 7] = [
    ("job", "clock"),
    ("retry", "job"),
    ("config", "job"),
    ("config", "retry"),
    ("logging", "config"),
    ("threads", "api"),
    ("threads", "handlers"),
];

/// A library, and the only places that may name it.
const LIBRARIES: [(&str, &[&str]); 13] = [
    ("fail", &["src/fault.rs"]),
    ("odbc_api", &["src/store/"]),
    ("redis", &["src/queue/"]),
    ("tiny_http", &["src/threads/http"]),
    ("ureq", &["src/handlers/", "src/cli.rs"]),
    ("toml", &["src/handlers/"]),
    ("dotenvy", &["src/config/"]),
    ("signal_hook", &["src/threads/signals.rs"]),
    ("sd_notify", &["src/app.rs", "src/app/"]),
    ("env_logger", &["src/logging.rs"]),
    ("jiff", &["src/clock.rs", "src/logging.rs"]),
    ("r2d2", &["src/store/", "src/queue/"]),
    ("crossbeam_channel", &["src/threads/", "src/app.rs", "src/app/"]),
];

#[test]
fn imports_point_downward() {
    let mut wrong = Vec::new();
    for source in product() {
        let module = module_of(&source.path);
        let Some(layer) = layer_of(module) else {
            wrong.push(format!("{}: `{module}` stands in no layer", source.path));
            continue;
        };
        for (used, line) in modules_used_by(source) {
            let top = used.split("::").next().unwrap_or_default();
            let may = |(who, what): &(&str, &str)| *who == module && (used == *what || top == *what);
            let is_right = match layer_of(top) {
                _ if top == module => true,
                Some(below) if below < layer => true,
                Some(beside) => beside == layer && (layer == 4 || BESIDE.iter().any(may)),
                None => false,
            };
            if !is_right {
                wrong.push(format!("{}:{line}: `{module}` (layer {layer}) uses `{used}`", source.path));
            }
        }
    }
    assert_none(
        &wrong,
        "move what is used to a lower layer, or hand it in from app.rs (docs/ARCHITECTURE.md); a new module gets its layer in \
         LAYERS of tests/tidy/layers.rs",
    );
}

#[test]
fn only_the_lifecycle_uses_store_and_queue_together() {
    const MAY: [&str; 3] = ["lifecycle", "app", "cli"];
    let mut wrong = Vec::new();
    for source in product().iter().filter(|source| module_of(&source.path) != "queue") {
        let uses = modules_used_by(source).into_iter().filter(|(used, _)| used.starts_with("queue"));
        let is_allowed = MAY.contains(&module_of(&source.path));
        wrong.extend(uses.filter(|_| !is_allowed).map(|(_, line)| format!("{}:{line}: uses the queue", source.path)));
    }
    assert_none(
        &wrong,
        "go through `Lifecycle`: it names the crash window between the table and the lanes (src/lifecycle.rs)",
    );
}

#[test]
fn each_library_is_spoken_to_in_one_place() {
    let mut wrong = Vec::new();
    for source in product() {
        for (library, places) in LIBRARIES {
            if places.iter().any(|place| source.path.starts_with(place)) {
                continue;
            }
            let named = source.words(library).filter(|place| source.code[place + library.len()..].starts_with("::"));
            wrong.extend(named.map(|place| format!("{}:{}: names {library}", source.path, source.line_of(place))));
        }
    }
    assert_none(&wrong, "use the module that wraps it; LIBRARIES in tests/tidy/layers.rs says which");
}

#[test]
fn no_async_runtime_is_linked() {
    let denied = text_of("deny.toml");
    let denied: Vec<&str> =
        denied.lines().filter_map(|line| line.split_once("crate = \"")?.1.split('"').next()).collect();
    assert!(denied.contains(&"tokio"), "deny.toml does not deny tokio any more; this rule reads its list");

    let lock = text_of("Cargo.lock");
    let linked = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    let wrong: Vec<String> =
        linked.filter(|name| denied.contains(name)).map(|name| format!("Cargo.lock: {name}")).collect();

    assert_none(&wrong, "find who brings it with `cargo tree -i NAME`, and turn that feature off");
}

#[test]
fn a_thread_has_the_name_of_its_file() {
    let mut wrong = Vec::new();
    for source in product_at("src/threads/") {
        let stem = source.path.rsplit('/').next().and_then(|file| file.strip_suffix(".rs")).unwrap_or_default();
        let names = source.literals().filter(|literal| literal.before.ends_with("const NAME: &'static str ="));
        wrong.extend(
            names
                .filter(|name| name.text != stem)
                .map(|name| format!("{}:{}: the thread is called {:?}", source.path, name.line, name.text)),
        );
    }
    assert_none(&wrong, "give file, thread and log field one name (docs/STYLE.md)");
}

/// The module at the top of the tree that a file belongs to: `store` for `src/store/claim.rs`.
fn module_of(path: &str) -> &str {
    let path = path.strip_prefix("src/").unwrap_or(path);
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// What a file names behind `crate::` or `trilane::`, two steps deep (`threads::submitter`), and the lines where it does.
fn modules_used_by(source: &Source) -> Vec<(String, usize)> {
    let mut used = Vec::new();
    for root in ["crate", "trilane"] {
        for place in source.words(root) {
            let Some(rest) = source.code[place + root.len()..].strip_prefix("::") else { continue };
            let line = source.line_of(place);
            // `crate::{a::b, c}` names several.
            let group =
                rest.strip_prefix('{').map(|group| top_level(group.split_once("};").map_or(group, |(group, _)| group)));
            for name in group.unwrap_or_else(|| vec![rest]) {
                let mut steps =
                    name.split("::").map(|step| step.split(|c: char| !c.is_alphanumeric() && c != '_').next());
                let (top, below) =
                    (steps.next().flatten().unwrap_or_default(), steps.next().flatten().unwrap_or_default());
                let is_path = name[top.len()..].starts_with("::") && !below.is_empty();
                used.push((
                    if is_path {
                        format!("{top}::{below}")
                    } else {
                        top.to_owned()
                    },
                    line,
                ));
            }
        }
    }
    used
}

/// The parts of a list between the commas that stand in no braces of their own.
fn top_level(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (place, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..place].trim());
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(list[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}
