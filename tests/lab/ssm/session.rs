//! One session as the service knows it.

use bytes::Bytes;
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::{ChannelClosed, publication};
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::document::Plan;
use super::link::Lane;

/// An end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Who started it.
    Client,
    /// The SSM Agent.
    Agent,
}

/// How a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// A WebSocket close frame, 1000.
    Close,
    /// A reset: no close frame, no TLS close notification.
    Abort,
}

/// What DescribeSessions calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Connecting,
    Connected,
    Disconnected,
    Terminated,
    Failed,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connecting => "Connecting",
            Self::Connected => "Connected",
            Self::Disconnected => "Disconnected",
            Self::Terminated => "Terminated",
            Self::Failed => "Failed",
        }
    }
}

/// What opens data channels of one side.
pub(super) struct Token {
    pub(super) value: String,
    pub(super) expires: OffsetDateTime,
}

impl Token {
    pub(super) fn fits(&self, value: &str, now: OffsetDateTime) -> bool {
        bool::from(self.value.as_bytes().ct_eq(value.as_bytes())) && now < self.expires
    }
}

/// The connection of one side.
pub(super) struct Attachment {
    pub(super) epoch: u64,
    /// Ends it. One order is enough, so it is bounded to one.
    pub(super) cut: mpsc::Sender<Cut>,
}

/// How a session ended.
pub(super) struct End {
    pub(super) at: OffsetDateTime,
    pub(super) status: Status,
    pub(super) output: String,
}

/// A session, running or over.
pub(super) struct Session {
    pub(super) id: String,
    pub(super) target: String,
    pub(super) owner: String,
    pub(super) owner_id: String,
    pub(super) reason: String,
    pub(super) region: String,
    pub(super) plan: Plan,
    pub(super) started: OffsetDateTime,
    pub(super) client_token: Token,
    pub(super) agent_token: Token,
    pub(super) client: Option<Attachment>,
    pub(super) agent: Option<Attachment>,
    pub(super) was_connected: bool,
    pub(super) end: Option<End>,
}

/// The two directions of a session.
pub(super) struct Lanes {
    pub(super) to_agent: Lane,
    pub(super) to_client: Lane,
}

impl Lanes {
    /// The lane that a side takes its frames from.
    pub(super) fn to(&self, side: Side) -> &Lane {
        match side {
            Side::Client => &self.to_client,
            Side::Agent => &self.to_agent,
        }
    }

    /// The lane that a side's frames go to.
    pub(super) fn from(&self, side: Side) -> &Lane {
        self.to(side.other())
    }
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Agent,
            Self::Agent => Self::Client,
        }
    }
}

impl Session {
    pub(super) fn status(&self) -> Status {
        match &self.end {
            Some(end) => end.status,
            None if self.client.is_some() => Status::Connected,
            None if self.was_connected => Status::Disconnected,
            None => Status::Connecting,
        }
    }

    pub(super) fn attachment(&mut self, side: Side) -> &mut Option<Attachment> {
        match side {
            Side::Client => &mut self.client,
            Side::Agent => &mut self.agent,
        }
    }

    pub(super) fn token(&self, side: Side) -> &Token {
        match side {
            Side::Client => &self.client_token,
            Side::Agent => &self.agent_token,
        }
    }

    /// `start_publication` or `pause_publication`.
    pub(super) fn publication(&self, kind: MessageKind, now: OffsetDateTime) -> Bytes {
        service_message(kind, now, publication(&self.id))
    }

    /// The last frame for a side. The text is for clients alone.
    pub(super) fn closing(&self, side: Side, output: &str, now: OffsetDateTime) -> Bytes {
        let body = ChannelClosed {
            message_type: MessageKind::ChannelClosed.name().to_owned(),
            message_id: random_id().to_string(),
            destination_id: self.target.clone(),
            session_id: self.id.clone(),
            schema_version: 1,
            created_date: milliseconds(now).to_string(),
            output: (side == Side::Client).then(|| output.to_owned()),
        };
        service_message(MessageKind::ChannelClosed, now, body.payload())
    }
}

/// A message of the service itself: unlike those of the programs it has no flags.
fn service_message(kind: MessageKind, now: OffsetDateTime, payload: Bytes) -> Bytes {
    let message = Message {
        flags: 0,
        ..Message::unnumbered(kind, random_id(), milliseconds(now), payload)
    };
    message.encode()
}

fn random_id() -> MessageId {
    MessageId::from_random(rand::rng().random())
}

fn milliseconds(now: OffsetDateTime) -> u64 {
    u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(1)
}
