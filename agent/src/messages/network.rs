//! What is told of targets, of AWS and of those who connect.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use postern_proto::gateway::frame::{FrameError, FrameKind};
use postern_proto::gateway::pipe::Violation;
use postern_proto::wire::WireError;

use super::{denied, path, said, told};
use crate::identity::{CertificateFault, StsFault};
use crate::instance_connect::{PushError, PushFault};
use crate::pipe::{OpenError, PipeError};
use crate::ssh::{HostKeysError, TransportError, UpstreamError};
use crate::target::{DialError, Rule};
use crate::tls::AcceptFault;

#[test]
fn a_target_that_cannot_be_dialled_says_why() {
    let host = || "web-1".to_owned();
    let address: SocketAddr = "10.0.0.1:22".parse().unwrap();
    let ip = address.ip();
    let errors = [
        DialError::Unresolvable {
            host: host(),
            reason: "no such name".to_owned(),
        },
        DialError::Forbidden {
            host: host(),
            address: IpAddr::from([127, 0, 0, 1]),
            rule: Rule::Loopback,
        },
        DialError::Unchecked {
            host: host(),
            address: ip,
            source: denied(),
        },
        DialError::Family {
            host: host(),
            source_address: ip,
        },
        DialError::Refused {
            host: host(),
            address,
        },
        DialError::TimedOut {
            host: host(),
            address,
            seconds: 10,
        },
        DialError::Unreachable {
            host: host(),
            address,
            source: denied(),
        },
    ];
    insta::assert_snapshot!(told(&errors, |error| Some(error.hint())));
    let rules = [
        Rule::Unspecified,
        Rule::Loopback,
        Rule::LinkLocal,
        Rule::Metadata,
        Rule::Multicast,
        Rule::Broadcast,
        Rule::Reserved,
        Rule::Own,
    ];
    insta::assert_snapshot!(said(&rules));
}

#[test]
fn a_target_that_does_not_let_the_agent_in_says_what_to_change() {
    let target = || "web-1".to_owned();
    let refused = |certificate| UpstreamError::LoginRefused {
        target: target(),
        user: "ubuntu".parse().unwrap(),
        certificate,
    };
    let errors = [
        UpstreamError::Connection {
            target: target(),
            why: "the peer closed the connection".to_owned(),
        },
        UpstreamError::Timeout {
            target: target(),
            within: Duration::from_secs(20),
        },
        UpstreamError::HostKeyChanged {
            target: target(),
            pinned: "SHA256:old".to_owned(),
            seen: "SHA256:new".to_owned(),
        },
        UpstreamError::HostCertificate {
            target: target(),
            why: "it has expired".to_owned(),
        },
        UpstreamError::HostKeys(HostKeysError::TooLong {
            path: path("state/host-keys.json"),
        }),
        refused(true),
        refused(false),
    ];
    insta::assert_snapshot!(told(&errors, UpstreamError::hint));
}

#[test]
fn an_ssh_peer_that_breaks_the_protocol_is_told_how() {
    let errors = [
        TransportError::Identification,
        TransportError::Forged,
        TransportError::TooLong(300_000),
        TransportError::Framing("padding"),
        TransportError::Wire(WireError::Short {
            field: "name",
            needed: 4,
            left: 1,
        }),
        TransportError::Unexpected(90),
        TransportError::NothingInCommon {
            what: "key exchange",
            client: "diffie-hellman-group1-sha1".to_owned(),
            server: "mlkem768x25519-sha256,curve25519-sha256".to_owned(),
        },
        TransportError::HostKey("its signature is wrong"),
        TransportError::Disconnected {
            code: 2,
            message: "Too many authentication failures".to_owned(),
        },
        TransportError::WornKeys,
        TransportError::Backlog,
        TransportError::Crypto,
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_key_that_instance_connect_did_not_take_says_why() {
    let errors = [
        PushFault::NotAnInstance,
        PushFault::Denied {
            user: "ubuntu".to_owned(),
            reason: "not authorized".to_owned(),
        },
        PushFault::Gone,
        PushFault::NotRunning,
        PushFault::Unavailable,
        PushFault::Throttled,
        PushFault::Refused("InvalidArgsException: the key is too long".to_owned()),
        PushFault::Unreachable("dispatch failure".to_owned()),
        PushFault::Service("InternalError".to_owned()),
    ]
    .map(|kind| PushError {
        target: "web-1".to_owned(),
        kind,
    });
    insta::assert_snapshot!(told(&errors, |error| Some(error.hint())));
}

#[test]
fn an_sts_that_gives_no_answer_says_why() {
    let errors = [
        StsFault::Refused("AccessDenied".to_owned()),
        StsFault::Endpoint("not https".to_owned()),
        StsFault::Address {
            host: "sts.eu-west-1.amazonaws.com".to_owned(),
            address: IpAddr::from([10, 0, 0, 1]),
        },
        StsFault::Transport("connection refused".to_owned()),
        StsFault::Deadline,
        StsFault::Status(503),
        StsFault::Form,
        StsFault::TooLong,
        StsFault::Answer("it has no usable date".to_owned()),
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_connection_that_is_not_accepted_says_why() {
    let errors = [
        AcceptFault::Handshake(denied()),
        AcceptFault::Protocol,
        AcceptFault::Certificate(CertificateFault::Expired),
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn a_pipe_that_breaks_says_why() {
    let malformed = serde_json::from_str::<u8>("{").unwrap_err();
    let errors = [
        OpenError::Left,
        OpenError::Late,
        OpenError::Unexpected(FrameKind::Data),
        OpenError::Frame(FrameError::UnknownKind(99)),
        OpenError::Malformed(FrameKind::Open, malformed),
    ];
    insta::assert_snapshot!(said(&errors));
    let errors = [
        PipeError::Lost("connection reset by peer".into()),
        PipeError::Frame(FrameError::TooLong {
            kind: FrameKind::Ack,
            length: 70_000,
            limit: 16_384,
        }),
        PipeError::Violation(Violation::Unexpected(FrameKind::Open)),
        PipeError::Violation(Violation::Malformed(FrameKind::Ack)),
        PipeError::Violation(Violation::Ack { acked: 9, sent: 8 }),
        PipeError::Violation(Violation::Eof {
            stated: 9,
            received: 8,
        }),
        PipeError::Violation(Violation::DataAfterEof),
        PipeError::Violation(Violation::Flood),
        PipeError::Violation(Violation::Resume {
            stated: 1,
            acked: 2,
            sent: 3,
        }),
    ];
    insta::assert_snapshot!(said(&errors));
}
