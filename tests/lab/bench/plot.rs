//! The plot beside the page: panels of bars and one line, as SVG text. The same figures make the
//! same bytes.

use std::fmt::Write as _;

use super::Section;
use super::report::{Report, Row, Series, number};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const GUTTER: f64 = 32.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN - GUTTER) / 2.0;
/// Names stand left of the bars, values right of them.
const NAMES: f64 = 128.0;
const VALUES: f64 = 76.0;
const BARS: f64 = PANEL - NAMES - VALUES;
const BAR: f64 = 14.0;
const STEP: f64 = 20.0;
const TITLE: f64 = 40.0;
const GROUP: f64 = 20.0;
const LINE: f64 = 150.0;

/// Whose a bar is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Rival,
    Limit,
}

impl Whose {
    fn of(path: &str) -> Self {
        match path {
            "postern" => Self::Ours,
            "direct TCP" | "three bare hops" => Self::Limit,
            path if path.contains("ssh") || path.contains("scp") => Self::Rival,
            _ => Self::Limit,
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ours => "#0f6fae",
            Self::Rival => "#d9822b",
            Self::Limit => "#9aa3ad",
        }
    }
}

struct Bar {
    name: String,
    value: f64,
    // Quartiles, where runs were several.
    range: Option<(f64, f64)>,
    whose: Whose,
}

impl Bar {
    fn of(name: &str, row: &Row) -> Self {
        Self {
            name: name.to_owned(),
            value: row.value.median,
            range: (row.value.count > 1).then_some((row.value.q1, row.value.q3)),
            whose: Whose::of(&row.path),
        }
    }
}

struct Panel {
    title: String,
    better: &'static str,
    groups: Vec<(String, Vec<Bar>)>,
}

impl Panel {
    fn height(&self) -> f64 {
        let groups = self.groups.iter().map(|(name, bars)| {
            let heading = if name.is_empty() { 0.0 } else { GROUP };
            heading + bars.len() as f64 * STEP
        });
        TITLE + groups.sum::<f64>() + 16.0
    }

    fn scale(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|(_, bars)| bars);
        let ends = bars.map(|bar| bar.range.map_or(bar.value, |range| range.1.max(bar.value)));
        let most = ends.fold(0.0, f64::max);
        if most > 0.0 { BARS / most } else { 0.0 }
    }

    fn draw(&self, svg: &mut Svg, left: f64, top: f64) {
        svg.text(left, top + 14.0, "title", &self.title);
        svg.text(left, top + 29.0, "note", self.better);
        let scale = self.scale();
        let start = left + NAMES;
        let mut y = top + TITLE;
        for (name, bars) in &self.groups {
            if !name.is_empty() {
                svg.text(left, y + 14.0, "group", name);
                y += GROUP;
            }
            for bar in bars {
                svg.end_text(start - 8.0, y + 11.0, &bar.name);
                svg.bar(start, y, bar.value * scale, bar.whose.colour());
                let mut end = bar.value * scale;
                if let Some((from, to)) = bar.range {
                    svg.whisker(start + from * scale, start + to * scale, y + BAR / 2.0);
                    end = end.max(to * scale);
                }
                svg.text(start + end + 6.0, y + 11.0, "value", &number(bar.value));
                y += STEP;
            }
        }
    }
}

/// All panels that the figures allow.
pub fn draw(report: &Report) -> String {
    let panels: Vec<Panel> = panels(report)
        .into_iter()
        .filter(|panel| !panel.groups.is_empty())
        .collect();
    let memory = report
        .part(Section::Soak)
        .and_then(|part| part.series.iter().find(|s| s.what == "agent memory"))
        .filter(|series| series.points.len() > 2);
    let mut svg = Svg::default();
    let mut top = 64.0;
    for pair in panels.chunks(2) {
        for (column, panel) in pair.iter().enumerate() {
            panel.draw(&mut svg, MARGIN + column as f64 * (PANEL + GUTTER), top);
        }
        top += pair.iter().map(Panel::height).fold(0.0, f64::max);
    }
    if let Some(series) = memory {
        line(&mut svg, series, top);
        top += LINE + 64.0;
    }
    svg.finish(top)
}

