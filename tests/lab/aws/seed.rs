//! What a test or the lab puts into the emulated account.

use std::net::Ipv4Addr;

use super::ids;

/// A long-term access key. Throw-away, but still not printed.
#[derive(Clone)]
pub struct AccessKey {
    /// `AKIA...`.
    pub id: String,
    pub secret: String,
}

impl AccessKey {
    /// A fresh random key.
    #[must_use]
    pub fn random() -> Self {
        Self {
            id: ids::access_key("AKIA"),
            secret: ids::secret(),
        }
    }
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The account's root user.
#[derive(Clone, Debug, Default)]
pub struct Root {
    /// Root should have no access key; a test that wants one refused has to make one.
    pub access_key: Option<AccessKey>,
    /// What GetAccountSummary tells about root's MFA.
    pub mfa_enabled: bool,
}

/// An IAM user with one access key and, usually, one virtual MFA device.
#[derive(Clone)]
pub struct User {
    pub name: String,
    /// `AIDA...`: a user created again under the same name has another one.
    pub unique_id: String,
    pub access_key: AccessKey,
    /// An inactive key is one that AWS does not know.
    pub key_active: bool,
    /// The base32 seed of the MFA device `arn:aws:iam::ACCOUNT:mfa/NAME`. `None`: the user has no device.
    pub totp_secret: Option<String>,
    /// Identity policies: name and JSON document.
    pub policies: Vec<(String, String)>,
    /// A permissions boundary (JSON document).
    pub boundary: Option<String>,
}

impl User {
    /// A user with a random key, an MFA device and no permissions.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            unique_id: ids::unique("AIDA"),
            access_key: AccessKey::random(),
            key_active: true,
            totp_secret: Some(ids::totp_secret()),
            policies: Vec::new(),
            boundary: None,
        }
    }

    /// Adds an identity policy.
    #[must_use]
    pub fn with_policy(mut self, name: &str, document: impl Into<String>) -> Self {
        self.policies.push((name.to_owned(), document.into()));
        self
    }

    /// Takes the MFA device away.
    #[must_use]
    pub fn without_mfa(mut self) -> Self {
        self.totp_secret = None;
        self
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("unique_id", &self.unique_id)
            .finish_non_exhaustive()
    }
}

/// An IAM role.
#[derive(Clone, Debug)]
pub struct Role {
    pub name: String,
    /// `/` or `/some/path/`.
    pub path: String,
    /// `AROA...`.
    pub unique_id: String,
    /// Who may assume it (JSON document). Users named in it must exist when the role is put.
    pub trust_policy: String,
    /// Identity policies: name and JSON document.
    pub policies: Vec<(String, String)>,
    /// A permissions boundary (JSON document).
    pub boundary: Option<String>,
    /// Seconds, 3,600 to 43,200.
    pub max_session: u32,
}

impl Role {
    /// A role without permissions.
    #[must_use]
    pub fn new(name: &str, trust_policy: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            path: "/".to_owned(),
            unique_id: ids::unique("AROA"),
            trust_policy: trust_policy.into(),
            policies: Vec::new(),
            boundary: None,
            max_session: 3_600,
        }
    }

    /// Adds an identity policy.
    #[must_use]
    pub fn with_policy(mut self, name: &str, document: impl Into<String>) -> Self {
        self.policies.push((name.to_owned(), document.into()));
        self
    }
}

/// A virtual network.
#[derive(Clone, Debug)]
pub struct Vpc {
    pub id: String,
    pub region: String,
    pub cidr: String,
    pub name: String,
}

/// A subnet of one [`Vpc`].
#[derive(Clone, Debug)]
pub struct Subnet {
    pub id: String,
    pub vpc_id: String,
    pub cidr: String,
    pub availability_zone: String,
    pub name: String,
}

/// State of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

impl InstanceState {
    /// EC2's code and name of the state.
    pub(crate) fn wire(self) -> (u8, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
            Self::Stopping => (64, "stopping"),
            Self::Stopped => (80, "stopped"),
        }
    }
}

/// What runs on an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    Linux,
    Windows,
}

/// The administrator's password of a Windows instance and the key pair that it is encrypted to.
#[derive(Clone)]
pub struct WindowsPassword {
    pub password: String,
    /// RSA public key, DER (SubjectPublicKeyInfo or PKCS#1).
    pub public_key_der: Vec<u8>,
}

impl std::fmt::Debug for WindowsPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WindowsPassword").finish_non_exhaustive()
    }
}

/// The SSM Agent of an instance.
#[derive(Clone, Debug)]
pub struct SsmNode {
    /// `Online`, else `ConnectionLost`.
    pub online: bool,
    pub agent_version: String,
    /// For example `Amazon Linux`.
    pub platform_name: String,
    pub platform_version: String,
}

impl SsmNode {
    /// A connected agent of a recent version.
    #[must_use]
    pub fn online() -> Self {
        Self {
            online: true,
            agent_version: "3.3.2746.0".to_owned(),
            platform_name: "Amazon Linux".to_owned(),
            platform_version: "2023".to_owned(),
        }
    }
}

/// An EC2 instance. Its region is its availability zone's.
#[derive(Clone, Debug)]
pub struct Instance {
    /// `i-` and 17 hexadecimal digits.
    pub id: String,
    pub private_ip: Ipv4Addr,
    pub public_ip: Option<Ipv4Addr>,
    pub vpc_id: String,
    pub subnet_id: String,
    pub availability_zone: String,
    pub platform: Platform,
    pub state: InstanceState,
    pub key_name: Option<String>,
    pub instance_type: String,
    /// Key and value; the display name is the tag `Name`.
    pub tags: Vec<(String, String)>,
    pub windows_password: Option<WindowsPassword>,
    /// `None`: not a managed node.
    pub ssm: Option<SsmNode>,
}

impl Instance {
    /// A running Linux instance with a Name tag, not managed by SSM.
    #[must_use]
    pub fn new(id: &str, name: &str, private_ip: Ipv4Addr, subnet: &Subnet) -> Self {
        Self {
            id: id.to_owned(),
            private_ip,
            public_ip: None,
            vpc_id: subnet.vpc_id.clone(),
            subnet_id: subnet.id.clone(),
            availability_zone: subnet.availability_zone.clone(),
            platform: Platform::Linux,
            state: InstanceState::Running,
            key_name: None,
            instance_type: "t3.micro".to_owned(),
            tags: vec![("Name".to_owned(), name.to_owned())],
            windows_password: None,
            ssm: None,
        }
    }

    /// Adds a tag.
    #[must_use]
    pub fn with_tag(mut self, key: &str, value: &str) -> Self {
        self.tags.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The value of a tag.
    #[must_use]
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.as_str())
    }

    /// The zone without its letter.
    #[must_use]
    pub fn region(&self) -> &str {
        region_of(&self.availability_zone)
    }
}

/// `eu-west-1` of `eu-west-1a`.
pub(crate) fn region_of(availability_zone: &str) -> &str {
    availability_zone.trim_end_matches(|c: char| c.is_ascii_lowercase())
}
