//! Networks and instances of the emulated account.

use std::collections::BTreeMap;

use aws_lc_rs::rsa::{Pkcs1PublicEncryptingKey, PublicEncryptingKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use time::OffsetDateTime;

use super::seed::{self, InstanceState};

pub(crate) struct Fleet {
    pub(crate) vpcs: Vec<seed::Vpc>,
    pub(crate) subnets: Vec<seed::Subnet>,
    /// By instance id, so that pages keep their order.
    instances: BTreeMap<String, Instance>,
}

pub(crate) struct Instance {
    pub(crate) seed: seed::Instance,
    pub(crate) launched: OffsetDateTime,
    /// Base64 of the RSA ciphertext; made once, as EC2 does.
    pub(crate) password_data: String,
}

/// A password that cannot be encrypted to its key.
#[derive(Debug, thiserror::Error)]
#[error("the Windows password of {instance} cannot be encrypted: {why}")]
pub struct PasswordError {
    instance: String,
    why: &'static str,
}

impl Fleet {
    pub(crate) fn new(vpcs: Vec<seed::Vpc>, subnets: Vec<seed::Subnet>) -> Self {
        Self {
            vpcs,
            subnets,
            instances: BTreeMap::new(),
        }
    }

    pub(crate) fn put(
        &mut self,
        seed: seed::Instance,
        now: OffsetDateTime,
    ) -> Result<(), PasswordError> {
        let password_data = match &seed.windows_password {
            None => String::new(),
            Some(password) => encrypt(password).map_err(|why| PasswordError {
                instance: seed.id.clone(),
                why,
            })?,
        };
        let instance = Instance {
            launched: now,
            password_data,
            seed,
        };
        self.instances.insert(instance.seed.id.clone(), instance);
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: &str) -> bool {
        self.instances.remove(id).is_some()
    }

    pub(crate) fn set_state(&mut self, id: &str, state: InstanceState) -> bool {
        self.change(id, |instance| instance.state = state)
    }

    /// Changes an instance in place. False if there is none of that id.
    pub(crate) fn change(&mut self, id: &str, change: impl FnOnce(&mut seed::Instance)) -> bool {
        match self.instances.get_mut(id) {
            Some(instance) => {
                change(&mut instance.seed);
                true
            }
            None => false,
        }
    }

    /// An instance as this region sees it.
    pub(crate) fn instance(&self, region: &str, id: &str) -> Option<&Instance> {
        self.instances
            .get(id)
            .filter(|instance| instance.seed.region() == region)
    }

    pub(crate) fn in_region(&self, region: &str) -> impl Iterator<Item = &Instance> {
        self.instances
            .values()
            .filter(move |instance| instance.seed.region() == region)
    }
}

/// GetPasswordData's form: RSA, PKCS#1 v1.5, base64.
fn encrypt(password: &seed::WindowsPassword) -> Result<String, &'static str> {
    let key = PublicEncryptingKey::from_der(&password.public_key_der)
        .map_err(|_| "the public key is not an RSA key in DER")?;
    let key = Pkcs1PublicEncryptingKey::new(key).map_err(|_| "the key cannot encrypt")?;
    let mut ciphertext = vec![0; key.ciphertext_size()];
    let length = key
        .encrypt(password.password.as_bytes(), &mut ciphertext)
        .map_err(|_| "it is too long for the key")?
        .len();
    ciphertext.truncate(length);
    Ok(STANDARD.encode(ciphertext))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};

    #[test]
    fn the_password_can_be_decrypted_with_the_key_pair_and_nothing_else() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("a key");
        let public = private.public_key().as_der().expect("DER");
        let password = "correct horse".to_owned();
        let sealed = encrypt(&seed::WindowsPassword {
            password,
            public_key_der: public.as_ref().to_vec(),
        })
        .expect("encrypts");
        assert_eq!(sealed.len(), 344);
        let sealed = STANDARD.decode(sealed).expect("base64");
        let key = Pkcs1PrivateDecryptingKey::new(private).expect("usable");
        let mut plain = vec![0; key.min_output_size()];
        assert_eq!(
            key.decrypt(&sealed, &mut plain).expect("decrypts"),
            b"correct horse"
        );
    }
}
