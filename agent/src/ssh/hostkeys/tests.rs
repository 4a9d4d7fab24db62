use super::super::tests::support::{host_certificate, key, target};
use super::*;

const NOW: u64 = 1_800_000_000;

fn shown(seed: u8) -> HostKey {
    HostKey {
        key: key(seed).public_key().clone(),
        certificate: None,
    }
}

fn certified(seed: u8, authority: u8, principals: &[&str], until: u64) -> HostKey {
    HostKey {
        key: key(seed).public_key().clone(),
        certificate: Some(host_certificate(
            &key(seed),
            &key(authority),
            principals,
            until,
        )),
    }
}

fn store(folder: &tempfile::TempDir, authorities: &[u8]) -> HostKeys {
    let authorities: Vec<_> = authorities
        .iter()
        .map(|seed| key(*seed).public_key().clone())
        .collect();
    HostKeys::load(folder.path().join("host_keys.json"), &authorities).unwrap()
}

#[tokio::test]
async fn a_key_is_pinned_on_first_use_and_a_changed_one_refused_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let target = target("web-1", 22);
    let keys = store(&folder, &[]);
    let first = keys.check(&target, &shown(1), NOW).await.unwrap();
    assert_eq!(first.check, HostKeyCheck::FirstUse);
    assert!(first.fingerprint.starts_with("SHA256:"));
    for keys in [keys, store(&folder, &[])] {
        let again = keys.check(&target, &shown(1), NOW).await.unwrap();
        assert_eq!(again.check, HostKeyCheck::Pinned);
        let changed = keys.check(&target, &shown(2), NOW).await.unwrap_err();
        let UpstreamError::HostKeyChanged { pinned, seen, .. } = changed else {
            panic!("{changed}");
        };
        assert_eq!(pinned, first.fingerprint);
        assert_ne!(seen, pinned);
    }
}

#[tokio::test]
async fn the_key_follows_the_target_and_not_its_address() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[]);
    let mut web = target("web-1", 22);
    keys.check(&web, &shown(1), NOW).await.unwrap();
    web.address = "10.9.9.9".to_owned();
    assert!(keys.check(&web, &shown(2), NOW).await.is_err());
    let mut other = target("web-2", 22);
    other.address = "127.0.0.1".to_owned();
    assert!(keys.check(&other, &shown(2), NOW).await.is_ok());
}

#[tokio::test]
async fn of_two_first_uses_at_once_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[]);
    let target = target("web-1", 22);
    let (one, two) = (shown(1), shown(2));
    let (a, b) = tokio::join!(
        keys.check(&target, &one, NOW),
        keys.check(&target, &two, NOW)
    );
    assert!(a.is_ok() != b.is_ok());
}

#[tokio::test]
async fn a_certificate_of_the_host_ca_needs_no_pin_and_survives_a_new_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[9]);
    let target = target("web-1", 22);
    for seed in [1, 2] {
        let shown = certified(seed, 9, &["web-1"], NOW + 60);
        let seen = keys.check(&target, &shown, NOW).await.unwrap();
        assert_eq!(seen.check, HostKeyCheck::HostCa);
    }
    // A bare key would be a step back.
    let bare = keys.check(&target, &shown(1), NOW).await.unwrap_err();
    assert!(bare.to_string().contains("host CA"), "{bare}");
}

#[tokio::test]
async fn a_certificate_for_somebody_else_or_out_of_time_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[9]);
    let target = target("web-1", 22);
    for wrong in [
        certified(1, 9, &["web-2"], NOW + 60),
        certified(1, 9, &["web-1"], NOW - 1),
    ] {
        let error = keys.check(&target, &wrong, NOW).await.unwrap_err();
        assert!(
            matches!(error, UpstreamError::HostCertificate { .. }),
            "{error}"
        );
    }
    // Of a CA that nobody configured: just a key.
    let unknown = certified(1, 8, &["web-1"], NOW + 60);
    let seen = keys.check(&target, &unknown, NOW).await.unwrap();
    assert_eq!(seen.check, HostKeyCheck::FirstUse);
}

#[tokio::test]
async fn a_forgotten_key_may_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[]);
    let target = target("web-1", 22);
    keys.check(&target, &shown(1), NOW).await.unwrap();
    assert!(keys.forget(&target.id).await.unwrap());
    assert!(!keys.forget(&target.id).await.unwrap());
    let seen = keys.check(&target, &shown(2), NOW).await.unwrap();
    assert_eq!(seen.check, HostKeyCheck::FirstUse);
}

#[tokio::test]
async fn nothing_is_trusted_when_it_cannot_be_pinned() {
    let folder = tempfile::tempdir().unwrap();
    let keys = HostKeys::load(folder.path().join("gone/host_keys.json"), &[]).unwrap();
    let error = keys
        .check(&target("web-1", 22), &shown(1), NOW)
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamError::HostKeys(_)), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_and_not_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host_keys.json");
    for damage in [
        "",
        "{",
        "{\"targets\":{\"web-1\":{\"other\":1}}}",
        "{\"more\":1}",
    ] {
        fs::write(&path, damage).unwrap();
        assert!(HostKeys::load(path.clone(), &[]).is_err(), "{damage}");
    }
}

#[tokio::test]
async fn the_pinned_algorithm_is_asked_for_first() {
    let folder = tempfile::tempdir().unwrap();
    let keys = store(&folder, &[]);
    let target = target("web-1", 22);
    let line = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2\
                HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkb\
                qAcEc=";
    let shown = HostKey {
        key: PublicKey::from_openssh(line).unwrap(),
        certificate: None,
    };
    keys.check(&target, &shown, NOW).await.unwrap();
    assert_eq!(
        keys.algorithms(&target.id).first().unwrap(),
        "ecdsa-sha2-nistp256"
    );
    let certified = store(&folder, &[9]);
    assert_eq!(
        certified.algorithms(&target.id).first().unwrap(),
        "ssh-ed25519-cert-v01@openssh.com"
    );
}
