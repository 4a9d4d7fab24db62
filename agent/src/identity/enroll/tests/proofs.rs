//! Proofs that prove something else, or nothing.

use super::*;
use crate::identity::proof::CheckedProof;

#[tokio::test]
async fn a_session_without_mfa_is_refused() {
    let lab = Lab::new(genuine(false)).await;
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Mfa);
    // AWS had said who it was: an event of its own.
    assert!(
        matches!(lab.facts().as_slice(), [Fact::EnrollmentRefused { code, .. }] if code == "mfa")
    );
}

#[tokio::test]
async fn long_term_keys_without_a_code_are_refused_before_aws_is_asked() {
    let lab = Lab::new(genuine(true)).await;
    let keys = Client {
        key_id: "AKIAALICEALICEALICE1",
        token: None,
        ..client()
    };
    assert_eq!(lab.refused(keys).await.0, RefuseCode::Mfa);
    assert!(lab.sts.seen().is_empty());
    assert!(lab.facts().is_empty());
}

#[tokio::test]
async fn a_proof_for_another_connection_agent_nonce_or_role_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    // The TLS exporter differs: somebody stands in between. The key's own signature tells first.
    let (outcome, _) = lab.connect(client(), [8; 32]).await;
    assert!(matches!(
        outcome,
        Some(Outcome::Refused {
            code: RefuseCode::Proof,
            ..
        })
    ));
    let replayed = Client {
        nonce: Some([3; 32]),
        ..client()
    };
    assert_eq!(lab.refused(replayed).await.0, RefuseCode::Proof);
    assert!(lab.sts.seen().is_empty());
    // Signed for another agent or role: AWS does not accept the rebuilt requests.
    let other = Client {
        agent: Some("bastion-2"),
        ..client()
    };
    assert_eq!(lab.refused(other).await.0, RefuseCode::Proof);
    let role = Client {
        role: "arn:aws:iam::111122223333:role/admin",
        ..client()
    };
    assert_eq!(lab.refused(role).await.0, RefuseCode::Proof);
}

#[tokio::test]
async fn a_proof_whose_key_signature_was_moved_to_another_nonce_fails_at_aws() {
    // A client that holds the new key can sign any nonce with it; the AWS signature cannot move.
    let lab = Lab::new(genuine(true)).await;
    let captured: Arc<Mutex<Option<Proof>>> = Arc::default();
    let keep = captured.clone();
    let first = client();
    let pkcs8 = first.key.serialized_der().to_vec();
    lab.enroll(Client {
        spoil: Box::new(move |proof| *keep.lock().unwrap() = Some(proof.clone())),
        ..first
    })
    .await
    .0
    .unwrap();
    let old = captured.lock().unwrap().take().unwrap();
    let same_key = Client {
        key: KeyPair::try_from(pkcs8).unwrap(),
        spoil: Box::new(move |proof| {
            proof.identity_signature = old.identity_signature.clone();
            proof.attest_signature = old.attest_signature.clone();
            proof.date = old.date.clone();
        }),
        ..client()
    };
    assert_eq!(lab.refused(same_key).await.0, RefuseCode::Proof);
}

#[tokio::test]
async fn every_altered_field_of_a_proof_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    let other = || URL_SAFE_NO_PAD.encode(KeyPair::generate().unwrap().subject_public_key_info());
    let spoilers: Vec<Spoiler> = vec![
        Box::new(move |p| p.public_key = other()),
        Box::new(|p| p.public_key.push('=')),
        Box::new(|p| p.public_key.clear()),
        Box::new(|p| p.key_signature = "AAAA".to_owned()),
        Box::new(|p| p.key_signature = "A".repeat(4000)),
        Box::new(|p| p.identity_signature = "0".repeat(64)),
        Box::new(|p| p.attest_signature = "0".repeat(64)),
        Box::new(|p| p.identity_signature = p.identity_signature.to_uppercase()),
        Box::new(|p| p.attest_signature.push('0')),
        Box::new(|p| p.access_key_id = "ASIA".to_owned()),
        Box::new(|p| p.access_key_id = "asiaaliceAliceAlice1".to_owned()),
        Box::new(|p| p.access_key_id = "AROAALICEALICEALICE1".to_owned()),
        Box::new(|p| p.access_key_id = "ASIAALICE/ALICEALICE".to_owned()),
        Box::new(|p| p.access_key_id = "ASIÄALICEALICEALICE1".to_owned()),
        Box::new(|p| p.session_token = None),
        Box::new(|p| p.session_token = Some("short".to_owned())),
        Box::new(|p| p.session_token = Some("token with a space in it".to_owned())),
        Box::new(|p| p.session_token = Some("token\r\nx-amz-date: 1234567".to_owned())),
        Box::new(|p| p.session_token = Some("t".repeat(8193))),
        Box::new(|p| p.date = "2026-11-21T20:00:00Z".to_owned()),
        Box::new(|p| p.date = "20261399T000000Z".to_owned()),
        Box::new(|p| p.date = String::new()),
        Box::new(|p| p.claimed_serial = Some("x y z x y z x y z".to_owned())),
    ];
    for (number, spoil) in spoilers.into_iter().enumerate() {
        let (code, reason) = lab.refused(spoilt(spoil)).await;
        assert_eq!(code, RefuseCode::Proof, "{number}: {reason}");
    }
}

