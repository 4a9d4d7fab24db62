//! What can happen, in our own words. [`Event`] becomes one OCSF object, one leaf of the log.

use serde::{Deserialize, Serialize};

use crate::gateway::message::{CloseReason, DenyCode, HostKeySeen};
use crate::names::{AgentId, Assurance, LoginUser, Principal, SessionId, TargetId};
use crate::recording::RecordingName;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970, by the clock of whoever writes it.
    pub time_ms: i64,
    /// The session that it belongs to.
    pub session: Option<SessionId>,
    /// Who caused it.
    pub actor: Option<Actor>,
    /// Address and port that the actor came from.
    pub source: Option<String>,
    /// What it was about.
    pub target: Option<EventTarget>,
    /// What happened.
    pub fact: Fact,
}

/// Whose word an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An agent's, which saw what it says.
    #[default]
    Agent,
    /// A client's: a claim, whose independent fact is CloudTrail.
    Client,
}

impl Event {
    /// Whose word it is when it stands in an agent's log.
    pub fn source_in_agents_log(&self) -> Source {
        match self.fact {
            Fact::Claimed(_) => Source::Client,
            _ => Source::Agent,
        }
    }
}

/// A proven principal with the evidence of its MFA. In a client's own log nothing of it is
/// proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Who.
    pub principal: Principal,
    /// How MFA was attested.
    pub assurance: Assurance,
    /// Seconds since 1970: MFA is not older than this.
    pub mfa_not_before: i64,
    /// Serial of the client certificate, hex.
    pub certificate: String,
    /// Ids of the two STS requests that attested, as AWS answered them.
    pub aws_request_ids: Vec<String>,
}

/// A target as it was at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventTarget {
    /// Its key in the inventory.
    pub id: TargetId,
    /// Its name for people.
    pub name: String,
    /// The address and port that were checked and dialled; absent when nothing was dialled.
    pub address: Option<String>,
}

/// What happened. Past tense, one variant per kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Fact {
    /// The agent started; sessions that were open before it were closed as interrupted.
    AgentStarted {
        /// Version of the agent.
        version: String,
        /// Auditors' age recipients.
        recipients: Vec<String>,
        /// Sessions that had no end.
        interrupted: Vec<SessionId>,
    },
    /// The agent stopped in order.
    AgentStopped,
    /// A certificate was issued.
    Enrolled {
        /// Seconds since 1970 when the certificate ends.
        not_after: i64,
        /// What the client claims of its session's end.
        claimed_end: Option<i64>,
        /// What the client claims of its MFA device.
        claimed_serial: Option<String>,
    },
    /// An enrolment was refused.
    EnrollmentRefused {
        /// Code of the refusal.
        code: String,
        /// Why, for operators.
        reason: String,
    },
    /// A fresh code was given for one `Open`.
    StepUpApproved {
        /// Hex hash of the `Open`.
        open_hash: String,
    },
    /// A session was granted and is about to open.
    SessionGranted {
        /// What it carries.
        access: Access,
        /// Ids of the deciding policies.
        policies: Vec<String>,
        /// Seconds since 1970 when the grant ends.
        ends_at: i64,
        /// The target's host key, for SSH.
        host_key: Option<HostKeySeen>,
        /// Whether the MFA act was for this session alone.
        step_up: bool,
    },
    /// A request was denied.
    SessionDenied {
        /// What was asked for.
        access: Access,
        /// Kind of denial.
        code: DenyCode,
        /// Ids of the policies that denied, or that failed to evaluate.
        policies: Vec<String>,
        /// Why, for operators.
        reason: String,
    },
    /// A session ended.
    SessionClosed {
        /// Why.
        reason: CloseReason,
        /// More about it, for operators.
        message: Option<String>,
        /// Exit status of its last command or shell.
        exit_status: Option<u32>,
        /// Bytes from the client.
        up: u64,
        /// Bytes to the client.
        down: u64,
        /// How long it lived, in milliseconds.
        duration_ms: i64,
        /// What was recorded.
        recordings: Vec<RecordingDigest>,
    },
    /// A session was open when its agent, or the client that claimed it, died.
    SessionInterrupted {
        /// What is left of its recordings.
        recordings: Vec<RecordingDigest>,
    },
    /// A pipe lost its connection; it is kept for its client to resume.
    PipeDetached {
        /// Its number in the session.
        pipe: u32,
        /// How the connection was lost.
        reason: String,
    },
    /// A pipe goes on on a new connection: the event's source is the new address.
    PipeResumed {
        /// Its number in the session.
        pipe: u32,
        /// Number of the client's attempt.
        attempt: u64,
    },
    /// A channel (shell, command, subsystem, forward) of an SSH session opened, or was refused.
    ChannelOpened {
        /// What it carries.
        channel: Channel,
        /// Ids of the deciding policies.
        policies: Vec<String>,
        /// Why it was refused; absent when it opened.
        refused: Option<String>,
        /// The recording that it writes.
        recording: Option<String>,
    },
    /// A recording grew: this much of it is synced.
    RecordingProgressed {
        /// Its state.
        recording: RecordingDigest,
    },
    /// A file operation over SFTP.
    FileOperation(FileOperation),
    /// A target's host key was pinned on first use.
    HostKeyPinned {
        /// The key.
        fingerprint: String,
    },
    /// A target showed another host key than the pinned one; the session was refused.
    HostKeyChanged {
        /// The pinned one.
        pinned: String,
        /// The one it showed.
        seen: String,
    },
    /// Policy files were read.
    PolicyLoaded {
        /// SHA-256 over all policy files, hex.
        digest: String,
        /// Their ids: all, or as many as fit in an event.
        policies: Vec<String>,
    },
    /// Policy files could not be used; the old ones stay.
    PolicyBroken {
        /// Why.
        reason: String,
    },
    /// The agent's check of its own attestation role.
    AttestationChecked {
        /// Why enrolment is closed; absent when it is open.
        fault: Option<String>,
    },
    /// Somebody read the log or a recording through the agent.
    AuditRead {
        /// What was read: `list`, `event`, `recording`, `tile`.
        what: String,
        /// Which.
        subject: String,
        /// Whether it was allowed.
        allowed: bool,
    },
    /// Recordings are about to be deleted, since their retention is over.
    RecordingsDeleted {
        /// Their names.
        recordings: Vec<RecordingName>,
        /// Why, for operators.
        reason: String,
    },
    /// The log's key changed: from here on the new one signs.
    LogKeyChanged {
        /// The new public key (C2SP vkey).
        vkey: String,
        /// A note by the old key that names the new one.
        note: String,
    },
    /// Failures before authentication, summed up over a minute for one source.
    Unauthenticated {
        /// How many.
        count: u64,
        /// The kinds that occurred.
        kinds: Vec<String>,
    },
    /// A client's log begins.
    ClientLogStarted {
        /// Version of the client.
        version: String,
        /// Whom its recordings are encrypted to.
        recipients: Vec<String>,
        /// Its log of before, whose key is gone.
        previous: Option<PreviousLog>,
    },
    /// Recordings are encrypted to others from here on.
    RecipientsChanged {
        /// Whom.
        recipients: Vec<String>,
    },
    /// A client opened a session on a route without an agent, where AWS IAM decides.
    SessionClaimed {
        /// What it carries.
        access: Access,
        /// The SSM session that carries it.
        ssm: SsmSession,
    },
    /// A further SSM session carries the session.
    SsmSessionOpened {
        /// It.
        ssm: SsmSession,
    },
    /// What a client wrote in its log, handed over to the agent's. Actor, source and time of the
    /// event are what the agent saw.
    Claimed(Claim),
}

