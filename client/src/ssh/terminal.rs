//! The local terminal: its size, its modes, and raw mode that always ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use russh::Pty;
use rustix::termios::{
    self, ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex,
    Termios,
};

/// A terminal's size in cells and pixels (0 when unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Cells in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
    /// Pixels in a row.
    pub width: u32,
    /// Pixels in a column.
    pub height: u32,
}

impl Size {
    /// The size of the terminal behind `file`; `None` when it is no terminal or tells none.
    pub fn of(file: impl AsFd) -> Option<Self> {
        let size = termios::tcgetwinsize(file).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then(|| Self {
            columns: size.ws_col.into(),
            rows: size.ws_row.into(),
            width: size.ws_xpixel.into(),
            height: size.ws_ypixel.into(),
        })
    }
}

impl Default for Size {
    /// What every terminal had once.
    fn default() -> Self {
        Self {
            columns: 80,
            rows: 24,
            width: 0,
            height: 0,
        }
    }
}

/// Raw mode for as long as it lives. Whatever ends it (return, error, panic, a handled signal)
/// drops it, and the terminal is as before.
pub struct RawMode<'fd> {
    file: BorrowedFd<'fd>,
    before: Termios,
    raw: Termios,
}

impl<'fd> RawMode<'fd> {
    /// Makes the terminal behind `file` raw.
    pub fn enter(file: BorrowedFd<'fd>) -> io::Result<Self> {
        let before = termios::tcgetattr(file)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(file, OptionalActions::Drain, &raw)?;
        Ok(Self { file, before, raw })
    }

    /// Stops this process as Ctrl-Z does elsewhere, with the terminal as it was before; returns
    /// when somebody continues it.
    pub fn suspend(&self) {
        self.set(&self.before);
        let me = rustix::process::getpid();
        if let Err(error) = rustix::process::kill_process(me, rustix::process::Signal::TSTP) {
            tracing::debug!(%error, "not suspended");
        }
        self.set(&self.raw);
    }

    fn set(&self, modes: &Termios) {
        // Not `Drain`: output may be stopped, and the shell below needs its terminal back.
        if let Err(error) = termios::tcsetattr(self.file, OptionalActions::Now, modes) {
            tracing::debug!(%error, "the terminal's modes could not be set");
        }
    }

    /// The modes from before, for the terminal on the target.
    pub fn modes(&self) -> Vec<(Pty, u32)> {
        modes(&self.before)
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        self.set(&self.before);
    }
}

