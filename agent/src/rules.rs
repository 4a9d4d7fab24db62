//! The questions that the core asks and that are answered from memory.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use postern_proto::names::{TargetId, TargetName};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::identity::VerifiedPrincipal;
use crate::inventory::Target;
use crate::policy::{Decision, Denial, Explanation, Request};

type Ask<Question, Answer> = Arc<dyn Fn(&Question) -> Answer + Send + Sync>;

/// One closure per question: who answers is not known here.
#[derive(Clone)]
pub(crate) struct Rules {
    /// Whose certificate it is, checked now.
    pub(crate) verify: Ask<CertificateDer<'static>, Result<VerifiedPrincipal, NotVerified>>,
    /// Whether policy bars the principal or the certificate altogether.
    pub(crate) admit: Arc<dyn Fn(&VerifiedPrincipal, IpAddr) -> Result<(), Denial> + Send + Sync>,
    /// Policy's answer now.
    pub(crate) decide: Ask<Request, Decision>,
    /// Whether policy could allow it now, on some port and host.
    pub(crate) possible: Ask<Request, bool>,
    /// The target that a person means.
    pub(crate) lookup: Ask<TargetName, Result<Arc<Target>, NotFound>>,
    /// A target as it is now.
    pub(crate) target: Ask<TargetId, Option<Arc<Target>>>,
    /// Whether sshd listens there, on any target of the inventory.
    pub(crate) is_ssh_port: Arc<dyn Fn(u16) -> bool + Send + Sync>,
    /// Targets that all filters leave, sorted by name.
    pub(crate) list: Ask<[String], Vec<Arc<Target>>>,
    /// Why the inventory may be old.
    pub(crate) inventory_trouble: Arc<dyn Fn() -> Option<Arc<str>> + Send + Sync>,
    /// Policy's answer with its reasons.
    pub(crate) explain: Ask<Request, Explanation>,
    /// Login users that policies name and allow.
    pub(crate) login_users: Ask<Request, Vec<String>>,
    /// Counts up when policy or inventory changed.
    pub(crate) changes: watch::Receiver<u64>,
}

impl Rules {
    /// Whether a tunnel to this port would carry SSH past its recording.
    pub(crate) fn carries_ssh(&self, port: u16) -> bool {
        port == 22 || (self.is_ssh_port)(port)
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

/// A certificate opens nothing here.
#[derive(Debug, Clone)]
pub(crate) struct NotVerified {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// A name is not one target.
#[derive(Debug, Clone)]
pub(crate) enum NotFound {
    Unknown {
        /// What to do about it.
        hint: String,
    },
    /// `id name address` of each.
    Ambiguous(Vec<String>),
}
