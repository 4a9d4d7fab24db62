//! The folder of the client's evidence: one log for each key that this client ever had, of which
//! the newest is written.
//!
//! ```text
//! logs                 public keys of all of them, oldest first
//! key.sealed           secret keys of the newest; what opens it is in the keyring
//! client-NAME/         a log with its recordings, laid out as an agent's
//!   open/SESSION       locked by the process whose session it is
//!   handed/AGENT-…     how far the log was handed over to an agent
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::x25519::Identity;
use postern_proto::audit::event::{
    Access, Actor, Event, EventTarget, Fact, PreviousLog, SsmSession,
};
use postern_proto::audit::layout::CHECKPOINT_LIMIT;
use postern_proto::audit::note::LogIdentity;
use postern_proto::names::{Assurance, NameError, Principal, SessionId};
use postern_proto::recording::{Kind, RecordingName};
use tokio::sync::watch;

use super::lock::lock;
use super::log::{AppendError, Log, started};
use super::open::{Marker, interrupt_dead};
use super::recipients::Recipients;
use super::recording::Recording;
use super::writer::{Counts, Writer, unwritten};
use super::{Carries, EvidenceError, Facts, channel, disk, key, now_ms};
use crate::context::Context;
use crate::identity::sts::Caller;

/// The longest list of recipients that is read back.
const RECIPIENTS_LIMIT: u64 = 64 * 1024;

/// A log of this client, to be read.
#[derive(Debug, Clone)]
pub(crate) struct LocalStore {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Its name and key, from the list beside the logs.
    pub(crate) log: LogIdentity,
}

/// What began.
pub(super) struct Begun {
    pub(super) session: SessionId,
    pub(super) counts: Arc<Counts>,
    pub(super) failure: watch::Receiver<Option<Arc<str>>>,
    pub(super) grown: watch::Receiver<u64>,
}

/// Every log of this client that is there, oldest first.
pub(crate) fn local_stores(context: &Context) -> Result<Vec<LocalStore>, EvidenceError> {
    let unusable = |cause: String| unusable(context, cause);
    let keys = key::known(&context.evidence).map_err(|error| unusable(error.to_string()))?;
    let mut stores = Vec::new();
    for vkey in keys {
        let name = vkey.split('+').next().unwrap_or_default();
        let log = name
            .parse()
            .map_err(|error: NameError| unusable(error.to_string()))
            .and_then(|origin| {
                LogIdentity::new(origin, &vkey).map_err(|error| unusable(error.to_string()))
            })?;
        let folder = context.evidence.join(log.origin().as_str());
        // A key whose log was never begun, or was moved away.
        if ["checkpoint", "tile"]
            .iter()
            .any(|part| folder.join(part).exists())
        {
            stores.push(LocalStore { folder, log });
        }
    }
    Ok(stores)
}

/// What opens recordings that are encrypted to the user, while its key is there.
pub(crate) async fn own_identity(context: &Context) -> Result<Option<Identity>, EvidenceError> {
    let keys = key::fetch(context).await;
    let keys = keys.map_err(|error| unusable(context, error.to_string()))?;
    Ok(keys.map(|keys| keys.identity))
}

/// Ends the log with all logins, unless its key opens recordings: a new one names it.
pub(crate) async fn forget(context: &Context) -> Result<(), EvidenceError> {
    let forgotten = key::forget(context).await;
    forgotten.map_err(|error| unusable(context, error.to_string()))
}

/// The log to write, begun where there was none, with what died before closed. And a note for the
/// person, once.
pub(super) async fn writable(context: &Context) -> Result<(Log, Option<String>), EvidenceError> {
    let keys = key::fetch_or_make(context).await;
    let (keys, new) = keys.map_err(|error| unusable(context, error.to_string()))?;
    let own = [keys.identity.to_public().to_string()];
    let texts = match context.auditors.as_slice() {
        [] => own.as_slice(),
        auditors => auditors,
    };
    let recipients = Recipients::new(texts).map_err(|why| unusable(context, why))?;
    let folder = context.evidence.join(keys.origin.as_str());
    let log = Log::new(folder, keys.origin, keys.signer, recipients);
    let evidence = context.evidence.clone();
    if context.auditors.is_empty() {
        key::is_needed(&evidence).map_err(|error| unusable(context, error.to_string()))?;
    }
    let ready = tokio::task::spawn_blocking(move || prepare(&evidence, &log).map(|()| log)).await;
    let log = ready
        .map_err(|error| unusable(context, error.to_string()))?
        .map_err(|error| unusable(context, error.to_string()))?;
    let note = (new && context.auditors.is_empty()).then(|| {
        "this session is recorded for you: the key is in your keyring, and what it opens is lost \
         with it (`auditors = [\"age1…\"]` in the configuration names other readers)"
            .to_owned()
    });
    Ok((log, note))
}

fn unusable(context: &Context, cause: String) -> EvidenceError {
    EvidenceError::Unusable {
        folder: context.evidence.display().to_string(),
        cause,
    }
}

fn prepare(evidence: &Path, log: &Log) -> Result<(), AppendError> {
    disk::make_folder(&log.folder.join("recordings"))?;
    {
        let _held = lock(&evidence.join("lock"))?;
        let noted = log.folder.join("recipients");
        let texts = log.recipients.texts().join("\n");
        let fact = if !log.folder.join("checkpoint").exists() {
            Some(started(&log.recipients, previous(evidence, log)))
        } else if disk::read(&noted, RECIPIENTS_LIMIT)?.as_deref() != Some(texts.as_bytes()) {
            Some(Fact::RecipientsChanged {
                recipients: log.recipients.texts().to_vec(),
            })
        } else {
            None
        };
        if let Some(fact) = fact {
            log.append(&[own_event(fact)], None)?;
            disk::put(&noted, texts.as_bytes(), true)?;
        }
    }
    interrupt_dead(log).map(drop)
}

