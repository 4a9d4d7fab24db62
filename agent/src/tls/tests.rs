use std::sync::atomic::{AtomicI64, Ordering};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::ca::client::ClientCa;
use crate::ca::x509::{Authority, Purpose};
use crate::ca::{ClientSubject, client};
use crate::identity::testing::{ALICE, Bench, now, pem};
use postern_proto::names::{Assurance, Principal};

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    serial: String,
}

fn subject(user_id: &str) -> ClientSubject {
    ClientSubject {
        principal: Principal {
            account: "111122223333".parse().unwrap(),
            user_id: user_id.parse().unwrap(),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
        },
        assurance: Assurance::AwsMfa,
        mfa_not_before: now() - 3600,
        claimed_end: None,
        claimed_serial: None,
        aws_request_ids: vec!["r1".to_owned()],
    }
}

fn identity(ca: &ClientCa) -> Identity {
    let key = KeyPair::generate().unwrap();
    let spki = key.subject_public_key_info();
    let issued = ca
        .issue(&subject(ALICE), &spki, now(), now() + 3600)
        .unwrap();
    Identity {
        chain: issued.chain.to_vec(),
        key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        serial: issued.serial,
    }
}

fn trust(bench: &Bench) -> Arc<PeerTrust> {
    Arc::new(PeerTrust::load(&bench.config, bench.client_ca.certificate(), None).unwrap())
}

fn settings(bench: &Bench) -> TlsSettings {
    let (chain, key) = bench.server();
    TlsSettings::new(&[chain], &key, trust(bench)).unwrap()
}

