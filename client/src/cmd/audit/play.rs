//! `postern audit play`: a session's recordings, one after the other.

use std::cell::RefCell;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use postern_proto::audit::layout::StorePath;
use postern_proto::audit::verify::StoreReader;
use postern_proto::recording::RecordingName;

use super::Job;
use super::source::Source;
use crate::audit::play::{self, Pace};
use crate::cli::AuditPlayArgs;
use crate::error::Error;

impl Job {
    pub(super) fn play(&self, sources: &[Source], args: &AuditPlayArgs) -> Result<ExitCode, Error> {
        if self.keys.is_empty() {
            return Err(
                Error::usage("recordings are encrypted to the auditors").hint(
                    "--identity FILE, or POSTERN_AUDITOR_IDENTITY, names an auditor's age identity",
                ),
            );
        }
        if !(args.speed.is_finite() && args.speed >= 0.0) {
            return Err(Error::usage("--speed takes a number from 0"));
        }
        let played = RefCell::new(None);
        self.each(sources, |source, reader| {
            // The first that has it plays it; another one would be the same.
            if played.borrow().is_some() || !source.may_hold(args.session) {
                return Ok(());
            }
            let mut names: Vec<RecordingName> =
                reader.recordings().map_err(|error| source.explain(error))?;
            names.retain(|name| {
                name.session == args.session
                    && args.recording.is_none_or(|number| name.number == number)
            });
            names.sort_unstable();
            if names.is_empty() {
                return Ok(());
            }
            let done = self.play_all(source, reader, args, names);
            played.replace(Some(done));
            Ok(())
        })?;
        // A recording that is there and cannot be played is no log left out: it is the answer.
        played.into_inner().unwrap_or_else(|| {
            Err(
                Error::failed(format!("session {} has no such recording", args.session))
                    .hint("postern audit show SESSION"),
            )
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn play_all(
        &self,
        source: &Source,
        reader: &dyn StoreReader,
        args: &AuditPlayArgs,
        names: Vec<RecordingName>,
    ) -> Result<(), Error> {
        let stdout = io::stdout();
        let pace = Pace {
            speed: args.speed,
            terminal: stdout.is_terminal(),
        };
        let several = names.len() > 1;
        for name in names {
            let file = reader
                .open(StorePath::Recording(name))
                .map_err(|error| source.explain(error))?;
            let file = file.ok_or_else(|| Error::failed(format!("recording {name} is missing")))?;
            if args.raw {
                play::raw(file, &self.keys, &mut stdout.lock())?;
                continue;
            }
            if several {
                self.context.printer.note(format!("recording {name}"));
            }
            let note = play::play(file, &self.keys, pace, &mut stdout.lock(), pause)?;
            if let Some(note) = note {
                self.context.printer.warning(note);
            }
        }
        Ok(())
    }
}

/// Waits as long as the recording did: time passing is what playing shows.
#[expect(
    clippy::disallowed_methods,
    reason = "playing happens at the speed of the recording, on a thread of its own"
)]
fn pause(length: Duration) {
    std::thread::sleep(length);
}
