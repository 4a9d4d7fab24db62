use std::os::unix::fs::FileExt as _;

use postern_proto::audit::append::LogFile;
use postern_proto::audit::event::{Channel, FileOperation, Source};
use postern_proto::audit::layout::push_entry;
use postern_proto::audit::note::LogSigner;
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::audit::witness::{self, WitnessError};

use secrecy::ExposeSecret as _;

use super::*;

fn recipient(settings: &Settings) -> &str {
    &settings.recipients[0]
}

async fn stop(evidence: Evidence) {
    evidence.shutdown().await.unwrap();
}

/// Appends events together, which is much faster than one after the other.
async fn fill(evidence: &Evidence, events: impl IntoIterator<Item = Event>) -> Vec<Witness> {
    let mut tasks = tokio::task::JoinSet::new();
    for event in events {
        let evidence = evidence.clone();
        tasks.spawn(async move { evidence.append(event).await.unwrap() });
    }
    tasks.join_all().await
}

/// A store with `count` sessions, stopped in order.
async fn store(folder: &Path, count: u64) -> (Settings, Identity) {
    let (settings, identity) = settings(folder);
    let (evidence, startup) = Evidence::open(settings.clone()).unwrap();
    assert!(startup.first);
    fill(&evidence, (0..count).map(granted)).await;
    let ends = (0..count).map(|number| closed(number, CloseReason::Done, vec![]));
    fill(&evidence, ends).await;
    stop(evidence).await;
    (settings, identity)
}

#[tokio::test]
async fn an_event_is_durable_and_proven_to_the_client_when_append_returns() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings).unwrap();
    assert_eq!(evidence.vkey(), key(SEED[0]).1);
    let mut known = None;
    fill(&evidence, (0..230).map(|number| granted(1000 + number))).await;
    for number in 230..280 {
        let mut witness = evidence.append(granted(number)).await.unwrap();
        assert_eq!(witness.leaf, number + 1);
        if let Some(known) = &known {
            let known: &postern_proto::audit::note::Checkpoint = known;
            evidence
                .prove_growth(&mut witness, known.size)
                .await
                .unwrap();
        }
        known = Some(witness::check(&log_identity(), &witness, known.as_ref()).unwrap());
        // What was answered is what stands on disk.
        let checkpoint = std::fs::read_to_string(folder.path().join("checkpoint")).unwrap();
        assert_eq!(checkpoint, witness.checkpoint);
        assert_eq!(checkpoint, evidence.checkpoint());
    }
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.size), (vec![], 281));
}

#[tokio::test]
async fn events_that_arrive_together_share_commits_and_all_are_proven() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings).unwrap();
    let witnesses = fill(&evidence, (0..1500).map(granted)).await;
    let mut leaves = Vec::new();
    let mut checkpoints = std::collections::BTreeSet::new();
    for witness in witnesses {
        witness::check(&log_identity(), &witness, None).unwrap();
        leaves.push(witness.leaf);
        checkpoints.insert(witness.checkpoint);
    }
    leaves.sort_unstable();
    assert_eq!(leaves, (1..=1500).collect::<Vec<_>>());
    assert!(checkpoints.len() < 1500);
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn a_store_that_was_stopped_opens_again_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = store(folder.path(), 300).await;
    for starts in 0..3 {
        let (evidence, startup) = Evidence::open(settings.clone()).unwrap();
        assert_eq!(startup.entries, 602 + starts * 2);
        assert_eq!(
            (startup.kept, startup.dropped, startup.first),
            (0, 0, false)
        );
        assert_eq!(startup.interrupted, []);
        stop(evidence).await;
    }
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.size), (vec![], 608));
}

#[tokio::test]
async fn a_second_writer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    let second = Evidence::open(settings.clone());
    assert!(matches!(second, Err(OpenError::Locked(_))));
    stop(evidence).await;
    Evidence::open(settings).unwrap();
}

