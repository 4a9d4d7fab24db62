use std::sync::Mutex;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::enroll::{Proof, RefuseCode, StepUp, StsRequest, key_challenge};
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

#[tokio::test]
async fn an_mfa_session_gets_a_certificate_that_says_what_aws_attested() {
    let lab = Lab::new(genuine(true)).await;
    let alice = client();
    let spki = alice.key.subject_public_key_info();
    let (outcome, end) = lab.enroll(alice).await;
    let Some(Outcome::Issued { chain, not_after }) = outcome else {
        panic!("{end:?}");
    };
    let chain = ca::certificates_from_pem(chain.as_bytes()).unwrap();
    assert_eq!(chain[1], *lab.bench.client_ca.certificate());
    let read = ClientCertificate::from_der(&chain[0]).unwrap();
    assert_eq!(
        read.subject.principal.key(),
        format!("111122223333/{ALICE}")
    );
    assert_eq!(read.subject.assurance, Assurance::AwsMfa);
    assert_eq!(read.subject.aws_request_ids, ["request-1", "request-2"]);
    assert_eq!(read.key_hash, ca::client::key_hash(&spki));
    assert_eq!(read.not_after, not_after);
    assert!((now() + 3590..=now() + 3600).contains(&not_after));
    let bound = now() - 12 * 3600;
    assert!((bound - 10..=bound).contains(&read.subject.mfa_not_before));
    // It opens a connection, and the event was written.
    let trust = &lab.enroller.parts.trust;
    let who: VerifiedPrincipal = trust.verify_certificate(&chain[0], now()).unwrap();
    assert_eq!(who.actor().aws_request_ids, ["request-1", "request-2"]);
    assert!(matches!(lab.facts().as_slice(), [Fact::Enrolled { .. }]));
    assert!(matches!(end, EnrollEnd::Issued { .. }));
}

#[tokio::test]
async fn over_tls_both_sides_bind_the_same_exporter() {
    use rustls::pki_types::ServerName;
    let lab = Lab::new(genuine(true)).await;
    let (chain, key) = lab.bench.server();
    let trust = lab.enroller.parts.trust.clone();
    let server = crate::tls::TlsSettings::new(&[chain], &key, trust).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(lab.bench.server_ca.certificate().clone())
        .unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(crate::crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postern-enroll/1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let enrolling = async {
        let name = ServerName::try_from("bastion-1").unwrap();
        let stream = connector.connect(name, near).await.unwrap();
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None)
            .unwrap();
        let alice = Client {
            exporter,
            ..client()
        };
        alice.run(stream).await
    };
    let serving = async {
        let accepted = server.accept(far).await.unwrap();
        assert!(accepted.peer.is_none());
        lab.enroller
            .serve_tls(accepted.stream, SOURCE.parse().unwrap())
            .await
    };
    let (outcome, end) = tokio::join!(enrolling, serving);
    assert!(matches!(outcome, Some(Outcome::Issued { .. })), "{end:?}");
}

#[tokio::test]
async fn only_the_signed_headers_and_fixed_ones_reach_sts() {
    let lab = Lab::new(genuine(true)).await;
    lab.enroll(client()).await.0.unwrap();
    let seen = lab.sts.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.path, "/");
        let names: Vec<_> = request.headers.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "accept",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "postern-bind",
                "user-agent",
                "x-amz-date",
                "x-amz-security-token"
            ]
        );
        assert_eq!(request.header("accept"), "text/xml");
        assert!(request.header("authorization").contains(
            "SignedHeaders=content-type;host;postern-bind;x-amz-date;x-amz-security-token"
        ));
    }
    assert_eq!(seen[0].form("Action"), Some("GetCallerIdentity"));
    assert_eq!(seen[1].form("Action"), Some("AssumeRole"));
    assert!(seen[1].form("Policy").unwrap().contains("Deny"));
    assert_eq!(
        seen[0].header("postern-bind"),
        seen[1].form("RoleSessionName").unwrap()
    );
}

#[tokio::test]
async fn a_session_without_mfa_is_refused() {
    let lab = Lab::new(genuine(false)).await;
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Mfa);
    // AWS had said who it was: an event of its own.
    assert!(
        matches!(lab.facts().as_slice(), [Fact::EnrollmentRefused { code, .. }] if code == "mfa")
    );
}

