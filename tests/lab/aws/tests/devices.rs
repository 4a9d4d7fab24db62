//! IAM: who may call it, roles to read, and MFA devices.

use super::*;

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
    let trust = crate::aws::request::decode(trust).expect("URL-encoded");
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
