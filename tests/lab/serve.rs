//! `lab --serve`: everything that foreign clients need, as one line of JSON, until Ctrl-C.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::account::{ENCRYPTED_SHELL, HOSTS, SEPARATE_COMMAND};
use crate::stack::{DATABASE_PORT, Lab, RDP_PORT, SSH_PORT};
use crate::{client, console};

/// Prints the line and waits for SIGINT or SIGTERM.
pub async fn run(lab: &Lab) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    console::answer(&description(lab).to_string());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// What the line holds.
pub fn description(lab: &Lab) -> Value {
    let targets: BTreeMap<&str, Value> = HOSTS
        .iter()
        .map(|host| {
            let facts = json!({
                "id": host.id,
                "address": host.address(&lab.network),
                "managed": host.managed,
                "ssh_port": SSH_PORT,
                "database_port": (host.name == "db-1").then_some(DATABASE_PORT),
                "rdp_port": (host.name == "win-1").then_some(RDP_PORT),
            });
            (host.name, facts)
        })
        .collect();
    json!({
        "env": lab.environment,
        "users": client::people(&lab.aws),
        "agent": {
            "id": lab.agent.id,
            "address": lab.agent.address,
            "health": lab.agent.health,
            "pid": lab.agent.pid(),
            "ca": lab.agent.ca,
            "log_key": lab.agent.log_key,
            "audit_store": lab.agent.audit_store,
            "auditor_identity": lab.auditor_identity,
            "config": lab.agent.config,
        },
        "aws": { "endpoint": lab.aws.endpoint(), "ca": lab.environment.get("AWS_CA_BUNDLE") },
        "ssm": {
            "gateway": lab.aws.gateway_address(),
            "documents": [ENCRYPTED_SHELL, SEPARATE_COMMAND],
        },
        "control": lab.control.url(),
        "targets": targets,
    })
}
