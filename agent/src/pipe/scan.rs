//! Finds SSH at the start of a stream: a tunnel must not carry what `connect` would record. That
//! stops mistakes, not an insider who wraps it.

/// RFC 4253 section 4.2: the identification starts with this, at the start of a line; a server may
/// send other lines first.
const MARK: &[u8] = b"SSH-";
/// How far into a stream that is looked for.
const WINDOW: usize = 4096;

/// One direction of a tunnel.
#[derive(Debug)]
pub(super) struct SshScan {
    /// Bytes still to look at.
    left: usize,
    /// How much of [`MARK`] the current line began with; `None` when it began with something else.
    matched: Option<usize>,
}

impl Default for SshScan {
    fn default() -> Self {
        Self {
            left: WINDOW,
            matched: Some(0),
        }
    }
}

impl SshScan {
    /// Whether a line within the window starts with `SSH-`. Fed with all bytes in order.
    pub(super) fn finds(&mut self, bytes: &[u8]) -> bool {
        let looked = bytes.len().min(self.left);
        self.left -= looked;
        for &byte in bytes.iter().take(looked) {
            self.matched = match self.matched {
                _ if byte == b'\n' => Some(0),
                Some(matched) if MARK.get(matched) == Some(&byte) => Some(matched + 1),
                _ => None,
            };
            if self.matched == Some(MARK.len()) {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(parts: &[&[u8]]) -> bool {
        let mut scan = SshScan::default();
        parts.iter().any(|part| scan.finds(part))
    }

    #[test]
    fn ssh_is_found_at_a_line_start_however_it_is_cut() {
        let stream = b"welcome\r\nSSH-2.0-OpenSSH_9.9\r\n";
        for cut in 0..stream.len() {
            let (a, b) = stream.split_at(cut);
            assert!(found(&[a, b]), "cut at {cut}");
        }
        assert!(found(&[b"SSH-2.0-x"]));
    }

    #[test]
    fn what_only_mentions_ssh_passes() {
        assert!(!found(&[b"GET /SSH-2.0 HTTP/1.1\r\n", b"X: SSH-\r\n"]));
        assert!(!found(&[&[b'x'; WINDOW], b"\nSSH-2.0"]));
    }
}
