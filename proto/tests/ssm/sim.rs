//! Two channels and the service between them, on a link that loses, repeats, delays and reorders,
//! and whose connections break; with a clock of its own.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::channel::{
    Config, DataChannel, Encryption, Event, Opened, Plan, Seed, Session, Transmit,
};
use postern_proto::ssm::crypt::SessionKey;
use postern_proto::ssm::message::{Message, MessageId, MessageKind};
use postern_proto::ssm::payload::{SecretText, publication};
use postern_proto::ssm::{AGENT_VERSION, CLIENT_VERSION};

/// SplitMix64: enough to choose faults with.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    /// Percent of the messages.
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    /// Each message takes up to so many milliseconds, so later ones overtake.
    pub(crate) delay: u64,
    /// Connections that break, of either side.
    pub(crate) breaks: u64,
    /// Whether the service keeps messages for a side that is away.
    pub(crate) retains: bool,
    /// Whether it says that a side is away.
    pub(crate) tells: bool,
}

/// What happens on top of a channel.
pub(crate) trait App {
    /// The channel told something besides data and keys.
    fn handle(&mut self, event: Event);
    /// Takes events out of the channel while there is room for their data, and writes what there
    /// is to write. Says whether it left something undone on purpose.
    fn pump(&mut self, channel: &mut DataChannel, now: Instant, random: &mut Random) -> bool;
    /// Whether everything was sent and received.
    fn is_done(&self) -> bool;
}

pub(crate) struct Side<A> {
    pub(crate) channel: DataChannel,
    pub(crate) app: A,
    pub(crate) opened: Option<Opened>,
    connected: bool,
    back_at: Option<Instant>,
    // Messages that the service keeps for it.
    kept: Vec<Bytes>,
}

pub(crate) struct Sim<A> {
    pub(crate) now: Instant,
    pub(crate) sides: [Side<A>; 2],
    pub(crate) random: Random,
    pub(crate) key: SessionKey,
    faults: Faults,
    wire: BTreeMap<(Instant, u64), (usize, Bytes)>,
    sent: u64,
    breaks: VecDeque<(Instant, usize, Duration)>,
}

pub(crate) const CLIENT: usize = 0;
pub(crate) const AGENT: usize = 1;
/// More turns than any schedule needs that gets on.
const TURNS: usize = 60_000;

impl<A: App> Sim<A> {
    pub(crate) fn new(
        faults: Faults,
        plan: Option<Plan>,
        apps: [A; 2],
        configure: fn(&mut Config),
    ) -> Self {
        let now = Instant::now();
        let mut random = Random(faults.seed);
        let mut channel = |role: usize| {
            let mut seed = [0; 32];
            seed[..8].copy_from_slice(&random.next().to_be_bytes());
            let version = [CLIENT_VERSION, AGENT_VERSION][role];
            let mut config = Config::new(Seed::new(seed), version, "id");
            configure(&mut config);
            match role {
                CLIENT => DataChannel::client(config, now, Duration::from_secs(1)),
                _ => DataChannel::agent(config, now, Duration::from_secs(1)),
            }
        };
        let (client, mut agent) = (channel(CLIENT), channel(AGENT));
        match plan {
            Some(plan) => agent.begin(now, plan).unwrap(),
            None => agent.begin_unnamed().unwrap(),
        }
        let [client_app, agent_app] = apps;
        let mut breaks: Vec<_> = (0..faults.breaks)
            .map(|_| {
                let at = now + Duration::from_millis(random.below(500));
                let down = Duration::from_millis(random.below(1500));
                (at, random.below(2) as usize, down)
            })
            .collect();
        breaks.sort_unstable();
        let late = now + Duration::from_millis(random.below(50));
        let side = |channel, app, back_at| Side {
            channel,
            app,
            opened: None,
            connected: false,
            back_at: Some(back_at),
            kept: Vec::new(),
        };
        Self {
            now,
            sides: [side(client, client_app, now), side(agent, agent_app, late)],
            random,
            key: SessionKey::new(&[9; 64]).unwrap(),
            faults,
            wire: BTreeMap::new(),
            sent: 0,
            breaks: breaks.into(),
        }
    }

    /// Runs until everything was sent, received and acknowledged.
    pub(crate) fn run(&mut self) {
        for _ in 0..TURNS {
            let idle = self.turn();
            if self.is_done() {
                return;
            }
            let next = self
                .wire
                .keys()
                .map(|(at, _)| *at)
                .chain(self.breaks.front().map(|(at, ..)| *at))
                .chain(self.sides.iter().filter_map(|side| side.back_at))
                .chain(
                    self.sides
                        .iter()
                        .filter_map(|side| side.channel.poll_timeout()),
                )
                .chain((!idle).then(|| self.now + Duration::from_millis(3)))
                .min();
            let next = next.unwrap_or_else(|| panic!("nothing to wait for: {}", self.state()));
            self.now = self.now.max(next);
        }
        panic!("no end: {}", self.state());
    }

    fn is_done(&self) -> bool {
        self.sides
            .iter()
            .all(|side| side.app.is_done() && side.channel.is_settled())
    }

