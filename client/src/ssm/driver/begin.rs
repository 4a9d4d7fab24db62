//! How a session begins: what its handle holds, its channel, its task.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use postern_proto::ssm::CLIENT_VERSION;
use postern_proto::ssm::channel::{Config, DataChannel, Seed};
use postern_proto::ssm::message::MessageId;
use postern_proto::ssm::payload::{Flag, TerminalSize};
use tokio::sync::{mpsc, oneshot, watch};

use super::link::Link;
use super::{Driver, unix};
use crate::pipe::outage::Outages;
use crate::ssm::api::{Ssm, Started};
use crate::ssm::document;
use crate::ssm::error::SsmError;
use crate::ssm::session::{Event, Shared, Start};
use crate::ssm::unanswered::Unanswered;
use crate::ssm::watchdog::Watchdog;
use crate::ssm::way_back::WayBack;

/// A command with a terminal that says nothing for so long has no handshake to come.
const UNNAMED: Duration = Duration::from_secs(5);
/// Bytes of data in one message at most, where the path lets them through.
const PAYLOAD: usize = 32 * 1024;

/// What the handle wants.
#[derive(Debug)]
pub(in crate::ssm) enum Order {
    Write(Bytes),
    Resize(TerminalSize),
    Flag(Flag),
    Settle(oneshot::Sender<()>),
}

/// The driver's ends of the handle's channels.
pub(in crate::ssm) struct Ends {
    pub(in crate::ssm) orders: mpsc::Receiver<Order>,
    pub(in crate::ssm) events: mpsc::Sender<Event>,
    pub(in crate::ssm) opened: oneshot::Sender<Result<Arc<Shared>, SsmError>>,
}

/// Begins a session in a task that `ssm` owns.
pub(in crate::ssm) fn spawn(ssm: &Arc<Ssm>, start: Start, ends: Ends) {
    let owner = Arc::clone(ssm);
    ssm.drivers.spawn(async move {
        let begun = match random() {
            Ok(random) => owner.start(&start).await.map(|started| (started, random)),
            Err(error) => Err(error),
        };
        match begun {
            Ok((started, random)) => {
                Driver::new(owner, start, started, ends, random).run().await;
            }
            // A handle that is gone has nobody to tell.
            Err(error) => drop(ends.opened.send(Err(error))),
        }
    });
}

/// What a channel draws from: its seed, its client's id.
type Random = ([u8; 32], [u8; 16]);

fn random() -> Result<Random, SsmError> {
    let (mut seed, mut id) = ([0; 32], [0; 16]);
    aws_lc_rs::rand::fill(&mut seed)
        .and_then(|()| aws_lc_rs::rand::fill(&mut id))
        .map_err(|_| SsmError::NoRandomness)?;
    Ok((seed, id))
}

impl Driver {
    fn new(
        ssm: Arc<Ssm>,
        start: Start,
        Started {
            id,
            token,
            url,
            request_id,
        }: Started,
        ends: Ends,
        (seed, client): Random,
    ) -> Self {
        let client = MessageId::from_random(client).to_string();
        let config = Config {
            payload: PAYLOAD,
            unnamed_after: (start.document == document::INTERACTIVE).then_some(UNNAMED),
            ..Config::new(Seed::new(seed), CLIENT_VERSION, &client)
        };
        let channel = DataChannel::client(config, Instant::now(), unix());
        let way = WayBack::new(Arc::clone(&ssm), id.clone(), url);
        let watchdog = watchdog(&ssm, &start.target, way.outages());
        Self {
            link: Link::Seeking(way.first(token)),
            unanswered: Arc::new(Unanswered::new()),
            payload: Arc::new(AtomicUsize::new(channel.payload())),
            stop: ssm.stop.child_token(),
            ended: watch::Sender::new(None),
            request_id,
            target: start.target,
            document: start.document,
            orders: ends.orders,
            is_mute: false,
            events: ends.events,
            opened: Some(ends.opened),
            pending: Bytes::new(),
            settling: None,
            key: None,
            key_error: None,
            is_port: false,
            watchdog,
            ssm,
            id,
            channel,
            way,
        }
    }
}

fn watchdog(ssm: &Arc<Ssm>, target: &str, outages: &Outages) -> Watchdog {
    let (ssm, asked) = (Arc::clone(ssm), target.to_owned());
    let ask = move || -> BoxFuture<'static, Result<bool, SsmError>> {
        let (ssm, target) = (Arc::clone(&ssm), asked.clone());
        Box::pin(async move { ssm.is_connected(&target).await })
    };
    Watchdog::new(target.to_owned(), outages.clone(), Box::new(ask))
}
