//! The API through TLS, as `curl` would use it.

mod claims;
mod doors;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use postern_proto::audit::event::Fact;
use postern_proto::gateway::message::CloseReason;
use serde_json::Value;

use crate::policy::Action;
use crate::testing::*;

/// One connection of somebody.
struct Browser(SendRequest<Full<Bytes>>);

impl Browser {
    async fn new(agent: &Agent, name: &str) -> Self {
        let stream = agent.tls(name, b"http/1.1").await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, method: Method, path: &str, body: &str) -> (StatusCode, Bytes) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "bastion-1")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
            .unwrap();
        let answer = self.0.send_request(request);
        let answer = tokio::time::timeout(SOON, answer).await.unwrap().unwrap();
        let status = answer.status();
        (
            status,
            answer.into_body().collect().await.unwrap().to_bytes(),
        )
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Value) {
        let (status, body) = self.ask(Method::GET, path, "").await;
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }
}

fn reads(agent: &Agent) -> Vec<(String, String, bool)> {
    agent
        .events()
        .into_iter()
        .filter_map(|event| match event.fact {
            Fact::AuditRead {
                what,
                subject,
                allowed,
            } => Some((what, subject, allowed)),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn the_caller_is_checked_for_each_request() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let (status, body) = alice.get("/v1/whoami").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["arn"], "arn:aws:iam::111122223333:user/alice");
    assert_eq!(body["assurance"], "aws-mfa");
    *agent.barred.lock().unwrap() = Some(principal("alice").principal().key());
    let (status, body) = alice.get("/v1/whoami").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(
        body["error"].is_string() && body["hint"].is_string(),
        "{body}"
    );
    agent.stopped().await;
}

#[tokio::test]
async fn targets_say_what_policy_allows_there() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let (_, body) = alice.get("/v1/targets?filter=tag%3Aenv").await;
    let target = &body["targets"][0];
    assert_eq!(target["id"], "web-1");
    assert_eq!(target["allowed"]["users"][0], "ubuntu");
    assert_eq!(target["allowed"]["ports"][0], 5432);
    let (status, _) = alice.get("/v1/targets?x=1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    let why = r#"{"target":"web-1","action":"tunnel","port":80}"#;
    let (status, body) = alice.ask(Method::POST, "/v1/why", why).await;
    assert_eq!(status, StatusCode::OK);
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&body["verdict"], &body["action"]),
        (&"allow".into(), &"tunnel".into())
    );
    for bad in [
        "{}",
        "no json",
        r#"{"target":"web-1","action":"fly"}"#,
        r#"{"target":"web"}"#,
    ] {
        let (status, _) = alice.ask(Method::POST, "/v1/why", bad).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let long = "x".repeat(65 * 1024);
    let (status, _) = alice.ask(Method::POST, "/v1/why", &long).await;
    assert!(status.is_client_error(), "{status}");
    agent.stopped().await;
}

#[tokio::test]
async fn reading_the_log_is_an_event_before_the_answer() {
    let agent = Agent::start().await;
    let mut carol = Browser::new(&agent, "alice").await;
    let (status, note) = carol.ask(Method::GET, "/v1/log/checkpoint", "").await;
    assert_eq!(status, StatusCode::OK);
    let note = String::from_utf8(note.to_vec()).unwrap();
    assert!(note.starts_with("bastion-1\n"), "{note}");
    let read = ("tile".to_owned(), "checkpoint".to_owned(), true);
    assert_eq!(reads(&agent), [read]);
    // One event covers what follows in that minute.
    let size: u64 = note.lines().nth(1).unwrap().parse().unwrap();
    let path = format!("/v1/log/tile/0/000.p/{size}");
    let (status, tile) = carol.ask(Method::GET, &path, "").await;
    assert_eq!((status, tile.len() as u64), (StatusCode::OK, size * 32));
    assert_eq!(reads(&agent).len(), 1);
    for path in [
        "/v1/log/../../etc/passwd",
        "/v1/log/%2e%2e/keys",
        "/v1/log/recordings/x",
        "/v1/log/tile/0/999",
        "/v1/nothing",
    ] {
        let (status, body) = carol.get(path).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
        assert!(body["error"].is_string(), "{path}: {body}");
    }
    agent.stopped().await;
}

