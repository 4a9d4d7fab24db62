//! `postern audit`: what happened, and whether the evidence of it holds.

use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use age::x25519::Identity;
use postern_proto::audit::layout::{CHECKPOINT_LIMIT, StorePath};
use postern_proto::audit::note::LogIdentity;
use postern_proto::audit::verify::{
    self, OutsideCheckpoint, Report, SessionState, StoreReader, Trust,
};
use postern_proto::names::SessionId;
use postern_proto::recording::RecordingName;
use serde_json::json;

use crate::audit::log::{Entry, Session, Sessions, walk};
use crate::audit::play::{self, Pace};
use crate::audit::store::{Folder, Remote};
use crate::audit::{identities, text};
use crate::cli::{
    AuditArgs, AuditCommand, AuditLsArgs, AuditPlayArgs, AuditShowArgs, AuditVerifyArgs,
};
use crate::context::Context;
use crate::error::Error;
use crate::gateway::Gateway;
use crate::output::neutral;
use crate::witness::Memory;

/// Runs one verb on a folder, or through the agent.
pub async fn run(context: &Context, args: AuditArgs) -> Result<ExitCode, Error> {
    let identity = args.identity.as_ref().or(context.auditor_identity.as_ref());
    let keys = identity
        .map(|path| identities(path))
        .transpose()?
        .unwrap_or_default();
    let job = Job {
        context: context.clone(),
        keys,
        command: args.command,
    };
    let folder = args.store.as_ref().or(context.audit_store.as_ref());
    let source = match folder {
        Some(path) => Source::Folder(Folder::new(path)?),
        None => Source::Remote(Remote::connect(Gateway::of(context).await?).await?),
    };
    // Reading is blocking: files, or requests one after the other.
    let done = tokio::task::spawn_blocking(move || job.run(&source));
    done.await
        .map_err(|error| Error::bug(format!("reading the store failed: {error}")))?
}

enum Source {
    Folder(Folder),
    Remote(Remote),
}

impl Source {
    fn reader(&self) -> &dyn StoreReader {
        match self {
            Self::Folder(folder) => folder,
            Self::Remote(remote) => remote,
        }
    }

    /// An error of reading, with what the agent said about it.
    fn explain(&self, error: io::Error) -> Error {
        match self {
            Self::Remote(remote) => remote
                .refusal()
                .map_or_else(|| Error::unreachable(error.to_string()), Error::from),
            Self::Folder(_) => Error::failed(format!("the store cannot be read: {error}"))
                .hint("check the path and the rights; `postern audit verify` says what is missing"),
        }
    }
}

struct Job {
    context: Context,
    keys: Vec<Identity>,
    command: AuditCommand,
}

impl Job {
    fn run(&self, source: &Source) -> Result<ExitCode, Error> {
        match &self.command {
            AuditCommand::Ls(args) => self.ls(source, args),
            AuditCommand::Show(args) => self.show(source, args),
            AuditCommand::Play(args) => self.play(source, args),
            AuditCommand::Verify(args) => self.verify(source, args),
        }
    }

