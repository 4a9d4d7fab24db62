//! What opens a session, and what does not.

use postern_proto::audit::event::Fact;
use postern_proto::gateway::frame::{FrameKind, Piece};
use postern_proto::gateway::message::{DenyCode, OpenKind, open_hash};
use postern_proto::names::Assurance;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::policy::{Action, Decision};
use crate::testing::*;

#[tokio::test]
async fn a_denial_names_its_reason_and_is_an_event() {
    let agent = Agent::start().await;
    agent.decide(|_| deny("not on a Sunday"));
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let denied = client.denied().await;
    assert_eq!(
        (denied.code, denied.message.as_str()),
        (DenyCode::Policy, "not on a Sunday")
    );
    let session = denied.session.unwrap();
    let events = agent.events();
    let event = events
        .iter()
        .find(|event| event.session == Some(session))
        .unwrap();
    assert!(matches!(
        &event.fact,
        Fact::SessionDenied { code: DenyCode::Policy, policies, .. } if policies == &["no"]
    ));
    assert_eq!(
        event.actor.as_ref().unwrap().principal.arn,
        "arn:aws:iam::111122223333:user/alice"
    );
    agent.stopped().await;
}

#[tokio::test]
async fn names_that_are_not_one_target_are_told_apart() {
    let agent = Agent::start().await;
    for (name, code, candidates) in [
        ("nothing", DenyCode::UnknownTarget, 0),
        ("web", DenyCode::Ambiguous, 2),
    ] {
        let mut client = agent.connect("alice").await;
        let mut open = open(5432);
        open.target = name.parse().unwrap();
        client.open(&open).await;
        let denied = client.denied().await;
        assert_eq!((denied.code, denied.candidates.len()), (code, candidates));
    }
    agent.stopped().await;
}

#[tokio::test]
async fn tunnels_to_ssh_are_refused_before_policy_is_asked() {
    let agent = Agent::start().await;
    for port in [22, 2222] {
        let mut client = agent.connect("alice").await;
        client.open(&open(port)).await;
        let denied = client.denied().await;
        assert_eq!(denied.code, DenyCode::Policy);
        assert!(denied.message.contains("carries SSH"), "{}", denied.message);
    }
    agent.stopped().await;
}

#[tokio::test]
async fn early_data_reaches_nobody_before_the_grant_and_nobody_at_all_after_a_denial() {
    let agent = Agent::with(Knobs::without_resume()).await;
    let listener = agent.listen().await;
    agent.hold.send_replace(true);
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    // The agent reads no more than came with the Open: the rest fills socket buffers and stops.
    let body = framed(&[7; 60_000]);
    let mut sent = 0;
    while sent < 256 << 20 {
        let write = client.stream.write_all(&body);
        let patience = std::time::Duration::from_millis(500);
        if tokio::time::timeout(patience, write).await.is_err() {
            break;
        }
        sent += body.len();
    }
    assert!(sent < 256 << 20, "{sent} bytes were read before the grant");
    drop(client);
    agent.hold.send_replace(false);
    let (mut target, _) = listener.accept().await.unwrap();
    let mut all = Vec::new();
    target.read_to_end(&mut all).await.ok();

    agent.decide(|_| deny("no"));
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    client.send(&framed(b"secret")).await;
    assert_eq!(client.denied().await.code, DenyCode::Policy);
    let log = format!("{:?}", agent.events());
    assert!(!log.contains("secret"));
    agent.stopped().await;
}

#[tokio::test]
async fn a_step_up_opens_one_session_and_stands_in_its_event() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    agent.decide(|request| {
        if request.assurance == Assurance::AwsMfaFresh {
            allow(request)
        } else {
            Decision::StepUp {
                policies: vec!["fresh".to_owned()],
            }
        }
    });
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let denied = client.denied().await;
    assert_eq!(denied.code, DenyCode::StepUp);
    let hash = open_hash(&open(5432));
    assert_eq!(denied.open_hash, Some(hex::encode(hash)));

    // A made-up session id does not count, even with an approval at hand.
    agent.approvals.lock().unwrap().push(hash);
    let mut approved = open(5432);
    approved.approved = Some("01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap());
    let mut client = agent.connect("alice").await;
    client.open(&approved).await;
    assert_eq!(client.denied().await.code, DenyCode::StepUp);

    approved.approved = denied.session;
    let mut client = agent.connect("alice").await;
    client.open(&approved).await;
    let granted = client.granted().await;
    assert_eq!(
        Some(granted.session),
        denied.session,
        "one id from denial to end"
    );
    assert_eq!(granted.assurance, Assurance::AwsMfaFresh);
    let events = agent.events();
    let event = events
        .iter()
        .find(|event| matches!(event.fact, Fact::SessionGranted { step_up: true, .. }))
        .unwrap();
    let actor = event.actor.as_ref().unwrap();
    assert_eq!(actor.assurance, Assurance::AwsMfaFresh);
    assert_eq!(actor.aws_request_ids, ["fresh"]);

    let mut client = agent.connect("alice").await;
    client.open(&approved).await;
    assert_eq!(client.denied().await.code, DenyCode::StepUp, "once");
    drop(listener);
    agent.stopped().await;
}

