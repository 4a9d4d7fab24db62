//! The relay without a network: what is refused or cannot be recorded reaches nobody.

use std::sync::Arc;

use bytes::Bytes;
use postern_proto::gateway::message::CloseReason;
use postern_proto::wire::Writer;

use super::channels::Way;
use super::end::End;
use super::lane::Flight;
use super::{Decided, Relay};
use crate::evidence::EvidenceError;
use crate::policy::Denial;
use crate::session::{ChannelRefused, Session};
use crate::ssh::message::{self, plain};
use crate::ssh::tests::support::{host_identity, session, target};
use crate::ssh::transport::Transport;

/// A relay between two peers that are held by hand.
struct Stage {
    relay: Relay,
    user: Transport,
    target: Transport,
}

fn carry(from: &mut Transport, to: &mut Transport) -> bool {
    let (_, output) = from.buffers();
    let bytes = output.split();
    let (input, _) = to.buffers();
    input.extend_from_slice(&bytes);
    !bytes.is_empty()
}

impl Stage {
    fn new() -> Self {
        Self::of(session("root", &target("web-1", 22)))
    }

    fn of(session: Arc<Session>) -> Self {
        let algorithms = || vec!["ssh-ed25519".to_owned()];
        let mut user = Transport::client(algorithms()).unwrap();
        let mut agent_to_user = Transport::server(host_identity()).unwrap();
        let mut agent_to_target = Transport::client(algorithms()).unwrap();
        let mut peer = Transport::server(host_identity()).unwrap();
        for (one, other) in [
            (&mut user, &mut agent_to_user),
            (&mut agent_to_target, &mut peer),
        ] {
            while carry(one, other) | carry(other, one) {
                assert!(one.next().unwrap().is_none() && other.next().unwrap().is_none());
            }
            one.authenticated();
            other.authenticated();
        }
        Self {
            relay: Relay::new(agent_to_user, agent_to_target, session, false),
            user,
            target: peer,
        }
    }

    /// The user says something, and the relay looks at it.
    fn user_says(&mut self, message: &[u8]) -> Result<(), End> {
        self.user.send(message).unwrap();
        carry(&mut self.user, &mut self.relay.user.transport);
        self.relay.advance()
    }

    fn target_says(&mut self, message: &[u8]) -> Result<(), End> {
        self.target.send(message).unwrap();
        carry(&mut self.target, &mut self.relay.target.transport);
        self.relay.advance()
    }

    /// What both ends hear.
    fn heard(&mut self) -> (Vec<Bytes>, Vec<Bytes>) {
        self.relay.advance().unwrap();
        carry(&mut self.relay.user.transport, &mut self.user);
        carry(&mut self.relay.target.transport, &mut self.target);
        let all = |end: &mut Transport| std::iter::from_fn(|| end.next().unwrap()).collect();
        (all(&mut self.user), all(&mut self.target))
    }

    /// A session channel, 3 at the user and 8 at the target.
    fn channel(&mut self) {
        self.user_says(&open("session", b"")).unwrap();
        let confirmed = Writer::new().u8(91).u32(3).u32(8).u32(100_000).u32(32_768);
        self.target_says(&confirmed.finish()).unwrap();
        let (user, target) = self.heard();
        assert_eq!((user.len(), target.len()), (1, 1));
    }

    /// Takes what one way waits for, so that a test can decide otherwise.
    async fn asked(&mut self, way: Way) -> Flight {
        let lane = self.relay.lane(way);
        lane.flight.take().unwrap().await
    }
}

fn open(kind: &str, rest: &[u8]) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_OPEN)
        .vec32(kind.as_bytes())
        .u32(3)
        .u32(100_000)
        .u32(32_768)
        .raw(rest)
        .finish()
}

fn request(name: &str) -> Vec<u8> {
    Writer::new()
        .u8(message::CHANNEL_REQUEST)
        .u32(8)
        .vec32(name.as_bytes())
        .u8(1)
        .finish()
}

