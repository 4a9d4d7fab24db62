//! The agent's protocols spoken by hand: what no client of ours would send.

use std::sync::Arc;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use bytes::{Buf as _, BytesMut};
use lab::stack::Lab;
use postern_proto::gateway::frame::{Decoder, FrameKind, HEADER, Piece, control, data};
use postern_proto::gateway::message::{Denied, Granted, JOIN_EXPORTER, Open, OpenKind};
use postern_proto::gateway::resume::{Claim, Resume, Resumed};
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::PATIENCE;

/// ALPN of the enrolment.
pub(crate) const ENROLL: &[u8] = b"postern-enroll/1";
/// ALPN of pipes.
pub(crate) const PIPE: &[u8] = b"postern/1";

/// A client's P-256 key.
pub(crate) struct ClientKey {
    pair: EcdsaKeyPair,
    pkcs8: Vec<u8>,
}

impl ClientKey {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let pkcs8 = pair.to_pkcs8v1().unwrap().as_ref().to_vec();
        Self { pair, pkcs8 }
    }

    /// SubjectPublicKeyInfo, DER.
    pub(crate) fn public(&self) -> Vec<u8> {
        self.pair.public_key().as_der().unwrap().as_ref().to_vec()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.pair.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().to_vec()
    }
}

/// A client certificate with its key.
pub(crate) struct Certified {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Certified {
    /// What the agent issued for this key.
    pub(crate) fn new(chain: &str, key: &ClientKey) -> Self {
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
        Self {
            chain: chain.collect::<Result<_, _>>().unwrap(),
            key: key.pkcs8.clone(),
        }
    }
}

/// TLS settings of one client: connections that share them share tickets.
pub(crate) fn settings(
    lab: &Lab,
    protocol: &[u8],
    certified: Option<&Certified>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&lab.agent.ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match certified {
        None => builder.with_no_client_auth(),
        Some(certified) => {
            let key = PrivateKeyDer::Pkcs8(certified.key.clone().into());
            builder
                .with_client_auth_cert(certified.chain.clone(), key)
                .unwrap()
        }
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::in_memory_sessions(16);
    Arc::new(config)
}

/// A TLS connection to the agent. A refused client certificate shows later, on the first read.
pub(crate) async fn dial(
    lab: &Lab,
    settings: &Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(lab.agent.address).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(lab.agent.id.clone()).unwrap();
    let connecting = TlsConnector::from(Arc::clone(settings)).connect(name, tcp);
    tokio::time::timeout(PATIENCE, connecting)
        .await
        .expect("a handshake in time")
}

/// What a connection said before it ended.
#[derive(Debug)]
pub(crate) enum Answer {
    Granted(Box<Granted>),
    Denied(Box<Denied>),
    Resumed(Resumed),
    Pong,
    /// The end, in order or not.
    Ended,
}

/// One pipe, frame by frame.
pub(crate) struct Pipe {
    stream: TlsStream<TcpStream>,
    received: BytesMut,
    decoder: Decoder,
}

impl Pipe {
    pub(crate) async fn dial(lab: &Lab, settings: &Arc<ClientConfig>) -> Self {
        Self {
            stream: dial(lab, settings).await.unwrap(),
            received: BytesMut::new(),
            decoder: Decoder::default(),
        }
    }

    /// Whether the handshake rested on a ticket.
    pub(crate) fn was_resumed(&self) -> bool {
        self.stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends bytes as they are.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends one frame and waits for the answer to it.
    pub(crate) async fn ask(&mut self, kind: FrameKind, body: &[u8]) -> Answer {
        let frame = control(kind, body).unwrap();
        let exchange = async {
            // Writing to a peer that has left fails now or on the read.
            if self.stream.write_all(&frame).await.is_err() || self.stream.flush().await.is_err() {
                return Answer::Ended;
            }
            self.next().await
        };
        tokio::time::timeout(PATIENCE, exchange)
            .await
            .expect("an answer in time")
    }

    /// Whether the agent answers a ping, which only an authenticated client gets.
    pub(crate) async fn is_alive(&mut self) -> bool {
        matches!(self.ask(FrameKind::Ping, b"postern!").await, Answer::Pong)
    }

    /// Asks for a session.
    pub(crate) async fn open(&mut self, open: &Open) -> Answer {
        let body = serde_json::to_vec(open).unwrap();
        self.ask(FrameKind::Open, &body).await
    }

    /// Asks to go on with a pipe of which `received` bytes are here.
    pub(crate) async fn resume(&mut self, claim: &mut Claim, received: u64) -> Answer {
        let resume = self.prove(claim, received);
        self.ask_resume(&resume).await
    }

    /// The request for it, which only this connection can use.
    pub(crate) fn prove(&self, claim: &mut Claim, received: u64) -> Resume {
        claim.resume(&self.exporter(), received)
    }

    pub(crate) async fn ask_resume(&mut self, resume: &Resume) -> Answer {
        let body = serde_json::to_vec(resume).unwrap();
        self.ask(FrameKind::Resume, &body).await
    }

    /// What proofs on this connection are bound to.
    pub(crate) fn exporter(&self) -> [u8; 32] {
        let connection = self.stream.get_ref().1;
        connection
            .export_keying_material([0; 32], JOIN_EXPORTER, None)
            .unwrap()
    }

    /// Sends one frame of data. False if the agent has left already.
    pub(crate) async fn send_data(&mut self, bytes: &[u8]) -> bool {
        let mut frame = BytesMut::zeroed(HEADER);
        frame.extend_from_slice(bytes);
        self.send(&data(frame).unwrap()).await.is_ok()
    }

    /// Waits until the agent ends the connection.
    pub(crate) async fn ended(&mut self) {
        let ending = async { while !matches!(self.next().await, Answer::Ended) {} };
        tokio::time::timeout(PATIENCE, ending)
            .await
            .expect("the agent ends the connection");
    }

    async fn next(&mut self) -> Answer {
        loop {
            match self.decoder.next(&mut self.received).unwrap() {
                Some(Piece::Frame(FrameKind::Granted, body)) => {
                    return Answer::Granted(serde_json::from_slice(body.chunk()).unwrap());
                }
                Some(Piece::Frame(FrameKind::Denied, body)) => {
                    return Answer::Denied(serde_json::from_slice(body.chunk()).unwrap());
                }
                Some(Piece::Frame(FrameKind::Resumed, body)) => {
                    return Answer::Resumed(serde_json::from_slice(body.chunk()).unwrap());
                }
                Some(Piece::Frame(FrameKind::Pong, _)) => return Answer::Pong,
                Some(Piece::Frame(FrameKind::Close, _)) => return Answer::Ended,
                Some(_) => {}
                None => match self.stream.read_buf(&mut self.received).await {
                    Ok(0) | Err(_) => return Answer::Ended,
                    Ok(_) => {}
                },
            }
        }
    }
}

/// The request for a shell on `web-1`.
pub(crate) fn open_web() -> Open {
    Open {
        target: "web-1".parse().unwrap(),
        kind: OpenKind::Ssh {
            user: lab::stack::login_user().parse().unwrap(),
        },
        join: None,
        approved: None,
        known_size: None,
        once: false,
        client: "by hand".to_owned(),
    }
}