#[tokio::test]
async fn long_term_keys_without_a_code_are_refused_before_aws_is_asked() {
    let lab = Lab::new(genuine(true)).await;
    let keys = Client {
        key_id: "AKIAALICEALICEALICE1",
        token: None,
        ..client()
    };
    assert_eq!(lab.refused(keys).await.0, RefuseCode::Mfa);
    assert!(lab.sts.seen().is_empty());
    assert!(lab.facts().is_empty());
}

#[tokio::test]
async fn a_proof_for_another_connection_agent_nonce_or_role_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    // The TLS exporter differs: somebody stands in between. The key's own signature tells first.
    let (outcome, _) = lab.connect(client(), [8; 32]).await;
    assert!(matches!(
        outcome,
        Some(Outcome::Refused {
            code: RefuseCode::Proof,
            ..
        })
    ));
    let replayed = Client {
        nonce: Some([3; 32]),
        ..client()
    };
    assert_eq!(lab.refused(replayed).await.0, RefuseCode::Proof);
    assert!(lab.sts.seen().is_empty());
    // Signed for another agent or role: AWS does not accept the rebuilt requests.
    let other = Client {
        agent: Some("bastion-2"),
        ..client()
    };
    assert_eq!(lab.refused(other).await.0, RefuseCode::Proof);
    let role = Client {
        role: "arn:aws:iam::111122223333:role/admin",
        ..client()
    };
    assert_eq!(lab.refused(role).await.0, RefuseCode::Proof);
}

#[tokio::test]
async fn a_proof_whose_key_signature_was_moved_to_another_nonce_fails_at_aws() {
    // A client that holds the new key can sign any nonce with it; the AWS signature cannot move.
    let lab = Lab::new(genuine(true)).await;
    let captured: Arc<Mutex<Option<Proof>>> = Arc::default();
    let keep = captured.clone();
    let first = client();
    let pkcs8 = first.key.serialized_der().to_vec();
    lab.enroll(Client {
        spoil: Box::new(move |proof| *keep.lock().unwrap() = Some(proof.clone())),
        ..first
    })
    .await
    .0
    .unwrap();
    let old = captured.lock().unwrap().take().unwrap();
    let same_key = Client {
        key: KeyPair::try_from(pkcs8).unwrap(),
        spoil: Box::new(move |proof| {
            proof.identity_signature = old.identity_signature.clone();
            proof.attest_signature = old.attest_signature.clone();
            proof.date = old.date.clone();
        }),
        ..client()
    };
    assert_eq!(lab.refused(same_key).await.0, RefuseCode::Proof);
}

#[tokio::test]
async fn every_altered_field_of_a_proof_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    let other = || URL_SAFE_NO_PAD.encode(KeyPair::generate().unwrap().subject_public_key_info());
    let spoilers: Vec<Spoiler> = vec![
        Box::new(move |p| p.public_key = other()),
        Box::new(|p| p.public_key.push('=')),
        Box::new(|p| p.public_key.clear()),
        Box::new(|p| p.key_signature = "AAAA".to_owned()),
        Box::new(|p| p.key_signature = "A".repeat(4000)),
        Box::new(|p| p.identity_signature = "0".repeat(64)),
        Box::new(|p| p.attest_signature = "0".repeat(64)),
        Box::new(|p| p.identity_signature = p.identity_signature.to_uppercase()),
        Box::new(|p| p.attest_signature.push('0')),
        Box::new(|p| p.access_key_id = "ASIA".to_owned()),
        Box::new(|p| p.access_key_id = "asiaaliceAliceAlice1".to_owned()),
        Box::new(|p| p.access_key_id = "AROAALICEALICEALICE1".to_owned()),
        Box::new(|p| p.access_key_id = "ASIAALICE/ALICEALICE".to_owned()),
        Box::new(|p| p.access_key_id = "ASIÄALICEALICEALICE1".to_owned()),
        Box::new(|p| p.session_token = None),
        Box::new(|p| p.session_token = Some("short".to_owned())),
        Box::new(|p| p.session_token = Some("token with a space in it".to_owned())),
        Box::new(|p| p.session_token = Some("token\r\nx-amz-date: 1234567".to_owned())),
        Box::new(|p| p.session_token = Some("t".repeat(8193))),
        Box::new(|p| p.date = "2026-11-21T20:00:00Z".to_owned()),
        Box::new(|p| p.date = "20261399T000000Z".to_owned()),
        Box::new(|p| p.date = String::new()),
        Box::new(|p| p.claimed_serial = Some("x y z x y z x y z".to_owned())),
    ];
    for (number, spoil) in spoilers.into_iter().enumerate() {
        let (code, reason) = lab.refused(spoilt(spoil)).await;
        assert_eq!(code, RefuseCode::Proof, "{number}: {reason}");
    }
}

