//! Keys pushed with EC2 Instance Connect, as an instance finds them in its metadata for a minute.

use std::io::Write as _;
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

    /// Adds keys to that file as they are pushed: the agent dials first and pushes then.
    pub fn follow(&self, user: &str, file: &Path) {
        let (instance, user, file) = (self.instance, user.to_owned(), file.to_owned());
        let Some(aws) = self.aws.upgrade() else {
            return;
        };
        aws.on_push(move |key| {
            if key.instance_id != instance || key.os_user != user {
                return;
            }
            let mut open = std::fs::OpenOptions::new();
            let written = open
                .create(true)
                .append(true)
                .open(&file)
                .and_then(|mut file| writeln!(file, "{}", key.public_key));
            if let Err(error) = written {
                tracing::warn!(%error, "a pushed key could not be written");
            }
        });
    }
}
