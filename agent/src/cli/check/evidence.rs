//! The store of audit log and recordings. Nothing is changed, and an agent may run meanwhile.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::Finding;
use crate::config::Config;
use crate::evidence::{self, LookError, log_hint};
use crate::keys::{KeyFolder, SecretText, name};

const SUBJECT: &str = "evidence";

/// Who can read recordings.
pub(super) fn recipients(config: &Config) -> Finding {
    let count = config.evidence.recipients.len();
    if count < 2 {
        return Finding::warning(
            "recipients",
            "only one auditor can read recordings: if that key is lost, they are lost",
            "add a second age recipient to `evidence.recipients`",
        );
    }
    Finding::ok(
        "recipients",
        format!("{count} auditors can read recordings"),
    )
}

/// Space, the right to write, and whether the log is the one that this agent's key signs.
pub(super) async fn store(config: &Config) -> Vec<Finding> {
    let folder = config.evidence_store();
    let Some(place) = existing(&folder) else {
        return vec![Finding::error(
            SUBJECT,
            format!(
                "{} cannot be made: nothing above it exists",
                folder.display()
            ),
            "name a folder in `evidence.store`",
        )];
    };
    let mut findings = vec![space(config, &place)];
    if place != folder {
        findings.push(Finding::ok(
            SUBJECT,
            format!("{} is made at start", folder.display()),
        ));
        return findings;
    }
    if let Err(error) = try_to_write(&folder) {
        findings.push(Finding::error(
            SUBJECT,
            format!("cannot write to {}: {error}", folder.display()),
            "the agent's user needs the folder for itself",
        ));
        return findings;
    }
    findings.push(log(config, folder).await);
    findings
}

fn space(config: &Config, place: &Path) -> Finding {
    const SUBJECT: &str = "free space";
    let floor = config.evidence.free_floor;
    let free = match rustix::fs::statvfs(place) {
        Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
        Err(error) => {
            return Finding::error(
                SUBJECT,
                format!("under {} is not known: {error}", place.display()),
                "the store must be on a file system that tells",
            );
        }
    };
    let shown = |bytes: u64| format!("{} MiB", bytes >> 20);
    if free < floor {
        return Finding::error(
            SUBJECT,
            format!(
                "{} under {}, below the floor of {}: no session starts",
                shown(free),
                place.display(),
                shown(floor)
            ),
            "make room, set `evidence.retention`, or lower `evidence.free_floor`",
        );
    }
    Finding::ok(
        SUBJECT,
        format!("{} under {}", shown(free), place.display()),
    )
}

async fn log(config: &Config, folder: PathBuf) -> Finding {
    // What is wrong with the key is told with the other keys.
    let folder_of_keys = KeyFolder::new(&config.keys);
    let names = std::iter::once(name::LOG_KEY).chain(config.evidence.previous_key.as_deref());
    let keys: Result<Vec<_>, _> = names.map(|name| folder_of_keys.private(name)).collect();
    let Ok(keys) = keys else {
        return Finding::warning(
            SUBJECT,
            "the log was not looked at: its key cannot be read",
            "mend the keys first",
        );
    };
    let agent = config.id.clone();
    let shown = folder.display().to_string();
    let look = move || {
        let keys: Vec<_> = keys.iter().map(SecretText::text).collect();
        evidence::look(&folder, &agent, &keys)
    };
    match tokio::task::spawn_blocking(look).await {
        Ok(Ok(None)) => Finding::ok(SUBJECT, format!("{shown} holds no log yet")),
        Ok(Ok(Some(entries))) => Finding::ok(
            SUBJECT,
            format!("{entries} entries in {shown} agree with the last checkpoint"),
        ),
        Ok(Err(error)) => {
            let hint = match &error {
                LookError::Key(_) => "see what `check` says of the keys",
                LookError::Log(error) => log_hint(error),
            };
            Finding::error(SUBJECT, format!("audit log in {shown}: {error}"), hint)
        }
        Err(error) => Finding::error(SUBJECT, error.to_string(), "run it again"),
    }
}

/// The folder, or what exists above it.
fn existing(folder: &Path) -> Option<PathBuf> {
    let found = folder.ancestors().find(|place| place.is_dir())?;
    Some(found.to_owned())
}

/// Makes a file and removes it: what the mode bits promise may still not hold.
fn try_to_write(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!("check-{}.draft", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?;
    std::fs::remove_file(&probe)
}
