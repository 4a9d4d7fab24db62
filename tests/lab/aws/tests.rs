//! Whole calls against the emulator without a network: signed bytes in, answer and event out.

use std::net::IpAddr;

use bytes::Bytes;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::account::Account;
use super::dispatch::{Incoming, State};
use super::fleet::Fleet;
use super::reply::{Answer, Service};
use super::request::{RawRequest, encode};
use super::seed::{AccessKey, Instance, InstanceState, Role, Root, SsmNode, Subnet, User};
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

#[test]
fn everybody_learns_who_they_are_in_aws_own_form() {
    let mut lab = Lab::new();
    let ask = |lab: &mut Lab, keys: &Keys| {
        let answer = lab.query(keys, Service::Sts, &[("Action", "GetCallerIdentity")]);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let get = |name| element(&answer.body, name).expect(name).to_owned();
        (get("Arn"), get("UserId"), get("Account"))
    };
    let alice = lab.user("alice");
    let (arn, id, account) = ask(&mut lab, &alice);
    assert_eq!(arn, "arn:aws:iam::111122223333:user/alice");
    assert!(id.starts_with("AIDA") && id.len() == 21, "{id}");
    assert_eq!(account, ACCOUNT);

    let session = lab.mfa_session("alice");
    assert!(session.id.starts_with("ASIA"));
    assert_eq!(ask(&mut lab, &session), (arn, id, account));

    let role = lab
        .assume(&session, "arn:aws:iam::111122223333:role/operator", &[])
        .expect("assumed");
    let (arn, id, _) = ask(&mut lab, &role);
    assert_eq!(arn, "arn:aws:sts::111122223333:assumed-role/operator/bind");
    assert!(id.starts_with("AROA") && id.ends_with(":bind"), "{id}");

    let root = Keys::from(&lab.root);
    let (arn, id, _) = ask(&mut lab, &root);
    assert_eq!(
        (arn.as_str(), id.as_str()),
        ("arn:aws:iam::111122223333:root", ACCOUNT)
    );
}

#[test]
fn the_attestation_role_opens_to_an_mfa_session_and_to_nothing_else() {
    let mut lab = Lab::new();
    let long_term = lab.user("alice");
    assert!(denied(lab.assume(&long_term, ATTEST, &[])), "no MFA at all");
    let without = lab.session("alice", None).expect("a session without MFA");
    assert!(
        denied(lab.assume(&without, ATTEST, &[])),
        "a session without MFA"
    );
    let event = lab.last_event();
    assert_eq!(
        event["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"],
        "false"
    );
    assert_eq!(event["errorCode"], "AccessDenied");

    let with = lab.mfa_session("alice");
    assert!(lab.assume(&with, ATTEST, &[]).is_ok());
    let event = lab.last_event();
    assert_eq!(
        event["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"],
        "true"
    );
    assert_eq!(event["requestParameters"]["roleArn"], ATTEST);

    // The role session that MFA opened carries none of it on.
    let role = lab
        .assume(&with, "arn:aws:iam::111122223333:role/operator", &[])
        .expect("assumed");
    assert!(
        denied(lab.assume(&role, ATTEST, &[])),
        "a role session has no MFA"
    );

    let mallory = lab.mfa_session("mallory");
    assert!(
        denied(lab.assume(&mallory, ATTEST, &[])),
        "account trust needs an identity policy"
    );
    assert!(
        denied(lab.assume(&with, &ATTEST.replace("attest", "other"), &[])),
        "no such role"
    );
}

#[test]
fn an_mfa_session_grows_too_old_before_it_ends() {
    let mut lab = Lab::new();
    let session = lab.mfa_session("alice");
    lab.now += Duration::seconds(3_599);
    assert!(lab.assume(&session, ATTEST, &[]).is_ok());
    lab.now += Duration::seconds(1);
    assert!(denied(lab.assume(&session, ATTEST, &[])));
    lab.now += Duration::hours(11);
    assert_eq!(
        lab.assume(&session, ATTEST, &[]).err().as_deref(),
        Some("ExpiredToken")
    );
}

