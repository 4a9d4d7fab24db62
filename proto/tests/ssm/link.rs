//! Whatever the link does, the bytes of both directions arrive once and in order.

use std::time::Instant;

use postern_proto::ssm::channel::{Config, DataChannel, Event, Plan};
use proptest::prelude::*;

use crate::sim::{AGENT, App, CLIENT, Faults, Random, Sim, encrypted, port};

/// Sends a known stream in pieces, expects another, reads now quickly, now slowly.
pub(crate) struct Stream {
    start: u8,
    length: usize,
    written: usize,
    expects: (u8, usize),
    read: usize,
    slow: u64,
}

impl Stream {
    pub(crate) fn pair(client: usize, agent: usize, slow: u64) -> [Self; 2] {
        let stream = |start, length, expects| Self {
            start,
            length,
            written: 0,
            expects,
            read: 0,
            slow,
        };
        [
            stream(1, client, (101, agent)),
            stream(101, agent, (1, client)),
        ]
    }
}

fn byte(start: u8, place: usize) -> u8 {
    // 251 is prime, so a message that is lost, doubled or out of place shows.
    start.wrapping_add((place % 251) as u8)
}

impl App for Stream {
    fn handle(&mut self, event: Event) {
        match event {
            Event::Data(bytes) => {
                let (start, _) = self.expects;
                for got in &bytes {
                    assert_eq!(*got, byte(start, self.read), "at {}", self.read);
                    self.read += 1;
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn pump(&mut self, channel: &mut DataChannel, now: Instant, random: &mut Random) -> bool {
        let reads = !random.percent(self.slow);
        while reads && let Some(event) = channel.poll_event() {
            self.handle(event);
        }
        while self.written < self.length && channel.room() > 0 && !random.percent(10) {
            let length = 1 + random.below(700) as usize;
            let end = self.length.min(self.written + length);
            let piece: Vec<u8> = (self.written..end).map(|at| byte(self.start, at)).collect();
            self.written += channel.write(now, &piece).unwrap();
        }
        self.read == self.expects.1 && self.written == self.length
    }

    fn is_done(&self) -> bool {
        self.written == self.length && self.read == self.expects.1
    }
}

/// Small windows and buffers, so that schedules meet their ends.
pub(crate) fn tight(config: &mut Config) {
    config.limits.least_window = 4 * 1024;
    config.limits.greatest_window = 16 * 1024;
    config.limits.held_bytes = 8 * 1024;
    config.limits.held_messages = 20;
    config.event_bytes = 4 * 1024;
    config.payload = 2 * 1024;
}

fn faults() -> impl Strategy<Value = (Faults, usize, usize, u64)> {
    let link = (any::<u64>(), 0u64..30, 0u64..30, 0u64..60);
    let service = (0u64..4, any::<bool>(), any::<bool>());
    let load = (0usize..9_000, 0usize..9_000, 0u64..80);
    (link, service, load).prop_map(|(link, service, load)| {
        let (seed, loss, repeat, delay) = link;
        let (breaks, retains, tells) = service;
        let faults = Faults {
            seed,
            loss,
            repeat,
            delay,
            breaks,
            retains,
            tells,
        };
        (faults, load.0, load.1, load.2)
    })
}

fn check(schedule: (Faults, usize, usize, u64), plan: Option<Plan>) {
    let (faults, client, agent, slow) = schedule;
    // Without a handshake the first output opens the session.
    let agent = if plan.is_none() { agent.max(1) } else { agent };
    let mut sim = Sim::new(faults, plan, Stream::pair(client, agent, slow), tight);
    sim.run();
    for place in [CLIENT, AGENT] {
        let channel = &sim.sides[place].channel;
        assert!(channel.is_open());
        assert_eq!(
            channel.poll_timeout(),
            None,
            "an idle channel has no deadline"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn a_shell_without_handshake_gets_every_byte_once(schedule in faults()) {
        check(schedule, None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn a_raw_port_session_gets_every_byte_once(schedule in faults()) {
        check(schedule, port(&[("portNumber", "22")]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn an_encrypted_shell_gets_every_byte_once(schedule in faults()) {
        check(schedule, encrypted());
    }
}
