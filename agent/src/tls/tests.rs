use std::sync::atomic::{AtomicI64, Ordering};

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;

use super::*;
use crate::ca::client::ClientCa;
use crate::ca::x509::{Authority, Purpose};
use crate::identity::testing::{ALICE, Bench, Certified, now};

fn settings(bench: &Bench) -> TlsSettings {
    let (chain, key) = bench.server();
    TlsSettings::new(&[chain], &key, bench.trust()).unwrap()
}

fn client(bench: &Bench, identity: Option<&Certified>, alpn: &[&[u8]]) -> ClientConfig {
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
    let alice = Certified::alice(&bench.client_ca);
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
    let alice = Certified::alice(&bench.client_ca);
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
    let as_server = Certified {
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
        Some(Certified::alice(&forged)),
        Some(Certified::alice(&ClientCa::new(other))),
        Some(as_server),
        Some(Certified::alice(&ClientCa::new(sibling))),
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
    let alice = Certified::alice(&bench.client_ca);
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
    let alice = Certified::alice(&bench.client_ca);
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
    let alice = Certified::alice(&bench.client_ca);
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
