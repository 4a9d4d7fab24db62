//! The channels of one SSH session, known by the numbers of both ends.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use tokio::time::Instant;

use crate::evidence::Recording;
use crate::ssh::sftp::Sftp;

/// Which way a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// From the user to the target.
    Up,
    /// From the target to the user.
    Down,
}

/// Our own number of a channel: never used twice.
pub(super) type Key = u64;

/// One channel.
pub(super) struct Channel {
    /// Its number at the user.
    pub(super) user: Option<u32>,
    /// Its number at the target.
    pub(super) target: Option<u32>,
    /// Its opening was decided and passed on.
    pub(super) passed: bool,
    /// What it carries.
    pub(super) content: Content,
    /// Where that is recorded, if it must be.
    pub(super) recording: Option<Recording>,
    /// `CLOSE` passed this way.
    pub(super) closed_up: bool,
    /// And this way.
    pub(super) closed_down: bool,
    /// What the user's requests still wait for, in their order.
    pub(super) replies: VecDeque<Reply>,
    /// Requests of the target that the user will answer.
    pub(super) asked_by_target: u32,
    /// Bytes that the user takes and the target was never promised: for words of our own. How many
    /// there are at the moment, and at most.
    pub(super) spare: u32,
    pub(super) kept: u32,
}

/// What a channel carries.
pub(super) enum Content {
    /// A shell, command or subsystem.
    Session(Program),
    /// A TCP connection or the user's SSH agent.
    Stream(Flow),
}

/// What runs in a session channel.
#[derive(Default)]
pub(super) struct Program {
    /// The terminal that was asked for.
    pub(super) terminal: Option<Terminal>,
    /// Whether a shell, command or subsystem was started. One may be.
    pub(super) started: bool,
    /// It is a shell or command: a person may read its standard error.
    pub(super) readable: bool,
    /// It is SFTP, and followed as such.
    pub(super) sftp: Option<Box<Sftp>>,
}

/// A terminal as the user described it.
#[derive(Debug, Clone)]
pub(super) struct Terminal {
    pub(super) term: String,
    pub(super) columns: u32,
    pub(super) rows: u32,
}

/// Bytes of a stream that the recording does not know of yet.
pub(super) struct Flow {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) noted: Option<Instant>,
}

/// One reply that the user waits for.
#[derive(Debug)]
pub(super) enum Reply {
    /// The target's, when it comes.
    Target(Purpose),
    /// Ours, when it is its turn.
    Ours(Bytes),
}

/// What a reply of the target decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing that matters here.
    Plain,
    /// Whether a program runs.
    Start,
}

impl Channel {
    pub(super) fn new(user: Option<u32>, target: Option<u32>, content: Content) -> Self {
        Self {
            user,
            target,
            passed: false,
            content,
            recording: None,
            closed_up: false,
            closed_down: false,
            replies: VecDeque::new(),
            asked_by_target: 0,
            spare: 0,
            kept: 0,
        }
    }

    /// Both ends know it: messages may pass.
    pub(super) fn open(&self) -> bool {
        self.user.is_some() && self.target.is_some()
    }

    /// Takes room for `words` of our own. False when there is not enough.
    pub(super) fn take_spare(&mut self, words: &str) -> bool {
        let left = u32::try_from(words.len())
            .ok()
            .and_then(|length| self.spare.checked_sub(length));
        self.spare = left.unwrap_or(self.spare);
        left.is_some()
    }

    /// The user takes `more`: what our words took is made good first. Returns what is the target's.
    pub(super) fn refill(&mut self, more: u32) -> u32 {
        let ours = more.min(self.kept - self.spare);
        self.spare += ours;
        more - ours
    }

    pub(super) fn program(&mut self) -> Option<&mut Program> {
        match &mut self.content {
            Content::Session(program) => Some(program),
            Content::Stream(_) => None,
        }
    }
}

impl Content {
    pub(super) fn stream() -> Self {
        Self::Stream(Flow {
            up: 0,
            down: 0,
            noted: None,
        })
    }
}

/// All channels of a session.
#[derive(Default)]
pub(super) struct Channels {
    next: Key,
    all: HashMap<Key, Channel>,
    by_user: HashMap<u32, Key>,
    by_target: HashMap<u32, Key>,
}

impl Channels {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether one was ever opened.
    pub(super) fn any_opened(&self) -> bool {
        self.next > 0
    }

    /// Whether the target closed every one: what the user asked for is done, though its own
    /// `CLOSE` may never come.
    pub(super) fn all_ended(&self) -> bool {
        self.all.values().all(|channel| channel.closed_down)
    }

    /// Takes a channel in under the number of the end that opened it. `None` when that end uses
    /// the number already.
    pub(super) fn insert(&mut self, channel: Channel) -> Option<Key> {
        let taken =
            |map: &HashMap<u32, Key>, id: Option<u32>| id.is_some_and(|id| map.contains_key(&id));
        if taken(&self.by_user, channel.user) || taken(&self.by_target, channel.target) {
            return None;
        }
        let key = self.next;
        self.next += 1;
        if let Some(id) = channel.user {
            self.by_user.insert(id, key);
        }
        if let Some(id) = channel.target {
            self.by_target.insert(id, key);
        }
        self.all.insert(key, channel);
        Some(key)
    }

    /// The other end confirmed a channel under its own number. False when that is taken, or the
    /// channel has one already.
    pub(super) fn confirm(&mut self, key: Key, way: Way, id: u32) -> bool {
        let Some(channel) = self.all.get_mut(&key) else {
            return false;
        };
        let (field, map) = match way {
            Way::Up => (&mut channel.user, &mut self.by_user),
            Way::Down => (&mut channel.target, &mut self.by_target),
        };
        if !channel.passed || field.is_some() || map.contains_key(&id) {
            return false;
        }
        *field = Some(id);
        map.insert(id, key);
        true
    }

    /// The channel that a message going `way` names: by the receiver's number.
    pub(super) fn find(&self, way: Way, recipient: u32) -> Option<Key> {
        match way {
            Way::Up => self.by_target.get(&recipient),
            Way::Down => self.by_user.get(&recipient),
        }
        .copied()
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Channel> {
        self.all.get_mut(&key)
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Channel> {
        let channel = self.all.remove(&key)?;
        if let Some(id) = channel.user {
            self.by_user.remove(&id);
        }
        if let Some(id) = channel.target {
            self.by_target.remove(&id);
        }
        Some(channel)
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.all.keys().copied().collect()
    }
}
