use super::*;
use crate::ca::client::ClientCa;
use crate::identity::testing::{ALICE, Bench, Certified, now, pem, principal};

#[test]
fn dates_are_judged_at_the_time_that_is_asked_for() {
    let bench = Bench::new("", "");
    let trust = bench.trust();
    let alice = Certified::alice(&bench.client_ca);
    let at = |time| trust.verify_certificate(&alice.chain[0], time).map(|_| ());
    assert_eq!(at(now()), Ok(()));
    assert_eq!(at(now() + 3602), Err(CertificateFault::Expired));
    assert_eq!(
        at(now() - 3600),
        Err(CertificateFault::IssuerDates("bastion-1".parse().unwrap()))
    );
    let years = 3 * 365 * 86_400;
    assert_eq!(
        at(now() + years),
        Err(CertificateFault::IssuerDates("bastion-1".parse().unwrap()))
    );
    assert!(at(i64::MIN).is_err() && at(i64::MAX).is_err());
}

#[test]
fn other_agents_certificates_are_accepted_as_long_as_they_are_trusted() {
    let bench = Bench::new(
        "",
        "[[trust.agents]]\nid = \"bastion-2\"\nintermediate = \"two.pem\"\n",
    );
    let second = "bastion-2".parse().unwrap();
    let other = bench.client_root.intermediate(&second, now()).unwrap();
    std::fs::write(
        bench.folder.path().join("two.pem"),
        pem(other.certificate()),
    )
    .unwrap();
    let bob = Certified::alice(&ClientCa::new(other));
    let trusting = bench.trust();
    let judged = |config: &Config, whose: &Certified| {
        let own = bench.client_ca.certificate();
        trusting.reload(config, own).unwrap();
        let verified = trusting.verify_certificate(&whose.chain[0], now());
        verified.map(|_| ())
    };
    assert_eq!(judged(&bench.config, &bob), Ok(()));

    let mut config = bench.config.clone();
    config.trust.withdrawn = vec![second.clone()];
    assert_eq!(
        judged(&config, &bob),
        Err(CertificateFault::Withdrawn(second))
    );
    config.trust.agents.clear();
    assert_eq!(judged(&config, &bob), Err(CertificateFault::UnknownIssuer));
    let mut alone = bench.config.clone();
    alone.trust.withdrawn = vec![bench.config.id.clone()];
    let alice = Certified::alice(&bench.client_ca);
    assert!(judged(&alone, &alice).is_err());
}

#[test]
fn an_intermediate_that_is_no_ca_or_has_a_taken_name_is_refused() {
    let bench = Bench::new(
        "",
        "[[trust.agents]]\nid = \"bastion-2\"\nintermediate = \"two.pem\"\n",
    );
    let path = bench.folder.path().join("two.pem");
    let load = || PeerTrust::load(&bench.config, bench.client_ca.certificate(), None).map(|_| ());
    assert!(matches!(load(), Err(TrustFault::Key(_))));
    std::fs::write(&path, pem(&bench.server().0)).unwrap();
    assert!(matches!(load(), Err(TrustFault::Intermediate { .. })));
    std::fs::write(&path, pem(bench.client_ca.certificate())).unwrap();
    assert!(matches!(load(), Err(TrustFault::SameName(..))));
}

#[test]
fn policy_can_deny_a_certificate_altogether() {
    let bench = Bench::new("", "");
    let hook: DenyHook = Arc::new(|principal, _| {
        (principal.user_id.as_str() == ALICE).then(|| "policy `gone`".to_owned())
    });
    let trust = PeerTrust::load(&bench.config, bench.client_ca.certificate(), Some(hook)).unwrap();
    let alice = Certified::alice(&bench.client_ca);
    assert_eq!(
        trust.verify_certificate(&alice.chain[0], now()).map(|_| ()),
        Err(CertificateFault::Denied("policy `gone`".to_owned()))
    );
    assert!(trust.denies(&principal(ALICE), "").is_some());
    assert!(
        trust
            .denies(&principal("AIDABOBBOBBOBBOBBOB1"), "")
            .is_none()
    );
}

#[tokio::test]
async fn a_changed_deny_list_is_noticed_and_a_broken_one_keeps_the_old() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Bench::new("", "");
    let mut config = bench.config.clone();
    config.deny = folder.path().join("deny");
    let own = bench.client_ca.certificate().clone();
    let trust = Arc::new(PeerTrust::load(&config, &own, None).unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let mut changes = trust.subscribe();
    let mut trouble = trust.trouble();
    let running = Arc::clone(&trust).run(Arc::new(config.clone()), own, stop.clone());
    let running = tokio::spawn(running);
    let minute = std::time::Duration::from_secs(60);

    let key = principal(ALICE).key();
    std::fs::write(&config.deny, format!("user {key}\n")).unwrap();
    let changed = tokio::time::timeout(minute, changes.changed()).await;
    changed.expect("the change is noticed").unwrap();
    assert!(trust.denies(&principal(ALICE), "").is_some());
    assert!(
        trust
            .verify_certificate(&Certified::alice(&bench.client_ca).chain[0], now())
            .is_err()
    );

    std::fs::write(&config.deny, "alice\n").unwrap();
    let broken = tokio::time::timeout(minute, trouble.wait_for(Option::is_some)).await;
    let why = broken
        .expect("the fault is noticed")
        .unwrap()
        .clone()
        .unwrap();
    assert!(why.ends_with("deny:1: `alice` denies nobody"), "{why}");
    assert!(trust.denies(&principal(ALICE), "").is_some());

    std::fs::remove_file(&config.deny).unwrap();
    let changed = tokio::time::timeout(minute, changes.changed()).await;
    changed.expect("the change is noticed").unwrap();
    assert!(trust.denies(&principal(ALICE), "").is_none());
    assert!(trust.trouble().borrow().is_none());
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn every_certificate_fault_reads_well() {
    let agent = "bastion-2".parse().unwrap();
    let faults = [
        CertificateFault::Absent,
        CertificateFault::Malformed(MalformedCertificate::Names),
        CertificateFault::UnknownIssuer,
        CertificateFault::Withdrawn(agent),
        CertificateFault::Expired,
        CertificateFault::NotYetValid,
        CertificateFault::Usage,
        CertificateFault::Signature,
        CertificateFault::Denied("the user 1/AIDA is on the agent's deny list".to_owned()),
    ];
    let text: Vec<_> = faults
        .iter()
        .map(|f| format!("{f}\n  hint: {}", f.hint()))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r"
    the client presented no certificate
      hint: run the command again; `postern login` if that asks for it
    the client's certificate is malformed: it does not have exactly one subject alternative name, a URI
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate was issued by no agent that this one trusts
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate was issued by `bastion-2`, which is withdrawn
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate has expired
      hint: run the command again; `postern login` if that asks for it
    the client's certificate is not valid yet
      hint: compare the clocks of the two machines, then run `postern login`
    the client's certificate is not for client authentication
      hint: enrol again: `postern logout`, then `postern login`
    the client's certificate does not verify
      hint: enrol again: `postern logout`, then `postern login`
    the user 1/AIDA is on the agent's deny list
      hint: ask the operators of this agent
    ");
}
