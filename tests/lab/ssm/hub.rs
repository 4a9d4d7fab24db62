//! All sessions: who may start, resume and end which.

mod attach;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::Rng as _;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use super::document::Plan;
use super::knobs::Knobs;
use super::link::Lane;
use super::session::{End, Lanes, Session, Side, Status, Token};
use crate::aws::Clock;

pub(super) use attach::Attached;

/// Sessions that are over and still listed.
const HISTORY: usize = 1000;
/// What is remembered about clients that break the protocol.
const COMPLAINTS: usize = 100;

/// What StartSession was asked for, allowed and understood.
pub(crate) struct Request {
    /// The first part of the session's id.
    pub(crate) caller_name: String,
    /// ARN.
    pub(crate) owner: String,
    /// `aws:userid`: what AWS tags the session with.
    pub(crate) owner_id: String,
    pub(crate) target: String,
    pub(crate) region: String,
    pub(crate) reason: String,
    pub(crate) plan: Plan,
}

/// Why a session was not started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotStarted {
    /// The caller has as many as the limit.
    Limit(usize),
    /// Too many at once for the SSM Agent.
    Busy,
}

/// A session, as DescribeSessions lists it.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) owner: String,
    pub(crate) owner_id: String,
    pub(crate) reason: String,
    pub(crate) region: String,
    pub(crate) document: String,
    pub(crate) status: Status,
    pub(crate) details: String,
    pub(crate) started: OffsetDateTime,
    pub(crate) ended: Option<OffsetDateTime>,
}

/// What an SSM Agent is told over its control channel.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) session: String,
    pub(super) token: String,
    pub(super) plan: Plan,
}

/// All sessions of the emulated account.
pub(crate) struct Hub {
    clock: Clock,
    inner: Mutex<Inner>,
    /// Sent to when knobs change.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<String, (Session, Arc<Lanes>)>,
    /// In the order of their start.
    order: Vec<String>,
    agents: BTreeMap<String, mpsc::Sender<Order>>,
    knobs: Knobs,
    epochs: u64,
    complaints: Vec<String>,
}

impl Hub {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            inner: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn knobs(&self) -> Knobs {
        self.inner().knobs.clone()
    }