#[test]
fn step_up_takes_the_code_inside_the_signed_call_and_only_its_own_users() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let serial = lab.state.account.mfa_serial("alice");
    let code = lab.code("alice");
    let step_up = [
        ("SerialNumber", serial.as_str()),
        ("TokenCode", code.as_str()),
    ];

    let bob = lab.user("bob");
    assert!(
        denied(lab.assume(&bob, ATTEST, &step_up)),
        "another user's device"
    );
    let bobs = lab.code("bob");
    let wrong_device = [
        ("SerialNumber", serial.as_str()),
        ("TokenCode", bobs.as_str()),
    ];
    assert!(
        denied(lab.assume(&alice, ATTEST, &wrong_device)),
        "another device's code"
    );

    assert!(lab.assume(&alice, ATTEST, &step_up).is_ok());
    let event = lab.last_event();
    assert_eq!(
        event["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"],
        "true"
    );
    assert!(!event.to_string().contains(&code), "codes are not logged");
    assert!(
        denied(lab.assume(&alice, ATTEST, &step_up)),
        "the code is used up"
    );
    assert!(
        denied(lab.session("alice", Some(&code))),
        "for every call that takes codes"
    );
    let incomplete = [("TokenCode", code.as_str())];
    assert!(denied(lab.assume(&alice, ATTEST, &incomplete)));
}

#[test]
fn a_session_token_needs_a_right_code_and_a_long_term_key() {
    let mut lab = Lab::new();
    let code = lab.code("alice");
    let wrong = if code == "000000" { "000001" } else { "000000" };
    assert!(denied(lab.session("alice", Some(wrong))));
    assert_eq!(
        lab.session("alice", Some("12345")).err().as_deref(),
        Some("ValidationError")
    );
    let session = lab.session("alice", Some(&code)).expect("a session");
    assert!(denied(lab.session("alice", Some(&code))), "reused");

    let again = lab.query(&session, Service::Sts, &[("Action", "GetSessionToken")]);
    assert_eq!(code_of(&again), "AccessDenied");
    assert!(
        again
            .body
            .contains("Cannot call GetSessionToken with session credentials")
    );
    let info = [
        ("Action", "GetAccessKeyInfo"),
        ("AccessKeyId", session.id.as_str()),
    ];
    assert_eq!(
        code_of(&lab.query(&session, Service::Sts, &info)),
        "AccessDenied"
    );

    for (seconds, fits) in [
        ("899", false),
        ("900", true),
        ("129600", true),
        ("129601", false),
    ] {
        let keys = lab.user("bob");
        let params = [("Action", "GetSessionToken"), ("DurationSeconds", seconds)];
        assert_eq!(
            lab.query(&keys, Service::Sts, &params).status == 200,
            fits,
            "{seconds}"
        );
    }
}

#[test]
fn a_session_policy_bounds_the_role_session() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let deny_all = document(json!({"Effect": "Deny", "Action": "*", "Resource": "*"}));
    let operator = "arn:aws:iam::111122223333:role/operator";
    let regions = [("Action", "DescribeRegions")];
    let open = lab.assume(&alice, operator, &[]).expect("assumed");
    assert_eq!(lab.query(&open, Service::Ec2, &regions).status, 200);
    let bound = lab
        .assume(&alice, operator, &[("Policy", &deny_all)])
        .expect("assumed");
    assert_eq!(
        code_of(&lab.query(&bound, Service::Ec2, &regions)),
        "UnauthorizedOperation"
    );
    let identity = lab.query(&bound, Service::Sts, &[("Action", "GetCallerIdentity")]);
    assert_eq!(
        identity.status, 200,
        "GetCallerIdentity needs no permission"
    );
    let bad = lab.assume(&alice, operator, &[("Policy", "{}")]);
    assert_eq!(bad.err().as_deref(), Some("MalformedPolicyDocument"));
    let tags = [("Tags.member.1.Key", "mfa"), ("Tags.member.1.Value", "1")];
    assert!(
        denied(lab.assume(&alice, operator, &tags)),
        "what is not followed is refused"
    );
}

