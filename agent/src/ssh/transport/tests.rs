use super::super::tests::support::{host_identity, key};
use super::*;

/// Both ends of a connection.
struct Pair {
    client: Transport,
    server: Transport,
    to_client: Vec<Bytes>,
    to_server: Vec<Bytes>,
}

impl Pair {
    fn new() -> Self {
        Self {
            client: Transport::client(vec!["ssh-ed25519".to_owned()]).unwrap(),
            server: Transport::server(host_identity()).unwrap(),
            to_client: vec![],
            to_server: vec![],
        }
    }

    /// Moves bytes until neither side has more to say.
    fn settle(&mut self) -> Result<(), TransportError> {
        loop {
            let up = self.client.output.split();
            let down = self.server.output.split();
            if up.is_empty() && down.is_empty() {
                return Ok(());
            }
            self.server.input.extend_from_slice(&up);
            self.client.input.extend_from_slice(&down);
            while let Some(message) = self.server.next()? {
                self.to_server.push(message);
            }
            while let Some(message) = self.client.next()? {
                self.to_client.push(message);
            }
        }
    }

    fn ready() -> Self {
        let mut pair = Self::new();
        pair.settle().unwrap();
        pair.client.authenticated();
        pair.server.authenticated();
        pair
    }
}

#[test]
fn two_ends_agree_and_messages_pass() {
    let mut pair = Pair::ready();
    assert!(pair.client.may_send() && pair.server.may_send());
    assert!(!pair.client.session().is_empty());
    assert_eq!(pair.client.session(), pair.server.session());
    let shown = pair.client.host_key().unwrap();
    assert_eq!(shown.key.key_data(), key(200).public_key().key_data());
    pair.client.send(&[94, 1, 2]).unwrap();
    pair.server.send(&[98, 3]).unwrap();
    pair.settle().unwrap();
    assert_eq!(pair.to_server, [&[94, 1, 2][..]]);
    assert_eq!(pair.to_client, [&[98, 3][..]]);
}

#[test]
fn keys_change_under_traffic_without_loss_or_disorder() {
    let mut pair = Pair::ready();
    pair.client.rekey_after(10_000);
    pair.server.rekey_after(7_000);
    let sent: Vec<Vec<u8>> = (0..200_u32)
        .map(|n| [&[94][..], &n.to_be_bytes(), &[0; 500]].concat())
        .collect();
    let session = pair.client.session().to_vec();
    let first_key = pair.client.sealing.used().packets;
    for (n, message) in sent.iter().enumerate() {
        pair.client.send(message).unwrap();
        pair.server.send(message).unwrap();
        if n % 3 == 0 {
            pair.settle().unwrap();
        }
    }
    pair.settle().unwrap();
    assert_eq!(pair.to_server, sent);
    assert_eq!(pair.to_client, sent);
    assert_eq!(
        pair.client.session(),
        session,
        "the session id is the first hash for ever"
    );
    assert!(
        pair.client.sealing.used().packets < first_key + 200,
        "no new keys were taken"
    );
}

#[test]
fn nothing_passes_before_the_first_exchange_is_through() {
    for early in [
        &[50_u8][..],
        &[2, 0, 0, 0, 0],
        &[4, 0],
        &[7, 0, 0, 0, 0],
        &[94],
    ] {
        let mut pair = Pair::new();
        pair.client
            .sealing
            .seal(early, &mut pair.client.output)
            .unwrap();
        assert!(pair.settle().is_err(), "{early:?}");
    }
}

#[test]
fn a_packet_slipped_into_the_first_exchange_breaks_it() {
    // CVE-2023-48795: a man in the middle adds an unencrypted packet and drops an encrypted one.
    for kind in [2, 3, 4] {
        let mut pair = Pair::new();
        let up = pair.client.output.split();
        pair.server.input.extend_from_slice(&up);
        let down = pair.server.output.split();
        pair.client.input.extend_from_slice(&down);
        assert!(pair.client.next().unwrap().is_none());
        let mut slipped = BytesMut::new();
        Sealing::clear()
            .seal(&[kind, 0, 0, 0, 0], &mut slipped)
            .unwrap();
        pair.server.input.extend_from_slice(&slipped);
        assert!(pair.server.next().is_err(), "{kind}");
    }
}

#[test]
fn sequence_numbers_start_again_in_a_strict_exchange() {
    let mut pair = Pair::ready();
    pair.client.send(&[94]).unwrap();
    assert!(pair.client.strict && pair.server.strict);
    let mut expected = BytesMut::new();
    std::mem::swap(&mut expected, &mut pair.client.output);
    pair.server.input.extend_from_slice(&expected);
    assert!(pair.server.next().unwrap().is_some());
    assert_eq!(pair.server.opening.last_sequence(), 0);
}

#[test]
fn messages_of_other_layers_are_refused_while_the_peer_changes_keys() {
    let mut pair = Pair::ready();
    pair.client.rekey_after(1);
    pair.client.send(&[94, 1]).unwrap();
    assert!(pair.client.exchanging());
    // The client breaks the rule and sends data after its offer.
    pair.client
        .sealing
        .seal(&[94, 2], &mut pair.client.output)
        .unwrap();
    assert_eq!(pair.settle(), Err(TransportError::Unexpected(94)));
}

#[test]
fn what_waits_for_an_exchange_is_bounded() {
    let mut pair = Pair::ready();
    pair.client.rekey_after(1);
    pair.client.send(&[94]).unwrap();
    let big = vec![94; 1024 * 1024];
    let sent = (0..32).find(|_| pair.client.send(&big).is_err());
    assert_eq!(sent, Some(16));
}