fn denied() -> ChannelRefused {
    ChannelRefused::Denied(Denial {
        policies: vec!["no-tunnels".to_owned()],
        message: "policy no-tunnels forbids it".to_owned(),
        hint: Some("ask for access".to_owned()),
    })
}

fn broken() -> EvidenceError {
    EvidenceError::Failed("disk full".into())
}

fn direct() -> Vec<u8> {
    let rest = Writer::new()
        .vec32(b"10.0.0.1")
        .u32(22)
        .vec32(b"::1")
        .u32(1);
    open("direct-tcpip", &rest.finish())
}

#[tokio::test]
async fn a_denied_forward_is_refused_with_the_reason_and_the_target_hears_nothing() {
    use futures_util::StreamExt;
    let mut stage = Stage::new();
    stage.user_says(&direct()).unwrap();
    let asked = stage.relay.decisions.next().await.unwrap();
    // Not even while it is being decided.
    assert_eq!(stage.heard(), (vec![], vec![]));
    let refused = Decided {
        result: Err(denied()),
        ..asked
    };
    stage.relay.on_decided(refused).unwrap();
    let expected = message::open_failure(3, message::PROHIBITED, "policy no-tunnels forbids it");
    assert_eq!(stage.heard(), (vec![expected.into()], vec![]));
    // The number is free again.
    stage.channel();
}

#[tokio::test]
async fn a_denied_program_is_refused_in_words_and_the_target_hears_nothing() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let Flight::Decided(asked, _) = stage.asked(Way::Up).await else {
        panic!("no decision was asked for");
    };
    let refused = Flight::Decided(asked, Err(denied()));
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let words = "postern: policy no-tunnels forbids it\r\nhint: ask for access\r\n";
    let expected: Vec<Bytes> = vec![
        message::stderr(3, words).into(),
        plain(message::CHANNEL_FAILURE, 3).into(),
    ];
    assert_eq!(stage.heard(), (expected, vec![]));
}

#[tokio::test]
async fn nothing_of_ours_follows_the_close_of_a_target() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let Flight::Decided(asked, _) = stage.asked(Way::Up).await else {
        panic!("no decision was asked for");
    };
    let closed: Bytes = plain(message::CHANNEL_CLOSE, 3).into();
    stage.target_says(&closed).unwrap();
    let refused = Flight::Decided(asked, Err(denied()));
    stage.relay.on_landed(Way::Up, refused).unwrap();
    assert_eq!(stage.heard(), (vec![closed], vec![]));
}

#[tokio::test]
async fn words_of_ours_take_room_that_the_target_was_never_promised() {
    let mut stage = Stage::new();
    stage.user_says(&open("session", b"")).unwrap();
    let opened = message::Open::parse(&stage.heard().1[0]).unwrap();
    assert!(opened.window < 100_000);
    let confirmed = Writer::new().u8(91).u32(3).u32(8).u32(100_000).u32(32_768);
    stage.target_says(&confirmed.finish()).unwrap();
    stage.heard();
    stage.user_says(&request("shell")).unwrap();
    let Flight::Decided(asked, _) = stage.asked(Way::Up).await else {
        panic!("no decision was asked for");
    };
    let refused = Flight::Decided(asked, Err(denied()));
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let (user, _) = stage.heard();
    // Number, channel, type and length stand before the words.
    let words = u32::try_from(user[0].len() - 13).unwrap();
    assert!(words <= 100_000 - opened.window);
    // When the user takes more, that is made good first.
    for (more, passes) in [(words - 1, None), (11, Some(10)), (7, Some(7))] {
        stage.user_says(&message::window_adjust(8, more)).unwrap();
        let passes = passes.map(|passes| message::window_adjust(8, passes));
        let expected: Vec<Bytes> = passes.into_iter().map(Bytes::from).collect();
        assert_eq!(stage.heard(), (vec![], expected));
    }
}