#[test]
fn durations_of_role_sessions_are_limited() {
    let mut lab = Lab::new();
    let (alice, operator) = (lab.user("alice"), "arn:aws:iam::111122223333:role/operator");
    let hour = lab
        .assume(&alice, operator, &[("DurationSeconds", "3600")])
        .expect("assumed");
    let too_long =
        |result: Result<Keys, String>| result.err().as_deref() == Some("ValidationError");
    assert!(too_long(lab.assume(
        &alice,
        operator,
        &[("DurationSeconds", "3601")]
    )));
    assert!(too_long(lab.assume(
        &hour,
        operator,
        &[("DurationSeconds", "3601")]
    )));
    assert!(too_long(lab.assume(
        &alice,
        operator,
        &[("DurationSeconds", "600")]
    )));
}

#[test]
fn root_can_do_everything_but_assume_roles() {
    let mut lab = Lab::new();
    let root = Keys::from(&lab.root);
    assert!(denied(lab.assume(&root, ATTEST, &[])));
    assert_eq!(
        lab.query(&root, Service::Ec2, &[("Action", "DescribeRegions")])
            .status,
        200
    );
    let summary = lab.query(&root, Service::Iam, &[("Action", "GetAccountSummary")]);
    assert!(
        summary
            .body
            .contains("<key>AccountAccessKeysPresent</key><value>1</value>")
    );
}

