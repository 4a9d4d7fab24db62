//! `lab bench`: what Postern costs and how fast it is, measured in sections that can be run apart,
//! beside OpenSSH, bare TCP hops and direct TCP in the same run where there is something to
//! compare with. Figures are printed and never asserted.
//!
//! ```text
//! route ─ measure ─ bulk, delay, hops, rival       tunnels and commands, beside OpenSSH
//! copy, ssm, limit                                 files; the SSM route; the provider's TLS records
//! scale, storm, fairness, soak ─ crowd             many people at once
//! report ─ spread, machine                         rows, as a table and as JSON
//! page ─ plot                                      docs/PERFORMANCE.md from that JSON
//! ```

pub mod bulk;
pub mod copy;
pub mod cost;
pub mod crowd;
pub mod delay;
pub mod fairness;
pub mod hops;
pub mod idle;
pub mod limit;
pub mod machine;
pub mod measure;
pub mod page;
pub mod plot;
pub mod report;
pub mod rival;
pub mod route;
pub mod scale;
pub mod soak;
pub mod spread;
pub mod ssm;
pub mod storm;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use self::measure::Plan;
use self::report::{Part, Report};
use crate::console;
use crate::stack::{Lab, Options};

/// `lab bench` options.
#[derive(Debug, Clone, Parser)]
#[command(name = "lab bench")]
pub struct Arguments {
    /// Only these sections.
    #[arg(long, value_delimiter = ',', value_name = "SECTION")]
    only: Vec<Section>,
    /// Also write the figures here, as JSON. Sections that the file has and this run does not
    /// measure are kept.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also renew the figures and the page in this folder: performance.json, PERFORMANCE.md and
    /// performance.svg.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
    /// Measure nothing: take the figures from this JSON (with --docs, or to print them). Of several
    /// files, each renews the sections that it has.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "json"])]
    from: Vec<PathBuf>,
    /// What else a reader should know of this run: it stands with its figures.
    #[arg(long, value_name = "TEXT")]
    remark: Option<String>,
    /// Runs per row; medians are shown.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// MiB per bulk transfer.
    #[arg(long, default_value_t = 512)]
    mebibytes: u64,
    /// One-way delays in milliseconds.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 25, 80])]
    delays: Vec<u64>,
    /// Idle sessions to weigh one session with.
    #[arg(long, default_value_t = 200)]
    idle: usize,
    /// Idle tunnels of the scale section.
    #[arg(long, default_value_t = 10_000)]
    sessions: usize,
    /// Idle shells of the scale section, besides.
    #[arg(long, default_value_t = 1000)]
    shells: usize,
    /// Active tunnels of the scale section, besides.
    #[arg(long, default_value_t = 1000)]
    active: usize,
    /// Clients of the login storm.
    #[arg(long, default_value_t = 500)]
    storm: usize,
    /// Shells that type in the fairness section.
    #[arg(long, default_value_t = 100)]
    typing: usize,
    /// Seconds of the soak; an hour tells of leaks.
    #[arg(long, default_value_t = 60)]
    soak: u64,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Section {
    /// TLS records of the provider on one core.
    Limit,
    /// Tunnels, beside `ssh -L` and bare TCP.
    Tunnel,
    /// `connect TARGET -- true` beside `ssh -J`.
    Command,
    /// Files and streams, beside `scp` and `ssh -J`.
    Copy,
    /// What an idle session costs, beside sshd.
    Idle,
    /// The SSM route.
    Ssm,
    /// Thousands of sessions.
    Scale,
    /// Everybody logs in at once.
    Storm,
    /// One bulk tunnel beside many who type.
    Fairness,
    /// Hours of coming and going.
    Soak,
}

impl Section {
    /// Whether memory is weighed.
    fn weighs(self) -> bool {
        matches!(self, Self::Idle | Self::Scale | Self::Soak)
    }

    /// As a heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Limit => "TLS records on one core",
            Self::Tunnel => "Tunnels",
            Self::Command => "Commands",
            Self::Copy => "Files and streams",
            Self::Idle => "An idle session",
            Self::Ssm => "The SSM route",
            Self::Scale => "Thousands of sessions",
            Self::Storm => "A login storm",
            Self::Fairness => "Typing beside a bulk tunnel",
            Self::Soak => "A soak",
        }
    }
}

