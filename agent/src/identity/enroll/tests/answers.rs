//! What AWS, or somebody in its place, answers.

use super::*;
use crate::identity::StsFault;

/// A script that answers GetCallerIdentity like this and AssumeRole as usual.
fn caller_is(arn: &str, user_id: &str, account: &str) -> impl Fn(&Seen) -> Reply + use<> {
    let body = identity_xml(arn, user_id, account);
    let usual = genuine(true);
    move |seen| match seen.form("Action") {
        Some("GetCallerIdentity") => http("200 OK", "text/xml", &body),
        _ => usual(seen),
    }
}

#[tokio::test]
async fn root_role_sessions_federated_users_and_other_accounts_are_refused() {
    for (arn, id, account, expected) in [
        (
            "arn:aws:iam::111122223333:root",
            "111122223333",
            "111122223333",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:sts::111122223333:assumed-role/ops/alice",
            "AROAEXAMPLEEXAMPLE11:alice",
            "111122223333",
            RefuseCode::Mfa,
        ),
        (
            "arn:aws:sts::111122223333:federated-user/alice",
            "111122223333:alice",
            "111122223333",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:iam::999999999999:user/alice",
            ALICE,
            "999999999999",
            RefuseCode::Caller,
        ),
        (
            "arn:aws:iam::999999999999:user/alice",
            ALICE,
            "111122223333",
            RefuseCode::Sts,
        ),
    ] {
        let lab = Lab::new(caller_is(arn, id, account)).await;
        assert_eq!(lab.refused(client()).await.0, expected, "{arn}");
        // GetCallerIdentity comes first, and is enough.
        assert_eq!(lab.sts.seen().len(), 1);
    }
}

#[tokio::test]
async fn an_echo_of_another_role_session_or_account_is_refused() {
    for arn in [
        "arn:aws:sts::111122223333:assumed-role/postern-attest/other",
        "arn:aws:sts::111122223333:assumed-role/admin/BIND",
        "arn:aws:sts::999999999999:assumed-role/postern-attest/BIND",
        "arn:aws-cn:sts::111122223333:assumed-role/postern-attest/BIND",
    ] {
        let usual = genuine(true);
        let lab = Lab::new(move |seen| match seen.form("RoleSessionName") {
            Some(bind) => http(
                "200 OK",
                "text/xml",
                &assumed_xml(&arn.replace("BIND", bind)),
            ),
            None => usual(seen),
        })
        .await;
        let (code, reason) = lab.refused(client()).await;
        assert_eq!(
            (code, reason.contains("another role")),
            (RefuseCode::Sts, true),
            "{arn}"
        );
    }
}

#[tokio::test]
async fn hostile_answers_of_sts_are_refused() {
    let good = identity_xml(
        "arn:aws:iam::111122223333:user/alice",
        ALICE,
        "111122223333",
    );
    let doubled = good.replace("<Account>", "<Account>111122223333</Account><Account>");
    let json = format!("{{\"a\":{}}}", serde_json::to_string(&good).unwrap());
    let redirect = "HTTP/1.1 302 Found\r\nlocation: https://localhost:1/\r\n\
                    content-length: 0\r\n\r\n";
    let encoded = good.len();
    let answers: Vec<Reply> = vec![
        Reply::Bytes(redirect.as_bytes().to_vec()),
        http("200 OK", "text/html", "<html><body>hello</body></html>"),
        http("200 OK", "text/xml", "<html><body>hello</body></html>"),
        http("200 OK", "application/json", &json),
        http("200 OK", "text/xml", &json),
        http("200 OK", "application/json", &good),
        http("200 OK", "text/xml", &doubled),
        http("200 OK", "text/xml", &format!("{good}<more/>")),
        http("200 OK", "text/xml", &format!("<!DOCTYPE x []>{good}")),
        http("201 Created", "text/xml", &good),
        http("500 Internal Server Error", "text/html", "<html/>"),
        http("503 Service Unavailable", "text/xml", &good),
        http("403 Forbidden", "text/html", "<html/>"),
        http("403 Forbidden", "text/xml", &good),
        http(
            "200 OK",
            "text/xml",
            &assumed_xml("arn:aws:sts::111122223333:assumed-role/x/y"),
        ),
        Reply::Bytes(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-encoding: gzip\r\n\
                 content-length: {encoded}\r\n\r\n{good}"
            )
            .into_bytes(),
        ),
        Reply::Bytes(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: 999\r\n\r\n<a".to_vec(),
        ),
        Reply::Bytes(b"garbage\r\n\r\n".to_vec()),
        Reply::Bytes(vec![]),
        Reply::Flood,
        error("Throttling"),
        error("SomethingNew"),
    ];
    let count = answers.len();
    let queue = Mutex::new(answers.into_iter());
    let lab = Lab::new(move |_| queue.lock().unwrap().next().unwrap_or(Reply::Never)).await;
    for number in 0..count {
        let (code, reason) = lab.refused(client()).await;
        assert_eq!(code, RefuseCode::Sts, "{number}: {reason}");
        // No retry, no second request, no redirect followed.
        assert_eq!(lab.sts.seen().len(), number + 1);
    }
    assert!(lab.facts().is_empty());
}

