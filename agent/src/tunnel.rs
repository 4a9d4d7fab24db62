//! Relays a tunnel: the target's socket and the pipe, its bytes counted in a recording.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::end::End;
use crate::evidence::{Entry, Recording};
use crate::pipe::{Counts, Driver, Finish, Relay, Timer};
use crate::session::{Change, Ending, Lifeline, Session};
use crate::tls::Connection;

/// How often moved bytes are written down.
const COUNT_EVERY: Duration = Duration::from_secs(1);

enum Step {
    Finished(Finish),
    Count,
}

/// Relays until the tunnel ends or must end, over as many connections as it takes. The session's
/// grant and the recording are the caller's proof that it may.
pub(crate) async fn run<T>(
    driver: Driver<Connection>,
    target: T,
    session: &Session,
    recording: &Recording,
    lifeline: &mut Lifeline,
) -> (Driver<Connection>, End)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut relay = Relay::tunnel(driver, target);
    let mut ending = session.ending();
    let mut counted = Counts::default();
    let mut timer = Timer::default();
    let mut count_at = Instant::now() + COUNT_EVERY;
    let end = loop {
        let step = poll_fn(|cx| {
            if let Poll::Ready(finish) = relay.poll(cx) {
                return Poll::Ready(Step::Finished(finish));
            }
            // An idle tunnel has no deadline of its own.
            let due = (relay.counts() != counted).then_some(count_at);
            timer.poll(due, cx).map(|()| Step::Count)
        });
        let step = tokio::select! {
            biased;
            end = ordered(&mut ending) => break end,
            change = lifeline.change() => match change {
                Change::Over => break lifeline.expired(),
                Change::Takeover(takeover) => {
                    match lifeline.attach(relay.driver(), *takeover).await {
                        Ok(()) => continue,
                        Err(violation) => break End::Pipe(violation.into()),
                    }
                }
            },
            step = step => step,
        };
        count(session, recording, &mut counted, relay.counts()).await;
        count_at = Instant::now() + COUNT_EVERY;
        if let Step::Finished(finish) = step
            && let Some(end) = lifeline.outlive(relay.driver(), finish).await
        {
            break end;
        }
    };
    count(session, recording, &mut counted, relay.counts()).await;
    (relay.into_driver(), end)
}

/// Writes down what moved since the last time. A failure orders the session's end.
async fn count(session: &Session, recording: &Recording, counted: &mut Counts, now: Counts) {
    let (up, down) = (now.up - counted.up, now.down - counted.down);
    if (up, down) == (0, 0) {
        return;
    }
    *counted = now;
    session.add_bytes(up, down);
    let write = recording.write(Entry::Flow { up, down });
    match tokio::time::timeout(COUNT_EVERY, write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => session.end_for(&error),
        Err(_) => session.end_for(&crate::evidence::EvidenceError::Failed(
            "a write took longer than a second".into(),
        )),
    }
}

/// Waits for the order to end.
pub(crate) async fn ordered(ending: &mut watch::Receiver<Option<Ending>>) -> End {
    let order = ending.wait_for(Option::is_some).await;
    order.ok().and_then(|order| order.clone()).map_or_else(
        || End::Internal("the session is gone".to_owned()),
        End::Ordered,
    )
}
