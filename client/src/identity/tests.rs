use postern_proto::enroll::{Outcome, RefuseCode};
use postern_proto::gateway::message::{Denied, DenyCode};
use postern_proto::names::SessionId;
use secrecy::{ExposeSecret as _, SecretString};

use super::enroll::EnrolError;
use super::testing::{CANARY, KEY_ID, SERIAL, World, lock};
use super::*;
use crate::error::{Error, Kind};

fn denied() -> Denied {
    Denied {
        code: DenyCode::StepUp,
        message: "policy `prod` wants a fresh code".to_owned(),
        hint: None,
        session: Some(SessionId::from_parts(1, 2)),
        open_hash: Some("ab".repeat(32)),
        candidates: Vec::new(),
    }
}

#[tokio::test]
async fn a_login_gives_a_session_and_the_session_a_certificate() {
    let world = World::new().await;
    let kept = world.log_in().await;
    assert_eq!(kept.caller.account, "111122223333");
    assert_eq!(kept.serial, SERIAL);
    assert_eq!(
        world.aws.actions(),
        ["GetCallerIdentity", "GetSessionToken"]
    );
    let first = certified(&world.elsewhere(), world.profile())
        .await
        .unwrap();
    let again = certified(&world.elsewhere(), world.profile())
        .await
        .unwrap();
    assert_eq!(first.chain, again.chain);
    assert_eq!(first.chain.len(), 2);
    let proofs = world.agent.proofs();
    assert_eq!(proofs.len(), 1, "the kept certificate serves");
    assert_eq!(proofs[0].access_key_id, kept.user.keys.access_key_id);
    assert_eq!(proofs[0].claimed_end, Some(kept.user.ends_at));
    assert_eq!(proofs[0].claimed_serial.as_deref(), Some(SERIAL));
    assert!(proofs[0].step_up.is_none());
}

#[tokio::test]
async fn nothing_secret_is_readable_in_the_state_folder() {
    let world = World::new().await;
    let code = world.aws.next_code();
    let kept = login(&world.context, Some(&code), None).await.unwrap();
    let certificate = certified(&world.context, world.profile()).await.unwrap();
    let mut secrets = vec![
        CANARY.as_bytes().to_vec(),
        code.expose_secret().as_bytes().to_vec(),
        certificate.key.secret_der().to_vec(),
        kept.client_key.expose().as_bytes().to_vec(),
        b"BEGIN".to_vec(),
    ];
    // The plain text in base64, at each of its three alignments, would show one of these.
    for padding in ["", "x", "xx"] {
        let text = STANDARD.encode(format!("{padding}canary-session"));
        secrets.push(text.as_bytes()[4..text.len() - 4].to_vec());
    }
    let files = world.files();
    assert!(!files.is_empty());
    for (path, (mode, bytes)) in files {
        assert_eq!(mode, 0o600, "{}", path.display());
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(
                !found,
                "{} holds {:?}",
                path.display(),
                String::from_utf8_lossy(secret)
            );
        }
    }
    assert!(!format!("{kept:?} {certificate:?} {:?}", world.context).contains(CANARY));
}

#[tokio::test]
async fn without_a_session_nothing_is_asked_and_the_exit_code_is_4() {
    let world = World::new().await;
    let error = certified(&world.context, world.profile())
        .await
        .unwrap_err();
    assert_eq!(error, IdentityError::LoginNeeded("alice".to_owned()));
    let error = Error::from(error);
    assert_eq!(error.kind.code(), 4);
    assert_eq!(error.hint.as_deref(), Some("postern login --profile alice"));
    assert!(world.aws.actions().is_empty());
    assert_eq!(lock(&world.agent.state).connections, 0);
}

#[tokio::test]
async fn long_term_keys_alone_open_nothing() {
    let world = World::new().await;
    world.log_in().await;
    certified(&world.context, world.profile()).await.unwrap();
    let asked = lock(&world.aws.state).calls.clone();
    assert!(asked.iter().all(|(action, id)| id != KEY_ID
        || matches!(action.as_str(), "GetCallerIdentity" | "GetSessionToken")));
    assert_ne!(world.agent.proofs()[0].access_key_id, KEY_ID);
    assert_eq!(logout(&world.context, false).await.unwrap(), ["alice"]);
    assert!(matches!(
        certified(&world.context, world.profile()).await,
        Err(IdentityError::LoginNeeded(_))
    ));
    assert!(kept(&world.context).await.unwrap().is_none());
    assert_eq!(logout(&world.context, false).await.unwrap(), [""; 0]);
    let left: Vec<_> = world.files().into_keys().collect();
    assert!(left.iter().all(|path| path.extension().unwrap() == "lock"));
}

