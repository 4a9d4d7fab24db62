//! `docs/PERFORMANCE.md`: the figures of a run as a page. Every number on it comes from the JSON;
//! the words are here. What is behind the rivals is found by comparing, not by choosing.

mod goals;
mod words;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::plot;
use super::report::{Part, Report, Row, number};

/// The figures, in the page's folder.
pub const FIGURES: &str = "performance.json";
const PAGE: &str = "PERFORMANCE.md";
const PLOT: &str = "performance.svg";

/// Writes figures, page and plot into `folder`.
pub fn write(folder: &Path, report: &Report) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    report.write(&folder.join(FIGURES))?;
    for (name, text) in [(PAGE, page(report)), (PLOT, plot::draw(report))] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut text = String::new();
    text.push_str(words::INTRODUCTION);
    text.push_str("\n![The figures as bars](performance.svg)\n");
    text.push_str("\n## What was to be reached\n\n");
    text.push_str(&goals::table(report));
    text.push_str("\n## What is worse than the rivals\n\n");
    text.push_str(&behind(report));
    text.push_str("\n## How it was measured\n\n");
    text.push_str(&machines(report));
    text.push_str(words::METHOD);
    for part in &report.parts {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n## {}\n\n{}\n\n",
            part.section.title(),
            words::about(part.section)
        );
        text.push_str(&table(part));
        text.push_str(&settings(part));
    }
    text
}

/// Whether more of this unit is better.
fn more_is_better(unit: &str) -> bool {
    matches!(unit, "MB/s" | "/s")
}

/// OpenSSH's, and not a limit.
fn is_rival(path: &str) -> bool {
    path.starts_with("ssh") || path.starts_with("scp")
}

/// Every row in which OpenSSH is ahead by more than a tenth of what it has.
fn behind(report: &Report) -> String {
    let mut text = String::new();
    for part in &report.parts {
        for rival in part.rows.iter().filter(|row| is_rival(&row.path)) {
            let Some(own) = part.row(&rival.what, "postern", rival.delay_ms) else {
                continue;
            };
            let (ours, theirs) = (own.value.median, rival.value.median);
            let behind = match more_is_better(&own.unit) {
                true => theirs / ours,
                false => ours / theirs,
            };
            if behind.is_finite() && behind > 1.1 {
                let _ = writeln!(
                    text,
                    "- {}: {} {}, `{}` has {} ({}x).{}",
                    named(own),
                    number(ours),
                    own.unit,
                    rival.path,
                    number(theirs),
                    number(behind),
                    words::why(&own.what),
                );
            }
        }
    }
    if text.is_empty() {
        text.push_str("Nothing that is measured here, by more than a tenth.\n");
    }
    text.push_str(words::UNMEASURED);
    text
}

/// What, and at which delay where that matters.
fn named(row: &Row) -> String {
    match row.delay_ms {
        0 => row.what.clone(),
        delay => format!("{} at {delay} ms one way", row.what),
    }
}

fn machines(report: &Report) -> String {
    let mut text = String::new();
    let mut told = Vec::new();
    for part in &report.parts {
        if told.contains(&&part.machine) {
            continue;
        }
        told.push(&part.machine);
        let machine = &part.machine;
        let rival = machine.openssh.as_deref().unwrap_or("no OpenSSH");
        let _ = writeln!(
            text,
            "Machine: {} cores ({}), {} GiB of memory, {}, {rival}.",
            machine.cores, machine.processor, machine.memory_gib, machine.kernel
        );
    }
    text
}

/// One line for each row, the paths beside each other.
fn table(part: &Part) -> String {
    let mut paths: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, &str, u64)> = Vec::new();
    for row in &part.rows {
        if !paths.contains(&row.path.as_str()) {
            paths.push(&row.path);
        }
        let line = (row.what.as_str(), row.unit.as_str(), row.delay_ms);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.sort_by_key(|line| part.rows.iter().position(|row| row.what == line.0));
    let delays = lines.iter().any(|line| line.2 > 0);
    let mut text = format!("| what |{}", if delays { " one way |" } else { "" });
    for path in &paths {
        let _ = write!(text, " {path} |");
    }
    text.push_str("\n|---|");
    text.push_str(if delays { "---:|" } else { "" });
    text.push_str(&"---:|".repeat(paths.len()));
    text.push('\n');
    for (what, unit, delay) in lines {
        let unit = match unit {
            "" => String::new(),
            unit => format!(", {unit}"),
        };
        let _ = write!(text, "| {what}{unit} |");
        if delays {
            let _ = write!(text, " {delay} ms |");
        }
        for path in &paths {
            let cell = part.row(what, path, delay).map(cell);
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// The median; quartiles where there were several runs, the 99th of a hundred where there were so
/// many.
fn cell(row: &Row) -> String {
    let value = &row.value;
    let mut text = format!("**{}**", number(value.median));
    if value.count > 1 {
        let _ = write!(text, " ({} – {}", number(value.q1), number(value.q3));
        if value.count >= 100 {
            let _ = write!(
                text,
                "; p99 {}, max {}",
                number(value.p99),
                number(value.max)
            );
        }
        text.push(')');
    }
    text
}

fn settings(part: &Part) -> String {
    let mut text = format!("\nMeasured on {} in {} s", part.day, part.seconds);
    for (name, value) in &part.settings {
        let _ = write!(text, "; {name}: {value}");
    }
    text.push_str(".\n");
    if let Some(remark) = &part.remark {
        let _ = writeln!(text, "\n*{remark}*");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Section;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

    #[test]
    fn the_committed_page_and_plot_are_what_the_committed_figures_make() {
        let folder = Path::new(FOLDER);
        let report = Report::read(&folder.join(FIGURES)).unwrap();
        for (name, made) in [(PAGE, page(&report)), (PLOT, plot::draw(&report))] {
            let committed = std::fs::read_to_string(folder.join(name)).unwrap();
            assert!(
                committed == made,
                "{name} is not of {FIGURES}: \
                 cargo lab bench --from docs/{FIGURES} --docs docs"
            );
        }
    }

    #[test]
    fn figures_survive_the_trip_through_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let report = Report::read(&Path::new(FOLDER).join(FIGURES)).unwrap();
        write(folder.path(), &report).unwrap();
        let again = Report::read(&folder.path().join(FIGURES)).unwrap();
        assert!(again == report);
        assert_eq!(page(&again), page(&report));
    }

    #[test]
    fn a_row_in_which_a_rival_leads_is_told() {
        let mut part = Part::new(Section::Tunnel, "2000-01-01".to_owned());
        part.add("tunnel down", "postern", 0, "MB/s", vec![100.0]);
        part.add("tunnel down", "ssh -L", 0, "MB/s", vec![200.0]);
        part.add("tunnel down", "direct TCP", 0, "MB/s", vec![900.0]);
        part.add("1-byte echo", "postern", 80, "ms", vec![1.0]);
        part.add("1-byte echo", "ssh -L", 80, "ms", vec![2.0]);
        let told = behind(&Report { parts: vec![part] });
        let expected = "- tunnel down: 100 MB/s, `ssh -L` has 200 (2.00x).";
        assert!(told.starts_with(expected), "{told}");
        assert!(!told.contains("echo") && !told.contains("direct"), "{told}");
    }
}
