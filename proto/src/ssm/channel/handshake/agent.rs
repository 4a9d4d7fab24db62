//! The SSM Agent's side: asks, checks the answers, has the key proven.

use std::time::Duration;

use subtle::ConstantTimeEq;

use super::{MALFORMED, OUT_OF_PLACE, Step, port_mode, violation};
use crate::ssm::Role;
use crate::ssm::channel::event::{CloseReason, Event, KeyOffer, Opened, Session};
use crate::ssm::crypt::{Cipher, SessionKey};
use crate::ssm::payload::PayloadKind;
use crate::ssm::payload::handshake::{
    Action, Challenge, HandshakeComplete, HandshakeRequest, HandshakeResponse, KmsResult,
    ProcessedAction,
};
use crate::ssm::version::ClientFeatures;

/// The notice of an encrypted session, as the genuine SSM Agent words it.
const ENCRYPTED: &str = "This session is encrypted using AWS KMS.";

/// What an SSM Agent asks of its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The session to run.
    pub session: Session,
    /// Whether to encrypt it.
    pub encryption: Option<Encryption>,
}

/// The KMS key of an encrypted session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encryption {
    /// Id, ARN or alias.
    pub key_id: String,
    /// Base64 text for the encryption context, from newer SSM Agents.
    pub challenge: Option<String>,
}

/// Where the SSM Agent is.
#[derive(Debug)]
pub(in crate::ssm::channel) enum AgentHandshake {
    Start,
    Asked(Plan),
    KeyOffered(Session, String),
    Challenged {
        session: Session,
        client_version: String,
        cipher: Cipher,
        challenge: [u8; 64],
    },
    Done,
}

impl AgentHandshake {
    pub(in crate::ssm::channel) fn begin(&mut self, version: &str, plan: Plan) -> Vec<Step> {
        if !matches!(self, Self::Start) {
            return Vec::new();
        }
        let properties = match &plan.session {
            Session::Port(properties) => Some(properties.clone()),
            _ => None,
        };
        let mut actions = vec![Action::SessionType {
            name: plan.session.name().into(),
            properties,
        }];
        actions.extend(
            plan.encryption
                .clone()
                .map(|encryption| Action::KmsEncryption {
                    key_id: encryption.key_id,
                    challenge: encryption.challenge,
                }),
        );
        *self = Self::Asked(plan);
        let request = HandshakeRequest {
            agent_version: version.into(),
            actions,
        };
        vec![Step::Send(PayloadKind::HandshakeRequest, request.payload())]
    }

    pub(in crate::ssm::channel) fn handle(
        &mut self,
        kind: PayloadKind,
        payload: &[u8],
        elapsed: Duration,
    ) -> Vec<Step> {
        match (std::mem::replace(self, Self::Done), kind) {
            (Self::Asked(plan), PayloadKind::HandshakeResponse) => {
                let Ok(response) = HandshakeResponse::from_payload(payload) else {
                    return violation(MALFORMED);
                };
                self.check(plan, response, elapsed)
            }
            (
                Self::Challenged {
                    session,
                    client_version,
                    cipher,
                    challenge,
                },
                PayloadKind::ChallengeResponse,
            ) => {
                let Ok(sealed) = Challenge::from_payload(payload) else {
                    return violation(MALFORMED);
                };
                match cipher.open(&sealed) {
                    Ok(proof) if bool::from(proof.as_ref().ct_eq(&challenge)) => {
                        complete(session, client_version, Some(cipher), elapsed)
                    }
                    _ => vec![Step::Fail(CloseReason::Encryption)],
                }
            }
            _ => violation(OUT_OF_PLACE),
        }
    }