impl Arguments {
    /// Whether a lab is needed at all.
    pub fn measures(&self) -> bool {
        self.from.is_empty()
    }

    /// The lab that is measured.
    pub fn options(&self) -> Options {
        crowd::options()
    }

    fn sections(&self) -> Vec<Section> {
        match self.only.is_empty() {
            true => Section::value_variants().to_vec(),
            false => self.only.clone(),
        }
    }
}

/// Prints what files tell, and makes the page of it where that was asked for.
pub fn show(arguments: &Arguments) -> Result<()> {
    let mut report = Report::default();
    for file in &arguments.from {
        report.renew(Report::read(file)?.parts);
    }
    for part in &report.parts {
        part.print();
    }
    publish(arguments, &report)
}

/// Measures and prints.
pub async fn run(lab: &Lab, arguments: &Arguments) -> Result<()> {
    login(lab).await?;
    let mut parts: Vec<Part> = Vec::new();
    for section in arguments.sections() {
        console::note(&format!("measuring: {}", section.title()));
        let mut part = Part::new(section, today());
        let started = Instant::now();
        let measured = if section.weighs() {
            // An agent that carried something before has pages to spare.
            let fresh = Lab::start(arguments.options()).await?;
            login(&fresh).await?;
            let measured = measure(&fresh, arguments, &mut part).await;
            fresh.stop().await?;
            measured
        } else {
            measure(lab, arguments, &mut part).await
        };
        measured.with_context(|| format!("section `{section:?}`"))?;
        part.seconds = started.elapsed().as_secs();
        part.remark.clone_from(&arguments.remark);
        part.compare();
        part.print();
        // One section's failure does not lose those before it.
        parts.push(part);
        if let Some(path) = &arguments.json {
            let mut report = match path.exists() {
                true => Report::read(path)?,
                false => Report::default(),
            };
            report.renew(parts.clone());
            report.write(path)?;
        }
    }
    if let Some(folder) = &arguments.docs {
        let path = folder.join(page::FIGURES);
        let mut report = match path.exists() {
            true => Report::read(&path)?,
            false => Report::default(),
        };
        report.renew(parts);
        publish(arguments, &report)?;
    }
    Ok(())
}

fn publish(arguments: &Arguments, report: &Report) -> Result<()> {
    match &arguments.docs {
        Some(folder) => page::write(folder, report),
        None => Ok(()),
    }
}

async fn measure(lab: &Lab, arguments: &Arguments, part: &mut Part) -> Result<()> {
    let plan = Plan {
        runs: arguments.runs,
        bytes: arguments.mebibytes << 20,
    };
    match part.section {
        Section::Limit => limit::run(plan, part).await,
        Section::Tunnel => route::tunnels(lab, plan, &arguments.delays, part).await,
        Section::Command => route::commands(lab, plan, &arguments.delays, part).await,
        Section::Copy => copy::run(lab, plan, part).await,
        Section::Idle => idle::run(lab, arguments.idle, part).await,
        Section::Ssm => ssm::run(lab, plan, part).await,
        Section::Scale => {
            let sizes = scale::Sizes {
                tunnels: arguments.sessions,
                shells: arguments.shells,
                active: arguments.active,
            };
            scale::run(lab, sizes, part).await
        }
        Section::Storm => storm::run(lab, arguments.storm, part).await,
        Section::Fairness => fairness::run(lab, arguments.typing, part).await,
        Section::Soak => soak::run(lab, Duration::from_secs(arguments.soak), part).await,
    }
}

/// The day in UTC, as people write it.
fn today() -> String {
    time::OffsetDateTime::now_utc().date().to_string()
}

async fn login(lab: &Lab) -> Result<()> {
    let mut command = lab.postern("alice");
    command
        .arg("login")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = command.status().await?;
    ensure!(status.success(), "postern login ended with {status}");
    Ok(())
}