#[test]
fn keys_tokens_and_dates_that_do_not_fit_are_refused_in_each_protocols_words() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let ask = [("Action", "GetCallerIdentity")];
    let sts = |lab: &mut Lab, keys: &Keys| code_of(&lab.query(keys, Service::Sts, &ask));
    let wrong_secret = Keys {
        secret: "x".repeat(40),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &wrong_secret), "SignatureDoesNotMatch");
    let unknown = Keys {
        id: "AKIAAAAAAAAAAAAAAAAA".into(),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &unknown), "InvalidClientTokenId");
    let superfluous = Keys {
        token: Some("t".into()),
        ..alice.clone()
    };
    assert_eq!(sts(&mut lab, &superfluous), "InvalidClientTokenId");
    let session = lab.mfa_session("alice");
    let missing = Keys {
        token: None,
        ..session.clone()
    };
    assert_eq!(sts(&mut lab, &missing), "InvalidClientTokenId");
    let other = lab.session("alice", None).expect("a session");
    let swapped = Keys {
        token: other.token.clone(),
        ..session.clone()
    };
    assert_eq!(sts(&mut lab, &swapped), "InvalidClientTokenId");

    let stale = lab.signed(&alice, Service::Sts, &ask, &[]);
    lab.now += Duration::seconds(301);
    let answer = lab.send(stale);
    assert_eq!(code_of(&answer), "SignatureDoesNotMatch");
    assert!(answer.body.contains("Signature expired"), "{}", answer.body);

    assert!(lab.state.account.expire(&session.id, lab.now));
    assert_eq!(sts(&mut lab, &session), "ExpiredToken");
    let ec2 = lab.query(&session, Service::Ec2, &[("Action", "DescribeRegions")]);
    assert_eq!(code_of(&ec2), "RequestExpired");
    let ec2 = lab.query(
        &wrong_secret,
        Service::Ec2,
        &[("Action", "DescribeRegions")],
    );
    assert_eq!((ec2.status, code_of(&ec2).as_str()), (401, "AuthFailure"));
    let target = "AmazonSSM.DescribeInstanceInformation";
    let kind = |(status, body): (u16, Value)| (status, body["__type"].as_str().map(str::to_owned));
    let ssm = |lab: &mut Lab, keys: &Keys| kind(lab.json(keys, Service::Ssm, target, &json!({})));
    assert_eq!(
        ssm(&mut lab, &session),
        (400, Some("ExpiredTokenException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &wrong_secret),
        (400, Some("InvalidSignatureException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &unknown),
        (400, Some("UnrecognizedClientException".into()))
    );
    assert_eq!(
        ssm(&mut lab, &alice),
        (400, Some("AccessDeniedException".into()))
    );
    assert_eq!(
        code_of(&lab.send(unsigned("Action=GetCallerIdentity".into()))),
        "MissingAuthenticationToken"
    );
}

#[test]
fn a_bind_header_counts_only_if_it_was_signed() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    let ask = [("Action", "GetCallerIdentity")];
    let request = lab.signed(&alice, Service::Sts, &ask, &[("x-postern-bind", "right")]);
    assert_eq!(lab.send(request).status, 200);

    let mut tampered = lab.signed(&alice, Service::Sts, &ask, &[("x-postern-bind", "right")]);
    for (name, value) in &mut tampered.headers {
        if name == "x-postern-bind" {
            *value = b"wrong".to_vec();
        }
    }
    assert_eq!(code_of(&lab.send(tampered)), "SignatureDoesNotMatch");

    let mut added = lab.signed(&alice, Service::Sts, &ask, &[]);
    added
        .headers
        .push(("x-postern-bind".into(), b"right".to_vec()));
    for (name, value) in &mut added.headers {
        if name == "authorization" {
            let text =
                String::from_utf8_lossy(value).replace("x-amz-date", "x-amz-date;x-postern-bind");
            *value = text.into_bytes();
        }
    }
    assert_eq!(code_of(&lab.send(added)), "SignatureDoesNotMatch");

    let mut body = lab.signed(&alice, Service::Sts, &ask, &[]);
    body.body = Bytes::from_static(b"Action=GetSessionToken&Version=2011-06-15");
    assert_eq!(code_of(&lab.send(body)), "SignatureDoesNotMatch");
}

#[test]
fn a_scope_for_another_service_or_region_is_refused() {
    let mut lab = Lab::new();
    let alice = lab.user("alice");
    for (region, service) in [("eu-central-1", "sts"), (REGION, "s3")] {
        let mut request = unsigned("Action=GetCallerIdentity&Version=2011-06-15".into());
        let form = b"application/x-www-form-urlencoded".to_vec();
        request.headers.push(("content-type".into(), form));
        let key = signer::Key {
            id: &alice.id,
            secret: &alice.secret,
            token: None,
        };
        signer::sign(&mut request, &key, (region, service), lab.now);
        assert_eq!(
            code_of(&lab.send(request)),
            "SignatureDoesNotMatch",
            "{region} {service}"
        );
    }
}

#[test]
fn a_trust_policy_that_names_a_user_needs_no_identity_policy_and_follows_the_person() {
    let mut lab = Lab::new();
    let trust = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:user/mallory")}}));
    lab.state
        .account
        .put_role(Role::new("direct", trust), lab.now)
        .expect("a role");
    let role = format!("arn:aws:iam::{ACCOUNT}:role/direct");
    let (alice, mallory) = (lab.user("alice"), lab.user("mallory"));
    assert!(lab.assume(&mallory, &role, &[]).is_ok());
    assert!(denied(lab.assume(&alice, &role, &[])), "named is another");

    lab.state
        .account
        .put_user(User::new("mallory"), lab.now)
        .expect("created again");
    let reborn = lab.user("mallory");
    assert!(
        denied(lab.assume(&reborn, &role, &[])),
        "the same name is somebody else"
    );
    let gone = lab.assume(&mallory, &role, &[]);
    assert_eq!(gone.err().as_deref(), Some("InvalidClientTokenId"));

    let nobody = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"AWS": format!("arn:aws:iam::{ACCOUNT}:user/nobody")}}));
    assert!(
        lab.state
            .account
            .put_role(Role::new("bad", nobody), lab.now)
            .is_err()
    );
}

