//! The questions about an identity, by kind: which must be answered no, which yes.

/// What is asked, by the name that stands in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Long-term keys.
    LongTermKeys,
    /// A session without MFA.
    SessionWithoutMfa,
    /// MFA beyond its age.
    OldMfa,
    /// A target without the tag.
    OtherTargets,
    /// No permission on the session document.
    DocumentCheck,
    /// Documents that Postern does not use.
    OtherDocuments,
    /// Sessions of somebody else.
    OthersSessions,
    /// Where the agent must record.
    Recorded,
    /// A role that can be assumed without MFA.
    Trust,
    /// A session on a tagged target.
    Start,
    /// The documents that Postern uses.
    Documents,
    /// Sessions of one's own.
    OwnSessions,
    /// Targets and whether they are online.
    FindTargets,
    /// The attestation role.
    Attest,
    /// The key of encrypted sessions.
    Encrypt,
}

impl Check {
    /// In JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::LongTermKeys => "long-term-keys",
            Self::SessionWithoutMfa => "session-without-mfa",
            Self::OldMfa => "old-mfa",
            Self::OtherTargets => "other-targets",
            Self::DocumentCheck => "document-check",
            Self::OtherDocuments => "other-documents",
            Self::OthersSessions => "others-sessions",
            Self::Recorded => "recorded",
            Self::Trust => "trust",
            Self::Start => "start",
            Self::Documents => "documents",
            Self::OwnSessions => "own-sessions",
            Self::FindTargets => "find-targets",
            Self::Attest => "attest",
            Self::Encrypt => "encrypt",
        }
    }

    /// Whether AWS must allow it; else it must deny.
    pub fn must_be_allowed(self) -> bool {
        matches!(
            self,
            Self::Start
                | Self::Documents
                | Self::OwnSessions
                | Self::FindTargets
                | Self::Attest
                | Self::Encrypt
        )
    }

    /// Whether it is about starting a session on a target.
    pub fn is_about_targets(self) -> bool {
        matches!(
            self,
            Self::LongTermKeys
                | Self::SessionWithoutMfa
                | Self::OldMfa
                | Self::OtherTargets
                | Self::DocumentCheck
                | Self::Start
        )
    }
}
