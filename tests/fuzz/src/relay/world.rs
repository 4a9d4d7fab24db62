//! A relay between two ends, and the book of what was said: what an end says stands in the book
//! of its way until it arrives, and nothing arrives that does not stand there.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::poll;
use postern_proto::gateway::message::CloseReason;
use tokio::time::timeout;

use super::peer::Peer;
use crate::agent::Desk;
use crate::agent::session::Session;
use crate::ssh::{SshEnd, message};

/// The ends, and the ways from them.
pub(super) const USER: usize = 0;
pub(super) const TARGET: usize = 1;

/// What the relay may hold of one way when the other is idle, beside what the two connections do,
/// and while both are busy: from so many bytes on.
const HELD: usize = 1024 * 1024;
const HELD_BOTH: usize = 10 * 1024 * 1024;
const BUSY: usize = 100 * 1024;

pub(super) struct World {
    pub(super) peers: [Peer; 2],
    pub(super) books: [Book; 2],
    pub(super) desk: Arc<Desk>,
    pub(super) session: Arc<Session>,
    pub(super) agent: bool,
    pub(super) once: bool,
    /// Bytes that one connection holds one way.
    capacity: usize,
    relay: Pin<Box<dyn Future<Output = SshEnd>>>,
    pub(super) end: Option<SshEnd>,
    /// Both ends keep to the protocol: all that they say arrives, and replies are the target's.
    pub(super) honest: bool,
    /// The session was made to end.
    pub(super) ending: bool,
    /// Stamps of both ways, and tags of requests.
    pub(super) stamps: [u32; 2],
    pub(super) tags: u32,
    /// What became of the user's requests at the target: arrived, answered.
    pub(super) fates: HashMap<u32, Option<bool>>,
    /// Those of them that start a program, by the user's number of the channel.
    pub(super) starts: HashMap<u32, u32>,
    /// Ports that the target was asked to listen on, and whether it was lent the SSH agent.
    pub(super) listeners: HashSet<u32>,
    pub(super) agent_lent: bool,
    /// Bytes of programs and streams that arrived, by way; of streams alone.
    pub(super) arrived: [u64; 2],
    pub(super) streamed: u64,
}

/// What was said one way and has not arrived.
#[derive(Default)]
pub(super) struct Book {
    said: VecDeque<Said>,
    /// Bytes of what must arrive.
    due: usize,
    /// All bytes ever: after many, more of the other way may be held.
    busy: usize,
    /// What overtakes: openings, which wait for decisions of their own (and whether they must
    /// arrive), and their answers.
    pub(super) openings: Vec<(Bytes, bool)>,
    pub(super) answers: Vec<Bytes>,
}

pub(super) struct Said {
    pub(super) message: Bytes,
    /// It arrives if the session lasts.
    pub(super) must: bool,
    /// The stamp that is in a recording first.
    pub(super) stamp: Option<u32>,
    /// The request that it is.
    pub(super) tag: u32,
}

impl Book {
    pub(super) fn say(&mut self, said: Said) {
        self.busy += said.message.len();
        if said.must {
            self.due += said.message.len();
        }
        self.said.push_back(said);
    }

    /// Finds what arrived, and strikes it out with what was dropped before it. `None` when it was
    /// never said, or what should have come before it did not.
    pub(super) fn strike(&mut self, message: &[u8]) -> Option<Said> {
        for at in 0..self.said.len() {
            if is_same(&self.said[at].message, message) {
                let found = self.said.drain(..=at).next_back()?;
                if found.must {
                    self.due -= found.message.len();
                }
                return Some(found);
            }
            if self.said[at].must {
                return None;
            }
        }
        None
    }

    /// What should have arrived.
    pub(super) fn missing(&self) -> Option<&Bytes> {
        let said = self.said.iter().map(|said| (&said.message, said.must));
        let opening = self.openings.iter().map(|(message, must)| (message, *must));
        let mut missing = said.chain(opening).filter(|(_, must)| *must);
        missing.next().map(|(message, _)| message)
    }