#[test]
fn only_the_callers_session_bounds_a_role_that_is_trusted_by_name() {
    let mut lab = Lab::new();
    let operator = format!("arn:aws:iam::{ACCOUNT}:role/operator");
    let trust = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"AWS": operator}}));
    lab.state
        .account
        .put_role(Role::new("next", trust), lab.now)
        .expect("a role");
    let next = format!("arn:aws:iam::{ACCOUNT}:role/next");
    let alice = lab.user("alice");
    let free = lab.assume(&alice, &operator, &[]).expect("assumed");
    assert!(lab.assume(&free, &next, &[]).is_ok());
    let narrow = allow("ec2:*", "*");
    let bound = lab
        .assume(&alice, &operator, &[("Policy", &narrow)])
        .expect("assumed");
    assert!(
        denied(lab.assume(&bound, &next, &[])),
        "the session policy does not allow it"
    );
}

#[test]
fn iam_refuses_sessions_without_mfa_and_shows_a_role_to_those_with_it() {
    let mut lab = Lab::new();
    let policy = allow("iam:*", "*");
    let admin = User::new("admin").with_policy("iam", policy);
    lab.state.account.put_user(admin, lab.now).expect("a user");
    let get = [("Action", "GetRole"), ("RoleName", "postern-attest")];
    let without = lab.session("admin", None).expect("a session");
    assert_eq!(
        code_of(&lab.query(&without, Service::Iam, &get)),
        "InvalidClientTokenId"
    );
    let with = lab.mfa_session("admin");
    let answer = lab.query(&with, Service::Iam, &get);
    assert_eq!(element(&answer.body, "Arn"), Some(ATTEST));
    let trust = element(&answer.body, "AssumeRolePolicyDocument").expect("a policy");
    let trust = super::request::decode(trust).expect("URL-encoded");
    assert_eq!(String::from_utf8(trust).expect("text"), attestation_trust());
    let alice = lab.user("alice");
    assert_eq!(
        code_of(&lab.query(&alice, Service::Iam, &get)),
        "AccessDenied"
    );
    let missing = [("Action", "GetRole"), ("RoleName", "nobody")];
    assert_eq!(
        code_of(&lab.query(&with, Service::Iam, &missing)),
        "NoSuchEntity"
    );
}

