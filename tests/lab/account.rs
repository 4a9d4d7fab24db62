//! The emulated account: who is in it, what they may, which instances it has.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postern::iam::document::Document;
use postern::iam::shape::{Shape, Typed};

use crate::aws::{
    AccessKey, AwsConfig, Instance, Platform, Role, Root, SsmNode, Subnet, User, Vpc,
};
use crate::network::Network;
use crate::ssm::SessionDocument;

/// The account.
pub const ACCOUNT: &str = "111122223333";
/// Its region.
pub const REGION: &str = "eu-west-1";
/// The role whose trust policy attests MFA.
pub const ATTESTATION_ROLE: &str = "arn:aws:iam::111122223333:role/postern-attestation";
/// The bastion's own identity, as its instance role would be.
pub const BASTION_USER: &str = "postern-bastion";

/// The alias of the KMS key for SSM sessions, without `alias/`.
pub const SESSION_KEY: &str = "lab-sessions";
/// A session document: a shell, encrypted with that key.
pub const ENCRYPTED_SHELL: &str = "Lab-EncryptedShell";
/// A session document: a command with stderr apart and an exit code.
pub const SEPARATE_COMMAND: &str = "Lab-SeparateCommand";

/// A person of the lab. Their TOTP seeds are fixed, so that `lab totp NAME` needs no running lab:
/// they open nothing but an emulated AWS on loopback.
#[derive(Debug, Clone, Copy)]
pub struct Person {
    /// Profile and IAM user name.
    pub name: &'static str,
    /// Base32 seed of the virtual MFA device.
    pub totp_secret: &'static str,
    /// What they do.
    pub job: &'static str,
    /// What they may do over SSM, as an IAM policy.
    sessions: Option<&'static str>,
}

/// Everybody.
pub const PEOPLE: [Person; 3] = [
    Person {
        name: "alice",
        totp_secret: "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP",
        job: "operator",
        sessions: Some(OPERATOR_SESSIONS),
    },
    Person {
        name: "bob",
        totp_secret: "KRSXG5CTMVRXEZLUKRSXG5CTMVRXEZLU",
        job: "developer",
        sessions: Some(DEVELOPER_SESSIONS),
    },
    Person {
        name: "carol",
        totp_secret: "MFZWIZTHNBVGW3DNMFZWIZTHNBVGW3DN",
        job: "auditor",
        sessions: None,
    },
];

/// One private host.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// Its Name tag.
    pub name: &'static str,
    /// Its instance id.
    pub id: &'static str,
    /// Its `env` tag.
    pub environment: &'static str,
    platform: Platform,
    /// Whether an SSM Agent runs there.
    pub managed: bool,
    address: fn(&Network) -> IpAddr,
}

impl Host {
    /// Where it lives in a lab.
    pub fn address(&self, network: &Network) -> IpAddr {
        (self.address)(network)
    }
}

/// All instances.
pub const HOSTS: [Host; 5] = [
    Host {
        name: "web-1",
        id: "i-0a1b2c3d4e5f60001",
        environment: "staging",
        platform: Platform::Linux,
        managed: true,
        address: Network::web,
    },
    Host {
        name: "app-1",
        id: "i-0a1b2c3d4e5f60002",
        environment: "staging",
        platform: Platform::Linux,
        managed: true,
        address: Network::app,
    },
    Host {
        name: "db-1",
        id: "i-0a1b2c3d4e5f60003",
        environment: "production",
        platform: Platform::Linux,
        managed: false,
        address: Network::db,
    },
    Host {
        name: "win-1",
        id: "i-0a1b2c3d4e5f60004",
        environment: "production",
        platform: Platform::Windows,
        managed: false,
        address: Network::win,
    },
    Host {
        name: "bastion-1",
        id: "i-0a1b2c3d4e5f60005",
        environment: "production",
        platform: Platform::Linux,
        managed: false,
        address: Network::bastion,
    },
];

