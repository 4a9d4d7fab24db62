//! Who calls: the identity behind a verified signature, and what its session remembers.

use time::OffsetDateTime;

use super::condition::Context;
use super::policy::Policy;
use super::trail::timestamp;

/// Who holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    Root,
    User {
        name: String,
        unique_id: String,
    },
    Role {
        name: String,
        path: String,
        unique_id: String,
        session_name: String,
    },
}

/// What a temporary credential remembers.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(super) token: String,
    pub(crate) issued: OffsetDateTime,
    pub(crate) expires: OffsetDateTime,
    /// When a code was accepted for GetSessionToken. Never set on a role session.
    pub(crate) mfa: Option<OffsetDateTime>,
    pub(super) policy: Option<Policy>,
}

/// A caller whose signature was verified.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: String,
    pub(crate) access_key_id: String,
    pub(crate) identity: Identity,
    pub(crate) session: Option<Session>,
}

impl Caller {
    /// As GetCallerIdentity tells it; a role's path does not occur in it.
    pub(crate) fn arn(&self) -> String {
        let account = &self.account;
        match &self.identity {
            Identity::Root => format!("arn:aws:iam::{account}:root"),
            Identity::User { name, .. } => format!("arn:aws:iam::{account}:user/{name}"),
            Identity::Role {
                name, session_name, ..
            } => {
                format!("arn:aws:sts::{account}:assumed-role/{name}/{session_name}")
            }
        }
    }

    pub(crate) fn user_id(&self) -> String {
        match &self.identity {
            Identity::Root => self.account.clone(),
            Identity::User { unique_id, .. } => unique_id.clone(),
            Identity::Role {
                unique_id,
                session_name,
                ..
            } => format!("{unique_id}:{session_name}"),
        }
    }

    pub(crate) fn is_role(&self) -> bool {
        matches!(self.identity, Identity::Role { .. })
    }

    /// GetSessionToken's credentials, which may call next to nothing of STS and IAM.
    pub(crate) fn is_user_session(&self) -> bool {
        self.session.is_some() && !self.is_role()
    }

    pub(crate) fn mfa_time(&self) -> Option<OffsetDateTime> {
        self.session.as_ref().and_then(|session| session.mfa)
    }

    /// Adds what every request of this caller has in its context, present or absent as AWS has it.
    pub(crate) fn describe(&self, context: &mut Context, now: OffsetDateTime) {
        context.set("aws:userid", self.user_id());
        context.set("aws:PrincipalAccount", self.account.clone());
        match &self.identity {
            Identity::Root => {
                context.set("aws:PrincipalType", "Account");
                context.set("aws:PrincipalArn", self.arn());
            }
            Identity::User { name, .. } => {
                context.set("aws:PrincipalType", "User");
                context.set("aws:username", name.clone());
                context.set("aws:PrincipalArn", self.arn());
            }
            Identity::Role { name, path, .. } => {
                context.set("aws:PrincipalType", "AssumedRole");
                context.set(
                    "aws:PrincipalArn",
                    format!("arn:aws:iam::{}:role{path}{name}", self.account),
                );
            }
        }
        let Some(session) = &self.session else { return };
        context.set("aws:TokenIssueTime", timestamp(session.issued));
        // Long-term keys and role sessions have neither key; only a user session says something about MFA.
        if self.is_role() {
            return;
        }
        context.set(
            "aws:MultiFactorAuthPresent",
            session.mfa.is_some().to_string(),
        );
        if let Some(mfa) = session.mfa {
            context.set(
                "aws:MultiFactorAuthAge",
                (now - mfa).whole_seconds().max(0).to_string(),
            );
        }
    }
}
