//! What a good proof gets.

use super::*;

#[tokio::test]
async fn an_mfa_session_gets_a_certificate_that_says_what_aws_attested() {
    let lab = Lab::new(genuine(true)).await;
    let alice = client();
    let spki = alice.key.subject_public_key_info();
    let (outcome, end) = lab.enroll(alice).await;
    let Some(Outcome::Issued { chain, not_after }) = outcome else {
        panic!("{end:?}");
    };
    let chain = ca::certificates_from_pem(chain.as_bytes()).unwrap();
    assert_eq!(chain[1], *lab.bench.client_ca.certificate());
    let read = ClientCertificate::from_der(&chain[0]).unwrap();
    assert_eq!(
        read.subject.principal.key(),
        format!("111122223333/{ALICE}")
    );
    assert_eq!(read.subject.assurance, Assurance::AwsMfa);
    assert_eq!(read.subject.aws_request_ids, ["request-1", "request-2"]);
    assert_eq!(read.key_hash, ca::client::key_hash(&spki));
    assert_eq!(read.not_after, not_after);
    assert!((now() + 3590..=now() + 3600).contains(&not_after));
    let bound = now() - 12 * 3600;
    assert!((bound - 10..=bound).contains(&read.subject.mfa_not_before));
    // It opens a connection, and the event was written.
    let trust = &lab.enroller.parts.trust;
    let who: VerifiedPrincipal = trust.verify_certificate(&chain[0], now()).unwrap();
    assert_eq!(who.actor().aws_request_ids, ["request-1", "request-2"]);
    assert!(matches!(lab.facts().as_slice(), [Fact::Enrolled { .. }]));
    assert!(matches!(end, EnrollEnd::Issued { .. }));
}

#[tokio::test]
async fn over_tls_both_sides_bind_the_same_exporter() {
    use rustls::pki_types::ServerName;
    let lab = Lab::new(genuine(true)).await;
    let (chain, key) = lab.bench.server();
    let trust = lab.enroller.parts.trust.clone();
    let server = crate::tls::TlsSettings::new(&[chain], &key, trust).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(lab.bench.server_ca.certificate().clone())
        .unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(crate::crypto::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postern-enroll/1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let enrolling = async {
        let name = ServerName::try_from("bastion-1").unwrap();
        let stream = connector.connect(name, near).await.unwrap();
        let exporter = stream
            .get_ref()
            .1
            .export_keying_material([0; 32], EXPORTER, None)
            .unwrap();
        let alice = Client {
            exporter,
            ..client()
        };
        alice.run(stream).await
    };
    let serving = async {
        let accepted = server.accept(far).await.unwrap();
        assert!(accepted.peer.is_none());
        lab.enroller
            .serve_tls(accepted.stream, SOURCE.parse().unwrap())
            .await
    };
    let (outcome, end) = tokio::join!(enrolling, serving);
    assert!(matches!(outcome, Some(Outcome::Issued { .. })), "{end:?}");
}

#[tokio::test]
async fn only_the_signed_headers_and_fixed_ones_reach_sts() {
    let lab = Lab::new(genuine(true)).await;
    lab.enroll(client()).await.0.unwrap();
    let seen = lab.sts.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        assert_eq!(request.path, "/");
        let names: Vec<_> = request.headers.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [
                "accept",
                "authorization",
                "content-length",
                "content-type",
                "host",
                "postern-bind",
                "user-agent",
                "x-amz-date",
                "x-amz-security-token"
            ]
        );
        assert_eq!(request.header("accept"), "text/xml");
        assert!(request.header("authorization").contains(
            "SignedHeaders=content-type;host;postern-bind;x-amz-date;x-amz-security-token"
        ));
    }
    assert_eq!(seen[0].form("Action"), Some("GetCallerIdentity"));
    assert_eq!(seen[1].form("Action"), Some("AssumeRole"));
    assert!(seen[1].form("Policy").unwrap().contains("Deny"));
    assert_eq!(
        seen[0].header("postern-bind"),
        seen[1].form("RoleSessionName").unwrap()
    );
}

#[tokio::test]
async fn a_claimed_end_may_only_shorten_the_certificate() {
    let lab = Lab::new(genuine(true)).await;
    for (claimed, expected) in [(600, 600), (99_999, 3600)] {
        let claiming = Client {
            claimed_end: Some(now() + claimed),
            ..client()
        };
        let Some(Outcome::Issued { not_after, .. }) = lab.enroll(claiming).await.0 else {
            panic!("refused");
        };
        let end = now() + expected;
        assert!((end - 10..=end).contains(&not_after));
    }
    let over = Client {
        claimed_end: Some(now() - 1),
        ..client()
    };
    assert_eq!(lab.refused(over).await.0, RefuseCode::Credentials);
}

#[tokio::test]
async fn nothing_is_issued_when_the_event_cannot_be_written() {
    let mut lab = Lab::new(genuine(true)).await;
    lab.enroller.parts.record = Arc::new(|_| Box::pin(async { Err("disk full".to_owned()) }));
    let (code, reason) = lab.refused(client()).await;
    assert_eq!((code, reason.as_str()), (RefuseCode::Closed, "disk full"));
    let session = SessionId::from_parts(1, 1);
    assert_eq!(
        lab.refused(step_up(session, [5; 32])).await.0,
        RefuseCode::Closed
    );
}

#[tokio::test]
async fn a_user_on_the_deny_list_gets_no_new_certificate() {
    let lab = Lab::new(genuine(true)).await;
    std::fs::write(
        &lab.bench.config.deny,
        format!("user 111122223333/{ALICE}\n"),
    )
    .unwrap();
    let own = lab.bench.client_ca.certificate();
    lab.enroller
        .parts
        .trust
        .reload(&lab.bench.config, own)
        .unwrap();
    assert_eq!(lab.refused(client()).await.0, RefuseCode::Caller);
    // The attestation is not even asked for.
    assert_eq!(lab.sts.seen().len(), 1);
}

#[tokio::test]
async fn enrolment_is_closed_while_the_attestation_role_is_unsound() {
    let lab = Lab::new(genuine(true)).await;
    lab.state
        .send_replace(AttestationState::Closed("lost its condition".into()));
    let (code, reason) = lab.refused(client()).await;
    assert_eq!(
        (code, reason.as_str()),
        (RefuseCode::Closed, "lost its condition")
    );
    assert!(lab.sts.seen().is_empty());
    lab.state.send_replace(AttestationState::Open);
    assert!(matches!(
        lab.enroll(client()).await.1,
        EnrollEnd::Issued { .. }
    ));
}
