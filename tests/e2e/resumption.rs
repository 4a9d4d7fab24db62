//! A ticket is no way around the certificate: what a resumed TLS handshake is refused for.

use std::sync::Arc;

use lab::stack::Lab;
use postern_proto::gateway::message::DenyCode;
use rustls::ClientConfig;

use crate::by_hand::enrolment::enrol;
use crate::by_hand::sts::Keys;
use crate::by_hand::wire::{Answer, Certified, PIPE, Pipe, open_web, settings};
use crate::harness::{ending, eventually, get, lab, postern_as, run, session};

/// A pipe that was opened with a ticket.
async fn resumed(lab: &Lab, settings: &Arc<ClientConfig>) -> Pipe {
    let pipe = Pipe::dial(lab, settings).await;
    assert!(pipe.was_resumed(), "the agent gave a ticket and takes it");
    pipe
}

/// A client of bob's with a ticket that was seen to work.
async fn with_ticket(lab: &Lab, seconds: Option<i64>) -> (Certified, Arc<ClientConfig>) {
    let keys = Keys::with_mfa(lab, "bob").await;
    let certified = enrol(lab, &keys, seconds).await;
    let settings = settings(lab, PIPE, Some(&certified));
    let mut first = Pipe::dial(lab, &settings).await;
    assert!(!first.was_resumed());
    assert!(first.is_alive().await);
    assert!(resumed(lab, &settings).await.is_alive().await);
    (certified, settings)
}

#[tokio::test]
async fn a_ticket_does_not_outlive_its_certificate() {
    let lab = lab().await;
    let (_, settings) = with_ticket(&lab, Some(6)).await;
    let mut spare = resumed(&lab, &settings).await;
    assert!(spare.is_alive().await);
    eventually("the certificate ends", async || {
        let mut pipe = resumed(&lab, &settings).await;
        (!pipe.is_alive().await).then_some(())
    })
    .await;
    let mut late = resumed(&lab, &settings).await;
    assert!(matches!(late.open(&open_web()).await, Answer::Ended));
    // A connection from before is still there, and opens nothing any more.
    match spare.open(&open_web()).await {
        Answer::Denied(denied) => {
            assert_eq!(denied.code, DenyCode::Certificate, "{}", denied.message);
            assert!(denied.message.contains("expired"), "{}", denied.message);
        }
        other => panic!("{other:?}"),
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_ticket_is_worthless_once_its_user_is_denied() {
    let lab = lab().await;
    let user = lab.aws.user("bob").unwrap();
    denied_by(&lab, |_| format!("user 111122223333/{}", user.unique_id)).await;
    // No further certificate either.
    postern_as(&lab, "bob", &["login"]).await.status(0);
    postern_as(&lab, "bob", &["ls"])
        .await
        .status(1)
        .says(&["may not come in any more"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_ticket_is_worthless_once_its_certificate_is_denied() {
    let lab = lab().await;
    denied_by(&lab, |serial| format!("certificate {serial}")).await;
    lab.stop().await.unwrap();
}

/// Puts a line on the deny list while bob holds a ticket and a connection.
async fn denied_by(lab: &Lab, line: impl Fn(&str) -> String) {
    let (certified, settings) = with_ticket(lab, None).await;
    let mut spare = resumed(lab, &settings).await;
    assert!(spare.is_alive().await);
    let serial = serial(&certified).await;
    let list = lab.agent.config.with_file_name("deny");
    std::fs::write(&list, format!("# left\n{}\n", line(&serial))).unwrap();
    lab.agent.signal(rustix::process::Signal::HUP).unwrap();
    eventually("the denial takes effect", async || {
        let mut pipe = resumed(lab, &settings).await;
        (!pipe.is_alive().await).then_some(())
    })
    .await;
    let mut late = resumed(lab, &settings).await;
    assert!(matches!(late.open(&open_web()).await, Answer::Ended));
    match spare.open(&open_web()).await {
        Answer::Denied(denied) => {
            assert_eq!(denied.code, DenyCode::Certificate, "{}", denied.message);
        }
        other => panic!("{other:?}"),
    }
}

/// The certificate's serial as OpenSSL prints it, in the form of the deny list.
async fn serial(certified: &Certified) -> String {
    let mut openssl = tokio::process::Command::new("openssl");
    openssl.args(["x509", "-inform", "DER", "-noout", "-serial"]);
    let told = run(&mut openssl, &certified.chain[0]).await.status(0);
    let serial = told.out().trim().to_lowercase();
    serial.trim_start_matches("serial=").to_owned()
}

#[tokio::test]
async fn a_running_session_ends_when_its_user_is_denied() {
    let lab = lab().await;
    let running = session(&lab).await;
    let user = lab.aws.user("alice").unwrap().unique_id;
    let list = lab.agent.config.with_file_name("deny");
    std::fs::write(&list, format!("user 111122223333/{user}\n")).unwrap();
    lab.agent.signal(rustix::process::Signal::HUP).unwrap();
    let told = ending(running).await;
    told.status(255).says(&["deny list"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_broken_deny_list_keeps_the_old_one_and_turns_readiness_red() {
    let lab = lab().await;
    let list = lab.agent.config.with_file_name("deny");
    std::fs::write(&list, "usr 111122223333/AIDA\n").unwrap();
    lab.agent.signal(rustix::process::Signal::HUP).unwrap();
    eventually("readiness turns red", async || {
        let (status, text) = get(&lab, "/readyz").await;
        (status == 503 && text.contains("denies nobody")).then_some(())
    })
    .await;
    std::fs::write(&list, "").unwrap();
    lab.agent.signal(rustix::process::Signal::HUP).unwrap();
    eventually("readiness is back", async || {
        (get(&lab, "/readyz").await.0 == 200).then_some(())
    })
    .await;
    lab.stop().await.unwrap();
}
