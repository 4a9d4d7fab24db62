//! The account: who exists and which keys they hold. What they may do is decided in `decide`.

mod attach;
mod decide;
pub(crate) mod simulate;

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};

use super::caller::{Caller, Identity, Session};
use super::ids;
use super::policy::{MalformedPolicy, Policy, TrustPolicy, malformed};
use super::seed;
use super::totp::{self, Device};

/// Sessions kept at once; an emulator that is asked for more answers "throttled".
const MAX_SESSIONS: usize = 10_000;

/// The emulated account's identities and credentials.
pub(crate) struct Account {
    pub(crate) id: String,
    pub(crate) root_mfa: bool,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Role>,
    /// By serial number.
    pub(crate) devices: BTreeMap<String, Device>,
    /// By access key id.
    keys: BTreeMap<String, Key>,
    /// Managed policies by ARN: name and JSON document.
    managed: BTreeMap<String, (String, String)>,
}

pub(crate) struct User {
    pub(crate) seed: seed::User,
    pub(crate) created: OffsetDateTime,
    policies: Vec<Policy>,
    boundary: Option<Policy>,
}

pub(crate) struct Role {
    pub(crate) seed: seed::Role,
    pub(crate) created: OffsetDateTime,
    trust: TrustPolicy,
    policies: Vec<Policy>,
    boundary: Option<Policy>,
}

struct Key {
    secret: String,
    identity: Identity,
    active: bool,
    /// `None`: a long-term key.
    session: Option<Session>,
}

/// Fresh temporary credentials, to be told once.
pub(crate) struct Issued {
    pub(crate) access_key_id: String,
    pub(crate) secret: String,
    pub(crate) token: String,
    pub(crate) expires: OffsetDateTime,
}

impl Account {
    pub(crate) fn new(id: &str, root: &seed::Root) -> Self {
        let mut account = Self {
            id: id.to_owned(),
            root_mfa: root.mfa_enabled,
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            devices: BTreeMap::new(),
            keys: BTreeMap::new(),
            managed: BTreeMap::new(),
        };
        if let Some(key) = &root.access_key {
            account.put_key(key, Identity::Root, true);
        }
        account
    }

    /// Creates a user; one of the same name is deleted first, with keys, sessions and device.
    pub(crate) fn put_user(
        &mut self,
        seed: seed::User,
        now: OffsetDateTime,
    ) -> Result<(), MalformedPolicy> {
        let policies = parse_all(&seed.policies)?;
        let boundary = seed.boundary.as_deref().map(Policy::parse).transpose()?;
        let device = match &seed.totp_secret {
            None => None,
            Some(secret) => match totp::from_base32(secret) {
                None => return malformed("the TOTP secret is not base32"),
                Some(bytes) => Some(
                    Device::new(self.mfa_serial(&seed.name), bytes).enabled_for(&seed.name, now),
                ),
            },
        };
        self.remove_user(&seed.name);
        if let Some(device) = device {
            self.devices.insert(device.serial.clone(), device);
        }
        let identity = Identity::User {
            name: seed.name.clone(),
            unique_id: seed.unique_id.clone(),
        };
        self.put_key(&seed.access_key, identity, seed.key_active);
        self.users.insert(
            seed.name.clone(),
            User {
                seed,
                created: now,
                policies,
                boundary,
            },
        );
        Ok(())
    }

    pub(crate) fn remove_user(&mut self, name: &str) {
        self.users.remove(name);
        self.devices
            .retain(|_, device| device.owner.as_deref() != Some(name));
        self.keys
            .retain(|_, key| !matches!(&key.identity, Identity::User { name: n, .. } if n == name));
    }

    /// Creates a role or replaces one, whose sessions then end if its unique id changed.
    pub(crate) fn put_role(
        &mut self,
        seed: seed::Role,
        now: OffsetDateTime,
    ) -> Result<(), MalformedPolicy> {
        let mut trust = TrustPolicy::parse(&seed.trust_policy)?;
        for principal in trust.principals_mut() {
            *principal = self.resolve_principal(principal)?;
        }
        let role = Role {
            policies: parse_all(&seed.policies)?,
            boundary: seed.boundary.as_deref().map(Policy::parse).transpose()?,
            trust,
            created: now,
            seed,
        };
        self.roles.insert(role.seed.name.clone(), role);
        Ok(())
    }

