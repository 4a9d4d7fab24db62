//! Connections: who may attach to which session, and what each side is told about the other.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::ssm::message::MessageKind;
use tokio::sync::mpsc;

use super::Hub;
use crate::ssm::Noise;
use crate::ssm::knobs::Retention;
use crate::ssm::session::{Attachment, Cut, Lanes, Side};

/// Why a connection was refused. The peer is not told.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::ssm) enum Refusal {
    #[error("there is no such session")]
    Unknown,
    #[error("the session is over")]
    Over,
    #[error("the token is wrong or expired")]
    Token,
}

/// What a connection gets.
pub(in crate::ssm) struct Attached {
    pub(in crate::ssm) lanes: Arc<Lanes>,
    pub(in crate::ssm) epoch: u64,
    pub(in crate::ssm) cut: mpsc::Receiver<Cut>,
}

impl Hub {
    /// A connection with its first text. A side's older connection is closed.
    pub(in crate::ssm) fn attach(
        &self,
        side: Side,
        id: &str,
        token: &str,
    ) -> Result<Attached, Refusal> {
        let now = self.clock.now();
        let mut inner = self.inner();
        inner.epochs += 1;
        let (epoch, publishes) = (inner.epochs, inner.knobs.publication);
        let (session, lanes) = inner.sessions.get_mut(id).ok_or(Refusal::Unknown)?;
        if session.end.is_some() {
            return Err(Refusal::Over);
        }
        if !session.token(side).fits(token, now) {
            return Err(Refusal::Token);
        }
        let (cut, orders) = mpsc::channel(1);
        let other_is_there = session.attachment(side.other()).is_some();
        let attachment = Attachment { epoch, cut };
        if let Some(old) = session.attachment(side).replace(attachment) {
            // Full: it is being cut already.
            let _ = old.cut.try_send(Cut::Close);
        }
        session.was_connected |= side == Side::Client;
        lanes.to(side).attach();
        if publishes {
            let start = || session.publication(MessageKind::StartPublication, now);
            if other_is_there {
                lanes.to(side).inject(start());
                lanes.from(side).inject(start());
            } else {
                let pause = session.publication(MessageKind::PausePublication, now);
                lanes.to(side).inject(pause);
            }
        }
        Ok(Attached {
            lanes: Arc::clone(lanes),
            epoch,
            cut: orders,
        })
    }

    /// A connection is gone, unless a newer one has taken its place.
    pub(in crate::ssm) fn detach(&self, side: Side, id: &str, epoch: u64) {
        let now = self.clock.now();
        let mut inner = self.inner();
        let (publishes, retention) = (inner.knobs.publication, inner.knobs.retention);
        let Some((session, lanes)) = inner.sessions.get_mut(id) else {
            return;
        };
        let current = session.attachment(side);
        if current.as_ref().is_none_or(|found| found.epoch != epoch) {
            return;
        }
        *current = None;
        lanes.to(side).detach(retention);
        if publishes && session.end.is_none() {
            let pause = session.publication(MessageKind::PausePublication, now);
            lanes.from(side).inject(pause);
        }
    }

    /// What a connection needs to know while it runs.
    pub(in crate::ssm) fn manners(&self, side: Side) -> (Noise, Retention) {
        let inner = self.inner();
        let noise = match side {
            Side::Client => inner.knobs.to_agent,
            Side::Agent => inner.knobs.to_client,
        };
        (noise, inner.knobs.retention)
    }

    /// How long a connection of this side may last, and how it ends then.
    pub(in crate::ssm) fn life(&self, side: Side) -> Option<(Duration, Cut)> {
        let inner = self.inner();
        let own = inner.knobs.data_channel_life.map(|life| (life, Cut::Close));
        let fault = inner
            .knobs
            .cut_every
            .filter(|cut| cut.side == side)
            .map(|cut| (cut.every, cut.how));
        match (own, fault) {
            (Some(own), Some(fault)) if own.0 <= fault.0 => Some(own),
            (own, fault) => fault.or(own),
        }
    }

    /// Cuts connections now: of one session or of all. Answers how many.
    pub(crate) fn cut(&self, side: Side, how: Cut, only: Option<&str>) -> usize {
        let mut inner = self.inner();
        inner
            .sessions
            .values_mut()
            .filter(|(session, _)| only.is_none_or(|id| id == session.id))
            .filter_map(|(session, _)| session.attachment(side).as_ref())
            .filter(|attachment| attachment.cut.try_send(how).is_ok())
            .count()
    }
}
