//! What `check` finds, and how it says it.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// The agent works, but somebody should look.
    Warning,
    /// The agent does not work, or not safely.
    Error,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How bad.
    pub(crate) level: Level,
    /// What was checked.
    pub(crate) subject: String,
    /// What was found.
    pub(crate) message: String,
    /// The fix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

impl Finding {
    /// All is well.
    pub(crate) fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self::new(Level::Ok, subject, message.into(), None)
    }

    /// Somebody should look.
    pub(crate) fn warning(subject: &str, message: impl Into<String>, hint: &str) -> Self {
        Self::new(
            Level::Warning,
            subject,
            message.into(),
            Some(hint.to_owned()),
        )
    }

    /// It does not work.
    pub(crate) fn error(subject: &str, message: impl Into<String>, hint: &str) -> Self {
        Self::new(Level::Error, subject, message.into(), Some(hint.to_owned()))
    }

    /// An error whose message may carry its own `hint:` line.
    pub(crate) fn from_error(subject: &str, error: &dyn std::fmt::Display) -> Self {
        let text = error.to_string();
        match text.split_once("\nhint: ") {
            Some((message, hint)) => Self::error(subject, message, hint),
            None => Self::new(Level::Error, subject, text, None),
        }
    }

    fn new(level: Level, subject: &str, message: String, hint: Option<String>) -> Self {
        Self {
            level,
            subject: subject.to_owned(),
            message,
            hint,
        }
    }
}

/// For people: one line each, the fix below.
pub(super) fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for finding in findings {
        let level = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Error => "ERROR  ",
        };
        let _ = writeln!(text, "{level}  {}: {}", finding.subject, finding.message);
        if let Some(hint) = &finding.hint {
            let _ = writeln!(text, "         hint: {hint}");
        }
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    let plural = |count| if count == 1 { "" } else { "s" };
    let (some, more) = (plural(errors), plural(warnings));
    let _ = writeln!(text, "{errors} error{some}, {warnings} warning{more}");
    text
}

/// For programs.
pub(super) fn json(findings: &[Finding]) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Answer<'a> {
        passed: bool,
        findings: &'a [Finding],
    }
    let answer = Answer {
        passed: findings.iter().all(|finding| finding.level != Level::Error),
        findings,
    };
    Ok(serde_json::to_string(&answer)? + "\n")
}
