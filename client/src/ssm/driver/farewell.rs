//! How a session ends, here and at AWS.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_proto::ssm::channel::Event as ChannelEvent;
use tokio::time::{sleep_until, timeout};

use super::link::{Link, Turn};
use super::{Driver, Outcome, for_reader};
use crate::ssm::error::SsmError;
use crate::ssm::session::{End, Event};

/// For AWS to end the session; shorter when the network is known to be lost.
const FAREWELL: Duration = Duration::from_secs(10);
const LOST_FAREWELL: Duration = Duration::from_secs(4);

impl Driver {
    pub(super) async fn finish(mut self, outcome: Outcome) {
        let (end, at_aws) = match outcome {
            Outcome::Stopped => (End::default(), false),
            Outcome::Over { end, at_aws } => (end, at_aws),
        };
        let told = if at_aws {
            Ok(())
        } else {
            self.say_goodbye().await
        };
        if let Link::Up(socket) = std::mem::replace(&mut self.link, Link::Down) {
            socket.close().await;
        }
        if let Some(handle) = self.opened.take() {
            let why = end.why.clone().unwrap_or(SsmError::Over);
            let _gone = handle.send(Err(why));
        }
        self.ended.send_replace(Some(told));
        // The reader takes what is left in its own time, unless it is told that we stop.
        let left = async {
            while let Some(event) = self.channel.poll_event() {
                if let Some(event) = for_reader(event) {
                    self.events.send(event).await?;
                }
            }
            self.events.send(Event::Ended(end)).await
        };
        tokio::select! {
            biased;
            _gone = left => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Has AWS end the session. The flag is quicker, where the SSM Agent understands it.
    async fn say_goodbye(&mut self) -> Result<(), SsmError> {
        let limit = match self.link {
            Link::Up(_) => FAREWELL,
            Link::Seeking(_) | Link::Down => LOST_FAREWELL,
        };
        if self.is_port && self.channel.is_open() {
            self.channel.terminate(Instant::now());
        }
        let ssm = Arc::clone(&self.ssm);
        let id = self.id.clone();
        let mut call = pin!(timeout(limit, ssm.terminate(&id)));
        let mut is_over = false;
        loop {
            let due = self.due();
            let Self { channel, link, .. } = self;
            let turn = tokio::select! {
                told = &mut call => {
                    return match told {
                        _ if is_over => Ok(()),
                        Ok(told) => told,
                        Err(_) => Err(SsmError::NotEnded { session: id.clone() }),
                    };
                }
                turn = poll_fn(|cx| link.poll(cx, channel)), if !is_over => turn,
                () = sleep_until(due.into()) => Turn::Worked,
            };
            match turn {
                Turn::Worked | Turn::Heard => channel.handle_timeout(Instant::now()),
                Turn::Lost(_) | Turn::Back(_) => *link = Link::Down,
            }
            while let Some(event) = channel.poll_event() {
                is_over |= matches!(event, ChannelEvent::Closed(_));
            }
        }
    }
}
