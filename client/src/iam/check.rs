//! Answers of IAM made into findings: what is open, what is missing, what cannot be told.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::api::{Answer, Iam, Identity};
use super::document::compact;
use super::error::PolicyError;
use super::probe::{self, Probe, Scope, Subject};
use super::question::Check;
use super::shape::{Shape, Tags};
use super::statement::Statement;
use super::trust;

/// Identities that are asked about at once: IAM throttles early.
const AT_ONCE: usize = 4;
/// Resources that one message names.
const SHOWN: usize = 3;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Holds,
    /// Allowed, and must not be.
    Open,
    /// Not allowed, and must be.
    Missing,
    /// Policies read values that the question does not have.
    Unclear,
}

/// One check of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was asked.
    pub check: Check,
    /// How it came out.
    pub state: State,
    /// One sentence without a full stop.
    pub message: String,
    /// The next step.
    pub hint: Option<String>,
    /// Statements that would mend it.
    pub statements: Vec<Statement>,
}

/// One identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Who.
    pub subject: Subject,
    /// Whether it was named, so that it must be able to work.
    pub named: bool,
    /// Whether it may start a session at all, or that is not known.
    pub concerned: bool,
    /// Its checks, holding ones too.
    pub findings: Vec<Finding>,
}

impl Judged {
    /// What does not hold.
    pub fn faults(&self) -> impl Iterator<Item = &Finding> {
        let counts = self.named || self.concerned;
        self.findings
            .iter()
            .filter(move |finding| counts && finding.state != State::Holds)
    }
}

/// Asks about all of them, in this order; `named` of each says whether it must be able to work.
pub async fn judge_all(
    iam: &Iam,
    scope: &Scope<'_>,
    identities: Vec<(Identity, bool)>,
) -> Result<Vec<Judged>, PolicyError> {
    stream::iter(identities)
        .map(|(identity, named)| judge(iam, scope, identity, named))
        .buffered(AT_ONCE)
        .try_collect()
        .await
}

async fn judge(
    iam: &Iam,
    scope: &Scope<'_>,
    identity: Identity,
    named: bool,
) -> Result<Judged, PolicyError> {
    let subject = identity.subject;
    let mut outcomes = Vec::new();
    for probe in probe::probes(scope, &subject, named) {
        let answers = iam.simulate(&subject, &probe).await?;
        outcomes.push(Outcome::of(&probe, answers));
    }
    let may_start = |outcome: &Outcome| {
        outcome.check.is_about_targets() && !(outcome.allowed.is_empty() && outcome.keys.is_empty())
    };
    let concerned = outcomes.iter().any(may_start);
    let mut findings = findings(scope, &subject, &outcomes, named);
    if let Some(document) = identity.trust.filter(|_| concerned || named) {
        findings.insert(0, trusted(scope.shape, &subject, &document));
    }
    let starts =
        |finding: &Finding| finding.check == Check::Start && finding.state == State::Missing;
    if subject.is_role
        && let Some(start) = findings.iter_mut().find(|finding| starts(finding))
        && let Some(probe) = probe::start_as_if_with_mfa(scope, &subject)
    {
        let answers = iam.simulate(&subject, &probe).await?;
        if answers.iter().any(|answer| answer.allowed) {
            start.hint = Some(
                "its policies ask for MFA, which no role session carries: ask for it in the \
                 trust policy (postern policy iam --for attestation) and use the policy of \
                 --for operators-role"
                    .to_owned(),
            );
            start.statements.clear();
        }
    }
    Ok(Judged {
        subject,
        named,
        concerned,
        findings,
    })
}

/// What the answers to one probe say.
#[derive(Debug)]
struct Outcome {
    check: Check,
    allowed: Vec<Answer>,
    denied: Vec<Answer>,
    /// Keys that were not given and that policies read.
    keys: Vec<String>,
}

impl Outcome {
    fn of(probe: &Probe, answers: Vec<Answer>) -> Self {
        let mut keys: Vec<String> = answers
            .iter()
            .flat_map(|answer| &answer.missing)
            .filter(|key| {
                !probe
                    .absent
                    .iter()
                    .any(|absent| absent.eq_ignore_ascii_case(key))
            })
            .cloned()
            .collect();
        keys.sort();
        keys.dedup();
        let (allowed, denied) = answers.into_iter().partition(|answer| answer.allowed);
        Self {
            check: probe.check,
            allowed,
            denied,
            keys,
        }
    }

