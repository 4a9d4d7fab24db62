//! Every path of the API, so that none is without the check.

use super::*;

const NAME: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV-0";

/// All of them, each with what else it takes.
fn doors() -> Vec<(Method, String, &'static str)> {
    let at = |path: &str| path.to_owned();
    vec![
        (Method::GET, at("/v1/whoami"), ""),
        (Method::GET, at("/v1/targets"), ""),
        (
            Method::POST,
            at("/v1/why"),
            r#"{"target":"web-1","action":"connect"}"#,
        ),
        (Method::GET, at("/v1/log/checkpoint"), ""),
        (Method::GET, at("/v1/recordings"), ""),
        (Method::GET, format!("/v1/recordings/{NAME}"), ""),
        (Method::GET, at("/v1/sessions"), ""),
        (
            Method::DELETE,
            at("/v1/sessions/01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            "",
        ),
        (Method::POST, at("/v1/claims?log=laptop&entry=0"), "{}"),
        (Method::GET, format!("/v1/claims/recordings/{NAME}"), ""),
        (
            Method::POST,
            format!("/v1/claims/recordings/{NAME}?offset=0"),
            "x",
        ),
    ]
}

#[tokio::test]
async fn every_path_of_the_api_checks_the_certificate_and_the_deny_list() {
    // Who adds a path adds it above.
    let routed: std::collections::BTreeSet<_> = include_str!("../../http.rs")
        .match_indices("/v1/")
        .filter_map(|(at, _)| {
            let (before, rest) = include_str!("../../http.rs").split_at(at);
            let (path, _) = rest.split_once('"')?;
            before.ends_with('"').then_some(path)
        })
        .collect();
    let listed: std::collections::BTreeSet<_> = doors()
        .into_iter()
        .map(|(_, path, _)| path.split('/').take(4).collect::<Vec<_>>().join("/"))
        .collect();
    for path in &routed {
        let start: Vec<_> = path
            .split(['{', '?'])
            .next()
            .unwrap()
            .trim_end_matches('/')
            .split('/')
            .collect();
        let start = start.join("/");
        assert!(
            listed.iter().any(|listed| listed.starts_with(&start)),
            "{path} is not tried here"
        );
    }
    assert_eq!(routed.len(), 10, "{routed:?}");

    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    alice.get("/v1/whoami").await;
    *agent.barred.lock().unwrap() = Some(principal("alice").principal().key());
    let before = agent.events().len();
    for (method, path, body) in doors() {
        let (status, told) = alice.ask(method.clone(), &path, body).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert!(told["error"].is_string(), "{method} {path}: {told}");
    }
    assert_eq!(agent.events().len(), before, "nothing was done or read");
    agent.stopped().await;
}

#[tokio::test]
async fn no_header_says_who_asks_or_from_where() {
    let agent = Agent::start().await;
    let mut alice = Browser::new(&agent, "alice").await;
    let mut request = Request::builder().uri("/v1/log/checkpoint");
    for (name, value) in [
        ("host", "somebody-elses.example"),
        ("x-forwarded-for", "192.0.2.66"),
        ("x-real-ip", "192.0.2.66"),
        ("forwarded", "for=192.0.2.66"),
        ("x-forwarded-client-cert", "Subject=carol"),
        ("x-forwarded-user", "carol"),
        ("authorization", "Bearer carol"),
        ("cookie", "session=carol"),
        ("origin", "https://evil.example"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
    ] {
        request = request.header(name, value);
    }
    let request = request.body(Full::default()).unwrap();
    let answer = alice.0.send_request(request);
    let answer = tokio::time::timeout(SOON, answer).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    for name in answer.headers().keys() {
        let name = name.as_str();
        assert!(
            !name.starts_with("access-control"),
            "{name}: other origins may read"
        );
        assert_ne!(name, "set-cookie");
    }
    let read = agent
        .events()
        .into_iter()
        .find_map(|event| match event.fact {
            Fact::AuditRead { .. } => {
                Some((event.actor.unwrap().principal.arn, event.source.unwrap()))
            }
            _ => None,
        });
    let (who, source) = read.unwrap();
    assert_eq!(who, "arn:aws:iam::111122223333:user/alice");
    assert!(source.starts_with("127."), "{source}");
    agent.stopped().await;
}
