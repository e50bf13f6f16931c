//! Figures: gathered over the runs, printed as one table, kept as JSON lines.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

/// One value with its name and unit.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

pub(crate) fn figure(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
    Figure { name: name.into(), value, unit }
}

/// All figures so far, in the order in which they first came.
#[derive(Default)]
pub(crate) struct Report {
    order: Vec<(String, String, String)>,
    values: BTreeMap<(String, String, String), (Vec<f64>, &'static str)>,
}

impl Report {
    /// Adds one run's figures, and appends them to `file` as a line of JSON.
    pub(crate) fn add(&mut self, file: &Path, workload: &str, store: &str, figures: Vec<Figure>) -> io::Result<()> {
        let values: serde_json::Map<String, serde_json::Value> =
            figures.iter().map(|figure| (format!("{} ({})", figure.name, figure.unit), json!(figure.value))).collect();
        let line = json!({ "at": now(), "workload": workload, "store": store, "load": load(), "figures": values });
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        writeln!(OpenOptions::new().create(true).append(true).open(file)?, "{line}")?;
        for figure in figures {
            let key = (workload.to_owned(), store.to_owned(), figure.name);
            if !self.values.contains_key(&key) {
                self.order.push(key.clone());
            }
            self.values.entry(key).or_insert_with(|| (Vec::new(), figure.unit)).0.push(figure.value);
        }
        Ok(())
    }

    /// The median of each figure, with its least and greatest.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            "| workload | store | figure | median | min – max | unit |".to_owned(),
            "|---|---|---|---:|---:|---|".to_owned(),
        ];
        for key in &self.order {
            let Some((values, unit)) = self.values.get(key) else { continue };
            let mut values = values.clone();
            values.sort_by(f64::total_cmp);
            let (least, median, greatest) = (values[0], values[values.len() / 2], values[values.len() - 1]);
            let (workload, store, name) = key;
            let range = format!("{} – {}", shown(least), shown(greatest));
            lines.push(format!("| {workload} | {store} | {name} | {} | {range} | {unit} |", shown(median)));
        }
        lines.join("\n")
    }
}

fn shown(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        100.0.. => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
            let groups: Vec<&str> = digits
                .as_bytes()
                .rchunks(3)
                .rev()
                .map(|group| std::str::from_utf8(group).unwrap_or_default())
                .collect();
            format!("{sign}{}", groups.join(","))
        }
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The value below which `part` of the sorted values lie.
pub(crate) fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index made of an index and a part of one"
    )]
    let index = (sorted.len() as f64 * part) as usize;
    sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

fn now() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    trilane::clock::Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).to_string()
}

/// Load of the machine: what else ran beside.
fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default().to_owned()
}
