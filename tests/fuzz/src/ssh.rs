//! SSH as the agent speaks it, on both sides.

use std::sync::LazyLock;

use super::identity::HostIdentity;
use super::transport::Transport;
use super::{message, sftp};
use bytes::Bytes;
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;

use crate::pieces;

pub(super) static HOST: LazyLock<HostIdentity> = LazyLock::new(|| {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    HostIdentity::new(key, None).expect("a plain key")
});

pub(super) fn client() -> Transport {
    Transport::client(vec!["ssh-ed25519".to_owned()]).expect("entropy")
}

pub(super) fn server() -> Transport {
    Transport::server(HOST.clone()).expect("entropy")
}

fn give(to: &mut Transport, bytes: &[u8]) {
    to.buffers().0.extend_from_slice(bytes);
}

pub(super) fn carry(from: &mut Transport, to: &mut Transport) -> bool {
    let bytes = from.buffers().1.split();
    give(to, &bytes);
    !bytes.is_empty()
}

/// Takes all that is there. What is buffered and queued stays bounded by what was given.
fn drain(transport: &mut Transport) -> bool {
    loop {
        match transport.next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// A packet as it goes before there are keys.
fn clear(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (5 + payload.len()) % 8 + 8;
    let length = u32::try_from(1 + payload.len() + padding).expect("short");
    let mut packet = length.to_be_bytes().to_vec();
    packet.push(u8::try_from(padding).expect("below 17"));
    packet.extend_from_slice(payload);
    packet.resize(4 + length as usize, 0);
    packet
}

/// A peer that says anything: raw bytes, clear packets, and messages under real keys.
pub(crate) fn ssh_transport(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else {
        return;
    };
    let mut tested = if mode & 1 == 0 { client() } else { server() };
    match mode >> 1 & 3 {
        0 => {
            give(&mut tested, input);
            drain(&mut tested);
        }
        1 => {
            give(&mut tested, b"SSH-2.0-x\r\n");
            for piece in pieces(input) {
                give(&mut tested, &clear(piece));
                if !drain(&mut tested) {
                    break;
                }
            }
        }
        how => {
            let mut peer = if mode & 1 == 0 { server() } else { client() };
            while carry(&mut peer, &mut tested) | carry(&mut tested, &mut peer) {
                assert!(
                    drain(&mut peer) && drain(&mut tested),
                    "an honest exchange failed"
                );
            }
            if how == 3 {
                tested.authenticated();
            }
            for piece in pieces(input) {
                if peer.send(piece).is_err() {
                    break;
                }
                carry(&mut peer, &mut tested);
                let goes_on = drain(&mut tested);
                carry(&mut tested, &mut peer);
                if !goes_on || !drain(&mut peer) {
                    break;
                }
            }
        }
    }
    assert!(
        tested.backlog() < 1 << 20,
        "answers are longer than what is asked"
    );
}

/// Messages of channels and requests.
pub(crate) fn ssh_messages(input: &[u8]) {
    let payload = Bytes::copy_from_slice(input);
    if let Ok(open) = message::Open::parse(&payload) {
        assert_eq!(open.passed.len(), payload.len());
    }
    if let Ok(confirmation) = message::Confirmation::parse(&payload) {
        assert_eq!(confirmation.passed.len(), payload.len());
    }
    if let Ok((_, reader)) = message::recipient(&payload) {
        if let Ok(data) = message::data(&payload, reader.clone()) {
            assert!(payload.ends_with(&data));
        }
        if let Ok(request) = message::Request::parse(reader) {
            let mut fields = request.fields;
            while message::text_field(&mut fields).is_ok() {}
        }
    }
}

/// Both directions of an SFTP stream, in pieces: the first byte of each says whose it is.
pub(crate) fn sftp_streams(input: &[u8]) {
    let mut sftp = sftp::Sftp::default();
    for piece in pieces(input) {
        let Some((way, bytes)) = piece.split_first() else {
            continue;
        };
        let followed = if way & 1 == 0 {
            sftp.follow_up(bytes)
        } else {
            sftp.follow_down(bytes)
        };
        drop(sftp.take());
        if followed.is_err() {
            break;
        }
    }
    drop(sftp.finish());
}
