//! Opening the store: settings, what was found, the threads.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use postern_proto::audit::event::{Event, Fact, RecordingDigest};
use postern_proto::audit::note::{LogIdentity, LogSigner, NoteError, sign_key_change};
use postern_proto::audit::ocsf;
use postern_proto::names::{AgentId, SessionId};
use postern_proto::recording::RecordingName;
use rustix::fs::{FlockOperation, flock};
use secrecy::ExposeSecret as _;
use tokio::sync::{mpsc, watch};

use super::auditors::Auditors;
use super::claims::Claims;
use super::event::{agent_event, now_ms};
use super::flush::{Dirty, Flusher};
use super::health::Health;
use super::queue::Queue;
use super::quota::{Quotas, Usage};
use super::reader::FolderStore;
use super::recorder::Recorder;
use super::recover::{self, LogError, OpenSessions};
use super::reserve::Reserve;
use super::writer::{QUEUE, Writer};
use super::{Evidence, EvidenceError, Settings, Shared, Threads, VERSION, disk, handed};

/// Recorder threads: writes to the page cache rarely block, and the work is hashing and sealing.
const RECORDERS: usize = 2;
/// How often a log that seems broken is looked at again.
const LOOKS: usize = 3;

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Startup {
    /// Whether the log is new.
    pub first: bool,
    /// Entries that the log held, those that were kept included.
    pub entries: u64,
    /// Whole entries after the last checkpoint: kept.
    pub kept: u64,
    /// Bytes of a torn entry: dropped. Nobody was told that it is durable.
    pub dropped: u64,
    /// Sessions that had no end: closed as interrupted.
    pub interrupted: Vec<SessionId>,
    /// What an operator should change.
    pub warnings: Vec<String>,
}

/// Why the store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("evidence folder {}: {error}", .folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another process writes this log.
    #[error("evidence folder {}: another process has it open", .0.display())]
    Locked(PathBuf),
    /// The log's key is not usable.
    #[error("audit log key: {0}")]
    Key(NoteError),
    /// An auditors' recipient is not usable.
    #[error("{0}")]
    Recipients(String),
    /// The log does not reproduce its last checkpoint. Nothing was changed.
    #[error("audit log in {}: {error}", .folder.display())]
    Log {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        error: LogError,
    },
    /// The first entries could not be written.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// Why a log could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The key is not usable.
    #[error("its key: {0}")]
    Key(#[from] NoteError),
    /// The log is not what its checkpoint says.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// How many entries the log in `folder` holds, signed by one of `keys` and checked like at start
/// but without changing anything; `None` when there is none yet. The agent may run. Blocks, and
/// reads the whole log.
pub fn look(folder: &Path, agent: &AgentId, keys: &[&str]) -> Result<Option<u64>, LookError> {
    let signers: Vec<_> = keys
        .iter()
        .map(|key| LogSigner::new(agent, key))
        .collect::<Result<_, _>>()?;
    let mut last = recover::inspect(folder, agent, &signers);
    // While a log grows, files may go with which we began; a log that is broken stays so.
    for _ in 0..LOOKS {
        if !matches!(last, Err(LogError::Missing(_) | LogError::Altered(_))) {
            break;
        }
        last = recover::inspect(folder, agent, &signers);
    }
    Ok(last?)
}

impl OpenError {
    /// What an operator can do.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Folder { folder, .. } => format!(
                "the agent's user needs {} for itself: to read, to write and to sync",
                folder.display()
            ),
            Self::Locked(_) => {
                "stop the other postern-agent, or give this one a store of its own: \
                 `evidence.store`"
                    .to_owned()
            }
            Self::Key(_) => {
                "keys/audit-log.key is the key that `postern-agent init` made for this agent's id"
                    .to_owned()
            }
            Self::Recipients(_) => "see `evidence.recipients` in agent.toml".to_owned(),
            Self::Log { error, .. } => recover::hint(error).to_owned(),
            Self::Evidence(_) => return None,
        })
    }
}

