//! Files that the operator writes: configuration, keys, policies, inventory, lists.

use super::{denied, missing, path, said, told};
use crate::aws::AwsError;
use crate::ca::client::MalformedCertificate;
use crate::ca::{CaError, SubjectFault};
use crate::config::ConfigError;
use crate::files::FileError;
use crate::identity::{DenyFault, TrustFault};
use crate::inventory::{Ec2Error, InventoryError, InventoryFileError, LookupError};
use crate::keys::KeyFault;
use crate::policy::{Action, PolicyError, Problem};
use crate::ssh::{HostIdentityError, HostKeysError};
use crate::testing::target;

fn file_errors() -> [FileError; 4] {
    [
        FileError::Read {
            path: path("hosts.toml"),
            source: missing(),
        },
        FileError::Read {
            path: path("hosts.toml"),
            source: denied(),
        },
        FileError::Writable(path("hosts.toml")),
        FileError::TooLong {
            path: path("hosts.toml"),
            limit: 1024,
        },
    ]
}

#[test]
fn a_configuration_that_cannot_be_used_says_where() {
    let path = || path("agent.toml");
    let errors = [
        ConfigError::Read {
            path: path(),
            source: missing(),
        },
        ConfigError::TooLong {
            path: path(),
            limit: 1024,
        },
        ConfigError::Syntax {
            path: path(),
            line: 3,
            message: "expected `=`".to_owned(),
        },
        ConfigError::UnknownKey {
            path: path(),
            line: 4,
            key: "lisen".to_owned(),
            hint: "did you mean `listen`?".to_owned(),
        },
        ConfigError::Value {
            path: path(),
            key: "evidence.session_quota",
            message: "is larger than `evidence.principal_quota`".to_owned(),
            hint: "make it smaller".to_owned(),
        },
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_key_that_cannot_be_used_says_which() {
    let path = || path("keys/ssh-user-ca.key");
    let errors = [
        KeyFault::Read {
            path: path(),
            source: missing(),
        },
        KeyFault::NotAFile { path: path() },
        KeyFault::Owner {
            path: path(),
            owner: 1000,
            user: 990,
        },
        KeyFault::Mode {
            path: path(),
            mode: 0o640,
        },
        KeyFault::Content {
            path: path(),
            source: CaError::KeyKind {
                expected: "an Ed25519 key",
            },
        },
        KeyFault::Shared {
            first: "ssh-user-ca",
            second: "ssh-host-ca",
        },
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_certificate_authority_says_what_it_cannot_do() {
    let errors = [
        CaError::Random,
        CaError::X509(rcgen::Error::CouldNotParseCertificate),
        CaError::Ssh(russh::keys::ssh_key::Error::Encrypted),
        CaError::KeyKind {
            expected: "an Ed25519 key",
        },
        CaError::Time(i64::MAX),
        CaError::Pem {
            expected: "certificate",
        },
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_certificate_that_is_not_ours_says_why() {
    let errors = [
        MalformedCertificate::Syntax,
        MalformedCertificate::Names,
        MalformedCertificate::Subject(SubjectFault),
        MalformedCertificate::Key,
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_host_key_that_cannot_be_used_says_why() {
    let errors = [
        HostIdentityError::Encrypted,
        HostIdentityError::OtherKey,
        HostIdentityError::UserCertificate,
    ];
    insta::assert_snapshot!(said(&errors));
    let path = || path("state/host-keys.json");
    let damaged = serde_json::from_str::<u8>("x").unwrap_err();
    let errors = [
        HostKeysError::Io {
            path: path(),
            error: denied(),
        },
        HostKeysError::Damaged {
            path: path(),
            error: damaged,
        },
        HostKeysError::TooLong { path: path() },
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_file_that_decides_says_why_it_is_not_trusted() {
    insta::assert_snapshot!(told(&file_errors(), |error| Some(error.hint())));
}

#[test]
fn a_deny_list_that_cannot_be_used_says_where() {
    let errors = [
        DenyFault::Read {
            path: path("deny"),
            source: denied(),
        },
        DenyFault::TooLong { path: path("deny") },
        DenyFault::Line {
            path: path("deny"),
            line: 2,
            text: "alice".to_owned(),
        },
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn agents_that_cannot_be_trusted_are_named() {
    let agent = |name: &str| name.parse().unwrap();
    let errors = [
        TrustFault::Key(KeyFault::NotAFile {
            path: path("two.pem"),
        }),
        TrustFault::Deny(DenyFault::TooLong { path: path("deny") }),
        TrustFault::Intermediate {
            agent: agent("bastion-2"),
            reason: "it is not a CA certificate".to_owned(),
        },
        TrustFault::SameName(agent("bastion-1"), agent("bastion-2")),
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn policies_that_cannot_be_used_say_where() {
    let problem = |line, message: &str, hint: Option<&str>| Problem {
        file: "operators.cedar".to_owned(),
        line,
        message: message.to_owned(),
        hint: hint.map(str::to_owned),
    };
    let [missing, ..] = file_errors();
    let errors = [
        PolicyError::File(missing),
        PolicyError::TooMany(path("policy")),
        PolicyError::Invalid(vec![
            problem(3, "unexpected token `;`", None),
            problem(
                9,
                "there is no action `conect`",
                Some("did you mean `connect`?"),
            ),
        ]),
    ];
    insta::assert_snapshot!(told(&errors, PolicyError::hint));
    insta::assert_snapshot!("open\u{1b}".parse::<Action>().unwrap_err());
}

#[test]
fn an_inventory_that_cannot_be_used_says_why() {
    let [missing, ..] = file_errors();
    let errors = [
        InventoryError::File(InventoryFileError::File(missing)),
        InventoryError::File(InventoryFileError::Invalid {
            path: path("hosts.toml"),
            line: 3,
            message: "there is no key `addres` here".to_owned(),
            hint: Some("did you mean `address`?".to_owned()),
        }),
        InventoryError::Aws(AwsError::Endpoint("http://localhost".to_owned())),
        InventoryError::Aws(AwsError::Bundle(FileError::Writable(path("ca.pem")))),
        InventoryError::Aws(AwsError::Certificates {
            path: path("ca.pem"),
            reason: "there is no certificate in the file".to_owned(),
        }),
    ];
    insta::assert_snapshot!(told(&errors, InventoryError::hint));
    let errors = [
        Ec2Error::Call("UnauthorizedOperation: not authorized".to_owned()),
        Ec2Error::TooMany(20_000),
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_name_that_is_not_one_target_says_what_there_is() {
    let errors = [
        LookupError::Unknown {
            name: "web-2".to_owned(),
            nearest: vec!["web-1".to_owned()],
        },
        LookupError::Unknown {
            name: "\u{1b}[31m".to_owned(),
            nearest: vec![],
        },
        LookupError::Ambiguous {
            name: "web".to_owned(),
            candidates: vec![target("web-1"), target("web-2")],
        },
    ];
    insta::assert_snapshot!(told(&errors, |error| Some(error.hint())));
    insta::assert_snapshot!(errors[2].candidates().join("\n"));
}
