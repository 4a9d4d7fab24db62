//! Every client is a witness: it keeps the newest checkpoint that it saw of each agent's log, and
//! demands that every later one continues it.
//!
//! The check itself is `postern_proto::audit::witness`. Here is the memory: one file per agent
//! (named by the pinned id) in the client's state folder, replaced atomically, under a lock, so
//! that several commands at once do not go back in time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use postern_proto::audit::note::{Checkpoint, LogIdentity, NoteError};
use postern_proto::audit::witness;
use postern_proto::gateway::message::Witness;
use rustix::fs::FlockOperation;
use thiserror::Error;

use crate::config::AgentProfile;

/// Why the agent's evidence is not accepted.
#[derive(Debug, Error)]
pub enum WitnessError {
    /// The log is not the one that was seen before, or does not prove what it must.
    #[error("agent `{agent}` is not to be trusted: {fault}")]
    Fault {
        /// The agent's id.
        agent: String,
        /// What is wrong.
        fault: witness::WitnessError,
    },
    /// The pinned log key is unusable.
    #[error("the log key of agent `{agent}` in the configuration is unusable: {fault}")]
    Key {
        /// The agent's id.
        agent: String,
        /// What is wrong.
        fault: NoteError,
    },
    /// What was kept cannot be read as a checkpoint of this log.
    #[error("{path} holds no checkpoint of agent `{agent}`: {fault}")]
    Kept {
        /// The file.
        path: PathBuf,
        /// The agent's id.
        agent: String,
        /// What is wrong.
        fault: NoteError,
    },
    /// The memory cannot be read or written.
    #[error("the newest checkpoint could not be kept in {path}: {source}")]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl WitnessError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Fault { .. } => {
                "do not use this agent; tell your auditors, and keep the client's state folder as evidence".to_owned()
            }
            Self::Key { .. } => "take the agent's profile from its operator again".to_owned(),
            Self::Kept { path, .. } => format!(
                "if the agent's log key was replaced on purpose, move {} away; else tell your auditors",
                path.display()
            ),
            Self::Store { .. } => "check the client's state folder (POSTERN_STATE): its owner, rights and space".to_owned(),
        }
    }

    /// Whether this is proof, or suspicion, of a changed log rather than a local failure.
    pub fn is_accusation(&self) -> bool {
        matches!(self, Self::Fault { .. } | Self::Kept { .. })
    }
}

/// The memory of one agent's log.
#[derive(Debug, Clone)]
pub struct Memory {
    log: LogIdentityOf,
    path: PathBuf,
    /// What the file held last: its signature is not verified again while it is the same.
    last: Arc<Mutex<Option<Checkpoint>>>,
}

#[derive(Clone)]
struct LogIdentityOf(LogIdentity);

impl std::fmt::Debug for LogIdentityOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.origin())
    }
}

impl Memory {
    /// The memory of `agent`'s log below the state folder. Reads nothing yet.
    pub fn new(state: &Path, agent: &AgentProfile) -> Result<Self, WitnessError> {
        let log = LogIdentity::new(agent.id.clone(), &agent.log_key).map_err(|fault| {
            WitnessError::Key {
                agent: agent.id.to_string(),
                fault,
            }
        })?;
        Ok(Self {
            log: LogIdentityOf(log),
            path: state.join("checkpoints").join(agent.id.as_str()),
            last: Arc::default(),
        })
    }