#[tokio::test]
async fn an_sts_that_does_not_answer_is_given_up() {
    let sts = FakeSts::start(|_| Reply::Never).await;
    let bench = Bench::new(&sts.settings, "");
    let client_of = StsClient::new(&bench.config.sts)
        .unwrap()
        .with_deadline(Duration::from_millis(200));
    let lab = Lab::assemble(bench, sts, client_of);
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Sts);
}

#[tokio::test]
async fn a_private_address_is_asked_only_when_the_endpoint_is_configured() {
    let sts = FakeSts::start(genuine(true)).await;
    let bench = Bench::new(&sts.settings, "");
    let client_of = StsClient::new(&bench.config.sts).unwrap().unconfigured();
    let lab = Lab::assemble(bench, sts, client_of);
    let (code, reason) = lab.refused(client()).await;
    assert_eq!(code, RefuseCode::Sts);
    assert!(reason.contains("not public"), "{reason}");
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn an_sts_whose_certificate_is_of_another_ca_is_not_believed() {
    let (good, impostor) = (
        FakeSts::start(genuine(true)).await,
        FakeSts::start(genuine(true)).await,
    );
    let settings = good.settings.replace(
        &good.address.port().to_string(),
        &impostor.address.port().to_string(),
    );
    let bench = Bench::new(&settings, "");
    let client_of = StsClient::new(&bench.config.sts).unwrap();
    let lab = Lab::assemble(bench, impostor, client_of);
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Sts);
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn the_clock_is_compared_with_the_date_of_an_answer() {
    for (behind, expected) in [(0, -2..=2), (90, 88..=92)] {
        let sts = FakeSts::start(move |seen| {
            assert_eq!(
                (seen.path.as_str(), seen.header("authorization")),
                ("/", "")
            );
            let date = OffsetDateTime::now_utc() - Duration::from_secs(behind);
            let format = time::macros::format_description!(
                "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
            );
            let date = date.format(&format).unwrap();
            let answer = format!("HTTP/1.1 302 Found\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n");
            Reply::Bytes(answer.into_bytes())
        })
        .await;
        let bench = Bench::new(&sts.settings, "");
        let skew = StsClient::new(&bench.config.sts)
            .unwrap()
            .clock_skew()
            .await
            .unwrap();
        assert!(expected.contains(&skew), "{skew}");
    }
    let sts = FakeSts::start(|_| http("200 OK", "text/xml", "")).await;
    let bench = Bench::new(&sts.settings, "");
    let skew = StsClient::new(&bench.config.sts)
        .unwrap()
        .clock_skew()
        .await;
    assert!(matches!(skew, Err(StsFault::Answer(_))));
}

#[tokio::test]
async fn error_codes_of_aws_become_refusals_that_say_what_to_do() {
    for (answer, expected) in [
        ("InvalidClientTokenId", RefuseCode::Credentials),
        ("ExpiredToken", RefuseCode::Credentials),
        ("SignatureDoesNotMatch", RefuseCode::Proof),
        ("AccessDenied", RefuseCode::Sts),
    ] {
        let lab = Lab::new(move |_| error(answer)).await;
        assert_eq!(lab.refused(client()).await.0, expected, "{answer}");
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let refusals = [
        Refusal::proof("x"),
        Refusal::clock(-75),
        Refusal::clock(90),
        Refusal::long_term_keys(),
        Refusal::session_ended(),
        Refusal::unknown_credentials(),
        Refusal::wrong_signature(),
        Refusal::no_mfa("12h"),
        Refusal::wrong_code(),
        Refusal::role_session("arn:aws:sts::111122223333:assumed-role/ops/alice"),
        Refusal::root(),
        Refusal::federated("arn:aws:sts::111122223333:federated-user/alice"),
        Refusal::account("999999999999"),
        Refusal::denied("x".to_owned()),
        Refusal::serial(),
        Refusal::closed("x"),
        Refusal::evidence("x"),
        Refusal::busy(),
        Refusal::too_many_approvals(),
        Refusal::sts("x"),
        Refusal::internal("x"),
    ];
    let text: Vec<_> = refusals
        .iter()
        .map(|r| {
            format!(
                "{}: {}\n  hint: {}",
                r.code_name(),
                r.message,
                r.hint.as_ref().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    proof: the agent cannot accept this proof of identity: it is malformed
      hint: compare the versions of `postern` and `postern-agent`
    clock: this machine's clock is 75 seconds behind the agent's; 60 are accepted
      hint: synchronise the clock (`timedatectl set-ntp true`), then try again
    clock: this machine's clock is 90 seconds ahead of the agent's; 60 are accepted
      hint: synchronise the clock (`timedatectl set-ntp true`), then try again
    mfa: long-term keys carry no MFA
      hint: postern login
    credentials: the AWS session has ended
      hint: postern login
    credentials: AWS does not know these credentials
      hint: postern login; if that fails too, the access key was deleted or deactivated
    proof: AWS does not accept the signature of this proof: it was made for another connection, agent or request, or with another secret key
      hint: try again; if it stays, run `postern login`
    mfa: AWS does not attest MFA for this session: it was made without a code, the code is older than 12h, or you may not assume the attestation role
      hint: postern login; if that does not help, ask for `sts:AssumeRole` on the attestation role
    mfa: AWS does not accept this MFA code
      hint: every code works once: wait for the next one; the device must be your own
    mfa: `arn:aws:sts::111122223333:assumed-role/ops/alice` is a role session, and role sessions carry no MFA evidence in AWS
      hint: log in as the IAM user that assumes the role: `postern login`
    caller: the root user of an AWS account may not enrol
      hint: use an IAM user with an MFA device
    caller: `arn:aws:sts::111122223333:federated-user/alice` is a federated user, which AWS cannot attest MFA for
      hint: use an IAM user with an MFA device
    caller: users of account 999999999999 may not enrol at this agent
      hint: use another AWS profile, or have the account added to `sts.accounts` in agent.toml
    caller: this user may not come in any more
      hint: ask the operators of this agent
    caller: the MFA device belongs to another account than the caller
      hint: set `mfa_serial` of the AWS profile to your own device
    closed: enrolment is closed: the agent's check of its attestation role did not pass
      hint: ask the operators of this agent to run `postern-agent check`
    closed: enrolment is closed: the agent cannot write its audit log
      hint: ask the operators of this agent to look at its disk and its journal
    limit: too many logins are going on at this agent
      hint: try again in a few seconds
    limit: too many approvals are waiting to be used
      hint: try again in a minute
    sts: the agent could not get a trustworthy answer from AWS STS
      hint: try again; if it stays, ask the operators of this agent
    closed: the agent could not issue a certificate
      hint: ask the operators of this agent to look at its journal
    ");
}
