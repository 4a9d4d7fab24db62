//! A policy that wants a fresh code: one MFA act opens one session.

use lab::stack::{Lab, Options, login_user};
use postern_proto::enroll::Outcome;
use postern_proto::gateway::message::{Denied, DenyCode, Open, OpenKind};
use postern_proto::names::SessionId;

use crate::by_hand::enrolment::{Claims, Enrolment, enrol_key};
use crate::by_hand::sts::Keys;
use crate::by_hand::wire::{Answer, ClientKey, PIPE, Pipe, open_web, settings};
use crate::harness::{events, lab_with, postern, run};

/// A lab where every shell wants a code of its own.
async fn strict() -> Lab {
    lab_with(Options {
        no_database: true,
        policy: Some(
            "@id(\"fresh-code-for-shells\")\n\
             forbid (principal, action == Action::\"connect\", resource)\n\
             unless { context.assurance == \"aws-mfa-fresh\" };\n"
                .to_owned(),
        ),
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn connect_asks_for_a_code_and_opens_one_session() {
    let lab = strict().await;
    postern(&lab, &["why", "web-1"]).await.status(0);
    let told = postern(&lab, &["connect", "web-1", "--", "echo in"])
        .await
        .status(0);
    assert_eq!(told.out(), "in\n");
    // The one of the login was just used: it waits and says so.
    assert!(
        told.stderr.contains("burns each MFA code"),
        "{}",
        told.stderr
    );
    let log = events(&lab).await;
    assert_eq!(log.matches("fresh MFA code accepted").count(), 1, "{log}");
    assert!(log.contains("with a fresh MFA code, by policy"), "{log}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn stock_ssh_gets_in_with_a_fresh_code_too() {
    let lab = strict().await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    let told = postern(&lab, &["ssh-config"]).await.status(0);
    std::fs::write(&config, told.out()).unwrap();
    let mut ssh = lab.command("ssh");
    ssh.arg("-F").arg(&config);
    ssh.args([
        &format!("{}@web-1.postern", login_user()),
        "echo in; exit 7",
    ]);
    let told = run(&mut ssh, b"").await.status(7);
    assert_eq!(told.out(), "in\n");
    let log = events(&lab).await;
    assert_eq!(log.matches("fresh MFA code accepted").count(), 1, "{log}");
    lab.stop().await.unwrap();
}

/// Bob with a certificate, his long-term keys and his device.
struct Bob<'a> {
    lab: &'a Lab,
    key: ClientKey,
    settings: std::sync::Arc<rustls::ClientConfig>,
}

impl<'a> Bob<'a> {
    async fn start(lab: &'a Lab) -> Self {
        let (keys, key) = (Keys::with_mfa(lab, "bob").await, ClientKey::new());
        let certified = enrol_key(lab, &keys, &key, None).await;
        let settings = settings(lab, PIPE, Some(&certified));
        Self { lab, key, settings }
    }

    /// Opens, on a connection of its own.
    async fn open(&self, open: &Open) -> Answer {
        Pipe::dial(self.lab, &self.settings).await.open(open).await
    }

    /// Demands that a fresh code is asked for.
    async fn must_prove(&self, open: &Open) -> Denied {
        match self.open(open).await {
            Answer::Denied(denied) if denied.code == DenyCode::StepUp => *denied,
            other => panic!("no step-up but {other:?}"),
        }
    }

    /// Gives a code for a session, as the holder of `key`.
    async fn prove(&self, session: SessionId, key: &ClientKey) -> Outcome {
        // Codes come every half minute; this test does not wait for them.
        self.lab.aws.clock().advance(time::Duration::seconds(30));
        let code = self.lab.aws.unused_code("bob").unwrap();
        let enrolment = Enrolment::start(self.lab).await;
        let claims = Claims {
            step_up: Some((self.lab.aws.mfa_serial("bob"), code, session)),
            ..Claims::honest(&enrolment)
        };
        let proof = enrolment.prove(&Keys::of(self.lab, "bob"), key, &claims);
        enrolment.answer(&proof).await
    }
}

#[tokio::test]
async fn an_approval_is_for_one_open_of_one_key_once() {
    let lab = strict().await;
    let bob = Bob::start(&lab).await;
    let denied = bob.must_prove(&open_web()).await;
    let session = denied.session.expect("the session that waits");
    let approved = Open {
        approved: Some(session),
        ..open_web()
    };
    // Saying so is not enough.
    bob.must_prove(&approved).await;

    let denied = bob.must_prove(&open_web()).await;
    let session = denied.session.unwrap();
    let approved = Open {
        approved: Some(session),
        ..open_web()
    };
    let outcome = bob.prove(session, &bob.key).await;
    assert!(matches!(outcome, Outcome::Approved { .. }), "{outcome:?}");
    // Not for another target, nor for another user, nor for another session.
    let app = Open {
        target: "app-1".parse().unwrap(),
        ..approved.clone()
    };
    bob.must_prove(&app).await;
    let other = Open {
        approved: Some(SessionId::from_parts(1, 1)),
        ..approved.clone()
    };
    bob.must_prove(&other).await;
    // Not for another key, be it the same person's.
    let elsewhere = Bob::start(&lab).await;
    elsewhere.must_prove(&approved).await;
    // It opens what it was given for.
    match bob.open(&approved).await {
        Answer::Granted(granted) => assert_eq!(granted.session, session),
        other => panic!("{other:?}"),
    }
    // Once.
    bob.must_prove(&approved).await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_code_given_by_another_key_approves_nothing() {
    let lab = strict().await;
    let bob = Bob::start(&lab).await;
    let denied = bob.must_prove(&open_web()).await;
    let session = denied.session.unwrap();
    // The proof is whole, but its key is not the one that asked.
    bob.prove(session, &ClientKey::new()).await;
    let approved = Open {
        approved: Some(session),
        ..open_web()
    };
    bob.must_prove(&approved).await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn an_approval_does_not_lift_what_policy_denies() {
    let lab = strict().await;
    let bob = Bob::start(&lab).await;
    let forbidden = Open {
        target: "db-1".parse().unwrap(),
        kind: OpenKind::Ssh {
            user: login_user().parse().unwrap(),
        },
        ..open_web()
    };
    match bob.open(&forbidden).await {
        Answer::Denied(denied) => assert_eq!(denied.code, DenyCode::Policy, "{}", denied.message),
        other => panic!("{other:?}"),
    }
    lab.stop().await.unwrap();
}
