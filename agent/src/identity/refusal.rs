//! Every way an enrolment is refused: the sentence for the person, the reason for operators.

use postern_proto::enroll::{Outcome, RefuseCode};

/// A refused enrolment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of no.
    pub code: RefuseCode,
    /// One sentence for the person.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// More, for operators alone. Holds no secret.
    pub reason: String,
}

impl Refusal {
    pub(super) fn new(code: RefuseCode, message: impl Into<String>, hint: &str) -> Self {
        let message = message.into();
        Self {
            code,
            reason: message.clone(),
            message,
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// A proof that no client of ours would send.
    pub(super) fn proof(reason: impl Into<String>) -> Self {
        Self::new(
            RefuseCode::Proof,
            "the agent cannot accept this proof of identity: it is malformed",
            "compare the versions of `postern` and `postern-agent`",
        )
        .because(reason)
    }

    pub(super) fn clock(skew: i64) -> Self {
        let (size, side) = (
            skew.unsigned_abs(),
            if skew < 0 { "behind" } else { "ahead of" },
        );
        Self::new(
            RefuseCode::Clock,
            format!("this machine's clock is {size} seconds {side} the agent's; 60 are accepted"),
            "synchronise the clock (`timedatectl set-ntp true`), then try again",
        )
    }

    pub(super) fn long_term_keys() -> Self {
        Self::new(
            RefuseCode::Mfa,
            "long-term keys carry no MFA",
            "postern login",
        )
    }

    pub(super) fn session_ended() -> Self {
        Self::new(
            RefuseCode::Credentials,
            "the AWS session has ended",
            "postern login",
        )
    }

    pub(super) fn unknown_credentials() -> Self {
        Self::new(
            RefuseCode::Credentials,
            "AWS does not know these credentials",
            "postern login; if that fails too, the access key was deleted or deactivated",
        )
    }

    pub(super) fn wrong_signature() -> Self {
        Self::new(
            RefuseCode::Proof,
            "AWS does not accept the signature of this proof: it was made for another connection, \
             agent or request, or with another secret key",
            "try again; if it stays, run `postern login`",
        )
    }

    pub(super) fn no_mfa(bound: &str) -> Self {
        Self::new(
            RefuseCode::Mfa,
            format!(
                "AWS does not attest MFA for this session: it was made without a code, the code \
                 is older than {bound}, or you may not assume the attestation role"
            ),
            "postern login; if that does not help, ask for `sts:AssumeRole` on the attestation role",
        )
    }

    pub(super) fn wrong_code() -> Self {
        Self::new(
            RefuseCode::Mfa,
            "AWS does not accept this MFA code",
            "every code works once: wait for the next one; the device must be your own",
        )
    }

    pub(super) fn role_session(arn: &str) -> Self {
        Self::new(
            RefuseCode::Mfa,
            format!("`{arn}` is a role session, and role sessions carry no MFA evidence in AWS"),
            "log in as the IAM user that assumes the role: `postern login`",
        )
    }

    pub(super) fn root() -> Self {
        Self::new(
            RefuseCode::Caller,
            "the root user of an AWS account may not enrol",
            "use an IAM user with an MFA device",
        )
    }

    pub(super) fn federated(arn: &str) -> Self {
        Self::new(
            RefuseCode::Caller,
            format!("`{arn}` is a federated user, which AWS cannot attest MFA for"),
            "use an IAM user with an MFA device",
        )
    }

    pub(super) fn account(account: &str) -> Self {
        Self::new(
            RefuseCode::Caller,
            format!("users of account {account} may not enrol at this agent"),
            "use another AWS profile, or have the account added to `sts.accounts` in agent.toml",
        )
    }

    pub(super) fn denied(reason: String) -> Self {
        Self::new(
            RefuseCode::Caller,
            "this user may not come in any more",
            "ask the operators of this agent",
        )
        .because(reason)
    }

    pub(super) fn serial() -> Self {
        Self::new(
            RefuseCode::Caller,
            "the MFA device belongs to another account than the caller",
            "set `mfa_serial` of the AWS profile to your own device",
        )
    }

    pub(super) fn closed(reason: &str) -> Self {
        Self::new(
            RefuseCode::Closed,
            "enrolment is closed: the agent's check of its attestation role did not pass",
            "ask the operators of this agent to run `postern-agent check`",
        )
        .because(reason)
    }

    pub(super) fn evidence(reason: impl Into<String>) -> Self {
        Self::new(
            RefuseCode::Closed,
            "enrolment is closed: the agent cannot write its audit log",
            "ask the operators of this agent to look at its disk and its journal",
        )
        .because(reason)
    }

    pub(super) fn busy() -> Self {
        Self::new(
            RefuseCode::Limit,
            "too many logins are going on at this agent",
            "try again in a few seconds",
        )
    }

    pub(super) fn too_many_approvals() -> Self {
        Self::new(
            RefuseCode::Limit,
            "too many approvals are waiting to be used",
            "try again in a minute",
        )
    }

    pub(super) fn sts(reason: impl Into<String>) -> Self {
        Self::new(
            RefuseCode::Sts,
            "the agent could not get a trustworthy answer from AWS STS",
            "try again; if it stays, ask the operators of this agent",
        )
        .because(reason)
    }

    pub(super) fn internal(reason: impl Into<String>) -> Self {
        Self::new(
            RefuseCode::Closed,
            "the agent could not issue a certificate",
            "ask the operators of this agent to look at its journal",
        )
        .because(reason)
    }

    /// What the client is told.
    pub(super) fn outcome(&self) -> Outcome {
        Outcome::Refused {
            code: self.code,
            message: self.message.clone(),
            hint: self.hint.clone(),
        }
    }

    /// The code as it stands in events.
    /// The kind of failure that is counted while nobody is known yet.
    pub fn stranger_kind(&self) -> &'static str {
        match self.code {
            RefuseCode::Credentials => "enrolment refused: credentials",
            RefuseCode::Mfa => "enrolment refused: mfa",
            RefuseCode::Caller => "enrolment refused: caller",
            RefuseCode::Clock => "enrolment refused: clock",
            RefuseCode::Proof => "enrolment refused: proof",
            RefuseCode::Closed => "enrolment refused: closed",
            RefuseCode::Limit => "enrolment refused: limit",
            RefuseCode::Sts => "enrolment refused: sts",
        }
    }

    pub fn code_name(&self) -> &'static str {
        match self.code {
            RefuseCode::Credentials => "credentials",
            RefuseCode::Mfa => "mfa",
            RefuseCode::Caller => "caller",
            RefuseCode::Clock => "clock",
            RefuseCode::Proof => "proof",
            RefuseCode::Closed => "closed",
            RefuseCode::Limit => "limit",
            RefuseCode::Sts => "sts",
        }
    }
}
