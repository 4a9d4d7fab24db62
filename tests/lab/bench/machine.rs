//! The machine: what it is, and what it lets one process have.

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// Descriptors of one process that the largest measurement needs: two sockets and a recording for
/// each of 11,000 sessions, with room.
const DESCRIPTORS: u64 = 65_536;

/// What figures depend on. Nothing that names this one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// The processor's model.
    pub processor: String,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// The kernel, without what its builder added.
    pub kernel: String,
    /// What the rival is.
    pub openssh: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let kernel = rustix::system::uname();
        let release = kernel.release().to_string_lossy();
        let release: String = release
            .chars()
            .take_while(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| "unknown".to_owned()),
            memory_gib: memory.unwrap_or(0).div_ceil(1024 * 1024),
            kernel: format!("Linux {release}"),
            openssh: openssh(),
        }
    }
}

/// `OpenSSH_9.2p1` of `OpenSSH_9.2p1 Debian-2, OpenSSL …`.
fn openssh() -> Option<String> {
    let said = std::process::Command::new("ssh").arg("-V").output().ok()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let version = said.split([' ', ',']).next()?;
    version
        .starts_with("OpenSSH")
        .then(|| version.replace('_', " "))
}

/// Raises this process's limit of descriptors, which its children inherit, as far as it may.
/// Answers what it is then.
pub fn raise_descriptors() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let wanted = DESCRIPTORS.max(hard);
    let try_set = |current: u64, maximum: u64| {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(current),
                maximum: Some(maximum),
            },
        )
    };
    // Only root may raise the hard limit; everybody may go up to it.
    if try_set(wanted, wanted).is_err() {
        try_set(hard, hard).context("the limit of open files cannot be raised")?;
    }
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// How many sessions that limit lets one process carry: the agent has two sockets for each, and
/// opens the recordings of those that are active at one moment.
pub fn sessions_within(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(1600) / 2).unwrap_or(usize::MAX)
}
