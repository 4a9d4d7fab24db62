//! The exit status of a command, where the SSM document carries none.
//!
//! AWS's own documents for commands do not say `separateOutputStream`, and without it the SSM
//! Agent tells no exit code (SSM-PROTOCOL.md section 7). So the command line that we hand in ends
//! with a line of ours, which prints the status between two bytes that no text holds, behind a
//! number that nobody can guess; it is taken out of the output again. A session that ends without
//! it has no status, and none is made up.

use bytes::{BufMut as _, BytesMut};

use super::error::SsmError;

/// ASCII's record separator: before and behind what is ours.
const MARK: u8 = 0x1e;
/// Digits of a status, at most, with the mark behind them.
const DIGITS: usize = 4;

/// Adds the line, for a POSIX shell. In a subshell, so that `exit` leaves it alone; on a line of
/// its own, so that a comment does not swallow it. The terminal, if there is one, gets its `size`
/// (columns, rows) first: the SSM Agent starts a command before it looks at the client's.
pub fn asked(line: &str, size: Option<(u32, u32)>) -> Result<(String, Watch), SsmError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| SsmError::NoRandomness)?;
    let number = hex::encode(random);
    let sized = size.map_or_else(String::new, |(columns, rows)| {
        format!("stty rows {rows} columns {columns} 2>/dev/null\n")
    });
    let asked = format!("{sized}({line}\n)\nprintf '\\036%s %d\\036' {number} $?");
    let mut start = vec![MARK];
    start.extend_from_slice(number.as_bytes());
    start.push(b' ');
    Ok((
        asked,
        Watch {
            start,
            held: BytesMut::new(),
            status: None,
        },
    ))
}

/// Takes our line's output out of the command's.
#[derive(Debug)]
pub struct Watch {
    start: Vec<u8>,
    // Begins with a mark, and may be ours.
    held: BytesMut,
    status: Option<u8>,
}

impl Watch {
    /// Appends to `out` what is the command's of `bytes`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.held.extend_from_slice(bytes);
        loop {
            let at = self.held.iter().position(|byte| *byte == MARK);
            out.unsplit(self.held.split_to(at.unwrap_or(self.held.len())));
            if at.is_none() {
                return;
            }
            match self.look() {
                Look::Short => return,
                Look::Other => out.put(self.held.split_to(1)),
                Look::Ours(length, status) => {
                    self.status = Some(status);
                    let _ours = self.held.split_to(length);
                }
            }
        }
    }

    /// The end: what was held back after all, and the status.
    pub fn finish(self) -> (BytesMut, Option<u8>) {
        (self.held, self.status)
    }

    fn look(&self) -> Look {
        let known = self.held.len().min(self.start.len());
        if self.held[..known] != self.start[..known] {
            return Look::Other;
        }
        let rest = &self.held[known..];
        if known < self.start.len() {
            return Look::Short;
        }
        match rest.iter().position(|byte| *byte == MARK) {
            Some(digits) => std::str::from_utf8(&rest[..digits])
                .ok()
                .and_then(|text| text.parse().ok())
                .map_or(Look::Other, |status| Look::Ours(known + digits + 1, status)),
            None if rest.len() < DIGITS => Look::Short,
            None => Look::Other,
        }
    }
}

enum Look {
    /// It may become ours.
    Short,
    /// It is the command's.
    Other,
    /// So many bytes are ours, and say this.
    Ours(usize, u8),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a shell prints for it, by a real shell.
    fn run(line: &str) -> (Vec<u8>, Watch) {
        let (asked, watch) = asked(line, None).unwrap();
        let output = std::process::Command::new("sh")
            .args(["-c", &asked])
            .output()
            .unwrap();
        (output.stdout, watch)
    }

    fn seen(line: &str, piece: usize) -> (String, Option<u8>) {
        let (printed, mut watch) = run(line);
        let mut out = BytesMut::new();
        for piece in printed.chunks(piece) {
            watch.feed(piece, &mut out);
        }
        let (rest, status) = watch.finish();
        out.extend_from_slice(&rest);
        (String::from_utf8(out.to_vec()).unwrap(), status)
    }

    #[test]
    fn the_status_is_the_commands_and_the_output_too() {
        for piece in [1, 2, 7, 1000] {
            let seen = |line| seen(line, piece);
            assert_eq!(seen("echo out; exit 5"), ("out\n".to_owned(), Some(5)));
            assert_eq!(seen("printf out # comment"), ("out".to_owned(), Some(0)));
            assert_eq!(seen("kill -TERM $$").1, None, "killed with its shell");
            assert_eq!(
                seen("printf 'a\\036b\\036 5\\036'"),
                ("a\u{1e}b\u{1e} 5\u{1e}".to_owned(), Some(0))
            );
            assert_eq!(
                seen("sh -c 'kill -KILL $$'"),
                (String::new(), Some(137)),
                "128 and the signal"
            );
        }
    }

    #[test]
    fn what_only_looks_like_it_is_the_commands() {
        let (_, mut watch) = asked("true", None).unwrap();
        let start = watch.start.clone();
        let mut out = BytesMut::new();
        for wrong in [&b"1234\x1e"[..], b"x\x1e", b"\x1e", b"-1\x1e", b"256\x1e"] {
            watch.feed(&[&start, wrong].concat(), &mut out);
        }
        let (rest, status) = watch.finish();
        out.extend_from_slice(&rest);
        assert_eq!(status, None);
        assert_eq!(out.len(), 5 * start.len() + 5 + 2 + 1 + 3 + 4);
    }
}
