//! What DESIGN.md section 11 wants, against what was measured.

use std::fmt::Write as _;

use crate::bench::Section;
use crate::bench::report::{Report, number};

/// One thing to reach.
struct Goal {
    what: &'static str,
    wanted: String,
    measured: f64,
    unit: &'static str,
    met: bool,
}

/// A table of everything that the figures can tell.
pub(super) fn table(report: &Report) -> String {
    let mut text = "| what | to reach | measured | |\n|---|---|---:|---|\n".to_owned();
    for goal in goals(report) {
        let verdict = if goal.met {
            "reached"
        } else {
            "**not reached**"
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {}{} | {verdict} |",
            goal.what,
            goal.wanted,
            number(goal.measured),
            goal.unit
        );
    }
    text
}

fn goals(report: &Report) -> Vec<Goal> {
    let median = |section, what: &str, path: &str, delay| {
        let row = report.part(section)?.row(what, path, delay)?;
        Some(row.value.median)
    };
    let tunnel = |what, path, delay| median(Section::Tunnel, what, path, delay);
    let cpu = |path| tunnel("tunnel CPU, all ends", path, 0);
    let own = "postern";
    let at_most = |what, wanted: &str, measured: Option<f64>, most: f64, unit| {
        measured.map(|measured| Goal {
            what,
            wanted: wanted.to_owned(),
            measured,
            unit,
            met: measured <= most,
        })
    };
    let at_least = |what, wanted: &str, measured: Option<f64>, least: f64, unit| {
        measured.map(|measured| Goal {
            what,
            wanted: wanted.to_owned(),
            measured,
            unit,
            met: measured >= least,
        })
    };
    let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
    let added =
        |path| Some(tunnel("1-byte echo", path, 0)? - tunnel("1-byte echo", "direct TCP", 0)?);
    let command = |delay| {
        let of = |path| median(Section::Command, "true on the target", path, delay);
        ratio(of(own), of("ssh -J"))
    };
    let idle = |what| median(Section::Idle, what, own, 0);
    let scale = |what| median(Section::Scale, what, own, 0);
    let sessions = report
        .part(Section::Scale)
        .and_then(|part| part.settings.get("idle tunnels"))
        .map(|sessions| *sessions as f64);
    [
        at_most(
            "tunnel: CPU of all ends",
            "at most 1.25x that of three bare TCP hops",
            ratio(cpu(own), cpu("three bare hops")),
            1.25,
            "x",
        ),
        at_least(
            "tunnel: CPU of `ssh -L`",
            "at least 2.3x ours",
            ratio(cpu("ssh -L"), cpu(own)),
            2.3,
            "x",
        ),
        at_least(
            "tunnel: CPU of `ssh -L` with aes128-gcm",
            "at least 1.3x ours",
            ratio(cpu("ssh -L aes128-gcm"), cpu(own)),
            1.3,
            "x",
        ),
        at_least(
            "tunnel: download at 80 ms one way",
            "at least 0.9x direct TCP",
            ratio(
                tunnel("tunnel down", own, 80),
                tunnel("tunnel down", "direct TCP", 80),
            ),
            0.9,
            "x",
        ),
        at_least(
            "tunnel: upload at 80 ms one way",
            "at least 0.9x direct TCP",
            ratio(
                tunnel("tunnel up", own, 80),
                tunnel("tunnel up", "direct TCP", 80),
            ),
            0.9,
            "x",
        ),
        at_most(
            "echo: what we add to direct TCP",
            "at most half of what `ssh -L` adds",
            ratio(added(own), added("ssh -L")),
            0.5,
            "x",
        ),
        at_most(
            "new connection at 0 ms",
            "below `ssh -L`'s",
            ratio(
                tunnel("new connection", own, 0),
                tunnel("new connection", "ssh -L", 0),
            ),
            1.0,
            "x",
        ),
        at_most(
            "new connection at 80 ms one way",
            "one round trip (160 ms, and 10 for all the rest)",
            tunnel("new connection", own, 80),
            170.0,
            " ms",
        ),
        at_most(
            "`connect -- true` at 0 ms",
            "below half of `ssh -J`",
            command(0),
            0.5,
            "x",
        ),
        at_most(
            "`connect -- true` at 25 ms one way",
            "below half of `ssh -J`",
            command(25),
            0.5,
            "x",
        ),
        at_most(
            "`connect -- true` at 80 ms one way",
            "below half of `ssh -J`",
            command(80),
            0.5,
            "x",
        ),
        at_most(
            "agent memory: an idle tunnel",
            "at most 64 KiB",
            idle("agent memory, idle tunnel"),
            64.0,
            " KiB",
        ),
        at_most(
            "agent memory: an idle shell, after bulk",
            "at most 256 KiB",
            idle("agent memory, idle shell"),
            256.0,
            " KiB",
        ),
        at_least(
            "idle tunnels in one agent, each a session",
            "10,000",
            sessions,
            10_000.0,
            "",
        ),
        at_most(
            "agent memory: one of those",
            "at most 64 KiB",
            scale("agent memory, idle tunnel"),
            64.0,
            " KiB",
        ),
        at_most(
            "agent memory: one of many idle shells",
            "at most 256 KiB",
            scale("agent memory, idle shell"),
            256.0,
            " KiB",
        ),
        at_most(
            "login storm: clients turned away",
            "none",
            median(Section::Storm, "turned away", own, 0),
            0.0,
            "",
        ),
        at_most(
            "`postern --help`",
            "below 15 ms",
            median(Section::Command, "postern --help", own, 0),
            15.0,
            " ms",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}
