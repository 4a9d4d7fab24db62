//! `postern login`: the code once, then a kept session.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::LoginArgs;
use crate::context::Context;
use crate::error::Error;
use crate::identity;
use crate::output::{lasting, moment};

/// Gives the code to AWS, keeps the session, says for whom and until when.
pub async fn run(context: &Context, args: LoginArgs) -> Result<ExitCode, Error> {
    let kept = identity::login(context, args.mfa_code.as_ref(), args.duration).await?;
    let role = kept.role.as_ref();
    if context.printer.json {
        context.printer.json(&json!({
            "profile": context.profile,
            "account": kept.caller.account,
            "user_id": kept.caller.user_id,
            "arn": kept.caller.arn,
            "mfa_at": moment(kept.mfa_at),
            "ends_at": moment(kept.user.ends_at),
            "role": role.map(|role| json!({
                "arn": role.arn,
                "ends_at": moment(role.session.ends_at),
            })),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    context.printer.answer(format!(
        "Logged in as {} until {} ({})",
        kept.caller.arn,
        moment(kept.user.ends_at),
        lasting(kept.user.ends_at)
    ))?;
    if let Some(role) = role {
        context.printer.answer(format!("Role {}", role.arn))?;
    }
    Ok(ExitCode::SUCCESS)
}
