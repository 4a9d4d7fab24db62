//! The sending half: keeps encoded messages until they are acknowledged, and says which to send.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use thiserror::Error;

use super::Limits;
use crate::ssm::rtt::Rtt;

/// A message is lost when so many that were sent later have been acknowledged: fewer would take
/// reordering for loss (RFC 9002 section 6.1.1 reasons the same).
const REORDER_LIMIT: u64 = 3;

/// An acknowledgement of a message that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("message {acknowledged} acknowledged, {sent} were sent")]
pub struct AckError {
    /// The number in the acknowledgement.
    pub acknowledged: u64,
    /// How many messages were sent.
    pub sent: u64,
}

/// Messages of one direction on their way out.
#[derive(Debug)]
pub struct SendQueue {
    limits: Limits,
    window: usize,
    // `messages` are those from number `base` on. The first is unacknowledged; the last `unsent`
    // were never sent. `bytes` counts all of them, so that the peer never has to hold more than
    // the window behind a missing message.
    base: u64,
    messages: VecDeque<Sent>,
    unsent: usize,
    bytes: usize,
    // Numbers to send again. Each is unacknowledged and was sent.
    lost: BTreeSet<u64>,
    // Transmissions (counted from 1) in order, with the number that each carried; what was sent
    // again since or acknowledged is stale and skipped.
    order: VecDeque<(u64, u64)>,
    transmissions: u64,
    newest_acknowledged: u64,
    rtt: Rtt,
    // When anything was acknowledged last: while that goes on, nothing is overdue.
    progress: Option<Instant>,
    // Resends of the first message since the last acknowledgement of any.
    probes: u32,
    // A message whose first resends come sooner than the round trip says.
    hurried: Option<(u64, Duration)>,
    paused: bool,
}

#[derive(Debug)]
struct Sent {
    // `None` once acknowledged.
    frame: Option<Bytes>,
    length: usize,
    sent: Option<Instant>,
    // 0: never.
    transmission: u64,
    previous: u64,
}