/// A terminal's modes as SSH names them (RFC 4254 section 8).
fn modes(terminal: &Termios) -> Vec<(Pty, u32)> {
    use SpecialCodeIndex as Code;
    let mut modes: Vec<(Pty, u32)> = [
        (Pty::VINTR, Code::VINTR),
        (Pty::VQUIT, Code::VQUIT),
        (Pty::VERASE, Code::VERASE),
        (Pty::VKILL, Code::VKILL),
        (Pty::VEOF, Code::VEOF),
        (Pty::VEOL, Code::VEOL),
        (Pty::VEOL2, Code::VEOL2),
        (Pty::VSTART, Code::VSTART),
        (Pty::VSTOP, Code::VSTOP),
        (Pty::VSUSP, Code::VSUSP),
        (Pty::VREPRINT, Code::VREPRINT),
        (Pty::VWERASE, Code::VWERASE),
        (Pty::VLNEXT, Code::VLNEXT),
        (Pty::VDISCARD, Code::VDISCARD),
    ]
    .into_iter()
    // 0 is "no such character" here and 255 there.
    .map(|(name, code)| match terminal.special_codes[code] {
        0 => (name, 255),
        character => (name, character.into()),
    })
    .collect();
    let input = terminal.input_modes;
    let local = terminal.local_modes;
    let output = terminal.output_modes;
    let control = terminal.control_modes;
    let flags = [
        (Pty::IGNPAR, input.contains(InputModes::IGNPAR)),
        (Pty::PARMRK, input.contains(InputModes::PARMRK)),
        (Pty::INPCK, input.contains(InputModes::INPCK)),
        (Pty::ISTRIP, input.contains(InputModes::ISTRIP)),
        (Pty::INLCR, input.contains(InputModes::INLCR)),
        (Pty::IGNCR, input.contains(InputModes::IGNCR)),
        (Pty::ICRNL, input.contains(InputModes::ICRNL)),
        (Pty::IXON, input.contains(InputModes::IXON)),
        (Pty::IXANY, input.contains(InputModes::IXANY)),
        (Pty::IXOFF, input.contains(InputModes::IXOFF)),
        (Pty::IMAXBEL, input.contains(InputModes::IMAXBEL)),
        (Pty::IUTF8, input.contains(InputModes::IUTF8)),
        (Pty::ISIG, local.contains(LocalModes::ISIG)),
        (Pty::ICANON, local.contains(LocalModes::ICANON)),
        (Pty::ECHO, local.contains(LocalModes::ECHO)),
        (Pty::ECHOE, local.contains(LocalModes::ECHOE)),
        (Pty::ECHOK, local.contains(LocalModes::ECHOK)),
        (Pty::ECHONL, local.contains(LocalModes::ECHONL)),
        (Pty::NOFLSH, local.contains(LocalModes::NOFLSH)),
        (Pty::TOSTOP, local.contains(LocalModes::TOSTOP)),
        (Pty::IEXTEN, local.contains(LocalModes::IEXTEN)),
        (Pty::ECHOCTL, local.contains(LocalModes::ECHOCTL)),
        (Pty::ECHOKE, local.contains(LocalModes::ECHOKE)),
        (Pty::OPOST, output.contains(OutputModes::OPOST)),
        (Pty::ONLCR, output.contains(OutputModes::ONLCR)),
        (Pty::OCRNL, output.contains(OutputModes::OCRNL)),
        (Pty::ONOCR, output.contains(OutputModes::ONOCR)),
        (Pty::ONLRET, output.contains(OutputModes::ONLRET)),
        (Pty::CS8, control.contains(ControlModes::CS8)),
    ];
    modes.extend(flags.map(|(name, on)| (name, on.into())));
    modes.push((Pty::TTY_OP_ISPEED, terminal.input_speed()));
    modes.push((Pty::TTY_OP_OSPEED, terminal.output_speed()));
    modes
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// A real terminal: both of its ends.
    fn terminal() -> (OwnedFd, File) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        (master, slave)
    }

    fn echoes(terminal: &File) -> bool {
        termios::tcgetattr(terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    #[test]
    fn raw_mode_ends_with_its_guard_and_with_a_panic() {
        let (_master, slave) = terminal();
        assert!(echoes(&slave));
        let raw = RawMode::enter(slave.as_fd()).unwrap();
        assert!(!echoes(&slave));
        let modes = raw.modes();
        assert!(
            modes.contains(&(Pty::ECHO, 1)) && modes.contains(&(Pty::VINTR, 3)),
            "the modes from before: {modes:?}"
        );
        drop(raw);
        assert!(echoes(&slave));
        let panicked = std::panic::catch_unwind(|| {
            let _raw = RawMode::enter(slave.as_fd()).unwrap();
            assert!(echoes(&slave), "raw");
        });
        assert!(panicked.is_err() && echoes(&slave));
    }

    #[test]
    fn the_size_is_the_terminals() {
        let (master, slave) = terminal();
        assert_eq!(Size::of(&slave), None, "a new terminal tells none");
        let size = termios::Winsize {
            ws_col: 132,
            ws_row: 43,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        termios::tcsetwinsize(&master, size).unwrap();
        let size = Size::of(&slave).unwrap();
        assert_eq!((size.columns, size.rows), (132, 43));
        assert_eq!(Size::of(File::open("/dev/null").unwrap()), None);
    }
}
