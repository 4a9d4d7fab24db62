//! What can be done to recordings.

use super::*;

#[test]
fn a_recording_that_was_altered_names_the_bytes_between_two_logged_lengths() {
    let mut lab = Lab::with_sessions(3);
    let length = lab.recording(2).len();
    for (at, from, to, entry) in [
        (length / 2 - 1, 0, length / 2, 5),
        (length - 1, length / 2, length, 6),
    ] {
        lab.recording(2)[at] ^= 1;
        let fault = Fault::RecordingAltered {
            name: name(2),
            from: from as u64,
            to: to as u64,
            entry,
        };
        assert_eq!(lab.faults(), [fault]);
        lab.recording(2)[at] ^= 1;
    }
}

#[test]
fn a_recording_that_was_cut_is_cut_and_not_interrupted() {
    let mut lab = Lab::with_sessions(3);
    let logged = lab.recording(2).len() as u64;
    for length in [logged - 1, logged / 2, 10, 0] {
        lab.recording(2).truncate(length as usize);
        let faults = lab.faults();
        let is_cut = matches!(
            faults[..],
            [Fault::RecordingCut { name: cut, length: found, logged: stated, .. }]
                if cut == name(2) && found == length && stated == logged
        );
        assert!(is_cut, "{faults:?}");
    }
}

#[test]
fn recordings_that_were_swapped_name_what_they_hold() {
    let mut lab = Lab::with_sessions(3);
    let (one, two) = (lab.recording(1).clone(), lab.recording(2).clone());
    *lab.recording(1) = two;
    *lab.recording(2) = one;
    let swapped = |number, holds| Fault::RecordingSwapped {
        name: name(number),
        holds: name(holds),
    };
    assert_eq!(lab.faults(), [swapped(1, 2), swapped(2, 1)]);
}

#[test]
fn a_recording_that_is_missing_is_named_unless_its_deletion_is_in_the_log() {
    let mut lab = Lab::with_sessions(3);
    lab.store.files.remove(&StorePath::Recording(name(2)));
    let missing = Fault::RecordingMissing {
        name: name(2),
        entry: 6,
    };
    assert_eq!(lab.faults(), [missing]);
    let deletion = Fact::RecordingsDeleted {
        recordings: vec![name(2)],
        reason: "retention".to_owned(),
    };
    lab.events.push(event(None, deletion));
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!((report.faults, report.deleted), (vec![], vec![name(2)]));
}

#[test]
fn a_recording_that_was_added_to_or_that_nobody_logged_is_named() {
    let mut lab = Lab::with_sessions(3);
    lab.recording(2).push(0);
    let faults = lab.faults();
    assert!(
        matches!(faults[..], [Fault::RecordingExtended { .. }]),
        "{faults:?}"
    );
    lab.recording(2).pop();
    lab.record(name(77), true);
    assert_eq!(lab.faults(), [Fault::RecordingUnlogged { name: name(77) }]);
}

#[test]
fn an_interrupted_recording_is_no_fault_when_the_log_says_so() {
    let mut lab = Lab::with_sessions(1);
    lab.events.push(granted(5));
    let bytes = lab.record(name(5), false);
    lab.write();
    // The agent runs, or was killed and did not start again.
    let report = lab.verify(&[]);
    assert_eq!(report.faults, []);
    assert_eq!(report.sessions[1].state, SessionState::Open);

    let interrupted = Fact::SessionInterrupted {
        recordings: vec![digest(name(5), &bytes, false)],
    };
    let mut start = started();
    start.fact = Fact::AgentStarted {
        version: "0".to_owned(),
        recipients: vec![],
        interrupted: vec![session(5)],
    };
    lab.events
        .extend([start, event(Some(session(5)), interrupted)]);
    lab.write();
    let report = lab.verify(&[]);
    assert_eq!(
        (report.faults.as_slice(), report.interrupted.as_slice()),
        ([].as_slice(), [name(5)].as_slice())
    );

    lab.recording(5).truncate(bytes.len() - 1);
    assert!(matches!(lab.faults()[..], [Fault::RecordingCut { .. }]));
}

#[test]
fn a_recording_that_the_log_calls_complete_needs_its_final_record() {
    let mut lab = Lab::with_sessions(1);
    let bytes = lab.record(name(5), false);
    let last = digest(name(5), &bytes, true);
    lab.events.extend([granted(5), closed(5, vec![last])]);
    lab.write();
    assert!(matches!(lab.faults()[..], [Fault::RecordingContent { .. }]));
}
