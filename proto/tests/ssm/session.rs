//! Single stories of two channels, message by message.

use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::channel::{
    ChannelError, CloseReason, Closed, CommandError, Config, DataChannel, Encryption, Event, Plan,
    Seed, Session, Transmit,
};
use postern_proto::ssm::crypt::SessionKey;
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::{
    ChannelClosed, Flag, PayloadKind, SecretText, TerminalSize, publication,
};
use postern_proto::ssm::version::PortMode;
use postern_proto::ssm::{AGENT_VERSION, CLIENT_VERSION};

struct Pair {
    client: DataChannel,
    agent: DataChannel,
    now: Instant,
}

fn token() -> SecretText {
    SecretText::new("token".into())
}

const UNIX: Duration = Duration::from_secs(1_700_000_000);

fn pair_with(configure: impl Fn(&mut Config)) -> Pair {
    let now = Instant::now();
    let config = |seed, version| {
        let mut config = Config::new(Seed::new([seed; 32]), version, "id");
        configure(&mut config);
        config
    };
    let mut client = DataChannel::client(config(1, CLIENT_VERSION), now, UNIX);
    let mut agent = DataChannel::agent(config(2, AGENT_VERSION), now, UNIX);
    client.handle_connected(now, UNIX, token());
    agent.handle_connected(now, UNIX, token());
    Pair { client, agent, now }
}

fn pair() -> Pair {
    pair_with(|_| {})
}

fn frames(channel: &mut DataChannel, now: Instant) -> Vec<Bytes> {
    std::iter::from_fn(|| channel.poll_transmit(now))
        .filter_map(|transmit| match transmit {
            Transmit::Binary(frame) => Some(frame),
            Transmit::Text(_) => None,
        })
        .collect()
}

fn messages(frames: &[Bytes]) -> Vec<Message> {
    frames
        .iter()
        .map(|frame| Message::decode(frame).unwrap())
        .collect()
}

fn events(channel: &mut DataChannel) -> Vec<Event> {
    std::iter::from_fn(|| channel.poll_event()).collect()
}

impl Pair {
    /// Carries everything until both are quiet; answers with the events of both.
    fn settle(&mut self) -> (Vec<Event>, Vec<Event>) {
        let (mut of_client, mut of_agent) = (Vec::new(), Vec::new());
        loop {
            let up = frames(&mut self.client, self.now);
            let down = frames(&mut self.agent, self.now);
            if up.is_empty() && down.is_empty() {
                return (of_client, of_agent);
            }
            for frame in up {
                self.agent.handle_message(self.now, &frame).unwrap();
            }
            for frame in down {
                self.client.handle_message(self.now, &frame).unwrap();
            }
            of_client.extend(events(&mut self.client));
            of_agent.extend(events(&mut self.agent));
        }
    }

    fn open(&mut self, session: Session) {
        let plan = Plan {
            session,
            encryption: None,
        };
        self.agent.begin(self.now, plan).unwrap();
        self.settle();
        assert!(self.client.is_open() && self.agent.is_open());
    }
}

fn closed_message(output: &str) -> Bytes {
    let body = ChannelClosed {
        output: Some(output.into()),
        ..ChannelClosed::default()
    };
    let id = MessageId([3; 16]);
    Message::unnumbered(MessageKind::ChannelClosed, id, 1, body.payload()).encode()
}

#[test]
fn a_command_tells_output_errors_and_exit_code() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.agent.write(now, b"out\n").unwrap();
    pair.agent.write_stderr(now, b"err\n").unwrap();
    pair.agent.exit(now, 5).unwrap();
    let (seen, _) = pair.settle();
    assert_eq!(
        seen,
        [
            Event::Data(Bytes::from_static(b"out\n")),
            Event::Stderr(Bytes::from_static(b"err\n")),
            Event::Exit(5),
        ]
    );
    assert!(pair.agent.is_settled());
    pair.client
        .handle_message(now, &closed_message(""))
        .unwrap();
    let end = Closed {
        reason: CloseReason::Service(String::new()),
        is_incomplete: false,
    };
    assert_eq!(events(&mut pair.client), [Event::Closed(end)]);
    assert_eq!(pair.client.write(now, b"x"), Err(CommandError::Closed));
    assert_eq!(pair.client.poll_timeout(), None);
    assert!(frames(&mut pair.client, now).is_empty());
}

