//! Encryption to those who may read: the auditors, else the user.

use std::io::Write as _;

use age::x25519::Recipient;
use postern_proto::recording::DataKey;
use zeroize::Zeroizing;

/// Whom sealed texts and recordings are encrypted to.
#[derive(Clone)]
pub(super) struct Recipients {
    recipients: Vec<Recipient>,
    texts: Vec<String>,
}

impl Recipients {
    /// From age recipients that were checked when the configuration was read.
    pub(super) fn new(texts: &[String]) -> Result<Self, String> {
        let recipients = texts
            .iter()
            .map(|text| text.parse().map_err(|why| format!("`{text}`: {why}")))
            .collect::<Result<_, String>>()?;
        Ok(Self {
            recipients,
            texts: texts.to_vec(),
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

    /// A fresh key for one recording, and its age file.
    pub(super) fn key(&self) -> Result<(DataKey, Vec<u8>), String> {
        let mut random = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(random.as_mut_slice()).map_err(|_| "no randomness".to_owned())?;
        let key = DataKey::new(*random);
        let wrapped = self.seal(&key.to_payload())?;
        Ok((key, wrapped))
    }
}
