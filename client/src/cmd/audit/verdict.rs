//! What `audit verify` found, told.

use std::fmt;

use postern_proto::audit::verify::{self, Report, SessionState};
use serde::Serialize;
use serde_json::json;

use crate::error::Error;
use crate::output::{Printer, neutral};

/// How reports are told.
pub(super) struct Verdict {
    pub(super) printer: Printer,
    /// Whether recordings could be read, not only compared with the log.
    pub(super) decrypted: bool,
}

impl Verdict {
    pub(super) fn tell(&self, reports: &[(String, Report)]) -> Result<(), Error> {
        let printer = self.printer;
        if printer.json {
            let mut objects = reports.iter().map(|(log, report)| self.json(log, report));
            let mut first = objects.next().unwrap_or_default();
            if let (Some(members), true) = (first.as_object_mut(), reports.len() > 1) {
                members.insert("further".to_owned(), objects.collect());
            }
            return printer.json(&first);
        }
        for (log, report) in reports {
            if reports.len() > 1 {
                printer.answer(format!("log {}:", neutral(log)))?;
            }
            self.report(report)?;
        }
        Ok(())
    }

    fn json(&self, log: &str, report: &Report) -> serde_json::Value {
        let outside: Vec<_> = report
            .outside
            .iter()
            .map(|outside| {
                json!({
                    "name": outside.name,
                    "size": outside.size,
                    "consistent": outside.consistent,
                })
            })
            .collect();
        json!({
            "log": log,
            "holds": report.holds(),
            "entries": report.size,
            "unsigned": report.unsigned,
            "checkpoint": report.checkpoint,
            "faults": report.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "rollback_excluded": report.rollback_excluded(),
            "outside": outside,
            "sessions": Counted::of(&report.sessions),
            "recordings": {
                "match": report.recordings,
                "interrupted": report.interrupted,
                "deleted": report.deleted,
                "decrypted": self.decrypted,
            },
            "claims": {
                "entries": report.claims.entries,
                "sessions": Counted::of(&report.claims.sessions),
                "recordings_elsewhere": report.claims.elsewhere,
            },
            "unknown_entries": report.unknown,
        })
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        let printer = self.printer;
        for fault in &report.faults {
            printer.answer(format!("BROKEN: {}", neutral(&fault.to_string())))?;
        }
        let verdict = if report.holds() {
            "the evidence holds"
        } else {
            "the evidence is broken"
        };
        printer.answer(format!(
            "{verdict}: {} entries, {} unsigned after them",
            report.size, report.unsigned
        ))?;
        printer.answer(format!("sessions: {}", Counted::of(&report.sessions)))?;
        if !report.claims.sessions.is_empty() {
            printer.answer(format!(
                "claims of clients, which no agent saw: {}; {} entries handed over",
                Counted::of(&report.claims.sessions),
                report.claims.entries
            ))?;
        }
        printer.answer(format!(
            "recordings: {} match the log, {} interrupted, {} deleted by retention{}",
            report.recordings,
            report.interrupted.len(),
            report.deleted.len(),
            if !self.decrypted {
                "; not decrypted (no --identity)"
            } else {
                ""
            },
        ))?;
        if !report.unknown.is_empty() {
            printer.answer(format!(
                "{} entries are of a later version",
                report.unknown.len()
            ))?;
        }
        for outside in &report.outside {
            let held = if outside.consistent {
                "agrees"
            } else {
                "DOES NOT AGREE"
            };
            printer.answer(format!(
                "{}: {held} with the first {} entries",
                neutral(&outside.name),
                outside.size
            ))?;
        }
        printer.answer(neutral(&report.rollback()))
    }
}

/// Sessions by how they ended.
#[derive(Debug, Serialize)]
struct Counted {
    open: usize,
    closed: usize,
    interrupted: usize,
}

impl Counted {
    fn of(sessions: &[verify::Session]) -> Self {
        let count = |wanted| {
            let sessions = sessions.iter();
            sessions.filter(|session| session.state == wanted).count()
        };
        Self {
            open: count(SessionState::Open),
            closed: count(SessionState::Closed),
            interrupted: count(SessionState::Interrupted),
        }
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            open,
            closed,
            interrupted,
        } = self;
        write!(f, "{closed} closed, {open} open, {interrupted} interrupted")
    }
}