#[test]
fn a_lone_line_feed_stays_a_line_feed() {
    let mut pair = pair();
    pair.open(Session::StandardStream);
    pair.client.write(pair.now, b"\n").unwrap();
    let (_, seen) = pair.settle();
    assert_eq!(seen, [Event::Data(Bytes::from_static(b"\n"))]);
}

#[test]
fn nothing_is_written_before_the_session_is_open() {
    let mut pair = pair();
    let now = pair.now;
    assert_eq!(pair.client.room(), 0);
    assert_eq!(pair.client.write(now, b"x"), Err(CommandError::NotOpen));
    assert_eq!(
        pair.client.flag(now, Flag::TerminateSession),
        Err(CommandError::NotOpen)
    );
    let size = TerminalSize { cols: 1, rows: 1 };
    assert_eq!(pair.client.resize(size), Err(CommandError::NotOpen));
    assert_eq!(pair.client.exit(now, 0), Err(CommandError::WrongRole));
    assert_eq!(pair.client.begin_unnamed(), Err(CommandError::WrongRole));
    assert_eq!(pair.agent.resize(size), Err(CommandError::WrongRole));
}

#[test]
fn data_is_acknowledged_when_it_is_taken() {
    let mut pair = pair();
    pair.open(Session::StandardStream);
    let now = pair.now;
    pair.agent.write(now, b"data").unwrap();
    for frame in frames(&mut pair.agent, now) {
        pair.client.handle_message(now, &frame).unwrap();
        pair.client.handle_message(now, &frame).unwrap();
    }
    assert!(frames(&mut pair.client, now).is_empty());
    assert_eq!(
        events(&mut pair.client).len(),
        1,
        "twice on the wire, once for the owner"
    );
    let acks = messages(&frames(&mut pair.client, now));
    assert_eq!(acks.len(), 1);
    assert_eq!(acks[0].kind, MessageKind::Acknowledge);
}

#[test]
fn a_repeated_message_is_acknowledged_again() {
    let mut pair = pair();
    pair.open(Session::StandardStream);
    let now = pair.now;
    pair.agent.write(now, b"data").unwrap();
    let sent = frames(&mut pair.agent, now);
    pair.client.handle_message(now, &sent[0]).unwrap();
    events(&mut pair.client);
    assert_eq!(
        frames(&mut pair.client, now).len(),
        1,
        "and this one is lost"
    );
    let later = now + Duration::from_secs(1);
    let again = frames(&mut pair.agent, later);
    assert_eq!(again, sent, "the same bytes");
    pair.client.handle_message(later, &again[0]).unwrap();
    assert_eq!(frames(&mut pair.client, later).len(), 1);
    assert_eq!(events(&mut pair.client), []);
}

#[test]
fn a_message_behind_a_gap_is_acknowledged_at_once() {
    let mut pair = pair();
    pair.open(Session::StandardStream);
    let now = pair.now;
    for piece in [b"a", b"b"] {
        pair.agent.write(now, piece).unwrap();
    }
    let sent = frames(&mut pair.agent, now);
    pair.client.handle_message(now, &sent[1]).unwrap();
    assert_eq!(
        frames(&mut pair.client, now).len(),
        1,
        "so the sender sees what is missing"
    );
    assert_eq!(events(&mut pair.client), []);
    pair.client.handle_message(now, &sent[0]).unwrap();
    assert_eq!(events(&mut pair.client).len(), 2);
    assert_eq!(frames(&mut pair.client, now).len(), 1, "each once");
}

#[test]
fn the_first_data_comes_again_soon() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.write(now, b"first").unwrap();
    let lost = frames(&mut pair.client, now);
    assert_eq!(lost.len(), 1);
    assert_eq!(
        pair.client.poll_timeout(),
        Some(now + Duration::from_millis(20))
    );
    assert_eq!(
        frames(&mut pair.client, now + Duration::from_millis(20)),
        lost
    );
}

#[test]
fn an_agent_takes_no_data_before_the_handshake_is_over() {
    let mut pair = pair();
    let now = pair.now;
    let early = Message::numbered(
        MessageKind::InputStreamData,
        0,
        MessageId([0; 16]),
        1,
        PayloadKind::Output,
        Bytes::from_static(b"early"),
    );
    assert_eq!(
        pair.agent.handle_message(now, &early.encode()),
        Err(ChannelError::NoRoom(0))
    );
    pair.open(Session::NonInteractiveCommands);
}

