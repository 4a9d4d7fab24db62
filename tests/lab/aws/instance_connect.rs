//! EC2 Instance Connect: keys that an instance honours for a minute.
//!
//! Source of constraints and errors: the API model (2018-04-02).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};

use super::dispatch::Call;
use super::ec2::instance_facts;
use super::error::ApiError;
use super::reply::Output;
use super::seed::{InstanceState, Platform};

/// How long a pushed key stays in the instance's metadata.
const KEY_LIFE: Duration = Duration::seconds(60);

/// Keys kept at once, over all instances; the oldest go first.
const CAPACITY: usize = 1_000;

/// Is told of a key before its push is answered.
pub(crate) type OnPush = Box<dyn Fn(&PushedKey) + Send>;

/// Keys that were pushed and have not ended.
#[derive(Default)]
pub(crate) struct PushedKeys {
    keys: Vec<PushedKey>,
    /// The instances' metadata, so to say.
    pub(crate) listeners: Vec<OnPush>,
}

/// A public key that `os_user` on an instance accepts until `expires`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushedKey {
    pub instance_id: String,
    pub os_user: String,
    /// One line as in `authorized_keys`.
    pub public_key: String,
    pub expires: OffsetDateTime,
}

impl PushedKeys {
    pub(crate) fn live(
        &self,
        instance_id: &str,
        os_user: &str,
        now: OffsetDateTime,
    ) -> Vec<PushedKey> {
        self.keys
            .iter()
            .filter(|key| {
                key.expires > now && key.instance_id == instance_id && key.os_user == os_user
            })
            .cloned()
            .collect()
    }

    fn push(&mut self, key: PushedKey, now: OffsetDateTime) {
        self.keys.retain(|key| key.expires > now);
        if self.keys.len() >= CAPACITY {
            self.keys.remove(0);
        }
        for listener in &self.listeners {
            listener(&key);
        }
        self.keys.push(key);
    }
}

pub(crate) fn handle(call: &mut Call<'_>, body: &Map<String, Value>) -> Result<Output, ApiError> {
    match call.action {
        "SendSSHPublicKey" => send_key(call, body),
        _ => Err(call.unknown_action()),
    }
}

fn invalid(message: &str) -> ApiError {
    ApiError::new(400, "InvalidArgsException", message)
}

fn send_key(call: &mut Call<'_>, body: &Map<String, Value>) -> Result<Output, ApiError> {
    let field = |name: &str| body.get(name).and_then(Value::as_str);
    let id = field("InstanceId").filter(|id| is_instance_id(id));
    let id = id.ok_or_else(|| invalid("InstanceId is not valid"))?;
    let user = field("InstanceOSUser").filter(|user| is_os_user(user));
    let user = user.ok_or_else(|| invalid("InstanceOSUser is not valid"))?;
    let key = field("SSHPublicKey").and_then(one_key);
    let key = key.ok_or_else(|| invalid("SSHPublicKey is not an RSA or Ed25519 public key"))?;

    let instance = call.fleet.instance(call.region, id);
    let mut facts = instance.map(instance_facts).unwrap_or_default();
    facts.push(("ec2:osuser".to_owned(), user.to_owned()));
    let arn = format!(
        "arn:aws:ec2:{}:{}:instance/{id}",
        call.region, call.account.id
    );
    call.authorise_with("ec2-instance-connect:SendSSHPublicKey", &arn, &facts)?;

    let not_found = || ApiError::new(400, "EC2InstanceNotFoundException", "Instance not found");
    let seed = &instance.ok_or_else(not_found)?.seed;
    if field("AvailabilityZone").is_some_and(|zone| zone != seed.availability_zone) {
        return Err(not_found());
    }
    if seed.state != InstanceState::Running {
        let message = format!("The instance is in the {} state", seed.state.wire().1);
        return Err(ApiError::new(
            400,
            "EC2InstanceStateInvalidException",
            message,
        ));
    }
    if seed.platform == Platform::Windows {
        return Err(invalid("The instance does not run Linux"));
    }
    let pushed = PushedKey {
        instance_id: id.to_owned(),
        os_user: user.to_owned(),
        public_key: key.to_owned(),
        expires: call.now + KEY_LIFE,
    };
    call.pushed.push(pushed, call.now);
    Ok(Output::Json(
        json!({"RequestId": call.request_id, "Success": true}),
    ))
}