#[tokio::test]
async fn a_date_more_than_a_minute_off_is_refused_and_the_skew_told() {
    let lab = Lab::new(genuine(true)).await;
    for skew in [-70, 70] {
        let late = Client { skew, ..client() };
        let (code, reason) = lab.refused(late).await;
        assert_eq!(code, RefuseCode::Clock, "{reason}");
    }
    let near = Client {
        skew: -50,
        ..client()
    };
    assert!(matches!(lab.enroll(near).await.1, EnrollEnd::Issued { .. }));
}

#[tokio::test]
async fn a_message_that_is_not_one_proof_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    for raw in [
        &b"{}\n"[..],
        b"[]\n",
        b"null\n",
        b"\xff\xff\n",
        b"{\"access_key_id\":\"a\",\"access_key_id\":\"b\"}\n",
        b"\n",
    ] {
        let message = Client {
            raw: Some(raw.to_vec()),
            ..client()
        };
        assert_eq!(lab.refused(message).await.0, RefuseCode::Proof);
    }
    for raw in [vec![b'x'; MESSAGE_LIMIT + 10], b"{}\n{}\n".to_vec()] {
        let message = Client {
            raw: Some(raw),
            ..client()
        };
        let (outcome, end) = lab.enroll(message).await;
        assert!(
            outcome.is_none() && matches!(end, EnrollEnd::Broken(_)),
            "{end:?}"
        );
    }
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn an_unknown_field_is_refused() {
    let proof = serde_json::json!({
        "access_key_id": "ASIAALICEALICEALICE1", "session_token": "t", "date": "d",
        "identity_signature": "", "attest_signature": "", "public_key": "", "key_signature": "",
        "url": "https://evil.example/"
    });
    let refusal = CheckedProof::read(proof.to_string().as_bytes(), &[0; 32], &[0; 32], now());
    assert_eq!(refusal.err().unwrap().code, RefuseCode::Proof);
}

#[tokio::test]
async fn a_claimed_end_may_only_shorten_the_certificate() {
    let lab = Lab::new(genuine(true)).await;
    for (claimed, expected) in [(600, 600), (99_999, 3600)] {
        let claiming = Client {
            claimed_end: Some(now() + claimed),
            ..client()
        };
        let Some(Outcome::Issued { not_after, .. }) = lab.enroll(claiming).await.0 else {
            panic!("refused");
        };
        let end = now() + expected;
        assert!((end - 10..=end).contains(&not_after));
    }
    let over = Client {
        claimed_end: Some(now() - 1),
        ..client()
    };
    assert_eq!(lab.refused(over).await.0, RefuseCode::Credentials);
}

/// A script that answers GetCallerIdentity like this and AssumeRole as usual.
fn caller_is(arn: &str, user_id: &str, account: &str) -> impl Fn(&Seen) -> Reply + use<> {
    let body = identity_xml(arn, user_id, account);
    let usual = genuine(true);
    move |seen| match seen.form("Action") {
        Some("GetCallerIdentity") => http("200 OK", "text/xml", &body),
        _ => usual(seen),
    }
}