#[test]
fn the_response_is_padded_and_goes_bare_when_that_does_not_get_through() {
    let bare_length = |frames: &[Bytes]| messages(frames)[0].payload.trim_ascii_end().len();
    for through in [true, false] {
        let mut pair = pair();
        let now = pair.now;
        let plan = Plan {
            session: Session::NonInteractiveCommands,
            encryption: None,
        };
        pair.agent.begin(now, plan).unwrap();
        for frame in frames(&mut pair.agent, now) {
            pair.client.handle_message(now, &frame).unwrap();
        }
        let answer = frames(&mut pair.client, now);
        let response = vec![answer[1].clone()];
        assert_eq!(messages(&response)[0].payload.len(), 16 * 1024);
        if through {
            pair.agent.handle_message(now, &response[0]).unwrap();
            pair.settle();
            assert_eq!(pair.client.payload(), 16 * 1024);
            continue;
        }
        let mut last = Vec::new();
        while last.is_empty() || messages(&last)[0].payload.len() == 16 * 1024 {
            pair.now = pair.client.poll_timeout().unwrap();
            last = frames(&mut pair.client, pair.now);
            assert!(pair.now < now + Duration::from_secs(2));
        }
        assert_eq!(messages(&last)[0].payload.len(), bare_length(&response));
        pair.agent.handle_message(pair.now, &last[0]).unwrap();
        pair.settle();
        assert!(pair.client.is_open());
        assert_eq!(pair.client.payload(), 1024, "nothing longer until the end");
    }
}

#[test]
fn a_path_that_closes_on_the_padded_response_gets_it_bare() {
    let mut pair = pair();
    let now = pair.now;
    let plan = Plan {
        session: Session::NonInteractiveCommands,
        encryption: None,
    };
    pair.agent.begin(now, plan).unwrap();
    for frame in frames(&mut pair.agent, now) {
        pair.client.handle_message(now, &frame).unwrap();
    }
    assert!(frames(&mut pair.client, now)[1].len() > 16 * 1024);
    pair.client.handle_disconnected();
    pair.client.handle_connected(now, UNIX, token());
    assert!(frames(&mut pair.client, now)[0].len() < 1024);
}

#[test]
fn a_lost_connection_with_data_in_flight_makes_messages_shorter_for_a_while() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    assert_eq!(pair.client.payload(), 16 * 1024);
    pair.client.write(now, &[0; 100_000]).unwrap();
    frames(&mut pair.client, now);
    pair.client.handle_disconnected();
    assert_eq!(pair.client.payload(), 8 * 1024);
    assert_eq!(pair.client.poll_transmit(now), None);
    assert_eq!(pair.client.poll_timeout(), None);
    pair.client.handle_connected(now, UNIX, token());
    pair.settle();
    for _ in 0..20 {
        let room = pair.client.room().min(60_000);
        pair.client.write(now, &vec![0; room]).unwrap();
        pair.settle();
    }
    assert_eq!(pair.client.payload(), 16 * 1024);
}

#[test]
fn a_resumed_session_has_a_new_token_and_the_same_client_id_and_goes_on() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.handle_disconnected();
    assert_eq!(pair.client.write(now, b"typed while away"), Ok(16));
    let fresh = SecretText::new("fresh".into());
    pair.client.handle_connected(now, UNIX, fresh);
    let Some(Transmit::Text(text)) = pair.client.poll_transmit(now) else {
        panic!("no opening text")
    };
    for part in [
        r#""TokenValue":"fresh""#,
        r#""ClientId":"id""#,
        CLIENT_VERSION,
    ] {
        assert!(text.expose().contains(part), "{}", text.expose());
    }
    let (_, seen) = pair.settle();
    assert_eq!(seen, [Event::Data(Bytes::from_static(b"typed while away"))]);
}

#[test]
fn after_a_reconnect_all_that_is_unacknowledged_goes_out_at_once() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.client.write(now, &[0; 100_000]).unwrap();
    let lost = frames(&mut pair.client, now);
    assert_eq!(lost.len(), 7);
    pair.client.handle_disconnected();
    pair.client.handle_connected(now, UNIX, token());
    assert_eq!(frames(&mut pair.client, now), lost);
}