impl Evidence {
    /// Opens the store: locks it, checks its log against the last durable checkpoint, closes the
    /// sessions that were open as interrupted and says in the log that the agent started. Reads
    /// the whole log and is not for an async thread.
    pub fn open(settings: Settings) -> Result<(Self, Startup), OpenError> {
        let folder = settings.folder.clone();
        let fault = |error: io::Error| OpenError::Folder {
            folder: folder.clone(),
            error,
        };
        let auditors =
            Arc::new(Auditors::new(&settings.recipients).map_err(OpenError::Recipients)?);
        let signers = signers(&settings).map_err(OpenError::Key)?;

        let recordings = folder.join("recordings");
        disk::make_folder(&recordings).map_err(fault)?;
        let lock = lock_folder(&folder)?;
        // Pieces of recordings are handed over again from the start.
        drop(std::fs::remove_dir_all(handed::pieces(&folder)));
        let recovered =
            recover::open(&folder, &settings.agent, signers).map_err(|error| OpenError::Log {
                folder: folder.clone(),
                error,
            })?;

        let health = Arc::new(Health::new(settings.deadline));
        let (checkpoint_tx, checkpoint) = watch::channel(recovered.log.checkpoint.clone());
        let old_checkpoint = recovered.log.checkpoint.clone();
        let claims = Arc::new(recovered.claims);
        let mut recorded = recovered.recorded;
        for leaf in &recovered.kept {
            if let Ok(decoded) = ocsf::decode(leaf, &[]) {
                recorded.follow(&decoded.event, &recovered.open);
                claims.follow(&decoded.event, leaf.len() as u64);
            }
        }
        let mut writer = Writer {
            log: recovered.log,
            auditors: Arc::clone(&auditors),
            health: Arc::clone(&health),
            watched: health.watch("writing the audit log"),
            reserve: Reserve::open(&folder).map_err(fault)?,
            open: recovered.open,
            checkpoint: checkpoint_tx,
            floor: settings.free_floor,
        };
        writer.keep(&recovered.kept)?;
        let store = FolderStore::new(folder.clone());
        let interrupted = interrupted(&store, &writer.open).map_err(fault)?;
        for event in &interrupted {
            recorded.follow(event, &writer.open);
        }
        let usage = Usage::new(
            Quotas {
                session: settings.session_quota,
                principal: settings.principal_quota,
            },
            recorded,
        );
        let startup = Startup {
            first: recovered.first,
            entries: writer.log.size(),
            kept: recovered.kept.len() as u64,
            dropped: recovered.dropped,
            interrupted: interrupted
                .iter()
                .filter_map(|event| event.session)
                .collect(),
            warnings: warnings(&settings),
        };
        let mut events =
            key_change(&settings, &writer.log.signers, &old_checkpoint).map_err(OpenError::Key)?;
        events.push(agent_event(Fact::AgentStarted {
            version: VERSION.to_owned(),
            recipients: auditors.texts().to_vec(),
            interrupted: startup.interrupted.clone(),
        }));
        events.extend(interrupted);
        writer.begin(events)?;

        let evidence = start(
            settings,
            auditors,
            health,
            (usage, claims),
            writer,
            checkpoint,
            lock,
        )
        .map_err(fault)?;
        Ok((evidence, startup))
    }
}

fn signers(settings: &Settings) -> Result<Vec<LogSigner>, NoteError> {
    [Some(&settings.signing_key), settings.previous_key.as_ref()]
        .into_iter()
        .flatten()
        .map(|secret| LogSigner::new(&settings.agent, secret.expose_secret()))
        .collect()
}

/// One writer: the lock lives as long as its file is open, and dies with the process.
fn lock_folder(folder: &Path) -> Result<File, OpenError> {
    let file = disk::options()
        .create(true)
        .truncate(false)
        .open(folder.join("lock"))
        .map_err(|error| OpenError::Folder {
            folder: folder.to_owned(),
            error,
        })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(OpenError::Locked(folder.to_owned())),
    }
}

fn warnings(settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    if settings.recipients.len() < 2 {
        warnings.push(
            "there is one auditors' recipient alone: if its identity is lost, no recording can \
             be read again"
                .to_owned(),
        );
    }
    warnings
}