#[tokio::test]
async fn whole_entries_after_the_checkpoint_are_kept_and_a_torn_one_is_dropped() {
    for at in [3, 255, 256, 300] {
        let folder = tempfile::tempdir().unwrap();
        let (settings, identity) = store(folder.path(), 0).await;
        let (evidence, _) = Evidence::open(settings.clone()).unwrap();
        let mut size = 3;
        let idle = || {
            let open_hash = String::new();
            event(None, Fact::StepUpApproved { open_hash })
        };
        let missing = (at - 1_u64).saturating_sub(size);
        fill(&evidence, (0..missing).map(|_| idle())).await;
        size += missing;
        stop(evidence).await;
        size += 1;
        // As if the agent had died after writing entries and before tiles.
        let mut more = Vec::new();
        for sequence in size..size + 2 {
            let place = Place {
                origin: &agent(),
                sequence,
                version: "0",
                access: None,
                source: Source::Agent,
            };
            let seal = &mut |_: &[u8]| Err("nothing to seal".to_owned());
            let leaf = ocsf::encode(&granted(9000 + sequence), place, seal).unwrap();
            assert!(push_entry(&mut more, &leaf));
        }
        // A bundle ends before its successor begins: the second entry may be of the next one.
        let whole = if size % 256 == 255 { 1 } else { 2 };
        let torn = 40;
        let first = 2 + usize::from(u16::from_be_bytes([more[0], more[1]]));
        let more = if whole == 1 {
            [&more[..first], &more[first..first + torn]].concat()
        } else {
            [&more[..], &more[..torn]].concat()
        };
        let growing = LogFile::Growing { index: size / 256 };
        let growing = folder.path().join(growing.to_string());
        disk::make_folder(growing.parent().unwrap()).unwrap();
        let file = disk::options()
            .create(true)
            .truncate(false)
            .open(&growing)
            .unwrap();
        let end = file.metadata().unwrap().len();
        file.write_all_at(&more, end).unwrap();

        let (evidence, startup) = Evidence::open(settings).unwrap();
        assert_eq!(
            (startup.kept, startup.dropped),
            (whole, torn as u64),
            "{at}"
        );
        assert_eq!(startup.entries, size + whole);
        stop(evidence).await;
        let report = report(folder.path(), &identity);
        assert_eq!(report.faults, [], "{at}");
        assert_eq!(report.unsigned, 0);
    }
}

#[tokio::test]
async fn a_log_that_does_not_reproduce_its_checkpoint_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = store(folder.path(), 140).await;
    let whole = files(folder.path());
    for path in [
        "tile/entries/000",
        "tile/entries/001.p/growing",
        "tile/0/000",
        "tile/0/001.p/26",
        "tile/1/000.p/1",
        "checkpoint",
    ] {
        let path = folder.path().join(path);
        let good = std::fs::read(&path).unwrap();
        let changes: [&dyn Fn(&mut Vec<u8>); 2] = [
            &|bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
            },
            &|bytes| bytes.truncate(bytes.len() / 2),
        ];
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            std::fs::write(&path, &bad).unwrap();
            let before = files(folder.path());
            let result = Evidence::open(settings.clone());
            assert!(
                matches!(result, Err(OpenError::Log { .. })),
                "{}",
                path.display()
            );
            assert_eq!(files(folder.path()), before, "{}", path.display());
        }
        std::fs::write(&path, &good).unwrap();
    }
    std::fs::remove_file(folder.path().join("checkpoint")).unwrap();
    assert!(matches!(
        Evidence::open(settings.clone()),
        Err(OpenError::Log {
            error: LogError::NoCheckpoint,
            ..
        })
    ));
    for (path, bytes) in whole {
        std::fs::write(path, bytes).unwrap();
    }
    Evidence::open(settings).unwrap();
}

#[tokio::test]
async fn a_partial_bundle_holds_what_its_name_says_and_never_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings).unwrap();
    let partial = |width: u64| folder.path().join(format!("tile/entries/000.p/{width}"));
    let mut seen = Vec::new();
    for number in 0..40 {
        evidence.append(granted(number)).await.unwrap();
        let checkpoint = evidence.checkpoint();
        let width: u64 = checkpoint.lines().nth(1).unwrap().parse().unwrap();
        let bytes = std::fs::read(partial(width)).unwrap();
        let (entries, taken) = postern_proto::audit::layout::split_entries(&bytes);
        assert_eq!((entries.len() as u64, taken), (width, bytes.len()));
        seen.push((width, bytes));
    }
    // Whoever holds an older checkpoint finds its files until the full ones are there.
    for (width, bytes) in &seen {
        assert_eq!(&std::fs::read(partial(*width)).unwrap(), bytes, "{width}");
        let tile = folder.path().join(format!("tile/0/000.p/{width}"));
        assert_eq!(std::fs::read(tile).unwrap().len() as u64, 32 * width);
    }
    for number in 40..270 {
        evidence.append(granted(number)).await.unwrap();
    }
    assert!(!folder.path().join("tile/entries/000.p").exists());
    assert!(!folder.path().join("tile/0/000.p").exists());
    stop(evidence).await;
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn a_partial_bundle_that_a_power_cut_tore_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = store(folder.path(), 5).await;
    let checkpoint = std::fs::read_to_string(folder.path().join("checkpoint")).unwrap();
    let size = checkpoint.lines().nth(1).unwrap();
    let partial = folder.path().join(format!("tile/entries/000.p/{size}"));
    let whole = std::fs::read(&partial).unwrap();
    for torn in [&whole[..0], &whole[..whole.len() / 2]] {
        std::fs::write(&partial, torn).unwrap();
        let signers = [LogSigner::new(&agent(), key(SEED[0]).0.expose_secret()).unwrap()];
        let entries = recover::inspect(folder.path(), &agent(), &signers).unwrap();
        assert_eq!(entries.unwrap().to_string(), size);
        assert_eq!(
            std::fs::read(&partial).unwrap(),
            torn,
            "looking changes nothing"
        );
        drop(recover::open(folder.path(), &agent(), signers.into()).unwrap());
        assert_eq!(std::fs::read(&partial).unwrap(), whole);
    }
    let (evidence, _) = Evidence::open(settings).unwrap();
    stop(evidence).await;
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn a_log_that_was_rolled_back_opens_but_is_refused_by_its_witness() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, _) = store(folder.path(), 5).await;
    let old = files(folder.path());
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    let mut last = None;
    for number in 0..20 {
        last = Some(evidence.append(granted(100 + number)).await.unwrap());
    }
    let known = witness::check(&log_identity(), &last.unwrap(), None).unwrap();
    stop(evidence).await;

    std::fs::remove_dir_all(folder.path().join("tile")).unwrap();
    for (path, bytes) in old {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let (evidence, _) = Evidence::open(settings).unwrap();
    let rolled = evidence.append(granted(200)).await.unwrap();
    assert!(matches!(
        witness::check(&log_identity(), &rolled, Some(&known)),
        Err(WitnessError::RolledBack { .. })
    ));
    // Grown past what the client knows it is a rewrite, and cannot be proven away.
    let mut last = rolled;
    for number in 0..40 {
        last = evidence.append(granted(300 + number)).await.unwrap();
    }
    evidence.prove_growth(&mut last, known.size).await.unwrap();
    assert_eq!(
        witness::check(&log_identity(), &last, Some(&known)),
        Err(WitnessError::Rewritten { known: known.size })
    );
}

