//! Sessions and roles: what MFA opens, and for how long.

use super::*;

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
    let event = lab.last_event();
    assert_eq!(
        event["userIdentity"]["sessionContext"]["attributes"]["mfaAuthenticated"],
        "false"
    );
    let again = lab.query(&role, Service::Sts, &[("Action", "GetSessionToken")]);
    assert_eq!(code_of(&again), "AccessDenied", "nor can it get any");

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
fn the_mfa_key_is_absent_false_or_true_as_in_aws() {
    let mut lab = Lab::new();
    let account_root = json!({"AWS": format!("arn:aws:iam::{ACCOUNT}:root")});
    let conditions = [
        (
            "absent",
            json!({"Null": {"aws:MultiFactorAuthPresent": "true"}}),
        ),
        (
            "false",
            json!({"Bool": {"aws:MultiFactorAuthPresent": "false"}}),
        ),
        (
            "true",
            json!({"Bool": {"aws:MultiFactorAuthPresent": "true"}}),
        ),
        ("aged", json!({"Null": {"aws:MultiFactorAuthAge": "false"}})),
    ];
    for (name, condition) in conditions {
        let trust = document(json!({"Effect": "Allow", "Action": "sts:AssumeRole",
            "Principal": account_root, "Condition": condition}));
        let role = Role::new(name, trust);
        lab.state.account.put_role(role, lab.now).expect("a role");
    }
    let long_term = lab.user("alice");
    let without = lab.session("alice", None).expect("a session");
    let with = lab.mfa_session("alice");
    let operator = format!("arn:aws:iam::{ACCOUNT}:role/operator");
    let role = lab.assume(&with, &operator, &[]).expect("assumed");
    let opened = |lab: &mut Lab, keys: &Keys| {
        let names = ["absent", "false", "true", "aged"];
        let role = |name: &&str| format!("arn:aws:iam::{ACCOUNT}:role/{name}");
        names
            .into_iter()
            .filter(|name| lab.assume(keys, &role(name), &[]).is_ok())
            .collect::<Vec<_>>()
    };
    assert_eq!(opened(&mut lab, &long_term), ["absent"]);
    assert_eq!(opened(&mut lab, &without), ["false"]);
    assert_eq!(opened(&mut lab, &with), ["true", "aged"]);
    assert_eq!(opened(&mut lab, &role), ["absent"]);
}

#[test]
fn a_role_session_ends_with_its_role_even_if_one_of_that_name_comes_back() {
    let mut lab = Lab::new();
    let (alice, operator) = (
        lab.user("alice"),
        format!("arn:aws:iam::{ACCOUNT}:role/operator"),
    );
    let session = lab.assume(&alice, &operator, &[]).expect("assumed");
    let who = [("Action", "GetCallerIdentity")];
    assert_eq!(lab.query(&session, Service::Sts, &who).status, 200);
    let trust = attestation_trust();
    lab.state.account.remove_role("operator");
    let gone = lab.query(&session, Service::Sts, &who);
    assert_eq!(code_of(&gone), "InvalidClientTokenId");
    lab.state
        .account
        .put_role(Role::new("operator", trust), lab.now)
        .expect("a role");
    let other = lab.query(&session, Service::Sts, &who);
    assert_eq!(code_of(&other), "InvalidClientTokenId");
}
