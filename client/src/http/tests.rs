//! Requests to an agent in this process.

use serde_json::{Value, json};

use super::Client;
use crate::error::{Error, Kind};
use crate::testing::FakeAgent;

#[tokio::test]
async fn answers_are_read_and_questions_arrive() {
    let agent = FakeAgent::start().await;
    agent.answer(
        "/v1/targets?filter=tag%3Aenv%3Dprod",
        200,
        r#"{"targets":[]}"#,
    );
    agent.answer("/v1/why", 200, r#"{"verdict":"allow"}"#);
    let mut client = Client::connect(agent.gateway().await).await.unwrap();
    let path = format!(
        "/v1/targets?filter={}",
        super::percent_encoded("tag:env=prod")
    );
    assert_eq!(
        client.get_json::<Value>(&path).await.unwrap(),
        json!({ "targets": [] })
    );
    let question = json!({ "target": "web-1" });
    let answer: Value = client.post_json("/v1/why", &question).await.unwrap();
    assert_eq!(answer, json!({ "verdict": "allow" }));
    let state = agent.state.lock().unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&state.asked[1].1).unwrap(),
        question
    );
}

#[tokio::test]
async fn a_refusal_keeps_the_agents_words() {
    let agent = FakeAgent::start().await;
    agent.answer(
        "/v1/recordings",
        403,
        r#"{"error":"bob may not read the log","hint":"ask carol"}"#,
    );
    let mut client = Client::connect(agent.gateway().await).await.unwrap();
    let error = Error::from(
        client
            .get_json::<Value>("/v1/recordings")
            .await
            .unwrap_err(),
    );
    assert_eq!(
        (error.kind, error.message.as_str(), error.hint.as_deref()),
        (Kind::Denied, "bob may not read the log", Some("ask carol"))
    );
    agent.answer("/v1/targets", 500, "<html>");
    let error = Error::from(client.get_json::<Value>("/v1/targets").await.unwrap_err());
    assert_eq!(
        error.message,
        "agent `bastion-1` answered /v1/targets with 500 Internal Server Error"
    );
}

#[tokio::test]
async fn a_certificate_that_http_refuses_is_renewed_once() {
    let agent = FakeAgent::start().await;
    agent.answer(
        "/v1/targets",
        401,
        r#"{"error":"the certificate is denied","hint":"postern login"}"#,
    );
    let mut client = Client::connect(agent.gateway().await).await.unwrap();
    for _ in 0..2 {
        let error = Error::from(client.get_json::<Value>("/v1/targets").await.unwrap_err());
        assert_eq!(error.kind, Kind::Denied);
    }
    let state = agent.state.lock().unwrap();
    assert_eq!((state.certificates, state.asked.len()), (2, 3));
}

#[tokio::test]
async fn a_longer_answer_than_allowed_is_not_read() {
    let agent = FakeAgent::start().await;
    agent.answer("/v1/log/checkpoint", 200, &"x".repeat(2000));
    let mut client = Client::connect(agent.gateway().await).await.unwrap();
    assert!(client.get("/v1/log/checkpoint", 1000).await.is_err());
}
