//! Single stories of two channels, message by message.

mod handshake;
mod keys;
mod lost;

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

    /// The agent asks for a session in the clear.
    fn begin(&mut self, session: Session) {
        let plan = Plan {
            session,
            encryption: None,
        };
        self.agent.begin(self.now, plan).unwrap();
    }

    /// The same, and what it sends arrives; answers with what the client sends.
    fn asked(&mut self, session: Session) -> Vec<Bytes> {
        self.begin(session);
        for frame in frames(&mut self.agent, self.now) {
            self.client.handle_message(self.now, &frame).unwrap();
        }
        frames(&mut self.client, self.now)
    }

    /// The agent asks for an encrypted session; answers with what the client is told.
    fn begin_encrypted(&mut self, session: Session, challenge: Option<&str>) -> Vec<Event> {
        let plan = Plan {
            session,
            encryption: Some(Encryption {
                key_id: "alias/key".into(),
                challenge: challenge.map(Into::into),
            }),
        };
        self.agent.begin(self.now, plan).unwrap();
        self.settle().0
    }

    fn open(&mut self, session: Session) {
        self.begin(session);
        self.settle();
        assert!(self.client.is_open() && self.agent.is_open());
    }
}

/// How the channel ended: the only thing that its owner is told.
fn ended(channel: &mut DataChannel) -> Closed {
    match &events(channel)[..] {
        [Event::Closed(closed)] => closed.clone(),
        other => panic!("not closed: {other:?}"),
    }
}

/// A numbered message, as the other side would send it.
fn numbered(kind: MessageKind, number: u64, payload: PayloadKind, body: &'static [u8]) -> Bytes {
    let body = Bytes::from_static(body);
    Message::numbered(kind, number, MessageId([0; 16]), 1, payload, body).encode()
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
