//! The multiplexer on top of two channels on a bad link: every stream gets its own bytes.

use std::collections::BTreeMap;
use std::time::Instant;

use postern_proto::ssm::Role;
use postern_proto::ssm::channel::{DataChannel, Event};
use postern_proto::ssm::smux::{self, Limits, Mux, StreamId};
use proptest::prelude::*;

use crate::link::tight;
use crate::sim::{App, Faults, Random, Sim, port};

const LIMITS: Limits = Limits {
    streams: 16,
    send: 3000,
    receive: 6000,
};

/// A client opens streams and sends; the SSM Agent sends everything back and closes after it.
struct Echo {
    mux: Mux,
    role: Role,
    // Client: what is left to open, and how far each open stream is.
    to_open: Vec<usize>,
    running: BTreeMap<StreamId, Progress>,
    finished: usize,
    streams: usize,
    // SSM Agent: what was read and not written back yet.
    owed: BTreeMap<StreamId, Vec<u8>>,
}

struct Progress {
    length: usize,
    written: usize,
    read: usize,
}

fn byte(id: StreamId, place: usize) -> u8 {
    let id: u64 = id.to_string().parse().unwrap();
    (id as usize * 31 + place % 251) as u8
}

impl Echo {
    fn new(role: Role, lengths: &[usize]) -> Self {
        Self {
            mux: Mux::new(role, LIMITS, false, Instant::now()),
            role,
            to_open: lengths.to_vec(),
            running: BTreeMap::new(),
            finished: 0,
            streams: lengths.len(),
            owed: BTreeMap::new(),
        }
    }

    fn serve_client(&mut self, random: &mut Random) {
        while let Some(length) = self.to_open.pop() {
            let id = self.mux.open().unwrap();
            let progress = Progress {
                length,
                written: 0,
                read: 0,
            };
            self.running.insert(id, progress);
        }
        let mut over = Vec::new();
        for (id, progress) in &mut self.running {
            let end = progress
                .length
                .min(progress.written + 1 + random.below(900) as usize);
            let piece: Vec<u8> = (progress.written..end).map(|at| byte(*id, at)).collect();
            progress.written += self.mux.write(*id, &piece);
            while let Some(bytes) = self.mux.read(*id, 1 + random.below(500) as usize) {
                for got in &bytes {
                    assert_eq!(*got, byte(*id, progress.read), "stream {id}");
                    progress.read += 1;
                }
            }
            if progress.read == progress.length {
                over.push(*id);
            }
        }
        for id in over {
            self.mux.finish(id);
            self.running.remove(&id);
            self.finished += 1;
        }
    }

    fn serve_agent(&mut self, random: &mut Random) {
        while let Some(event) = self.mux.poll_event() {
            match event {
                smux::Event::Opened(id) => {
                    self.owed.insert(id, Vec::new());
                }
                smux::Event::Readable(_) => {}
                smux::Event::Finished(id) => {
                    self.mux.finish(id);
                    let owed = self.owed.remove(&id).unwrap();
                    assert!(owed.is_empty(), "the client had read all before it closed");
                    self.finished += 1;
                }
            }
        }
        for (id, owed) in &mut self.owed {
            if owed.len() < 2000
                && let Some(bytes) = self.mux.read(*id, 1 + random.below(1500) as usize)
            {
                owed.extend_from_slice(&bytes);
            }
            let taken = self.mux.write(*id, owed);
            owed.drain(..taken);
        }
    }
}

impl App for Echo {
    fn handle(&mut self, event: Event) {
        panic!("{event:?}");
    }

    fn pump(&mut self, channel: &mut DataChannel, now: Instant, random: &mut Random) -> bool {
        while self.mux.wants_data()
            && let Some(event) = channel.poll_event()
        {
            match event {
                Event::Data(bytes) => self.mux.handle_data(now, bytes).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        match self.role {
            Role::Client => self.serve_client(random),
            Role::Agent => self.serve_agent(random),
        }
        let mut out = Vec::new();
        while self.mux.has_output() && channel.room() > smux::frame::HEADER {
            out.clear();
            self.mux
                .poll_transmit(&mut out, channel.room().min(channel.payload()));
            assert_eq!(channel.write(now, &out), Ok(out.len()));
        }
        self.is_done()
    }

    fn is_done(&self) -> bool {
        self.finished == self.streams && self.mux.is_empty() && !self.mux.has_output()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn every_stream_gets_its_own_bytes(
        seed in any::<u64>(),
        loss in 0u64..20,
        repeat in 0u64..20,
        delay in 0u64..40,
        breaks in 0u64..3,
        retains in any::<bool>(),
        lengths in proptest::collection::vec(0usize..4000, 1..6),
    ) {
        let faults = Faults { seed, loss, repeat, delay, breaks, retains, tells: retains };
        let plan = port(&[("portNumber", "80"), ("type", "LocalPortForwarding")]);
        let apps = [Echo::new(Role::Client, &lengths), Echo::new(Role::Agent, &lengths)];
        Sim::new(faults, plan, apps, tight).run();
    }
}