    /// The data key that [`Event::KeyOffered`] was about; nothing when there is none.
    pub(in crate::ssm::channel) fn handle_key(
        &mut self,
        key: &SessionKey,
        first_nonce: [u8; 16],
        challenge: [u8; 64],
    ) -> Vec<Step> {
        match std::mem::replace(self, Self::Done) {
            Self::KeyOffered(session, client_version) => {
                let made = Cipher::new(Role::Agent, key, first_nonce)
                    .and_then(|mut cipher| Ok((cipher.seal(&challenge)?, cipher)));
                let Ok((sealed, cipher)) = made else {
                    return vec![Step::Fail(CloseReason::Encryption)];
                };
                *self = Self::Challenged {
                    session,
                    client_version,
                    cipher,
                    challenge,
                };
                let payload = Challenge::new(&sealed).payload();
                vec![Step::Send(PayloadKind::ChallengeRequest, payload)]
            }
            other => {
                *self = other;
                Vec::new()
            }
        }
    }

    fn check(&mut self, plan: Plan, response: HandshakeResponse, elapsed: Duration) -> Vec<Step> {
        let asked = 1 + usize::from(plan.encryption.is_some());
        let names = ["SessionType", "KMSEncryption"];
        let mut actions = response.actions.into_iter();
        let mut result = None;
        for name in names.into_iter().take(asked) {
            let Some(action) = actions.next().filter(|action| action.action_type == name) else {
                return violation("the response does not answer the request");
            };
            if action.action_status != ProcessedAction::SUCCESS {
                return vec![Step::Fail(CloseReason::ActionFailed {
                    action: action.action_type,
                    status: action.action_status,
                    error: action.error,
                })];
            }
            result = Some(action.action_result);
        }
        let Some(encryption) = plan.encryption else {
            return complete(plan.session, response.client_version, None, elapsed);
        };
        let offer = result
            .and_then(|value| KmsResult::from_value(value).ok())
            .and_then(|result| Some((result.ciphertext().ok()?, result)));
        let Some((ciphertext, result)) = offer else {
            return violation(MALFORMED);
        };
        *self = Self::KeyOffered(plan.session, response.client_version);
        let challenge = encryption
            .challenge
            .filter(|_| result.challenge_acknowledged);
        vec![Step::Tell(Event::KeyOffered(KeyOffer {
            ciphertext,
            challenge,
        }))]
    }
}

fn complete(
    session: Session,
    client_version: String,
    cipher: Option<Cipher>,
    elapsed: Duration,
) -> Vec<Step> {
    let notice = cipher.as_ref().map_or("", |_| ENCRYPTED);
    let told = HandshakeComplete {
        handshake_time_to_complete: i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX),
        customer_message: notice.into(),
    };
    let features = ClientFeatures::new(&client_version);
    let cipher = cipher.filter(|_| session.encrypts_data());
    let opened = Opened {
        port: port_mode(
            &session,
            features.multiplexes(),
            features.is_without_keepalive(),
        ),
        session,
        peer_version: Some(client_version),
        notice: notice.into(),
        is_encrypted: cipher.is_some(),
    };
    vec![
        Step::Send(PayloadKind::HandshakeComplete, told.payload()),
        Step::Open(opened, cipher),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_key_with_another_challenge_is_refused() {
        let key = SessionKey::new(&[5; 64]).unwrap();
        for (proof, is_right) in [([7; 64], true), ([8; 64], false)] {
            let mut agent = AgentHandshake::KeyOffered(Session::StandardStream, "1.2.3.4".into());
            let steps = agent.handle_key(&key, [0; 16], [7; 64]);
            assert!(matches!(
                &steps[..],
                [Step::Send(PayloadKind::ChallengeRequest, _)]
            ));
            let mut client = Cipher::new(Role::Client, &key, [0; 16]).unwrap();
            let answer = Challenge::new(&client.seal(&proof).unwrap()).payload();
            let steps = agent.handle(PayloadKind::ChallengeResponse, &answer, Duration::ZERO);
            let opens = steps.iter().any(|step| matches!(step, Step::Open(..)));
            assert_eq!(opens, is_right, "{steps:?}");
        }
    }
}
