//! `postern audit`: what happened, and whether the evidence of it holds.

mod source;
mod verdict;

use std::cell::RefCell;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use age::x25519::Identity;
use postern_proto::audit::event::{Fact, Source as Whose};
use postern_proto::audit::layout::{CHECKPOINT_LIMIT, StorePath};
use postern_proto::audit::note::LogIdentity;
use postern_proto::audit::verify::{self, OutsideCheckpoint, Report, StoreReader, Trust};
use postern_proto::names::SessionId;
use postern_proto::recording::RecordingName;
use serde_json::json;

use crate::audit::log::{Entry, Session, Sessions, walk};
use crate::audit::play::{self, Pace};
use crate::audit::{identities, text};
use crate::cli::{
    AuditArgs, AuditCommand, AuditLsArgs, AuditPlayArgs, AuditShowArgs, AuditVerifyArgs,
};
use crate::context::Context;
use crate::error::Error;
use crate::evidence;
use crate::output::neutral;
use crate::witness::Memory;
use source::{Source, sources};
use verdict::Verdict;

/// Runs one verb: on a folder; else through the agent, and on what this client wrote itself.
pub async fn run(context: &Context, args: AuditArgs) -> Result<ExitCode, Error> {
    let identity = args.identity.as_ref().or(context.auditor_identity.as_ref());
    let mut keys = identity
        .map(|path| identities(path))
        .transpose()?
        .unwrap_or_default();
    let folder = args.store.as_ref().or(context.audit_store.as_ref());
    let sources = match folder {
        Some(path) => vec![Source::folder(context, path)?],
        None => sources(context).await?,
    };
    if sources.iter().any(|source| source.own) {
        // Recordings of this client may be encrypted to its user.
        match evidence::own_identity(context).await {
            Ok(own) => keys.extend(own),
            Err(error) => context.printer.detail(error.to_string()),
        }
    }
    let job = Job {
        context: context.clone(),
        keys,
        command: args.command,
    };
    // Reading is blocking: files, or requests one after the other.
    let done = tokio::task::spawn_blocking(move || job.run(&sources));
    done.await
        .map_err(|error| Error::bug(format!("reading the store failed: {error}")))?
}

struct Job {
    context: Context,
    keys: Vec<Identity>,
    command: AuditCommand,
}

impl Job {
    fn verdict(&self) -> Verdict {
        Verdict {
            printer: self.context.printer,
            decrypted: !self.keys.is_empty(),
        }
    }

    fn run(&self, sources: &[Source]) -> Result<ExitCode, Error> {
        match &self.command {
            AuditCommand::Ls(args) => self.ls(sources, args),
            AuditCommand::Show(args) => self.show(sources, args),
            AuditCommand::Play(args) => self.play(sources, args),
            AuditCommand::Verify(args) => self.verify(sources, args),
        }
    }

    /// Asks each source. One that cannot be read is told and passed over, as long as another can.
    fn each<T>(
        &self,
        sources: &[Source],
        ask: impl Fn(&Source, &dyn StoreReader) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut answers = Vec::new();
        let mut failed = None;
        for source in sources {
            match source.reader().and_then(|reader| ask(source, reader)) {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    if sources.len() > 1 {
                        let which = if source.own {
                            "a log of this client"
                        } else {
                            "the agent's log"
                        };
                        let text = format!("{which} is left out: {error}");
                        self.context.printer.warning(text);
                    }
                    failed = failed.or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers),
        }
    }

    /// The entries of a source that `wanted` takes.
    fn entries(
        &self,
        source: &Source,
        reader: &dyn StoreReader,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        let keep = |entry: Entry| {
            if wanted(&entry) {
                entries.push(entry);
            }
        };
        walk(reader, &self.keys, keep).map_err(|error| source.explain(error))?;
        Ok(entries)
    }