impl SendQueue {
    /// An empty queue; the first message is number 0.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            window: limits.least_window.min(limits.greatest_window),
            base: 0,
            messages: VecDeque::new(),
            unsent: 0,
            bytes: 0,
            lost: BTreeSet::new(),
            order: VecDeque::new(),
            transmissions: 0,
            newest_acknowledged: 0,
            rtt: Rtt::default(),
            progress: None,
            probes: 0,
            hurried: None,
            paused: false,
        }
    }

    /// The number of the next message.
    pub fn next_number(&self) -> u64 {
        self.base + self.messages.len() as u64
    }

    /// How many bytes of messages may be queued now.
    pub fn room(&self) -> usize {
        if self.messages.len() >= self.limits.messages {
            return 0;
        }
        self.window.saturating_sub(self.bytes)
    }

    /// Whether everything was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Bytes that may be in flight at present.
    pub fn window(&self) -> usize {
        self.window
    }

    /// The estimate of the round trip.
    pub fn rtt(&self) -> Rtt {
        self.rtt
    }

    /// Queues the encoded message [`Self::next_number`]. Callers ask [`Self::room`] first: data
    /// above it may be refused by the owner, handshakes and flags are few.
    pub fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.unsent += 1;
        self.messages.push_back(Sent {
            length: frame.len(),
            frame: Some(frame),
            sent: None,
            transmission: 0,
            previous: 0,
        });
    }

    /// Puts another encoding of the same content in the place of message `number`, if it is still
    /// unacknowledged. Says whether it was.
    pub fn replace(&mut self, number: u64, frame: Bytes) -> bool {
        let Some(message) = place(self.base, number).and_then(|at| self.messages.get_mut(at))
        else {
            return false;
        };
        let Some(old) = &mut message.frame else {
            return false;
        };
        self.bytes = self.bytes - message.length + frame.len();
        message.length = frame.len();
        *old = frame;
        true
    }

    /// Resends message `number` after `delay`, doubled each time, instead of waiting for what the
    /// round trip says, until anything is acknowledged.
    pub fn hurry(&mut self, number: u64, delay: Duration) {
        self.hurried = Some((number, delay));
    }

    /// While paused, the peer is said to be away: nothing goes out but the first message, again
    /// and again.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Takes an acknowledgement. Answers how many bytes it settled: 0 for a repeated one.
    pub fn acknowledge(&mut self, number: u64, now: Instant) -> Result<usize, AckError> {
        let sent = self.next_number() - self.unsent as u64;
        if number >= sent {
            let acknowledged = number;
            return Err(AckError { acknowledged, sent });
        }
        let Some(message) = place(self.base, number).and_then(|at| self.messages.get_mut(at))
        else {
            return Ok(0);
        };
        let Some(frame) = message.frame.take() else {
            return Ok(0);
        };
        let age = message
            .sent
            .map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent));
        let mut transmission = message.transmission;
        if message.previous == 0 {
            self.rtt.sample(age);
        } else if age < self.rtt.round_trip() * 3 / 4 {
            // Sooner than an answer to the last copy can be here: it answers an earlier one.
            transmission = message.previous;
        }
        self.newest_acknowledged = self.newest_acknowledged.max(transmission);
        self.progress = Some(now);
        self.probes = 0;
        self.hurried = None;
        self.lost.remove(&number);
        self.window = (self.window + frame.len()).min(self.limits.greatest_window);
        self.forget_settled();
        self.find_lost();
        Ok(frame.len())
    }

    /// The next message to send now, new or again.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        let first = self.messages.front()?;
        let due = match first.sent {
            None => true,
            Some(_) => self.deadline().is_some_and(|deadline| deadline <= now),
        };
        if due {
            if first.sent.is_some() {
                self.probes = self.probes.saturating_add(1);
            }
            return self.transmit(self.base, now);
        }
        if self.paused {
            return None;
        }
        if let Some(number) = self.lost.first().copied() {
            return self.transmit(number, now);
        }
        let number = self.next_number() - self.unsent as u64;
        self.transmit(number, now)
    }

    /// When [`Self::poll_transmit`] has something again though nothing happened.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline()
    }

    /// How often the first message went out again without an answer.
    pub fn probes(&self) -> u32 {
        self.probes
    }

    /// A connection was lost: whatever was in flight may have been the reason.
    pub fn handle_disconnected(&mut self) {
        if !self.is_empty() {
            self.window = (self.window / 2).max(self.limits.least_window);
        }
    }

    /// Sends everything unacknowledged again that was sent longer than a round trip ago.
    pub fn resend(&mut self, now: Instant) {
        self.probes = 0;
        let patience = self.rtt.round_trip();
        for (message, number) in self.messages.iter().zip(self.base..) {
            let old = message
                .sent
                .is_some_and(|sent| now.saturating_duration_since(sent) >= patience);
            if old && message.frame.is_some() {
                self.lost.insert(number);
            }
        }
    }

    /// Sends everything unacknowledged again: it was sent on another connection.
    pub fn resend_all(&mut self) {
        self.probes = 0;
        self.order.clear();
        for (message, number) in self.messages.iter().zip(self.base..) {
            if message.sent.is_some() && message.frame.is_some() {
                self.lost.insert(number);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let sent = self.messages.front()?.sent?;
        let delay = match self.hurried {
            Some((number, delay)) if number == self.base => {
                (delay * (1 << self.probes.min(8))).min(self.rtt.delay(0))
            }
            _ => self.rtt.delay(self.probes),
        };
        Some(self.progress.map_or(sent, |progress| progress.max(sent)) + delay)
    }

    fn transmit(&mut self, number: u64, now: Instant) -> Option<Bytes> {
        let message = place(self.base, number).and_then(|at| self.messages.get_mut(at))?;
        let frame = message.frame.clone()?;
        if message.sent.is_none() {
            self.unsent -= 1;
        }
        self.transmissions += 1;
        message.previous = message.transmission;
        message.transmission = self.transmissions;
        message.sent = Some(now);
        self.order.push_back((self.transmissions, number));
        self.lost.remove(&number);
        // Without acknowledgements stale entries stay: a peer that only makes us resend must not
        // make us remember it.
        if self.order.len() > 2 * self.limits.messages {
            let (base, messages) = (self.base, &self.messages);
            self.order.retain(|&entry| is_live(base, messages, entry));
        }
        Some(frame)
    }

    fn forget_settled(&mut self) {
        while self
            .messages
            .front()
            .is_some_and(|message| message.frame.is_none())
        {
            self.bytes -= self
                .messages
                .pop_front()
                .map_or(0, |message| message.length);
            self.base += 1;
        }
    }

    fn find_lost(&mut self) {
        while let Some(&(transmission, number)) = self.order.front() {
            let live = is_live(self.base, &self.messages, (transmission, number));
            if live && transmission + REORDER_LIMIT > self.newest_acknowledged {
                break;
            }
            if live {
                self.lost.insert(number);
            }
            self.order.pop_front();
        }
    }
}

/// Whether this was the last transmission of a message that is still unacknowledged.
fn is_live(base: u64, messages: &VecDeque<Sent>, (transmission, number): (u64, u64)) -> bool {
    place(base, number)
        .and_then(|at| messages.get(at))
        .is_some_and(|message| message.frame.is_some() && message.transmission == transmission)
}

fn place(base: u64, number: u64) -> Option<usize> {
    usize::try_from(number.checked_sub(base)?).ok()
}

#[cfg(test)]
mod tests;