    /// The newest checkpoint that was accepted; `None` when this agent was never seen.
    pub fn newest(&self) -> Result<Option<Checkpoint>, WitnessError> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.store(error)),
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = last.as_ref().filter(|last| last.note == text) {
            return Ok(Some(same.clone()));
        }
        let kept = self
            .log
            .0
            .checkpoint(&text)
            .map_err(|fault| WitnessError::Kept {
                path: self.path.clone(),
                agent: self.log.0.origin().to_string(),
                fault,
            })?;
        *last = Some(kept.clone());
        Ok(Some(kept))
    }

    /// Accepts evidence whose consistency is proven against `known`, and keeps its checkpoint.
    /// Returns it: the next evidence of the same session is proven against it.
    pub fn accept(
        &self,
        evidence: &Witness,
        known: Option<&Checkpoint>,
    ) -> Result<Checkpoint, WitnessError> {
        let now =
            witness::check(&self.log.0, evidence, known).map_err(|fault| WitnessError::Fault {
                agent: self.log.0.origin().to_string(),
                fault,
            })?;
        self.keep(&now, known)?;
        Ok(now)
    }

    /// Replaces what is kept when that is what the proof was against. Another command may have
    /// kept another one meanwhile: that stays, and the next session has to continue it.
    fn keep(&self, now: &Checkpoint, known: Option<&Checkpoint>) -> Result<(), WitnessError> {
        let store = |error| self.store(error);
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(store)?;
        }
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path.with_extension("lock"))
            .map_err(store)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| store(error.into()))?;
        let kept = self.newest()?;
        if let Some(kept) = &kept
            && kept.size == now.size
            && kept.root != now.root
        {
            return Err(WitnessError::Fault {
                agent: self.log.0.origin().to_string(),
                fault: witness::WitnessError::Rewritten { known: kept.size },
            });
        }
        if kept.as_ref() != known || kept.as_ref() == Some(now) {
            return Ok(());
        }
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh).map_err(store)?;
        file.write_all(now.note.as_bytes()).map_err(store)?;
        file.sync_all().map_err(store)?;
        fs::rename(&fresh, &self.path).map_err(store)
    }

    fn store(&self, source: io::Error) -> WitnessError {
        WitnessError::Store {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use postern_proto::audit::note::{LogSigner, new_key, sign_checkpoint};
    use postern_proto::audit::tree::{Edge, Hash, TileEdge, leaf_hash, prove_growth, prove_leaf};

    use super::*;

    /// A log and what its agent says about its last entry to a client that knows `old` entries.
    fn evidence(entries: &[&str], old: u64) -> Witness {
        let origin = "bastion-1".parse().unwrap();
        let (secret, _) = new_key(&origin, &[1; 32]).unwrap();
        let signer = LogSigner::new(&origin, &secret).unwrap();
        let (mut edge, mut tiles) = (Edge::default(), TileEdge::default());
        for entry in entries {
            edge.push(leaf_hash(entry.as_bytes()));
            tiles.push(leaf_hash(entry.as_bytes()));
        }
        let source = |level: u8, index: u64| {
            let found = tiles.partial().find(|(l, i, _)| (*l, *i) == (level, index));
            found.map(|(_, _, bytes)| bytes.to_vec())
        };
        let (size, leaf) = (entries.len() as u64, entries.len() as u64 - 1);
        let text = |hashes: Vec<Hash>| hashes.iter().map(|hash| hex::encode(hash.0)).collect();
        Witness {
            checkpoint: sign_checkpoint(&origin, size, edge.root(), &[&signer]).unwrap(),
            leaf,
            leaf_hash: hex::encode(leaf_hash(entries[leaf as usize].as_bytes()).0),
            proof: text(prove_leaf(&source, size, leaf).unwrap()),
            consistency: text(prove_growth(&source, size, old.min(size)).unwrap()),
        }
    }

    fn memory(state: &Path) -> Memory {
        let origin = "bastion-1".parse().unwrap();
        let (_, log_key) = new_key(&origin, &[1; 32]).unwrap();
        let agent = AgentProfile {
            id: origin,
            log_key,
            ..crate::testing::profile()
        };
        Memory::new(state, &agent).unwrap()
    }

    #[test]
    fn what_was_seen_in_one_command_is_demanded_in_the_next() {
        let state = tempfile::tempdir().unwrap();
        memory(state.path())
            .accept(&evidence(&["a", "b", "c"], 0), None)
            .unwrap();
        let later = memory(state.path());
        let known = later.newest().unwrap();
        assert_eq!(known.as_ref().map(|known| known.size), Some(3));
        later
            .accept(&evidence(&["a", "b", "c", "d"], 3), known.as_ref())
            .unwrap();
        assert_eq!(later.newest().unwrap().map(|known| known.size), Some(4));
    }

    #[test]
    fn a_log_that_was_rolled_back_or_rewritten_is_an_accusation_and_changes_no_memory() {
        let state = tempfile::tempdir().unwrap();
        let memory = memory(state.path());
        memory.accept(&evidence(&["a", "b", "c"], 0), None).unwrap();
        let known = memory.newest().unwrap();
        for changed in [evidence(&["a", "b"], 2), evidence(&["a", "x", "c", "d"], 3)] {
            let error = memory.accept(&changed, known.as_ref()).unwrap_err();
            assert!(error.is_accusation(), "{error}");
        }
        assert_eq!(memory.newest().unwrap(), known);
    }

    #[test]
    fn two_commands_at_once_do_not_go_back_in_time() {
        let state = tempfile::tempdir().unwrap();
        let memory = memory(state.path());
        memory.accept(&evidence(&["a"], 0), None).unwrap();
        let known = memory.newest().unwrap();
        memory
            .accept(&evidence(&["a", "b", "c"], 1), known.as_ref())
            .unwrap();
        // The slower one knew the same state and was told an older one.
        memory
            .accept(&evidence(&["a", "b"], 1), known.as_ref())
            .unwrap();
        assert_eq!(memory.newest().unwrap().map(|known| known.size), Some(3));
        // A fork between the two shows at the same size.
        let error = memory
            .accept(&evidence(&["a", "b", "x"], 1), known.as_ref())
            .unwrap_err();
        assert!(error.is_accusation(), "{error}");
    }

    #[test]
    fn a_damaged_memory_is_not_an_empty_one() {
        let state = tempfile::tempdir().unwrap();
        let memory = memory(state.path());
        memory.accept(&evidence(&["a"], 0), None).unwrap();
        let kept = memory.newest().unwrap();
        let text = fs::read_to_string(&memory.path).unwrap();
        // What was verified once is verified again when it is another text.
        for changed in ["nothing", &text.replace("\n1\n", "\n2\n")] {
            fs::write(&memory.path, changed).unwrap();
            let error = memory.newest().unwrap_err();
            assert!(matches!(error, WitnessError::Kept { .. }), "{error}");
            assert!(error.is_accusation());
        }
        fs::write(&memory.path, &text).unwrap();
        assert_eq!(memory.newest().unwrap(), kept);
    }
}
