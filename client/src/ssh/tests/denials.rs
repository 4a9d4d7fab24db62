//! Agents that say no, ask for more, or are not to be trusted.

use std::sync::Arc;

use postern_proto::gateway::message::{Denied, DenyCode};
use postern_proto::names::SessionId;

use super::*;
use crate::gateway::Gateway;

fn denied(code: DenyCode, open_hash: Option<&str>) -> Denied {
    Denied {
        code,
        message: "alice may not connect to web-1 as ec2-user".to_owned(),
        hint: None,
        session: Some(SessionId::from_parts(5, 5)),
        open_hash: open_hash.map(str::to_owned),
        candidates: vec![],
    }
}

async fn refusal(agent: &FakeAgent) -> UserError {
    let gateway: Arc<Gateway> = agent.gateway().await;
    match within(Link::open(&gateway, &request(), None)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.into(),
    }
}

#[tokio::test]
async fn a_denial_is_told_with_its_session() {
    let agent = FakeAgent::start()
        .await
        .script([Script::Deny(denied(DenyCode::Policy, None))]);
    let error = refusal(&agent).await;
    insta::assert_snapshot!(error, @"alice may not connect to web-1 as ec2-user (session 00000000050000000000000005)");
    assert_eq!(error.kind, crate::error::Kind::Denied);
}

#[tokio::test]
async fn a_fresh_code_is_given_once_for_this_very_request() {
    let wanted = Script::Deny(denied(DenyCode::StepUp, Some("right")));
    let agent = FakeAgent::start().await.script([wanted.clone()]);
    assert_eq!(
        ran(&agent, job("status 0"), b"").await.status.unwrap(),
        Status::Exited(0)
    );
    {
        let state = agent.state.lock().unwrap();
        assert_eq!(state.step_ups.len(), 1);
        assert_eq!(state.opens[1].approved, Some(SessionId::from_parts(5, 5)));
    }
    // A second demand for the same request is final.
    agent
        .state
        .lock()
        .unwrap()
        .script
        .extend([wanted.clone(), wanted]);
    assert_eq!(refusal(&agent).await.kind, crate::error::Kind::Denied);
    assert_eq!(agent.state.lock().unwrap().step_ups.len(), 2);
}

#[tokio::test]
async fn no_code_is_given_for_a_request_that_was_not_made() {
    let agent = FakeAgent::start()
        .await
        .script([Script::Deny(denied(DenyCode::StepUp, Some("00")))]);
    let error = refusal(&agent).await;
    insta::assert_snapshot!(error, @"agent `bastion-1` answered another question than was asked: it wants a fresh code for another request");
    assert!(agent.state.lock().unwrap().step_ups.is_empty());
}

#[tokio::test]
async fn a_refused_certificate_is_renewed_once() {
    let refused = Script::Deny(denied(DenyCode::Certificate, None));
    let agent = FakeAgent::start().await.script([refused.clone()]);
    assert_eq!(
        ran(&agent, job("status 0"), b"").await.status.unwrap(),
        Status::Exited(0)
    );
    assert_eq!(agent.state.lock().unwrap().certificates, 2);
    agent
        .state
        .lock()
        .unwrap()
        .script
        .extend([refused.clone(), refused]);
    let error = refusal(&agent).await;
    assert_eq!(error.hint.as_deref(), Some("postern login"));
}

#[tokio::test]
async fn a_log_that_was_rewritten_is_refused_in_the_next_session() {
    let agent = FakeAgent::start().await;
    ran(&agent, job("status 0"), b"").await.status.unwrap();
    agent
        .state
        .lock()
        .unwrap()
        .script
        .push_back(Script::Rewrite);
    let error = refusal(&agent).await;
    assert_eq!(
        agent.state.lock().unwrap().opens[1].known_size,
        Some(2),
        "grant and close were kept"
    );
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint.as_deref().unwrap()), @r"
        agent `bastion-1` is not to be trusted: the agent's log was rewritten: its first 2 entries are not what they were
        hint: do not use this agent; tell your auditors, and keep the client's state folder as evidence
        ");
}