#[tokio::test]
async fn root_role_sessions_federated_users_and_other_accounts_are_refused() {
    for (arn, id, account, expected) in [
        (
            "arn:aws:iam::111122223333:root",
            "111122223333",
            "111122223333",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:sts::111122223333:assumed-role/ops/alice",
            "AROAEXAMPLEEXAMPLE11:alice",
            "111122223333",
            RefuseCode::Mfa,
        ),
        (
            "arn:aws:sts::111122223333:federated-user/alice",
            "111122223333:alice",
            "111122223333",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:iam::999999999999:user/alice",
            ALICE,
            "999999999999",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:iam::999999999999:user/alice",
            ALICE,
            "111122223333",
            RefuseCode::Sts,
        ),
    ] {
        let lab = Lab::new(caller_is(arn, id, account)).await;
        assert_eq!(lab.refused(client()).await.0, expected, "{arn}");
        // GetCallerIdentity comes first, and is enough.
        assert_eq!(lab.sts.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_echo_of_another_role_session_or_account_is_refused() {
    for arn in [
        "arn:aws:sts::111122223333:assumed-role/postern-attest/other",
        "arn:aws:sts::111122223333:assumed-role/admin/BIND",
        "arn:aws:sts::999999999999:assumed-role/postern-attest/BIND",
        "arn:aws-cn:sts::111122223333:assumed-role/postern-attest/BIND",
    ] {
        let usual = genuine(true);
        let lab = Lab::new(move |seen| match seen.form("RoleSessionName") {
            Some(bind) => http(
                "200 OK",
                "text/xml",
                &assumed_xml(&arn.replace("BIND", bind)),
            ),
            None => usual(seen),
        })
        .await;
        let (code, reason) = lab.refused(client()).await;
        assert_eq!(
            (code, reason.contains("another role")),
            (RefuseCode::Sts, true),
            "{arn}"
        );
    }
}

#[tokio::test]
async fn hostile_answers_of_sts_are_refused() {
    let good = identity_xml(
        "arn:aws:iam::111122223333:user/alice",
        ALICE,
        "111122223333",
    );
    let doubled = good.replace("<Account>", "<Account>111122223333</Account><Account>");
    let json = format!("{{\"a\":{}}}", serde_json::to_string(&good).unwrap());
    let redirect = "HTTP/1.1 302 Found\r\nlocation: https://localhost:1/\r\n\
                    content-length: 0\r\n\r\n";
    let encoded = good.len();
    let answers: Vec<Reply> = vec![
        Reply::Bytes(redirect.as_bytes().to_vec()),
        http("200 OK", "text/html", "<html><body>hello</body></html>"),
        http("200 OK", "text/xml", "<html><body>hello</body></html>"),
        http("200 OK", "application/json", &json),
        http("200 OK", "text/xml", &json),
        http("200 OK", "application/json", &good),
        http("200 OK", "text/xml", &doubled),
        http("200 OK", "text/xml", &format!("{good}<more/>")),
        http("200 OK", "text/xml", &format!("<!DOCTYPE x []>{good}")),
        http("201 Created", "text/xml", &good),
        http("500 Internal Server Error", "text/html", "<html/>"),
        http("503 Service Unavailable", "text/xml", &good),
        http("403 Forbidden", "text/html", "<html/>"),
        http("403 Forbidden", "text/xml", &good),
        http(
            "200 OK",
            "text/xml",
            &assumed_xml("arn:aws:sts::111122223333:assumed-role/x/y"),
        ),
        Reply::Bytes(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-encoding: gzip\r\n\
                 content-length: {encoded}\r\n\r\n{good}"
            )
            .into_bytes(),
        ),
        Reply::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: 999\r\n\r\n<a".to_vec(),
        ),
        Reply::Bytes(b"garbage\r\n\r\n".to_vec()),
        Reply::Bytes(vec![]),
        Reply::Flood,
        error("Throttling"),
        error("SomethingNew"),
    ];
    let count = answers.len();
    let queue = Mutex::new(answers.into_iter());
    let lab = Lab::new(move |_| queue.lock().unwrap().next().unwrap_or(Reply::Never)).await;
    for number in 0..count {
        let (code, reason) = lab.refused(client()).await;
        assert_eq!(code, RefuseCode::Sts, "{number}: {reason}");
        // No retry, no second request, no redirect followed.
        assert_eq!(lab.sts.seen().len(), number + 1);
    }
    assert!(lab.facts().is_empty());
}

#[tokio::test]
async fn an_sts_that_does_not_answer_is_given_up() {
    let sts = FakeSts::start(|_| Reply::Never).await;
    let bench = Bench::new(&sts.settings, "");
    let client_of = StsClient::new(&bench.config.sts)
        .unwrap()
        .with_deadline(Duration::from_millis(200));
    let lab = Lab::assemble(bench, sts, client_of);
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Sts);
}