#[tokio::test]
async fn a_new_key_is_named_by_the_old_one_and_verifies_with_either() {
    let folder = tempfile::tempdir().unwrap();
    let (mut settings, identity) = store(folder.path(), 3).await;
    let (new, new_vkey) = key(8);
    let old = std::mem::replace(&mut settings.signing_key, new);
    // Without the old key the checkpoint is somebody else's.
    assert!(Evidence::open(settings.clone()).is_err());
    settings.previous_key = Some(old);
    let (evidence, _) = Evidence::open(settings.clone()).unwrap();
    assert_eq!(evidence.vkey(), new_vkey);
    stop(evidence).await;
    settings.previous_key = None;
    let (evidence, _) = Evidence::open(settings).unwrap();
    stop(evidence).await;
    // The reader knows the old key alone, the last checkpoint is signed by the new one alone.
    assert_eq!(report(folder.path(), &identity).faults, []);
    let checkpoint = std::fs::read_to_string(folder.path().join("checkpoint")).unwrap();
    assert!(log_identity().checkpoint(&checkpoint).is_err());
}

#[tokio::test]
async fn sealed_text_never_stands_in_the_store_in_the_clear() {
    const CANARY: &str = "canary-hunter2";
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    assert!(recipient(&settings).starts_with("age1"));
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    let facts = [
        Fact::ChannelOpened {
            channel: Channel::Command {
                line: format!("mysql -p{CANARY}"),
                terminal: false,
            },
            policies: vec![],
            refused: None,
            recording: None,
        },
        Fact::FileOperation(FileOperation {
            operation: "rename".to_owned(),
            path: format!("/a/{CANARY}"),
            to: Some(CANARY.to_owned()),
            size: 0,
            sha256: None,
            error: Some(format!("{CANARY}: no such file")),
        }),
    ];
    for fact in facts {
        evidence
            .append(event(Some(session(1)), fact))
            .await
            .unwrap();
    }
    let kind = RecordingKind::Streams {
        command: format!("mysql -p{CANARY}"),
    };
    let recording = evidence.begin(session(1), "p", kind).await.unwrap();
    recording.write(Entry::Output(CANARY.into())).await.unwrap();
    recording.write(Entry::Input(CANARY.into())).await.unwrap();
    recording.write(Entry::Note(CANARY.into())).await.unwrap();
    let digest = recording.close().await.unwrap();
    evidence
        .append(closed(1, CloseReason::Done, vec![digest]))
        .await
        .unwrap();
    stop(evidence).await;
    for (path, bytes) in files(folder.path()) {
        let found = bytes
            .windows(CANARY.len())
            .any(|part| part == CANARY.as_bytes());
        assert!(!found, "{}", path.display());
    }
    let name = format!("{}-0", session(1));
    assert_eq!(
        output(&lines(folder.path(), &name, &identity)),
        CANARY.as_bytes()
    );
    assert_eq!(report(folder.path(), &identity).faults, []);
}

#[tokio::test]
async fn a_session_with_more_recordings_than_fit_into_one_event_is_whole_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    let mut digests = Vec::new();
    for number in 0..600 {
        let kind = RecordingKind::Flow {
            destination: format!("db-{number}"),
        };
        let recording = evidence.begin(session(1), "p", kind).await.unwrap();
        recording
            .write(Entry::Flow { up: 1, down: 2 })
            .await
            .unwrap();
        digests.push(recording.close().await.unwrap());
    }
    evidence
        .append(closed(1, CloseReason::Done, digests))
        .await
        .unwrap();
    stop(evidence).await;
    let report = report(folder.path(), &identity);
    assert_eq!((report.faults, report.recordings), (vec![], 600));
}