#[tokio::test]
async fn a_denied_agent_is_not_lent() {
    let mut stage = Stage::new();
    stage.channel();
    stage
        .user_says(&request("auth-agent-req@openssh.com"))
        .unwrap();
    let Flight::Decided(asked, _) = stage.asked(Way::Up).await else {
        panic!("no decision was asked for");
    };
    let refused = Flight::Decided(asked, Err(denied()));
    stage.relay.on_landed(Way::Up, refused).unwrap();
    let failed: Bytes = plain(message::CHANNEL_FAILURE, 3).into();
    assert_eq!(stage.heard(), (vec![failed], vec![]));
    stage
        .target_says(&open("auth-agent@openssh.com", b""))
        .unwrap();
    let (user, target) = stage.heard();
    assert_eq!(
        (user.len(), target[0][0]),
        (0, message::CHANNEL_OPEN_FAILURE)
    );
}

#[tokio::test]
async fn a_decision_that_cannot_be_logged_ends_the_session() {
    use futures_util::StreamExt;
    let mut stage = Stage::new();
    stage.user_says(&direct()).unwrap();
    let asked = stage.relay.decisions.next().await.unwrap();
    let failed = Decided {
        result: Err(ChannelRefused::Evidence(broken())),
        ..asked
    };
    let end = stage.relay.on_decided(failed).unwrap_err();
    assert_eq!(end.reason, CloseReason::Evidence);
    assert_eq!(stage.heard(), (vec![], vec![]));
}

#[tokio::test]
async fn what_is_not_recorded_does_not_pass() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    let data = |id: u32| Writer::new().u8(94).u32(id).vec32(b"secret").finish();
    stage.heard();
    for (way, quota) in [(Way::Up, false), (Way::Down, true)] {
        match way {
            Way::Up => stage.user_says(&data(8)).unwrap(),
            Way::Down => stage.target_says(&data(3)).unwrap(),
        }
        // While the recording is being written, nothing has passed.
        assert_eq!(stage.heard(), (vec![], vec![]));
        let Flight::Recorded(Ok(())) = stage.asked(way).await else {
            panic!("nothing was recorded");
        };
        let (error, reason) = match quota {
            true => (EvidenceError::Quota(10), CloseReason::Quota),
            false => (broken(), CloseReason::Evidence),
        };
        let failed = Flight::Recorded(Err(error));
        let end = stage.relay.on_landed(way, failed).unwrap_err();
        assert_eq!(end.reason, reason);
        carry(&mut stage.relay.user.transport, &mut stage.user);
        carry(&mut stage.relay.target.transport, &mut stage.target);
        assert!(stage.user.next().unwrap().is_none());
        assert!(stage.target.next().unwrap().is_none());
    }
}

#[tokio::test]
async fn what_is_put_together_ahead_passes_after_its_own_recording_and_in_order() {
    let data = |text: &str| Writer::new().u8(94).u32(8).vec32(text.as_bytes()).finish();
    let eof = || plain(message::CHANNEL_EOF, 8);
    for lost in [false, true] {
        let mut stage = Stage::new();
        stage.channel();
        stage.user_says(&request("shell")).unwrap();
        let granted = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, granted).unwrap();
        stage.heard();
        for message in [data("one"), data("two"), eof()] {
            stage.user_says(&message).unwrap();
        }
        assert_eq!(stage.heard(), (vec![], vec![]));
        // The first is written: the second is not, and what changes the channel waits for both.
        let first = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, first).unwrap();
        assert_eq!(stage.heard(), (vec![], vec![data("one").into()]));
        let second = stage.asked(Way::Up).await;
        assert!(matches!(second, Flight::Recorded(Ok(()))));
        if lost {
            let failed = Flight::Recorded(Err(broken()));
            let end = stage.relay.on_landed(Way::Up, failed).unwrap_err();
            assert_eq!(end.reason, CloseReason::Evidence);
            carry(&mut stage.relay.target.transport, &mut stage.target);
            assert!(stage.target.next().unwrap().is_none());
            continue;
        }
        stage.relay.on_landed(Way::Up, second).unwrap();
        let rest = vec![data("two").into(), eof().into()];
        assert_eq!(stage.heard(), (vec![], rest));
    }
}

