//! `~.` and its like, as `ssh` has them: recognised at the start of a line, on a terminal alone.

use bytes::{BufMut as _, BytesMut};

/// What the person asks of the client itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `~.`: end the session.
    Disconnect,
    /// `~?`: which escapes there are.
    Help,
    /// `~^Z`: stop this process, as Ctrl-Z does elsewhere.
    Suspend,
}

/// What `~?` prints; the terminal is raw.
pub const HELP: &[u8] =
    b"\r\n~.   end the session\r\n~^Z  suspend the client\r\n~~   send one ~\r\n~?   this help\r\n";

/// Ctrl-Z on a raw terminal.
const SUSPEND: u8 = 0x1a;

/// Takes escapes out of typed bytes.
#[derive(Debug)]
pub struct Escapes {
    state: State,
}

#[derive(Debug, PartialEq)]
enum State {
    LineStart,
    Tilde,
    Within,
}

impl Default for Escapes {
    fn default() -> Self {
        Self {
            state: State::LineStart,
        }
    }
}

impl Escapes {
    /// Appends to `out` what is to be sent of `typed`, and returns the first command in it; bytes
    /// after `~.` are dropped, those after the others are kept.
    pub fn feed(&mut self, typed: &[u8], out: &mut BytesMut) -> Option<Command> {
        let mut command = None;
        for &byte in typed {
            match (&self.state, byte) {
                (State::LineStart, b'~') => {
                    self.state = State::Tilde;
                    continue;
                }
                (State::Tilde, b'.') => return Some(Command::Disconnect),
                (State::Tilde, b'?' | SUSPEND) => {
                    command = Some(match byte {
                        SUSPEND => Command::Suspend,
                        _ => Command::Help,
                    });
                    self.state = State::LineStart;
                    continue;
                }
                (State::Tilde, b'~') => {}
                (State::Tilde, _) => out.put_u8(b'~'),
                _ => {}
            }
            out.put_u8(byte);
            self.state = match byte {
                b'\r' | b'\n' => State::LineStart,
                _ => State::Within,
            };
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parts: &[&str]) -> (String, Option<Command>) {
        let (mut escapes, mut out) = (Escapes::default(), BytesMut::new());
        let command = parts
            .iter()
            .filter_map(|part| escapes.feed(part.as_bytes(), &mut out))
            .next();
        (String::from_utf8(out.to_vec()).unwrap(), command)
    }

    #[test]
    fn a_tilde_and_a_dot_at_the_start_of_a_line_end_the_session() {
        assert_eq!(feed(&["~."]), (String::new(), Some(Command::Disconnect)));
        assert_eq!(
            feed(&["ls\r", "~", ".x"]),
            ("ls\r".to_owned(), Some(Command::Disconnect))
        );
    }

    #[test]
    fn elsewhere_they_are_text() {
        assert_eq!(feed(&["a~.b"]), ("a~.b".to_owned(), None));
        assert_eq!(feed(&["~a"]), ("~a".to_owned(), None));
        assert_eq!(feed(&["~~."]), ("~.".to_owned(), None));
        assert_eq!(feed(&["cp ~/a b\r"]), ("cp ~/a b\r".to_owned(), None));
    }

    #[test]
    fn help_swallows_itself_alone() {
        assert_eq!(feed(&["~?ls"]), ("ls".to_owned(), Some(Command::Help)));
        assert_eq!(
            feed(&["\r~\x1als"]),
            ("\rls".to_owned(), Some(Command::Suspend))
        );
        assert_eq!(feed(&["a\x1a"]), ("a\x1a".to_owned(), None));
    }
}
