//! The table and its JSON.

use serde::Serialize;

use super::cost::Spread;
use crate::console;

/// One measured thing.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// On which path: `postern`, `ssh -L`, `bare hops`, …
    pub path: String,
    /// One-way delay of the path to the bastion, in milliseconds.
    pub delay_ms: u64,
    /// The unit of `value`.
    pub unit: &'static str,
    /// Median and spread of the runs.
    pub value: Spread,
    /// Median relative to Postern's on the same row: above 1, Postern has the smaller value.
    pub ratio: Option<f64>,
}

/// All rows of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Runs per row.
    pub runs: usize,
    /// The rows in the order of measuring.
    pub rows: Vec<Row>,
}

impl Report {
    /// Adds a row, if anything was measured.
    pub fn add(&mut self, what: &str, path: &str, delay_ms: u64, unit: &'static str, v: Vec<f64>) {
        if let Some(value) = Spread::of(v) {
            let (what, path) = (what.to_owned(), path.to_owned());
            self.rows.push(Row {
                what,
                path,
                delay_ms,
                unit,
                value,
                ratio: None,
            });
        }
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
                .map(|own| row.value.median / own.value.median);
        }
    }

    /// Prints the table.
    pub fn print(&self) {
        console::answer(&format!(
            "{:<34} {:>6} {:<22} {:>12} {:>21} {:>9}",
            "what (median of runs)", "delay", "path", "median", "min .. max", "/postern"
        ));
        for row in &self.rows {
            let ratio = row
                .ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
            console::answer(&format!(
                "{:<34} {:>3} ms {:<22} {:>12} {:>21} {:>9}",
                format!("{} [{}]", row.what, row.unit),
                row.delay_ms,
                row.path,
                number(row.value.median),
                format!("{} .. {}", number(row.value.min), number(row.value.max)),
                ratio
            ));
        }
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}