#[tokio::test]
async fn an_end_that_is_gone_is_told_once_all_that_it_sent_has_passed() {
    let data = |text: &str| Writer::new().u8(94).u32(8).vec32(text.as_bytes()).finish();
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    stage.heard();
    stage.user_says(&data("last words")).unwrap();
    stage.relay.lane(Way::Up).ended = true;
    assert_eq!(stage.heard(), (vec![], vec![]));
    assert!(
        stage.relay.up.fault.is_none(),
        "nothing of it is decided yet"
    );
    let written = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, written).unwrap();
    assert!(stage.relay.advance().is_err());
    carry(&mut stage.relay.target.transport, &mut stage.target);
    assert_eq!(
        stage.target.next().unwrap(),
        Some(data("last words").into())
    );
}

#[tokio::test]
async fn a_program_passes_once_its_recording_exists() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    assert_eq!(
        stage.heard(),
        (vec![], vec![]),
        "it passed before it was decided"
    );
    let granted = stage.asked(Way::Up).await;
    assert!(matches!(&granted, Flight::Decided(_, Ok(Some(_)))));
    stage.relay.on_landed(Way::Up, granted).unwrap();
    assert_eq!(stage.heard(), (vec![], vec![request("shell").into()]));
}

impl Stage {
    /// Carries everything in every direction until nobody has more to say.
    async fn settle(&mut self) -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut at_user, mut at_target) = (vec![], vec![]);
        loop {
            self.relay.advance().unwrap();
            // What landed may have made room for more, though it waits for new keys itself.
            let mut moved = false;
            for way in [Way::Up, Way::Down] {
                if self.relay.lane(way).flight.is_some() {
                    let flight = self.asked(way).await;
                    self.relay.on_landed(way, flight).unwrap();
                    moved = true;
                }
            }
            moved |= carry(&mut self.user, &mut self.relay.user.transport)
                | carry(&mut self.target, &mut self.relay.target.transport)
                | carry(&mut self.relay.user.transport, &mut self.user)
                | carry(&mut self.relay.target.transport, &mut self.target);
            at_user.extend(std::iter::from_fn(|| self.user.next().unwrap()));
            at_target.extend(std::iter::from_fn(|| self.target.next().unwrap()));
            if !moved && self.relay.up.flight.is_none() && self.relay.down.flight.is_none() {
                return (at_user, at_target);
            }
        }
    }
}

#[tokio::test]
async fn keys_change_on_both_sides_at_once_under_traffic_in_both_directions() {
    let mut stage = Stage::new();
    stage.channel();
    stage.user_says(&request("shell")).unwrap();
    stage.settle().await;
    stage.relay.user.transport.rekey_after(100_000);
    stage.relay.target.transport.rekey_after(100_000);
    let data = |id: u32, n: u32| {
        let body = [&n.to_be_bytes()[..], &[7; 8000]].concat();
        Writer::new().u8(94).u32(id).vec32(&body).finish()
    };
    let (mut at_user, mut at_target) = (vec![], vec![]);
    for round in 0..10 {
        // Everything is on its way before anybody reads: the windows allow that.
        for n in round * 100..(round + 1) * 100 {
            stage.user.send(&data(8, n)).unwrap();
            stage.target.send(&data(3, n)).unwrap();
        }
        let (user, target) = stage.settle().await;
        at_user.extend(user);
        at_target.extend(target);
    }
    let expected = |id: u32| {
        (0..1000)
            .map(|n| data(id, n).into())
            .collect::<Vec<Bytes>>()
    };
    assert!(at_target == expected(8), "{} arrived", at_target.len());
    assert!(at_user == expected(3), "{} arrived", at_user.len());
    assert!(!stage.relay.user.transport.exchanging());
    assert!(!stage.relay.target.transport.exchanging());
}

