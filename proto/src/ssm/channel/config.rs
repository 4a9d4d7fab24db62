//! The settings of a channel.

use std::time::Duration;

use super::Seed;
use crate::ssm::reliable::Limits;

/// What a channel is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// 32 random bytes, for this channel alone.
    pub seed: Seed,
    /// What to call oneself: four numbers, on which the other side decides how to speak
    /// ([`crate::ssm::CLIENT_VERSION`], [`crate::ssm::AGENT_VERSION`]).
    pub version: String,
    /// Client: a UUID, the same for all its connections. SSM Agent: its instance id.
    pub id: String,
    /// Bytes of data in one message at most. A client uses more than [`LEAST_PAYLOAD`](super::LEAST_PAYLOAD) only after
    /// the path let such a message through: it pads its handshake response to that length, which
    /// is harmless to lose and to repeat without the padding. Sessions without a handshake stay
    /// at the least. An SSM Agent uses it at once: its owner knows the client.
    pub payload: usize,
    /// Of the queues in either direction.
    pub limits: Limits,
    /// Bytes of events above which no more messages are wanted; twice that is never exceeded.
    pub event_bytes: usize,
    /// From a connection, or from the last step of a handshake, to the next.
    pub handshake_time: Duration,
    /// How long unacknowledged messages and silence are borne while connected. The plugin gives
    /// up after 3,000 resends, which are five minutes. A destination that reads nothing for so long
    /// looks the same: the SSM Agent stops acknowledging then.
    pub silence: Duration,
    /// Client: how long after a connection to take silence for the start of a session without
    /// handshake, whose command has not said anything yet. An SSM Agent that has a handshake to
    /// make begins with it at once. `None`: only data opens such a session.
    pub unnamed_after: Option<Duration>,
}

impl Config {
    /// The ordinary settings. `id` as in [`Config::id`].
    pub fn new(seed: Seed, version: &str, id: &str) -> Self {
        Self {
            seed,
            version: version.into(),
            id: id.into(),
            payload: 16 * 1024,
            limits: Limits::default(),
            event_bytes: 1024 * 1024,
            handshake_time: Duration::from_secs(30),
            silence: Duration::from_secs(300),
            unnamed_after: None,
        }
    }
}
