//! The receiving half: puts messages in order, once each.

use std::collections::BTreeMap;

use super::Limits;
use crate::ssm::message::Message;

/// What to do about a numbered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// It is the expected one. Process it, acknowledge it when its consumer took it, then drain
    /// [`ReceiveQueue::take_next`].
    Next(Message),
    /// It is kept for later: acknowledge it now.
    Kept,
    /// It was here before: acknowledge it again, if it was acknowledged.
    Repeated,
    /// There is no room: forget it. The peer sends it again, as nobody acknowledged it.
    Refused,
}

/// Messages of one direction on their way in.
#[derive(Debug)]
pub struct ReceiveQueue {
    limits: Limits,
    expected: u64,
    // Above `expected`, acknowledged, so never to be dropped. Its bytes stay below `held_bytes`.
    held: BTreeMap<u64, Message>,
    held_bytes: usize,
}

impl ReceiveQueue {
    /// Nothing arrived yet: 0 is expected.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            expected: 0,
            held: BTreeMap::new(),
            held_bytes: 0,
        }
    }

    /// The number that is expected next.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Whether later messages are here but an earlier one is missing.
    pub fn has_gap(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes a message. `has_room` says whether the expected one could be processed.
    pub fn handle(&mut self, message: Message, has_room: bool) -> Arrival {
        let number = message.sequence;
        if number < self.expected || self.held.contains_key(&number) {
            return Arrival::Repeated;
        }
        if number == self.expected {
            if !has_room {
                return Arrival::Refused;
            }
            self.expected += 1;
            return Arrival::Next(message);
        }
        let bytes = self.held_bytes + message.payload.len() + size_of::<Message>();
        if number - self.expected > self.limits.held_messages || bytes > self.limits.held_bytes {
            return Arrival::Refused;
        }
        self.held_bytes = bytes;
        self.held.insert(number, message);
        Arrival::Kept
    }

    /// The next message in order that was kept.
    pub fn take_next(&mut self) -> Option<Message> {
        let message = self.held.remove(&self.expected)?;
        self.held_bytes -= message.payload.len() + size_of::<Message>();
        self.expected += 1;
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ssm::message::{MessageId, MessageKind};
    use crate::ssm::payload::PayloadKind;

    fn message(sequence: u64) -> Message {
        Message::numbered(
            MessageKind::OutputStreamData,
            sequence,
            MessageId([0; 16]),
            1,
            PayloadKind::Output,
            Bytes::from_static(&[0; 1000]),
        )
    }

    fn queue(held_bytes: usize) -> ReceiveQueue {
        ReceiveQueue::new(Limits {
            held_bytes,
            held_messages: 5,
            ..Limits::default()
        })
    }

    #[test]
    fn messages_leave_in_order_and_once() {
        let mut queue = queue(1 << 20);
        assert_eq!(queue.handle(message(2), true), Arrival::Kept);
        assert_eq!(queue.handle(message(1), true), Arrival::Kept);
        assert_eq!(queue.handle(message(1), true), Arrival::Repeated);
        assert!(queue.has_gap());
        assert_eq!(queue.take_next(), None);
        assert_eq!(queue.handle(message(0), true), Arrival::Next(message(0)));
        assert_eq!(queue.take_next(), Some(message(1)));
        assert_eq!(queue.take_next(), Some(message(2)));
        assert_eq!(queue.take_next(), None);
        assert_eq!(queue.handle(message(2), true), Arrival::Repeated);
        assert_eq!((queue.expected(), queue.has_gap()), (3, false));
        assert_eq!(queue.held_bytes, 0);
    }

    #[test]
    fn what_is_too_far_ahead_or_too_much_is_refused() {
        let mut queue = queue(3500);
        assert_eq!(queue.handle(message(6), true), Arrival::Refused);
        assert_eq!(queue.handle(message(u64::MAX), true), Arrival::Refused);
        assert_eq!(queue.handle(message(5), true), Arrival::Kept);
        assert_eq!(queue.handle(message(4), true), Arrival::Kept);
        assert_eq!(queue.handle(message(3), true), Arrival::Kept);
        assert_eq!(queue.handle(message(2), true), Arrival::Refused);
    }

    #[test]
    fn the_expected_one_waits_for_room() {
        let mut queue = queue(3500);
        assert_eq!(queue.handle(message(0), false), Arrival::Refused);
        assert_eq!(queue.expected(), 0);
        assert_eq!(queue.handle(message(0), true), Arrival::Next(message(0)));
    }
}
