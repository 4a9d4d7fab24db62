//! Handing the log's entries over to an agent's store, beside the session: the agent wraps each
//! with the principal that it proved. What cannot be handed over stays, and goes the next time;
//! the agent takes no entry twice.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use postern_proto::audit::event::{Claim, Event};
use postern_proto::audit::layout::{StorePath, TILE_WIDTH, split_entries};
use postern_proto::audit::ocsf;
use postern_proto::audit::verify::read_file;
use postern_proto::names::Principal;
use postern_proto::recording::RecordingName;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::disk;
use super::lock::try_lock;
use super::log::Log;
use crate::audit::log::size;
use crate::audit::store::Folder;
use crate::context::Context;
use crate::gateway::Gateway;
use crate::http::{Client, HttpError};

/// After a failure, until the next try.
const RETRY: Duration = Duration::from_secs(60);
/// What the end of a session waits for the last entries.
const FINISH: Duration = Duration::from_secs(5);
/// Bytes of a recording in one request: an agent takes no longer ones.
const PIECE: usize = 60 * 1024;

/// The task that hands over while a session is open.
#[derive(Debug)]
pub(super) struct HandOver {
    finish: watch::Sender<bool>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl HandOver {
    /// Hands over what `principal` claimed, now and when `grown` changes. Without an agent it
    /// does nothing.
    pub(super) fn start(
        context: &Context,
        log: &Arc<Log>,
        principal: Principal,
        mut grown: watch::Receiver<u64>,
    ) -> Self {
        let (finish, mut finishing) = watch::channel(false);
        if context.agents.is_empty() {
            return Self {
                finish,
                task: Mutex::new(None),
            };
        }
        let carrier = Carrier {
            context: Context {
                // A session is on the terminal: nobody is asked anything.
                may_ask: false,
                ..context.clone()
            },
            folder: log.folder.clone(),
            log: log.origin.to_string(),
            principal,
        };
        let task = tokio::spawn(async move {
            let mut growing = true;
            loop {
                let last = *finishing.borrow_and_update();
                let carried = carrier.carry().await;
                if let Err(why) = &carried {
                    tracing::info!(%why, "evidence is not handed over yet");
                }
                if last {
                    return;
                }
                let more = async {
                    if carried.is_ok() && growing {
                        growing = grown.changed().await.is_ok();
                    } else {
                        tokio::time::sleep(RETRY).await;
                    }
                };
                tokio::select! {
                    () = more => {}
                    // An agent that did not answer a moment ago holds up nobody's exit.
                    changed = finishing.changed() => if changed.is_err() || carried.is_err() {
                        return;
                    },
                }
            }
        });
        Self {
            finish,
            task: Mutex::new(Some(AbortOnDropHandle::new(task))),
        }
    }

    /// Hands over the rest, for a moment.
    pub(super) async fn finish(&self) {
        self.finish.send_replace(true);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(task) = task
            && tokio::time::timeout(FINISH, task).await.is_err()
        {
            tracing::info!("evidence is left to be handed over the next time");
        }
    }
}

/// Why not everything was handed over.
#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{0}")]
    Gateway(crate::error::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

struct Carrier {
    context: Context,
    folder: PathBuf,
    log: String,
    principal: Principal,
}

/// The agent's answer to a claim.
#[derive(Deserialize)]
struct Taken {
    /// The next entry that it wants.
    next: u64,
}

/// What an agent has of a recording.
#[derive(Deserialize)]
struct Has {
    length: u64,
    complete: bool,
}

impl Carrier {
    async fn carry(&self) -> Result<(), CarryError> {
        let gateway = Gateway::of(&self.context)
            .await
            .map_err(CarryError::Gateway)?;
        let cursor = self.cursor(&gateway);
        if let Some(folder) = cursor.parent() {
            disk::make_folder(folder)?;
        }
        // Another process hands the same log over: it takes this one's entries along.
        let Some(_held) =
            try_lock(&cursor.with_extension("lock")).map_err(std::io::Error::other)?
        else {
            return Ok(());
        };
        let mut next = read_cursor(&cursor)?;
        let mut client: Option<Client> = None;
        loop {
            let (from, folder) = (next, self.folder.clone());
            let entries = tokio::task::spawn_blocking(move || read_from(&folder, from)).await;
            let entries = entries.map_err(std::io::Error::other)??;
            if entries.is_empty() {
                return Ok(());
            }
            for (index, leaf) in entries {
                if let Some(event) = self.claimable(&leaf) {
                    let client = match &mut client {
                        Some(client) => client,
                        none => none.insert(Client::connect(Arc::clone(&gateway)).await?),
                    };
                    self.give(client, index, &leaf, &event).await?;
                }
                next = index + 1;
                disk::put(&cursor, next.to_string().as_bytes(), false)?;
            }
        }
    }

    /// Those of this principal alone: an agent takes nobody's claims about others.
    fn claimable(&self, leaf: &[u8]) -> Option<Event> {
        let event = ocsf::decode(leaf, &[]).ok()?.event;
        let actor = event.actor.as_ref()?;
        let mine = actor.principal == self.principal && Claim::is_claimable(&event.fact);
        mine.then_some(event)
    }

    async fn give(
        &self,
        client: &mut Client,
        index: u64,
        leaf: &[u8],
        event: &Event,
    ) -> Result<(), CarryError> {
        let path = format!("/v1/claims?log={}&entry={index}", self.log);
        let given: Result<Taken, HttpError> =
            client.post_bytes(&path, Bytes::copy_from_slice(leaf)).await;
        match given {
            Ok(taken) => tracing::debug!(index, next = taken.next, "claim handed over"),
            Err(error) if is_final(&error) => {
                tracing::warn!(index, %error, "the agent does not take this claim: it stays here");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        if self.context.auditors.is_empty() {
            // What only the user can open is of no use there.
            return Ok(());
        }
        for digest in event.fact.recordings().iter().filter(|one| one.complete) {
            let Ok(name) = digest.name.parse() else {
                continue;
            };
            match self.upload(client, name).await {
                Err(CarryError::Http(error)) if is_final(&error) => {
                    tracing::warn!(%name, %error, "the agent does not take this recording");
                }
                done => done?,
            }
        }
        Ok(())
    }

    async fn upload(&self, client: &mut Client, name: RecordingName) -> Result<(), CarryError> {
        let path = format!("/v1/claims/recordings/{name}");
        let mut has: Has = client.get_json(&path).await?;
        while !has.complete {
            let file = self.folder.join(StorePath::Recording(name).to_string());
            let offset = has.length;
            let piece = tokio::task::spawn_blocking(move || read_piece(&file, offset)).await;
            let piece = piece.map_err(std::io::Error::other)??;
            if piece.is_empty() {
                // Longer there than here: the agent will not take it.
                return Ok(());
            }
            let path = format!("{path}?offset={offset}");
            has = client.post_bytes(&path, piece).await?;
        }
        Ok(())
    }

    fn cursor(&self, gateway: &Gateway) -> PathBuf {
        let Principal {
            account, user_id, ..
        } = &self.principal;
        let name = format!("{}-{account}-{user_id}", gateway.agent().id);
        self.folder.join("handed").join(name)
    }
}

/// Whether asking again would get the same answer: the claim itself is refused.
fn is_final(error: &HttpError) -> bool {
    matches!(
        error,
        HttpError::Refused {
            status: 400 | 403 | 409 | 413,
            ..
        }
    )
}

fn read_cursor(path: &std::path::Path) -> std::io::Result<u64> {
    let bytes = disk::read(path, 32)?.unwrap_or_default();
    // Torn by a power cut it begins anew: the agent takes nothing twice.
    Ok(String::from_utf8_lossy(&bytes).parse().unwrap_or(0))
}

/// Entries from `from` to the end of its bundle.
fn read_from(folder: &std::path::Path, from: u64) -> std::io::Result<Vec<(u64, Vec<u8>)>> {
    let store = Folder::new(folder).map_err(std::io::Error::other)?;
    let size = size(&store)?;
    let index = from / TILE_WIDTH;
    let Some(width) = StorePath::tile_at(0, index, size).filter(|_| from < size) else {
        return Ok(Vec::new());
    };
    // The checkpoint says that it is there: nothing handed over would look like all of it.
    let bundle = read_file(&store, StorePath::Entries { index, width })?
        .ok_or(std::io::ErrorKind::NotFound)?;
    let (entries, _) = split_entries(&bundle);
    Ok((index * TILE_WIDTH..)
        .zip(entries)
        .take(usize::from(width))
        .filter(|(at, _)| *at >= from)
        .map(|(at, leaf)| (at, leaf.to_vec()))
        .collect())
}

fn read_piece(path: &std::path::Path, offset: u64) -> std::io::Result<Bytes> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut piece = Vec::with_capacity(PIECE);
    file.take(PIECE as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}
