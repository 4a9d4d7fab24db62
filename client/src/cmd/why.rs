//! `postern why TARGET [ACTION]`: what policy says, without opening anything.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cli::WhyArgs;
use crate::context::Context;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::http::Client;

/// What is asked.
#[derive(Debug, Serialize)]
struct Question<'a> {
    target: &'a str,
    action: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

/// The agent's answer. It may say more than this version shows.
#[derive(Debug, Deserialize)]
struct Explanation {
    verdict: Verdict,
    #[serde(default)]
    policies: Vec<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    hint: Option<String>,
    #[serde(default)]
    permits: Vec<Permit>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    ports: Vec<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Allow,
    StepUp,
    Deny,
}

/// A permit that is about the action and target.
#[derive(Debug, Deserialize)]
struct Permit {
    id: String,
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    line: Option<usize>,
    #[serde(default)]
    for_you: bool,
    #[serde(default)]
    holds: bool,
    #[serde(default)]
    with_fresh_mfa: bool,
    #[serde(default)]
    conditions: Vec<Condition>,
}

/// One of its conditions, in Cedar; `holds` is absent where that cannot be told on its own.
#[derive(Debug, Deserialize)]
struct Condition {
    text: String,
    #[serde(default)]
    holds: Option<bool>,
}

/// Asks and answers: 0 for a yes (with a fresh code too), 1 for a no.
pub async fn run(context: &Context, args: WhyArgs) -> Result<ExitCode, Error> {
    let user = match (&args.user, args.action.as_str()) {
        (Some(user), _) => Some(user.to_string()),
        // As `connect` would ask.
        (None, "connect") => super::connect::destination(context, None, &args.target)
            .ok()
            .map(|(user, _)| user.to_string()),
        (None, _) => None,
    };
    let question = Question {
        target: args.target.as_str(),
        action: &args.action,
        user,
        port: args.port,
        host: args.host.clone(),
    };
    let gateway = Gateway::of(context).await?;
    let answer: Value = Client::connect(gateway)
        .await?
        .post_json("/v1/why", &question)
        .await?;
    let explanation: Explanation = serde_json::from_value(answer.clone())
        .map_err(|error| Error::failed(format!("the agent's answer cannot be read: {error}")))?;
    if context.printer.json {
        context.printer.json(&answer)?;
    } else {
        for line in explanation.lines(&question) {
            context.printer.answer(line)?;
        }
    }
    Ok(ExitCode::from(u8::from(
        explanation.verdict == Verdict::Deny,
    )))
}

impl Explanation {
    fn lines(&self, question: &Question<'_>) -> Vec<String> {
        let mut what = format!("{} on {}", question.action, question.target);
        if let Some(user) = &question.user {
            what.push_str(&format!(" as {user}"));
        }
        match (&question.host, question.port) {
            (Some(host), Some(port)) => what.push_str(&format!(" to {host}:{port}")),
            (None, Some(port)) => what.push_str(&format!(" to port {port}")),
            _ => {}
        }
        let verdict = match self.verdict {
            Verdict::Allow => "allowed",
            Verdict::StepUp => "allowed with a fresh MFA code",
            Verdict::Deny => "denied",
        };
        let mut lines = vec![format!("{verdict}: {what}")];
        if !self.policies.is_empty() {
            lines.push(format!("policies: {}", self.policies.join(", ")));
        }
        lines.extend(
            self.message
                .as_ref()
                .map(|message| format!("reason: {message}")),
        );
        if self.verdict == Verdict::Deny {
            for permit in &self.permits {
                lines.extend(permit.lines());
            }
            if !self.users.is_empty() {
                lines.push(format!("allowed users: {}", self.users.join(", ")));
            }
            if !self.ports.is_empty() {
                let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
                lines.push(format!("allowed ports: {}", ports.join(", ")));
            }
        }
        lines.extend(self.hint.as_ref().map(|hint| format!("hint: {hint}")));
        lines
    }
}

impl Permit {
    /// Why it does not open this, condition by condition.
    fn lines(&self) -> Vec<String> {
        let place = match (&self.file, self.line) {
            (Some(file), Some(line)) => format!(" ({file} line {line})"),
            _ => String::new(),
        };
        let state = if !self.for_you {
            "is for somebody else"
        } else if self.holds {
            "holds"
        } else if self.with_fresh_mfa {
            "would hold with a fresh MFA code"
        } else {
            "does not hold"
        };
        let mut lines = vec![format!("permit {}{place} {state}", self.id)];
        let missing = self.conditions.iter().filter_map(|condition| {
            let text = one_line(&condition.text);
            match condition.holds {
                Some(true) => None,
                Some(false) => Some(format!("  this is not so: {text}")),
                None => Some(format!("  this cannot be told on its own: {text}")),
            }
        });
        if !self.holds {
            lines.extend(missing);
        }
        lines
    }
}

/// Cedar's text may go over several lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_names_policy_reason_and_what_would_do() {
        let answer = r#"{"verdict":"deny","action":"connect","principal":"x","policies":["no-root"],
            "message":"alice may not be root","hint":"use ec2-user","permits":[
            {"id":"operators","file":"team.cedar","line":7,"for_you":true,"holds":false,"with_fresh_mfa":false,"conditions":[
              {"text":"context.user ==\n  \"ec2-user\"","holds":false},{"text":"resource.hasTag(\"env\")","holds":true},
              {"text":"resource.getTag(\"env\") == \"prod\"","holds":null}]},
            {"id":"at-night","file":"team.cedar","line":9,"for_you":true,"holds":false,"with_fresh_mfa":true,"conditions":[]},
            {"id":"others","file":"team.cedar","line":12,"for_you":false,"holds":false,"with_fresh_mfa":false,"conditions":[]}],
            "users":["ec2-user"],"ports":[],"digest":"00"}"#;
        let explanation: Explanation = serde_json::from_str(answer).unwrap();
        let question = Question {
            target: "web-1",
            action: "connect",
            user: Some("root".to_owned()),
            port: None,
            host: None,
        };
        insta::assert_snapshot!(explanation.lines(&question).join("\n"), @r#"
        denied: connect on web-1 as root
        policies: no-root
        reason: alice may not be root
        permit operators (team.cedar line 7) does not hold
          this is not so: context.user == "ec2-user"
          this cannot be told on its own: resource.getTag("env") == "prod"
        permit at-night (team.cedar line 9) would hold with a fresh MFA code
        permit others (team.cedar line 12) is for somebody else
        allowed users: ec2-user
        hint: use ec2-user
        "#);
    }
}
