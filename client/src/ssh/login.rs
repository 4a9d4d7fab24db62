//! Proving to a host who this is: keys of the SSH agent, then those in `~/.ssh`, as `ssh` does.
//! Passwords are not offered.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_proto::names::LoginUser;
use russh::MethodKind;
use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{
    Error as KeyError, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey,
    load_openssh_certificate, load_public_key, load_secret_key,
};
use tokio::net::UnixStream;

use super::SshError;
use super::client::Handler;
use crate::config::Environment;
use crate::identity::terminal;
use crate::output::Printer;

/// Key files that are looked for, in this order.
const FILES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// For the SSH agent to list its keys.
const LISTING: Duration = Duration::from_secs(10);
/// Passphrases that are asked for, for one file.
const ATTEMPTS: usize = 3;

/// Who wants in, and with what.
#[derive(Debug, Clone)]
pub struct Login {
    user: LoginUser,
    keys: Option<Keys>,
}

/// Where keys are.
#[derive(Debug, Clone)]
struct Keys {
    agent: Option<PathBuf>,
    folder: Option<PathBuf>,
    may_ask: bool,
    printer: Printer,
}

impl Login {
    /// For a server that asks for no proof.
    pub(super) fn nothing(user: LoginUser) -> Self {
        Self { user, keys: None }
    }

    /// With the keys of this person.
    pub fn with_keys(
        user: LoginUser,
        environment: &Environment,
        may_ask: bool,
        printer: Printer,
    ) -> Self {
        Self {
            user,
            keys: Some(Keys {
                agent: environment.path("SSH_AUTH_SOCK"),
                folder: environment.home().map(|home| home.join(".ssh")),
                may_ask,
                printer,
            }),
        }
    }

    /// Proves it, once the host has proven itself.
    pub(super) async fn prove(self, handle: &mut Handle<Handler>) -> Result<(), SshError> {
        let Self { user, keys } = self;
        let first = handle.authenticate_none(user.as_str()).await;
        let first = first.map_err(|error| SshError::Protocol(error.to_string()))?;
        let remaining = match first {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure {
                remaining_methods, ..
            } => remaining_methods,
        };
        let Some(keys) = keys else {
            return Err(SshError::Protocol(format!(
                "it does not take user `{user}` without further authentication"
            )));
        };
        let refused = |reason: String| SshError::Login {
            user: user.to_string(),
            reason,
        };
        if !remaining.contains(&MethodKind::PublicKey) {
            return Err(refused("it takes no keys".to_owned()));
        }
        let mut offer = Offer {
            handle,
            user: user.as_str(),
            tried: Vec::new(),
        };
        let mut held = Vec::new();
        if let Some(socket) = &keys.agent
            && offer.of_agent(socket, &keys, &mut held).await?
        {
            return Ok(());
        }
        if let Some(folder) = &keys.folder {
            for name in FILES {
                if offer.of_file(&folder.join(name), &keys, &held).await? {
                    return Ok(());
                }
            }
        }
        Err(refused(match offer.tried.len() {
            0 => "there is no key to show: no SSH agent holds one, nor does ~/.ssh".to_owned(),
            _ => format!("none of these keys opens it: {}", offer.tried.join(", ")),
        }))
    }
}

/// Shows one key after the other.
struct Offer<'a> {
    handle: &'a mut Handle<Handler>,
    user: &'a str,
    tried: Vec<String>,
}