#[test]
fn while_the_other_side_is_away_one_message_asks_for_it() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    let say = |kind| Message::unnumbered(kind, MessageId([0; 16]), 1, publication("s")).encode();
    pair.client
        .handle_message(now, &say(MessageKind::PausePublication))
        .unwrap();
    assert!(pair.client.is_peer_away());
    for piece in [b"a", b"b", b"c"] {
        pair.client.write(now, piece).unwrap();
    }
    assert_eq!(frames(&mut pair.client, now).len(), 1);
    pair.client
        .handle_message(now, &say(MessageKind::StartPublication))
        .unwrap();
    assert_eq!(frames(&mut pair.client, now).len(), 2);
    assert!(!pair.client.is_peer_away());
}

#[test]
fn an_encrypted_session_proves_its_key_and_hides_its_data() {
    let mut pair = pair();
    let now = pair.now;
    let plan = Plan {
        session: Session::StandardStream,
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: Some("AAAA".into()),
        }),
    };
    pair.agent.begin(now, plan).unwrap();
    let (asked, _) = pair.settle();
    let [Event::KeyNeeded(asked)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (asked.key_id.as_str(), asked.challenge.as_deref()),
        ("alias/key", Some("AAAA"))
    );
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.client.provide_key(now, &key, b"sealed key");
    let (_, offered) = pair.settle();
    let [Event::KeyOffered(offer)] = &offered[..] else {
        panic!("{offered:?}")
    };
    assert_eq!(offer.ciphertext, b"sealed key");
    assert_eq!(offer.challenge.as_deref(), Some("AAAA"));
    pair.agent.provide_key(now, &key, b"");
    let (of_client, of_agent) = pair.settle();
    for seen in [of_client, of_agent] {
        let [Event::Opened(opened)] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert!(opened.is_encrypted);
        assert_eq!(opened.notice, "This session is encrypted using AWS KMS.");
    }
    pair.client.write(now, b"secret").unwrap();
    let sent = frames(&mut pair.client, now);
    assert!(!sent[0].windows(6).any(|window| window == b"secret"));
    // Plain data in an encrypted session is the end of it.
    let plain = Message {
        payload: Bytes::from_static(b"secret"),
        ..messages(&sent)[0].clone()
    };
    pair.agent.handle_message(now, &plain.encode()).unwrap();
    let [Event::Closed(closed)] = &events(&mut pair.agent)[..] else {
        panic!("not closed")
    };
    assert_eq!(closed.reason, CloseReason::Encryption);
}

#[test]
fn another_key_fails_the_challenge_and_a_refused_one_the_handshake() {
    let plan = || Plan {
        session: Session::StandardStream,
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: None,
        }),
    };
    let mut pair = pair();
    let now = pair.now;
    pair.agent.begin(now, plan()).unwrap();
    pair.settle();
    pair.client
        .provide_key(now, &SessionKey::new(&[5; 64]).unwrap(), b"sealed");
    pair.settle();
    pair.agent
        .provide_key(now, &SessionKey::new(&[6; 64]).unwrap(), b"");
    let (seen, _) = pair.settle();
    assert!(
        matches!(
            &seen[..],
            [Event::Closed(Closed {
                reason: CloseReason::Encryption,
                ..
            })]
        ),
        "{seen:?}"
    );

    let mut pair = self::pair();
    pair.agent.begin(now, plan()).unwrap();
    pair.settle();
    pair.client.refuse_key(now, "AccessDenied");
    let (_, seen) = pair.settle();
    let [Event::Closed(Closed { reason, .. })] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        reason.to_string(),
        "the client did not do KMSEncryption (status 2): AccessDenied"
    );
}

#[test]
fn a_port_session_asks_for_a_key_and_does_not_use_it() {
    let mut pair = pair();
    let now = pair.now;
    let plan = Plan {
        session: Session::Port(Default::default()),
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: None,
        }),
    };
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.agent.begin(now, plan).unwrap();
    pair.settle();
    pair.client.provide_key(now, &key, b"sealed");
    pair.settle();
    pair.agent.provide_key(now, &key, b"");
    let (seen, _) = pair.settle();
    let [Event::Opened(opened)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (opened.port, opened.is_encrypted),
        (Some(PortMode::Stream), false)
    );
    pair.client.write(now, b"plain").unwrap();
    assert!(frames(&mut pair.client, now)[0].ends_with(b"plain"));
}

