//! What the agent's SSH relay stands on, held by hand: nothing is decided, written down or
//! recorded before the target says so, and what is recorded is looked at.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Buf;
use postern_proto::audit::event::Channel;
use tokio::sync::oneshot;

use evidence::{Entry, EvidenceError, Recording, RecordingKind};

/// `crate::evidence` of the agent.
#[path = "../../../agent/src/evidence"]
pub(crate) mod evidence {
    #[expect(dead_code, reason = "the agent uses the rest")]
    mod claims;

    /// A clock that is set.
    mod event {
        use std::cell::Cell;

        thread_local!(static NOW: Cell<i64> = const { Cell::new(0) });

        pub(super) fn now_ms() -> i64 {
            NOW.get()
        }

        pub(super) fn set(now: i64) {
            NOW.set(now);
        }
    }

    mod health {
        use std::sync::{Mutex, MutexGuard};

        pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
            mutex.lock().expect("nobody panicked")
        }
    }

    #[path = "../../../tests/fuzz/src/claims.rs"]
    pub(crate) mod claimed;

    use std::sync::Arc;

    pub(crate) use postern_proto::recording::{Entry, Kind as RecordingKind};

    use super::{Desk, Matter};

    #[derive(Debug, Clone, thiserror::Error)]
    pub(crate) enum EvidenceError {
        #[error("the evidence store failed: {0}")]
        Failed(Arc<str>),
        #[error("the recording quota of {0} bytes is used up")]
        Quota(u64),
        #[expect(dead_code, reason = "no session begins here")]
        #[error("{free} bytes are free under the evidence store, {floor} are needed")]
        Space { free: u64, floor: u64 },
    }

    #[derive(Clone)]
    pub(crate) struct Recording {
        pub(super) number: usize,
        pub(super) name: String,
        pub(super) desk: Arc<Desk>,
    }

    impl Recording {
        pub(crate) fn name(&self) -> &str {
            &self.name
        }

        pub(crate) async fn write(&self, entry: Entry) -> Result<(), EvidenceError> {
            let closing = self.desk.lock().recordings[self.number].closing;
            assert!(!closing, "written to a recording that is closed");
            self.desk.wait(Matter::Write(self.number, entry)).await
        }
    }
}

/// `crate::session` of the agent.
pub(crate) mod session {
    use std::sync::Arc;

    use postern_proto::audit::event::{Channel, Fact};
    use postern_proto::gateway::message::CloseReason;
    use tokio::sync::watch;

    use super::evidence::{EvidenceError, Recording, RecordingKind};
    use super::{Desk, Matter};

    #[derive(Debug, Clone)]
    pub(crate) struct Ending {
        pub(crate) reason: CloseReason,
        pub(crate) message: Option<String>,
    }

    /// What a channel is refused with; of a policy's denial the relay reads no more.
    pub(crate) enum ChannelRefused {
        Denied(Denial),
        Evidence(EvidenceError),
    }

    pub(crate) struct Denial {
        pub(crate) message: String,
        pub(crate) hint: Option<String>,
    }

    pub(crate) struct Grant(Request);

    pub(crate) struct Request {
        pub(crate) target: Option<Target>,
    }

    pub(crate) struct Target {
        pub(crate) name: String,
    }

    impl Grant {
        pub(crate) fn request(&self) -> &Request {
            &self.0
        }
    }

    pub(crate) struct Session {
        grant: Grant,
        desk: Arc<Desk>,
        pub(crate) orders: watch::Sender<Option<Ending>>,
        pub(crate) words: watch::Sender<Option<Arc<str>>>,
    }

    impl Session {
        pub(crate) fn new(desk: Arc<Desk>) -> Self {
            let name = "web-1".to_owned();
            Self {
                grant: Grant(Request {
                    target: Some(Target { name }),
                }),
                desk,
                orders: watch::Sender::new(None),
                words: watch::Sender::new(None),
            }
        }