    fn state(&self) -> State {
        let must = self.check.must_be_allowed();
        match (must, self.allowed.is_empty(), self.denied.is_empty()) {
            // Open is open, whatever else policies read.
            (false, false, _) => State::Open,
            _ if !self.keys.is_empty() => State::Unclear,
            (true, _, false) => State::Missing,
            _ => State::Holds,
        }
    }

    /// The answers that make it what it is.
    fn decisive(&self) -> &[Answer] {
        match self.state() {
            State::Open => &self.allowed,
            _ => &self.denied,
        }
    }
}

/// One finding for each check: what several probes of it say is put together, the worst first.
fn findings(
    scope: &Scope<'_>,
    subject: &Subject,
    outcomes: &[Outcome],
    named: bool,
) -> Vec<Finding> {
    let mut checks: Vec<Check> = outcomes.iter().map(|outcome| outcome.check).collect();
    checks.sort();
    checks.dedup();
    // Nobody asked the others to be able to start anything.
    checks.retain(|check| named || !check.must_be_allowed());
    let of = |check: Check| {
        let mut of_check = outcomes.iter().filter(|outcome| outcome.check == check);
        let state = [State::Open, State::Missing, State::Unclear]
            .into_iter()
            .find(|state| of_check.clone().any(|outcome| outcome.state() == *state))
            .unwrap_or(State::Holds);
        let decisive = of_check.find(|outcome| outcome.state() == state)?;
        let mut finding = finding(scope.shape, check, state, decisive);
        if subject.is_role {
            // A condition on MFA would shut a role out for good.
            let statements = finding.statements.into_iter();
            finding.statements = statements.map(Statement::without_mfa).collect();
        }
        Some(finding)
    };
    checks.into_iter().filter_map(of).collect()
}

fn finding(shape: &Shape, check: Check, state: State, outcome: &Outcome) -> Finding {
    let what = what(shape, check);
    let message = match state {
        State::Holds if check.must_be_allowed() => format!("{what} is allowed"),
        State::Holds => format!("{what} is denied"),
        State::Open => format!("{what} is allowed{}", detail(outcome.decisive())),
        State::Missing => format!("{what} is not allowed{}", detail(outcome.decisive())),
        State::Unclear => format!(
            "{what} cannot be told: policies read {}",
            outcome.keys.join(", ")
        ),
    };
    let statements = match state {
        State::Open | State::Missing => mend(shape, check),
        State::Holds | State::Unclear => Vec::new(),
    };
    let hint = match state {
        State::Holds => None,
        State::Unclear => {
            let key = outcome.keys.first().map_or("KEY", String::as_str);
            Some(format!("give the value that counts: --context {key}=VALUE"))
        }
        State::Open | State::Missing => Some(advice(check)),
    };
    Finding {
        check,
        state,
        message,
        hint,
        statements,
    }
}

fn trusted(shape: &Shape, subject: &Subject, document: &str) -> Finding {
    let finding = |state, message, hint| Finding {
        check: Check::Trust,
        state,
        message,
        hint,
        statements: match state {
            State::Open => vec![Statement::trust(shape)],
            _ => Vec::new(),
        },
    };
    let name = &subject.name;
    match trust::unproven(document, shape.max_age) {
        Ok(who) if who.is_empty() => {
            let message = format!("only who proved MFA may assume role/{name}");
            finding(State::Holds, message, None)
        }
        Ok(who) => finding(
            State::Open,
            format!("role/{name} may be assumed by {}", who.join("; ")),
            Some("replace what its trust policy allows with this statement".to_owned()),
        ),
        Err(cause) => finding(
            State::Unclear,
            format!("the trust policy of role/{name} cannot be read: {cause}"),
            Some(format!("aws iam get-role --role-name {name}")),
        ),
    }
}

/// Whether the role that attests MFA does so.
pub fn attests(shape: &Shape, role: Identity) -> Judged {
    let document = role.trust.unwrap_or_default();
    let finding = trusted(shape, &role.subject, &document);
    Judged {
        subject: role.subject,
        named: true,
        concerned: true,
        findings: vec![finding],
    }
}

