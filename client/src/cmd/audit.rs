//! `postern audit`: what happened, and whether the evidence of it holds.

mod play;
mod source;
mod verdict;
mod verify;

use std::process::ExitCode;

use age::x25519::Identity;
use postern_proto::audit::event::{Fact, Source as Whose};
use postern_proto::audit::verify::StoreReader;
use postern_proto::names::SessionId;
use serde_json::json;

use crate::audit::log::{Entry, Session, Sessions, walk};
use crate::audit::{identities, text};
use crate::cli::{AuditArgs, AuditCommand, AuditLsArgs, AuditShowArgs};
use crate::context::Context;
use crate::error::Error;
use crate::evidence;
use crate::output::neutral;
use source::{Source, sources};

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

fn unknown(session: SessionId) -> Error {
    Error::failed(format!("the log knows no session {session}")).hint("postern audit ls")
}