#[test]
fn a_device_is_created_enabled_with_two_codes_resynced_and_deactivated() {
    let mut lab = Lab::new();
    let admin = User::new("admin")
        .with_policy("iam", allow("iam:*", "*"))
        .without_mfa();
    lab.state.account.put_user(admin, lab.now).expect("a user");
    let admin = lab.user("admin");
    let iam = |lab: &mut Lab, params: &[(&str, &str)]| lab.query(&admin, Service::Iam, params);
    let create = [
        ("Action", "CreateVirtualMFADevice"),
        ("VirtualMFADeviceName", "spare"),
    ];
    let created = iam(&mut lab, &create);
    let serial = element(&created.body, "SerialNumber")
        .expect("a serial")
        .to_owned();
    assert!(element(&created.body, "Base32StringSeed").is_some());
    assert_eq!(code_of(&iam(&mut lab, &create)), "EntityAlreadyExists");

    let shown = |lab: &Lab, after: i64| {
        lab.state.account.devices[&serial].code(lab.now + Duration::seconds(after))
    };
    let (first, second) = (shown(&lab, -30), shown(&lab, 0));
    let enable = |action: &'static str, codes: (&str, &str), serial: &str| {
        [
            ("Action", action),
            ("UserName", "admin"),
            ("SerialNumber", serial),
        ]
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .into_iter()
        .chain([
            ("AuthenticationCode1".to_owned(), codes.0.to_owned()),
            ("AuthenticationCode2".to_owned(), codes.1.to_owned()),
        ])
        .collect::<Vec<_>>()
    };
    let send = |lab: &mut Lab, params: Vec<(String, String)>| {
        let params: Vec<_> = params
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        lab.query(&admin, Service::Iam, &params)
    };
    let same_twice = send(
        &mut lab,
        enable("EnableMFADevice", (&first, &first), &serial),
    );
    assert_eq!(code_of(&same_twice), "InvalidAuthenticationCode");
    let enabled = send(
        &mut lab,
        enable("EnableMFADevice", (&first, &second), &serial),
    );
    assert_eq!(enabled.status, 200, "{}", enabled.body);
    let listed = iam(
        &mut lab,
        &[("Action", "ListMFADevices"), ("UserName", "admin")],
    );
    assert!(listed.body.contains(&serial));

    let another = [
        ("Action", "CreateVirtualMFADevice"),
        ("VirtualMFADeviceName", "more"),
    ];
    let more = element(&iam(&mut lab, &another).body, "SerialNumber")
        .expect("a serial")
        .to_owned();
    let refused = send(
        &mut lab,
        enable("EnableMFADevice", ("111111", "222222"), &more),
    );
    assert_eq!(
        code_of(&refused),
        "AccessDenied",
        "a further device needs an MFA session"
    );

    let (first, second) = (shown(&lab, 600), shown(&lab, 630));
    let resynced = send(
        &mut lab,
        enable("ResyncMFADevice", (&first, &second), &serial),
    );
    assert_eq!(resynced.status, 200, "{}", resynced.body);
    let off = [
        ("Action", "DeactivateMFADevice"),
        ("UserName", "admin"),
        ("SerialNumber", &serial),
    ];
    assert_eq!(iam(&mut lab, &off).status, 200);
    let listed = iam(
        &mut lab,
        &[("Action", "ListMFADevices"), ("UserName", "admin")],
    );
    assert!(!listed.body.contains(&serial));
}

#[test]
fn instances_are_found_by_id_tag_state_and_address_page_by_page() {
    let mut lab = Lab::new();
    let reader = User::new("reader").with_policy("ec2", allow("ec2:Describe*", "*"));
    lab.state.account.put_user(reader, lab.now).expect("a user");
    let reader = lab.user("reader");
    let find = |lab: &mut Lab, params: &[(&str, &str)]| {
        let mut all = vec![("Action", "DescribeInstances")];
        all.extend(params);
        lab.query(&reader, Service::Ec2, &all)
    };
    let count = |answer: &Answer| answer.body.matches("<instanceId>").count();
    let filter = |name, value| [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
    for (name, value, found) in [
        ("tag:Name", "web-1", 1),
        ("tag:Name", "*", 8),
        ("tag:env", "prod*", 1),
        ("tag-key", "env", 1),
        ("private-ip-address", "127.9.0.2", 1),
        ("instance-state-name", "running", 8),
        ("instance-state-name", "stopped", 0),
        ("platform", "windows", 0),
    ] {
        assert_eq!(
            count(&find(&mut lab, &filter(name, value))),
            found,
            "{name}={value}"
        );
    }
    assert_eq!(count(&find(&mut lab, &[("InstanceId.1", WEB_1)])), 1);
    let unknown = find(&mut lab, &[("InstanceId.1", "i-0aaaaaaaaaaaaaaaa")]);
    assert_eq!(code_of(&unknown), "InvalidInstanceID.NotFound");
    let malformed = find(&mut lab, &[("InstanceId.1", "web-1")]);
    assert_eq!(code_of(&malformed), "InvalidInstanceID.Malformed");
    let invalid = find(&mut lab, &filter("instance-color", "x"));
    assert_eq!(code_of(&invalid), "InvalidParameterValue");

    let first = find(&mut lab, &[("MaxResults", "5")]);
    assert_eq!(count(&first), 5);
    let token = element(&first.body, "nextToken").expect("more").to_owned();
    let second = find(&mut lab, &[("MaxResults", "5"), ("NextToken", &token)]);
    assert_eq!(
        (count(&second), element(&second.body, "nextToken")),
        (3, None)
    );
}

#[test]
fn a_pushed_key_needs_a_running_instance_permission_and_a_real_key() {
    let mut lab = Lab::new();
    let arn = format!("arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*");
    let policy = document(
        json!({"Effect": "Allow", "Action": "ec2-instance-connect:SendSSHPublicKey",
        "Resource": arn, "Condition": {"StringEquals": {"ec2:osuser": "ec2-user",
        "aws:ResourceTag/env": "production"}}}),
    );
    let pusher = User::new("pusher").with_policy("push", policy);
    lab.state.account.put_user(pusher, lab.now).expect("a user");
    let pusher = lab.user("pusher");
    let push = |lab: &mut Lab, id: &str, user: &str, key: &str| {
        let body = json!({"InstanceId": id, "InstanceOSUser": user, "SSHPublicKey": key});
        let target = "AWSEC2InstanceConnectService.SendSSHPublicKey";
        let (status, body) = lab.json(&pusher, Service::InstanceConnect, target, &body);
        if status == 200 {
            "ok".to_owned()
        } else {
            body["__type"].to_string()
        }
    };
    assert_eq!(push(&mut lab, WEB_1, "ec2-user", SSH_KEY), "ok");
    let live = lab.state.pushed.live(WEB_1, "ec2-user", lab.now);
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].public_key, SSH_KEY);
    assert!(push(&mut lab, WEB_1, "root", SSH_KEY).contains("AccessDenied"));
    let other = "i-00000000000000001";
    assert!(
        push(&mut lab, other, "ec2-user", SSH_KEY).contains("AccessDenied"),
        "another tag"
    );
    assert!(push(&mut lab, WEB_1, "ec2-user", &"k".repeat(80)).contains("InvalidArgs"));
    assert!(lab.state.fleet.set_state(WEB_1, InstanceState::Stopped));
    assert!(push(&mut lab, WEB_1, "ec2-user", SSH_KEY).contains("StateInvalid"));
}

