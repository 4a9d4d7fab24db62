//! What AWS refuses, and streams that are not to be trusted.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::super::Ssm;
use super::super::messages::sentence;
use super::super::socket::Socket;
use super::*;
use crate::identity::testing::Authority;
use crate::proxy::Proxies;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_tls_is_refused() {
    let tls = Arc::clone(FakeSsm::start(Plays::Echo).await.ssm().tls());
    let opened = Socket::open("ws://127.0.0.1:1/v1", &tls, &Proxies::default()).await;
    assert_eq!(
        opened.err().unwrap().to_string(),
        "the session's stream at `127.0.0.1` could not be opened: only wss is encrypted, and this \
         is not"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_preferences_gets_awss_own_shell() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    fake.refuse("StartSession", "InvalidDocument", "no such document");
    let refused = soon(Session::start(&ssm, start(document::SHELL))).await;
    assert!(refused.is_err());
    assert_eq!(fake.count("StartSession"), 2, "the second without a name");
    let refused = soon(Session::start(&ssm, start(document::NON_INTERACTIVE))).await;
    assert!(refused.is_err());
    assert_eq!(fake.count("StartSession"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aws_refuses_is_told_with_the_next_step() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let mut told = Vec::new();
    let refusals = [
        ("TargetNotConnected", format!("{NODE} is not connected.")),
        (
            "AccessDeniedException",
            format!(
                "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: \
                 ssm:StartSession on resource: arn:aws:ec2:eu-west-1:111122223333:instance/{NODE} \
                 because no identity-based policy allows the ssm:StartSession action"
            ),
        ),
        (
            "AccessDeniedException",
            "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: \
             ssm:StartSession with an explicit deny in an identity-based policy"
                .to_owned(),
        ),
        (
            "InvalidDocument",
            "Document with name AWS-StartNonInteractiveCommand does not exist.".to_owned(),
        ),
        (
            "ServiceQuotaExceededException",
            "Active session limit exceeded".to_owned(),
        ),
        ("ThrottlingException", "Rate exceeded".to_owned()),
    ];
    for (code, message) in refusals {
        fake.refuse("StartSession", code, &message);
        let error = soon(Session::start(&ssm, start(document::NON_INTERACTIVE)))
            .await
            .err()
            .unwrap();
        told.push(sentence(error));
    }
    fake.lock().refusals.clear();
    let key = fake.lock().calls.last().unwrap().1.clone();
    fake.lock().expired.push(key);
    let error = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .err()
        .unwrap();
    told.push(sentence(error));
    insta::assert_snapshot!(told.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_certificate_nobody_vouches_for_is_refused_with_the_next_step() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let url = fake.lock().url.clone();
    let mut roots = rustls::RootCertStore::empty();
    let other = Authority::new();
    roots
        .add(CertificateDer::from_pem_slice(other.pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let stranger = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (stranger, direct) = (Arc::new(stranger), Proxies::default());
    let refused = soon(Socket::open(&url, &stranger, &direct)).await;
    let refused = refused.err().unwrap();
    insta::assert_snapshot!(sentence(refused), @r"
    the session's stream at `127.0.0.1` could not be opened: invalid peer certificate: BadSignature [unreachable, exit 3]
    hint: set `ca_bundle` in the profile or AWS_CA_BUNDLE if this endpoint has a CA of its own
    ");
}

#[tokio::test]
async fn nothing_that_prints_shows_the_proxys_password() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut context = fake.world.context.clone();
    let proxy = "http://me:canary-password@127.0.0.1:1";
    context.environment = context.environment.with("HTTPS_PROXY", proxy);
    let ssm = Ssm::of(&context).unwrap();
    let refused = soon(Session::start(&ssm, start(document::SHELL))).await;
    let refused = refused.err().unwrap();
    let printed = format!("{ssm:?} {context:?} {refused:?}");
    assert!(!printed.contains("canary-password"), "{printed}");
    let told = sentence(refused);
    let parts = [
        "cannot be reached: through the proxy `127.0.0.1:1`: ",
        "exit 3]\nhint: check HTTPS_PROXY",
    ];
    assert!(parts.iter().all(|part| told.contains(part)), "{told}");
}
