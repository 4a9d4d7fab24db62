//! Moves the bytes of one multiplexed session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postern_proto::ssm::payload::Flag;

use super::{Opener, Shared};
use crate::error::Error;
use crate::pipe::outage;
use crate::ssm::mux::{HoldUp, Streams};
use crate::ssm::notice::{self, incomplete};
use crate::ssm::session::{Event, Reader, Writer};

/// How long an SSM Agent may say nothing before a new connection is given up.
const UNANSWERED: Duration = Duration::from_secs(15);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Moves the bytes until the session is over.
pub(super) async fn carry<O: Opener>(
    writer: Writer,
    mut reader: Reader,
    streams: Streams,
    shared: Arc<Shared<O>>,
) {
    let why = tokio::select! {
        why = send(&writer, &streams) => why,
        why = receive(&mut reader, &streams, &shared) => why,
        why = keep_alive(&streams) => why,
        why = tell_of_network(&writer, &shared) => why,
        why = give_up_unanswered(&writer, &streams, &shared) => why,
    };
    let connections = streams.count();
    streams.end(why.clone());
    if connections > 0 {
        let told = notice::session_ended(&shared.destination, connections, &why);
        shared.printer.warning(told);
    } else {
        tracing::info!(session = writer.id(), %why, "an unused SSM session ended");
    }
    shared.changed.notify_waiters();
    // Whatever ended it here, it ends at AWS.
    if let Err(error) = writer.end().await {
        tracing::debug!(%error, session = writer.id(), "not ended at AWS");
    }
}

/// What is sent is decided late: only when the session takes it.
async fn send(writer: &Writer, streams: &Streams) -> Error {
    loop {
        streams.has_output().await;
        let Ok(permit) = writer.reserve().await else {
            // The reader has the reason.
            return std::future::pending().await;
        };
        let out = streams.output(writer.payload());
        if !out.is_empty() {
            permit.send(Bytes::from(out));
        }
    }
}

async fn receive<O: Opener>(reader: &mut Reader, streams: &Streams, shared: &Shared<O>) -> Error {
    loop {
        let tell = |it: HoldUp| {
            let told = notice::held_up(&it.peer, it.others, &shared.destination);
            shared.printer.warning(told);
        };
        streams.space(tell).await;
        match reader.next_event().await {
            Some(Event::Data(bytes)) => {
                if let Err(error) = streams.handle_data(Instant::now(), bytes) {
                    return notice::protocol(&error);
                }
            }
            Some(Event::Flag(Flag::ConnectToPortError)) => streams.handle_refusal(),
            Some(Event::Ended(end)) => {
                return match end.why {
                    Some(error) => error.into(),
                    None if end.is_incomplete => incomplete(),
                    None => notice::ended_there(),
                };
            }
            Some(_) => {}
            None => return Error::failed("the session is over"),
        }
    }
}

/// Where one side is so old that the other expects signs of life.
async fn keep_alive(streams: &Streams) -> Error {
    loop {
        match streams.handle_timeout(Instant::now()) {
            Ok(Some(next)) => tokio::time::sleep_until(next.into()).await,
            Ok(None) => return std::future::pending().await,
            Err(error) => return Error::failed(error.to_string()),
        }
    }
}

/// Ends connections that got no answer at all: their programs may try again, and then get another
/// session. What had begun may go on when the SSM Agent is back. Never returns.
async fn give_up_unanswered<O: Opener>(
    writer: &Writer,
    streams: &Streams,
    shared: &Shared<O>,
) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        if writer.unanswered() < UNANSWERED {
            continue;
        }
        let why = notice::no_answer(&shared.destination);
        for peer in streams.give_up_unheard(&why) {
            let told = notice::connection_ended(&peer, &why);
            shared.printer.warning(told);
        }
    }
}

/// Never returns.
async fn tell_of_network<O: Opener>(writer: &Writer, shared: &Shared<O>) -> Error {
    let _turn = shared.teller.acquire().await;
    outage::tell(writer.away(), shared.printer).await;
    std::future::pending().await
}