#[test]
fn managed_nodes_are_listed_with_their_connection() {
    let mut lab = Lab::new();
    let reader = User::new("reader").with_policy("ssm", allow("ssm:*", "*"));
    lab.state.account.put_user(reader, lab.now).expect("a user");
    let reader = lab.user("reader");
    let ssm = |lab: &mut Lab, action: &str, body: Value| {
        lab.json(&reader, Service::Ssm, &format!("AmazonSSM.{action}"), &body)
    };
    let filter = json!({"Filters": [{"Key": "InstanceIds", "Values": [WEB_1]}]});
    let (_, listed) = ssm(&mut lab, "DescribeInstanceInformation", filter);
    assert_eq!(listed["InstanceInformationList"][0]["PingStatus"], "Online");
    let target = json!({"Target": WEB_1});
    assert_eq!(
        ssm(&mut lab, "GetConnectionStatus", target.clone()).1["Status"],
        "connected"
    );
    lab.state.fleet.set_state(WEB_1, InstanceState::Stopped);
    assert_eq!(
        ssm(&mut lab, "GetConnectionStatus", target).1["Status"],
        "notconnected"
    );
    let (_, sessions) = ssm(&mut lab, "DescribeSessions", json!({"State": "Active"}));
    assert_eq!(sessions, json!({"Sessions": []}));
    let (status, unknown) = ssm(&mut lab, "ListDocuments", json!({}));
    assert_eq!(
        (status, &unknown["__type"]),
        (400, &json!("UnknownOperationException"))
    );
    let unknown = lab.query(&reader, Service::Ec2, &[("Action", "RunInstances")]);
    assert_eq!(code_of(&unknown), "InvalidAction");
    let unknown = lab.query(&reader, Service::Sts, &[("Action", "GetWebIdentityToken")]);
    assert_eq!(code_of(&unknown), "InvalidAction");
}