/// The old key's word for the new one, where the last checkpoint was not signed by the new one.
fn key_change(
    settings: &Settings,
    signers: &[LogSigner],
    checkpoint: &str,
) -> Result<Vec<Event>, NoteError> {
    let [new, old] = signers else {
        return Ok(Vec::new());
    };
    let identity = LogIdentity::new(settings.agent.clone(), new.vkey())?;
    if identity.checkpoint(checkpoint).is_ok() {
        return Ok(Vec::new());
    }
    Ok(vec![agent_event(Fact::LogKeyChanged {
        vkey: new.vkey().to_owned(),
        note: sign_key_change(&settings.agent, new.vkey(), old)?,
    })])
}

/// The closing event of each session without an end, with what is left of its recordings.
fn interrupted(store: &FolderStore, open: &OpenSessions) -> io::Result<Vec<Event>> {
    if open.own.is_empty() {
        return Ok(Vec::new());
    }
    let mut left: BTreeMap<SessionId, Vec<RecordingName>> = BTreeMap::new();
    for name in store.recordings()? {
        left.entry(name.session).or_default().push(name);
    }
    open.own
        .iter()
        .map(|(session, open)| {
            let names = left.remove(session).unwrap_or_default();
            let recordings = names
                .into_iter()
                // What the log already states as ended needs no second word.
                .filter(|name| {
                    let logged = open.recordings.get(&name.to_string());
                    !logged.is_some_and(|digest| digest.complete)
                })
                .map(|name| store.digest(name))
                .collect::<io::Result<Vec<RecordingDigest>>>()?;
            Ok(Event {
                time_ms: now_ms(),
                fact: Fact::SessionInterrupted { recordings },
                ..open.granted.clone()
            })
        })
        .collect()
}

fn start(
    settings: Settings,
    auditors: Arc<Auditors>,
    health: Arc<Health>,
    (usage, claims): (Usage, Arc<Claims>),
    writer: Writer,
    checkpoint: watch::Receiver<String>,
    lock: File,
) -> io::Result<Evidence> {
    let (orders, taken) = mpsc::channel(QUEUE);
    let signer = writer.log.signers.first();
    let vkey = signer.map(|signer| signer.vkey().to_owned());
    let vkey = vkey.unwrap_or_default();
    let queue = Arc::new(Queue::default());
    let dirty = Arc::new(Dirty::new());
    let recordings: Arc<Path> = settings.folder.join("recordings").into();
    dirty.look(&recordings)?;
    let mut threads = Threads::default();
    let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        thread.spawn(body)
    };
    let flusher = Flusher {
        folder: Arc::clone(&recordings),
        dirty: Arc::clone(&dirty),
        health: Arc::clone(&health),
        watched: health.watch("flushing recordings"),
        orders: orders.downgrade(),
        interval: settings.progress,
        quiet: settings.quiet,
    };
    threads.log.push(spawn(
        "evidence-log",
        Box::new(move || {
            writer.run(taken);
            // Held until the log is closed.
            drop(lock);
        }),
    )?);
    for _ in 0..RECORDERS {
        let recorder = Recorder {
            folder: Arc::clone(&recordings),
            queue: Arc::clone(&queue),
            auditors: Arc::clone(&auditors),
            health: Arc::clone(&health),
            watched: health.watch("writing recordings"),
            dirty: Arc::clone(&dirty),
        };
        let thread = spawn("evidence-record", Box::new(move || recorder.run()))?;
        threads.recorders.push(thread);
    }
    threads
        .flusher
        .push(spawn("evidence-flush", Box::new(move || flusher.run()))?);
    let watchdog = Arc::clone(&health);
    threads.log.push(spawn(
        "evidence-watch",
        Box::new(move || watchdog.run_watchdog()),
    )?);
    Ok(Evidence {
        shared: Arc::new(Shared {
            folder: settings.folder,
            vkey,
            orders,
            queue,
            dirty,
            health,
            usage,
            claims,
            uploads: Arc::default(),
            recordings: Mutex::new(HashMap::new()),
            checkpoint,
            floor: settings.free_floor,
            record_input: settings.record_input,
            bulk_programs: settings.bulk_programs,
            threads: Mutex::new(threads),
            #[cfg(test)]
            temporary: std::sync::OnceLock::new(),
        }),
    })
}
