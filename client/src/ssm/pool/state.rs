//! Which sessions a pool has, and which of them a connection gets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::ssm::version::PortMode;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::carry::carry;
use super::{Opener, Shared};
use crate::error::Error;
use crate::ssm::basic::Whole;
use crate::ssm::mux::Streams;
use crate::ssm::relay::Far;
use crate::ssm::session::{Session, Writer};

/// How long an unused session is kept.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// A session whose SSM Agent says nothing for this long gets no new connection while another can
/// be had.
const DOUBTFUL: Duration = Duration::from_secs(5);
/// No further session is tried for this long after one could not be had.
const BACK_OFF: Duration = Duration::from_secs(30);
/// For what was written last to reach the SSM Agent when all is to end.
const SETTLING: Duration = Duration::from_secs(2);

/// The sessions, behind the pool's lock.
#[derive(Default)]
pub(super) struct State {
    pub(super) members: Vec<Member>,
    /// Old SSM Agents: sessions that wait for their connection.
    pub(super) fresh: Vec<Whole>,
    /// Old SSM Agents: connections with a session of their own.
    pub(super) taken: usize,
    is_basic: bool,
    /// Sessions that are being opened, and the tasks that do it.
    opening: usize,
    pub(super) tasks: JoinSet<()>,
    /// Why the last one could not be had, and when that was.
    failed: Option<(Instant, Error)>,
}

/// A multiplexed session.
pub(super) struct Member {
    pub(super) streams: Streams,
    writer: Writer,
    idle_since: Option<Instant>,
    _carrier: AbortOnDropHandle<()>,
}

impl State {
    pub(super) fn load(&self) -> usize {
        let shared: usize = self.members.iter().map(|it| it.streams.count()).sum();
        shared + self.taken
    }

    pub(super) fn add<O: Opener>(&mut self, shared: &Arc<Shared<O>>, session: Session) {
        let Some(PortMode::Multiplexed { keepalive }) = session.opened().port else {
            self.is_basic = true;
            self.fresh.push(Whole::basic(session));
            return;
        };
        self.is_basic = false;
        let streams = Streams::new(keepalive, Instant::now());
        let (writer, reader) = session.split();
        let carrying = carry(writer.clone(), reader, streams.clone(), Arc::clone(shared));
        self.members.push(Member {
            streams,
            writer,
            idle_since: None,
            _carrier: AbortOnDropHandle::new(tokio::spawn(carrying)),
        });
    }

    /// A place for a connection; `None` when one is to be waited for.
    pub(super) fn choose<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<Option<Far>, Error> {
        while self.tasks.try_join_next().is_some() {}
        self.members.retain(|it| it.streams.over().is_none());
        if self.is_basic {
            return self.choose_whole(shared, wish);
        }
        let least = self.least();
        let is_free = least.is_some_and(|(_, load)| load == 0);
        if !is_free && self.sound() + self.opening < shared.limit {
            self.begin_opening(shared, wish)?;
        }
        if !is_free && self.opening > 0 && (!wish.is_late || least.is_none()) {
            return Ok(None);
        }
        let Some(member) = least.and_then(|(place, _)| self.members.get_mut(place)) else {
            return Ok(None);
        };
        member.idle_since = None;
        Ok(Some(Far::Stream(member.streams.open(wish.peer)?)))
    }

    fn choose_whole<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<Option<Far>, Error> {
        if let Some(fresh) = self.fresh.pop() {
            self.taken += 1;
            return Ok(Some(Far::Whole(fresh)));
        }
        if self.taken + self.opening < shared.limit {
            self.begin_opening(shared, wish)?;
        }
        Ok(None)
    }

    /// The session with the fewest connections; one that is held up only when all are, and none
    /// that is doubtful.
    fn least(&self) -> Option<(usize, usize)> {
        let sound = self.members.iter().enumerate();
        let sound = sound.filter(|(_, member)| !member.is_doubtful());
        let loads = sound.map(|(place, member)| {
            let load = member.streams.count();
            (member.streams.is_full(), load, place)
        });
        loads.min().map(|(_, load, place)| (place, load))
    }

    /// How many sessions connections may get.
    fn sound(&self) -> usize {
        let sound = self.members.iter().filter(|member| !member.is_doubtful());
        sound.count()
    }

    /// Opens one more, unless that failed just now: an error where there is nothing to share.
    fn begin_opening<O: Opener>(
        &mut self,
        shared: &Arc<Shared<O>>,
        wish: &Wish,
    ) -> Result<(), Error> {
        if let Some((when, error)) = &self.failed {
            let is_last = self.sound() == 0;
            if is_last && *when >= wish.since {
                return Err(error.clone());
            }
            if !is_last && when.elapsed() < BACK_OFF {
                return Ok(());
            }
        }
        self.opening += 1;
        let shared = Arc::clone(shared);
        self.tasks.spawn(async move {
            let opened = shared.opener.open().await;
            let mut state = shared.lock();
            state.opening -= 1;
            match opened {
                Ok(session) => {
                    state.failed = None;
                    state.add(&shared, session);
                }
                Err(error) => {
                    tracing::info!(%error, "no further SSM session");
                    state.failed = Some((Instant::now(), error));
                }
            }
            drop(state);
            shared.changed.notify_waiters();
        });
        Ok(())
    }

    /// Takes the sessions out that were unused for long enough; one always stays.
    pub(super) fn unused(&mut self, now: Instant) -> Vec<Member> {
        self.members.retain(|it| it.streams.over().is_none());
        let mut unused = Vec::new();
        let mut place = 0;
        while let Some(member) = self.members.get_mut(place) {
            if member.streams.count() > 0 {
                member.idle_since = None;
            } else {
                let since = *member.idle_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= IDLE && self.members.len() > 1 {
                    unused.push(self.members.swap_remove(place));
                    continue;
                }
            }
            place += 1;
        }
        unused
    }
}

/// A connection that wants a place.
pub(super) struct Wish {
    pub(super) peer: SocketAddr,
    pub(super) since: Instant,
    /// Whether it waited for a session of its own long enough.
    pub(super) is_late: bool,
}

impl Member {
    fn is_doubtful(&self) -> bool {
        self.writer.unanswered() >= DOUBTFUL
    }

    pub(super) async fn end(self) {
        let settled = async {
            self.streams.drained().await;
            self.writer.settled().await
        };
        if !matches!(tokio::time::timeout(SETTLING, settled).await, Ok(Ok(()))) {
            tracing::debug!(
                session = self.writer.id(),
                "the last bytes were not acknowledged"
            );
        }
        if let Err(error) = self.writer.end().await {
            tracing::debug!(%error, session = self.writer.id(), "not ended at AWS");
        }
    }
}
