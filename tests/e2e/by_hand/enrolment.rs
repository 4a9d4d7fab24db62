//! The client's half of an enrolment, each part of which a test can change.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lab::stack::Lab;
use postern_proto::enroll::{
    Binding, Challenge, EXPORTER, Outcome, Proof, StepUp, StsRequest, key_challenge,
};
use postern_proto::gateway::message::open_hash;
use postern_proto::names::{AgentId, SessionId};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::sts::{Keys, date};
use super::wire::{Certified, ClientKey, ENROLL, dial, open_web, settings};
use crate::harness::PATIENCE;

/// A connection that was challenged.
pub(crate) struct Enrolment {
    stream: BufReader<TlsStream<TcpStream>>,
    challenge: Challenge,
    nonce: [u8; 32],
    exporter: [u8; 32],
}

/// All that the two signed requests cover.
pub(crate) struct Claims {
    pub(crate) agent: AgentId,
    pub(crate) nonce: [u8; 32],
    pub(crate) exporter: [u8; 32],
    pub(crate) role: String,
    pub(crate) host: String,
    pub(crate) date: String,
    /// Serial, code, and the session whose denial asked for them.
    pub(crate) step_up: Option<(String, String, SessionId)>,
}

impl Claims {
    /// What the agent asked for.
    pub(crate) fn honest(enrolment: &Enrolment) -> Self {
        Self {
            agent: enrolment.challenge.agent.clone(),
            nonce: enrolment.nonce,
            exporter: enrolment.exporter,
            role: enrolment.challenge.role.clone(),
            host: enrolment.challenge.sts_host.clone(),
            date: date(0),
            step_up: None,
        }
    }
}

impl Enrolment {
    pub(crate) async fn start(lab: &Lab) -> Self {
        let stream = dial(lab, &settings(lab, ENROLL, None)).await.unwrap();
        let mut exporter = [0; 32];
        let connection = stream.get_ref().1;
        exporter = connection
            .export_keying_material(exporter, EXPORTER, None)
            .unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let read = stream.read_line(&mut line);
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.expect("a challenge in time").unwrap();
        let challenge: Challenge = serde_json::from_str(&line).unwrap();
        let mut nonce = [0; 32];
        hex::decode_to_slice(&challenge.nonce, &mut nonce).unwrap();
        Self {
            stream,
            challenge,
            nonce,
            exporter,
        }
    }

    /// A proof of these claims.
    pub(crate) fn prove(&self, keys: &Keys, key: &ClientKey, claims: &Claims) -> Proof {
        let hash = open_hash(&open_web());
        let step_up = claims.step_up.as_ref();
        let public_key = key.public();
        let bind = Binding {
            agent: &claims.agent,
            nonce: &claims.nonce,
            public_key: &public_key,
            exporter: &claims.exporter,
            step_up: step_up.map(|(_, _, session)| (*session, &hash)),
        }
        .bind();
        let identity = StsRequest::identity(&claims.host, &bind);
        let code = step_up.map(|(serial, code, _)| (serial.as_str(), code.as_str()));
        let attest = StsRequest::attest(&claims.host, &bind, &claims.role, code);
        let possession = key.sign(&key_challenge(&claims.nonce, &claims.exporter));
        Proof {
            access_key_id: keys.id.clone(),
            session_token: keys.token.clone(),
            date: claims.date.clone(),
            identity_signature: keys.sign(&identity, &claims.date),
            attest_signature: keys.sign(&attest, &claims.date),
            public_key: base64(&public_key),
            key_signature: base64(&possession),
            step_up: step_up.map(|(serial, code, session)| StepUp {
                serial: serial.clone(),
                code: code.clone(),
                session: *session,
                open_hash: hex::encode(hash),
            }),
            claimed_end: None,
            claimed_serial: None,
        }
    }

    /// Makes `key` the key of a proof, as its holder on this connection can.
    pub(crate) fn possess(&self, proof: &mut Proof, key: &ClientKey) {
        let possession = key.sign(&key_challenge(&self.nonce, &self.exporter));
        proof.public_key = base64(&key.public());
        proof.key_signature = base64(&possession);
    }

    /// Sends a proof; after the answer the agent says no more.
    pub(crate) async fn answer(self, proof: &Proof) -> Outcome {
        self.say(&serde_json::to_string(proof).unwrap()).await
    }

    /// Sends a line.
    pub(crate) async fn say(self, line: &str) -> Outcome {
        let said = self.exchange(&format!("{line}\n")).await;
        let mut lines = said.lines();
        let outcome = lines.next().expect("an answer");
        assert_eq!(lines.next(), None, "one answer alone");
        serde_json::from_str(outcome).expect(outcome)
    }

    /// Sends two proofs at once: all that is said to them.
    pub(crate) async fn answer_twice(self, first: &Proof, second: &Proof) -> String {
        let line = |proof| serde_json::to_string(proof).unwrap();
        let both = format!("{}\n{}\n", line(first), line(second));
        self.exchange(&both).await
    }

    async fn exchange(mut self, message: &str) -> String {
        let exchange = async {
            self.stream.write_all(message.as_bytes()).await.unwrap();
            self.stream.flush().await.unwrap();
            let mut said = Vec::new();
            // The agent leaves, with or without TLS's own goodbye.
            let _ = self.stream.read_to_end(&mut said).await;
            String::from_utf8(said).unwrap()
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
    }
}

/// One honest attempt with these credentials.
pub(crate) async fn attempt(lab: &Lab, keys: &Keys) -> Outcome {
    let (enrolment, key) = (Enrolment::start(lab).await, ClientKey::new());
    let proof = enrolment.prove(keys, &key, &Claims::honest(&enrolment));
    enrolment.answer(&proof).await
}

/// Enrols; the certificate lives for so many seconds, or as long as the agent lets it.
pub(crate) async fn enrol(lab: &Lab, keys: &Keys, seconds: Option<i64>) -> Certified {
    enrol_key(lab, keys, &ClientKey::new(), seconds).await
}

/// The same for a given key.
pub(crate) async fn enrol_key(
    lab: &Lab,
    keys: &Keys,
    key: &ClientKey,
    seconds: Option<i64>,
) -> Certified {
    let enrolment = Enrolment::start(lab).await;
    let mut proof = enrolment.prove(keys, key, &Claims::honest(&enrolment));
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    proof.claimed_end = seconds.map(|seconds| now + seconds);
    match enrolment.answer(&proof).await {
        Outcome::Issued { chain, .. } => Certified::new(&chain, key),
        other => panic!("not enrolled: {other:?}"),
    }
}

/// As it stands in messages.
pub(crate) fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