/// Fills the account.
pub fn seed(config: &mut AwsConfig, network: &Network) {
    // It should have none, and here it has one, so that it can be seen to be refused.
    config.root = Root {
        access_key: Some(AccessKey::random()),
        ..Root::default()
    };
    let assume = format!(
        r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"{ATTESTATION_ROLE}"}}]}}"#
    );
    for person in PEOPLE {
        let mut user = User::new(person.name)
            .with_policy("attest", assume.clone())
            .with_policy("look", LOOK_POLICY);
        if let Some(policy) = person.sessions {
            user = user.with_policy("sessions", policy);
        }
        user.totp_secret = Some(person.totp_secret.to_owned());
        config.users.push(user);
    }
    config.users.push(
        User::new(BASTION_USER)
            .without_mfa()
            .with_policy("attest", assume)
            .with_policy("bastion", bastion_policy()),
    );
    config
        .roles
        .push(Role::new("postern-attestation", ATTESTATION_TRUST));

    let vpc = Vpc {
        id: "vpc-0a1b2c3d4e5f60001".to_owned(),
        region: REGION.to_owned(),
        cidr: network.cidr(),
        name: "lab".to_owned(),
    };
    let subnet = Subnet {
        id: "subnet-0a1b2c3d4e5f60001".to_owned(),
        vpc_id: vpc.id.clone(),
        cidr: network.cidr(),
        availability_zone: format!("{REGION}a"),
        name: "private".to_owned(),
    };
    for host in HOSTS {
        let address = match host.address(network) {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let mut instance = Instance::new(host.id, host.name, address, &subnet)
            .with_tag("env", host.environment)
            .with_tag("postern:ssh-port", &crate::stack::SSH_PORT.to_string());
        instance.platform = host.platform;
        instance.ssm = host.managed.then(SsmNode::online);
        config.instances.push(instance);
    }
    config.kms_keys.push(SESSION_KEY.to_owned());
    config.documents = vec![
        SessionDocument::encrypted_shell(ENCRYPTED_SHELL, &format!("alias/{SESSION_KEY}")),
        SessionDocument::separate_command(SEPARATE_COMMAND),
    ];
    config.vpcs.push(vpc);
    config.subnets.push(subnet);
}

/// What people may look up with the `aws` command.
const LOOK_POLICY: &str = r#"{"Version":"2012-10-17","Statement":[{
  "Effect":"Allow",
  "Action":["ec2:DescribeInstances","ssm:DescribeInstanceInformation","ssm:DescribeSessions",
    "ssm:GetConnectionStatus","ssm:GetDocument"],
  "Resource":"*"}]}"#;

/// Sessions on every instance with every document, with MFA; own ones to resume and to end; keys
/// for SSH over them.
const OPERATOR_SESSIONS: &str = r#"{"Version":"2012-10-17","Statement":[
  {"Effect":"Allow","Action":"ssm:StartSession",
   "Resource":["arn:aws:ec2:*:*:instance/*","arn:aws:ssm:*:*:document/*"],
   "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}},
  {"Effect":"Allow","Action":["ssm:ResumeSession","ssm:TerminateSession"],
   "Resource":"arn:aws:ssm:*:*:session/${aws:username}-*"},
  {"Effect":"Allow","Action":"kms:GenerateDataKey","Resource":"arn:aws:kms:*:*:key/*",
   "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}},
  {"Effect":"Allow","Action":"ec2-instance-connect:SendSSHPublicKey","Resource":"*",
   "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}}
]}"#;

/// The same on staging alone, with the documents that are named.
const DEVELOPER_SESSIONS: &str = r#"{"Version":"2012-10-17","Statement":[
  {"Effect":"Allow","Action":"ssm:StartSession","Resource":"arn:aws:ec2:*:*:instance/*",
   "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"},
    "BoolIfExists":{"ssm:SessionDocumentAccessCheck":"true"},
    "StringEquals":{"ssm:resourceTag/env":"staging"}}},
  {"Effect":"Allow","Action":"ssm:StartSession",
   "Resource":["arn:aws:ssm:*:*:document/SSM-SessionManagerRunShell",
    "arn:aws:ssm:*:*:document/AWS-StartPortForwardingSession",
    "arn:aws:ssm:*:*:document/AWS-StartSSHSession",
    "arn:aws:ssm:*:*:document/AWS-StartInteractiveCommand",
    "arn:aws:ssm:*:*:document/AWS-StartNonInteractiveCommand",
    "arn:aws:ssm:*:*:document/Lab-SeparateCommand"],
   "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}},
  {"Effect":"Allow","Action":["ssm:ResumeSession","ssm:TerminateSession"],
   "Resource":"arn:aws:ssm:*:*:session/${aws:username}-*"}
]}"#;

/// What the bastion's instance role needs: what `postern policy iam --for bastion` prints.
fn bastion_policy() -> String {
    let shape = Shape::new(Typed {
        account: ACCOUNT.to_owned(),
        regions: vec![REGION.to_owned()],
        tags: vec!["env=staging".to_owned(), "env=production".to_owned()],
        max_age: Duration::from_secs(43_200),
        attestation_role: Some(ATTESTATION_ROLE.to_owned()),
        login_users: vec![crate::stack::login_user()],
        ..Typed::default()
    });
    let document = shape.and_then(|shape| Document::bastion(&shape));
    let document = document.expect("constants that are all right");
    serde_json::to_string(&document).expect("a document has a JSON form")
}

/// The trust policy that makes AWS attest MFA: `Bool`, never `BoolIfExists`.
pub const ATTESTATION_TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{
  "Effect":"Allow",
  "Principal":{"AWS":"arn:aws:iam::111122223333:root"},
  "Action":"sts:AssumeRole",
  "Condition":{
    "Bool":{"aws:MultiFactorAuthPresent":"true"},
    "NumericLessThan":{"aws:MultiFactorAuthAge":"43200"}}}]}"#;
