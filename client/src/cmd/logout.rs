//! `postern logout`: nothing stays.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::LogoutArgs;
use crate::context::Context;
use crate::error::Error;
use crate::evidence;
use crate::identity;

/// Destroys sessions, certificates and the key that sealed them. Being logged out is no failure.
pub async fn run(context: &Context, args: LogoutArgs) -> Result<ExitCode, Error> {
    let forgotten = identity::logout(context, args.all).await?;
    if args.all {
        evidence::forget(context).await?;
    }
    if context.printer.json {
        context.printer.json(&json!({ "forgotten": forgotten }))?;
    } else if forgotten.is_empty() {
        context.printer.answer("Nobody was logged in")?;
    } else {
        for profile in forgotten {
            context.printer.answer(format!(
                "Forgot session and certificates of profile `{profile}`"
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
