//! The genuine programs' frames, fed to our machines in the other role.

use std::time::{Duration, Instant};

use postern_proto::ssm::CLIENT_VERSION;
use postern_proto::ssm::channel::{
    CloseReason, Config, DataChannel, Event, Opened, Plan, Seed, Session, Transmit,
};
use postern_proto::ssm::crypt::SessionKey;
use postern_proto::ssm::payload::{Flag, SecretText, TerminalSize};
use postern_proto::ssm::version::PortMode;

use crate::vectors::{Entry, session};

fn config() -> Config {
    Config::new(
        Seed::new([7; 32]),
        CLIENT_VERSION,
        "fa178bb2-b8dc-45e9-9cd4-f575dd5b1e45",
    )
}

fn token() -> SecretText {
    SecretText::new("token".into())
}

/// What our client makes of the frames that the genuine client got.
struct Seen {
    opened: Option<Opened>,
    data: Vec<u8>,
    stderr: Vec<u8>,
    exit: Option<i32>,
    flags: Vec<Flag>,
    closed: Option<CloseReason>,
    connections: usize,
}

fn replay_to_client(entries: &[Entry]) -> Seen {
    let now = Instant::now();
    let mut channel = DataChannel::client(config(), now, Duration::from_secs(1));
    let mut seen = Seen {
        opened: None,
        data: Vec::new(),
        stderr: Vec::new(),
        exit: None,
        flags: Vec::new(),
        closed: None,
        connections: 0,
    };
    let key = entries
        .iter()
        .find(|entry| entry.text("event") == "kms_generate_data_key");
    for entry in entries {
        match (entry.text("event"), entry.text("where")) {
            ("open_data_channel", "client->service") => {
                channel.handle_disconnected();
                channel.handle_connected(now, Duration::from_secs(1), token());
                seen.connections += 1;
            }
            ("frame", "service->client") => {
                // Acknowledgements of what the genuine client wrote and ours did not are errors.
                let _ = channel.handle_message(now, entry.frame.as_ref().unwrap());
            }
            _ => continue,
        }
        while let Some(event) = channel.poll_event() {
            match event {
                Event::KeyNeeded(asked) => {
                    let Some(key) = key else {
                        channel.refuse_key(now, "no KMS here");
                        continue;
                    };
                    assert_eq!(asked.key_id, key.text("key_id"));
                    assert_eq!(asked.challenge.as_deref(), Some("qKbLHklpHTIcA/XWQrPjUg=="));
                    let plain = hex::decode(key.text("plaintext_hex")).unwrap();
                    let cipher = hex::decode(key.text("ciphertext_hex")).unwrap();
                    channel.provide_key(now, &SessionKey::new(&plain).unwrap(), &cipher);
                }
                Event::Opened(opened) => seen.opened = Some(opened),
                Event::Data(bytes) => seen.data.extend_from_slice(&bytes),
                Event::Stderr(bytes) => seen.stderr.extend_from_slice(&bytes),
                Event::Exit(code) => seen.exit = Some(code),
                Event::Flag(flag) => seen.flags.push(flag),
                Event::Closed(closed) => {
                    assert!(!closed.is_incomplete);
                    seen.closed = Some(closed.reason);
                }
                other => panic!("{other:?}"),
            }
        }
        while let Some(transmit) = channel.poll_transmit(now) {
            assert!(matches!(transmit, Transmit::Text(_) | Transmit::Binary(_)));
        }
    }
    seen
}

/// The data that the genuine client got, each message once, by the independent decoder.
fn expected_data(entries: &[Entry]) -> Vec<u8> {
    let mut numbers = std::collections::BTreeMap::new();
    for entry in entries
        .iter()
        .filter(|entry| entry.text("where") == "service->client")
    {
        let message = &entry.value["message"];
        if message["payload_type"] != 1 {
            continue;
        }
        let data = match message["decrypted_hex"].as_str() {
            Some(hex) => hex::decode(hex).unwrap(),
            None => entry.frame.as_ref().unwrap()[120..].to_vec(),
        };
        numbers.insert(message["sequence_number"].as_u64().unwrap(), data);
    }
    numbers.into_values().flatten().collect()
}

