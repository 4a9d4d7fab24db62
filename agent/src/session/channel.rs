//! A channel of a session: decided, written down and recorded before it opens.

use postern_proto::audit::event::{Channel, Fact};
use time::OffsetDateTime;

use super::Session;
use crate::evidence::{EvidenceError, Recording, RecordingKind};
use crate::policy::{Action, Decision, Denial, Request};

/// Why a channel did not open.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ChannelRefused {
    /// Policy says no.
    #[error("{}", .0.message)]
    Denied(Denial),
    /// Without evidence nothing opens.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

impl Session {
    /// Asks policy about a channel of this session (direct forwards: `tunnel`, listeners:
    /// `reverse`, agent: `forward_agent`; shells, commands and subsystems are the grant's own
    /// `connect`), writes the event either way (durable), and begins the recording where one is
    /// due. `Err` is told to the peer as a refused channel.
    pub async fn open_channel(
        &self,
        channel: Channel,
        recording: Option<RecordingKind>,
    ) -> Result<Option<Recording>, ChannelRefused> {
        let policies = match self.decide_channel(&channel) {
            Ok(policies) => policies,
            Err(denial) => {
                let refused = Fact::ChannelOpened {
                    channel,
                    policies: denial.policies.clone(),
                    refused: Some(denial.message.clone()),
                    recording: None,
                };
                self.log(refused).await?;
                return Err(ChannelRefused::Denied(denial));
            }
        };
        let recording = match recording {
            None => None,
            Some(kind) => Some(self.begin_recording(kind).await?),
        };
        let opened = Fact::ChannelOpened {
            channel,
            policies,
            refused: None,
            recording: recording.as_ref().map(|r| r.name().to_owned()),
        };
        if let Err(error) = self.log(opened).await {
            if let Some(recording) = &recording {
                // The first failure is the one to tell.
                self.close_recording(recording).await.ok();
            }
            return Err(error.into());
        }
        Ok(recording)
    }

    /// Ids of the policies that allow the channel.
    fn decide_channel(&self, channel: &Channel) -> Result<Vec<String>, Denial> {
        let (action, host, port) = match channel {
            Channel::Shell { .. } | Channel::Command { .. } | Channel::Subsystem { .. } => {
                return Ok(self.grant.policies().to_vec());
            }
            Channel::Direct { host, port } => (Action::Tunnel, host_behind(host), Some(*port)),
            Channel::Reverse { host, port } => (Action::Reverse, Some(host.clone()), Some(*port)),
            Channel::AgentForward => (Action::ForwardAgent, None, None),
        };
        if let (Action::Tunnel, Some(port)) = (action, port)
            && self.rules.carries_ssh(port)
        {
            return Err(Denial {
                policies: vec![],
                message: format!(
                    "port {port} carries SSH, and SSH goes through `connect` or `proxy`, which record it"
                ),
                hint: None,
            });
        }
        let request = Request {
            action,
            host,
            port,
            ..self.grant.again(
                OffsetDateTime::now_utc(),
                self.grant.request().source,
                self.grant.request().target.clone(),
            )
        };
        match (self.rules.decide)(&request) {
            Decision::Allow(grant) => {
                let policies = grant.policies().to_vec();
                self.state.add_inner(grant)?;
                Ok(policies)
            }
            Decision::StepUp { policies } => Err(Denial {
                policies,
                message: format!(
                    "policy wants a fresh MFA code for `{}`",
                    action_name(action)
                ),
                hint: Some("open the session itself with a fresh code".to_owned()),
            }),
            Decision::Deny(denial) => Err(denial),
        }
    }
}

/// The host behind the target, or `None` for what means the target itself.
fn host_behind(host: &str) -> Option<String> {
    let own = matches!(host, "localhost" | "127.0.0.1" | "::1");
    (!own).then(|| host.to_owned())
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Reverse => "reverse",
        Action::ForwardAgent => "forward_agent",
        _ => "tunnel",
    }
}