/// A check in words, so that ` is allowed` fits behind.
fn what(shape: &Shape, check: Check) -> String {
    match check {
        Check::LongTermKeys => "starting a session with long-term keys, without MFA".to_owned(),
        Check::SessionWithoutMfa => "starting a session without MFA".to_owned(),
        Check::OldMfa => format!(
            "starting a session with MFA older than {}",
            age(shape.max_age)
        ),
        Check::OtherTargets => format!(
            "starting a session on a target without {}",
            tags(&shape.tags)
        ),
        Check::DocumentCheck => {
            "starting a session without a permission on its document".to_owned()
        }
        Check::OtherDocuments => "starting a session through another document".to_owned(),
        Check::OthersSessions => "resuming or ending a session of somebody else".to_owned(),
        Check::Recorded => format!(
            "starting a session where the agent must record ({})",
            tags(&shape.recorded)
        ),
        Check::Trust => "assuming the role".to_owned(),
        Check::Start => format!("starting a session on a target with {}", tags(&shape.tags)),
        Check::Documents => "starting a session through the documents in use".to_owned(),
        Check::OwnSessions => "resuming and ending a session of one's own".to_owned(),
        Check::FindTargets => "looking targets up".to_owned(),
        Check::Attest => "proving MFA to agents".to_owned(),
        Check::Encrypt => "encrypting sessions".to_owned(),
    }
}

fn advice(check: Check) -> String {
    match check {
        Check::DocumentCheck => {
            "put the condition on ssm:SessionDocumentAccessCheck into every statement that allows \
             ssm:StartSession, as here"
        }
        Check::Attest => "add this statement, unless the role's trust policy names the user",
        Check::Encrypt => "add this statement, unless the key's own policy allows it",
        _ => "add this statement",
    }
    .to_owned()
}

/// What to add to the identity's policies: what it needs, or a Deny that no other policy outweighs.
fn mend(shape: &Shape, check: Check) -> Vec<Statement> {
    match check {
        Check::LongTermKeys | Check::SessionWithoutMfa => vec![Statement::no_mfa()],
        Check::OldMfa => vec![Statement::old_mfa(shape)],
        Check::OtherTargets => Statement::untagged(shape),
        Check::DocumentCheck | Check::Start => vec![Statement::start(shape)],
        Check::OtherDocuments => vec![Statement::other_documents(shape)],
        Check::OthersSessions => vec![Statement::others_sessions(shape)],
        Check::Recorded => Statement::recorded(shape),
        Check::Trust => vec![Statement::trust(shape)],
        Check::Documents => vec![Statement::documents(shape)],
        Check::OwnSessions => vec![Statement::resume(shape), Statement::end(shape)],
        Check::FindTargets => vec![Statement::look_up(shape)],
        Check::Attest => vec![Statement::attest(shape)],
        Check::Encrypt => Statement::encrypt(shape).into_iter().collect(),
    }
}

/// ` (ssm:StartSession on instance/…; policy ops)`.
fn detail(answers: &[Answer]) -> String {
    let Some(first) = answers.first() else {
        return String::new();
    };
    let mut resources: Vec<&str> = answers
        .iter()
        .filter(|answer| answer.action == first.action)
        .map(|answer| tail(&answer.resource))
        .collect();
    let more = resources.len().saturating_sub(SHOWN);
    resources.truncate(SHOWN);
    let mut text = format!(" ({} on {}", first.action, resources.join(", "));
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    if first.organisation_denies {
        text.push_str("; a service control policy of the organisation denies it");
    }
    if !first.policies.is_empty() {
        text.push_str(&format!("; policy {}", first.policies.join(", ")));
    }
    text.push(')');
    text
}

/// The last part of an ARN.
fn tail(arn: &str) -> &str {
    arn.splitn(6, ':').nth(5).unwrap_or(arn)
}

fn tags(tags: &Tags) -> String {
    let texts: Vec<String> = tags
        .iter()
        .map(|(key, values)| format!("{key}={}", values.join("|")))
        .collect();
    texts.join(", ")
}

fn age(seconds: u64) -> String {
    match seconds {
        hours if hours % 3600 == 0 => format!("{} h", hours / 3600),
        minutes if minutes % 60 == 0 => format!("{} min", minutes / 60),
        seconds => format!("{seconds} s"),
    }
}

impl Finding {
    /// The hint with the statements, on one line.
    pub fn next_step(&self) -> Option<String> {
        let hint = self.hint.as_ref()?;
        Some(match &self.statements[..] {
            [] => hint.clone(),
            [one] => format!("{hint}: {}", compact(one)),
            several => format!("{hint}: {}", compact(&several)),
        })
    }
}

#[cfg(test)]
mod tests;