    pub(crate) fn remove_role(&mut self, name: &str) {
        self.roles.remove(name);
    }

    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    pub(crate) fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    pub(crate) fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    pub(crate) fn roles(&self) -> impl Iterator<Item = &Role> {
        self.roles.values()
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.users.len(), self.roles.len())
    }

    pub(crate) fn role_by_arn(&self, arn: &str) -> Option<&Role> {
        self.roles.values().find(|role| self.role_arn(role) == arn)
    }

    pub(crate) fn role_arn(&self, role: &Role) -> String {
        format!(
            "arn:aws:iam::{}:role{}{}",
            self.id, role.seed.path, role.seed.name
        )
    }

    pub(crate) fn user_arn(&self, name: &str) -> String {
        format!("arn:aws:iam::{}:user/{name}", self.id)
    }

    pub(crate) fn mfa_serial(&self, name: &str) -> String {
        format!("arn:aws:iam::{}:mfa/{name}", self.id)
    }

    pub(crate) fn device_of(&self, user: &str) -> Option<&Device> {
        self.devices
            .values()
            .find(|device| device.owner.as_deref() == Some(user))
    }

    pub(crate) fn root_has_key(&self) -> bool {
        self.keys
            .values()
            .any(|key| key.identity == Identity::Root && key.session.is_none())
    }

    pub(crate) fn knows_key(&self, access_key_id: &str) -> bool {
        self.keys.contains_key(access_key_id)
    }

    /// The caller that a key id and token claim to be, and the secret that must have signed. `None` for no such key,
    /// an inactive one, and a token that is missing, wrong or superfluous.
    pub(crate) fn claimed(
        &self,
        access_key_id: &str,
        token: Option<&str>,
    ) -> Option<(Caller, &str)> {
        use subtle::ConstantTimeEq as _;
        let key = self.keys.get(access_key_id).filter(|key| key.active)?;
        let token_fits = match (&key.session, token) {
            (None, None) => true,
            (Some(session), Some(token)) => {
                bool::from(session.token.as_bytes().ct_eq(token.as_bytes()))
            }
            _ => false,
        };
        if !token_fits || !self.exists(&key.identity) {
            return None;
        }
        let caller = Caller {
            account: self.id.clone(),
            access_key_id: access_key_id.to_owned(),
            identity: key.identity.clone(),
            session: key.session.clone(),
        };
        Some((caller, &key.secret))
    }

    /// Makes temporary credentials. `None` if there are too many.
    pub(crate) fn issue(
        &mut self,
        identity: Identity,
        now: OffsetDateTime,
        life: Duration,
        mfa: Option<OffsetDateTime>,
        policy: Option<Policy>,
    ) -> Option<Issued> {
        let live = |key: &Key| {
            key.session
                .as_ref()
                .is_none_or(|session| session.expires > now)
        };
        if self.keys.len() >= MAX_SESSIONS {
            self.keys.retain(|_, key| live(key));
        }
        if self.keys.len() >= MAX_SESSIONS {
            return None;
        }
        let issued = Issued {
            access_key_id: ids::access_key("ASIA"),
            secret: ids::secret(),
            token: ids::session_token(),
            expires: now + life,
        };
        let session = Session {
            token: issued.token.clone(),
            issued: now,
            expires: issued.expires,
            mfa,
            policy,
        };
        let secret = issued.secret.clone();
        let key = Key {
            secret,
            identity,
            active: true,
            session: Some(session),
        };
        self.keys.insert(issued.access_key_id.clone(), key);
        Some(issued)
    }

    /// Ends a session before its time. False if there is none of that key id.
    pub(crate) fn expire(&mut self, access_key_id: &str, now: OffsetDateTime) -> bool {
        match self
            .keys
            .get_mut(access_key_id)
            .and_then(|key| key.session.as_mut())
        {
            Some(session) => {
                session.expires = now;
                true
            }
            None => false,
        }
    }

    /// Ends all sessions of a user.
    pub(crate) fn expire_all(&mut self, user: &str, now: OffsetDateTime) {
        for key in self.keys.values_mut() {
            if matches!(&key.identity, Identity::User { name, .. } if name == user)
                && let Some(session) = &mut key.session
            {
                session.expires = now;
            }
        }
    }

    /// IAM stores users and roles by unique id, so that a recreated one is somebody else, and refuses unknown ones.
    fn resolve_principal(&self, principal: &str) -> Result<String, MalformedPolicy> {
        let account_root = format!("arn:aws:iam::{}:root", self.id);
        if principal == self.id {
            return Ok(account_root);
        }
        let local = format!("arn:aws:iam::{}:", self.id);
        let Some(name) = principal.strip_prefix(&local) else {
            // Everybody, a role session, or another account's: those never call here.
            return Ok(principal.to_owned());
        };
        if name == "root" {
            return Ok(account_root);
        }
        let user = name
            .strip_prefix("user/")
            .and_then(|name| self.users.get(name));
        let unique_id = user
            .map(|user| &user.seed.unique_id)
            .or_else(|| self.role_by_arn(principal).map(|role| &role.seed.unique_id));
        match unique_id {
            Some(id) => Ok(id.clone()),
            None => malformed(format!(
                "Invalid principal in policy: \"AWS\":\"{principal}\""
            )),
        }
    }

    fn exists(&self, identity: &Identity) -> bool {
        match identity {
            Identity::Root => true,
            Identity::User { name, unique_id } => self
                .users
                .get(name)
                .is_some_and(|user| user.seed.unique_id == *unique_id),
            Identity::Role {
                name, unique_id, ..
            } => self
                .roles
                .get(name)
                .is_some_and(|role| role.seed.unique_id == *unique_id),
        }
    }

    fn put_key(&mut self, key: &seed::AccessKey, identity: Identity, active: bool) {
        let entry = Key {
            secret: key.secret.clone(),
            identity,
            active,
            session: None,
        };
        self.keys.insert(key.id.clone(), entry);
    }
}

fn parse_all(policies: &[(String, String)]) -> Result<Vec<Policy>, MalformedPolicy> {
    policies
        .iter()
        .map(|(_, document)| Policy::parse(document))
        .collect()
}
