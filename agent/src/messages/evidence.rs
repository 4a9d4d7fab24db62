//! A store of evidence that cannot be used or written.

use postern_proto::audit::layout::StorePath;
use postern_proto::audit::note::NoteError;

use super::{denied, path, said, told};
use crate::evidence::{EvidenceError, LogError, LookError, OpenError, log_hint};

fn note_errors() -> [NoteError; 5] {
    [
        NoteError::Key,
        NoteError::KeyName {
            name: "bastion-2".to_owned(),
            origin: "bastion-1".parse().unwrap(),
        },
        NoteError::Malformed,
        NoteError::Signature,
        NoteError::Origin("bastion-2".to_owned()),
    ]
}

fn log_errors() -> Vec<LogError> {
    let entries = StorePath::Entries {
        index: 2,
        width: 256,
    };
    let mut errors = vec![
        LogError::Io(denied()),
        LogError::NoCheckpoint,
        LogError::Missing(entries),
        LogError::Altered(entries),
        LogError::Root { size: 700 },
    ];
    errors.extend(note_errors().map(LogError::Checkpoint));
    errors
}

#[test]
fn a_log_that_is_not_what_it_was_says_how() {
    insta::assert_snapshot!(told(&log_errors(), |error| Some(log_hint(error))));
}

#[test]
fn a_store_that_cannot_be_opened_says_why() {
    let folder = || path("evidence");
    let errors = [
        OpenError::Folder {
            folder: folder(),
            error: denied(),
        },
        OpenError::Locked(folder()),
        OpenError::Key(NoteError::Key),
        OpenError::Recipients("`age1x` is no age recipient".to_owned()),
        OpenError::Log {
            folder: folder(),
            error: LogError::NoCheckpoint,
        },
        OpenError::Evidence(EvidenceError::Failed("a write: no space".into())),
    ];
    insta::assert_snapshot!(told(&errors, OpenError::hint));
}

#[test]
fn a_log_that_cannot_be_looked_at_says_why() {
    let errors = [
        LookError::Key(NoteError::Key),
        LookError::Log(LogError::NoCheckpoint),
    ];
    insta::assert_snapshot!(said(&errors));
}

#[test]
fn evidence_that_cannot_be_written_says_why() {
    let errors = [
        EvidenceError::Failed("a write: no space left on the device".into()),
        EvidenceError::Quota(1 << 30),
        EvidenceError::Space {
            free: 1024,
            floor: 1 << 30,
        },
    ];
    insta::assert_snapshot!(said(&errors));
}
