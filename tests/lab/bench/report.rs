//! What was measured: rows with their spread, by section, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Section;
use super::machine::Machine;
use super::spread::Spread;
use crate::console;

/// One measured thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// On which path: `postern`, `ssh -L`, `bare hops`, …
    pub path: String,
    /// One-way delay of the path to the bastion, in milliseconds.
    pub delay_ms: u64,
    /// The unit of `value`.
    pub unit: String,
    /// Median and spread of the runs.
    pub value: Spread,
    /// Median relative to Postern's on the same row: above 1, Postern has the smaller value.
    pub ratio: Option<f64>,
}

/// Something watched over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// What.
    pub what: String,
    /// The unit of the values.
    pub unit: String,
    /// Seconds since the start, and values.
    pub points: Vec<(f64, f64)>,
}

/// One section of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Which.
    pub section: Section,
    /// The day, in UTC.
    pub day: String,
    /// How long it took.
    pub seconds: u64,
    /// On what.
    pub machine: Machine,
    /// How it was asked for.
    pub settings: BTreeMap<String, u64>,
    /// What else a reader should know of the run, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
    /// The rows in the order of measuring.
    pub rows: Vec<Row>,
    /// What was watched.
    pub series: Vec<Series>,
}

impl Part {
    /// Nothing yet.
    pub fn new(section: Section, day: String) -> Self {
        Self {
            section,
            day,
            seconds: 0,
            machine: Machine::here(),
            settings: BTreeMap::new(),
            remark: None,
            rows: Vec::new(),
            series: Vec::new(),
        }
    }

    /// Tells how it was asked for.
    pub fn set(&mut self, name: &str, value: impl TryInto<u64>) {
        let value = value.try_into().unwrap_or(u64::MAX);
        self.settings.insert(name.to_owned(), value);
    }

    /// Adds a row, if anything was measured.
    pub fn add(&mut self, what: &str, path: &str, delay_ms: u64, unit: &str, values: Vec<f64>) {
        if let Some(value) = Spread::of(values) {
            self.rows.push(Row {
                what: what.to_owned(),
                path: path.to_owned(),
                delay_ms,
                unit: unit.to_owned(),
                value,
                ratio: None,
            });
        }
    }

    /// A row by what it is of.
    pub fn row(&self, what: &str, path: &str, delay_ms: u64) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.what == what && row.path == path && row.delay_ms == delay_ms)
    }

    /// Fills the ratios in.
    pub fn compare(&mut self) {
        let own: Vec<Row> = self
            .rows
            .iter()
            .filter(|row| row.path == "postern")
            .cloned()
            .collect();
        for row in &mut self.rows {
            row.ratio = own
                .iter()
                .find(|own| own.what == row.what && own.delay_ms == row.delay_ms)
                .map(|own| row.value.median / own.value.median)
                .filter(|ratio| ratio.is_finite());
        }
    }

    /// Prints the table.
    pub fn print(&self) {
        console::answer(&format!(
            "{:<40} {:>6} {:<20} {:>10} {:>18} {:>18} {:>10} {:>9}",
            format!("{} (median)", self.section.title()),
            "delay",
            "path",
            "median",
            "quartiles",
            "min .. max",
            "p99",
            "/postern"
        ));
        for row in &self.rows {
            let ratio = row
                .ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
            let range = |from, to| match row.value.count {
                1 => String::new(),
                _ => format!("{} .. {}", number(from), number(to)),
            };
            console::answer(&format!(
                "{:<40} {:>3} ms {:<20} {:>10} {:>18} {:>18} {:>10} {:>9}",
                format!("{} [{}]", row.what, row.unit),
                row.delay_ms,
                row.path,
                number(row.value.median),
                range(row.value.q1, row.value.q3),
                range(row.value.min, row.value.max),
                number(row.value.p99),
                ratio
            ));
        }
        console::answer("");
    }
}

/// All sections, each as it was measured last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// In the order of [`Section`].
    pub parts: Vec<Part>,
}

impl Report {
    /// Reads one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is no report of `lab bench`", path.display()))
    }

    /// Writes it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes newer parts in the place of older ones.
    pub fn renew(&mut self, parts: Vec<Part>) {
        self.parts
            .retain(|old| parts.iter().all(|new| new.section != old.section));
        self.parts.extend(parts);
        self.parts.sort_by_key(|part| part.section);
    }

    /// A section, if it was measured.
    pub fn part(&self, section: Section) -> Option<&Part> {
        self.parts.iter().find(|part| part.section == section)
    }
}

/// Three digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.3}"),
    }
}
