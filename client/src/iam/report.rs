//! Findings for people and programs.

use serde::Serialize;
use serde_json::{Value, json};

use super::check::{Finding, Judged, State};
use super::shape::Shape;

/// What the whole check says.
#[derive(Debug)]
pub struct Report<'a> {
    shape: &'a Shape,
    judged: Vec<Judged>,
}

/// What AWS's simulation does not see; the same in help, text and JSON.
pub const UNSEEN: &str = "not seen: resource policies, resource control policies, session policies, \
    VPC endpoint policies, and statements that name single instances (but those of --instance)";

impl<'a> Report<'a> {
    /// Of identities that were asked about.
    pub fn new(shape: &'a Shape, judged: Vec<Judged>) -> Self {
        Self { shape, judged }
    }

    /// What does not hold.
    pub fn faults(&self) -> usize {
        self.judged.iter().map(|one| one.faults().count()).sum()
    }

    /// Lines for people; `all` with the checks that hold.
    pub fn lines(&self, all: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for judged in self.shown() {
            let who = judged.who();
            let holding = judged
                .findings
                .iter()
                .filter(|one| one.state == State::Holds);
            let faults: Vec<&Finding> = judged.faults().collect();
            if all {
                let told = holding
                    .clone()
                    .map(|one| format!("ok       {who}: {}", one.message));
                lines.extend(told);
            } else if faults.is_empty() {
                let count = match holding.count() {
                    1 => "1 check holds".to_owned(),
                    count => format!("{count} checks hold"),
                };
                lines.push(format!("ok       {who}: {count}"));
            }
            for fault in faults {
                let label = fault.state.label();
                lines.push(format!("{label:<8} {who}: {}", fault.message));
                let hint = fault.next_step();
                lines.extend(hint.map(|hint| format!("         hint: {hint}")));
            }
        }
        lines.push(self.summary());
        lines.push(UNSEEN.to_owned());
        lines
    }

    fn summary(&self) -> String {
        let good = self
            .shown()
            .filter(|one| one.faults().next().is_none())
            .count();
        let all = self.shown().count();
        let silent = self.judged.len() - all;
        let mut text = match self.faults() {
            0 => format!("all holds for {}", identities(all)),
            1 => format!("1 finding; all holds for {good} of {}", identities(all)),
            faults => format!(
                "{faults} findings; all holds for {good} of {}",
                identities(all)
            ),
        };
        if silent > 0 {
            text.push_str(&format!("; {silent} more may start no session"));
        }
        text
    }

    /// The stable form.
    pub fn json(&self) -> Value {
        let principals: Vec<Value> = self.shown().map(Judged::json).collect();
        json!({
            "account": self.shape.account,
            "regions": self.shape.regions,
            "principals": principals,
            "findings": self.faults(),
            "without_sessions": self.judged.len() - principals.len(),
            "unseen": UNSEEN,
        })
    }

    fn shown(&self) -> impl Iterator<Item = &Judged> {
        self.judged.iter().filter(|one| one.named || one.concerned)
    }
}

impl Judged {
    fn who(&self) -> String {
        let kind = if self.subject.is_role { "role" } else { "user" };
        format!("{kind}/{}", self.subject.name)
    }

    fn json(&self) -> Value {
        let checks: Vec<Value> = self.findings.iter().map(Finding::json).collect();
        json!({
            "principal": self.who(),
            "arn": self.subject.arn,
            "holds": self.faults().next().is_none(),
            "checks": checks,
        })
    }
}

impl Finding {
    fn json(&self) -> Value {
        /// Left out where there is nothing.
        #[derive(Serialize)]
        struct Told<'a> {
            check: &'static str,
            state: &'static str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<&'a String>,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            statements: &'a [super::statement::Statement],
        }
        let told = Told {
            check: self.check.id(),
            state: self.state.id(),
            message: &self.message,
            hint: self.hint.as_ref(),
            statements: &self.statements,
        };
        // Texts alone: nothing in it has no JSON form.
        serde_json::to_value(told).unwrap_or_default()
    }
}

impl State {
    fn label(self) -> &'static str {
        match self {
            Self::Holds => "ok",
            Self::Open => "OPEN",
            Self::Missing => "MISSING",
            Self::Unclear => "UNCLEAR",
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Open => "open",
            Self::Missing => "missing",
            Self::Unclear => "unclear",
        }
    }
}

fn identities(count: usize) -> String {
    match count {
        1 => "1 identity".to_owned(),
        count => format!("{count} identities"),
    }
}