#[tokio::test]
async fn a_notice_reaches_terminals_and_no_pipes() {
    let mut stage = Stage::new();
    stage.channel();
    let terminal = Writer::new()
        .vec32(b"xterm")
        .u32(80)
        .u32(24)
        .u32(0)
        .u32(0)
        .vec32(b"")
        .finish();
    for (with_terminal, expected) in [(false, 0), (true, 1)] {
        if with_terminal {
            // The first program was refused by the target.
            stage
                .target_says(&plain(message::CHANNEL_FAILURE, 3))
                .unwrap();
            stage.heard();
            let fields = Writer::new().raw(&request("pty-req")).raw(&terminal);
            stage.user_says(&fields.finish()).unwrap();
            stage
                .target_says(&plain(message::CHANNEL_SUCCESS, 3))
                .unwrap();
        }
        stage.user_says(&request("shell")).unwrap();
        let granted = stage.asked(Way::Up).await;
        stage.relay.on_landed(Way::Up, granted).unwrap();
        stage.heard();
        stage.relay.notify("this session ends in 5 minutes");
        if with_terminal {
            stage.relay.advance().unwrap();
            let recorded = stage.asked(Way::Down).await;
            stage.relay.on_landed(Way::Down, recorded).unwrap();
        }
        assert_eq!(stage.heard().0.len(), expected);
    }
}

#[tokio::test]
async fn sftp_that_is_not_sftp_passes_and_is_recorded_byte_by_byte() {
    let mut stage = Stage::new();
    stage.channel();
    let name = Writer::new().vec32(b"sftp").finish();
    stage
        .user_says(&[request("subsystem"), name].concat())
        .unwrap();
    let granted = stage.asked(Way::Up).await;
    stage.relay.on_landed(Way::Up, granted).unwrap();
    stage.heard();
    // SFTP is followed and its content is not recorded: no flight.
    let init = Writer::new().vec32(&[1, 0, 0, 0, 3]).finish();
    let data = |bytes: &[u8]| Writer::new().u8(94).u32(8).vec32(bytes).finish();
    stage.user_says(&data(&init)).unwrap();
    assert!(stage.relay.up.flight.is_none());
    assert_eq!(stage.heard().1, [data(&init)]);
    // Something else is recorded before it passes, from then on.
    for _ in 0..2 {
        stage.user_says(&data(b"SSH-2.0-tunnel\r\n")).unwrap();
        let recorded = stage.asked(Way::Up).await;
        assert!(matches!(recorded, Flight::Recorded(Ok(()))));
        assert_eq!(stage.heard().1, Vec::<Bytes>::new());
        stage.relay.on_landed(Way::Up, recorded).unwrap();
        assert_eq!(stage.heard().1, [data(b"SSH-2.0-tunnel\r\n")]);
    }
}

#[tokio::test]
async fn any_messages_from_both_ends_end_the_session_at_most() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let one = proptest::collection::vec(proptest::num::u8::ANY, 0..40);
    let name = proptest::sample::select(vec![
        "session",
        "direct-tcpip",
        "forwarded-tcpip",
        "pty-req",
        "shell",
        "exec",
        "subsystem",
        "window-change",
        "tcpip-forward",
        "exit-status",
        "sftp",
    ]);
    // Mostly what these layers know, about channels that may exist.
    let message = (80_u8..102, 0_u32..10, name, one).prop_map(|(kind, id, name, rest)| {
        let start = Writer::new().u8(kind);
        let start = match kind {
            80 | 90 => start.vec32(name.as_bytes()).u32(id),
            98 => start.u32(id).vec32(name.as_bytes()),
            _ => start.u32(id),
        };
        start.raw(&rest).finish()
    });
    let steps = proptest::collection::vec((proptest::bool::ANY, message), 1..30);
    // The same messages each time: the fuzz targets look further.
    let mut runner = TestRunner::deterministic();
    let session = session("root", &target("web-1", 22));
    for _ in 0..300 {
        let steps = steps.new_tree(&mut runner).unwrap().current();
        let mut stage = Stage::of(session.clone());
        stage.channel();
        for (up, message) in steps {
            let said = match up {
                true => stage.user_says(&message),
                false => stage.target_says(&message),
            };
            if said.is_err() {
                break;
            }
        }
    }
}
