//! What a terminal has begun to read and not ended, when something else is to be written in
//! between: a network is lost anywhere, also within an escape sequence.

/// Longer sequences (pictures, and the like of them) are not noticed.
const LONGEST: usize = 256;
/// Ends what was begun without doing it (ECMA-48 CAN).
const CANCEL: &str = "\x18";
const ESCAPE: u8 = 0x1b;

/// The end of the output so far.
#[derive(Debug, Default)]
pub(crate) struct Unfinished(Vec<u8>);

impl Unfinished {
    /// The terminal was given this.
    pub(crate) fn feed(&mut self, output: &[u8]) {
        let new = output.get(output.len().saturating_sub(LONGEST)..);
        let new = new.unwrap_or_default();
        let keep = LONGEST - new.len();
        let old = self.0.len().saturating_sub(keep);
        self.0.drain(..old);
        self.0.extend_from_slice(new);
    }

    /// `line`, such that what was begun before it is begun again behind it. `None` where that
    /// cannot be: within a character, or a sequence that is too long.
    pub(crate) fn around(&self, line: &str) -> Option<Vec<u8>> {
        let begun = self.begun()?;
        let cancel = if begun.is_empty() { "" } else { CANCEL };
        Some([cancel.as_bytes(), line.as_bytes(), begun].concat())
    }

    /// The beginning of a sequence that has no end yet.
    fn begun(&self) -> Option<&[u8]> {
        let tail = &self.0;
        if is_within_character(tail) {
            return None;
        }
        let Some(at) = tail.iter().rposition(|byte| *byte == ESCAPE) else {
            return Some(&[]);
        };
        let last = tail.get(at..)?;
        let is_open = match last {
            [_] => true,
            // CSI: parameters and intermediates, then a final byte.
            [_, b'[', rest @ ..] => rest.iter().all(|byte| (0x20..0x40).contains(byte)),
            // OSC, DCS, SOS, PM and APC: up to BEL, or to the next escape, which is no part of it.
            [_, b']' | b'P' | b'X' | b'^' | b'_', rest @ ..] => {
                !rest.iter().any(|byte| matches!(byte, 0x07 | 0x18 | 0x1a))
            }
            // Intermediates, then a final byte.
            [_, rest @ ..] => rest.iter().all(|byte| (0x20..0x30).contains(byte)),
            [] => false,
        };
        Some(if is_open { last } else { &[] })
    }
}

/// Whether UTF-8 stops within a character.
fn is_within_character(tail: &[u8]) -> bool {
    let end = tail.get(tail.len().saturating_sub(3)..).unwrap_or_default();
    (0..end.len()).any(|from| {
        let rest = end.get(from..).unwrap_or_default();
        std::str::from_utf8(rest)
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around(output: &[&str]) -> Option<String> {
        let mut unfinished = Unfinished::default();
        for part in output {
            unfinished.feed(part.as_bytes());
        }
        let line = unfinished.around("|")?;
        Some(String::from_utf8(line).unwrap())
    }

    #[test]
    fn between_sequences_nothing_is_added() {
        let ended = [
            "",
            "text\r\n",
            "\x1b[31mred",
            "\x1b[0m",
            "\x1b]0;title\x07",
            "\x1b]0;title\x1b\\",
            "\x1bPq#0\x1b\\",
            "\x1b(B",
            "\x1b7",
            "ä",
            "日本",
        ];
        for output in ended {
            assert_eq!(around(&[output]).as_deref(), Some("|"), "{output:?}");
        }
    }

    #[test]
    fn a_sequence_that_was_begun_is_begun_again() {
        for begun in [
            "\x1b",
            "\x1b[",
            "\x1b[38;5;",
            "\x1b]8;;https://example.com",
            "\x1bP1$",
            "\x1b(",
        ] {
            let expected = format!("\x18|{begun}");
            assert_eq!(around(&["text\x1b[0m", begun]), Some(expected), "{begun:?}");
        }
        assert_eq!(
            around(&["a\x1b", "[3", "1"]).as_deref(),
            Some("\x18|\x1b[31")
        );
    }

    #[test]
    fn within_a_character_nothing_is_written() {
        let mut unfinished = Unfinished::default();
        for byte in "│".bytes().take(2) {
            unfinished.feed(&[byte]);
            assert_eq!(unfinished.around("|"), None);
        }
        unfinished.feed(&"│".as_bytes()[2..]);
        assert!(unfinished.around("|").is_some());
    }

    #[test]
    fn little_is_kept_of_much() {
        let mut unfinished = Unfinished::default();
        for _ in 0..100 {
            unfinished.feed(&[b'x'; 10_000]);
            unfinished.feed(b"y");
        }
        assert_eq!(unfinished.0.len(), LONGEST);
        assert_eq!(unfinished.0.last(), Some(&b'y'));
    }
}
