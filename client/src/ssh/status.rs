//! The line that tells of a lost network, on a terminal that belongs to a program on the target:
//! the last one, with the cursor put back where it was.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::unfinished::Unfinished;
use crate::pipe::outage::{Away, Lost};

/// What a person need not know.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// How often the seconds are counted.
const TICK: Duration = Duration::from_secs(1);
/// Ctrl-C on a raw terminal.
const INTERRUPT: u8 = 3;

/// What to write on the terminal, and when.
pub(crate) struct StatusLine {
    away: watch::Receiver<Away>,
    output: Unfinished,
    shown: bool,
    gone: bool,
}

impl StatusLine {
    pub(crate) fn new(away: watch::Receiver<Away>) -> Self {
        Self {
            away,
            output: Unfinished::default(),
            shown: false,
            gone: false,
        }
    }

    /// The terminal was given this, which may have stopped anywhere.
    pub(crate) fn saw(&mut self, output: &[u8]) {
        self.output.feed(output);
    }

    /// Waits until the line is to be written, again or away. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Vec<u8> {
        loop {
            let Away { since, lost, .. } = self.away.borrow_and_update().clone();
            match since {
                None if self.shown => {
                    if let Some(text) = self.output.around(&clear()) {
                        self.shown = false;
                        return text;
                    }
                }
                Some(since) if since.elapsed() >= WORTH_TELLING && !self.gone => {
                    self.gone = true;
                    if let Some(text) = self.output.around(&line(lost, since)) {
                        self.shown = true;
                        return text;
                    }
                }
                _ => {}
            }
            let changed = self.away.changed();
            let ended = match since {
                None if !self.shown => changed.await.is_err(),
                _ => match tokio::time::timeout(TICK, changed).await {
                    Ok(changed) => changed.is_err(),
                    Err(_) => false,
                },
            };
            if ended {
                return std::future::pending().await;
            }
            self.gone = false;
        }
    }
}

fn line(lost: Lost, since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    let what = match lost {
        Lost::Network => "network lost",
        Lost::Target => "target away",
    };
    format!(
        "\x1b7\x1b[999;1H\x1b[7m {what}, {seconds} s; Ctrl-C twice to give up \x1b[0m\x1b[K\x1b8"
    )
}

fn clear() -> String {
    "\x1b7\x1b[999;1H\x1b[2K\x1b8".to_owned()
}

/// Counts Ctrl-C while the network is lost.
pub(crate) struct Impatience {
    away: watch::Receiver<Away>,
    since: Option<Instant>,
    count: usize,
}

impl Impatience {
    pub(crate) fn new(away: watch::Receiver<Away>) -> Self {
        Self {
            away,
            since: None,
            count: 0,
        }
    }

    /// Whether the person gives up with what was typed now: the second Ctrl-C in one outage.
    pub(crate) fn gives_up(&mut self, typed: &[u8]) -> bool {
        let since = self.away.borrow().since;
        if since != self.since {
            (self.since, self.count) = (since, 0);
        }
        if since.is_some() {
            self.count += typed.iter().filter(|byte| **byte == INTERRUPT).count();
        }
        self.count >= 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::outage::Outages;

    #[tokio::test]
    async fn the_line_counts_while_the_network_is_lost_and_goes_with_it() {
        let outages = Outages::new();
        let mut status = StatusLine::new(outages.watch());
        let long_ago = Instant::now().checked_sub(Duration::from_secs(12)).unwrap();
        let outage = outages.begin(Lost::Network, long_ago);
        let mut told = async || String::from_utf8(status.next().await).unwrap();
        let first = told().await;
        assert!(
            first.contains("network lost, 12 s; Ctrl-C twice to give up"),
            "{first}"
        );
        assert!(told().await.contains("network lost"));
        drop(outage);
        assert_eq!(told().await, clear());
        assert!(futures_util::poll!(std::pin::pin!(status.next())).is_pending());
    }

    #[tokio::test]
    async fn a_program_that_was_cut_within_a_sequence_is_not_disturbed() {
        let outages = Outages::new();
        let mut status = StatusLine::new(outages.watch());
        status.saw(b"text \x1b[3");
        let long_ago = Instant::now().checked_sub(Duration::from_secs(12)).unwrap();
        let outage = outages.begin(Lost::Network, long_ago);
        let told = status.next().await;
        assert!(told.ends_with(b"\x1b8\x1b[3"), "{told:?}");
        drop(outage);
        status.saw(b"1mred");
        assert_eq!(status.next().await, clear().as_bytes());
    }

    #[tokio::test]
    async fn a_target_that_is_away_is_not_called_a_network() {
        let outages = Outages::new();
        let mut status = StatusLine::new(outages.watch());
        let long_ago = Instant::now().checked_sub(Duration::from_secs(75)).unwrap();
        let _outage = outages.begin(Lost::Target, long_ago);
        let told = String::from_utf8(status.next().await).unwrap();
        let expected = "target away, 75 s; Ctrl-C twice to give up";
        assert!(told.contains(expected), "{told}");
    }

    #[test]
    fn only_two_interrupts_in_one_outage_give_up() {
        let outages = Outages::new();
        let mut person = Impatience::new(outages.watch());
        assert!(!person.gives_up(b"\x03\x03\x03"), "they are the target's");
        let now = Instant::now();
        let outage = outages.begin(Lost::Network, now);
        assert!(!person.gives_up(b"ls\x03"));
        drop(outage);
        assert!(!person.gives_up(b"\x03"));
        let _outage = outages.begin(Lost::Network, now + Duration::from_secs(1));
        assert!(!person.gives_up(b"\x03"));
        assert!(person.gives_up(b"\x03"));
    }
}