        pub(crate) fn grant(&self) -> &Grant {
            &self.grant
        }

        pub(crate) async fn open_channel(
            &self,
            channel: Channel,
            recording: Option<RecordingKind>,
        ) -> Result<Option<Recording>, ChannelRefused> {
            let decided = self.desk.wait(Matter::Decide).await;
            decided.map_err(ChannelRefused::Evidence)?;
            if !self.desk.allows(&channel) {
                return Err(ChannelRefused::Denied(Denial {
                    message: "policy forbids it".to_owned(),
                    hint: Some("ask for access".to_owned()),
                }));
            }
            Ok(recording.map(|kind| self.desk.begin(&kind)))
        }

        pub(crate) async fn log(&self, _fact: Fact) -> Result<(), EvidenceError> {
            self.desk.wait(Matter::Log).await
        }

        pub(crate) async fn close_recording(
            &self,
            recording: &Recording,
        ) -> Result<(), EvidenceError> {
            self.desk.close(recording.number);
            self.desk.wait(Matter::Close).await
        }

        pub(crate) fn ending(&self) -> watch::Receiver<Option<Ending>> {
            self.orders.subscribe()
        }

        pub(crate) fn notice(&self) -> watch::Receiver<Option<Arc<str>>> {
            self.words.subscribe()
        }
    }
}

/// What somebody waits for.
enum Matter {
    Write(usize, Entry),
    Close,
    Decide,
    Log,
}

/// Where all of that is decided, and what was recorded.
pub(crate) struct Desk {
    agent: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Nothing waits.
    at_once: bool,
    /// Nothing is written any more.
    broken: bool,
    /// Something was not written.
    failed: bool,
    waiting: Vec<(Matter, oneshot::Sender<Result<(), EvidenceError>>)>,
    recordings: Vec<Record>,
    /// Stamps that are in a recording, of what goes up and down.
    landed: [HashSet<u32>; 2],
    flow: u64,
}

#[derive(Default)]
struct Record {
    closing: bool,
    /// It is SFTP's: bytes without stamps.
    plain: bool,
    /// Channel and last stamp, up and down.
    last: [Option<(u32, u32)>; 2],
}

/// Length of what stands at the beginning of data: stamp, length of all, channel.
pub(crate) const STAMP: usize = 12;

impl Desk {
    /// Policy is fixed, so that everybody can tell what it forbids: what has an odd port, begins
    /// with `deny`, and the SSH agent unless `agent`.
    pub(crate) fn new(agent: bool, at_once: bool) -> Arc<Self> {
        let state = State {
            at_once,
            ..State::default()
        };
        Arc::new(Self {
            agent,
            state: Mutex::new(state),
        })
    }

    fn allows(&self, channel: &Channel) -> bool {
        match channel {
            Channel::Shell { .. } => true,
            Channel::Command { line: name, .. } | Channel::Subsystem { name } => {
                !name.starts_with("deny")
            }
            Channel::Direct { port, .. } | Channel::Reverse { port, .. } => port % 2 == 0,
            Channel::AgentForward => self.agent,
        }
    }

    fn begin(self: &Arc<Self>, kind: &RecordingKind) -> Recording {
        let recordings = &mut self.lock().recordings;
        let number = recordings.len();
        recordings.push(Record {
            plain: match kind {
                RecordingKind::Streams { command } => command.starts_with("sftp"),
                RecordingKind::Terminal { command, .. } => {
                    command.as_ref().is_some_and(|it| it.starts_with("sftp"))
                }
                RecordingKind::Flow { .. } => true,
            },
            ..Record::default()
        });
        Recording {
            number,
            name: number.to_string(),
            desk: Arc::clone(self),
        }
    }

    fn close(&self, recording: usize) {
        let closing = &mut self.lock().recordings[recording].closing;
        assert!(!*closing, "a recording is closed twice");
        *closing = true;
    }