    /// Nothing has to arrive any more.
    pub(super) fn forgive(&mut self) {
        self.due = 0;
        for said in &mut self.said {
            said.must = false;
        }
        for (_, must) in &mut self.openings {
            *must = false;
        }
    }
}

/// The relay may keep some of what a window grows by.
fn is_same(said: &[u8], arrived: &[u8]) -> bool {
    match (said, arrived) {
        ([message::CHANNEL_WINDOW_ADJUST, ..], [message::CHANNEL_WINDOW_ADJUST, ..]) => {
            said.len() == arrived.len() && said[..5] == arrived[..5] && said >= arrived
        }
        _ => said == arrived,
    }
}

impl World {
    pub(super) fn new(
        peers: [Peer; 2],
        desk: Arc<Desk>,
        session: Arc<Session>,
        relay: impl Future<Output = SshEnd> + 'static,
        (agent, once): (bool, bool),
        capacity: usize,
    ) -> Self {
        Self {
            peers,
            books: Default::default(),
            desk,
            session,
            agent,
            once,
            capacity,
            relay: Box::pin(relay),
            end: None,
            honest: true,
            ending: false,
            stamps: [0; 2],
            tags: 0,
            fates: HashMap::new(),
            starts: HashMap::new(),
            listeners: HashSet::new(),
            agent_lent: false,
            arrived: [0; 2],
            streamed: 0,
        }
    }

    /// Moves all that moves by itself.
    pub(super) async fn settle(&mut self) {
        // What the relay did shows in the round after.
        let mut idle = 0;
        while idle < 2 {
            let mut moved = false;
            for end in [USER, TARGET] {
                moved |= self.peers[end].carry();
                while let Some(message) = self.peers[end].next() {
                    self.arrives(end, message);
                    moved = true;
                }
            }
            let waiting = self.desk.waiting();
            if self.end.is_none()
                && let std::task::Poll::Ready(end) = poll!(&mut self.relay)
            {
                self.ended(end);
                moved = true;
            }
            moved |= waiting != self.desk.waiting();
            idle = if moved { 0 } else { idle + 1 };
        }
        // Nothing is kept for who hung up, or when all is over.
        let both = self.peers.iter().all(|peer| peer.stream.is_some());
        if !both || self.ending || self.end.is_some() {
            return;
        }
        let held = [USER, TARGET].map(|end| {
            let unsent = self.peers[end].transport.backlog();
            self.books[end].due.saturating_sub(unsent)
        });
        for (end, other) in [(USER, TARGET), (TARGET, USER)] {
            let most = match self.books[other].busy {
                0..BUSY => HELD + 2 * self.capacity,
                _ => HELD_BOTH,
            };
            assert!(held[end] <= most, "{held:?} are held");
        }
    }

    /// Waits for the end of the relay, with all its deadlines. An evidence store that stalls is
    /// given up by its watchdog.
    pub(super) async fn run_out(&mut self) {
        for _ in 0..2 {
            if self.end.is_none()
                && let Ok(end) = timeout(Duration::from_secs(30), &mut self.relay).await
            {
                self.ended(end);
            }
            self.desk.fail();
        }
        assert!(self.end.is_some(), "the relay does not end");
        self.settle().await;
    }

    fn ended(&mut self, end: SshEnd) {
        let done = self.once && end.reason == CloseReason::Done;
        let asked = |peer: &Peer| {
            let most = peer.channels.values().map(|channel| channel.asked.len());
            most.max().unwrap_or(0).max(peer.asked.len())
        };
        // Who never waits for an answer is cut off.
        let pushy = asked(&self.peers[USER]) > 200;
        assert!(
            !self.honest || self.ending || done || pushy,
            "two honest ends were parted: {end:?}"
        );
        self.ending |= !done;
        self.end = Some(end);
    }
}