impl Offer<'_> {
    /// The keys of the SSH agent; they are put into `held` too.
    async fn of_agent(
        &mut self,
        socket: &Path,
        keys: &Keys,
        held: &mut Vec<PublicKey>,
    ) -> Result<bool, SshError> {
        let listed = async {
            let mut agent = AgentClient::connect_uds(socket).await?;
            let identities = agent.request_identities().await?;
            Ok::<_, KeyError>((agent, identities))
        };
        let listed = match tokio::time::timeout(LISTING, listed).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                keys.printer.detail(format!("the SSH agent: {error}"));
                return Ok(false);
            }
            Err(_) => {
                keys.printer.detail("the SSH agent does not answer");
                return Ok(false);
            }
        };
        let (mut agent, identities) = listed;
        for identity in identities {
            if self.of_identity(&mut agent, &identity).await? {
                return Ok(true);
            }
            held.push(identity.public_key().into_owned());
        }
        Ok(false)
    }

    async fn of_identity(
        &mut self,
        agent: &mut AgentClient<UnixStream>,
        identity: &AgentIdentity,
    ) -> Result<bool, SshError> {
        let shown = match identity {
            AgentIdentity::PublicKey { key, comment } => {
                self.note(comment, key);
                let hash = self.hash_for(key).await;
                let key = key.clone();
                self.handle
                    .authenticate_publickey_with(self.user, key, hash, agent)
                    .await
            }
            AgentIdentity::Certificate {
                certificate,
                comment,
            } => {
                let key = PublicKey::new(certificate.public_key().clone(), "");
                self.note(comment, &key);
                let hash = self.hash_for(&key).await;
                let certificate = certificate.clone();
                self.handle
                    .authenticate_certificate_with(self.user, certificate, hash, agent)
                    .await
            }
        };
        match shown {
            Ok(result) => Ok(result.success()),
            // An agent that does not sign with this key may with the next.
            Err(russh::AgentAuthError::Key(error)) => {
                tracing::info!(%error, "the SSH agent did not sign");
                Ok(false)
            }
            Err(russh::AgentAuthError::Send(_)) => Err(self.hung_up()),
        }
    }

    /// A key file, with its certificate where there is one.
    async fn of_file(
        &mut self,
        path: &Path,
        keys: &Keys,
        held: &[PublicKey],
    ) -> Result<bool, SshError> {
        let public = load_public_key(with_suffix(path, ".pub")).ok();
        let is_held = |key: &PublicKey| held.iter().any(|it| it.key_data() == key.key_data());
        if public.as_ref().is_some_and(is_held) {
            // The agent showed it already.
            return Ok(false);
        }
        let Some(key) = load(path, keys).await else {
            return Ok(false);
        };
        let key = Arc::new(key);
        let name = path.display().to_string();
        if let Ok(certificate) = load_openssh_certificate(with_suffix(path, "-cert.pub")) {
            self.note(&format!("{name}-cert.pub"), key.public_key());
            let shown = self
                .handle
                .authenticate_openssh_cert(self.user, Arc::clone(&key), certificate)
                .await;
            if shown.map_err(|_| self.hung_up())?.success() {
                return Ok(true);
            }
        }
        self.note(&name, key.public_key());
        let hash = self.hash_for(key.public_key()).await;
        let key = PrivateKeyWithHashAlg::new(key, hash);
        let shown = self.handle.authenticate_publickey(self.user, key).await;
        Ok(shown.map_err(|_| self.hung_up())?.success())
    }

    fn note(&mut self, name: &str, key: &PublicKey) {
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        self.tried.push(match name {
            "" => fingerprint.to_string(),
            name => format!("{name} ({fingerprint})"),
        });
    }

    /// What RSA signs with: what the host likes best, never SHA-1.
    async fn hash_for(&self, key: &PublicKey) -> Option<HashAlg> {
        if !key.algorithm().is_rsa() {
            return None;
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(Some(hash))) => Some(hash),
            _ => Some(HashAlg::Sha256),
        }
    }

    fn hung_up(&self) -> SshError {
        SshError::Login {
            user: self.user.to_owned(),
            reason: format!("it hung up after {} keys", self.tried.len()),
        }
    }
}

/// Reads a key file; asks for its passphrase where somebody can be asked. `None` when there is no
/// usable one.
async fn load(path: &Path, keys: &Keys) -> Option<PrivateKey> {
    let name = path.display();
    match load_secret_key(path, None) {
        Ok(key) => return Some(key),
        Err(KeyError::IO(error)) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(KeyError::KeyIsEncrypted) if keys.may_ask => {}
        Err(error) => {
            keys.printer.detail(format!("{name} is not used: {error}"));
            return None;
        }
    }
    for _ in 0..ATTEMPTS {
        let question = format!("Passphrase of {name}: ");
        let passphrase = match terminal::ask_hidden(&question).await {
            Ok(passphrase) => passphrase,
            Err(error) => {
                keys.printer.detail(format!("{name} is not used: {error}"));
                return None;
            }
        };
        if passphrase.is_empty() {
            return None;
        }
        // Deriving the key takes a moment.
        let path = path.to_owned();
        let loading = tokio::task::spawn_blocking(move || load_secret_key(path, Some(&passphrase)));
        if let Ok(Ok(key)) = loading.await {
            return Some(key);
        }
        keys.printer.note("that is not its passphrase");
    }
    None
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