    async fn wait(&self, matter: Matter) -> Result<(), EvidenceError> {
        match self.ask(matter).await {
            Ok(settled) => settled,
            // The desk itself is gone.
            Err(_) => std::future::pending().await,
        }
    }

    fn ask(&self, matter: Matter) -> oneshot::Receiver<Result<(), EvidenceError>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.lock();
        state.waiting.push((matter, sender));
        if state.at_once || state.broken {
            let (newest, well) = (state.waiting.len() - 1, !state.broken);
            state.settle(newest, well);
        }
        receiver
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    /// Settles one of what waits; what is written to one recording lands in its order.
    pub(crate) fn settle(&self, at: usize, well: bool) {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return;
        }
        let mut at = at % state.waiting.len();
        if let (Matter::Write(recording, _), _) = state.waiting[at] {
            let first = state.waiting.iter().position(
                |(matter, _)| matches!(matter, Matter::Write(other, _) if *other == recording),
            );
            at = first.expect("itself at least");
        }
        state.settle(at, well);
    }

    /// Settles all, and with `from_now_on` what comes.
    pub(crate) fn settle_all(&self, from_now_on: bool) {
        let mut state = self.lock();
        state.at_once |= from_now_on;
        while !state.waiting.is_empty() {
            state.settle(0, true);
        }
    }

    /// Nothing is written any more.
    pub(crate) fn fail(&self) {
        let mut state = self.lock();
        state.broken = true;
        while !state.waiting.is_empty() {
            state.settle(0, false);
        }
    }

    /// From now on somebody waits again.
    pub(crate) fn hold(&self) {
        self.lock().at_once = false;
    }

    pub(crate) fn failed(&self) -> bool {
        self.lock().failed
    }

    /// How much waits.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    pub(crate) fn is_landed(&self, way: usize, stamp: u32) -> bool {
        self.lock().landed[way].contains(&stamp)
    }

    /// Bytes of streams that recordings know of.
    pub(crate) fn flow(&self) -> u64 {
        self.lock().flow
    }

    pub(crate) fn all_closed(&self) -> bool {
        self.lock().recordings.iter().all(|record| record.closing)
    }
}

impl State {
    fn settle(&mut self, at: usize, well: bool) {
        let (matter, sender) = self.waiting.remove(at);
        self.failed |= !well;
        if let (Matter::Write(recording, entry), true) = (matter, well) {
            self.land(recording, entry);
        }
        let settled = match well {
            true => Ok(()),
            false if at % 2 == 0 => Err(EvidenceError::Quota(1)),
            false => Err(EvidenceError::Failed("disk full".into())),
        };
        // Who asked may have given up: it is written all the same.
        let _ = sender.send(settled);
    }

    fn land(&mut self, recording: usize, entry: Entry) {
        let record = &mut self.recordings[recording];
        let (way, mut content) = match entry {
            Entry::Input(content) => (0, content),
            Entry::Output(content) | Entry::Error(content) => (1, content),
            // Their numbers are stamps.
            Entry::Resize { columns, .. } => {
                self.landed[0].insert(columns);
                return;
            }
            Entry::Exit(Ok(status)) => {
                self.landed[1].insert(status);
                return;
            }
            Entry::Flow { up, down } => return self.flow += up + down,
            Entry::Exit(Err(_)) | Entry::File(_) | Entry::Note(_) => return,
        };
        if record.plain {
            return;
        }
        while content.has_remaining() {
            assert!(content.len() >= STAMP, "recorded bytes were cut");
            let (stamp, length, channel) =
                (content.get_u32(), content.get_u32(), content.get_u32());
            let rest = usize::try_from(length).expect("32 bits") - STAMP;
            assert!(content.len() >= rest, "recorded bytes were cut");
            content.advance(rest);
            if let Some((of, last)) = record.last[way].replace((channel, stamp)) {
                assert!(last < stamp, "recorded twice, or out of order");
                assert_eq!(of, channel, "two channels in one recording");
            }
            self.landed[way].insert(stamp);
        }
    }
}
