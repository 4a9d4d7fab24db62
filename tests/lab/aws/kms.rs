//! KMS: data keys under symmetric keys, bound to their encryption context.
//!
//! Source of names, limits and errors: the KMS API model (2014-11-01). A ciphertext here is the
//! key's id and AES-256-GCM with the context as associated data: nobody but this KMS reads it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use super::dispatch::Call;
use super::error::ApiError;
use super::ids;
use super::reply::Output;

/// A UUID as text.
const ID: usize = 36;

/// The keys of the account.
#[derive(Default)]
pub(crate) struct Kms(Mutex<BTreeMap<String, Key>>);

struct Key {
    alias: String,
    enabled: bool,
    secret: [u8; 32],
}

/// Why KMS does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("InvalidCiphertextException")]
    Ciphertext,
    #[error("DisabledException")]
    Disabled,
    #[error("NotFoundException")]
    NotFound,
}

impl Kms {
    fn keys(&self) -> MutexGuard<'_, BTreeMap<String, Key>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key; answers its id. `alias` is without `alias/`.
    pub(crate) fn create(&self, alias: &str) -> String {
        let id = ids::request_id();
        let key = Key {
            alias: format!("alias/{alias}"),
            enabled: true,
            secret: rand::rng().random(),
        };
        self.keys().insert(id.clone(), key);
        id
    }

    /// Switches a key by alias or id. False if there is none.
    pub(crate) fn enable(&self, name: &str, enabled: bool) -> bool {
        let Some(id) = self.find(name) else {
            return false;
        };
        if let Some(key) = self.keys().get_mut(&id) {
            key.enabled = enabled;
        }
        true
    }

    /// The id of a key that is named by id, alias, or the ARN of either.
    fn find(&self, name: &str) -> Option<String> {
        let name = match name.strip_prefix("arn:aws:kms:") {
            Some(arn) => arn.splitn(3, ':').nth(2)?,
            None => name,
        };
        let name = name.strip_prefix("key/").unwrap_or(name);
        let keys = self.keys();
        let mut found = keys
            .iter()
            .filter(|(id, key)| *id == name || key.alias == name);
        found.next().map(|(id, _)| id.clone())
    }

    fn seal(&self, id: &str, plain: &[u8], context: &str) -> Result<Vec<u8>, Refused> {
        let keys = self.keys();
        let key = keys.get(id).ok_or(Refused::NotFound)?;
        if !key.enabled {
            return Err(Refused::Disabled);
        }
        let nonce: [u8; NONCE_LEN] = rand::rng().random();
        let mut sealed = plain.to_vec();
        aead(key)
            .and_then(|aead| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                aead.seal_in_place_append_tag(nonce, Aad::from(context), &mut sealed)
                    .ok()
            })
            .ok_or(Refused::Ciphertext)?;
        Ok([id.as_bytes(), &nonce, &sealed].concat())
    }

    fn open(&self, ciphertext: &[u8], context: &str) -> Result<(String, Vec<u8>), Refused> {
        let (id, rest) = ciphertext.split_at_checked(ID).ok_or(Refused::Ciphertext)?;
        let (nonce, sealed) = rest
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(Refused::Ciphertext)?;
        let id = std::str::from_utf8(id).map_err(|_| Refused::Ciphertext)?;
        let keys = self.keys();
        let key = keys.get(id).ok_or(Refused::Ciphertext)?;
        if !key.enabled {
            return Err(Refused::Disabled);
        }
        let mut plain = sealed.to_vec();
        let length = aead(key)
            .and_then(|aead| {
                let nonce = Nonce::assume_unique_for_key(*nonce);
                let opened = aead.open_in_place(nonce, Aad::from(context), &mut plain);
                opened.ok().map(|plain| plain.len())
            })
            .ok_or(Refused::Ciphertext)?;
        plain.truncate(length);
        Ok((id.to_owned(), plain))
    }

    /// Decrypt as an instance's role may: the SSM Agent's call.
    pub(crate) fn decrypt(
        &self,
        ciphertext: &[u8],
        context: &[(&str, &str)],
    ) -> Result<Vec<u8>, Refused> {
        let context = context
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let context = canonical(&context.collect());
        Ok(self.open(ciphertext, &context)?.1)
    }
}

fn aead(key: &Key) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, &key.secret).ok()?;
    Some(LessSafeKey::new(key))
}

/// The context in one spelling: ordered, and unambiguous.
fn canonical(context: &BTreeMap<String, String>) -> String {
    serde_json::to_string(context).unwrap_or_default()
}

pub(crate) fn handle(call: &mut Call<'_>, body: &Map<String, Value>) -> Result<Output, ApiError> {
    match call.action {
        "GenerateDataKey" => generate(call, body),
        "Decrypt" => decrypt(call, body),
        _ => Err(call.unknown_action()),
    }
}

fn validation(message: &str) -> ApiError {
    ApiError::new(400, "ValidationException", message)
}

fn arn(call: &Call<'_>, id: &str) -> String {
    format!("arn:aws:kms:{}:{}:key/{id}", call.region, call.account.id)
}

fn refusal(call: &Call<'_>, id: &str, refused: Refused) -> ApiError {
    let message = match refused {
        Refused::Ciphertext => String::new(),
        Refused::Disabled => format!("{} is disabled.", arn(call, id)),
        Refused::NotFound => format!("Key '{}' does not exist", arn(call, id)),
    };
    ApiError::new(400, &refused.to_string(), message)
}