impl Fact {
    /// What it states of recordings.
    pub fn recordings(&self) -> &[RecordingDigest] {
        match self {
            Self::SessionClosed { recordings, .. } | Self::SessionInterrupted { recordings } => {
                recordings
            }
            Self::RecordingProgressed { recording } => std::slice::from_ref(recording),
            _ => &[],
        }
    }
}

/// A log that another one goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviousLog {
    /// Its public key (C2SP vkey).
    pub vkey: String,
    /// Its last checkpoint.
    pub checkpoint: String,
}

/// An SSM session, as AWS named it: what CloudTrail knows it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SsmSession {
    /// `SessionId` of StartSession's answer.
    pub id: String,
    /// The session document.
    pub document: String,
    /// The region.
    pub region: String,
    /// `Reason` of StartSession, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// AWS's id of the StartSession request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// An entry of a client's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The client's log.
    pub log: AgentId,
    /// The entry's index there.
    pub entry: u64,
    /// Hex of its leaf hash there: who has the client's store can compare.
    pub leaf_hash: String,
    /// The client's clock, in milliseconds since 1970.
    pub time_ms: i64,
    /// What happened, as the client says.
    pub fact: Box<Fact>,
    /// Its sealed texts, as the client encrypted them: an age file as base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

impl Claim {
    /// Whether this is a fact that a client may claim: those about sessions of its own.
    pub fn is_claimable(fact: &Fact) -> bool {
        matches!(
            fact,
            Fact::SessionClaimed { .. }
                | Fact::SsmSessionOpened { .. }
                | Fact::ChannelOpened { .. }
                | Fact::PipeDetached { .. }
                | Fact::PipeResumed { .. }
                | Fact::RecordingProgressed { .. }
                | Fact::SessionClosed { .. }
                | Fact::SessionInterrupted { .. }
        )
    }
}

/// What a session carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Access {
    /// SSH as this user.
    Ssh {
        /// The login user.
        user: LoginUser,
    },
    /// A tunnel to this port.
    Tunnel {
        /// The host behind the target; the target itself when absent.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// A shell or command that the SSM Agent runs, without SSH.
    Shell,
}

/// What an SSH channel carries. What may hold secrets is sealed when it becomes a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Channel {
    /// An interactive shell.
    Shell {
        /// Whether it has a terminal.
        terminal: bool,
    },
    /// A command.
    Command {
        /// Its line: sealed.
        line: String,
        /// Whether it has a terminal.
        terminal: bool,
    },
    /// A subsystem, such as `sftp`.
    Subsystem {
        /// Its name.
        name: String,
    },
    /// A forward from the client to a host that the target resolves.
    Direct {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// A listener on the target.
    Reverse {
        /// The address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The client's SSH agent lent to the target.
    AgentForward,
}

/// One file operation. Names are sealed when it becomes a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOperation {
    /// `read`, `write`, `remove`, `rename`, `mkdir`, `rmdir`, `setstat`, `symlink`, `list`.
    pub operation: String,
    /// The file: sealed.
    pub path: String,
    /// The other name of a rename or link: sealed.
    pub to: Option<String>,
    /// Bytes moved.
    pub size: u64,
    /// SHA-256 of the content, hex, when all of it passed in order.
    pub sha256: Option<String>,
    /// Why it failed, as the target said.
    pub error: Option<String>,
}

/// What a recording was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingDigest {
    /// Its name: `SESSION-NUMBER`.
    pub name: String,
    /// Bytes of the file.
    pub length: u64,
    /// SHA-256 over them, hex.
    pub sha256: String,
    /// Whether this is its end.
    pub complete: bool,
}