#[tokio::test]
async fn a_private_address_is_asked_only_when_the_endpoint_is_configured() {
    let sts = FakeSts::start(genuine(true)).await;
    let bench = Bench::new(&sts.settings, "");
    let client_of = StsClient::new(&bench.config.sts).unwrap().unconfigured();
    let lab = Lab::assemble(bench, sts, client_of);
    let (code, reason) = lab.refused(client()).await;
    assert_eq!(code, RefuseCode::Sts);
    assert!(reason.contains("not public"), "{reason}");
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn an_sts_whose_certificate_is_of_another_ca_is_not_believed() {
    let (good, impostor) = (
        FakeSts::start(genuine(true)).await,
        FakeSts::start(genuine(true)).await,
    );
    let settings = good.settings.replace(
        &good.address.port().to_string(),
        &impostor.address.port().to_string(),
    );
    let bench = Bench::new(&settings, "");
    let client_of = StsClient::new(&bench.config.sts).unwrap();
    let lab = Lab::assemble(bench, impostor, client_of);
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Sts);
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn the_clock_is_compared_with_the_date_of_an_answer() {
    for (behind, expected) in [(0, -2..=2), (90, 88..=92)] {
        let sts = FakeSts::start(move |seen| {
            assert_eq!(
                (seen.path.as_str(), seen.header("authorization")),
                ("/", "")
            );
            let date = OffsetDateTime::now_utc() - Duration::from_secs(behind);
            let format = time::macros::format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            );
            let date = date.format(&format).unwrap();
            let answer = format!("HTTP/1.1 302 Found\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n");
            Reply::Bytes(answer.into_bytes())
        })
        .await;
        let bench = Bench::new(&sts.settings, "");
        let skew = StsClient::new(&bench.config.sts)
            .unwrap()
            .clock_skew()
            .await
            .unwrap();
        assert!(expected.contains(&skew), "{skew}");
    }
    let sts = FakeSts::start(|_| http("200 OK", "text/xml", "")).await;
    let bench = Bench::new(&sts.settings, "");
    let skew = StsClient::new(&bench.config.sts)
        .unwrap()
        .clock_skew()
        .await;
    assert!(matches!(skew, Err(StsFault::Answer(_))));
}