#[test]
fn data_instead_of_the_rest_of_a_handshake_is_refused() {
    let mut pair = pair();
    let now = pair.now;
    let plan = Plan {
        session: Session::StandardStream,
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: None,
        }),
    };
    pair.agent.begin(now, plan).unwrap();
    pair.settle();
    let data = Message::numbered(
        MessageKind::OutputStreamData,
        1,
        MessageId([0; 16]),
        1,
        PayloadKind::Output,
        Bytes::from_static(b"$ "),
    );
    pair.client.handle_message(now, &data.encode()).unwrap();
    assert!(
        pair.client.is_closed(),
        "an unencrypted shell in place of an encrypted one"
    );
}

#[test]
fn an_encrypted_session_without_a_challenge_is_refused() {
    let mut pair = pair();
    let now = pair.now;
    let plan = Plan {
        session: Session::StandardStream,
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: None,
        }),
    };
    pair.agent.begin(now, plan).unwrap();
    pair.settle();
    let key = SessionKey::new(&[5; 64]).unwrap();
    pair.client.provide_key(now, &key, b"sealed");
    let complete = Message::numbered(
        MessageKind::OutputStreamData,
        1,
        MessageId([0; 16]),
        1,
        PayloadKind::HandshakeComplete,
        Bytes::from_static(br#"{"HandshakeTimeToComplete":1,"CustomerMessage":""}"#),
    );
    pair.client.handle_message(now, &complete.encode()).unwrap();
    let [Event::Closed(closed)] = &events(&mut pair.client)[..] else {
        panic!("not closed")
    };
    assert!(matches!(closed.reason, CloseReason::Violation(_)));
}

#[test]
fn a_handshake_that_does_not_come_ends_in_time() {
    let mut pair = pair();
    let due = pair.client.poll_timeout().unwrap();
    assert_eq!(due, pair.now + Duration::from_secs(30));
    pair.client.handle_timeout(due - Duration::from_millis(1));
    assert!(!pair.client.is_closed());
    pair.client.handle_timeout(due);
    let [Event::Closed(closed)] = &events(&mut pair.client)[..] else {
        panic!("not closed")
    };
    assert_eq!(closed.reason, CloseReason::HandshakeTimeout);
}

#[test]
fn a_target_that_vanishes_ends_the_session_and_time_without_connection_does_not_count() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    pair.client.write(pair.now, b"hello?").unwrap();
    let mut now = pair.now;
    while now < pair.now + Duration::from_secs(299) {
        frames(&mut pair.client, now);
        now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(now);
    }
    assert!(!pair.client.is_closed());
    pair.client.handle_disconnected();
    now += Duration::from_secs(3600);
    pair.client.handle_timeout(now);
    pair.client.handle_connected(now, UNIX, token());
    assert!(!pair.client.is_closed());
    let back = now;
    while !pair.client.is_closed() {
        frames(&mut pair.client, now);
        now = pair.client.poll_timeout().unwrap();
        pair.client.handle_timeout(now);
    }
    assert_eq!(now, back + Duration::from_secs(300));
    let [Event::Closed(closed)] = &events(&mut pair.client)[..] else {
        panic!("not closed")
    };
    assert_eq!(closed.reason, CloseReason::Silent);
}

#[test]
fn an_end_with_messages_missing_says_so() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.agent.write(now, b"lost").unwrap();
    pair.agent.write(now, b"kept").unwrap();
    let sent = frames(&mut pair.agent, now);
    pair.client.handle_message(now, &sent[1]).unwrap();
    pair.client
        .handle_message(now, &closed_message("bye\n"))
        .unwrap();
    let [Event::Closed(closed)] = &events(&mut pair.client)[..] else {
        panic!("not closed")
    };
    assert!(closed.is_incomplete);
    assert_eq!(closed.reason.to_string(), "the session ended: bye");
}

#[test]
fn a_full_window_takes_no_more_and_loses_nothing() {
    let mut pair = pair_with(|config| {
        config.limits.least_window = 10_000;
        config.limits.greatest_window = 10_000;
        config.payload = 1024;
    });
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    let input: Vec<u8> = (0..30_000u32).map(|at| at as u8).collect();
    let mut written = pair.client.write(now, &input).unwrap();
    assert!(written < 10_000 && written > 8_000, "{written}");
    assert_eq!(
        (pair.client.room(), pair.client.write(now, b"more")),
        (0, Ok(0))
    );
    let mut read = Vec::new();
    while read.len() < input.len() {
        let (_, seen) = pair.settle();
        for event in seen {
            if let Event::Data(bytes) = event {
                read.extend_from_slice(&bytes);
            }
        }
        written += pair.client.write(now, &input[written..]).unwrap();
    }
    assert_eq!(read, input);
}

