//! `postern status`: who, since when, for how long.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::StatusArgs;
use crate::config::AgentProfile;
use crate::context::Context;
use crate::error::{Error, Kind};
use crate::identity::{self, Certificate, Kept};
use crate::output::{lasting, moment};

/// Tells what is kept, without asking AWS or an agent. Exit code 4 when no session lives.
pub async fn run(context: &Context, _args: StatusArgs) -> Result<ExitCode, Error> {
    let kept = identity::kept(context).await?;
    let session = kept.as_ref().map(|(kept, _)| kept);
    if context.printer.json {
        context.printer.json(&json!({
            "profile": context.profile,
            "logged_in": session.is_some(),
            "account": session.map(|kept| &kept.caller.account),
            "user_id": session.map(|kept| &kept.caller.user_id),
            "arn": session.map(|kept| &kept.caller.arn),
            "mfa_serial": session.map(|kept| &kept.serial),
            "mfa_at": session.map(|kept| moment(kept.mfa_at)),
            "ends_at": session.map(|kept| moment(kept.user.ends_at)),
            "role": session.and_then(|kept| kept.role.as_ref()).map(|role| json!({
                "arn": role.arn,
                "ends_at": moment(role.session.ends_at),
            })),
            "keyring": kept.as_ref().map(|(_, ring)| ring.name()),
            "agents": context.agents.iter().map(|agent| json!({
                "id": agent.id,
                "address": agent.address,
                "certificate_ends_at": session
                    .and_then(|kept| certificate(kept, agent))
                    .map(|certificate| moment(certificate.not_after)),
            })).collect::<Vec<_>>(),
        }))?;
    } else if let Some((kept, ring)) = &kept {
        text(context, kept, ring.name())?;
    }
    if kept.is_some() {
        return Ok(ExitCode::SUCCESS);
    }
    if context.printer.json {
        return Ok(ExitCode::from(Kind::LoginNeeded.code()));
    }
    Err(identity::IdentityError::LoginNeeded(context.profile.clone()).into())
}

fn text(context: &Context, kept: &Kept, ring: &str) -> Result<(), Error> {
    let row = |name: &str, value: String| context.printer.answer(format!("{name:<9} {value}"));
    row("profile", context.profile.clone())?;
    row("user", kept.caller.arn.clone())?;
    row(
        "mfa",
        format!("{} with {}", moment(kept.mfa_at), kept.serial),
    )?;
    row(
        "session",
        format!(
            "until {} ({})",
            moment(kept.user.ends_at),
            lasting(kept.user.ends_at)
        ),
    )?;
    if let Some(role) = &kept.role {
        row(
            "role",
            format!("{} ({})", role.arn, lasting(role.session.ends_at)),
        )?;
    }
    row("keyring", ring.to_owned())?;
    for agent in &context.agents {
        let state = certificate(kept, agent).map_or_else(
            || "no certificate yet".to_owned(),
            |certificate| format!("certificate {}", lasting(certificate.not_after)),
        );
        row(
            "agent",
            format!("{} at {} ({state})", agent.id, agent.address),
        )?;
    }
    Ok(())
}

fn certificate<'a>(kept: &'a Kept, agent: &AgentProfile) -> Option<&'a Certificate> {
    kept.certificates
        .iter()
        .find(|certificate| certificate.agent == agent.id.as_str())
}
