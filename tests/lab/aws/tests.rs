//! Whole calls against the emulator without a network: signed bytes in, answer and event out.

mod devices;
mod lookups;
mod sessions;
mod signatures;

use std::net::IpAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::account::Account;
use super::dispatch::{Incoming, State};
use super::fleet::Fleet;
use super::reply::Answer;
use super::request::{RawRequest, encode};
use super::seed::{AccessKey, Instance, InstanceState, Role, Root, SsmNode, Subnet, User};
use super::service::Service;
use super::sigv4::signer;

const ACCOUNT: &str = "111122223333";
const REGION: &str = "eu-west-1";
const ATTEST: &str = "arn:aws:iam::111122223333:role/postern-attest";
const WEB_1: &str = "i-0123456789abcdef0";
const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS a@b";

fn document(statement: Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statement}).to_string()
}

fn allow(action: &str, resource: &str) -> String {
    document(json!({"Effect": "Allow", "Action": action, "Resource": resource}))
}

/// The attestation role as DESIGN describes it: MFA, an hour old at most.
fn attestation_trust() -> String {
    document(json!({
        "Effect": "Allow",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:root")},
        "Action": "sts:AssumeRole",
        "Condition": {
            "Bool": {"aws:MultiFactorAuthPresent": "true"},
            "NumericLessThan": {"aws:MultiFactorAuthAge": "3600"},
        },
    }))
}

/// Credentials that sign a call.
#[derive(Clone)]
struct Keys {
    id: String,
    secret: String,
    token: Option<String>,
}

impl From<&AccessKey> for Keys {
    fn from(key: &AccessKey) -> Self {
        Self {
            id: key.id.clone(),
            secret: key.secret.clone(),
            token: None,
        }
    }
}

struct Lab {
    state: State,
    now: OffsetDateTime,
    root: AccessKey,
}

impl Lab {
    fn new() -> Self {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let root = AccessKey::random();
        let seed = Root {
            access_key: Some(root.clone()),
            mfa_enabled: true,
        };
        let mut account = Account::new(ACCOUNT, &seed);
        let may_attest = allow("sts:AssumeRole", &format!("arn:aws:iam::{ACCOUNT}:role/*"));
        for name in ["alice", "bob"] {
            let user = User::new(name).with_policy("attest", may_attest.clone());
            account.put_user(user, now).expect("a valid user");
        }
        account
            .put_user(User::new("mallory"), now)
            .expect("a valid user");
        account
            .put_role(Role::new("postern-attest", attestation_trust()), now)
            .expect("a role");
        let open = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:root")}}));
        let operator = Role::new("operator", open).with_policy("all", allow("*", "*"));
        account.put_role(operator, now).expect("a role");

        let subnet = Subnet {
            id: "subnet-0a".into(),
            vpc_id: "vpc-0a".into(),
            cidr: "10.0.1.0/24".into(),
            availability_zone: "eu-west-1a".into(),
            name: "private-a".into(),
        };
        let mut fleet = Fleet::new(vec![], vec![subnet.clone()]);
        let ip = std::net::Ipv4Addr::new(127, 9, 0, 2);
        let mut web = Instance::new(WEB_1, "web-1", ip, &subnet).with_tag("env", "production");
        web.ssm = Some(SsmNode::online());
        fleet.put(web, now).expect("an instance");
        for n in 0..7_u8 {
            let id = format!("i-0000000000000000{n}");
            let ip = std::net::Ipv4Addr::new(127, 9, 1, n);
            fleet
                .put(Instance::new(&id, "app", ip, &subnet), now)
                .expect("an instance");
        }
        let state = State {
            account,
            fleet,
            pushed: Default::default(),
            trail: Default::default(),
            faults: Default::default(),
            regions: vec![REGION.into()],
            sessions: std::sync::Arc::new(crate::ssm::Hub::new(crate::aws::Clock::system())),
            gateway: std::net::SocketAddr::from(([127, 9, 0, 1], 443)),
            documents: vec![],
            kms: Default::default(),
        };
        Self { state, now, root }
    }

    fn user(&self, name: &str) -> Keys {
        Keys::from(
            &self
                .state
                .account
                .user(name)
                .expect("seeded")
                .seed
                .access_key,
        )
    }