    pub(crate) fn change_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.inner().knobs);
        self.changed.send_replace(());
    }

    /// Tells when knobs change.
    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What clients did that the protocol does not allow, oldest first.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.inner().complaints.clone()
    }

    pub(super) fn complain(&self, about: String) {
        tracing::debug!(about, "message gateway");
        let mut inner = self.inner();
        if inner.complaints.len() < COMPLAINTS {
            inner.complaints.push(about);
        }
    }

    /// An SSM Agent has its control channel. A later one of the same instance replaces it.
    pub(super) fn register(&self, instance: &str) -> mpsc::Receiver<Order> {
        let (orders, taken) = mpsc::channel(64);
        self.inner().agents.insert(instance.to_owned(), orders);
        taken
    }

    /// Starts a session: its id and the client's token.
    pub(crate) fn start(&self, mut request: Request) -> Result<(String, String), NotStarted> {
        let now = self.clock.now();
        let mut inner = self.inner();
        let plan = &mut request.plan;
        let session_key = || inner.knobs.session_key.clone();
        plan.kms_key = plan.kms_key.take().or_else(session_key);
        if let Some(limit) = inner.knobs.session_limit {
            let running = |(session, _): &&(Session, Arc<Lanes>)| {
                session.end.is_none() && session.owner == request.owner
            };
            if inner.sessions.values().filter(running).count() >= limit {
                return Err(NotStarted::Limit(limit));
            }
        }
        let id = format!("{}-{}", request.caller_name, hexadecimal(17));
        let expires = now + inner.knobs.token_life;
        let token = || Token {
            value: secret(),
            expires,
        };
        let (client_token, agent_token) = (token(), token());
        let tokens = (client_token.value.clone(), agent_token.value.clone());
        if let Some(agent) = inner.agents.get(&request.target) {
            let order = Order {
                session: id.clone(),
                token: tokens.1,
                plan: request.plan.clone(),
            };
            match agent.try_send(order) {
                // An agent that is gone is one that never comes.
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
                Err(mpsc::error::TrySendError::Full(_)) => return Err(NotStarted::Busy),
            }
        }
        let session = Session {
            id: id.clone(),
            target: request.target,
            owner: request.owner,
            owner_id: request.owner_id,
            reason: request.reason,
            region: request.region,
            plan: request.plan,
            started: now,
            client_token,
            agent_token,
            client: None,
            agent: None,
            was_connected: false,
            end: None,
        };
        inner.epochs += 2;
        let seed = inner.knobs.seed.wrapping_add(inner.epochs);
        let lanes = Arc::new(Lanes {
            to_agent: Lane::new(seed),
            to_client: Lane::new(seed ^ u64::MAX),
        });
        inner.sessions.insert(id.clone(), (session, lanes));
        inner.order.push(id.clone());
        inner.forget_old();
        Ok((id, tokens.0))
    }

    /// A new token for a client; `None` for a session that is over or unknown.
    pub(crate) fn resume(&self, id: &str) -> Option<String> {
        self.new_token(id, Side::Client)
    }

    /// The same for the SSM Agent (CreateDataChannel).
    pub(super) fn agent_token(&self, id: &str) -> Option<String> {
        self.new_token(id, Side::Agent)
    }

    fn new_token(&self, id: &str, side: Side) -> Option<String> {
        let now = self.clock.now();
        let mut inner = self.inner();
        let expires = now + inner.knobs.token_life;
        let (session, _) = inner.sessions.get_mut(id)?;
        if session.end.is_some() {
            return None;
        }
        let value = secret();
        let token = Token {
            value: value.clone(),
            expires,
        };
        match side {
            Side::Client => session.client_token = token,
            Side::Agent => session.agent_token = token,
        }
        Some(value)
    }

    /// Ends a session from outside, with a text for the client. False if it is over already, or
    /// unknown.
    pub(crate) fn terminate(&self, id: &str, output: &str) -> bool {
        self.end(id, Status::Terminated, output, true)
    }

    /// The SSM Agent reports the end of its work.
    pub(super) fn complete(&self, id: &str, status: Status, output: &str) {
        self.end(id, status, output, false);
    }

    fn end(&self, id: &str, status: Status, output: &str, tell_agent: bool) -> bool {
        let now = self.clock.now();
        let mut inner = self.inner();
        let Some((session, lanes)) = inner.sessions.get_mut(id) else {
            return false;
        };
        if session.end.is_some() {
            return false;
        }
        session.end = Some(End {
            at: now,
            status,
            output: output.to_owned(),
        });
        if tell_agent {
            lanes.to_agent.end(session.closing(Side::Agent, "", now));
        }
        lanes
            .to_client
            .end(session.closing(Side::Client, output, now));
        true
    }

    /// Every session, oldest first.
    pub(crate) fn list(&self) -> Vec<Summary> {
        let inner = self.inner();
        let known = inner.order.iter().filter_map(|id| inner.sessions.get(id));
        known.map(|(session, _)| session.summary()).collect()
    }

    pub(crate) fn session(&self, id: &str) -> Option<Summary> {
        let inner = self.inner();
        inner.sessions.get(id).map(|(session, _)| session.summary())
    }
}

impl Session {
    fn summary(&self) -> Summary {
        Summary {
            id: self.id.clone(),
            target: self.target.clone(),
            owner: self.owner.clone(),
            owner_id: self.owner_id.clone(),
            reason: self.reason.clone(),
            region: self.region.clone(),
            document: self.plan.document.clone(),
            status: self.status(),
            details: self
                .end
                .as_ref()
                .map_or_else(String::new, |end| end.output.clone()),
            started: self.started,
            ended: self.end.as_ref().map(|end| end.at),
        }
    }
}

impl Inner {
    fn forget_old(&mut self) {
        while self.order.len() > HISTORY {
            let over = |id: &String| {
                self.sessions
                    .get(id)
                    .is_none_or(|(session, _)| session.end.is_some())
            };
            let Some(place) = self.order.iter().position(over) else {
                return;
            };
            let id = self.order.remove(place);
            self.sessions.remove(&id);
        }
    }
}

fn hexadecimal(count: usize) -> String {
    let mut random = rand::rng();
    (0..count)
        .filter_map(|_| char::from_digit(random.random_range(0..16), 16))
        .collect()
}

/// As long as the service's, so that nobody sizes a buffer for a toy.
fn secret() -> String {
    format!("AAEAA{}", hexadecimal(507))
}
