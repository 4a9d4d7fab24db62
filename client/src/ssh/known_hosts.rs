//! The host key of a target that is reached without an agent: nobody vouches for it but what this
//! person accepted before, in the files of OpenSSH.
//!
//! A key that is known is taken. Another key of a host that is known is refused, of whatever kind:
//! the known kinds are asked for first. A host that is not known is asked about on a terminal and
//! refused without one. Wildcards and host CAs in those files are not understood: such a host
//! counts as unknown.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use russh::keys::known_hosts::{known_host_keys_path, learn_known_hosts_path};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PublicKeyOrCertificate};

use crate::config::Environment;
use crate::identity::terminal;

/// Of every user of this computer.
const GLOBAL: &str = "/etc/ssh/ssh_known_hosts";
/// A larger file is not looked through for revoked keys.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// What is known of one host.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    /// Under which it may be known; the first is the one to remember it by.
    names: Vec<String>,
    port: u16,
    /// The person's own file, which is added to.
    own: Option<PathBuf>,
    global: PathBuf,
    may_ask: bool,
}

impl KnownHosts {
    /// Of a managed node: by its id, which no other host ever gets, or as it was typed.
    pub fn of(environment: &Environment, id: &str, typed: &str, port: u16, may_ask: bool) -> Self {
        let mut names = vec![id.to_owned()];
        // What cannot be a name in the file is not looked for there.
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
        if typed != id && typed.bytes().all(is_name) {
            names.push(typed.to_owned());
        }
        Self {
            names,
            port,
            own: environment
                .home()
                .map(|home| home.join(".ssh").join("known_hosts")),
            global: PathBuf::from(GLOBAL),
            may_ask,
        }
    }