    fn state(&self) -> String {
        let of = |side: &Side<A>| {
            format!(
                "done {}, settled {}, connected {}, closed {}",
                side.app.is_done(),
                side.channel.is_settled(),
                side.connected,
                side.channel.is_closed()
            )
        };
        let [client, agent] = &self.sides;
        format!(
            "{:?}: client {}; agent {}",
            self.faults,
            of(client),
            of(agent)
        )
    }

    /// One turn. Says whether both owners wait for nothing but the wire.
    fn turn(&mut self) -> bool {
        self.break_and_mend();
        while let Some((&(at, number), _)) = self.wire.first_key_value()
            && at <= self.now
        {
            let (to, frame) = self.wire.remove(&(at, number)).unwrap();
            self.deliver(to, frame);
        }
        let mut idle = true;
        for place in [CLIENT, AGENT] {
            self.sides[place].channel.handle_timeout(self.now);
            idle &= self.pump(place);
            while let Some(transmit) = self.sides[place].channel.poll_transmit(self.now) {
                self.carry(1 - place, transmit);
            }
        }
        idle
    }

    fn pump(&mut self, place: usize) -> bool {
        let now = self.now;
        let side = &mut self.sides[place];
        if side.opened.is_some() {
            return side.app.pump(&mut side.channel, now, &mut self.random);
        }
        while side.opened.is_none()
            && let Some(event) = side.channel.poll_event()
        {
            match event {
                Event::KeyNeeded(_) | Event::KeyOffered(_) => {
                    side.channel.provide_key(now, &self.key, b"ciphertext");
                }
                Event::Opened(opened) => side.opened = Some(opened),
                other => side.app.handle(other),
            }
        }
        side.opened.is_none()
    }

    fn carry(&mut self, to: usize, transmit: Transmit) {
        let Transmit::Binary(frame) = transmit else {
            return;
        };
        let copies = 1 + u64::from(self.random.percent(self.faults.repeat));
        for _ in 0..copies {
            if self.random.percent(self.faults.loss) {
                continue;
            }
            let delay =
                Duration::from_micros(100 + self.random.below(1 + self.faults.delay * 1000));
            self.sent += 1;
            self.wire
                .insert((self.now + delay, self.sent), (to, frame.clone()));
        }
    }

    fn deliver(&mut self, to: usize, frame: Bytes) {
        let side = &mut self.sides[to];
        if !side.connected {
            if self.faults.retains {
                side.kept.push(frame);
            }
        } else if side.channel.wants_message() {
            // Refusals are part of the game: nobody acknowledged them.
            let _ = side.channel.handle_message(self.now, &frame);
        } else {
            let later = self.now + Duration::from_millis(5);
            self.sent += 1;
            self.wire.insert((later, self.sent), (to, frame));
        }
    }

    fn break_and_mend(&mut self) {
        while let Some(&(at, place, down)) = self.breaks.front()
            && at <= self.now
        {
            self.breaks.pop_front();
            let side = &mut self.sides[place];
            if side.connected {
                side.connected = false;
                side.channel.handle_disconnected();
                side.back_at = Some(self.now + down);
                // What it had written and what was on its way to it: half of that is gone.
                let Self { wire, random, .. } = self;
                wire.retain(|_, _| random.percent(50));
                self.tell(1 - place, MessageKind::PausePublication);
            }
        }
        for place in [CLIENT, AGENT] {
            let side = &mut self.sides[place];
            if side.back_at.is_some_and(|at| at <= self.now) {
                side.back_at = None;
                side.connected = true;
                let token = SecretText::new("token".into());
                side.channel
                    .handle_connected(self.now, Duration::from_secs(1), token);
                let first = side.channel.poll_transmit(self.now);
                assert!(matches!(first, Some(Transmit::Text(_))), "the token opens");
                for frame in std::mem::take(&mut side.kept) {
                    self.sent += 1;
                    self.wire.insert((self.now, self.sent), (place, frame));
                }
                self.tell(1 - place, MessageKind::StartPublication);
            }
        }
    }

    fn tell(&mut self, to: usize, kind: MessageKind) {
        if self.faults.tells {
            let message = Message::unnumbered(kind, MessageId([1; 16]), 1, publication("s"));
            self.sent += 1;
            self.wire
                .insert((self.now, self.sent), (to, message.encode()));
        }
    }
}

/// The plan of an encrypted shell.
pub(crate) fn encrypted() -> Option<Plan> {
    Some(Plan {
        session: Session::StandardStream,
        encryption: Some(Encryption {
            key_id: "alias/key".into(),
            challenge: Some("qKbLHklpHTIcA/XWQrPjUg==".into()),
        }),
    })
}

/// The plan of a port session with these properties.
pub(crate) fn port(properties: &[(&str, &str)]) -> Option<Plan> {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let properties = properties.iter().map(own).collect();
    Some(Plan {
        session: Session::Port(postern_proto::ssm::payload::handshake::Properties(
            properties,
        )),
        encryption: None,
    })
}
