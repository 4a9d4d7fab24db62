//! STS over HTTPS: signatures checked by hand, codes burnt, sessions with their MFA.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aws_lc_rs::{digest, hmac};
use secrecy::SecretString;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Authority, Device, KEY_ID, Server, lock};
use crate::identity::sts::now;

pub(in crate::identity) const LONG_TERM_SECRET: &str = "canary-long-term-secret";

/// What the service knows.
pub(in crate::identity) struct State {
    pub(in crate::identity) device: Device,
    /// Secrets and tokens by access key id.
    pub(in crate::identity) keys: HashMap<String, (String, Option<String>)>,
    /// What was asked: action and access key id.
    pub(in crate::identity) calls: Vec<(String, String)>,
    /// The caller's ARN.
    pub(in crate::identity) arn: String,
    /// Seconds that sessions and role sessions live.
    pub(in crate::identity) lifetimes: (i64, i64),
    /// Seconds that its clock is ahead of ours.
    pub(in crate::identity) ahead: i64,
    count: u32,
}

/// The service.
pub(in crate::identity) struct Aws {
    pub(in crate::identity) state: Arc<Mutex<State>>,
    server: Server,
}

impl Aws {
    pub(in crate::identity) async fn start(authority: &Authority) -> Self {
        let long_term = (LONG_TERM_SECRET.to_owned(), None);
        let state = Arc::new(Mutex::new(State {
            device: Device::default(),
            keys: HashMap::from([(KEY_ID.to_owned(), long_term)]),
            calls: Vec::new(),
            arn: "arn:aws:iam::111122223333:user/alice".to_owned(),
            lifetimes: (43_200, 3600),
            ahead: 0,
            count: 0,
        }));
        let shared = Arc::clone(&state);
        let acceptor = authority.server("127.0.0.1", b"http/1.1", 86_400);
        let server =
            Server::start(acceptor, move |stream| serve(stream, Arc::clone(&shared))).await;
        Self { state, server }
    }

    pub(in crate::identity) fn port(&self) -> u16 {
        self.server.port
    }

    /// A code that is taken once.
    pub(in crate::identity) fn next_code(&self) -> SecretString {
        lock(&self.state).device.next()
    }

    /// Actions that were asked for, in order.
    pub(in crate::identity) fn actions(&self) -> Vec<String> {
        let state = lock(&self.state);
        state
            .calls
            .iter()
            .map(|(action, _)| action.clone())
            .collect()
    }
}

async fn serve(stream: TlsStream<TcpStream>, state: Arc<Mutex<State>>) {
    let mut stream = BufReader::new(stream);
    let mut headers = HashMap::new();
    let mut line = String::new();
    while let Ok(count) = stream.read_line(&mut line).await {
        if count == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.trim_end().split_once(": ") {
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        line.clear();
    }
    let length = headers["content-length"].parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let body = String::from_utf8(body).unwrap();
    let (status, xml, date) = {
        let mut state = lock(&state);
        let date = time::OffsetDateTime::from_unix_timestamp(now() + state.ahead).unwrap();
        let (status, xml) = answer(&mut state, &headers, &body);
        (status, xml, date)
    };
    let date = date
        .format(time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        ))
        .unwrap();
    let text = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: text/xml\r\ndate: {date}\r\nconnection: close\r\n\
         x-amzn-requestid: r-1\r\ncontent-length: {}\r\n\r\n{xml}",
        xml.len()
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

fn answer(state: &mut State, headers: &HashMap<String, String>, body: &str) -> (u16, String) {
    let form: HashMap<String, String> = body
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), decode(value)))
        .collect();
    let action = form["Action"].clone();
    let authorization = &headers["authorization"];
    let part = |name: &str| {
        let start = authorization.find(name).unwrap() + name.len() + 1;
        authorization[start..].split(',').next().unwrap().to_owned()
    };
    let credential = part("Credential");
    let id = credential.split('/').next().unwrap().to_owned();
    state.calls.push((action.clone(), id.clone()));
    if state.ahead.abs() > 300 {
        return refuse("SignatureDoesNotMatch", "Signature expired");
    }
    let Some((secret, token)) = state.keys.get(&id).cloned() else {
        return refuse(
            "InvalidClientTokenId",
            "The security token included in the request is invalid.",
        );
    };
    if headers.get("x-amz-security-token") != token.as_ref() {
        return refuse("InvalidClientTokenId", "wrong token");
    }
    let expected = signature(&secret, &credential, &part("SignedHeaders"), headers, body);
    if expected != part("Signature") {
        return refuse(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match",
        );
    }
    match action.as_str() {
        "GetCallerIdentity" => result(
            &action,
            &format!(
                "<Arn>{}</Arn><UserId>AIDAALICEALICEALICE0</UserId><Account>111122223333</Account>",
                state.arn
            ),
        ),
        "GetSessionToken" => {
            assert!(token.is_none(), "GetSessionToken is for long-term keys");
            if form.get("SerialNumber").map(String::as_str) != Some(super::SERIAL)
                || !state.device.takes(&form["TokenCode"])
            {
                return refuse(
                    "AccessDenied",
                    "MultiFactorAuthentication failed with invalid MFA one time pass code. ",
                );
            }
            let lifetime = state.lifetimes.0;
            credentials(state, &action, lifetime)
        }
        "AssumeRole" => {
            assert!(token.is_some(), "the role is assumed from the session");
            assert!(!form.contains_key("TokenCode"), "without a second code");
            let lifetime = state.lifetimes.1;
            credentials(state, &action, lifetime)
        }
        _ => refuse("InvalidAction", "unknown"),
    }
}

fn credentials(state: &mut State, action: &str, lifetime: i64) -> (u16, String) {
    state.count += 1;
    let id = format!("ASIASESSION{:09}", state.count);
    let secret = format!("canary-session-secret-{}", state.count);
    let token = format!("canary-session-token-{}", state.count);
    let end = time::OffsetDateTime::from_unix_timestamp(now() + lifetime)
        .unwrap()
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    let xml = format!(
        "<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
         <SessionToken>{token}</SessionToken><Expiration>{end}</Expiration></Credentials>"
    );
    state.keys.insert(id, (secret, Some(token)));
    result(action, &xml)
}

fn result(action: &str, xml: &str) -> (u16, String) {
    let text = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         {xml}</{action}Result></{action}Response>"
    );
    (200, text)
}

fn refuse(code: &str, message: &str) -> (u16, String) {
    let text = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
         <Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    );
    (403, text)
}

/// AWS Signature Version 4 from its specification.
pub(in crate::identity) fn signature(
    secret: &str,
    credential: &str,
    signed_headers: &str,
    headers: &HashMap<String, String>,
    body: &str,
) -> String {
    let hash = |text: &str| hex::encode(digest::digest(&digest::SHA256, text.as_bytes()));
    let lines: String = signed_headers
        .split(';')
        .map(|name| format!("{name}:{}\n", headers[name].trim()))
        .collect();
    let canonical = format!("POST\n/\n\n{lines}\n{signed_headers}\n{}", hash(body));
    let (_, scope) = credential.split_once('/').unwrap();
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        headers["x-amz-date"],
        hash(&canonical)
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/').chain([text.as_str()]) {
        let signing = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&signing, part.as_bytes()).as_ref().to_vec();
    }
    hex::encode(key)
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