/// `^i-[a-f0-9]+$`, 10 to 32 characters.
fn is_instance_id(id: &str) -> bool {
    let digits = |digits: &str| digits.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    (10..=32).contains(&id.len()) && id.strip_prefix("i-").is_some_and(digits)
}

/// The model's pattern: a letter or underscore first (or digits and then something else), up to 32 characters.
fn is_os_user(user: &str) -> bool {
    let Some(last) = user.chars().last() else {
        return false;
    };
    let inner = |c: char| c.is_ascii_alphanumeric() || "@._-".contains(c);
    let fits = user.len() <= 32
        && user.chars().take(user.chars().count() - 1).all(inner)
        && (inner(last) || last == '$');
    let first_letter = user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    fits && (first_letter
        || !user.chars().all(|c| c.is_ascii_digit())
            && user.starts_with(|c: char| c.is_ascii_digit()))
}

/// The key without its line end. RSA of 2,048 to 4,096 bits and Ed25519 are accepted.
fn one_key(key_text: &str) -> Option<&str> {
    let line = key_text.trim_end_matches(['\r', '\n']);
    if !(80..=4_096).contains(&key_text.len()) || line.contains(char::is_control) {
        return None;
    }
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let (kind, blob) = (words.next()?, STANDARD.decode(words.next()?).ok()?);
    let (name, rest) = ssh_string(&blob)?;
    if name != kind.as_bytes() {
        return None;
    }
    let fits = match kind {
        "ssh-ed25519" => {
            ssh_string(rest).is_some_and(|(key, rest)| key.len() == 32 && rest.is_empty())
        }
        "ssh-rsa" => {
            let (_exponent, rest) = ssh_string(rest)?;
            let (modulus, rest) = ssh_string(rest)?;
            // A leading zero keeps the number positive.
            let bytes = modulus.iter().skip_while(|byte| **byte == 0).count();
            (256..=512).contains(&bytes) && rest.is_empty()
        }
        _ => false,
    };
    fits.then_some(line)
}

/// RFC 4251 string: four bytes of length, then the bytes.
fn ssh_string(blob: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS a@b";

    #[test]
    fn only_whole_keys_of_accepted_kinds_pass() {
        assert_eq!(one_key(&format!("{ED25519}\n")), Some(ED25519));
        assert_eq!(
            one_key(&ED25519.replace("ssh-ed25519", "ssh-rsa    ")),
            None
        );
        assert_eq!(one_key(&ED25519[..79]), None);
        assert_eq!(
            one_key(&format!("{ED25519}\n{ED25519}")),
            None,
            "one key a call"
        );
        assert_eq!(one_key(&"x".repeat(100)), None);
        let mut short_rsa = b"\0\0\0\x07ssh-rsa\0\0\0\x03\x01\0\x01\0\0\0\x80".to_vec();
        short_rsa.extend([0x7f; 128]);
        assert_eq!(
            one_key(&format!("ssh-rsa {}", STANDARD.encode(short_rsa))),
            None
        );
    }

    #[test]
    fn user_names_follow_the_model() {
        for good in [
            "ec2-user",
            "ubuntu",
            "_svc",
            "a",
            "user@corp",
            "sam$",
            "1st",
        ] {
            assert!(is_os_user(good), "{good}");
        }
        for bad in [
            "",
            "-x",
            "a b",
            "a,b",
            "12",
            "$",
            "a\n",
            &"a".repeat(33),
            "ü",
        ] {
            assert!(!is_os_user(bad), "{bad}");
        }
    }

    #[test]
    fn a_pushed_key_lives_for_a_minute_and_for_one_user_of_one_instance() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let mut keys = PushedKeys::default();
        let key = PushedKey {
            instance_id: "i-1".into(),
            os_user: "u".into(),
            public_key: ED25519.into(),
            expires: now + KEY_LIFE,
        };
        keys.push(key.clone(), now);
        assert_eq!(keys.live("i-1", "u", now + Duration::seconds(59)), [key]);
        assert_eq!(keys.live("i-1", "u", now + Duration::seconds(60)), []);
        assert_eq!(keys.live("i-1", "root", now), []);
        assert_eq!(keys.live("i-2", "u", now), []);
    }
}
