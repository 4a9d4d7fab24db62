//! Whoever changes the store is found out: `audit verify` fails and names what was changed.

use std::path::{Path, PathBuf};

use lab::stack::Lab;

use crate::harness::{Told, copy_folder, lab, postern, postern_as, run};

/// A lab whose store holds two recorded sessions, stopped, with a copy of its store to break.
struct Store {
    lab: Lab,
    copy: tempfile::TempDir,
}

impl Store {
    async fn recorded() -> Self {
        let lab = lab().await;
        for text in ["first", "second"] {
            let script = format!("echo the {text} session");
            postern(&lab, &["connect", "web-1", "--", &script])
                .await
                .status(0);
        }
        // The agent's own reading of it is in the log too.
        postern_as(&lab, "carol", &["login"]).await.status(0);
        postern_as(&lab, "carol", &["audit", "verify"])
            .await
            .status(0);
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&lab.agent.audit_store, copy.path());
        Self { lab, copy }
    }

    async fn verify(&self) -> Told {
        let store = self.copy.path().display().to_string();
        let mut command = self.lab.postern("alice");
        run(command.args(["audit", "verify", "--store", &store]), b"").await
    }

    /// All files of the copy whose path holds `part`, sorted.
    fn files(&self, part: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        list(self.copy.path(), &mut found);
        found.retain(|path| {
            let inside = path.strip_prefix(self.copy.path()).unwrap();
            inside.to_string_lossy().contains(part)
        });
        found.sort();
        found
    }
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What a test does to the entries of a bundle.
type Change = fn(&mut Vec<Vec<u8>>);

impl Store {
    /// Changes the widest bundle, which counts: those that it replaced stay beside it.
    fn change_entries(&self, change: Change) {
        let width = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
        let bundles = self.files("tile/entries").into_iter();
        let widest = bundles.filter_map(|path| Some((width(&path)?, path))).max();
        let (_, bundle) = &widest.expect("a bundle");
        let bytes = std::fs::read(bundle).unwrap();
        let (mut entries, mut rest) = (Vec::new(), &bytes[..]);
        while let Some((length, tail)) = rest.split_first_chunk::<2>() {
            let (entry, tail) = tail.split_at(u16::from_be_bytes(*length).into());
            entries.push(entry.to_vec());
            rest = tail;
        }
        change(&mut entries);
        let mut changed = Vec::new();
        for entry in entries {
            changed.extend_from_slice(&u16::try_from(entry.len()).unwrap().to_be_bytes());
            changed.extend_from_slice(&entry);
        }
        std::fs::write(bundle, changed).unwrap();
    }

    /// Demands that verification fails with these words.
    async fn fails_with(self, words: &[&str]) {
        let told = self.verify().await.status(1);
        let all = format!("{}{}", told.out(), told.stderr);
        for word in words {
            assert!(all.contains(word), "no `{word}` in: {all}");
        }
        self.lab.stop().await.unwrap();
    }
}

#[tokio::test]
async fn an_untouched_copy_of_the_store_verifies() {
    let store = Store::recorded().await;
    let told = store.verify().await.status(0);
    // This client saw the log grow: that is a checkpoint kept elsewhere.
    assert!(
        told.out().contains("rollback excluded up to"),
        "{}",
        told.out()
    );
    store.lab.stop().await.unwrap();
}

#[tokio::test]
async fn one_changed_byte_of_an_entry_is_named() {
    let store = Store::recorded().await;
    store.change_entries(|entries| entries[4][40] ^= 1);
    store.fails_with(&["entry 4", "altered"]).await;
}

#[tokio::test]
async fn one_removed_entry_is_named() {
    let store = Store::recorded().await;
    store.change_entries(|entries| drop(entries.remove(3)));
    store.fails_with(&["entry 3", "removed"]).await;
}

#[tokio::test]
async fn two_swapped_entries_are_named() {
    let store = Store::recorded().await;
    store.change_entries(|entries| entries.swap(3, 5));
    store.fails_with(&["3", "5", "swapped"]).await;
}

#[tokio::test]
async fn a_cut_tail_is_named() {
    let store = Store::recorded().await;
    store.change_entries(|entries| entries.truncate(entries.len() - 2));
    store.fails_with(&["missing"]).await;
}

#[tokio::test]
async fn an_inserted_entry_is_named() {
    let store = Store::recorded().await;
    store.change_entries(|entries| entries.insert(3, entries[2].clone()));
    store.fails_with(&["a foreign entry stands at 3"]).await;
}

#[tokio::test]
async fn a_whole_store_of_yesterday_is_found_by_a_checkpoint_kept_elsewhere() {
    let store = Store::recorded().await;
    let path = store.copy.path().display().to_string();
    let kept = store.copy.path().join("../kept-checkpoint");
    let connect = ["connect", "web-1", "--", "true"];
    postern(&store.lab, &connect).await.status(0);
    std::fs::copy(store.lab.agent.audit_store.join("checkpoint"), &kept).unwrap();
    // Who saw nothing cannot know, and says so.
    let stranger = store.lab.folder().join("state-elsewhere");
    let mut command = store.lab.postern("alice");
    command.args(["audit", "verify", "--store", &path]);
    let told = run(command.env("POSTERN_STATE", &stranger), b"")
        .await
        .status(0);
    assert!(
        told.out().contains("rollback not excluded"),
        "{}",
        told.out()
    );
    // With the checkpoint it is found, and by this client without one.
    let mut command = store.lab.postern("alice");
    command.args(["audit", "verify", "--store", &path, "--checkpoint"]);
    command.arg(&kept).env("POSTERN_STATE", &stranger);
    let told = run(&mut command, b"").await.status(1);
    std::fs::remove_file(&kept).unwrap();
    assert!(told.out().contains("rolled back"), "{}", told.out());
    store.fails_with(&["rolled back"]).await;
}

#[tokio::test]
async fn a_changed_recording_is_named() {
    let store = Store::recorded().await;
    let recordings = store.files("recordings");
    let path = recordings.first().expect("a recording");
    flip(path, std::fs::metadata(path).unwrap().len() as usize - 5);
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    store.fails_with(&[&name]).await;
}

#[tokio::test]
async fn a_recording_whose_end_was_cut_off_is_named() {
    let store = Store::recorded().await;
    let recordings = store.files("recordings");
    let path = recordings.first().expect("a recording");
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 20]).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    store.fails_with(&[&name, "cut"]).await;
}

#[tokio::test]
async fn swapped_recordings_are_named() {
    let store = Store::recorded().await;
    let recordings = store.files("recordings");
    let [one, two, ..] = &recordings[..] else {
        panic!("{recordings:?}")
    };
    let (first, second) = (std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    std::fs::write(one, second).unwrap();
    std::fs::write(two, first).unwrap();
    let names = [one, two].map(|path| path.file_stem().unwrap().to_string_lossy().into_owned());
    store.fails_with(&[&names[0], &names[1]]).await;
}

#[tokio::test]
async fn a_missing_recording_is_named() {
    let store = Store::recorded().await;
    let path = store.files("recordings").first().unwrap().clone();
    std::fs::remove_file(&path).unwrap();
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    store.fails_with(&[&name, "missing"]).await;
}