    fn ls(&self, sources: &[Source], args: &AuditLsArgs) -> Result<ExitCode, Error> {
        let lists = self.each(sources, |source, reader| {
            self.entries(source, reader, |_| true)
        })?;
        if args.events {
            let several = lists.len() > 1;
            let mut entries: Vec<Entry> = lists.into_iter().flatten().collect();
            if several {
                entries.sort_by_key(|entry| entry.event.as_ref().map_or(0, |event| event.time_ms));
            }
            let skip = entries.len().saturating_sub(args.limit);
            return self.events(&entries, skip);
        }
        let mut sessions = Sessions::default();
        lists.iter().flatten().for_each(|entry| sessions.add(entry));
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
                    "source",
                    "session",
                ],
                &rows,
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, sources: &[Source], args: &AuditShowArgs) -> Result<ExitCode, Error> {
        let of_session = |entry: &Entry| {
            let session = entry.event.as_ref().and_then(|event| event.session);
            session == Some(args.session)
        };
        let lists = self.each(sources, |source, reader| {
            if !source.may_hold(args.session) {
                return Ok(Vec::new());
            }
            self.entries(source, reader, of_session)
        })?;
        // A claim stands in the client's log and, once handed over, in the agent's: the fuller
        // one is shown, the agent's where they are alike.
        let fullest = lists.into_iter().rev().max_by_key(Vec::len);
        let entries = fullest.unwrap_or_default();
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
                printer.json(&json!({
                    "entry": entry.index,
                    "event": entry.event,
                    "sealed": entry.closed,
                    "source": entry.source,
                }))?;
                continue;
            }
            printer.answer(match &entry.event {
                Some(event) => format!(
                    "{}  {:>6}  {}{}",
                    text::moment(event.time_ms),
                    entry.index,
                    match (entry.source, &event.fact) {
                        // Its text says so.
                        (Whose::Agent, _) | (_, Fact::Claimed(_)) => "",
                        (Whose::Client, _) => "(client) ",
                    },
                    neutral(&text::event(event))
                ),
                None => format!("{:23}  {:>6}  of a later version", "", entry.index),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn play(&self, sources: &[Source], args: &AuditPlayArgs) -> Result<ExitCode, Error> {
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

    fn verify(&self, sources: &[Source], args: &AuditVerifyArgs) -> Result<ExitCode, Error> {
        let mut given = Vec::new();
        for path in &args.checkpoint {
            given.push(kept_elsewhere(path)?);
        }
        let chain = self.chain(sources);
        let mut reports = Vec::new();
        let mut unread = None;
        for source in sources {
            match self.check(source, args, &given, &chain, sources.len() > 1) {
                Ok(checked) => reports.push(checked),
                Err(error) if sources.len() == 1 => return Err(error),
                Err(error) => unread = Some(error),
            }
        }
        let holds = reports.iter().all(|(_, report)| report.holds());
        self.verdict().tell(&reports)?;
        match unread {
            // What was not read is not proven.
            Some(error) => Err(error),
            None => Ok(ExitCode::from(u8::from(!holds))),
        }
    }

    fn check(
        &self,
        source: &Source,
        args: &AuditVerifyArgs,
        given: &[OutsideCheckpoint],
        chain: &[OutsideCheckpoint],
        several: bool,
    ) -> Result<(String, Report), Error> {
        let reader = source.reader()?;
        let log = match (&source.log, &args.log_key) {
            (Some(known), None) => known.clone(),
            (Some(known), Some(_)) if several => known.clone(),
            _ => self.log(args)?,
        };
        let is_of = |outside: &&OutsideCheckpoint| {
            outside.note.lines().next() == Some(log.origin().as_str())
        };
        let mut outside: Vec<OutsideCheckpoint> = match several {
            true => given.iter().filter(is_of).cloned().collect(),
            false => given.to_vec(),
        };
        outside.extend(chain.iter().filter(is_of).cloned());
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
        let name = log.origin().to_string();
        let trust = Trust {
            log,
            outside: &outside,
            identities: &self.keys,
        };
        let report = verify::verify(reader, &trust).map_err(|error| source.explain(error))?;
        Ok((name, report))
    }

    /// Each log of this client names the last checkpoint of the one before it.
    fn chain(&self, sources: &[Source]) -> Vec<OutsideCheckpoint> {
        let mut chain = Vec::new();
        for source in sources.iter().filter(|source| source.own) {
            let Ok(reader) = source.reader() else {
                continue;
            };
            let read = walk(reader, &[], |entry| {
                if let Some(Fact::ClientLogStarted {
                    previous: Some(previous),
                    ..
                }) = entry.event.map(|event| event.fact)
                {
                    chain.push(OutsideCheckpoint {
                        name: "the log after it".to_owned(),
                        note: previous.checkpoint,
                    });
                }
            });
            // A log that cannot be read is named by its own verification.
            drop(read);
        }
        chain
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
        text::wire_name(&session.source),
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