fn panels(report: &Report) -> Vec<Panel> {
    let of = |section, what: &'static str, delays: &[u64]| -> Vec<(String, Vec<Bar>)> {
        let Some(part) = report.part(section) else {
            return Vec::new();
        };
        let group = |delay: &u64| {
            let rows = part
                .rows
                .iter()
                .filter(|row| row.what == what && row.delay_ms == *delay);
            let bars: Vec<Bar> = rows.map(|row| Bar::of(&row.path, row)).collect();
            let name = match delays.len() {
                1 => String::new(),
                _ => format!("{delay} ms one way"),
            };
            (!bars.is_empty()).then_some((name, bars))
        };
        delays.iter().filter_map(group).collect()
    };
    let panel = |title: &str, better, groups| Panel {
        title: title.to_owned(),
        better,
        groups,
    };
    let all = [0, 25, 80];
    vec![
        panel(
            "Tunnel, download, MB/s",
            "longer is better",
            of(Section::Tunnel, "tunnel down", &all),
        ),
        panel(
            "New connection through a tunnel, ms",
            "shorter is better",
            of(Section::Tunnel, "new connection", &all),
        ),
        panel(
            "Tunnel, CPU of all ends, s/GiB",
            "shorter is better",
            of(Section::Tunnel, "tunnel CPU, all ends", &[0]),
        ),
        panel(
            "Tunnel, echo of one byte, ms",
            "shorter is better",
            of(Section::Tunnel, "1-byte echo", &[0]),
        ),
        panel(
            "A command from nothing to its end, ms",
            "shorter is better",
            of(Section::Command, "true on the target", &all),
        ),
        panel(
            "An idle shell, KiB",
            "shorter is better",
            [
                ("bastion", "agent memory, idle shell"),
                ("client", "client memory, a shell"),
            ]
            .into_iter()
            .flat_map(|(name, what)| {
                let groups = of(Section::Idle, what, &[0]);
                groups.into_iter().map(|(_, bars)| (name.to_owned(), bars))
            })
            .collect(),
        ),
        panel(
            "Streams and files, MB/s",
            "longer is better",
            [
                "connect -- cat, down",
                "connect -- cat, up",
                "scp, down",
                "scp, up",
            ]
            .into_iter()
            .flat_map(|what| {
                let groups = of(Section::Copy, what, &[0]);
                groups.into_iter().map(|(_, bars)| (what.to_owned(), bars))
            })
            .collect(),
        ),
        panel(
            "Typing among many, ms",
            "median and 99th of a hundred keys; shorter is better",
            many(
                report,
                &[
                    (
                        Section::Fairness,
                        "keystroke echo, no bulk",
                        "shells, nothing else",
                    ),
                    (
                        Section::Fairness,
                        "keystroke echo, beside bulk",
                        "shells beside a bulk tunnel",
                    ),
                    (
                        Section::Scale,
                        "echo among all",
                        "active tunnels among all sessions",
                    ),
                ],
            ),
        ),
        panel(
            "A login storm, ms since its start",
            "median and 99th of a hundred clients; shorter is better",
            many(
                report,
                &[
                    (Section::Storm, "enrolled", "enrolled"),
                    (Section::Storm, "first byte", "first byte from the target"),
                ],
            ),
        ),
    ]
}

/// Medians and 99th percentiles of what many people wait for.
fn many(report: &Report, rows: &[(Section, &str, &str)]) -> Vec<(String, Vec<Bar>)> {
    rows.iter()
        .filter_map(|(section, what, name)| {
            let row = report.part(*section)?.row(what, "postern", 0)?;
            let bar = |name: &str, value| Bar {
                name: name.to_owned(),
                value,
                range: None,
                whose: Whose::Ours,
            };
            let bars = vec![bar("median", row.value.median), bar("p99", row.value.p99)];
            Some(((*name).to_owned(), bars))
        })
        .collect()
}

