//! No MFA, no entry: what the agent itself refuses, whoever speaks its protocol.

use lab::aws::Role;
use postern_proto::enroll::{Outcome, Proof, RefuseCode, StepUp};
use postern_proto::names::SessionId;

use crate::by_hand::enrolment::{Claims, Enrolment, attempt, base64, enrol};
use crate::by_hand::sts::{Keys, date};
use crate::by_hand::wire::{ClientKey, PIPE, Pipe, settings};
use crate::harness::{events, lab};

/// Demands this kind of refusal, with these words for the person.
#[track_caller]
fn refused(outcome: &Outcome, expected: RefuseCode, words: &str) {
    match outcome {
        Outcome::Refused { code, message, .. } => {
            assert_eq!(*code, expected, "{message}");
            assert!(message.contains(words), "no `{words}` in: {message}");
        }
        let_in => panic!("no refusal but {let_in:?}"),
    }
}

#[tokio::test]
async fn a_session_with_mfa_gets_a_certificate_that_opens() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "bob").await;
    let certified = enrol(&lab, &keys, None).await;
    let settings = settings(&lab, PIPE, Some(&certified));
    assert!(Pipe::dial(&lab, &settings).await.is_alive().await);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_without_a_code_is_refused() {
    let lab = lab().await;
    let long_term = Keys::of(&lab, "bob");
    let keys = long_term.session(&lab, "Action=GetSessionToken").await;
    let outcome = attempt(&lab, &keys).await;
    refused(&outcome, RefuseCode::Mfa, "made without a code");
    let log = events(&lab).await;
    assert!(log.contains("enrolment refused (mfa)"), "{log}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_role_session_is_refused_though_it_was_assumed_with_mfa() {
    let lab = lab().await;
    let trust = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
        "Principal":{"AWS":"arn:aws:iam::111122223333:user/bob"},"Action":"sts:AssumeRole",
        "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}}]}"#;
    let allow = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
        "Action":"sts:AssumeRole","Resource":"*"}]}"#;
    let role = Role::new("operator", trust).with_policy("assume", allow);
    lab.aws.put_role(role).unwrap();
    let user = Keys::with_mfa(&lab, "bob").await;
    // A name that looks like a user's gives it no MFA.
    let assume = "Action=AssumeRole&RoleArn=arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Foperator\
                  &RoleSessionName=bob";
    let keys = user.session(&lab, assume).await;
    let outcome = attempt(&lab, &keys).await;
    refused(&outcome, RefuseCode::Mfa, "role sessions carry no MFA");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn root_is_refused() {
    let lab = lab().await;
    let root = lab.aws.root_key().expect("the lab's root has a key");
    let long_term = Keys {
        id: root.id,
        secret: root.secret,
        token: None,
    };
    let keys = long_term.session(&lab, "Action=GetSessionToken").await;
    let outcome = attempt(&lab, &keys).await;
    refused(&outcome, RefuseCode::Caller, "root user");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn long_term_keys_alone_are_refused() {
    let lab = lab().await;
    let outcome = attempt(&lab, &Keys::of(&lab, "bob")).await;
    refused(&outcome, RefuseCode::Mfa, "long-term keys carry no MFA");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_session_that_aws_ended_is_refused() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "bob").await;
    assert!(lab.aws.expire_session(&keys.id));
    let outcome = attempt(&lab, &keys).await;
    refused(&outcome, RefuseCode::Credentials, "has ended");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_wrong_clock_is_told_with_its_size() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "bob").await;
    for (offset, words) in [(300, "ahead of"), (-300, "behind")] {
        let (enrolment, key) = (Enrolment::start(&lab).await, ClientKey::new());
        let claims = Claims {
            date: date(offset),
            ..Claims::honest(&enrolment)
        };
        let proof = enrolment.prove(&keys, &key, &claims);
        let outcome = enrolment.answer(&proof).await;
        refused(&outcome, RefuseCode::Clock, words);
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_replayed_proof_is_worthless_on_another_connection() {
    let lab = lab().await;
    let (keys, key) = (Keys::with_mfa(&lab, "bob").await, ClientKey::new());
    let first = Enrolment::start(&lab).await;
    let stolen = first.prove(&keys, &key, &Claims::honest(&first));

    // As it is: the key signed another nonce and exporter.
    let second = Enrolment::start(&lab).await;
    refused(
        &second.answer(&stolen).await,
        RefuseCode::Proof,
        "malformed",
    );
    assert!(lab.agent.log().contains("did not sign this connection"));

    // The thief signs with a key of his own: AWS's signatures are over the victim's.
    let (third, own) = (Enrolment::start(&lab).await, ClientKey::new());
    let mut proof = stolen.clone();
    third.possess(&mut proof, &own);
    let outcome = third.answer(&proof).await;
    refused(&outcome, RefuseCode::Proof, "another connection");

    // He holds even the victim's key, and only AWS's signatures are old.
    let fourth = Enrolment::start(&lab).await;
    let mut proof = stolen.clone();
    fourth.possess(&mut proof, &key);
    let outcome = fourth.answer(&proof).await;
    refused(&outcome, RefuseCode::Proof, "another connection");

    // Where it was made for, it would have been good: nothing else was wrong with it.
    assert!(matches!(
        first.answer(&stolen).await,
        Outcome::Issued { .. }
    ));
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_gets_one_attempt() {
    let lab = lab().await;
    let (keys, key) = (Keys::with_mfa(&lab, "bob").await, ClientKey::new());
    let enrolment = Enrolment::start(&lab).await;
    let good = enrolment.prove(&keys, &key, &Claims::honest(&enrolment));
    let mut bad = good.clone();
    bad.identity_signature = "0".repeat(64);
    // What was not read may cost the agent's answer on its way: there is none that lets in.
    let said = enrolment.answer_twice(&bad, &good).await;
    assert!(said.lines().count() <= 1, "{said}");
    assert!(!said.contains("CERTIFICATE"), "{said}");
    assert!(!events(&lab).await.contains("certificate issued"));
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_proof_for_another_agent_or_connection_is_refused() {
    let lab = lab().await;
    let (keys, key) = (Keys::with_mfa(&lab, "bob").await, ClientKey::new());
    type Change = fn(&mut Claims);
    let changes: [(&str, Change); 5] = [
        ("agent", |claims| {
            claims.agent = "bastion-2".parse().unwrap()
        }),
        ("nonce", |claims| claims.nonce[0] ^= 1),
        ("exporter", |claims| claims.exporter[0] ^= 1),
        ("role", |claims| claims.role.push('x')),
        ("host", |claims| {
            claims.host = "sts.amazonaws.com".to_owned()
        }),
    ];
    for (what, change) in changes {
        let enrolment = Enrolment::start(&lab).await;
        let mut claims = Claims::honest(&enrolment);
        change(&mut claims);
        let mut proof = enrolment.prove(&keys, &key, &claims);
        // The key's own signature is right, so that AWS is the one who says no.
        enrolment.possess(&mut proof, &key);
        let outcome = enrolment.answer(&proof).await;
        eprintln!("another {what}");
        refused(
            &outcome,
            RefuseCode::Proof,
            "another connection, agent or request",
        );
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_proof_altered_in_any_field_is_refused() {
    let lab = lab().await;
    let (keys, key) = (Keys::with_mfa(&lab, "bob").await, ClientKey::new());
    type Change = fn(&mut Proof);
    let changes: [(&str, RefuseCode, Change); 15] = [
        ("access_key_id", RefuseCode::Credentials, |proof| {
            let last = proof.access_key_id.pop();
            proof
                .access_key_id
                .push(if last == Some('A') { 'B' } else { 'A' });
        }),
        ("no session_token", RefuseCode::Proof, |proof| {
            proof.session_token = None
        }),
        ("session_token", RefuseCode::Credentials, |proof| {
            proof.session_token.as_mut().unwrap().push('A');
        }),
        (
            "a header inside session_token",
            RefuseCode::Proof,
            |proof| {
                proof.session_token.as_mut().unwrap().push_str("\r\nx: y");
            },
        ),
        ("date", RefuseCode::Proof, |proof| proof.date = date(-7)),
        ("the date's form", RefuseCode::Proof, |proof| {
            proof.date.push('Z')
        }),
        ("identity_signature", RefuseCode::Proof, |proof| {
            flip(&mut proof.identity_signature)
        }),
        ("attest_signature", RefuseCode::Proof, |proof| {
            flip(&mut proof.attest_signature)
        }),
        ("swapped signatures", RefuseCode::Proof, |proof| {
            std::mem::swap(&mut proof.identity_signature, &mut proof.attest_signature);
        }),
        ("public_key", RefuseCode::Proof, |proof| {
            proof.public_key = base64(&ClientKey::new().public());
        }),
        ("key_signature", RefuseCode::Proof, |proof| {
            proof.key_signature = base64(&ClientKey::new().sign(b"another"));
        }),
        ("step_up", RefuseCode::Proof, |proof| {
            proof.step_up = Some(StepUp {
                serial: "arn:aws:iam::111122223333:mfa/bob".to_owned(),
                code: "123456".to_owned(),
                session: SessionId::from_parts(1, 1),
                open_hash: "0".repeat(64),
            });
        }),
        ("claimed_end", RefuseCode::Credentials, |proof| {
            proof.claimed_end = Some(1)
        }),
        ("claimed_serial", RefuseCode::Proof, |proof| {
            proof.claimed_serial = Some("not a serial\n".to_owned());
        }),
        ("long-term form", RefuseCode::Proof, |proof| {
            proof.access_key_id.replace_range(..4, "AKIA");
        }),
    ];
    for (what, code, change) in changes {
        let enrolment = Enrolment::start(&lab).await;
        let mut proof = enrolment.prove(&keys, &key, &Claims::honest(&enrolment));
        change(&mut proof);
        let outcome = enrolment.answer(&proof).await;
        eprintln!("altered: {what}");
        refused(&outcome, code, "");
    }
    for raw in ["", "null", "{}", "[1,2", "{\"access_key_id\":\"ASIA\"}"] {
        let enrolment = Enrolment::start(&lab).await;
        refused(&enrolment.say(raw).await, RefuseCode::Proof, "malformed");
    }
    let enrolment = Enrolment::start(&lab).await;
    let proof = enrolment.prove(&keys, &key, &Claims::honest(&enrolment));
    let mut unknown = serde_json::to_value(&proof).unwrap();
    unknown["sts_host"] = "evil.example".into();
    let outcome = enrolment.say(&unknown.to_string()).await;
    refused(&outcome, RefuseCode::Proof, "malformed");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_claim_may_only_shorten() {
    let lab = lab().await;
    let keys = Keys::with_mfa(&lab, "bob").await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    for (claimed, at_most) in [(now + 40 * 86_400, now + 3700), (now + 60, now + 60)] {
        let (enrolment, key) = (Enrolment::start(&lab).await, ClientKey::new());
        let mut proof = enrolment.prove(&keys, &key, &Claims::honest(&enrolment));
        proof.claimed_end = Some(claimed);
        match enrolment.answer(&proof).await {
            Outcome::Issued { not_after, .. } => assert!(not_after <= at_most, "{not_after}"),
            other => panic!("{other:?}"),
        }
    }
    lab.stop().await.unwrap();
}

/// Another hex digit in the middle.
fn flip(signature: &mut String) {
    let other = if &signature[31..32] == "0" { "1" } else { "0" };
    signature.replace_range(31..32, other);
}
