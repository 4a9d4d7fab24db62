//! A client that can also misbehave: its side of a pipe, frame by frame.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postern_proto::gateway::frame::{self, Decoder, FrameKind, HEADER, Piece};
use postern_proto::gateway::message::{
    Close, CloseReason, Denied, Granted, JOIN_EXPORTER, Open, OpenKind,
};
use postern_proto::gateway::resume::{Claim, Resume, Resumed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::SOON;

/// The client's side of a pipe, frame by frame.
pub(crate) struct Client {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) decoder: Decoder,
    pub(crate) received: BytesMut,
}

impl Client {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            received: BytesMut::new(),
        }
    }

    pub(crate) fn exporter(&self) -> [u8; 32] {
        let connection = self.stream.get_ref().1;
        connection
            .export_keying_material([0; 32], JOIN_EXPORTER, None)
            .unwrap()
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        self.stream.write_all(frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn control(&mut self, kind: FrameKind, body: &[u8]) {
        self.send(&frame::control(kind, body).unwrap()).await;
    }

    pub(crate) async fn open(&mut self, open: &Open) {
        let body = serde_json::to_vec(open).unwrap();
        self.control(FrameKind::Open, &body).await;
    }

    /// Asks to continue the pipe of `claim`, of which `received` bytes are here.
    pub(crate) async fn resume(&mut self, claim: &mut Claim, received: u64) -> Resume {
        let resume = claim.resume(&self.exporter(), received);
        self.ask(&resume).await;
        resume
    }

    pub(crate) async fn ask(&mut self, resume: &Resume) {
        let body = serde_json::to_vec(resume).unwrap();
        self.control(FrameKind::Resume, &body).await;
    }

    /// The agent's yes: how many bytes it has got.
    pub(crate) async fn resumed(&mut self, claim: &mut Claim) -> u64 {
        let received = match self.next().await {
            Some(Piece::Frame(FrameKind::Resumed, body)) => {
                serde_json::from_slice::<Resumed>(&body).unwrap().received
            }
            other => panic!("not resumed: {other:?}"),
        };
        claim.accepted(&self.exporter());
        received
    }

    /// Cuts the connection, as a network does.
    pub(crate) fn cut(self) {
        let (tcp, _) = self.stream.into_inner();
        rustix::net::sockopt::set_socket_linger(&tcp, Some(Duration::ZERO)).unwrap();
    }

    /// The next piece; `None` at the end of the connection, however it came.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.decoder.next(&mut self.received).unwrap() {
                return Some(piece);
            }
            let read = self.stream.read_buf(&mut self.received);
            match tokio::time::timeout(SOON, read).await.expect("an answer") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next frame of `kind`, whatever comes before.
    pub(crate) async fn frame(&mut self, kind: FrameKind) -> Bytes {
        loop {
            match self.next().await {
                Some(Piece::Frame(found, body)) if found == kind => return body,
                Some(_) => {}
                None => panic!("the connection ended before {kind:?}"),
            }
        }
    }

    pub(crate) async fn granted(&mut self) -> Granted {
        match self.next().await {
            Some(Piece::Frame(FrameKind::Granted, body)) => serde_json::from_slice(&body).unwrap(),
            other => panic!("not granted: {other:?}"),
        }
    }

    pub(crate) async fn denied(&mut self) -> Denied {
        match self.next().await {
            Some(Piece::Frame(FrameKind::Denied, body)) => serde_json::from_slice(&body).unwrap(),
            other => panic!("not denied: {other:?}"),
        }
    }

    pub(crate) async fn closed(&mut self) -> Close {
        serde_json::from_slice(&self.frame(FrameKind::Close).await).unwrap()
    }

    pub(crate) async fn data(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < length {
            match self.next().await {
                Some(Piece::Data(bytes)) => data.extend_from_slice(&bytes),
                Some(Piece::Frame(FrameKind::Ack | FrameKind::Pong, _)) => {}
                other => panic!("{} bytes of data, then {other:?}", data.len()),
            }
        }
        data
    }

    pub(crate) async fn close(&mut self, reason: CloseReason) {
        let close = Close {
            reason,
            message: None,
            exit_status: None,
            sent: 0,
            received: 0,
            evidence: None,
        };
        let body = serde_json::to_vec(&close).unwrap();
        self.control(FrameKind::Close, &body).await;
    }
}

pub(crate) fn open(port: u16) -> Open {
    Open {
        target: "web-1".parse().unwrap(),
        kind: OpenKind::Tunnel { host: None, port },
        join: None,
        approved: None,
        known_size: None,
        once: false,
        client: "test".to_owned(),
    }
}

pub(crate) fn framed(body: &[u8]) -> Bytes {
    let mut buffer = BytesMut::zeroed(HEADER);
    buffer.extend_from_slice(body);
    frame::data(buffer).unwrap()
}
