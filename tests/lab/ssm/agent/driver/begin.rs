//! How a session begins: what the handshake asks for, its key, and the work that a plan is.

use postern_proto::ssm::channel::{
    Encryption, KeyOffer, Opened, Plan, Session, encryption_context,
};
use postern_proto::ssm::crypt::SessionKey;
use postern_proto::ssm::version::{AgentFeatures, ClientFeatures, PortMode};

use super::{Driver, now};
use crate::ssm::agent::port::Destination;
use crate::ssm::agent::work::Work;
use crate::ssm::agent::{command, mux, port, shell};
use crate::ssm::document::Kind;

const UPGRADE: &str =
    "Please upgrade session-manager-plugin version to support separate output stream feature";

impl Driver {
    /// On the first connection only; the channel knows.
    pub(super) fn begin(&mut self) {
        let plan = &self.order.plan;
        let session = match &plan.kind {
            Kind::Shell => Session::StandardStream,
            Kind::Interactive(_) => Session::InteractiveCommands,
            Kind::NonInteractive { .. } => Session::NonInteractiveCommands,
            Kind::Port(properties) => Session::Port(properties.clone()),
        };
        let has_terminal = matches!(plan.kind, Kind::Shell | Kind::Interactive(_));
        let begun = if has_terminal && plan.kms_key.is_none() {
            self.channel.begin_unnamed()
        } else {
            let encryption = plan.kms_key.clone().map(|key_id| Encryption {
                key_id,
                challenge: self.challenge.clone(),
            });
            let plan = Plan {
                session,
                encryption,
            };
            self.channel.begin(now(), plan)
        };
        let told = self
            .channel
            .tell_state(now(), &self.order.session, "Connected");
        if let Err(error) = begun.and(told) {
            tracing::debug!("ssm agent: {error}");
        }
    }

    pub(super) fn key(&self, offer: &KeyOffer) -> Result<SessionKey, String> {
        if self.knobs.kms_challenge_required && offer.challenge.is_none() {
            return Err("the client does not acknowledge the KMS challenge".to_owned());
        }
        let context = encryption_context(
            &self.order.session,
            &self.host.instance,
            offer.challenge.as_deref(),
        );
        let plain = self
            .host
            .kms
            .decrypt(&offer.ciphertext, &context)
            .map_err(|error| format!("Fetching data key failed: {error}"))?;
        SessionKey::new(&plain).ok_or_else(|| "the data key has not 64 bytes".to_owned())
    }

    /// What the client's version says is for an SSM Agent of today; an older one knows less.
    fn port_mode(&self, opened: &Opened) -> Option<PortMode> {
        let own = AgentFeatures::new(Some(&self.knobs.agent_version));
        match opened.port? {
            PortMode::Multiplexed { .. } if !own.multiplexes() => Some(PortMode::Basic),
            PortMode::Multiplexed { keepalive } => Some(PortMode::Multiplexed {
                keepalive: keepalive || !own.is_without_keepalive(),
            }),
            other => Some(other),
        }
    }

    pub(super) fn start(&self, opened: &Opened) -> Work {
        let places = self.host.places.clone();
        let delay = self.knobs.prompt_delay;
        let (pace, payload) = (self.knobs.pace, self.knobs.payload);
        let failed = |why: String| Work::start(pace, payload, |_| async { Err(why) });
        match self.order.plan.kind.clone() {
            Kind::Shell => Work::start(pace, payload, |ends| shell::run(ends, places, None, delay)),
            Kind::Interactive(line) => Work::start(pace, payload, |ends| {
                shell::run(ends, places, Some(line), delay)
            }),
            Kind::NonInteractive { command, separate } => {
                let version = opened.peer_version.as_deref().unwrap_or_default();
                if separate && !ClientFeatures::new(version).separates_stderr() {
                    return failed(UPGRADE.to_owned());
                }
                Work::start(pace, payload, |ends| {
                    command::run(ends, places, command, separate)
                })
            }
            Kind::Port(properties) => {
                let port = properties.port().unwrap_or(22);
                let addresses = match places.resolve(properties.host()) {
                    Ok(addresses) => addresses,
                    Err(why) => return failed(why),
                };
                let to = Destination {
                    places,
                    addresses,
                    port,
                };
                match self.port_mode(opened) {
                    Some(PortMode::Multiplexed { keepalive }) => {
                        Work::start(pace, payload, |ends| mux::run(ends, to, keepalive))
                    }
                    Some(PortMode::Basic) => {
                        Work::start(pace, payload, |ends| port::basic(ends, to))
                    }
                    Some(PortMode::Stream) | None => {
                        Work::start(pace, payload, |ends| port::stream(ends, to))
                    }
                }
            }
        }
    }
}
