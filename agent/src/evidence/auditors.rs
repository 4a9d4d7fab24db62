//! Encryption to the auditors. The agent holds no identity: what it seals it cannot read back.

use std::io::Write as _;
use std::str::FromStr as _;
use std::sync::Mutex;

use age::x25519::Recipient;
use postern_proto::recording::DataKey;

use super::EvidenceError;

/// Wrapped keys that are made ahead while nothing else is to be done, so that a recording begins
/// without waiting for curve arithmetic.
const POOL: usize = 16;

/// The auditors' recipients.
pub(super) struct Auditors {
    recipients: Vec<Recipient>,
    texts: Vec<String>,
    pool: Mutex<Vec<WrappedKey>>,
}

/// A fresh data key and its age file.
pub(super) struct WrappedKey {
    pub(super) key: DataKey,
    pub(super) file: Vec<u8>,
}

impl Auditors {
    /// Parses age recipients (`age1…`); at least one.
    pub(super) fn new(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() {
            return Err("there is no auditors' recipient".to_owned());
        }
        let recipients = texts
            .iter()
            .map(|text| {
                Recipient::from_str(text.trim())
                    .map_err(|error| format!("auditors' recipient `{text}`: {error}"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            recipients,
            texts: texts.iter().map(|text| text.trim().to_owned()).collect(),
            pool: Mutex::default(),
        })
    }

    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Encrypts to all of them.
    pub(super) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        let recipients = self.recipients.iter().map(|one| one as &dyn age::Recipient);
        let encryptor =
            age::Encryptor::with_recipients(recipients).map_err(|error| error.to_string())?;
        let mut file = Vec::with_capacity(plain.len() + 512);
        let mut writer = encryptor
            .wrap_output(&mut file)
            .map_err(|error| error.to_string())?;
        writer.write_all(plain).map_err(|error| error.to_string())?;
        writer.finish().map_err(|error| error.to_string())?;
        Ok(file)
    }

    /// A data key for one recording.
    pub(super) fn key(&self) -> Result<WrappedKey, EvidenceError> {
        let pooled = self.pool().pop();
        pooled.map_or_else(|| self.make(), Ok)
    }

    /// Makes one key ahead; `false` when there are enough.
    pub(super) fn refill(&self) -> bool {
        if self.pool().len() >= POOL {
            return false;
        }
        let Ok(key) = self.make() else { return false };
        self.pool().push(key);
        true
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Vec<WrappedKey>> {
        self.pool.lock().unwrap_or_else(|error| error.into_inner())
    }

    fn make(&self) -> Result<WrappedKey, EvidenceError> {
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random)
            .map_err(|_| EvidenceError::Failed("no randomness".into()))?;
        let key = DataKey::new(random);
        let file = self
            .seal(&key.to_payload())
            .map_err(|error| EvidenceError::Failed(error.into()))?;
        Ok(WrappedKey { key, file })
    }
}
