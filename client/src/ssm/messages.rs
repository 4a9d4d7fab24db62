//! What people read when the SSM route fails: every message, with its kind and exit code and with
//! what to do about it. One test per kind of message lists all of them, so that a change of words
//! is seen.

use std::net::SocketAddr;

use postern_proto::ssm::channel::CloseReason;

use super::{SsmError, notice};
use crate::config::ConfigError;
use crate::error::Error;
use crate::evidence::EvidenceError;
use crate::identity::IdentityError;

const NODE: &str = "i-0123456789abcdef0";

/// One message, as `forward` ends with it; `connect` and `proxy` end with 255 and say the kind.
pub(super) fn sentence(error: impl Into<Error>) -> String {
    let error = error.into();
    format!(
        "{} [{}, exit {}]\nhint: {}",
        error.message,
        error.kind,
        error.kind.code(),
        error.hint.as_deref().unwrap_or("-")
    )
}

fn told<const N: usize>(errors: [SsmError; N]) -> String {
    errors.map(sentence).join("\n\n")
}

fn refused(code: &str, message: &str) -> SsmError {
    SsmError::Refused {
        service: "SSM",
        action: "StartSession",
        target: Some(NODE.to_owned()),
        code: code.to_owned(),
        message: message.to_owned(),
    }
}

#[test]
fn what_aws_refuses_is_told() {
    let nobody = "User: alice is not authorized to perform: ssm:StartSession because no \
                  identity-based policy allows the ssm:StartSession action";
    insta::assert_snapshot!(told([
        refused(
            "TargetNotConnected",
            "i-0123456789abcdef0 is not connected."
        ),
        refused("AccessDeniedException", nobody),
        refused(
            "AccessDeniedException",
            "User: alice is not authorized to perform: ssm:StartSession with an explicit deny in \
             an identity-based policy"
        ),
        refused("SessionLimitExceededException", "The limit is reached."),
        refused("ServiceQuotaExceededException", ""),
        refused("InvalidDocument", "Document with name X does not exist."),
        refused("ThrottlingException", "Rate exceeded"),
        refused("InvalidParameters", "Parameter portNumber is not a number"),
        refused("InternalServerError", ""),
        SsmError::Expired("default".to_owned()),
        SsmError::Expired("work".to_owned()),
        SsmError::Key {
            key: "arn:aws:kms:eu-west-1:111122223333:key/k".to_owned(),
            cause: "not authorized (AccessDeniedException)".to_owned(),
        },
        SsmError::Answer {
            service: "SSM",
            what: "StartSession without session, token or URL".to_owned(),
        },
    ]));
}

#[test]
fn a_target_that_is_no_way_is_told() {
    let target = format!("app-1 ({NODE})");
    insta::assert_snapshot!(told([
        SsmError::NoTarget {
            name: "app-9".to_owned(),
            region: "eu-west-1".to_owned(),
        },
        SsmError::Ambiguous {
            name: "app".to_owned(),
            several: vec![
                "i-1 (app, 10.0.0.1)".to_owned(),
                "i-2 (app, 10.0.0.2)".to_owned()
            ],
        },
        SsmError::Offline {
            target: target.clone(),
            status: "ConnectionLost".to_owned(),
        },
        SsmError::OldAgent {
            target: target.clone(),
            version: "2.3.50.0".to_owned(),
            what: "commands without a terminal",
        },
        SsmError::OldAgent {
            target,
            version: "2.3.50.0".to_owned(),
            what: "tunnels",
        },
        SsmError::Vanished {
            target: NODE.to_owned(),
            minutes: 5,
        },
    ]));
}

#[test]
fn what_fails_on_the_way_is_told() {
    let unreachable = |cause: &str| SsmError::Unreachable {
        service: "SSM",
        host: "ssm.eu-west-1.amazonaws.com".to_owned(),
        cause: cause.to_owned(),
    };
    let stream = |cause: &str, hint| SsmError::Stream {
        host: "ssmmessages.eu-west-1.amazonaws.com".to_owned(),
        cause: cause.to_owned(),
        hint,
        is_answer: false,
    };
    insta::assert_snapshot!(told([
        unreachable("it did not answer in time"),
        unreachable("invalid peer certificate: UnknownIssuer"),
        unreachable("through the proxy `proxy:3128`: tunnel error: proxy authorization required"),
        stream("it did not answer in time", None),
        stream("invalid peer certificate: UnknownIssuer", None),
        stream(
            "the proxy `proxy:3128` refused it: 403 Forbidden",
            Some("check HTTPS_PROXY")
        ),
        SsmError::Over,
        SsmError::Lost {
            minutes: 61,
            cause: "no route to host".to_owned(),
        },
        SsmError::NotEnded {
            session: "alice-1".to_owned(),
        },
        SsmError::Stopped,
        SsmError::Incomplete,
        SsmError::NoStatus,
        SsmError::Local {
            what: "standard output cannot be written",
            cause: "Broken pipe".to_owned(),
        },
        SsmError::NoRandomness,
    ]));
}

#[test]
fn how_a_session_ended_is_told() {
    let ended = |reason| SsmError::Ended {
        target: NODE.to_owned(),
        reason,
    };
    let text = "----------ERROR-------\nno such user";
    insta::assert_snapshot!(told([
        ended(CloseReason::HandshakeTimeout),
        ended(CloseReason::Silent),
        ended(CloseReason::Encryption),
        ended(CloseReason::Service(text.to_owned())),
        ended(CloseReason::Violation("a message of no known kind")),
        ended(CloseReason::ActionFailed {
            action: "KMSEncryption".to_owned(),
            status: 2,
            error: "no key".to_owned(),
        }),
    ]));
}

/// Messages of others keep their words, their hint and their exit code on this route.
#[test]
fn what_others_say_is_theirs() {
    let login = IdentityError::LoginNeeded("work".to_owned());
    let config = ConfigError::NoHome;
    for (ours, theirs) in [
        (SsmError::from(login.clone()), Error::from(login)),
        (SsmError::from(config.clone()), Error::from(config)),
    ] {
        assert_eq!(sentence(ours), sentence(theirs));
    }
    let evidence = EvidenceError::Unusable {
        folder: "/var/lib/evidence".to_owned(),
        cause: "Permission denied".to_owned(),
    };
    let theirs = sentence(evidence);
    let evidence = EvidenceError::Unusable {
        folder: "/var/lib/evidence".to_owned(),
        cause: "Permission denied".to_owned(),
    };
    assert_eq!(sentence(SsmError::from(evidence)), theirs);
}

#[test]
fn what_a_forward_tells_is_about_one_connection_or_one_session() {
    let peer: SocketAddr = "127.0.0.1:50000".parse().unwrap();
    let to = "app-1:5432";
    let over = Error::from(SsmError::Over);
    let told = [
        notice::session_ended(to, 3, &over),
        notice::held_up(&peer, 2, to),
        notice::not_carried(&peer, &notice::nothing_answers(to)),
        notice::not_carried(
            &peer,
            &Error::from(refused("ThrottlingException", "Rate exceeded")),
        ),
        notice::connection_ended(&peer, &notice::ended_there()),
        sentence(notice::incomplete()),
        sentence(notice::protocol(&"smux version 2")),
        sentence(notice::no_answer(to)),
        sentence(notice::no_ssh()),
    ];
    insta::assert_snapshot!(told.join("\n\n"));
}