#[test]
fn an_owner_that_does_not_read_stops_the_sender_within_bounds() {
    let mut pair = pair_with(|config| config.event_bytes = 10_000);
    pair.open(Session::NonInteractiveCommands);
    let now = pair.now;
    pair.agent.write(now, &[7; 200_000]).unwrap();
    let mut refused = 0;
    for frame in frames(&mut pair.agent, now) {
        // The driver ought to stop when nothing is wanted; see what happens when it does not.
        if pair.client.handle_message(now, &frame).is_err() {
            refused += 1;
        }
    }
    assert!(!pair.client.wants_message());
    let held: usize = events(&mut pair.client)
        .iter()
        .map(|event| {
            if let Event::Data(bytes) = event {
                bytes.len()
            } else {
                0
            }
        })
        .sum();
    assert!(held <= 20_000 + 16 * 1024, "{held}");
    assert!(pair.client.wants_message());
    assert!(refused <= 1, "later ones are kept for their turn");
}

#[test]
fn of_several_sizes_without_room_the_last_goes_out() {
    let mut pair = pair();
    pair.open(Session::NonInteractiveCommands);
    for cols in 1..100 {
        pair.client.resize(TerminalSize { cols, rows: 40 }).unwrap();
    }
    let (_, seen) = pair.settle();
    assert_eq!(seen, [Event::Resized(TerminalSize { cols: 99, rows: 40 })]);
}

#[test]
fn terminate_is_a_flag_where_the_agent_understands_it() {
    let mut pair = pair();
    assert!(!pair.client.terminate(pair.now), "not open yet");
    pair.open(Session::Port(Default::default()));
    assert!(pair.client.terminate(pair.now));
    let (_, seen) = pair.settle();
    assert_eq!(seen, [Event::Flag(Flag::TerminateSession)]);
}

#[test]
fn an_agent_tells_the_service_its_state() {
    let mut pair = pair();
    pair.agent.tell_state(pair.now, "s-1", "Connected").unwrap();
    let told = messages(&frames(&mut pair.agent, pair.now));
    assert_eq!(told[0].kind, MessageKind::AgentSessionState);
    assert_eq!(told[0].created, 1_700_000_000_000);
    assert_eq!(
        told[0].payload,
        r#"{"SchemaVersion":1,"SessionState":"Connected","SessionId":"s-1"}"#
    );
}

#[test]
fn a_command_that_says_nothing_opens_in_time() {
    let Pair { mut client, .. } = pair();
    let late = Instant::now() + Duration::from_secs(31);
    client.handle_timeout(late);
    assert!(matches!(
        client.poll_event(),
        Some(Event::Closed(Closed {
            reason: CloseReason::HandshakeTimeout,
            ..
        }))
    ));
    let mut pair = pair_with(|config| config.unnamed_after = Some(Duration::from_secs(5)));
    let due = pair.now + Duration::from_secs(5);
    assert_eq!(pair.client.poll_timeout(), Some(due));
    pair.client.handle_timeout(due - Duration::from_millis(1));
    assert_eq!(pair.client.poll_event(), None);
    pair.client.handle_timeout(due);
    assert!(matches!(pair.client.poll_event(), Some(Event::Opened(_))));
    assert_eq!(pair.client.write(due, b"typed"), Ok(5));
    // It was such a command: its first output is data, and nothing special.
    pair.agent.begin_unnamed().unwrap();
    while pair.agent.poll_event().is_some() {}
    pair.agent.write(due, b"said").unwrap();
    for frame in frames(&mut pair.agent, due) {
        pair.client.handle_message(due, &frame).unwrap();
    }
    assert_eq!(
        pair.client.poll_event(),
        Some(Event::Data(Bytes::from_static(b"said")))
    );
}

#[test]
fn a_handshake_that_began_is_waited_for() {
    let mut pair = pair_with(|config| config.unnamed_after = Some(Duration::from_secs(5)));
    let plan = Plan {
        session: Session::InteractiveCommands,
        encryption: None,
    };
    pair.agent.begin(pair.now, plan).unwrap();
    for frame in frames(&mut pair.agent, pair.now) {
        pair.client.handle_message(pair.now, &frame).unwrap();
    }
    pair.client
        .handle_timeout(pair.now + Duration::from_secs(6));
    assert_eq!(pair.client.poll_event(), None);
}