    /// The kinds of keys that are known: to be asked for first.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        // What cannot be read is an error when a key is checked.
        let known = self.known().unwrap_or_default();
        known.iter().map(|(_, key)| key.algorithm()).collect()
    }

    /// Takes a key that is known, or that the person accepts; says what is wrong with any other.
    /// russh has verified that the host holds it.
    pub(super) async fn check(&self, shown: &PublicKeyOrCertificate) -> Result<(), String> {
        if shown.certificate().is_some() {
            return Err("the host shows a certificate that was not asked for".to_owned());
        }
        let shown = shown.public_key();
        let fingerprint = shown.fingerprint(HashAlg::Sha256);
        if self.is_revoked(&shown)? {
            return Err(format!(
                "the SSH host key {fingerprint} of {} is revoked in known_hosts",
                self.name()
            ));
        }
        let known = self.known()?;
        if known
            .iter()
            .any(|(_, key)| key.key_data() == shown.key_data())
        {
            return Ok(());
        }
        if let Some((place, _)) = known.first() {
            return Err(format!(
                "the SSH host key of {} is not the known one: {fingerprint} now, another in {place}; \
                 either the host was made anew, or somebody stands in between",
                self.name(),
            ));
        }
        if !self.may_ask {
            return Err(format!(
                "the SSH host key of {} is not known: {} {fingerprint}",
                self.name(),
                shown.algorithm(),
            ));
        }
        self.ask(&shown).await
    }

    fn name(&self) -> &str {
        self.names.first().map_or("the host", String::as_str)
    }

    /// Known keys, each with its place.
    fn known(&self) -> Result<Vec<(String, PublicKey)>, String> {
        let mut known = Vec::new();
        for file in self.files() {
            for name in &self.names {
                let found = known_host_keys_path(name, self.port, file)
                    .map_err(|error| format!("{} cannot be used: {error}", file.display()))?;
                let placed = found
                    .into_iter()
                    .map(|(line, key)| (format!("{} line {line}", file.display()), key));
                known.extend(placed);
            }
        }
        Ok(known)
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        self.own.as_deref().into_iter().chain([&*self.global])
    }

    /// Lines with `@revoked` hold for every host here.
    fn is_revoked(&self, shown: &PublicKey) -> Result<bool, String> {
        for file in self.files() {
            let Ok(text) = crate::config::read_small("known_hosts", file, FILE_LIMIT) else {
                if file.exists() {
                    return Err(format!("{} cannot be read", file.display()));
                }
                continue;
            };
            let text = String::from_utf8_lossy(&text);
            let revoked = text.lines().filter_map(|line| {
                let mut words = line.split_whitespace();
                (words.next()? == "@revoked").then_some(())?;
                let _hosts = words.next()?;
                PublicKey::from_openssh(&format!("{} {}", words.next()?, words.next()?)).ok()
            });
            for key in revoked {
                if key.key_data() == shown.key_data() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn ask(&self, shown: &PublicKey) -> Result<(), String> {
        let question = format!(
            "The SSH host key of {} is not known: {} {}\nIs it the right one (yes/no)? ",
            self.name(),
            shown.algorithm(),
            shown.fingerprint(HashAlg::Sha256),
        );
        let answer = terminal::ask_shown(&question)
            .await
            .map_err(|error| error.to_string())?;
        if answer.trim() != "yes" {
            return Err(format!(
                "the SSH host key of {} was not accepted",
                self.name()
            ));
        }
        let Some(own) = &self.own else {
            return Ok(());
        };
        self.learn(own, shown)
            .map_err(|error| format!("{} cannot be written: {error}", own.display()))
    }

    fn learn(&self, own: &Path, shown: &PublicKey) -> Result<(), String> {
        if let Some(folder) = own.parent() {
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder);
            made.map_err(|error| error.to_string())?;
        }
        learn_known_hosts_path(self.name(), self.port, shown, own)
            .map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use russh::keys::PrivateKey;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    use super::*;

    fn key(seed: u8) -> PublicKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
            .public_key()
            .clone()
    }

    fn line(hosts: &str, seed: u8) -> String {
        format!("{hosts} {}\n", key(seed).to_openssh().unwrap())
    }

    fn hosts(folder: &Path) -> KnownHosts {
        KnownHosts {
            names: vec!["i-0abc".to_owned(), "app-1".to_owned()],
            port: 22,
            own: Some(folder.join(".ssh").join("known_hosts")),
            global: folder.join("global"),
            may_ask: false,
        }
    }

    async fn check(own: &str, global: &str, seed: u8) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(".ssh")).unwrap();
        fs::write(folder.path().join(".ssh/known_hosts"), own).unwrap();
        fs::write(folder.path().join("global"), global).unwrap();
        let told = hosts(folder.path()).check(&key(seed).into()).await;
        told.map_err(|text| text.replace(&folder.path().display().to_string(), "~"))
    }

    #[tokio::test]
    async fn a_known_key_is_taken_under_either_name_and_from_either_file() {
        assert_eq!(check(&line("i-0abc", 1), "", 1).await, Ok(()));
        assert_eq!(check(&line("x,app-1", 1), "", 1).await, Ok(()));
        assert_eq!(check("", &line("i-0abc", 1), 1).await, Ok(()));
    }

    #[tokio::test]
    async fn every_other_key_is_refused_with_its_reason() {
        let mut certificate =
            russh::keys::ssh_key::certificate::Builder::new([7; 16], key(1), 0, u64::MAX).unwrap();
        certificate.all_principals_valid().unwrap();
        let ca = PrivateKey::from(Ed25519Keypair::from_seed(&[9; 32]));
        let folder = tempfile::tempdir().unwrap();
        let reasons = [
            check("", "", 1).await.unwrap_err(),
            check(&line("i-0abc", 1), "", 2).await.unwrap_err(),
            check(&line("i-0abc", 1), &line("app-1", 2), 3)
                .await
                .unwrap_err(),
            check(&(line("i-0abc", 1) + "@revoked " + &line("*", 1)), "", 1)
                .await
                .unwrap_err(),
            check(&line("i-0abd", 1), "", 1).await.unwrap_err(),
            hosts(folder.path())
                .check(&certificate.sign(&ca).unwrap().into())
                .await
                .unwrap_err(),
        ];
        let mut told = reasons.join("\n");
        for seed in 1..=3 {
            let fingerprint = key(seed).fingerprint(HashAlg::Sha256).to_string();
            told = told.replace(&fingerprint, &format!("KEY-{seed}"));
        }
        insta::assert_snapshot!(told, @r"
        the SSH host key of i-0abc is not known: ssh-ed25519 KEY-1
        the SSH host key of i-0abc is not the known one: KEY-2 now, another in ~/.ssh/known_hosts line 1; either the host was made anew, or somebody stands in between
        the SSH host key of i-0abc is not the known one: KEY-3 now, another in ~/.ssh/known_hosts line 1; either the host was made anew, or somebody stands in between
        the SSH host key KEY-1 of i-0abc is revoked in known_hosts
        the SSH host key of i-0abc is not known: ssh-ed25519 KEY-1
        the host shows a certificate that was not asked for
        ");
    }

    #[tokio::test]
    async fn an_accepted_key_is_known_from_then_on_and_the_folder_is_private() {
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let hosts = hosts(folder.path());
        let own = hosts.own.clone().unwrap();
        hosts.learn(&own, &key(1)).unwrap();
        assert_eq!(hosts.check(&key(1).into()).await, Ok(()));
        assert!(hosts.check(&key(2).into()).await.is_err());
        let mode = fs::metadata(own.parent().unwrap()).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
    }
}