fn client(bench: &Bench, identity: Option<&Identity>, alpn: &[&[u8]]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(bench.server_ca.certificate().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

type Connected = (
    Result<Accepted<DuplexStream>, AcceptFault>,
    io::Result<tokio_rustls::client::TlsStream<DuplexStream>>,
);

/// Shakes hands, and lets the client read what comes after (tickets, or an alert).
async fn connect(server: &TlsSettings, client: &Arc<ClientConfig>) -> Connected {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("bastion-1").unwrap();
    let connector = TlsConnector::from(client.clone());
    let accept = async {
        let mut accepted = server.accept(far).await?;
        accepted.stream.write_all(b"x").await?;
        accepted.stream.flush().await?;
        Ok(accepted)
    };
    let connect = async {
        let mut stream = connector.connect(name, near).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::join!(accept, connect)
}

#[tokio::test]
async fn the_negotiated_group_is_the_post_quantum_hybrid_over_tls_13() {
    let bench = Bench::new("", "");
    let alice = identity(&bench.client_ca);
    let config = Arc::new(client(&bench, Some(&alice), &[b"postern/1"]));
    let (accepted, connected) = connect(&settings(&bench), &config).await;
    let accepted = accepted.unwrap();
    let connection = accepted.stream.get_ref().1;
    let group = connection.negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(
        connection.protocol_version(),
        Some(ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        connected.unwrap().get_ref().1.alpn_protocol(),
        Some(&b"postern/1"[..])
    );
    let peer = accepted.peer.unwrap();
    assert_eq!(peer.principal().key(), format!("111122223333/{ALICE}"));
    assert_eq!(peer.serial(), alice.serial);
}

#[tokio::test]
async fn the_protocol_is_exactly_one_known_alpn_name() {
    let bench = Bench::new("", "");
    let server = settings(&bench);
    let alice = identity(&bench.client_ca);
    for (alpn, expected) in [
        (&[&b"postern/1"[..]][..], Some(Protocol::Pipe)),
        (&[b"postern-enroll/1"], Some(Protocol::Enroll)),
        (&[b"h2", b"http/1.1"], Some(Protocol::Http)),
        (&[], None),
        (&[b"h2"], None),
        (&[b"postern/1", b"http/1.1"], None),
        (&[b"postern-enroll/1", b"postern/1"], None),
        (&[b"postern/1", b"postern/1"], None),
    ] {
        let config = Arc::new(client(&bench, Some(&alice), alpn));
        let (accepted, _) = connect(&server, &config).await;
        match (accepted, expected) {
            (Ok(accepted), Some(protocol)) => {
                assert_eq!(accepted.protocol, protocol);
                assert_eq!(accepted.peer.is_none(), protocol == Protocol::Enroll);
            }
            (Err(AcceptFault::Protocol), None) => {}
            (other, _) => panic!("{alpn:?}: {:?}", other.err()),
        }
    }
}

#[tokio::test]
async fn tls_12_is_refused() {
    let bench = Bench::new("", "");
    let mut roots = RootCertStore::empty();
    roots.add(bench.server_ca.certificate().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postern-enroll/1".to_vec()];
    let (accepted, connected) = connect(&settings(&bench), &Arc::new(config)).await;
    assert!(accepted.is_err() && connected.is_err());
}

#[tokio::test]
async fn without_a_certificate_of_a_trusted_ca_nobody_gets_a_pipe_or_http() {
    let bench = Bench::new("", "");
    let server = settings(&bench);
    let stranger = Authority::root(Purpose::Client, "root", now()).unwrap();
    // The same name as our own intermediate, with another key.
    let forged = ClientCa::new(stranger.intermediate(&bench.config.id, now()).unwrap());
    let other = stranger
        .intermediate(&"bastion-9".parse().unwrap(), now())
        .unwrap();
    let (chain, key) = bench.server();
    let as_server = Identity {
        chain: vec![chain],
        key,
        serial: String::new(),
    };
    // Signed by the root itself, not by the agent's intermediate.
    let sibling = bench
        .client_root
        .intermediate(&"bastion-2".parse().unwrap(), now())
        .unwrap();
    for identity in [
        None,
        Some(identity(&forged)),
        Some(identity(&ClientCa::new(other))),
        Some(as_server),
        Some(identity(&ClientCa::new(sibling))),
    ] {
        for alpn in [&b"postern/1"[..], b"http/1.1"] {
            let config = Arc::new(client(&bench, identity.as_ref(), &[alpn]));
            let (accepted, connected) = connect(&server, &config).await;
            assert!(accepted.is_err() && connected.is_err());
        }
    }
}

static CLOCK: AtomicI64 = AtomicI64::new(0);

#[tokio::test]
async fn a_resumed_handshake_with_an_expired_certificate_is_refused() {
    let bench = Bench::new("", "");
    let mut server = settings(&bench);
    CLOCK.store(now(), Ordering::SeqCst);
    server.clock = || CLOCK.load(Ordering::SeqCst);
    let alice = identity(&bench.client_ca);
    let config = Arc::new(client(&bench, Some(&alice), &[b"postern/1"]));
    connect(&server, &config).await.0.unwrap();
    let (accepted, connected) = connect(&server, &config).await;
    let kind = connected.unwrap().get_ref().1.handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Resumed), "the test must resume");
    assert!(accepted.unwrap().peer.is_some());

    CLOCK.store(now() + 3601, Ordering::SeqCst);
    let (accepted, connected) = connect(&server, &config).await;
    assert!(matches!(
        accepted,
        Err(AcceptFault::Certificate(CertificateFault::Expired))
    ));
    assert!(connected.is_err());
}

#[tokio::test]
async fn a_resumed_handshake_with_a_denied_certificate_is_refused() {
    let bench = Bench::new("", "");
    let server = settings(&bench);
    let alice = identity(&bench.client_ca);
    let config = Arc::new(client(&bench, Some(&alice), &[b"postern/1"]));
    connect(&server, &config).await.0.unwrap();
    for line in [
        format!("certificate {}", alice.serial),
        format!("user 111122223333/{ALICE}"),
    ] {
        std::fs::write(&bench.config.deny, line).unwrap();
        let own = bench.client_ca.certificate();
        server.trust().reload(&bench.config, own).unwrap();
        let (accepted, _) = connect(&server, &config).await;
        assert!(matches!(
            accepted,
            Err(AcceptFault::Certificate(CertificateFault::Denied(_)))
        ));
    }
    // A list that cannot be read keeps the old one.
    std::fs::write(&bench.config.deny, "nonsense").unwrap();
    let own = bench.client_ca.certificate();
    assert!(server.trust().reload(&bench.config, own).is_err());
    assert!(connect(&server, &config).await.0.is_err());
}

#[tokio::test]
async fn tickets_of_one_protocol_are_worthless_for_another_and_enrolment_gives_none() {
    let bench = Bench::new("", "");
    let server = settings(&bench);
    let alice = identity(&bench.client_ca);
    let store = Resumption::in_memory_sessions(32);
    let with = |alpn: &[u8]| {
        let mut config = client(&bench, Some(&alice), &[alpn]);
        config.resumption = store.clone();
        Arc::new(config)
    };
    let kind = async |config: &Arc<ClientConfig>| {
        let (accepted, connected) = connect(&server, config).await;
        accepted.unwrap();
        connected.unwrap().get_ref().1.handshake_kind().unwrap()
    };
    let enroll = with(b"postern-enroll/1");
    assert_ne!(kind(&enroll).await, HandshakeKind::Resumed);
    assert_ne!(kind(&enroll).await, HandshakeKind::Resumed);
    let pipe = with(b"postern/1");
    assert_ne!(kind(&pipe).await, HandshakeKind::Resumed);
    assert_ne!(kind(&with(b"http/1.1")).await, HandshakeKind::Resumed);
    assert_ne!(kind(&enroll).await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_stranger_gets_32_kib_of_input_and_no_more() {
    let bench = Bench::new("", "");
    let server = settings(&bench);
    let (mut near, far) = tokio::io::duplex(256 * 1024);
    // A ClientHello that claims 60 KiB, in records of 16 KiB.
    let mut hello = vec![1, 0, 0xf0, 0];
    hello.resize(0xf000, 0);
    for part in hello.chunks(16 * 1024) {
        near.write_all(&[22, 3, 1]).await.unwrap();
        near.write_u16(part.len() as u16).await.unwrap();
        near.write_all(part).await.unwrap();
    }
    let Err(AcceptFault::Handshake(error)) = server.accept(far).await else {
        panic!("accepted");
    };
    assert!(error.to_string().contains("too much before"), "{error}");
}

#[test]
fn dates_are_judged_at_the_time_that_is_asked_for() {
    let bench = Bench::new("", "");
    let trust = trust(&bench);
    let alice = identity(&bench.client_ca);
    let at = |time| trust.verify_certificate(&alice.chain[0], time).map(|_| ());
    assert_eq!(at(now()), Ok(()));
    assert_eq!(at(now() + 3602), Err(CertificateFault::Expired));
    assert_eq!(
        at(now() - 3600),
        Err(CertificateFault::IssuerDates("bastion-1".parse().unwrap()))
    );
    let years = 3 * 365 * 86_400;
    assert_eq!(
        at(now() + years),
        Err(CertificateFault::IssuerDates("bastion-1".parse().unwrap()))
    );
    assert!(at(i64::MIN).is_err() && at(i64::MAX).is_err());
}

#[test]
fn other_agents_certificates_are_accepted_as_long_as_they_are_trusted() {
    let bench = Bench::new(
        "",
        "[[trust.agents]]\nid = \"bastion-2\"\nintermediate = \"two.pem\"\n",
    );
    let second = "bastion-2".parse().unwrap();
    let other = bench.client_root.intermediate(&second, now()).unwrap();
    std::fs::write(
        bench.folder.path().join("two.pem"),
        pem(other.certificate()),
    )
    .unwrap();
    let bob = identity(&ClientCa::new(other));
    let trusting = trust(&bench);
    assert!(trusting.verify_certificate(&bob.chain[0], now()).is_ok());

    let mut config = bench.config.clone();
    config.trust.withdrawn = vec![second.clone()];
    trusting
        .reload(&config, bench.client_ca.certificate())
        .unwrap();
    assert_eq!(
        trusting
            .verify_certificate(&bob.chain[0], now())
            .map(|_| ()),
        Err(CertificateFault::Withdrawn(second))
    );
    config.trust.agents.clear();
    trusting
        .reload(&config, bench.client_ca.certificate())
        .unwrap();
    assert_eq!(
        trusting
            .verify_certificate(&bob.chain[0], now())
            .map(|_| ()),
        Err(CertificateFault::UnknownIssuer)
    );
    let mut alone = bench.config.clone();
    alone.trust.withdrawn = vec![bench.config.id.clone()];
    trusting
        .reload(&alone, bench.client_ca.certificate())
        .unwrap();
    let alice = identity(&bench.client_ca);
    assert!(trusting.verify_certificate(&alice.chain[0], now()).is_err());
}

#[test]
fn an_intermediate_that_is_no_ca_or_has_a_taken_name_is_refused() {
    let bench = Bench::new(
        "",
        "[[trust.agents]]\nid = \"bastion-2\"\nintermediate = \"two.pem\"\n",
    );
    let path = bench.folder.path().join("two.pem");
    let load = || PeerTrust::load(&bench.config, bench.client_ca.certificate(), None).map(|_| ());
    assert!(matches!(load(), Err(TrustFault::Key(_))));
    std::fs::write(&path, pem(&bench.server().0)).unwrap();
    assert!(matches!(load(), Err(TrustFault::Intermediate { .. })));
    std::fs::write(&path, pem(bench.client_ca.certificate())).unwrap();
    assert!(matches!(load(), Err(TrustFault::SameName(..))));
}

#[test]
fn policy_can_deny_a_certificate_altogether() {
    let bench = Bench::new("", "");
    let hook: crate::identity::DenyHook = Arc::new(|principal, _| {
        (principal.user_id.as_str() == ALICE).then(|| "policy `gone`".to_owned())
    });
    let trust = PeerTrust::load(&bench.config, bench.client_ca.certificate(), Some(hook)).unwrap();
    let alice = identity(&bench.client_ca);
    assert_eq!(
        trust.verify_certificate(&alice.chain[0], now()).map(|_| ()),
        Err(CertificateFault::Denied("policy `gone`".to_owned()))
    );
    assert!(trust.denies(&subject(ALICE).principal, "").is_some());
    assert!(
        trust
            .denies(&subject("AIDABOBBOBBOBBOBBOB1").principal, "")
            .is_none()
    );
}

#[tokio::test]
async fn a_changed_deny_list_is_noticed_and_a_broken_one_keeps_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new("", "");
    let mut config = bench.config.clone();
    config.deny = folder.path().join("deny");
    let own = bench.client_ca.certificate().clone();
    let trust = Arc::new(PeerTrust::load(&config, &own, None).unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let mut changes = trust.subscribe();
    let mut trouble = trust.trouble();
    let running = Arc::clone(&trust).run(Arc::new(config.clone()), own, stop.clone());
    let running = tokio::spawn(running);
    let minute = std::time::Duration::from_secs(60);

    let key = subject(ALICE).principal.key();
    std::fs::write(&config.deny, format!("user {key}\n")).unwrap();
    let changed = tokio::time::timeout(minute, changes.changed()).await;
    changed.expect("the change is noticed").unwrap();
    assert!(trust.denies(&subject(ALICE).principal, "").is_some());
    assert!(
        trust
            .verify_certificate(&identity(&bench.client_ca).chain[0], now())
            .is_err()
    );

    std::fs::write(&config.deny, "alice\n").unwrap();
    let broken = tokio::time::timeout(minute, trouble.wait_for(Option::is_some)).await;
    let why = broken
        .expect("the fault is noticed")
        .unwrap()
        .clone()
        .unwrap();
    assert!(why.ends_with("deny:1: `alice` denies nobody"), "{why}");
    assert!(trust.denies(&subject(ALICE).principal, "").is_some());

    std::fs::remove_file(&config.deny).unwrap();
    let changed = tokio::time::timeout(minute, changes.changed()).await;
    changed.expect("the change is noticed").unwrap();
    assert!(trust.denies(&subject(ALICE).principal, "").is_none());
    assert!(trust.trouble().borrow().is_none());
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn every_certificate_fault_reads_well() {
    let agent = "bastion-2".parse().unwrap();
    let faults = [
        CertificateFault::Absent,
        CertificateFault::Malformed(client::MalformedCertificate::Names),
        CertificateFault::UnknownIssuer,
        CertificateFault::Withdrawn(agent),
        CertificateFault::Expired,
        CertificateFault::NotYetValid,
        CertificateFault::Usage,
        CertificateFault::Signature,
        CertificateFault::Denied("the user 1/AIDA is on the agent's deny list".to_owned()),
    ];
    let text: Vec<_> = faults
        .iter()
        .map(|f| format!("{f}\n  hint: {}", f.hint()))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    the client presented no certificate
      hint: run the command again; `postern login` if that asks for it
    the client's certificate is malformed: it does not have exactly one subject alternative name, a URI
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate was issued by no agent that this one trusts
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate was issued by `bastion-2`, which is withdrawn
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate has expired
      hint: run the command again; `postern login` if that asks for it
    the client's certificate is not valid yet
      hint: compare the clocks of the two machines, then run `postern login`
    the client's certificate is not for client authentication
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate does not verify
      hint: enrol again: `postern logout`, then `postern login`
    the user 1/AIDA is on the agent's deny list
      hint: ask the operators of this agent
    ");
}
