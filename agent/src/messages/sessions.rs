//! What the person at the client is told: why nothing opened, and why it ended.

use std::fmt;

use postern_proto::gateway::message::{CloseReason, DenyCode};
use postern_proto::names::SessionId;

use super::{denied, said, told};
use crate::end::{End, Ending, SshEnd};
use crate::evidence::EvidenceError;
use crate::limits::LimitReached;
use crate::pipe::PipeError;
use crate::policy::Denial;
use crate::refusal::{NotReached, Refusal};
use crate::rules::NotVerified;

/// A refusal as the peer gets it.
struct Told(Refusal);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let denied = self.0.denied(SessionId::from_parts(1, 1));
        write!(f, "{:?}: {}", denied.code, denied.message)
    }
}

fn ending(message: Option<&str>) -> Ending {
    Ending {
        reason: CloseReason::Policy,
        message: message.map(str::to_owned),
    }
}

#[test]
fn a_refusal_says_why_and_what_to_do() {
    let refusals = [
        Refusal::Certificate(NotVerified {
            message: "the client's certificate has expired".to_owned(),
            hint: "run the command again".to_owned(),
        }),
        Refusal::Draining,
        Refusal::Evidence(EvidenceError::Failed("/var/lib: no space".into())),
        Refusal::Evidence(EvidenceError::Quota(1024)),
        Refusal::Evidence(EvidenceError::Space { free: 1, floor: 2 }),
        Refusal::Limit(LimitReached::Pipes(100)),
        Refusal::UnknownTarget {
            name: "web-2".parse().unwrap(),
            hint: "did you mean `web-1`?".to_owned(),
        },
        Refusal::Ambiguous {
            name: "web".parse().unwrap(),
            candidates: vec!["i-1 web 10.0.0.1".to_owned(), "i-2 web 10.0.0.2".to_owned()],
        },
        Refusal::Policy(Denial {
            policies: vec![],
            message: "no policy allows connect on web-1 as root".to_owned(),
            hint: Some("postern why web-1".to_owned()),
        }),
        Refusal::StepUp {
            policies: vec!["operators".to_owned()],
            open_hash: "00".to_owned(),
        },
        Refusal::SshPort(22),
        Refusal::Join("wrong proof"),
        Refusal::Resume("wrong proof"),
        Refusal::Ended(ending(Some("you were put on the deny list"))),
        Refusal::Ended(ending(None)),
        Refusal::NotReached(NotReached {
            code: DenyCode::TargetUnreachable,
            message: "10.0.0.1:22 (`web-1`) refused the connection".to_owned(),
            hint: Some("is something listening on port 22 there?".to_owned()),
        }),
        Refusal::Protocol("malformed Open".to_owned()),
    ]
    .map(Told);
    let hint = |told: &Told| told.0.denied(SessionId::from_parts(1, 1)).hint;
    insta::assert_snapshot!(told(&refusals, hint));
}

#[test]
fn a_limit_says_which() {
    let limits = [
        LimitReached::Connections,
        LimitReached::Unauthenticated,
        LimitReached::Enrollments,
        LimitReached::Pipes(100),
        LimitReached::Sessions(50),
        LimitReached::Parked(100),
        LimitReached::Resumes,
    ];
    insta::assert_snapshot!(said(&limits));
}

#[test]
fn an_end_says_why_to_the_person_and_more_to_the_log() {
    let shell = SshEnd {
        exit_status: Some(255),
        up: 0,
        down: 0,
        reason: CloseReason::Target,
        message: Some("web-1 closed the connection".to_owned()),
    };
    let ends = [
        End::Done,
        End::Shell(shell),
        End::Pipe(PipeError::Lost("connection reset by peer".into())),
        End::Target(denied()),
        End::Ssh,
        End::Ordered(ending(Some("policy no longer allows this"))),
        End::Internal("the SSH server did not end".to_owned()),
    ];
    let shown = |text: Option<String>| text.unwrap_or_else(|| "nothing".to_owned());
    let lines = ends.iter().map(|end| {
        let (person, log) = (shown(end.message()), shown(end.detail()));
        format!(
            "{:?}\n  to the person: {person}\n  to the log: {log}",
            end.reason()
        )
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}
