//! Who is asking: the only place where a principal becomes verified.
//!
//! ```text
//! enroll ── proof (pure) ── sts ── answer (pure) ── caller (pure) ── ca    a certificate
//!    └───── attestation: is the oracle itself sound?   approvals: step-up   an approval
//! trust ── a certificate, checked now ──▶ VerifiedPrincipal
//! ```

use std::sync::Arc;

use futures_util::future::BoxFuture;
use postern_proto::audit::event::{Actor, Event};
use postern_proto::names::{Assurance, Principal};

mod answer;
mod approvals;
pub mod attestation;
mod caller;
mod deny;
mod enroll;
mod lines;
mod proof;
mod refusal;
mod slots;
mod sts;
#[cfg(test)]
pub(crate) mod testing;
mod trust;
mod trust_policy;

pub use approvals::{Approval, ApprovalFault, Approvals};
pub use deny::{DenyFault, DenyHook, DenyList};
pub use enroll::{EnrollEnd, Enroller, EnrollerParts};
pub use refusal::Refusal;
pub use sts::{StsClient, StsFault};
pub use trust::{CertificateFault, PeerTrust, TrustFault};

/// Writes one event; the future resolves once it is durable, or says why it never will be.
pub type Record = Arc<dyn Fn(Event) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Somebody whose client certificate this agent (or one it trusts) issued and checked just now.
#[derive(Debug, Clone)]
pub struct VerifiedPrincipal {
    principal: Principal,
    assurance: Assurance,
    mfa_not_before: i64,
    serial: String,
    not_after: i64,
    claimed_end: Option<i64>,
    key_hash: [u8; 32],
    aws_request_ids: Vec<String>,
}

impl VerifiedPrincipal {
    /// The AWS identity.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }
    /// How MFA was attested.
    pub fn assurance(&self) -> Assurance {
        self.assurance
    }
    /// MFA is not older than this (seconds since 1970).
    pub fn mfa_not_before(&self) -> i64 {
        self.mfa_not_before
    }
    /// Serial of the certificate, hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }
    /// When the certificate ends (seconds since 1970).
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
    /// When the client claims that its AWS session ends (seconds since 1970).
    pub fn claimed_end(&self) -> Option<i64> {
        self.claimed_end
    }
    /// SHA-256 of the certificate's SubjectPublicKeyInfo: what a step-up approval is for.
    pub fn key_hash(&self) -> &[u8; 32] {
        &self.key_hash
    }
    /// The evidence form.
    pub fn actor(&self) -> Actor {
        Actor {
            principal: self.principal.clone(),
            assurance: self.assurance,
            mfa_not_before: self.mfa_not_before,
            certificate: self.serial.clone(),
            aws_request_ids: self.aws_request_ids.clone(),
        }
    }
}
