//! Enrolments against an STS that says whatever a test wants.

mod answers;
mod issued;
mod proofs;
mod step_up;

use std::sync::Mutex;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::audit::event::{Event, Fact};
use postern_proto::enroll::{
    Binding, Outcome, Proof, RefuseCode, StepUp, StsRequest, key_challenge,
};
use postern_proto::names::Assurance;
use rcgen::{KeyPair, PublicKeyData as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::*;
use crate::ca::client::ClientCertificate;
use crate::identity::VerifiedPrincipal;
use crate::identity::proof::date_of;
use crate::identity::testing::{
    ALICE, Bench, FakeSts, ROLE, Reply, Says, Seen, assumed_xml, error, genuine, http,
    identity_xml, remember, sign,
};

const EXPORTED: [u8; 32] = [7; 32];
const SOURCE: &str = "192.0.2.7:5000";

struct Lab {
    enroller: Enroller,
    bench: Bench,
    sts: FakeSts,
    state: watch::Sender<AttestationState>,
    events: Arc<Mutex<Vec<Event>>>,
    approvals: Arc<Approvals>,
}

impl Lab {
    async fn new(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::with("", script).await
    }

    async fn with(extra: &str, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let sts = FakeSts::start(script).await;
        let bench = Bench::new(&sts.settings, extra);
        let client = StsClient::new(&bench.config.sts).unwrap();
        Self::assemble(bench, sts, client)
    }

    fn assemble(bench: Bench, sts: FakeSts, client: StsClient) -> Self {
        let (record, events) = remember();
        let state = watch::Sender::new(AttestationState::Open);
        let approvals = Arc::<Approvals>::default();
        let enroller = Enroller::new(
            &bench.config,
            EnrollerParts {
                sts: client,
                ca: bench.client_ca.clone(),
                trust: bench.trust(),
                approvals: approvals.clone(),
                attestation: state.subscribe(),
                record,
            },
        );
        Self {
            enroller,
            bench,
            sts,
            state,
            events,
            approvals,
        }
    }

    async fn enroll(&self, client: Client) -> (Option<Outcome>, EnrollEnd) {
        self.connect(client, EXPORTED).await
    }

    /// The agent sees `exporter`, whatever the client believes.
    async fn connect(&self, client: Client, exporter: [u8; 32]) -> (Option<Outcome>, EnrollEnd) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let source = SOURCE.parse().unwrap();
        let serve = self.enroller.serve(far, &exporter, source);
        let (outcome, end) = tokio::join!(client.run(near), serve);
        (outcome, end)
    }

    async fn refused(&self, client: Client) -> (RefuseCode, String) {
        match self.enroll(client).await {
            (Some(Outcome::Refused { code, .. }), EnrollEnd::Refused { refusal, .. }) => {
                assert_eq!(code, refusal.code);
                (code, refusal.reason)
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    fn facts(&self) -> Vec<Fact> {
        self.events
            .lock()
            .unwrap()
            .iter()
            .map(|event| event.fact.clone())
            .collect()
    }
}

type Spoiler = Box<dyn FnOnce(&mut Proof) + Send>;

/// A client as it should be, with a place to spoil its proof.
struct Client {
    key: KeyPair,
    key_id: &'static str,
    token: Option<&'static str>,
    secret: &'static str,
    skew: i64,
    exporter: [u8; 32],
    role: &'static str,
    agent: Option<&'static str>,
    nonce: Option<[u8; 32]>,
    step_up: Option<StepUp>,
    claimed_end: Option<i64>,
    spoil: Spoiler,
    raw: Option<Vec<u8>>,
}

fn client() -> Client {
    Client {
        key: KeyPair::generate().unwrap(),
        key_id: "ASIAALICEALICEALICE1",
        token: Some("token-of-alice-session"),
        secret: "secret",
        skew: 0,
        exporter: EXPORTED,
        role: ROLE,
        agent: None,
        nonce: None,
        step_up: None,
        claimed_end: None,
        spoil: Box::new(|_| {}),
        raw: None,
    }
}

fn spoilt(spoil: impl FnOnce(&mut Proof) + Send + 'static) -> Client {
    Client {
        spoil: Box::new(spoil),
        ..client()
    }
}

fn step_up(session: SessionId, open_hash: [u8; 32]) -> Client {
    Client {
        key_id: "AKIAALICEALICEALICE1",
        token: None,
        step_up: Some(StepUp {
            serial: "arn:aws:iam::111122223333:mfa/alice".to_owned(),
            code: "123456".to_owned(),
            session,
            open_hash: hex::encode(open_hash),
        }),
        ..client()
    }
}

impl Client {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) -> Option<Outcome> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let challenge: Challenge = serde_json::from_str(&line).unwrap();
        let message = match &self.raw {
            Some(raw) => raw.clone(),
            None => {
                let mut message = serde_json::to_vec(&self.prove(&challenge)).unwrap();
                message.push(b'\n');
                message
            }
        };
        // The agent may have closed already.
        let _ = stream.write_all(&message).await;
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        serde_json::from_str(&line).ok()
    }

    fn prove(self, challenge: &Challenge) -> Proof {
        let mut nonce = [0; 32];
        hex::decode_to_slice(&challenge.nonce, &mut nonce).unwrap();
        let nonce = self.nonce.unwrap_or(nonce);
        let agent = match self.agent {
            Some(agent) => agent.parse().unwrap(),
            None => challenge.agent.clone(),
        };
        let spki = self.key.subject_public_key_info();
        let mut open_hash = [0; 32];
        if let Some(step_up) = &self.step_up {
            hex::decode_to_slice(&step_up.open_hash, &mut open_hash).unwrap();
        }
        let bind = Binding {
            agent: &agent,
            nonce: &nonce,
            public_key: &spki,
            exporter: &self.exporter,
            step_up: self.step_up.as_ref().map(|s| (s.session, &open_hash)),
        }
        .bind();
        let date = date_of(now() + self.skew);
        let code = self
            .step_up
            .as_ref()
            .map(|s| (s.serial.as_str(), s.code.as_str()));
        let identity = StsRequest::identity(&challenge.sts_host, &bind);
        let attest = StsRequest::attest(&challenge.sts_host, &bind, self.role, code);
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, self.key.serialized_der())
                .unwrap();
        let signature = pair
            .sign(&SystemRandom::new(), &key_challenge(&nonce, &self.exporter))
            .unwrap();
        let mut proof = Proof {
            access_key_id: self.key_id.to_owned(),
            session_token: self.token.map(str::to_owned),
            identity_signature: sign(self.secret, &bind, &date, &identity.body),
            attest_signature: sign(self.secret, &bind, &date, &attest.body),
            date,
            public_key: URL_SAFE_NO_PAD.encode(&spki),
            key_signature: URL_SAFE_NO_PAD.encode(signature),
            step_up: self.step_up.clone(),
            claimed_end: self.claimed_end,
            claimed_serial: Some("arn:aws:iam::111122223333:mfa/alice".to_owned()),
        };
        (self.spoil)(&mut proof);
        proof
    }
}
