//! The relay without a network: what is refused or cannot be recorded reaches nobody.

mod recording;
mod refusals;
mod traffic;

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

    /// What the user waits for, refused.
    async fn refused(&mut self) -> Flight {
        match self.asked(Way::Up).await {
            Flight::Decided(asked, _) => Flight::Decided(asked, Err(denied())),
            Flight::Recorded(_) => panic!("no decision was asked for"),
        }
    }

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