#[tokio::test]
async fn a_date_more_than_a_minute_off_is_refused_and_the_skew_told() {
    let lab = Lab::new(genuine(true)).await;
    for skew in [-70, 70] {
        let late = Client { skew, ..client() };
        let (code, reason) = lab.refused(late).await;
        assert_eq!(code, RefuseCode::Clock, "{reason}");
    }
    let near = Client {
        skew: -50,
        ..client()
    };
    assert!(matches!(lab.enroll(near).await.1, EnrollEnd::Issued { .. }));
}

#[tokio::test]
async fn a_message_that_is_not_one_proof_is_refused() {
    let lab = Lab::new(genuine(true)).await;
    for raw in [
        &b"{}\n"[..],
        b"[]\n",
        b"null\n",
        b"\xff\xff\n",
        b"{\"access_key_id\":\"a\",\"access_key_id\":\"b\"}\n",
        b"\n",
    ] {
        let message = Client {
            raw: Some(raw.to_vec()),
            ..client()
        };
        assert_eq!(lab.refused(message).await.0, RefuseCode::Proof);
    }
    for raw in [vec![b'x'; MESSAGE_LIMIT + 10], b"{}\n{}\n".to_vec()] {
        let message = Client {
            raw: Some(raw),
            ..client()
        };
        let (outcome, end) = lab.enroll(message).await;
        assert!(
            outcome.is_none() && matches!(end, EnrollEnd::Broken(_)),
            "{end:?}"
        );
    }
    assert!(lab.sts.seen().is_empty());
}

#[tokio::test]
async fn an_unknown_field_is_refused() {
    let proof = serde_json::json!({
        "access_key_id": "ASIAALICEALICEALICE1", "session_token": "t", "date": "d",
        "identity_signature": "", "attest_signature": "", "public_key": "", "key_signature": "",
        "url": "https://evil.example/"
    });
    let refusal = CheckedProof::read(proof.to_string().as_bytes(), &[0; 32], &[0; 32], now());
    assert_eq!(refusal.err().unwrap().code, RefuseCode::Proof);
}

#[tokio::test]
async fn a_client_that_sends_no_proof_is_dropped_after_its_deadline() {
    let mut lab = Lab::new(genuine(true)).await;
    lab.enroller.proof_deadline = Duration::from_millis(50);
    let (_near, far) = tokio::io::duplex(4096);
    let end = lab
        .enroller
        .serve(far, &EXPORTED, SOURCE.parse().unwrap())
        .await;
    let EnrollEnd::Broken(error) = end else {
        panic!("{end:?}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn no_secret_of_a_proof_is_in_an_event_or_a_refusal() {
    let script = genuine(true);
    let lab = Lab::new(move |seen| {
        // STS echoes what it got: the agent must not pass it on.
        match seen.form("Action") {
            Some("AssumeRole") => error(&format!("Odd-{}", seen.header("x-amz-security-token"))),
            _ => script(seen),
        }
    })
    .await;
    let (outcome, end) = lab.enroll(client()).await;
    let shown = format!("{outcome:?} {:?}", lab.facts());
    assert!(!shown.contains("token-of-alice"), "{shown}");
    assert!(!format!("{end:?}").contains("token-of-alice"));
}
