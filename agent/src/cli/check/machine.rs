//! What the machine under the agent must give: a folder, addresses, file descriptors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use ipnet::IpNet;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, UdpSocket};

use crate::cli::Finding;
use crate::config::Config;
use crate::ssh::HostKeys;

/// AWS's instance metadata service: whoever reaches it gets the agent's own credentials.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
/// A connection to a client, one to its target, and files of its recordings.
const DESCRIPTORS_EACH: u64 = 4;

/// The folder that the agent writes to.
pub(super) fn state(config: &Config) -> Finding {
    const SUBJECT: &str = "state folder";
    let path = &config.state;
    let user = rustix::process::geteuid().as_raw();
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::warning(
                SUBJECT,
                format!("{} does not exist yet", path.display()),
                "the agent makes it at start, if it may; `StateDirectory=postern` of systemd does",
            );
        }
        Err(error) => {
            return Finding::error(
                SUBJECT,
                format!("cannot look at {}: {error}", path.display()),
                "the agent needs a folder of its own to write to",
            );
        }
    };
    if !metadata.is_dir() || (metadata.uid() != user && metadata.uid() != 0) {
        return Finding::error(
            SUBJECT,
            format!("{} is not a folder of this user", path.display()),
            "the agent needs a folder of its own to write to",
        );
    }
    if metadata.mode() & 0o022 != 0 {
        return Finding::error(
            SUBJECT,
            format!("{} can be written by others", path.display()),
            &format!("chmod go-w {}", path.display()),
        );
    }
    Finding::ok(SUBJECT, path.display().to_string())
}

/// Whether the agent can listen and dial where it is told to.
pub(super) async fn network(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        listener("listen", config.listen).await,
        listener("health_listen", config.health_listen).await,
    ];
    if let Some(source) = config.dial.source_address {
        findings.push(source_address(source).await);
    }
    let lent = |network: &&IpNet| METADATA.iter().any(|address| network.contains(address));
    if let Some(network) = config.dial.allow.iter().find(lent) {
        findings.push(Finding::warning(
            "dial.allow",
            format!("{network} holds the instance metadata service, which hands out the agent's own credentials"),
            "name smaller networks in `dial.allow`",
        ));
    }
    findings
}

async fn listener(key: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address).await {
        Ok(_) => Finding::ok(key, address.to_string()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::warning(
            key,
            format!("{address} is in use"),
            "that is as it should be while the agent runs; else another program has it",
        ),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    "choose a port above 1023: the agent runs without privileges"
                }
                _ => "name an address of this machine, or 0.0.0.0 for all of them",
            };
            Finding::error(key, format!("cannot listen on {address}: {error}"), hint)
        }
    }
}

async fn source_address(source: IpAddr) -> Finding {
    const SUBJECT: &str = "dial.source_address";
    match UdpSocket::bind((source, 0)).await {
        Ok(_) => Finding::ok(SUBJECT, source.to_string()),
        Err(error) => Finding::error(
            SUBJECT,
            format!("cannot dial from {source}: {error}"),
            "name an address of this machine, or leave it out",
        ),
    }
}

/// Whether the system lets as many connections be open as the settings say.
pub(super) fn descriptors(config: &Config) -> Finding {
    const SUBJECT: &str = "open files";
    let needed = (config.limits.connections as u64).saturating_mul(DESCRIPTORS_EACH);
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Finding::warning(
            SUBJECT,
            format!("at most {limit} here, and `limits.connections` may take {needed}"),
            "the systemd unit raises it (`LimitNOFILE=`); by hand: `ulimit -n`",
        ),
        Some(limit) => Finding::ok(SUBJECT, format!("at most {limit}")),
        None => Finding::ok(SUBJECT, "no limit"),
    }
}

/// The host keys of targets that the agent has pinned.
pub(super) fn host_keys(config: &Config) -> Finding {
    const SUBJECT: &str = "pinned host keys";
    let path = config.state.join("host-keys.json");
    match HostKeys::load(path.clone(), &[]) {
        Ok(_) if path.exists() => Finding::ok(SUBJECT, path.display().to_string()),
        Ok(_) => Finding::ok(SUBJECT, "none yet"),
        Err(error) => Finding::error(
            SUBJECT,
            error.to_string(),
            "restore a copy; without the file every target's key is trusted on first use again",
        ),
    }
}
