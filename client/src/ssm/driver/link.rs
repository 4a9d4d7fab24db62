//! The connection of the moment, or the search for the next one.

use std::task::{Context, Poll, ready};
use std::time::Instant;

use postern_proto::ssm::channel::DataChannel;

use crate::ssm::error::SsmError;
use crate::ssm::socket::Socket;
use crate::ssm::way_back::{Back, Search};

/// Messages taken from the socket before anything else has its turn.
const BATCH: usize = 64;

/// What carries the messages.
pub(super) enum Link {
    Up(Box<Socket>),
    Seeking(Search),
    /// Nothing more will come.
    Down,
}

/// What a link did.
pub(super) enum Turn {
    Worked,
    /// The other side said something.
    Heard,
    Lost(String),
    Back(Result<Back, SsmError>),
}

impl Link {
    /// Sends and receives, or seeks. Whoever drops this lost nothing.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, channel: &mut DataChannel) -> Poll<Turn> {
        match self {
            Self::Down => Poll::Pending,
            Self::Seeking(search) => {
                let back = ready!(search.found.as_mut().poll(cx));
                Poll::Ready(Turn::Back(back))
            }
            Self::Up(socket) => pump(socket, channel, cx).unwrap_or_else(|why| {
                // What arrived before stays in the channel.
                Poll::Ready(Turn::Lost(why))
            }),
        }
    }
}

fn pump(
    socket: &mut Socket,
    channel: &mut DataChannel,
    cx: &mut Context<'_>,
) -> Result<Poll<Turn>, String> {
    let now = Instant::now();
    socket.poll_send(cx, || channel.poll_transmit(now))?;
    let mut taken = 0;
    while taken < BATCH && channel.wants_message() {
        let Poll::Ready(frame) = socket.poll_receive(cx) else {
            break;
        };
        if let Err(dropped) = channel.handle_message(Instant::now(), &frame?) {
            tracing::debug!(%dropped, "a message");
        }
        taken += 1;
    }
    let beat = socket.poll_heartbeat(cx, channel.wants_message())?;
    Ok(match (taken, beat) {
        (1.., _) => Poll::Ready(Turn::Heard),
        (0, true) => Poll::Ready(Turn::Worked),
        (0, false) => Poll::Pending,
    })
}
