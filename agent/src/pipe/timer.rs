//! One timer per pipe that is armed rarely: moving a deadline back costs nothing.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

/// Wakes its task at or before the deadline it was last asked for.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

impl Timer {
    /// Ready once `deadline` has passed. A later deadline than the armed one is checked when the
    /// earlier one fires, so that bulk transfer does not touch the runtime's timer wheel.
    pub(crate) fn poll(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        loop {
            if self.armed.is_none_or(|armed| armed > deadline) {
                self.armed = Some(deadline);
                match &mut self.sleep {
                    Some(sleep) => sleep.as_mut().reset(deadline),
                    empty => *empty = Some(Box::pin(tokio::time::sleep_until(deadline))),
                }
            }
            let Some(sleep) = &mut self.sleep else {
                return Poll::Pending;
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let fired = self.armed.take();
            if fired.is_some_and(|fired| fired >= deadline) {
                return Poll::Ready(());
            }
        }
    }
}
