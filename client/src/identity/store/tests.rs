use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use crate::config::KeyringChoice;
use crate::identity::keyring::KeyringError;
use crate::identity::testing::World;

use super::*;

#[tokio::test]
async fn a_changed_file_is_not_opened() {
    let world = World::new().await;
    world.log_in().await;
    let file = world.context.state.join("sessions/alice.sealed");
    let good = std::fs::read(&file).unwrap();
    let body = good.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for at in [0, body, body + 30, good.len() - 4] {
        let mut bad = good.clone();
        bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(&file, &bad).unwrap();
        let context = world.elsewhere();
        let error = Store::new(&context).load().await.unwrap_err();
        assert!(matches!(error, StoreError::Sealed { .. }), "{at}: {error}");
        assert_eq!(error.hint().as_deref(), Some("postern logout"));
    }
    std::fs::write(&file, &good[..good.len() / 2]).unwrap();
    assert!(Store::new(&world.elsewhere()).load().await.is_err());
    std::fs::write(&file, &good).unwrap();
    assert!(
        Store::new(&world.elsewhere())
            .load()
            .await
            .unwrap()
            .is_some()
    );
    // A damaged one can be thrown away.
    std::fs::write(&file, b"x").unwrap();
    assert!(Store::new(&world.elsewhere()).wipe().await.unwrap());
}

#[tokio::test]
async fn a_file_is_not_another_profile_s() {
    let world = World::new().await;
    world.log_in().await;
    let folder = world.context.state.join("sessions");
    std::fs::copy(folder.join("alice.sealed"), folder.join("bob.sealed")).unwrap();
    let context = world.elsewhere();
    let (ring, sealed) = Store::of(&context, "bob").read().unwrap().unwrap();
    let key = keyring::fetch(&context, ring, Store::new(&context).entry())
        .await
        .unwrap()
        .unwrap();
    assert!(
        Store::of(&context, "bob")
            .file
            .open::<Kept>(ring, &key, &sealed)
            .is_err()
    );
    assert!(
        Store::of(&context, "alice")
            .file
            .open::<Kept>(ring, &key, &sealed)
            .is_ok()
    );
}

#[tokio::test]
async fn a_lost_key_is_no_session() {
    let world = World::new().await;
    world.log_in().await;
    let context = world.elsewhere();
    let store = Store::new(&context);
    keyring::forget(&context, Ring::Kernel, store.entry())
        .await
        .unwrap();
    assert!(store.load().await.unwrap().is_none());
    world.log_in().await;
    assert!(
        Store::new(&world.elsewhere())
            .load()
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn without_keyring_and_terminal_nothing_is_kept_and_no_code_is_burnt() {
    let mut world = World::new().await;
    world.context.keyring = KeyringChoice::File;
    let code = world.aws.next_code();
    let error = crate::identity::login(&world.context, Some(&code), None)
        .await
        .unwrap_err();
    assert_eq!(error, StoreError::Keyring(KeyringError::Nothing).into());
    assert_eq!(error.kind().code(), 4);
    assert!(!world.aws.actions().contains(&"GetSessionToken".to_owned()));
    assert!(
        world
            .files()
            .keys()
            .all(|path| path.extension().unwrap() == "lock")
    );
}

#[tokio::test]
async fn two_logins_at_a_time_take_turns() {
    let world = World::new().await;
    let store = Store::new(&world.context);
    let first = store.lock().await.unwrap();
    let second = store.lock();
    tokio::pin!(second);
    let waits = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
    assert!(waits.is_err(), "the second waits for the first");
    drop(first);
    second.await.unwrap();
}

#[tokio::test]
async fn what_was_thrown_away_does_not_come_back() {
    let world = World::new().await;
    let kept = world.log_in().await;
    let store = Store::new(&world.context);
    store.wipe().await.unwrap();
    store.update(&kept).await.unwrap();
    assert!(store.load().await.unwrap().is_none());
    assert!(!store.file.path.exists());
}

#[tokio::test]
async fn logout_of_all_finds_every_profile() {
    let world = World::new().await;
    world.log_in().await;
    assert_eq!(profiles(&world.context), ["alice"]);
    for name in ["alice", "my team/ü", "100%", ".."] {
        assert_eq!(profile_of(&file_name(name)).as_deref(), Some(name));
        assert!(!file_name(name).contains(['/', '.']));
    }
    assert_eq!(
        crate::identity::logout(&world.context, true).await.unwrap(),
        ["alice"]
    );
    assert!(profiles(&world.context).is_empty());
}

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept");
    write_private(&path, b"one").unwrap();
    write_private(&path, b"two").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::create_dir(folder.path().join("taken")).unwrap();
    assert!(write_private(&folder.path().join("taken"), b"x").is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
