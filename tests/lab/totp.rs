//! `lab totp USER`: what the user's virtual MFA device shows now.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::account::PEOPLE;
use crate::aws::current_code;
use crate::console;

/// Prints the code. Users' seeds are fixed, so no running lab is needed.
pub fn print(user: &OsStr) -> Result<ExitCode> {
    let names = || PEOPLE.map(|person| person.name).join(", ");
    let person = PEOPLE
        .iter()
        .find(|person| user == person.name)
        .with_context(|| format!("no user `{}`; the lab has {}", user.display(), names()))?;
    console::answer(&current_code(person.totp_secret).context("the seed is not base32")?);
    Ok(ExitCode::SUCCESS)
}