#[test]
fn our_client_understands_every_session_of_the_genuine_agent() {
    let normal = Some(CloseReason::Service(String::new()));
    let multiplexed = Some(PortMode::Multiplexed { keepalive: false });
    for (name, kind, port, closed) in [
        ("shell_resize_exit", "Unnamed", None, normal.clone()),
        ("interactive", "Unnamed", None, normal.clone()),
        ("resume", "Unnamed", None, normal.clone()),
        (
            "noninteractive",
            "NonInteractiveCommands",
            None,
            normal.clone(),
        ),
        (
            "noninteractive_separate",
            "NonInteractiveCommands",
            None,
            normal.clone(),
        ),
        ("shell_kms", "StandardStream", None, normal.clone()),
        ("port_mux", "Port", multiplexed, None),
        ("port_mux_refused", "Port", multiplexed, None),
        ("port_remote_host", "Port", multiplexed, normal.clone()),
        ("port_basic", "Port", Some(PortMode::Basic), None),
        ("ssh_stdio", "Port", Some(PortMode::Stream), None),
        ("ssh_server_closes", "Port", Some(PortMode::Stream), normal),
        (
            "terminated",
            "Unnamed",
            None,
            Some(CloseReason::Service("ended by an administrator".into())),
        ),
    ] {
        let entries = session(name);
        let seen = replay_to_client(&entries);
        let opened = seen.opened.unwrap_or_else(|| panic!("{name} did not open"));
        assert!(
            format!("{:?}", opened.session).starts_with(kind),
            "{name}: {opened:?}"
        );
        assert_eq!(opened.port, port, "{name}");
        assert_eq!(opened.is_encrypted, name == "shell_kms", "{name}");
        assert_eq!(seen.closed, closed, "{name}");
        assert_eq!(
            String::from_utf8_lossy(&seen.data),
            String::from_utf8_lossy(&expected_data(&entries)),
            "{name}"
        );
        assert_eq!(
            seen.connections,
            if name == "resume" { 2 } else { 1 },
            "{name}"
        );
        let separate = name == "noninteractive_separate";
        assert_eq!(seen.exit, separate.then_some(5), "{name}");
        assert_eq!(
            seen.stderr,
            if separate { &b"err\n"[..] } else { b"" },
            "{name}"
        );
        let refused: &[Flag] = match name {
            "port_mux_refused" => &[Flag::ConnectToPortError],
            _ => &[],
        };
        assert_eq!(seen.flags, refused, "{name}");
    }
}

#[test]
fn a_failed_handshake_ends_with_the_agents_text() {
    let seen = replay_to_client(&session("handshake_failed"));
    assert_eq!(seen.opened, None);
    let Some(CloseReason::Service(text)) = seen.closed else {
        panic!("{:?}", seen.closed)
    };
    assert!(
        text.contains("KMSEncryption failed on client with status 2"),
        "{text}"
    );
}

/// Feeds our SSM Agent what the genuine client sent, and answers with what it understood.
fn replay_to_agent(name: &str, plan: Option<Plan>) -> (Option<Opened>, Vec<Event>) {
    let now = Instant::now();
    let mut channel = DataChannel::agent(config(), now, Duration::from_secs(1));
    let (mut opened, mut events) = (None, Vec::new());
    channel.handle_connected(now, Duration::from_secs(1), token());
    match plan {
        Some(plan) => channel.begin(now, plan).unwrap(),
        None => channel.begin_unnamed().unwrap(),
    }
    for entry in session(name)
        .iter()
        .filter(|entry| entry.text("where") == "client->service")
    {
        while channel.poll_transmit(now).is_some() {}
        if let Some(frame) = &entry.frame {
            let _ = channel.handle_message(now, frame);
        }
        while let Some(event) = channel.poll_event() {
            match event {
                Event::Opened(told) => opened = Some(told),
                Event::Data(bytes) => match events.last_mut() {
                    Some(Event::Data(before)) => {
                        *before = [&before[..], &bytes[..]].concat().into();
                    }
                    _ => events.push(Event::Data(bytes)),
                },
                other => events.push(other),
            }
        }
    }
    (opened, events)
}

fn plan(session: Session) -> Option<Plan> {
    Some(Plan {
        session,
        encryption: None,
    })
}

#[test]
fn our_agent_understands_the_genuine_client() {
    let size = Event::Resized(TerminalSize {
        cols: 123,
        rows: 40,
    });
    let data = |text: &'static [u8]| Event::Data(text.into());

    let (opened, events) = replay_to_agent("resume", None);
    assert_eq!(opened.unwrap().session, Session::Unnamed);
    assert_eq!(
        events,
        [size.clone(), data(b"echo bef''ore\necho aft''er\nexit\n")]
    );

    let command = plan(Session::NonInteractiveCommands);
    let (opened, events) = replay_to_agent("noninteractive_separate", command);
    assert_eq!(opened.unwrap().peer_version.as_deref(), Some("1.2.677.0"));
    let without_terminal = Event::Resized(TerminalSize {
        cols: 300,
        rows: 100,
    });
    assert_eq!(events, [without_terminal]);

    let forwarding = [("type", "LocalPortForwarding"), ("portNumber", "39507")];
    let forwarding = forwarding.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let properties = postern_proto::ssm::payload::handshake::Properties(forwarding.into());
    let (opened, events) = replay_to_agent("port_mux", plan(Session::Port(properties)));
    let mode = PortMode::Multiplexed { keepalive: false };
    assert_eq!(opened.unwrap().port, Some(mode));
    assert_eq!(events.len(), 2);
    assert_eq!(events[1], Event::Flag(Flag::TerminateSession));
}

#[test]
fn our_agent_ends_a_session_whose_client_failed() {
    let plan = Plan {
        session: Session::StandardStream,
        encryption: Some(postern_proto::ssm::channel::Encryption {
            key_id: "alias/none".into(),
            challenge: None,
        }),
    };
    let (opened, events) = replay_to_agent("handshake_failed", Some(plan));
    assert_eq!(opened, None);
    let [Event::Closed(closed)] = &events[..] else {
        panic!("{events:?}")
    };
    let CloseReason::ActionFailed {
        action,
        status,
        error,
    } = &closed.reason
    else {
        panic!("{closed:?}")
    };
    assert_eq!((action.as_str(), *status), ("KMSEncryption", 2));
    assert!(error.contains("GenerateDataKey"), "{error}");
}
