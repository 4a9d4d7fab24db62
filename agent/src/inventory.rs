//! Targets: what can be reached, from EC2 and from a file.
//!
//! ```text
//! file ─┐                          ┌─ lookup   the one target that a name means
//!       ├─ Refresher ─ Snapshot ───┼─ list     those that filters leave
//! EC2 ──┘   (one task)             └─ subscribe, trouble
//! ```
//!
//! A source that fails keeps what it said last, and is reported. Names and tags are data from
//! outside: they are cleaned of what a terminal would obey, and never decide where to dial beyond
//! the address that their own source gave.

mod ec2;
mod file;
mod refresh;
mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::names::{TargetId, TargetName};
use tokio::sync::{Notify, watch};

pub use self::ec2::Ec2Error;
pub use self::file::InventoryFileError;
pub use self::refresh::Refresher;
pub use self::snapshot::{LookupError, Snapshot, Stale};
use crate::aws::{AwsError, AwsSettings};

/// A private host that can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its key: EC2 instance id, or name in the file inventory.
    pub id: TargetId,
    /// Its name for people.
    pub name: String,
    /// Tags (EC2), or labels (file).
    pub tags: BTreeMap<String, String>,
    /// AWS account, where known.
    pub account: Option<String>,
    /// AWS region, where known.
    pub region: Option<String>,
    /// VPC, where known.
    pub vpc: Option<String>,
    /// Availability zone, where known: EC2 Instance Connect wants it.
    pub zone: Option<String>,
    /// `linux` or `windows`.
    pub platform: String,
    /// Private address or DNS name that the agent resolves and dials.
    pub address: String,
    /// Further names that find it (private DNS name, aliases).
    pub aliases: Vec<String>,
    /// Where its sshd listens.
    pub ssh_port: u16,
    /// How the agent logs in.
    pub login: TargetLogin,
}

/// How the agent authenticates to a target's sshd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetLogin {
    /// A certificate of the agent's SSH user CA.
    #[default]
    Certificate,
    /// A key pushed with EC2 Instance Connect.
    InstanceConnect,
}

/// Where targets come from.
#[derive(Debug, Clone, Default)]
pub struct InventorySettings {
    /// A file of hosts. It wins over EC2 where both know an id.
    pub file: Option<PathBuf>,
    /// EC2 instances.
    pub ec2: Option<Ec2Settings>,
}

/// EC2 as a source.
#[derive(Debug, Clone)]
pub struct Ec2Settings {
    /// Regions to list.
    pub regions: Vec<String>,
    /// Endpoint, CA and credentials.
    pub aws: AwsSettings,
    /// How the agent logs in to instances without a tag `postern:login`.
    pub login: TargetLogin,
    /// How often instances are listed.
    pub refresh: Duration,
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The inventory file is broken.
    #[error(transparent)]
    File(#[from] InventoryFileError),
    /// EC2 cannot be called with these settings.
    #[error("EC2 inventory: {0}")]
    Aws(#[from] AwsError),
}

impl InventoryError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::Aws(_) => Some("see `inventory.ec2` in agent.toml".to_owned()),
        }
    }
}

/// The targets of an inventory file. Blocks.
pub fn read_file(path: &std::path::Path) -> Result<Vec<Target>, InventoryFileError> {
    file::load(path)
}

/// How many instances EC2 says that run, or why it does not say, for each region.
pub async fn ask_ec2(
    settings: &Ec2Settings,
) -> Result<Vec<(String, Result<usize, String>)>, InventoryError> {
    let mut answers = Vec::new();
    for region in ec2::Ec2::all(settings).await? {
        let listed = region.list().await;
        let count = listed.map(|targets| targets.len());
        answers.push((region.region, count.map_err(|error| error.to_string())));
    }
    Ok(answers)
}

/// All targets as they are known now.
pub struct Inventory {
    snapshot: watch::Sender<Arc<Snapshot>>,
    trouble: watch::Sender<Option<Arc<str>>>,
    wanted: Notify,
}

impl Inventory {
    /// Reads the file and lists EC2 once. A broken file or unusable settings are errors; an EC2
    /// that does not answer is [`Self::trouble`], and asked again. The caller runs the
    /// [`Refresher`] and owns its task.
    pub async fn open(
        settings: InventorySettings,
    ) -> Result<(Arc<Self>, Refresher), InventoryError> {
        let inventory = Arc::new(Self {
            snapshot: watch::Sender::new(Arc::new(Snapshot::default())),
            trouble: watch::Sender::new(None),
            wanted: Notify::new(),
        });
        let refresher = Refresher::open(Arc::clone(&inventory), settings).await?;
        Ok((inventory, refresher))
    }

    /// The targets at this moment.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// The one target that a name means ([`Snapshot::lookup`]).
    pub fn lookup(&self, name: &TargetName) -> Result<Arc<Target>, LookupError> {
        self.snapshot().lookup(name)
    }

    /// A target as it is now.
    pub fn get(&self, id: &TargetId) -> Option<Arc<Target>> {
        self.snapshot().get(id)
    }

    /// The targets that all filters leave ([`Snapshot::list`]).
    pub fn list(&self, filters: &[String]) -> Vec<Arc<Target>> {
        self.snapshot().list(filters)
    }

    /// Tells when targets are other ones: live sessions are decided again.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// `Some(why)` while a source fails and its last answer stays in use.
    pub fn trouble(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.trouble.subscribe()
    }

    /// Has all sources read again soon (SIGHUP).
    pub fn refresh(&self) {
        self.wanted.notify_one();
    }
}
