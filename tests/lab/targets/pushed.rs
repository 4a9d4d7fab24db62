//! Keys pushed with EC2 Instance Connect, as an instance finds them in its metadata for a minute.

use std::path::Path;
use std::sync::{Arc, Weak};

use crate::aws::Aws;

/// Asks the emulated AWS which keys an instance honours now.
#[derive(Clone)]
pub struct PushedKeys {
    aws: Weak<Aws>,
    instance: &'static str,
}

impl PushedKeys {
    /// For one instance.
    pub fn new(aws: &Arc<Aws>, instance: &'static str) -> Self {
        Self {
            aws: Arc::downgrade(aws),
            instance,
        }
    }

    /// Lines as in `authorized_keys`.
    pub fn of(&self, user: &str) -> Vec<String> {
        self.aws.upgrade().map_or_else(Vec::new, |aws| {
            aws.ssh_keys(self.instance, user)
                .into_iter()
                .map(|key| key.public_key)
                .collect()
        })
    }

    /// Writes the file that sshd reads: what its package's `AuthorizedKeysCommand` would answer.
    pub fn write(&self, user: &str, file: &Path) -> std::io::Result<()> {
        let lines: String = self.of(user).iter().map(|key| format!("{key}\n")).collect();
        std::fs::write(file, lines)
    }
}