    fn code(&self, name: &str) -> String {
        let device = self.state.account.device_of(name).expect("a device");
        device.unused_code(self.now).expect("a code is left")
    }

    fn send(&mut self, request: RawRequest) -> Answer {
        let source: IpAddr = [127, 0, 0, 9].into();
        let incoming = Incoming::read(request, source);
        let faults = incoming.faults(&mut self.state);
        incoming.process(&mut self.state, self.now, &faults)
    }

    fn query(&mut self, keys: &Keys, service: Service, params: &[(&str, &str)]) -> Answer {
        let request = self.signed(keys, service, params, &[]);
        self.send(request)
    }

    fn signed(
        &self,
        keys: &Keys,
        service: Service,
        params: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> RawRequest {
        let version = match service {
            Service::Sts => "2011-06-15",
            Service::Iam => "2010-05-08",
            _ => "2016-11-15",
        };
        let pairs = params.iter().copied().chain([("Version", version)]);
        let body: Vec<String> = pairs
            .map(|(n, v)| format!("{}={}", encode(n.as_bytes()), encode(v.as_bytes())))
            .collect();
        let mut request = unsigned(body.join("&").into());
        let form = b"application/x-www-form-urlencoded".to_vec();
        request.headers.push(("content-type".into(), form));
        for (name, value) in headers {
            request.headers.push(((*name).into(), (*value).into()));
        }
        self.sign(&mut request, keys, service);
        request
    }

    fn sign(&self, request: &mut RawRequest, keys: &Keys, service: Service) {
        let key = signer::Key {
            id: &keys.id,
            secret: &keys.secret,
            token: keys.token.as_deref(),
        };
        signer::sign(request, &key, (REGION, service.name()), self.now);
    }

    fn json(&mut self, keys: &Keys, service: Service, target: &str, body: &Value) -> (u16, Value) {
        let mut request = unsigned(body.to_string().into());
        request.headers.push(("x-amz-target".into(), target.into()));
        self.sign(&mut request, keys, service);
        let answer = self.send(request);
        (
            answer.status,
            serde_json::from_str(&answer.body).expect("JSON"),
        )
    }

    fn session(&mut self, user: &str, code: Option<&str>) -> Result<Keys, String> {
        let (keys, serial) = (self.user(user), self.state.account.mfa_serial(user));
        let mut params = vec![("Action", "GetSessionToken")];
        if let Some(code) = code {
            params.extend([("SerialNumber", serial.as_str()), ("TokenCode", code)]);
        }
        credentials(&self.query(&keys, Service::Sts, &params))
    }

    fn mfa_session(&mut self, user: &str) -> Keys {
        let code = self.code(user);
        self.session(user, Some(&code)).expect("a session")
    }

    fn assume(&mut self, keys: &Keys, role: &str, more: &[(&str, &str)]) -> Result<Keys, String> {
        let mut params = vec![
            ("Action", "AssumeRole"),
            ("RoleArn", role),
            ("RoleSessionName", "bind"),
        ];
        params.extend(more);
        credentials(&self.query(keys, Service::Sts, &params))
    }

    fn last_event(&self) -> Value {
        self.state.trail.events().pop().expect("an event")
    }
}

fn unsigned(body: Bytes) -> RawRequest {
    RawRequest {
        method: "POST".into(),
        path: "/".into(),
        query: String::new(),
        headers: vec![("host".into(), b"127.0.0.1:1".to_vec())],
        body,
    }
}

fn element<'a>(body: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// The credentials of an answer, else its error code.
fn credentials(answer: &Answer) -> Result<Keys, String> {
    if answer.status != 200 {
        return Err(code_of(answer));
    }
    let get = |name| element(&answer.body, name).expect(name).to_owned();
    Ok(Keys {
        id: get("AccessKeyId"),
        secret: get("SecretAccessKey"),
        token: Some(get("SessionToken")),
    })
}

fn code_of(answer: &Answer) -> String {
    element(&answer.body, "Code")
        .unwrap_or_else(|| panic!("no error: {}", answer.body))
        .to_owned()
}

fn denied<T>(result: Result<T, String>) -> bool {
    result.err().as_deref() == Some("AccessDenied")
}
