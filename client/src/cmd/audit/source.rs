//! The logs that are read: a folder, the agent's, and those that this client wrote itself.

use std::io;
use std::path::Path;

use postern_proto::audit::note::LogIdentity;
use postern_proto::audit::verify::StoreReader;
use postern_proto::names::SessionId;

use crate::audit::store::{Folder, Remote};
use crate::context::Context;
use crate::error::Error;
use crate::evidence;
use crate::gateway::Gateway;

/// The agent's log, where one is configured and answers, then this client's own, newest first.
pub(super) async fn sources(context: &Context) -> Result<Vec<Source>, Error> {
    let mut own = Vec::new();
    for store in evidence::local_stores(context)?.into_iter().rev() {
        own.push(Source {
            reader: Reader::Folder(Folder::new(&store.folder)?),
            log: Some(store.log),
            own: true,
        });
    }
    if context.agents.is_empty() && !own.is_empty() {
        return Ok(own);
    }
    let remote = async {
        let gateway = Gateway::of(context).await?;
        Remote::connect(gateway).await
    };
    match remote.await {
        Ok(remote) => own.insert(0, Source::remote(remote)),
        Err(error) if own.is_empty() => return Err(error),
        Err(error) => own.insert(0, Source::absent(error)),
    }
    Ok(own)
}

/// One log to read.
pub(super) struct Source {
    reader: Reader,
    /// Its name and key, where this client knows them: never from the store.
    pub(super) log: Option<LogIdentity>,
    /// Whether this client wrote it.
    pub(super) own: bool,
}

enum Reader {
    Folder(Folder),
    Remote(Remote),
    /// The agent does not answer; what this client wrote is read all the same.
    Absent(Error),
}

impl Source {
    /// A folder, which may be one of this client's own.
    pub(super) fn folder(context: &Context, path: &Path) -> Result<Self, Error> {
        let reader = Reader::Folder(Folder::new(path)?);
        let name = path.file_name().and_then(|name| name.to_str());
        let known = evidence::local_stores(context).unwrap_or_default();
        let log = known
            .into_iter()
            .map(|store| store.log)
            .find(|log| Some(log.origin().as_str()) == name);
        Ok(Self {
            reader,
            own: log.is_some(),
            log,
        })
    }

    fn remote(remote: Remote) -> Self {
        Self {
            reader: Reader::Remote(remote),
            log: None,
            own: false,
        }
    }

    fn absent(error: Error) -> Self {
        Self {
            reader: Reader::Absent(error),
            log: None,
            own: false,
        }
    }

    /// Whether what it says of `session` counts: of sessions that an agent granted, the agent's log
    /// alone tells.
    pub(super) fn may_hold(&self, session: SessionId) -> bool {
        !self.own || session.is_of_client()
    }

    pub(super) fn reader(&self) -> Result<&dyn StoreReader, Error> {
        match &self.reader {
            Reader::Folder(folder) => Ok(folder),
            Reader::Remote(remote) => Ok(remote),
            Reader::Absent(error) => Err(error.clone()),
        }
    }

    /// An error of reading, with what the agent said about it.
    pub(super) fn explain(&self, error: io::Error) -> Error {
        match &self.reader {
            Reader::Remote(remote) => remote
                .refusal()
                .map_or_else(|| Error::unreachable(error.to_string()), Error::from),
            Reader::Folder(_) => Error::failed(format!("the store cannot be read: {error}"))
                .hint("check the path and the rights; `postern audit verify` says what is missing"),
            Reader::Absent(error) => error.clone(),
        }
    }
}
