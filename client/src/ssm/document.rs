//! Which SSM document runs what, with its parameters.

use std::collections::BTreeMap;

/// The account's preferences: a shell. Named always, so that policies can name it.
pub const SHELL: &str = "SSM-SessionManagerRunShell";
/// A command with a terminal.
pub const INTERACTIVE: &str = "AWS-StartInteractiveCommand";
/// A command without one.
pub const NON_INTERACTIVE: &str = "AWS-StartNonInteractiveCommand";
/// Bytes to one port of the target, for `ssh`.
pub const SSH: &str = "AWS-StartSSHSession";
/// Connections to one port of the target.
pub const PORT: &str = "AWS-StartPortForwardingSession";
/// Connections to one port of a host behind the target.
pub const REMOTE_HOST: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// Parameters as StartSession takes them: each a list of one.
pub fn parameters<const N: usize>(named: [(&str, String); N]) -> BTreeMap<String, Vec<String>> {
    named
        .into_iter()
        .map(|(name, value)| (name.to_owned(), vec![value]))
        .collect()
}