#[tokio::test]
async fn a_wrong_code_and_a_used_code_are_told_as_such() {
    let world = World::new().await;
    let used = world.aws.next_code();
    login(&world.context, Some(&used), None).await.unwrap();
    for code in [used, SecretString::from("000000")] {
        let error = login(&world.context, Some(&code), None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(
            error.to_string(),
            "AWS refused the MFA code: it is wrong, or it was used before"
        );
        assert!(error.hint().unwrap().contains("AWS burns each code"));
        assert!(!error.to_string().contains(code.expose_secret()));
    }
    let error = login(&world.context, Some(&SecretString::from("12345")), None).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "--mfa-code is not six digits"
    );
    // The session from before lives on.
    assert!(kept(&world.elsewhere()).await.unwrap().is_some());
}

#[tokio::test]
async fn root_is_refused_before_a_code_is_burnt() {
    for (arn, expected) in [
        ("arn:aws:iam::111122223333:root", "root credentials"),
        (
            "arn:aws:sts::111122223333:federated-user/bob",
            "no IAM user",
        ),
    ] {
        let world = World::new().await;
        arn.clone_into(&mut lock(&world.aws.state).arn);
        let code = world.aws.next_code();
        let error = login(&world.context, Some(&code), None).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(world.aws.actions(), ["GetCallerIdentity"]);
    }
}

#[tokio::test]
async fn a_wrong_clock_is_told_with_its_size_before_a_code_is_burnt() {
    let world = World::new().await;
    lock(&world.aws.state).ahead = 600;
    let code = world.aws.next_code();
    let error = login(&world.context, Some(&code), None).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("this computer's clock is 10 min 0 s behind")
            || text.contains("this computer's clock is 9 min 5"),
        "{text}"
    );
    assert!(error.hint().unwrap().contains("clock"));
    assert_eq!(world.aws.actions(), ["GetCallerIdentity"]);
}

#[tokio::test]
async fn a_role_is_assumed_without_a_code_and_again_when_it_ends() {
    let world = World::new().await;
    world.configure(
        "[profile ops]\nrole_arn = arn:aws:iam::111122223333:role/ops\nsource_profile = alice\n",
    );
    let mut context = world.elsewhere();
    context.profile = "ops".to_owned();
    lock(&world.aws.state).lifetimes.1 = 10;
    let code = world.aws.next_code();
    let kept = login(&context, Some(&code), None).await.unwrap();
    let role = kept.role.unwrap();
    assert_eq!(role.arn, "arn:aws:iam::111122223333:role/ops");
    lock(&world.aws.state).lifetimes.1 = 3600;
    let second = call_keys(&context).await.unwrap();
    assert_ne!(second.keys.access_key_id, role.session.keys.access_key_id);
    let third = call_keys(&context).await.unwrap();
    assert_eq!(second.keys.access_key_id, third.keys.access_key_id);
    assert_eq!(
        world.aws.actions(),
        [
            "GetCallerIdentity",
            "GetSessionToken",
            "AssumeRole",
            "AssumeRole"
        ]
    );
    // Enrolment goes with the user session: a role session carries no MFA.
    certified(&context, world.profile()).await.unwrap();
    let proofs = world.agent.proofs();
    assert_eq!(proofs[0].access_key_id, kept.user.keys.access_key_id);
    logout(&context, false).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_without_a_prompt_while_the_session_lives() {
    let world = World::new().await;
    world.log_in().await;
    lock(&world.agent.state).lifetime = 50;
    let first = certified(&world.context, world.profile()).await.unwrap();
    lock(&world.agent.state).lifetime = 3600;
    let second = certified(&world.context, world.profile()).await.unwrap();
    assert_ne!(first.chain, second.chain);
    assert!(second.not_after > first.not_after);
    let keys: Vec<_> = world
        .agent
        .proofs()
        .into_iter()
        .map(|p| p.public_key.clone())
        .collect();
    assert_eq!(keys[0], keys[1], "one key for one login");
    let third = certified_anew(&world.context, world.profile())
        .await
        .unwrap();
    assert_ne!(second.chain, third.chain);
    let last = certified(&world.context, world.profile()).await.unwrap();
    assert_eq!(third.chain, last.chain);
}

#[tokio::test]
async fn the_old_certificate_serves_while_the_agent_is_away() {
    let mut world = World::new().await;
    world.log_in().await;
    lock(&world.agent.state).lifetime = 50;
    let first = certified(&world.context, world.profile()).await.unwrap();
    world.context.agents[0].address = "127.0.0.1:1".to_owned();
    let still = certified(&world.context, world.profile()).await.unwrap();
    assert_eq!(first.chain, still.chain);
    let error = certified_anew(&world.context, world.profile())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
}

#[tokio::test]
async fn a_session_that_the_agent_no_longer_takes_needs_a_login() {
    let world = World::new().await;
    world.log_in().await;
    lock(&world.agent.state).outcome = Some(Outcome::Refused {
        code: RefuseCode::Mfa,
        message: "MFA is older than 1 h".to_owned(),
        hint: None,
    });
    let error = certified(&world.context, world.profile())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::LoginNeeded);
    assert_eq!(error, IdentityError::LoginNeeded("alice".to_owned()));
    assert_eq!(world.agent.proofs().len(), 1);
}