#[tokio::test]
async fn error_codes_of_aws_become_refusals_that_say_what_to_do() {
    for (answer, expected) in [
        ("InvalidClientTokenId", RefuseCode::Credentials),
        ("ExpiredToken", RefuseCode::Credentials),
        ("SignatureDoesNotMatch", RefuseCode::Proof),
        ("AccessDenied", RefuseCode::Sts),
    ] {
        let lab = Lab::new(move |_| error(answer)).await;
        assert_eq!(lab.refused(client()).await.0, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_user_on_the_deny_list_gets_no_new_certificate() {
    let lab = Lab::new(genuine(true)).await;
    std::fs::write(
        &lab.bench.config.deny,
        format!("user 111122223333/{ALICE}\n"),
    )
    .unwrap();
    let own = lab.bench.client_ca.certificate();
    lab.enroller
        .parts
        .trust
        .reload(&lab.bench.config, own)
        .unwrap();
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Caller);
    // The attestation is not even asked for.
    assert_eq!(lab.sts.seen().len(), 1);
}

#[tokio::test]
async fn enrolment_is_closed_while_the_attestation_role_is_unsound() {
    let lab = Lab::new(genuine(true)).await;
    lab.state
        .send_replace(AttestationState::Closed("lost its condition".into()));
    let (code, reason) = lab.refused(client()).await;
    assert_eq!(
        (code, reason.as_str()),
        (RefuseCode::Closed, "lost its condition")
    );
    assert!(lab.sts.seen().is_empty());
    lab.state.send_replace(AttestationState::Open);
    assert!(matches!(
        lab.enroll(client()).await.1,
        EnrollEnd::Issued { .. }
    ));
}

#[tokio::test]
async fn nothing_is_issued_when_the_event_cannot_be_written() {
    let mut lab = Lab::new(genuine(true)).await;
    lab.enroller.parts.record = Arc::new(|_| Box::pin(async { Err("disk full".to_owned()) }));
    let (code, reason) = lab.refused(client()).await;
    assert_eq!((code, reason.as_str()), (RefuseCode::Closed, "disk full"));
    let session = SessionId::from_parts(1, 1);
    assert_eq!(
        lab.refused(step_up(session, [5; 32])).await.0,
        RefuseCode::Closed
    );
}

#[tokio::test]
async fn a_step_up_is_an_approval_for_one_key_and_one_open_and_no_certificate() {
    let lab = Lab::new(genuine(true)).await;
    let session = SessionId::from_parts(1, 1);
    let stepping = step_up(session, [5; 32]);
    let spki = stepping.key.subject_public_key_info();
    let (outcome, end) = lab.enroll(stepping).await;
    let Some(Outcome::Approved { until }) = outcome else {
        panic!("{end:?}");
    };
    assert!((now() + 50..=now() + 60).contains(&until));
    let seen = lab.sts.seen();
    assert_eq!(seen[1].form("TokenCode"), Some("123456"));
    assert!(seen[1].header("x-amz-security-token").is_empty());
    let who = |key_hash| {
        Says {
            key_hash,
            ..Says::default()
        }
        .verified()
    };
    let alice = who(ca::client::key_hash(&spki));
    assert!(
        lab.approvals
            .take(&alice, &[6; 32], session, now())
            .is_none()
    );
    assert!(
        lab.approvals
            .take(&who([0; 32]), &[5; 32], session, now())
            .is_none()
    );
    let approval = lab
        .approvals
        .take(&alice, &[5; 32], session, now())
        .unwrap();
    assert_eq!(approval.aws_request_ids, ["request-1", "request-2"]);
    assert!(
        lab.approvals
            .take(&alice, &[5; 32], session, now())
            .is_none()
    );
    let events = lab.events.lock().unwrap();
    assert!(matches!(events[0].fact, Fact::StepUpApproved { .. }));
    assert_eq!(events[0].session, Some(session));
}

#[tokio::test]
async fn a_step_up_with_a_wrong_code_or_somebody_elses_device_is_refused() {
    let session = SessionId::from_parts(1, 1);
    let lab = Lab::new(genuine(false)).await;
    let (code, reason) = lab.refused(step_up(session, [5; 32])).await;
    assert_eq!(code, RefuseCode::Mfa);
    assert!(reason.contains("code"), "{reason}");

    let lab = Lab::new(genuine(true)).await;
    let mut other = step_up(session, [5; 32]);
    other.step_up.as_mut().unwrap().serial = "arn:aws:iam::999999999999:mfa/bob".to_owned();
    assert_eq!(lab.refused(other).await.0, RefuseCode::Caller);
    assert_eq!(lab.sts.seen().len(), 1);
}

#[tokio::test]
async fn a_step_up_in_a_wrong_form_is_refused_before_aws_is_asked() {
    let lab = Lab::new(genuine(true)).await;
    let session = SessionId::from_parts(1, 1);
    let spoilers: Vec<fn(&mut StepUp)> = vec![
        |s| s.code = "12345".to_owned(),
        |s| s.code = "12345a".to_owned(),
        |s| s.code = "123456&Policy=".to_owned(),
        |s| s.code = "１２３４５６".to_owned(),
        |s| s.serial = "short".to_owned(),
        |s| s.serial = "arn:aws:iam::111122223333:mfa/a b".to_owned(),
        |s| s.open_hash = "00".to_owned(),
        |s| s.open_hash = "Z".repeat(64),
    ];
    for spoil in spoilers {
        let client = Client {
            spoil: Box::new(move |proof| {
                let mut changed = proof.step_up.clone().unwrap();
                spoil(&mut changed);
                proof.step_up = Some(changed);
            }),
            ..step_up(session, [5; 32])
        };
        assert_eq!(lab.refused(client).await.0, RefuseCode::Proof);
    }
    // Temporary keys cannot step up, long-term keys bring no token.
    let temporary = Client {
        key_id: "ASIAALICEALICEALICE1",
        token: Some("token-of-alice-session"),
        ..step_up(session, [5; 32])
    };
    assert_eq!(lab.refused(temporary).await.0, RefuseCode::Proof);
    let token = Client {
        token: Some("token-of-alice-session"),
        ..step_up(session, [5; 32])
    };
    assert_eq!(lab.refused(token).await.0, RefuseCode::Proof);
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn a_step_up_for_another_open_than_the_signed_one_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    let client = Client {
        spoil: Box::new(|proof| {
            let mut changed = proof.step_up.clone().unwrap();
            changed.open_hash = hex::encode([6; 32]);
            proof.step_up = Some(changed);
        }),
        ..step_up(SessionId::from_parts(1, 1), [5; 32])
    };
    assert_eq!(lab.refused(client).await.0, RefuseCode::Proof);
}

#[tokio::test]
async fn a_client_that_sends_no_proof_is_dropped_after_its_deadline() {
    let mut lab = Lab::new(genuine(true)).await;
    lab.enroller.proof_deadline = Duration::from_millis(50);
    let (_near, far) = tokio::io::duplex(4096);
    let end = lab
        .enroller
        .serve(far, &EXPORTED, SOURCE.parse().unwrap())
        .await;
    let EnrollEnd::Broken(error) = end else {
        panic!("{end:?}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn no_secret_of_a_proof_is_in_an_event_or_a_refusal() {
    let script = genuine(true);
    let lab = Lab::new(move |seen| {
        // STS echoes what it got: the agent must not pass it on.
        match seen.form("Action") {
            Some("AssumeRole") => error(&format!("Odd-{}", seen.header("x-amz-security-token"))),
            _ => script(seen),
        }
    })
    .await;
    let (outcome, end) = lab.enroll(client()).await;
    let shown = format!("{outcome:?} {:?}", lab.facts());
    assert!(!shown.contains("token-of-alice"), "{shown}");
    assert!(!format!("{end:?}").contains("token-of-alice"));
}

#[test]
fn every_refusal_says_what_to_do() {
    let refusals = [
        Refusal::proof("x"),
        Refusal::clock(-75),
        Refusal::clock(90),
        Refusal::long_term_keys(),
        Refusal::session_ended(),
        Refusal::unknown_credentials(),
        Refusal::wrong_signature(),
        Refusal::no_mfa("12h"),
        Refusal::wrong_code(),
        Refusal::role_session("arn:aws:sts::111122223333:assumed-role/ops/alice"),
        Refusal::root(),
        Refusal::federated("arn:aws:sts::111122223333:federated-user/alice"),
        Refusal::account("999999999999"),
        Refusal::denied("x".to_owned()),
        Refusal::serial(),
        Refusal::closed("x"),
        Refusal::evidence("x"),
        Refusal::busy(),
        Refusal::too_many_approvals(),
        Refusal::sts("x"),
        Refusal::internal("x"),
    ];
    let text: Vec<_> = refusals
        .iter()
        .map(|r| {
            format!(
                "{}: {}\n  hint: {}",
                r.code_name(),
                r.message,
                r.hint.as_ref().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    proof: the agent cannot accept this proof of identity: it is malformed
      hint: compare the versions of `postern` and `postern-agent`
    clock: this machine's clock is 75 seconds behind the agent's; 60 are accepted
      hint: synchronise the clock (`timedatectl set-ntp true`), then try again
    clock: this machine's clock is 90 seconds ahead of the agent's; 60 are accepted
      hint: synchronise the clock (`timedatectl set-ntp true`), then try again
    mfa: long-term keys carry no MFA
      hint: postern login
    credentials: the AWS session has ended
      hint: postern login
    credentials: AWS does not know these credentials
      hint: postern login; if that fails too, the access key was deleted or deactivated
    proof: AWS does not accept the signature of this proof: it was made for another connection, agent or request, or with another secret key
      hint: try again; if it stays, run `postern login`
    mfa: AWS does not attest MFA for this session: it was made without a code, the code is older than 12h, or you may not assume the attestation role
      hint: postern login; if that does not help, ask for `sts:AssumeRole` on the attestation role
    mfa: AWS does not accept this MFA code
      hint: every code works once: wait for the next one; the device must be your own
    mfa: `arn:aws:sts::111122223333:assumed-role/ops/alice` is a role session, and role sessions carry no MFA evidence in AWS
      hint: log in as the IAM user that assumes the role: `postern login`
    caller: the root user of an AWS account may not enrol
      hint: use an IAM user with an MFA device
    caller: `arn:aws:sts::111122223333:federated-user/alice` is a federated user, which AWS cannot attest MFA for
      hint: use an IAM user with an MFA device
    caller: users of account 999999999999 may not enrol at this agent
      hint: use another AWS profile, or have the account added to `sts.accounts` in agent.toml
    caller: this user may not come in any more
      hint: ask the operators of this agent
    caller: the MFA device belongs to another account than the caller
      hint: set `mfa_serial` of the AWS profile to your own device
    closed: enrolment is closed: the agent's check of its attestation role did not pass
      hint: ask the operators of this agent to run `postern-agent check`
    closed: enrolment is closed: the agent cannot write its audit log
      hint: ask the operators of this agent to look at its disk and its journal
    limit: too many logins are going on at this agent
      hint: try again in a few seconds
    limit: too many approvals are waiting to be used
      hint: try again in a minute
    sts: the agent could not get a trustworthy answer from AWS STS
      hint: try again; if it stays, ask the operators of this agent
    closed: the agent could not issue a certificate
      hint: ask the operators of this agent to look at its journal
    ");
}
