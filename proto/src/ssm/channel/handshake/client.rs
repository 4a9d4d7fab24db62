//! The client's side: does what the SSM Agent asks for, or says why not.

use serde_json::Value;

use super::{MALFORMED, OUT_OF_PLACE, Step, port_mode, violation};
use crate::ssm::Role;
use crate::ssm::channel::event::{CloseReason, Event, KeyRequest, Opened, Session};
use crate::ssm::crypt::{Cipher, SessionKey};
use crate::ssm::payload::PayloadKind;
use crate::ssm::payload::handshake::{
    Action, Challenge, HandshakeComplete, HandshakeRequest, HandshakeResponse, KmsResult,
    ProcessedAction,
};
use crate::ssm::version::AgentFeatures;

/// Where the client is.
#[derive(Debug)]
pub(in crate::ssm::channel) enum ClientHandshake {
    /// Nothing arrived yet. Data now means that there is no handshake.
    Start,
    /// KMS is being asked.
    KeyAsked(HandshakeRequest),
    /// The response went out. `session` is `None` when it said that something failed.
    Answered {
        agent_version: String,
        session: Option<Session>,
        cipher: Option<Cipher>,
        is_proven: bool,
    },
    /// Over.
    Done,
}

/// The result of the KMS action, if it was asked for.
pub(in crate::ssm::channel) enum Key<'a> {
    Provided {
        key: &'a SessionKey,
        ciphertext: &'a [u8],
        first_nonce: [u8; 16],
    },
    Refused(String),
}

impl ClientHandshake {
    pub(in crate::ssm::channel) fn handle(
        &mut self,
        version: &str,
        kind: PayloadKind,
        payload: &[u8],
    ) -> Vec<Step> {
        match (std::mem::replace(self, Self::Done), kind) {
            (Self::Start, PayloadKind::HandshakeRequest) => {
                let Ok(request) = HandshakeRequest::from_payload(payload) else {
                    return violation(MALFORMED);
                };
                let Some(asked) = key_request(&request) else {
                    return self.answer(version, request, None);
                };
                *self = Self::KeyAsked(request);
                vec![Step::Tell(Event::KeyNeeded(asked))]
            }
            (
                Self::Answered {
                    agent_version,
                    session,
                    cipher: Some(mut cipher),
                    ..
                },
                PayloadKind::ChallengeRequest,
            ) => {
                let Ok(sealed) = Challenge::from_payload(payload) else {
                    return violation(MALFORMED);
                };
                let proof = cipher.open(&sealed).and_then(|plain| cipher.seal(&plain));
                let Ok(proof) = proof else {
                    return vec![Step::Fail(CloseReason::Encryption)];
                };
                *self = Self::Answered {
                    agent_version,
                    session,
                    cipher: Some(cipher),
                    is_proven: true,
                };
                let payload = Challenge::new(&proof).payload();
                vec![Step::Send(PayloadKind::ChallengeResponse, payload)]
            }
            (
                Self::Answered {
                    agent_version,
                    session: Some(session),
                    cipher,
                    is_proven,
                },
                PayloadKind::HandshakeComplete,
            ) => {
                let Ok(complete) = HandshakeComplete::from_payload(payload) else {
                    return violation(MALFORMED);
                };
                if cipher.is_some() && !is_proven {
                    return violation("no challenge before the end of the handshake");
                }
                let features = AgentFeatures::new(Some(&agent_version));
                let cipher = cipher.filter(|_| session.encrypts_data());
                let opened = Opened {
                    port: port_mode(
                        &session,
                        features.multiplexes(),
                        features.is_without_keepalive(),
                    ),
                    session,
                    peer_version: Some(agent_version),
                    notice: complete.customer_message,
                    is_encrypted: cipher.is_some(),
                };
                vec![Step::Open(opened, cipher)]
            }
            _ => violation(OUT_OF_PLACE),
        }
    }

    /// Answers the request that [`Event::KeyNeeded`] came from; nothing when there is none.
    pub(in crate::ssm::channel) fn handle_key(&mut self, version: &str, key: Key<'_>) -> Vec<Step> {
        match std::mem::replace(self, Self::Done) {
            Self::KeyAsked(request) => self.answer(version, request, Some(key)),
            other => {
                *self = other;
                Vec::new()
            }
        }
    }

    fn answer(
        &mut self,
        version: &str,
        request: HandshakeRequest,
        key: Option<Key<'_>>,
    ) -> Vec<Step> {
        let mut session = None;
        let mut cipher = None;
        let mut actions = Vec::new();
        for action in request.actions {
            actions.push(match action {
                Action::SessionType { name, properties } => {
                    session = Session::from_wire(&name, properties);
                    match &session {
                        Some(_) => ProcessedAction::done("SessionType", Value::Null),
                        None => ProcessedAction::not_done(
                            "SessionType",
                            ProcessedAction::FAILED,
                            format!("unknown session type {name}"),
                        ),
                    }
                }
                Action::KmsEncryption { challenge, .. } => match &key {
                    Some(Key::Provided {
                        key,
                        ciphertext,
                        first_nonce,
                    }) => match Cipher::new(Role::Client, key, *first_nonce) {
                        Ok(made) => {
                            cipher = Some(made);
                            let result = KmsResult::new(ciphertext, challenge.is_some());
                            ProcessedAction::done("KMSEncryption", result.to_value())
                        }
                        Err(error) => kms_failed(error.to_string()),
                    },
                    Some(Key::Refused(error)) => kms_failed(error.clone()),
                    None => kms_failed("no key".into()),
                },
                Action::Unknown(name) => ProcessedAction::not_done(
                    &name,
                    ProcessedAction::UNSUPPORTED,
                    format!("unsupported action {name}"),
                ),
            });
        }
        let errors: Vec<String> = actions
            .iter()
            .filter(|action| action.action_status != ProcessedAction::SUCCESS)
            .map(|action| action.error.clone())
            .collect();
        *self = Self::Answered {
            agent_version: request.agent_version,
            session: session.filter(|_| errors.is_empty()),
            cipher,
            is_proven: false,
        };
        let response = HandshakeResponse {
            client_version: version.into(),
            actions,
            errors: (!errors.is_empty()).then_some(errors),
        };
        vec![Step::Send(
            PayloadKind::HandshakeResponse,
            response.payload(),
        )]
    }
}

fn kms_failed(error: String) -> ProcessedAction {
    ProcessedAction::not_done("KMSEncryption", ProcessedAction::FAILED, error)
}

fn key_request(request: &HandshakeRequest) -> Option<KeyRequest> {
    request.actions.iter().find_map(|action| match action {
        Action::KmsEncryption { key_id, challenge } => Some(KeyRequest {
            key_id: key_id.clone(),
            challenge: challenge.clone(),
        }),
        _ => None,
    })
}