#[tokio::test]
async fn a_session_of_another_device_or_endpoint_does_not_count() {
    let world = World::new().await;
    world.log_in().await;
    assert!(kept(&world.elsewhere()).await.unwrap().is_some());
    world.configure("[profile alice]\nmfa_serial = arn:aws:iam::111122223333:mfa/other\n");
    assert!(kept(&world.elsewhere()).await.unwrap().is_none());
    world.configure("[profile alice]\nendpoint_url = https://127.0.0.1:1\n");
    assert!(kept(&world.elsewhere()).await.unwrap().is_none());
    world.configure("");
    assert!(kept(&world.elsewhere()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_step_up_is_signed_by_long_term_keys_for_one_open() {
    let world = World::new().await;
    world.log_in().await;
    let certificate = certified(&world.context, world.profile()).await.unwrap();
    let mut context = world.elsewhere();
    let code = world.aws.next_code();
    context.mfa_code = Some(code.clone());
    step_up(&context, world.profile(), &certificate, &denied())
        .await
        .unwrap();
    let proofs = world.agent.proofs();
    let act = proofs[1].step_up.as_ref().unwrap();
    assert_eq!(proofs[1].access_key_id, KEY_ID);
    assert_eq!(proofs[1].session_token, None);
    assert_eq!(proofs[1].public_key, proofs[0].public_key);
    assert_eq!(act.code, code.expose_secret());
    assert_eq!(act.serial, SERIAL);
    assert_eq!(act.session, SessionId::from_parts(1, 2));
    assert_eq!(act.open_hash, "ab".repeat(32));
    // A code of the environment is spent: the next one would have to be asked for.
    let error = step_up(&context, world.profile(), &certificate, &denied())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::LoginNeeded);
    assert_eq!(error.to_string(), "there is no terminal to ask on");
}

#[tokio::test]
async fn a_step_up_that_is_bound_to_nothing_is_refused_here() {
    let world = World::new().await;
    world.log_in().await;
    let certificate = certified(&world.context, world.profile()).await.unwrap();
    for denied in [
        Denied {
            session: None,
            ..denied()
        },
        Denied {
            open_hash: None,
            ..denied()
        },
        Denied {
            open_hash: Some("ab".to_owned()),
            ..denied()
        },
    ] {
        let error = step_up(&world.context, world.profile(), &certificate, &denied).await;
        assert!(matches!(error, Err(IdentityError::StepUpIncomplete(_))));
    }
}

#[tokio::test]
async fn an_unreachable_aws_is_named() {
    let world = World::new().await;
    world.configure("[profile alice]\nendpoint_url = https://127.0.0.1:1\n");
    let code = world.aws.next_code();
    let error = login(&world.context, Some(&code), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(
        error
            .to_string()
            .starts_with("AWS STS at `127.0.0.1:1` cannot be reached: ")
    );
}

#[tokio::test]
async fn an_aws_of_another_ca_gets_nothing() {
    let world = World::new().await;
    let other = testing::Authority::new();
    std::fs::write(world.folder.path().join("ca.pem"), &other.pem).unwrap();
    let code = world.aws.next_code();
    let error = login(&world.context, Some(&code), None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(error.hint().unwrap().contains("AWS_CA_BUNDLE"));
    assert!(world.aws.actions().is_empty());
}

#[tokio::test]
async fn a_duration_outside_aws_s_bounds_is_refused() {
    let world = World::new().await;
    for seconds in [899, 129_601] {
        let code = world.aws.next_code();
        let wish = Some(Duration::from_secs(seconds));
        let error = login(&world.context, Some(&code), wish).await.unwrap_err();
        assert_eq!(error, IdentityError::Duration(seconds));
        assert_eq!(error.kind().code(), 2);
    }
    assert!(world.aws.actions().is_empty());
}

#[tokio::test]
async fn a_profile_without_a_device_cannot_log_in() {
    let world = World::new().await;
    world.configure("[profile alice]\nmfa_serial =\n");
    let code = world.aws.next_code();
    let error = login(&world.context, Some(&code), None).await.unwrap_err();
    assert_eq!(error, IdentityError::NoDevice("alice".to_owned()));
}

#[tokio::test]
async fn the_code_comes_from_a_program_when_the_profile_names_one() {
    let world = World::new().await;
    let code = world.aws.next_code();
    world.configure(&format!(
        "[profile alice]\nmfa_process = echo {}\n",
        code.expose_secret()
    ));
    login(&world.context, None, None).await.unwrap();
}

#[tokio::test]
async fn two_agents_of_one_name_do_not_share_a_certificate() {
    let mut world = World::new().await;
    world.log_in().await;
    certified(&world.context, world.profile()).await.unwrap();
    world.context.agents[0].ca = testing::Authority::new().pem.into_bytes();
    let error = certified(&world.context, world.profile())
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        IdentityError::Enrol(EnrolError::Untrusted { .. })
    ));
}
