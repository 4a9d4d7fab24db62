//! A user's SSH client at the login, which was decided before.

use bytes::Bytes;
use postern_proto::names::LoginUser;
use postern_proto::wire::{Reader, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::targets::{HOST, client};
use super::transport::Transport;
use super::{message, user};
use crate::pieces;

/// Messages of a client that says anything after its keys are exchanged: it gets in as the user
/// that was granted, by the one method there is, or not at all.
pub(crate) fn ssh_login(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(login(input));
}

async fn login(input: &[u8]) {
    let messages: Vec<Bytes> = pieces(input).filter_map(said).collect();
    let granted: LoginUser = "root".parse().expect("a name");
    let (stream, other) = tokio::io::duplex(64 * 1024);
    let accepting = async {
        let accepted = user::accept(stream, HOST.clone(), &granted, Some("welcome")).await;
        if let Ok(mut link) = accepted {
            // Who asked may have left meanwhile.
            let _ = link.flush().await;
            return true;
        }
        false
    };
    let (accepted, heard) = tokio::join!(accepting, speak(other, &messages));
    assert_eq!(accepted, may_enter(&messages), "{messages:?}");
    assert_eq!(heard, accepted, "it hears another answer");
}

/// Most of what comes has a form.
fn said(piece: &[u8]) -> Option<Bytes> {
    let (kind, rest) = piece.split_first()?;
    let user = ["root", "root", "roo", "admin"][usize::from(kind >> 2 & 3)];
    let service = ["ssh-connection", "ssh-userauth"][usize::from(kind >> 4 & 1)];
    let method = ["none", "password", "publickey", "none\0"][usize::from(kind >> 5 & 3)];
    let message: Bytes = match kind & 3 {
        0 => Writer::new()
            .u8(5)
            .vec32(b"ssh-userauth")
            .raw(rest)
            .finish(),
        1 | 2 => Writer::new()
            .u8(message::USERAUTH_REQUEST)
            .vec32(user.as_bytes())
            .vec32(service.as_bytes())
            .vec32(method.as_bytes())
            .raw(rest)
            .finish(),
        _ => rest.to_vec(),
    }
    .into();
    // What the transport itself answers is its own target's.
    matches!(message.first(), Some(5 | 6 | 50..)).then_some(message)
}

/// What must have been said to be let in.
fn may_enter(messages: &[Bytes]) -> bool {
    let Some((service, requests)) = messages.split_first() else {
        return false;
    };
    let mut fields = Reader::new(service);
    let asked = (fields.u8("kind").ok(), fields.vec32("service", 1024).ok());
    if asked != (Some(5), Some(b"ssh-userauth")) {
        return false;
    }
    for request in requests.iter().take(6) {
        match fields_of(request) {
            Some((message::USERAUTH_REQUEST, [b"root", b"ssh-connection", b"none"])) => {
                return true;
            }
            Some((message::USERAUTH_REQUEST, [b"root", ..])) => {}
            _ => return false,
        }
    }
    false
}

fn fields_of(request: &[u8]) -> Option<(u8, [&[u8]; 3])> {
    let mut fields = Reader::new(request);
    let kind = fields.u8("kind").ok()?;
    let mut text = || fields.vec32("text", 1024).ok();
    Some((kind, [text()?, text()?, text()?]))
}

/// Says all of it at once. Whether it was let in.
async fn speak(mut stream: tokio::io::DuplexStream, messages: &[Bytes]) -> bool {
    let mut transport = client();
    let (mut all, mut entered) = (false, false);
    loop {
        if transport.may_send() && !all {
            all = true;
            for message in messages {
                transport.send(message).expect("there are keys");
            }
        }
        let output = transport.buffers().1.split();
        if stream.write_all(&output).await.is_err() {
            return entered;
        }
        if all && stream.shutdown().await.is_err() {
            return entered;
        }
        let read = stream.read_buf(transport.buffers().0).await;
        entered |= success(&mut transport);
        if !read.is_ok_and(|length| length > 0) {
            return entered;
        }
    }
}

fn success(transport: &mut Transport) -> bool {
    let mut found = false;
    while let Ok(Some(message)) = transport.next() {
        found |= message[..] == [message::USERAUTH_SUCCESS];
    }
    found
}