#[tokio::test]
async fn a_refused_reader_gets_nothing_and_is_logged() {
    let agent = Agent::start().await;
    agent.decide(|request| match request.action {
        Action::AuditList => allow(request),
        _ => deny("not for you"),
    });
    let mut bobby = Browser::new(&agent, "bobby").await;
    let (status, body) = bobby.get("/v1/recordings").await;
    assert_eq!(
        (status, &body["recordings"]),
        (StatusCode::OK, &serde_json::json!([]))
    );
    let name = "01ARZ3NDEKTSV4RRFFQ69G5FAV-0";
    let (status, body) = bobby.get(&format!("/v1/recordings/{name}")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(body["error"], "not for you");
    assert!(reads(&agent).contains(&("recording".to_owned(), name.to_owned(), false)));
    agent.stopped().await;
}

#[tokio::test]
async fn a_recording_is_served_as_it_is_stored() {
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    let mut client = agent.connect("alice").await;
    client.open(&open(5432)).await;
    let granted = client.granted().await;
    client.close(CloseReason::Done).await;
    client.closed().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let (_, body) = alice.get("/v1/recordings").await;
    let listed = &body["recordings"][0];
    assert_eq!(listed["session"], granted.session.to_string());
    let path = format!("/v1/recordings/{}", listed["name"].as_str().unwrap());
    let (status, bytes) = alice.ask(Method::GET, &path, "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(Some(bytes.len() as u64), listed["length"].as_u64());
    let logged = agent
        .event(|fact| match fact {
            Fact::SessionClosed { recordings, .. } => Some(recordings[0].clone()),
            _ => None,
        })
        .await;
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    assert_eq!(hex::encode(hash), logged.sha256);
    agent.stopped().await;
}

#[tokio::test]
async fn sessions_are_seen_and_ended_by_those_who_may() {
    let agent = Agent::start().await;
    let _listener = agent.listen().await;
    agent.decide(
        |request| match (request.action, request.who.principal().arn.as_str()) {
            (Action::SessionList | Action::SessionKill, arn) if !arn.ends_with("bobby") => {
                deny("operators only")
            }
            _ => allow(request),
        },
    );
    let mut client = agent.connect("bobby").await;
    client.open(&open(5432)).await;
    let granted = client.granted().await;
    let path = format!("/v1/sessions/{}", granted.session);

    let mut alice = Browser::new(&agent, "alice").await;
    let (_, body) = alice.get("/v1/sessions").await;
    assert_eq!(
        (&body["scope"], &body["sessions"]),
        (&"own".into(), &serde_json::json!([]))
    );
    let (status, _) = alice.ask(Method::DELETE, &path, "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);

    let mut mine = agent.connect("alice").await;
    mine.open(&open(5432)).await;
    let own = mine.granted().await.session;
    let (_, body) = alice.get("/v1/sessions").await;
    assert_eq!(body["sessions"][0]["id"], own.to_string());
    assert_eq!(body["sessions"][0]["access"]["port"], 5432);

    let mut bobby = Browser::new(&agent, "bobby").await;
    let path = format!("/v1/sessions/{own}");
    let (status, _) = bobby.ask(Method::DELETE, &path, "").await;
    assert_eq!(status, StatusCode::OK);
    let close = mine.closed().await;
    assert_eq!(close.reason, CloseReason::Killed);
    assert!(close.message.unwrap().contains("bobby"));
    agent.stopped().await;
}

#[tokio::test]
async fn without_evidence_nothing_is_read() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    agent.evidence.fail();
    let (status, body) = alice.get("/v1/log/checkpoint").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["error"].as_str().unwrap().contains("evidence"));
    drop(agent);
}
