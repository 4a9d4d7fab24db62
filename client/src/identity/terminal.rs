//! Questions to the person at the terminal. stdin may carry something else (`proxy`), so the
//! controlling terminal is opened itself, as `ssh` does.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use zeroize::Zeroizing;

/// An answer longer than this is none.
const ANSWER_LIMIT: usize = 1024;
/// Somebody who has not answered by then has left.
const DEADLINE: Duration = Duration::from_secs(300);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TerminalError {
    /// Nobody to ask.
    #[error("there is no terminal to ask on")]
    None,
    /// Ctrl-C, Ctrl-D, or the terminal went away.
    #[error("the question was cancelled")]
    Cancelled,
    /// Nobody answered.
    #[error("nobody answered within {} minutes", DEADLINE.as_secs() / 60)]
    Late,
}

/// Whether somebody can be asked: a controlling terminal, in whose foreground we are.
pub(crate) fn available() -> bool {
    open().is_some()
}

/// Asks; the answer is not shown while it is typed.
pub(crate) async fn ask_hidden(question: &str) -> Result<Zeroizing<String>, TerminalError> {
    ask(question, false).await
}

/// Asks for something that is no secret. The question may have several lines.
pub(crate) async fn ask_shown(question: &str) -> Result<Zeroizing<String>, TerminalError> {
    ask(question, true).await
}

async fn ask(question: &str, is_shown: bool) -> Result<Zeroizing<String>, TerminalError> {
    let mut terminal = open().ok_or(TerminalError::None)?;
    let question = question.to_owned();
    let stop = Stop(Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop.0);
    tokio::task::spawn_blocking(move || read_answer(&mut terminal, &question, is_shown, &stopped))
        .await
        .map_err(|_| TerminalError::Cancelled)?
}

/// Ends the reading thread when nobody waits for it any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn open() -> Option<File> {
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .ok()?;
    // Changing the terminal from the background would stop the process.
    let foreground = rustix::termios::tcgetpgrp(&terminal).ok()?;
    (foreground == rustix::process::getpgrp()).then_some(terminal)
}

/// The terminal without echo, until dropped. Ctrl-C arrives as a byte: a signal would leave the
/// terminal without echo.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn start(terminal: &'a File) -> Option<Self> {
        let before = rustix::termios::tcgetattr(terminal).ok()?;
        let mut modes = before.clone();
        modes
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        // A read ends after 0.2 s without input, so that a deadline can be kept.
        modes.special_codes[SpecialCodeIndex::VMIN] = 0;
        modes.special_codes[SpecialCodeIndex::VTIME] = 2;
        rustix::termios::tcsetattr(terminal, OptionalActions::Flush, &modes).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn read_answer(
    terminal: &mut File,
    question: &str,
    is_shown: bool,
    stopped: &AtomicBool,
) -> Result<Zeroizing<String>, TerminalError> {
    let told: Vec<_> = question.split('\n').map(crate::output::neutral).collect();
    let keys = terminal.try_clone().map_err(|_| TerminalError::None)?;
    let hidden = Hidden::start(&keys).ok_or(TerminalError::None)?;
    let _ = write!(terminal, "{}", told.join("\n"));
    let answer = read_line(&mut &keys, stopped, Instant::now() + DEADLINE);
    drop(hidden);
    if let (true, Ok(answer)) = (is_shown, &answer) {
        let _ = write!(terminal, "{}", crate::output::neutral(answer));
    }
    let _ = writeln!(terminal);
    answer
}

fn read_line(
    keys: &mut impl std::io::Read,
    stopped: &AtomicBool,
    deadline: Instant,
) -> Result<Zeroizing<String>, TerminalError> {
    let mut line = Zeroizing::new(Vec::with_capacity(ANSWER_LIMIT));
    let mut byte = [0];
    loop {
        if stopped.load(Ordering::Relaxed) {
            return Err(TerminalError::Cancelled);
        }
        if Instant::now() >= deadline {
            return Err(TerminalError::Late);
        }
        match keys.read(&mut byte) {
            Ok(0) => continue,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(TerminalError::Cancelled),
        }
        match byte[0] {
            b'\r' | b'\n' => break,
            // Ctrl-C, Ctrl-D, Ctrl-\
            3 | 4 | 28 => return Err(TerminalError::Cancelled),
            // Backspace
            8 | 127 => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            // Ctrl-U
            21 => line.clear(),
            typed if line.len() < ANSWER_LIMIT => line.push(typed),
            _ => {}
        }
    }
    std::str::from_utf8(&line)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| TerminalError::Cancelled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> Result<String, TerminalError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        read_line(&mut &*bytes, &AtomicBool::new(false), deadline).map(|line| line.to_string())
    }

    #[test]
    fn a_line_can_be_corrected_while_it_is_typed() {
        assert_eq!(typed(b"12\x7f3456\r").unwrap(), "13456");
        assert_eq!(typed("ä\u{7f}x\n".as_bytes()).unwrap(), "x");
        assert_eq!(typed(b"wrong\x15right\n").unwrap(), "right");
    }

    #[test]
    fn ctrl_c_and_a_passed_deadline_end_the_question() {
        assert_eq!(typed(b"12\x03"), Err(TerminalError::Cancelled));
        assert_eq!(
            read_line(&mut &b""[..], &AtomicBool::new(false), Instant::now()),
            Err(TerminalError::Late)
        );
        let late = Instant::now() + Duration::from_secs(60);
        assert_eq!(
            read_line(&mut &b""[..], &AtomicBool::new(true), late),
            Err(TerminalError::Cancelled)
        );
    }
}
