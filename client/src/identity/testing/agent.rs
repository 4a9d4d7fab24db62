//! An agent's half of the enrolment: rebuilds both requests and checks them as AWS would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::enroll::{
    Binding, Challenge, EXPORTER, Outcome, Proof, StsRequest, key_challenge,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, PublicKeyData as _, SubjectPublicKeyInfo};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::aws::{Aws, signature};
use super::{Authority, ROLE, Server, lock};
use crate::identity::enroll::ALPN;
use crate::identity::sts::now;

/// How it behaves, and what it saw.
pub(in crate::identity) struct State {
    /// Its challenge, but for the nonce.
    pub(in crate::identity) challenge: Challenge,
    /// Instead of deciding itself.
    pub(in crate::identity) outcome: Option<Outcome>,
    /// Seconds that its certificates live.
    pub(in crate::identity) lifetime: i64,
    /// Certifies a key of its own instead of the client's.
    pub(in crate::identity) other_key: bool,
    /// Connections that asked for something.
    pub(in crate::identity) connections: usize,
    /// Proofs that came.
    pub(in crate::identity) proofs: Vec<Proof>,
}

/// The agent.
pub(in crate::identity) struct Agent {
    pub(in crate::identity) state: Arc<Mutex<State>>,
    server: Server,
}

impl Agent {
    pub(in crate::identity) async fn start(
        authority: &Authority,
        name: &str,
        certificate_seconds: i64,
        aws: &Aws,
    ) -> Self {
        let state = Arc::new(Mutex::new(State {
            challenge: Challenge {
                nonce: String::new(),
                agent: "bastion-1".parse().unwrap(),
                role: ROLE.to_owned(),
                sts_host: format!("127.0.0.1:{}", aws.port()),
                region: "eu-west-1".to_owned(),
                time: now(),
            },
            outcome: None,
            lifetime: 3600,
            other_key: false,
            connections: 0,
            proofs: Vec::new(),
        }));
        let (shared, known) = (Arc::clone(&state), Arc::clone(&aws.state));
        let acceptor = authority.server(name, ALPN, certificate_seconds);
        let server = Server::start(acceptor, move |stream| {
            serve(stream, Arc::clone(&shared), Arc::clone(&known))
        })
        .await;
        Self { state, server }
    }

    pub(in crate::identity) fn port(&self) -> u16 {
        self.server.port
    }

    pub(in crate::identity) fn proofs(&self) -> Vec<Proof> {
        lock(&self.state).proofs.clone()
    }
}

async fn serve(
    stream: TlsStream<TcpStream>,
    state: Arc<Mutex<State>>,
    aws: Arc<Mutex<super::aws::State>>,
) {
    let exporter = stream
        .get_ref()
        .1
        .export_keying_material([0; 32], EXPORTER, None)
        .unwrap();
    let mut nonce = [0; 32];
    aws_lc_rs::rand::fill(&mut nonce).unwrap();
    let challenge = {
        let mut state = lock(&state);
        state.connections += 1;
        Challenge {
            nonce: hex::encode(nonce),
            ..state.challenge.clone()
        }
    };
    let mut stream = BufReader::new(stream);
    write(&mut stream, &challenge).await;
    let mut line = String::new();
    if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
        return;
    }
    let proof: Proof = serde_json::from_str(&line).unwrap();
    check(&proof, &challenge, &nonce, &exporter, &lock(&aws));
    let outcome = {
        let mut state = lock(&state);
        state.proofs.push(proof.clone());
        state.outcome.clone().unwrap_or_else(|| {
            if proof.step_up.is_some() {
                Outcome::Approved { until: now() + 60 }
            } else {
                issue(&proof, &state)
            }
        })
    };
    write(&mut stream, &outcome).await;
    let _ = stream.shutdown().await;
}

async fn write(stream: &mut BufReader<TlsStream<TcpStream>>, message: &impl serde::Serialize) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    // A client that does not like the question leaves.
    let _ = stream.write_all(&line).await;
    let _ = stream.flush().await;
}

fn check(
    proof: &Proof,
    challenge: &Challenge,
    nonce: &[u8; 32],
    exporter: &[u8; 32],
    aws: &super::aws::State,
) {
    let spki = URL_SAFE_NO_PAD.decode(&proof.public_key).unwrap();
    let key = SubjectPublicKeyInfo::from_der(&spki).unwrap();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes())
        .verify(
            &key_challenge(nonce, exporter),
            &URL_SAFE_NO_PAD.decode(&proof.key_signature).unwrap(),
        )
        .expect("the new key signs nonce and exporter");
    let hash = proof.step_up.as_ref().map(|act| {
        let mut hash = [0; 32];
        hex::decode_to_slice(&act.open_hash, &mut hash).unwrap();
        (act.session, hash)
    });
    let bind = Binding {
        agent: &challenge.agent,
        nonce,
        public_key: &spki,
        exporter,
        step_up: hash.as_ref().map(|(session, hash)| (*session, hash)),
    }
    .bind();
    let (secret, token) = &aws.keys[&proof.access_key_id];
    assert_eq!(token, &proof.session_token);
    let with_token = token.is_some();
    let code = proof
        .step_up
        .as_ref()
        .map(|act| (act.serial.as_str(), act.code.as_str()));
    let requests = [
        (
            StsRequest::identity(&challenge.sts_host, &bind),
            &proof.identity_signature,
        ),
        (
            StsRequest::attest(&challenge.sts_host, &bind, &challenge.role, code),
            &proof.attest_signature,
        ),
    ];
    for (request, given) in requests {
        let mut headers: HashMap<String, String> = request.headers.iter().cloned().collect();
        headers.insert("x-amz-date".to_owned(), proof.date.clone());
        if let Some(token) = token {
            headers.insert("x-amz-security-token".to_owned(), token.clone());
        }
        let credential = format!(
            "{}/{}/{}/sts/aws4_request",
            proof.access_key_id,
            &proof.date[..8],
            challenge.region
        );
        let signed = StsRequest::signed_headers(with_token);
        let expected = signature(secret, &credential, signed, &headers, &request.body);
        assert_eq!(&expected, given);
    }
}

fn issue(proof: &Proof, state: &State) -> Outcome {
    let authority = Authority::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let start = time::OffsetDateTime::from_unix_timestamp(now()).unwrap();
    params.not_before = start;
    params.not_after = start + time::Duration::seconds(state.lifetime);
    let certificate = if state.other_key {
        let key = rcgen::KeyPair::generate().unwrap();
        params.signed_by(&key, &authority.issuer).unwrap()
    } else {
        let spki = URL_SAFE_NO_PAD.decode(&proof.public_key).unwrap();
        let key = SubjectPublicKeyInfo::from_der(&spki).unwrap();
        params.signed_by(&key, &authority.issuer).unwrap()
    };
    Outcome::Issued {
        chain: format!("{}{}", certificate.pem(), authority.pem),
        not_after: now() + state.lifetime,
    }
}
