//! A fresh code for one `Open`.

use super::*;

#[tokio::test]
async fn a_step_up_is_an_approval_for_one_key_and_one_open_and_no_certificate() {
    let lab = Lab::new(genuine(true)).await;
    let session = SessionId::from_parts(1, 1);
    let stepping = step_up(session, [5; 32]);
    let spki = stepping.key.subject_public_key_info();
    let (outcome, end) = lab.enroll(stepping).await;
    let Some(Outcome::Approved { until }) = outcome else {
        panic!("{end:?}");
    };
    assert!((now() + 50..=now() + 60).contains(&until));
    let seen = lab.sts.seen();
    assert_eq!(seen[1].form("TokenCode"), Some("123456"));
    assert!(seen[1].header("x-amz-security-token").is_empty());
    let who = |key_hash| {
        Says {
            key_hash,
            ..Says::default()
        }
        .verified()
    };
    let alice = who(ca::client::key_hash(&spki));
    assert!(
        lab.approvals
            .take(&alice, &[6; 32], session, now())
            .is_none()
    );
    assert!(
        lab.approvals
            .take(&who([0; 32]), &[5; 32], session, now())
            .is_none()
    );
    let approval = lab
        .approvals
        .take(&alice, &[5; 32], session, now())
        .unwrap();
    assert_eq!(approval.aws_request_ids, ["request-1", "request-2"]);
    assert!(
        lab.approvals
            .take(&alice, &[5; 32], session, now())
            .is_none()
    );
    let events = lab.events.lock().unwrap();
    assert!(matches!(events[0].fact, Fact::StepUpApproved { .. }));
    assert_eq!(events[0].session, Some(session));
}

#[tokio::test]
async fn a_step_up_with_a_wrong_code_or_somebody_elses_device_is_refused() {
    let session = SessionId::from_parts(1, 1);
    let lab = Lab::new(genuine(false)).await;
    let (code, reason) = lab.refused(step_up(session, [5; 32])).await;
    assert_eq!(code, RefuseCode::Mfa);
    assert!(reason.contains("code"), "{reason}");

    let lab = Lab::new(genuine(true)).await;
    let mut other = step_up(session, [5; 32]);
    other.step_up.as_mut().unwrap().serial = "arn:aws:iam::999999999999:mfa/bob".to_owned();
    assert_eq!(lab.refused(other).await.0, RefuseCode::Caller);
    assert_eq!(lab.sts.seen().len(), 1);
}

#[tokio::test]
async fn a_step_up_in_a_wrong_form_is_refused_before_aws_is_asked() {
    let lab = Lab::new(genuine(true)).await;
    let session = SessionId::from_parts(1, 1);
    let spoilers: Vec<fn(&mut StepUp)> = vec![
        |s| s.code = "12345".to_owned(),
        |s| s.code = "12345a".to_owned(),
        |s| s.code = "123456&Policy=".to_owned(),
        |s| s.code = "１２３４５６".to_owned(),
        |s| s.serial = "short".to_owned(),
        |s| s.serial = "arn:aws:iam::111122223333:mfa/a b".to_owned(),
        |s| s.open_hash = "00".to_owned(),
        |s| s.open_hash = "Z".repeat(64),
    ];
    for spoil in spoilers {
        let client = Client {
            spoil: Box::new(move |proof| {
                let mut changed = proof.step_up.clone().unwrap();
                spoil(&mut changed);
                proof.step_up = Some(changed);
            }),
            ..step_up(session, [5; 32])
        };
        assert_eq!(lab.refused(client).await.0, RefuseCode::Proof);
    }
    // Temporary keys cannot step up, long-term keys bring no token.
    let temporary = Client {
        key_id: "ASIAALICEALICEALICE1",
        token: Some("token-of-alice-session"),
        ..step_up(session, [5; 32])
    };
    assert_eq!(lab.refused(temporary).await.0, RefuseCode::Proof);
    let token = Client {
        token: Some("token-of-alice-session"),
        ..step_up(session, [5; 32])
    };
    assert_eq!(lab.refused(token).await.0, RefuseCode::Proof);
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn a_step_up_for_another_open_than_the_signed_one_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    let client = Client {
        spoil: Box::new(|proof| {
            let mut changed = proof.step_up.clone().unwrap();
            changed.open_hash = hex::encode([6; 32]);
            proof.step_up = Some(changed);
        }),
        ..step_up(SessionId::from_parts(1, 1), [5; 32])
    };
    assert_eq!(lab.refused(client).await.0, RefuseCode::Proof);
}
