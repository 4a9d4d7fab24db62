//! What a person types on a raw terminal, on its way to the target.

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, watch};

use crate::pipe::outage::Away;

use super::escape::{Command, Escapes};
use super::status::Impatience;
use super::terminal::RawMode;

/// Takes out what is meant for this client. The same on every route.
pub(crate) struct Typist<'r> {
    escapes: Escapes,
    impatience: Impatience,
    help: mpsc::Sender<()>,
    raw: Option<&'r RawMode<'r>>,
}

impl<'r> Typist<'r> {
    /// `help` is told of `~?`; `raw` is left while the client is suspended.
    pub(crate) fn new(
        away: watch::Receiver<Away>,
        help: mpsc::Sender<()>,
        raw: Option<&'r RawMode<'r>>,
    ) -> Self {
        Self {
            escapes: Escapes::default(),
            impatience: Impatience::new(away),
            help,
            raw,
        }
    }

    /// What is to be sent of `typed`; `None`: the person leaves.
    pub(crate) fn take(&mut self, typed: &[u8]) -> Option<Bytes> {
        if self.impatience.gives_up(typed) {
            return None;
        }
        let mut kept = BytesMut::with_capacity(typed.len() + 1);
        match self.escapes.feed(typed, &mut kept) {
            Some(Command::Disconnect) => return None,
            Some(Command::Help) => {
                let _shown = self.help.try_send(());
            }
            Some(Command::Suspend) => {
                if let Some(raw) = self.raw {
                    raw.suspend();
                }
            }
            None => {}
        }
        Some(kept.freeze())
    }
}