/// The agent's memory over the soak, from zero.
fn line(svg: &mut Svg, series: &Series, top: f64) {
    let title = format!("The agent's memory over the soak, {}", series.unit);
    svg.text(MARGIN, top + 14.0, "title", &title);
    let (left, right) = (MARGIN + 48.0, WIDTH - MARGIN);
    let (above, below) = (top + 32.0, top + 32.0 + LINE - 32.0);
    let last = series.points.last().map_or(1.0, |point| point.0).max(1.0);
    let most = series.points.iter().map(|p| p.1).fold(0.0, f64::max) * 1.15;
    let x = |seconds: f64| left + (right - left) * seconds / last;
    let y = |value: f64| below - (below - above) * value / most.max(1e-9);
    for part in [0.0, 0.5, 1.0] {
        let value = most / 1.15 * part;
        svg.rule(left, right, y(value));
        svg.end_text(left - 8.0, y(value) + 4.0, &number(value));
    }
    let points: Vec<String> = series
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
        .collect();
    svg.line(&points.join(" "), Whose::Ours.colour());
    svg.text(left, below + 18.0, "note", "start");
    let end = format!("{} minutes", number((last / 60.0).round()));
    svg.end_text(right, below + 18.0, &end);
}

/// SVG text that grows.
#[derive(Default)]
struct Svg(String);

impl Svg {
    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{element}");
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape(text);
        self.push(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{text}</text>"#
        ));
    }

    fn end_text(&mut self, x: f64, y: f64, text: &str) {
        let text = escape(text);
        self.push(format_args!(
            r#"<text class="name" x="{x:.1}" y="{y:.1}" text-anchor="end">{text}</text>"#
        ));
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, colour: &str) {
        // What is there is seen, however small.
        let width = width.max(1.5);
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{BAR:.1}" rx="2" fill="{colour}"/>"#
        ));
    }

    fn whisker(&mut self, from: f64, to: f64, y: f64) {
        self.push(format_args!(
            r##"<path d="M{from:.1} {y:.1}H{to:.1}" stroke="#1f2933" stroke-width="1.5"/>"##
        ));
    }

    fn rule(&mut self, from: f64, to: f64, y: f64) {
        self.push(format_args!(
            r##"<path d="M{from:.1} {y:.1}H{to:.1}" stroke="#e1e5ea"/>"##
        ));
    }

    fn line(&mut self, points: &str, colour: &str) {
        self.push(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>"#
        ));
    }

    fn finish(self, height: f64) -> String {
        let mut whole = Self::default();
        whole.push(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0}" viewBox="0 0 {WIDTH} {height:.0}" font-family="system-ui, 'DejaVu Sans', Arial, sans-serif">"#
        ));
        whole.push(format_args!(
            "<style>text{{font-size:11.5px;fill:#1f2933}}.title{{font-size:14px;font-weight:600}}\
             .note{{font-size:11px;fill:#66707c}}.group{{font-size:11px;font-weight:600}}\
             .name{{fill:#3d4752}}.value{{font-weight:600}}</style>"
        ));
        whole.push(format_args!(
            r##"<rect width="100%" height="100%" fill="#ffffff"/>"##
        ));
        let mut x = MARGIN;
        for (whose, name) in [
            (Whose::Ours, "Postern"),
            (Whose::Rival, "OpenSSH"),
            (Whose::Limit, "the limit: TCP without either"),
        ] {
            whole.bar(x, 24.0, BAR, whose.colour());
            whole.text(x + BAR + 8.0, 35.0, "name", name);
            x += 110.0;
        }
        whole.text(
            x + 130.0,
            35.0,
            "note",
            "medians; black lines: quartiles of the runs",
        );
        whole.0.push_str(&self.0);
        whole.0.push_str("</svg>\n");
        whole.0
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