#[tokio::test]
async fn a_certificate_is_checked_again_when_a_spare_connection_opens() {
    let agent = Agent::start().await;
    let mut client = agent.connect("alice").await;
    // A spare connection may ping.
    client.control(FrameKind::Ping, &7u64.to_be_bytes()).await;
    let pong = client.next().await;
    assert_eq!(
        pong,
        Some(Piece::Frame(
            FrameKind::Pong,
            7u64.to_be_bytes().to_vec().into()
        ))
    );
    *agent.barred.lock().unwrap() = Some(principal("alice").principal().key());
    client.open(&open(5432)).await;
    assert_eq!(client.denied().await.code, DenyCode::Certificate);
    agent.stopped().await;
}

#[tokio::test]
async fn a_principal_has_a_limit_of_sessions_and_of_connections() {
    let mut knobs = Knobs::default();
    knobs.ceilings.sessions_per_principal = 1;
    knobs.ceilings.pipes_per_principal = 2;
    let agent = Agent::with(knobs).await;
    let _listener = agent.listen().await;
    let mut first = agent.connect("alice").await;
    first.open(&open(5432)).await;
    first.granted().await;
    let mut second = agent.connect("alice").await;
    second.open(&open(5432)).await;
    assert_eq!(second.denied().await.code, DenyCode::Limit);
    drop(second);
    let mut other = agent.connect("bobby").await;
    other.open(&open(5432)).await;
    other.granted().await;
    // The agent may take a moment to see that the denied one is gone.
    let _spare = agent.connect("alice").await;
    let mut third = agent.connect("alice").await;
    third.stream.write_all(&[0]).await.ok();
    assert_eq!(third.next().await, None);
    agent.stopped().await;
}

#[tokio::test]
async fn ssh_sessions_carry_the_exit_status_home() {
    let agent = Agent::start().await;
    let listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    let mut ssh = open(1);
    ssh.kind = OpenKind::Ssh {
        user: "root".parse().unwrap(),
    };
    client.open(&ssh).await;
    let (mut target, _) = listener.accept().await.unwrap();
    let granted = client.granted().await;
    assert_eq!(granted.target.host_key.unwrap().fingerprint, "SHA256:x");
    assert_eq!(granted.ssh_host_ca.as_deref(), Some("ssh-ed25519 AAAA"));
    target.write_all(b"done").await.unwrap();
    drop(target);
    assert_eq!(client.data(4).await, b"done");
    let close = client.closed().await;
    assert_eq!(close.exit_status, Some(7));
    agent.stopped().await;
}

#[tokio::test]
async fn a_target_is_told_to_permit_only_what_policy_could_allow() {
    use crate::ca::ssh::SshExtension::{AgentForwarding, PortForwarding, Pty};
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    for (allowed, permitted) in [
        (vec![Action::Connect], vec![Pty]),
        (
            vec![Action::Connect, Action::Tunnel],
            vec![Pty, PortForwarding],
        ),
        (
            vec![Action::Connect, Action::Reverse],
            vec![Pty, PortForwarding],
        ),
        (
            vec![Action::Connect, Action::ForwardAgent],
            vec![Pty, AgentForwarding],
        ),
    ] {
        agent.decide(move |request| match allowed.contains(&request.action) {
            true => allow(request),
            false => deny("no"),
        });
        let mut client = agent.connect("alice").await;
        let mut open = open(22);
        open.kind = OpenKind::Ssh {
            user: "root".parse().unwrap(),
        };
        client.open(&open).await;
        client.granted().await;
        let asked = agent.permitted.lock().unwrap().pop();
        assert_eq!(asked, Some(permitted));
    }
    agent.stopped().await;
}