/// The log before this one, as it was left.
fn previous(evidence: &Path, log: &Log) -> Option<PreviousLog> {
    let known = key::known(evidence).ok()?;
    let vkey = known.into_iter().rfind(|vkey| vkey != log.vkey())?;
    let name = vkey.split('+').next()?.to_owned();
    let path = evidence.join(name).join("checkpoint");
    let checkpoint = disk::read(&path, CHECKPOINT_LIMIT).ok()??;
    let checkpoint = String::from_utf8(checkpoint).ok()?;
    Some(PreviousLog { vkey, checkpoint })
}

fn own_event(fact: Fact) -> Event {
    Event {
        time_ms: now_ms(),
        session: None,
        actor: None,
        source: None,
        target: None,
        fact,
    }
}

/// Claims a session: recording begun, log durable. Blocks.
pub(super) fn begin(log: Arc<Log>, facts: Facts) -> Result<(Writer, Begun), EvidenceError> {
    let session = fresh_id()?;
    let access = access(&facts.carries);
    let claimed = claimed(session, &facts, &access)?;
    let name = RecordingName { session, number: 0 };
    let marker = Marker::put(&log.folder, &claimed, &access)
        .map_err(|error| unwritten("the mark of an open session", &error))?;
    let begun = Recording::begin(&log.folder, name, &kind(&facts), &log.recipients);
    let recording = match begun {
        Ok(recording) => recording,
        Err(error) => {
            marker.remove();
            return Err(unwritten("the recording", &error));
        }
    };
    let mut events = vec![claimed.clone()];
    events.extend(channel(&facts.carries).map(|channel| Event {
        fact: Fact::ChannelOpened {
            channel,
            policies: Vec::new(),
            refused: None,
            recording: Some(name.to_string()),
        },
        ..claimed.clone()
    }));
    if let Err(error) = log.append(&events, Some(&access)) {
        recording.discard();
        marker.remove();
        return Err(EvidenceError::Failed(format!("the log: {error}").into()));
    }
    let (failure, failed) = watch::channel(None);
    let (grown, growing) = watch::channel(0);
    let counts = Arc::new(Counts::default());
    let begun = Begun {
        session,
        counts: Arc::clone(&counts),
        failure: failed,
        grown: growing,
    };
    let writer = Writer {
        log,
        claimed,
        access,
        marker,
        recording,
        counts,
        failure,
        grown,
        totals: (0, 0),
        stated: 0,
    };
    Ok((writer, begun))
}

fn fresh_id() -> Result<SessionId, EvidenceError> {
    let mut random = [0; 16];
    aws_lc_rs::rand::fill(&mut random)
        .map_err(|_| EvidenceError::Failed("no randomness".into()))?;
    let now = u64::try_from(now_ms()).unwrap_or(0);
    Ok(SessionId::of_client(now, u128::from_be_bytes(random)))
}

fn claimed(session: SessionId, facts: &Facts, access: &Access) -> Result<Event, EvidenceError> {
    let ssm: &SsmSession = &facts.ssm;
    Ok(Event {
        time_ms: now_ms(),
        session: Some(session),
        actor: Some(Actor {
            principal: principal(&facts.caller)?,
            assurance: Assurance::AwsMfa,
            mfa_not_before: facts.mfa_at,
            certificate: String::new(),
            aws_request_ids: ssm.request_id.iter().cloned().collect(),
        }),
        source: None,
        target: Some(EventTarget {
            id: facts.target.clone(),
            name: facts.name.clone(),
            address: None,
        }),
        fact: Fact::SessionClaimed {
            access: access.clone(),
            ssm: ssm.clone(),
        },
    })
}

/// An STS caller as a principal.
pub(super) fn principal(caller: &Caller) -> Result<Principal, EvidenceError> {
    let wrong = |error: NameError| EvidenceError::Failed(error.to_string().into());
    Ok(Principal {
        account: caller.account.parse().map_err(wrong)?,
        user_id: caller.user_id.parse().map_err(wrong)?,
        arn: caller.arn.clone(),
    })
}

fn access(carries: &Carries) -> Access {
    match carries {
        Carries::Shell { .. } | Carries::Command { .. } => Access::Shell,
        Carries::Ssh { user, .. } => Access::Ssh { user: user.clone() },
        Carries::Tunnel { host, port } => Access::Tunnel {
            host: host.clone(),
            port: *port,
        },
    }
}

fn kind(facts: &Facts) -> Kind {
    let terminal =
        |(columns, rows): (u32, u32), term: &str, command: Option<&String>| Kind::Terminal {
            columns,
            rows,
            term: term.to_owned(),
            command: command.cloned(),
        };
    let streams = |command: &str| Kind::Streams {
        command: command.to_owned(),
    };
    match &facts.carries {
        Carries::Shell {
            columns,
            rows,
            term,
        } => terminal((*columns, *rows), term, None),
        Carries::Command {
            line,
            terminal: Some(size),
        } => terminal(*size, "", Some(line)),
        Carries::Command { line, .. } => streams(line),
        Carries::Ssh {
            line,
            terminal: Some((columns, rows, term)),
            ..
        } => terminal((*columns, *rows), term, line.as_ref()),
        Carries::Ssh { line, .. } => streams(line.as_deref().unwrap_or_default()),
        Carries::Tunnel { host, port } => Kind::Flow {
            destination: match host {
                Some(host) => format!("{host}:{port}"),
                None => format!("{}:{port}", facts.name),
            },
        },
    }
}