    fn ls(&self, source: &Source, args: &AuditLsArgs) -> Result<ExitCode, Error> {
        let (mut sessions, mut entries) = (Sessions::default(), Vec::new());
        walk(source.reader(), &self.keys, |entry| {
            sessions.add(&entry);
            if args.events {
                entries.push(entry);
            }
        })
        .map_err(|error| source.explain(error))?;
        if args.events {
            let skip = entries.len().saturating_sub(args.limit);
            return self.events(&entries, skip);
        }
        let sessions = sessions.newest(args.limit);
        let printer = self.context.printer;
        if printer.json {
            printer.json(&json!({ "sessions": sessions }))?;
        } else {
            let rows: Vec<Vec<String>> = sessions.iter().map(row).collect();
            printer.table(
                &[
                    "when (UTC)",
                    "who",
                    "target",
                    "kind",
                    "duration",
                    "end",
                    "session",
                ],
                &rows,
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, source: &Source, args: &AuditShowArgs) -> Result<ExitCode, Error> {
        let mut entries = Vec::new();
        walk(source.reader(), &self.keys, |entry| {
            if entry
                .event
                .as_ref()
                .is_some_and(|event| event.session == Some(args.session))
            {
                entries.push(entry);
            }
        })
        .map_err(|error| source.explain(error))?;
        if entries.is_empty() {
            return Err(unknown(args.session));
        }
        if entries.iter().any(|entry| entry.closed) {
            self.context
                .printer
                .note("some texts are sealed: --identity FILE opens them");
        }
        self.events(&entries, 0)
    }

    fn events(&self, entries: &[Entry], skip: usize) -> Result<ExitCode, Error> {
        let printer = self.context.printer;
        for entry in entries.iter().skip(skip) {
            if printer.json {
                printer.json(
                    &json!({ "entry": entry.index, "event": entry.event, "sealed": entry.closed }),
                )?;
                continue;
            }
            printer.answer(match &entry.event {
                Some(event) => format!(
                    "{}  {:>6}  {}",
                    text::moment(event.time_ms),
                    entry.index,
                    neutral(&text::event(event))
                ),
                None => format!("{:23}  {:>6}  of a later version", "", entry.index),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn play(&self, source: &Source, args: &AuditPlayArgs) -> Result<ExitCode, Error> {
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
        let reader = source.reader();
        let mut names: Vec<RecordingName> =
            reader.recordings().map_err(|error| source.explain(error))?;
        names.retain(|name| {
            name.session == args.session
                && args.recording.is_none_or(|number| name.number == number)
        });
        names.sort_unstable();
        if names.is_empty() {
            return Err(
                Error::failed(format!("session {} has no such recording", args.session))
                    .hint("postern audit show SESSION"),
            );
        }
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
        Ok(ExitCode::SUCCESS)
    }

    fn verify(&self, source: &Source, args: &AuditVerifyArgs) -> Result<ExitCode, Error> {
        let log = self.log(args)?;
        let mut outside = Vec::new();
        for path in &args.checkpoint {
            outside.push(kept_elsewhere(path)?);
        }
        // What this client saw counts, and cannot be rewritten by whoever holds the store.
        if let Ok(agent) = self.context.agent()
            && agent.id == *log.origin()
            && let Some(seen) = Memory::new(&self.context.state, agent)
                .and_then(|memory| memory.newest())
                .map_err(|error| Error::failed(error.to_string()).hint(error.hint()))?
        {
            outside.push(OutsideCheckpoint {
                name: "the newest checkpoint that this client saw".to_owned(),
                note: seen.note,
            });
        }
        let trust = Trust {
            log,
            outside: &outside,
            identities: &self.keys,
        };
        let report =
            verify::verify(source.reader(), &trust).map_err(|error| source.explain(error))?;
        self.report(&report)?;
        Ok(ExitCode::from(u8::from(!report.holds())))
    }

    /// The log's name and key: from the configuration or the command line, never from the store.
    fn log(&self, args: &AuditVerifyArgs) -> Result<LogIdentity, Error> {
        let unusable = |error: postern_proto::audit::note::NoteError| {
            Error::usage(format!("the log's verifier key is unusable: {error}"))
                .hint("--log-key takes what `postern-agent check` prints: NAME+ID+KEY")
        };
        if let Some(key) = &args.log_key {
            let name = key.split('+').next().unwrap_or_default();
            let origin = name
                .parse()
                .map_err(|error: postern_proto::names::NameError| {
                    Error::usage(error.to_string())
                })?;
            return LogIdentity::new(origin, key).map_err(unusable);
        }
        let agent = self.context.agent().map_err(|error| {
            error.hint("--log-key KEY names the log's verifier key, when no agent is configured")
        })?;
        LogIdentity::new(agent.id.clone(), &agent.log_key).map_err(unusable)
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        let printer = self.context.printer;
        let state = |wanted| {
            report
                .sessions
                .iter()
                .filter(|session| session.state == wanted)
                .count()
        };
        let (open, closed, interrupted) = (
            state(SessionState::Open),
            state(SessionState::Closed),
            state(SessionState::Interrupted),
        );
        if printer.json {
            let outside: Vec<_> = report
                .outside
                .iter()
                .map(|outside| json!({ "name": outside.name, "size": outside.size, "consistent": outside.consistent }))
                .collect();
            return printer.json(&json!({
                "holds": report.holds(),
                "entries": report.size,
                "unsigned": report.unsigned,
                "checkpoint": report.checkpoint,
                "faults": report.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "rollback_excluded": report.rollback_excluded(),
                "outside": outside,
                "sessions": { "open": open, "closed": closed, "interrupted": interrupted },
                "recordings": {
                    "match": report.recordings,
                    "interrupted": report.interrupted,
                    "deleted": report.deleted,
                    "decrypted": !self.keys.is_empty(),
                },
                "unknown_entries": report.unknown,
            }));
        }
        for fault in &report.faults {
            printer.answer(format!("BROKEN: {}", neutral(&fault.to_string())))?;
        }
        let verdict = if report.holds() {
            "the evidence holds"
        } else {
            "the evidence is broken"
        };
        printer.answer(format!(
            "{verdict}: {} entries, {} unsigned after them",
            report.size, report.unsigned
        ))?;
        printer.answer(format!(
            "sessions: {closed} closed, {open} open, {interrupted} interrupted"
        ))?;
        printer.answer(format!(
            "recordings: {} match the log, {} interrupted, {} deleted by retention{}",
            report.recordings,
            report.interrupted.len(),
            report.deleted.len(),
            if self.keys.is_empty() {
                "; not decrypted (no --identity)"
            } else {
                ""
            },
        ))?;
        if !report.unknown.is_empty() {
            printer.answer(format!(
                "{} entries are of a later version",
                report.unknown.len()
            ))?;
        }
        for outside in &report.outside {
            let held = if outside.consistent {
                "agrees"
            } else {
                "DOES NOT AGREE"
            };
            printer.answer(format!(
                "{}: {held} with the first {} entries",
                neutral(&outside.name),
                outside.size
            ))?;
        }
        printer.answer(neutral(&report.rollback()))
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

fn row(session: &Session) -> Vec<String> {
    // The last part of an ARN tells people apart; the whole one is in `--json`.
    let who = session.who.rsplit(':').next().unwrap_or_default();
    let end = match session.exit_status {
        Some(status) => format!("{} ({status})", session.end),
        None => session.end.clone(),
    };
    vec![
        text::moment(session.started_ms),
        who.to_owned(),
        session.target.clone(),
        session.kind.clone(),
        session.duration_ms.map(text::duration).unwrap_or_default(),
        end,
        session.session.to_string(),
    ]
}

fn kept_elsewhere(path: &PathBuf) -> Result<OutsideCheckpoint, Error> {
    let mut note = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CHECKPOINT_LIMIT).read_to_string(&mut note))
        .map_err(|error| {
            Error::usage(format!(
                "the checkpoint {} cannot be read: {error}",
                path.display()
            ))
        })?;
    Ok(OutsideCheckpoint {
        name: path.display().to_string(),
        note,
    })
}

fn unknown(session: SessionId) -> Error {
    Error::failed(format!("the log knows no session {session}")).hint("postern audit ls")
}
