//! Reading evidence: a store's log and recordings, from a folder or through the agent.
//!
//! | module | owns |
//! |---|---|
//! | [`store`] | where files come from |
//! | [`log`] | events in their order, and sessions made of them |
//! | [`text`] | an event as a person reads it |
//! | [`play`] | a recording on the terminal |
//!
//! Verification is `postern_proto::audit::verify`. Text from outside (command lines, file names,
//! reasons, output) is data here: only `play` hands terminal output to a terminal.

pub mod log;
pub mod play;
pub mod store;
pub mod text;

use std::fs;
use std::path::Path;

use age::x25519::Identity;
use zeroize::Zeroizing;

use crate::error::Error;

/// The longest identity file that is read, in bytes.
const IDENTITY_LIMIT: u64 = 64 * 1024;

/// Reads an auditor's age identity file: lines that begin with `AGE-SECRET-KEY-1`; comments and
/// blank lines are skipped.
pub fn identities(path: &Path) -> Result<Vec<Identity>, Error> {
    let unusable = |reason: &str| {
        Error::usage(format!(
            "the identity file {} cannot be used: {reason}",
            path.display()
        ))
        .hint("`age-keygen -o FILE` writes one; its public key belongs to the agent's recipients")
    };
    let length = fs::metadata(path)
        .map_err(|error| unusable(&error.to_string()))?
        .len();
    if length > IDENTITY_LIMIT {
        return Err(unusable("it is too long"));
    }
    let text = fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
    let text = Zeroizing::new(text);
    if text.starts_with("age-encryption.org/") || text.starts_with("-----BEGIN AGE") {
        return Err(unusable("it is encrypted itself: decrypt it first"));
    }
    let mut identities = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The error would not name the key; neither do we.
        let identity = line
            .parse()
            .map_err(|_| unusable(&format!("line {number} is no X25519 age identity")))?;
        identities.push(identity);
    }
    if identities.is_empty() {
        return Err(unusable("it holds no identity"));
    }
    Ok(identities)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod unit {
    use age::secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn an_identity_file_says_what_is_wrong_with_it_without_showing_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            identities(&path)
                .map(|found| found.len())
                .map_err(|error| error.message)
        };
        let key = Identity::generate();
        let secret = key.to_string().expose_secret().to_owned();
        assert_eq!(read(&format!("# created: today\n\n{secret}\n")), Ok(1));
        let error = read(&format!("{secret}x\n")).unwrap_err();
        assert!(
            error.ends_with("line 1 is no X25519 age identity") && !error.contains("SECRET"),
            "{error}"
        );
        assert!(
            read("# nothing\n")
                .unwrap_err()
                .ends_with("holds no identity")
        );
        assert!(
            read("age-encryption.org/v1\n")
                .unwrap_err()
                .contains("decrypt it first")
        );
    }
}