#[test]
fn a_peer_that_takes_no_new_keys_is_cut_off() {
    let mut pair = Pair::ready();
    pair.server.rekey_after(1);
    pair.server.worn_packets = 50;
    // A client that answers no offer and goes on.
    let sent = (0..100).find(|_| {
        pair.client.send(&[94, 1]).unwrap();
        let up = pair.client.output.split();
        pair.server.input.extend_from_slice(&up);
        while let Ok(Some(_)) = pair.server.next() {}
        pair.server.failed.is_some()
    });
    assert!(pair.server.exchanging());
    assert_eq!(pair.server.failed, Some(TransportError::WornKeys));
    assert!((40..50).contains(&sent.unwrap()), "{sent:?}");
}

#[test]
fn only_a_message_of_an_exchange_is_skipped_as_a_wrong_guess() {
    for (kind, fine) in [(30, true), (49, true), (2, false), (20, false), (50, false)] {
        let mut server = Transport::server(host_identity()).unwrap();
        server.skip_guess = true;
        server.input.extend_from_slice(b"SSH-2.0-x\r\n");
        let mut packet = BytesMut::new();
        Sealing::clear()
            .seal(&[kind, 0, 0, 0, 0], &mut packet)
            .unwrap();
        server.input.extend_from_slice(&packet);
        assert_eq!(server.next().is_ok(), fine, "{kind}");
    }
}

#[test]
fn a_server_that_signs_with_another_key_is_refused() {
    let mut pair = Pair::new();
    // The blob of one key, the signature of another.
    let (mut client, mut server) = (pair.client.output.split(), pair.server.output.split());
    pair.server.input.unsplit(client.split());
    pair.client.input.unsplit(server.split());
    pair.server.next().unwrap();
    pair.client.next().unwrap();
    let up = pair.client.output.split();
    pair.server.input.extend_from_slice(&up);
    pair.server.next().unwrap();
    let mut reply = pair.server.output.split();
    // Somewhere in the signature, at the end of the first packet.
    let length = u32::from_be_bytes(*reply.first_chunk::<4>().unwrap()) as usize;
    let padding = usize::from(reply[4]);
    reply[4 + length - padding - 10] ^= 1;
    pair.client.input.extend_from_slice(&reply);
    assert_eq!(
        pair.client.next(),
        Err(TransportError::HostKey("its signature is wrong"))
    );
}

#[test]
fn a_goodbye_is_shown_without_control_characters() {
    let mut pair = Pair::ready();
    pair.server.disconnect(11, "go\u{1b}[31m away").unwrap();
    assert_eq!(
        pair.settle(),
        Err(TransportError::Disconnected {
            code: 11,
            message: "go [31m away".to_owned()
        })
    );
}

#[test]
fn a_talkative_or_foreign_peer_is_cut_off_before_it_costs_memory() {
    let client = || Transport::client(vec!["ssh-ed25519".to_owned()]).unwrap();
    let long = [b'x'; 300];
    let lines = b"hello\r\n".repeat(60);
    let nul = b"SSH-2.0-x\0y\r\n";
    for bytes in [&long[..], &lines, nul, b"SSH-1.5-old\r\n", b"SSH-3.0-new\n"] {
        let mut transport = client();
        transport.input.extend_from_slice(bytes);
        assert_eq!(transport.next(), Err(TransportError::Identification));
    }
    let mut transport = client();
    transport
        .input
        .extend_from_slice(b"Welcome!\r\nSSH-2.0-x\r\n");
    assert_eq!(transport.next(), Ok(None));
    // A client of ours says nothing before its identification.
    let mut server = Transport::server(host_identity()).unwrap();
    server.input.extend_from_slice(b"Welcome!\r\nSSH-2.0-x\r\n");
    assert_eq!(server.next(), Err(TransportError::Identification));
}

#[test]
fn an_idle_transport_holds_almost_nothing() {
    let mut pair = Pair::ready();
    for _ in 0..100 {
        pair.client.send(&vec![94; 32 * 1024]).unwrap();
    }
    pair.settle().unwrap();
    pair.to_server.clear();
    for transport in [&mut pair.client, &mut pair.server] {
        transport.shrink();
        assert!(transport.input.capacity() + transport.output.capacity() <= 2 * KEEP_CAPACITY);
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        let mut fresh = Transport::client(vec!["ssh-ed25519".to_owned()]).unwrap();
        fresh.input.extend_from_slice(&bytes);
        while let Ok(Some(_)) = fresh.next() {}
        let mut begun = Transport::server(host_identity()).unwrap();
        begun.input.extend_from_slice(b"SSH-2.0-x\r\n");
        begun.input.extend_from_slice(&bytes);
        while let Ok(Some(_)) = begun.next() {}
    }

    #[test]
    fn arbitrary_messages_during_an_exchange_never_panic(
        kind in 1_u8..35,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        for client in [true, false] {
            let mut pair = Pair::new();
            let (up, down) = (pair.client.output.split(), pair.server.output.split());
            pair.server.input.extend_from_slice(&up);
            pair.client.input.extend_from_slice(&down);
            let _ = (pair.client.next(), pair.server.next());
            let mut packet = BytesMut::new();
            Sealing::clear().seal(&[&[kind][..], &bytes].concat(), &mut packet).unwrap();
            let end = if client { &mut pair.client } else { &mut pair.server };
            end.input.extend_from_slice(&packet);
            let _ = end.next();
        }
    }
}