fn known_key(call: &Call<'_>, body: &Map<String, Value>) -> Result<String, ApiError> {
    let name = body.get("KeyId").and_then(Value::as_str);
    let name = name.ok_or_else(|| validation("KeyId is required"))?;
    call.kms.find(name).ok_or_else(|| {
        let message = if name.contains("alias/") {
            let prefix = format!("arn:aws:kms:{}:{}:", call.region, call.account.id);
            let name = name.strip_prefix(&prefix).unwrap_or(name);
            format!("Alias {prefix}{name} is not found.")
        } else {
            format!("Key '{}' does not exist", arn(call, name))
        };
        ApiError::new(400, "NotFoundException", message)
    })
}

/// The encryption context, and the condition keys that it makes.
fn context(body: &Map<String, Value>) -> Result<(String, Vec<(String, String)>), ApiError> {
    let mut context = BTreeMap::new();
    if let Some(given) = body
        .get("EncryptionContext")
        .filter(|given| !given.is_null())
    {
        let malformed = || validation("EncryptionContext is not a map of texts");
        for (name, value) in given.as_object().ok_or_else(malformed)? {
            let value = value.as_str().ok_or_else(malformed)?;
            context.insert(name.clone(), value.to_owned());
        }
    }
    let facts = context
        .iter()
        .map(|(name, value)| (format!("kms:EncryptionContext:{name}"), value.clone()));
    Ok((canonical(&context), facts.collect()))
}

fn generate(call: &Call<'_>, body: &Map<String, Value>) -> Result<Output, ApiError> {
    let id = known_key(call, body)?;
    let (context, facts) = context(body)?;
    call.authorise_with("kms:GenerateDataKey", &arn(call, &id), &facts)?;
    let length = match (
        body.get("NumberOfBytes").and_then(Value::as_u64),
        body.get("KeySpec").and_then(Value::as_str),
    ) {
        (Some(length @ 1..=1024), None) => usize::try_from(length).unwrap_or(32),
        (None, Some("AES_256")) => 32,
        (None, Some("AES_128")) => 16,
        _ => {
            return Err(validation(
                "Please specify either number of bytes or key spec.",
            ));
        }
    };
    let mut plain = vec![0; length];
    rand::rng().fill(plain.as_mut_slice());
    let sealed = call
        .kms
        .seal(&id, &plain, &context)
        .map_err(|refused| refusal(call, &id, refused))?;
    Ok(Output::Json(json!({
        "CiphertextBlob": BASE64_STANDARD.encode(sealed),
        "Plaintext": BASE64_STANDARD.encode(plain),
        "KeyId": arn(call, &id),
    })))
}

fn decrypt(call: &Call<'_>, body: &Map<String, Value>) -> Result<Output, ApiError> {
    let sealed = body
        .get("CiphertextBlob")
        .and_then(Value::as_str)
        .and_then(|text| BASE64_STANDARD.decode(text).ok())
        .ok_or_else(|| validation("CiphertextBlob is not base64"))?;
    let (context, facts) = context(body)?;
    let claimed = sealed
        .get(..ID)
        .and_then(|id| std::str::from_utf8(id).ok())
        .unwrap_or_default()
        .to_owned();
    call.authorise_with("kms:Decrypt", &arn(call, &claimed), &facts)?;
    let (id, plain) = call
        .kms
        .open(&sealed, &context)
        .map_err(|refused| refusal(call, &claimed, refused))?;
    Ok(Output::Json(json!({
        "Plaintext": BASE64_STANDARD.encode(plain),
        "KeyId": arn(call, &id),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: [(&str, &str); 2] = [
        ("aws:ssm:SessionId", "alice-1"),
        ("aws:ssm:TargetId", "i-1"),
    ];

    fn sealed(kms: &Kms, context: &[(&str, &str)]) -> Vec<u8> {
        let id = kms.find("alias/session").expect("a key");
        let context = context
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let context = canonical(&context.collect());
        kms.seal(&id, b"secret", &context).expect("a ciphertext")
    }

    #[test]
    fn a_data_key_opens_under_its_own_context_alone() {
        let kms = Kms::default();
        kms.create("session");
        let ciphertext = sealed(&kms, &CONTEXT);
        assert_eq!(kms.decrypt(&ciphertext, &CONTEXT), Ok(b"secret".to_vec()));
        let [first, second] = CONTEXT;
        // In any order, but whole and right.
        assert!(kms.decrypt(&ciphertext, &[second, first]).is_ok());
        for wrong in [&[first][..], &[first, ("aws:ssm:TargetId", "i-2")], &[]] {
            assert_eq!(kms.decrypt(&ciphertext, wrong), Err(Refused::Ciphertext));
        }
    }

    #[test]
    fn keys_have_several_names_and_can_be_switched_off() {
        let kms = Kms::default();
        let id = kms.create("session");
        for name in [
            id.clone(),
            "alias/session".to_owned(),
            format!("arn:aws:kms:eu-west-1:111122223333:key/{id}"),
            "arn:aws:kms:eu-west-1:111122223333:alias/session".to_owned(),
        ] {
            assert_eq!(kms.find(&name).as_ref(), Some(&id), "{name}");
        }
        assert_eq!(kms.find("session"), None);
        let ciphertext = sealed(&kms, &CONTEXT);
        assert!(kms.enable("alias/session", false));
        assert_eq!(kms.decrypt(&ciphertext, &CONTEXT), Err(Refused::Disabled));
    }
}
