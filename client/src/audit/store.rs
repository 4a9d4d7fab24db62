//! Where a store's files come from: a folder (also a copy of one), or the agent's HTTP.
//!
//! Reading is blocking, as the verifier in `proto` is: run it off the async threads.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use postern_proto::audit::layout::{BUNDLE_LIMIT, StorePath};
use postern_proto::audit::verify::StoreReader;
use postern_proto::recording::RecordingName;
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::error::Error;
use crate::gateway::Gateway;
use crate::http::{Answer, Client, HttpError};

/// A store in a folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// A folder that holds a log.
    pub fn new(path: &Path) -> Result<Self, Error> {
        if !path.join("tile").is_dir() && !path.join("checkpoint").is_file() {
            return Err(Error::usage(format!("{} is no audit store: it holds neither `checkpoint` nor `tile`", path.display()))
                .hint("--store takes the folder that `evidence.store` of the agent names, or a copy of it"));
        }
        Ok(Self(path.to_owned()))
    }
}

impl StoreReader for Folder {
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn Read + '_>>> {
        match File::open(self.0.join(path.to_string())) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        let entries = match fs::read_dir(self.0.join("recordings")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            // Other files are nobody's: the log names what counts.
            if let Some(name) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// The store behind an agent. What it serves is checked like any other copy.
pub struct Remote {
    runtime: Handle,
    gateway: Arc<Gateway>,
    client: Mutex<Client>,
    // The first refusal, with its hint: io::Error cannot carry it.
    refusal: Mutex<Option<HttpError>>,
}

#[derive(Deserialize)]
struct Listing {
    recordings: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: RecordingName,
}

impl Remote {
    /// Connects.
    pub async fn connect(gateway: Arc<Gateway>) -> Result<Self, Error> {
        let client = Client::connect(Arc::clone(&gateway)).await?;
        Ok(Self {
            runtime: Handle::current(),
            gateway,
            client: Mutex::new(client),
            refusal: Mutex::new(None),
        })
    }

    fn failed(&self, error: HttpError) -> io::Error {
        let failed = io::Error::other(error.to_string());
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        failed
    }

    /// What the agent said, for an error that came out of reading.
    pub fn refusal(&self) -> Option<HttpError> {
        self.refusal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn small(&self, path: StorePath) -> Result<Bytes, HttpError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = usize::try_from(BUNDLE_LIMIT).unwrap_or(usize::MAX);
        self.runtime
            .block_on(client.get(&format!("/v1/log/{path}"), limit))
    }

    fn recording(&self, name: RecordingName) -> Result<Body<'_>, HttpError> {
        // A connection of its own: the body is read while the log may be asked for more.
        let answer = self.runtime.block_on(async {
            Client::connect(Arc::clone(&self.gateway))
                .await?
                .stream(&format!("/v1/recordings/{name}"))
                .await
        })?;
        Ok(Body {
            runtime: &self.runtime,
            answer,
            chunk: Bytes::new(),
        })
    }
}

impl StoreReader for Remote {
    fn open(&self, path: StorePath) -> io::Result<Option<Box<dyn Read + '_>>> {
        let opened: Result<Box<dyn Read + '_>, HttpError> = match path {
            StorePath::Recording(name) => self.recording(name).map(|body| Box::new(body) as _),
            other => self
                .small(other)
                .map(|bytes| Box::new(Cursor::new(bytes)) as _),
        };
        match opened {
            Ok(reader) => Ok(Some(reader)),
            Err(HttpError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn recordings(&self) -> io::Result<Vec<RecordingName>> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let listing: Listing = self
            .runtime
            .block_on(client.get_json("/v1/recordings"))
            .map_err(|error| self.failed(error))?;
        Ok(listing
            .recordings
            .into_iter()
            .map(|listed| listed.name)
            .collect())
    }
}

/// A recording as it arrives.
struct Body<'a> {
    runtime: &'a Handle,
    answer: Answer,
    chunk: Bytes,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.chunk.has_remaining() {
            let next = self.runtime.block_on(tokio::time::timeout(
                crate::http::DEADLINE,
                self.answer.body.frame(),
            ));
            match next.map_err(|_| io::ErrorKind::TimedOut)? {
                None => return Ok(0),
                Some(frame) => {
                    self.chunk = frame
                        .map_err(io::Error::other)?
                        .into_data()
                        .unwrap_or_default()
                }
            }
        }
        let length = buffer.len().min(self.chunk.len());
        self.chunk
            .split_to(length)
            .copy_to_slice(buffer.get_mut(..length).unwrap_or_default());
        Ok(length)
    }
}
