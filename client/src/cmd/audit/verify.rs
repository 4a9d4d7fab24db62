//! `postern audit verify`: each log against its key and what was kept elsewhere.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::ExitCode;

use postern_proto::audit::event::Fact;
use postern_proto::audit::layout::CHECKPOINT_LIMIT;
use postern_proto::audit::note::LogIdentity;
use postern_proto::audit::verify::{self, OutsideCheckpoint, Report, Trust};

use super::Job;
use super::source::Source;
use super::verdict::Verdict;
use crate::audit::log::walk;
use crate::cli::AuditVerifyArgs;
use crate::error::Error;
use crate::witness::Memory;

impl Job {
    pub(super) fn verify(
        &self,
        sources: &[Source],
        args: &AuditVerifyArgs,
    ) -> Result<ExitCode, Error> {
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

    fn verdict(&self) -> Verdict {
        Verdict {
            printer: self.context.printer,
            decrypted: !self.keys.is_empty(),
        }
    }
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
