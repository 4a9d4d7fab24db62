#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;
use crate::names::SessionId;
use crate::recording::cast::Encoder;
use crate::recording::{DataKey, Kind, RecordingName, Sealer};

fn name(number: u32) -> RecordingName {
    RecordingName {
        session: SessionId::from_parts(1_700_000_000_000, 9),
        number,
    }
}

fn terminal() -> Kind {
    Kind::Terminal {
        columns: 100,
        rows: 30,
        term: "xterm-256color".to_owned(),
        command: None,
    }
}

fn streams() -> Kind {
    Kind::Streams {
        command: "rsync --server".to_owned(),
    }
}

/// A recording with one record for each entry; answers with the file and where records begin.
fn record(kind: &Kind, input: bool, bulk: bool, entries: &[Entry], end: bool) -> Recorded {
    let identity = Identity::generate();
    let key = DataKey::new([3; 32]);
    let wrapped = age::encrypt(&identity.to_public(), &key.to_payload()).unwrap();
    let (mut sealer, mut file) = Sealer::start(name(0), &key, &wrapped).unwrap();
    let (mut encoder, first) = Encoder::start(name(0), kind, 1_700_000_000, input, bulk);
    let mut records = vec![file.len()];
    sealer.seal(&first, false, &mut file).unwrap();
    let mut plain = Vec::new();
    for (at, entry) in (0..).map(|second| second * 1500).zip(entries) {
        records.push(file.len());
        plain.clear();
        encoder.entry(at, entry, &mut plain);
        sealer.seal(&plain, false, &mut file).unwrap();
    }
    if end {
        records.push(file.len());
        plain.clear();
        encoder.finish(9000, &mut plain);
        sealer.seal(&plain, true, &mut file).unwrap();
    }
    Recorded {
        identity,
        file,
        records,
    }
}

struct Recorded {
    identity: Identity,
    file: Vec<u8>,
    records: Vec<usize>,
}

impl Recorded {
    fn play(&self) -> Result<(Vec<Line>, Option<Ending>), PlayError> {
        play(&self.file, &self.identity)
    }
}

fn play(file: &[u8], identity: &Identity) -> Result<(Vec<Line>, Option<Ending>), PlayError> {
    let mut player = Player::new(file, std::slice::from_ref(identity))?;
    let mut lines = Vec::new();
    while let Some(line) = player.next_line()? {
        lines.push(line);
    }
    Ok((lines, player.ending()))
}

/// What passed in one direction, put together again.
fn joined(lines: &[Line]) -> Vec<u8> {
    lines
        .iter()
        .flat_map(|line| match &line.what {
            Played::Entry(Entry::Output(bytes)) => bytes.to_vec(),
            _ => Vec::new(),
        })
        .collect()
}

#[test]
fn a_recording_plays_back_what_was_recorded() {
    let entries = [
        Entry::Output("$ id\r\n".into()),
        Entry::Resize {
            columns: 120,
            rows: 40,
        },
        Entry::Note("the network was away".to_owned()),
        Entry::Exit(Ok(7)),
    ];
    let recorded = record(&terminal(), false, false, &entries, true);
    let (lines, ending) = recorded.play().unwrap();
    assert_eq!(ending, Some(Ending::Complete));
    let played: Vec<_> = lines.iter().map(|line| line.what.clone()).collect();
    let expected: Vec<_> = entries.iter().cloned().map(Played::Entry).collect();
    assert_eq!(played, expected);
    let times: Vec<_> = lines.iter().map(|line| line.at_ms).collect();
    assert_eq!(times, [0, 1500, 3000, 4500]);

    let player = Player::new(&*recorded.file, &[recorded.identity]).unwrap();
    assert_eq!(player.header().term.cols, 100);
    assert_eq!(player.header().postern.name, name(0));
}

#[test]
fn the_lines_are_asciicast_v3() {
    let (mut encoder, mut text) = Encoder::start(name(0), &terminal(), 5, false, false);
    encoder.entry(1, &Entry::Output("a\"\u{1b}".into()), &mut text);
    encoder.entry(2500, &Entry::Exit(Ok(0)), &mut text);
    let text = String::from_utf8(text).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with(
        r#"{"version":3,"term":{"cols":100,"rows":30,"type":"xterm-256color"},"timestamp":5"#
    ));
    assert_eq!(lines.next(), Some(r#"[0.001,"o","a\"\u001b"]"#));
    assert_eq!(lines.next(), Some(r#"[2.499,"x","0"]"#));
    assert_eq!(lines.next(), None);
}

#[test]
fn a_terminals_input_is_kept_only_when_asked_for() {
    let entries = [Entry::Input("password\r".into())];
    let without = record(&terminal(), false, false, &entries, true);
    assert_eq!(without.play().unwrap().0, []);
    let with = record(&terminal(), true, false, &entries, true);
    assert_eq!(with.play().unwrap().0.len(), 1);
    let streams = record(&streams(), false, false, &entries, true);
    assert_eq!(streams.play().unwrap().0.len(), 1);
}

#[test]
fn bytes_that_are_not_utf8_are_kept_exactly_and_at_once() {
    let text = "größer €";
    let bytes = text.as_bytes();
    for cut in 0..bytes.len() {
        let (left, right) = bytes.split_at(cut);
        let entries = [
            Entry::Output(left.to_vec().into()),
            Entry::Output(right.to_vec().into()),
        ];
        let recorded = record(&terminal(), false, false, &entries, false);
        // The first entry is whole in the file before the second one exists.
        let first = &recorded.file[..recorded.records[2]];
        let (lines, _) = play(first, &recorded.identity).unwrap();
        assert_eq!(joined(&lines), left);
        assert_eq!(joined(&recorded.play().unwrap().0), bytes);
    }
}

#[test]
fn a_bulk_stream_keeps_its_first_mebibyte_its_count_and_its_digest() {
    let chunk = vec![0xab; 300 * 1024];
    let entries = vec![Entry::Output(chunk.clone().into()); 4];
    let recorded = record(&streams(), false, true, &entries, true);
    assert!(recorded.file.len() < 1_500_000);
    let (lines, _) = recorded.play().unwrap();
    assert_eq!(joined(&lines).len(), 1024 * 1024);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &chunk.repeat(4));
    let Some(Line {
        what: Played::Digest(last),
        ..
    }) = lines.last()
    else {
        panic!("no digest: {:?}", lines.last());
    };
    assert_eq!(last.bytes, 4 * 300 * 1024);
    assert_eq!(last.sha256, hex::encode(digest));
}

#[test]
fn a_recording_without_its_final_record_is_interrupted() {
    let entries = vec![Entry::Output("x".into()); 3];
    let recorded = record(&terminal(), false, false, &entries, true);
    for (number, end) in recorded.records.iter().enumerate().skip(1) {
        let (lines, ending) = play(&recorded.file[..*end], &recorded.identity).unwrap();
        assert_eq!(lines.len(), number - 1);
        assert_eq!(ending, Some(Ending::Interrupted { torn: 0 }));
        let (_, ending) = play(&recorded.file[..end + 3], &recorded.identity).unwrap();
        assert_eq!(ending, Some(Ending::Interrupted { torn: 3 }));
    }
}

#[test]
fn a_byte_that_was_changed_is_found_in_its_record() {
    let entries = vec![Entry::Output("x".into()); 3];
    let recorded = record(&terminal(), false, false, &entries, true);
    for at in recorded.records[2]..recorded.file.len() {
        let mut file = recorded.file.clone();
        file[at] ^= 1;
        match play(&file, &recorded.identity) {
            Err(PlayError::Read(ReadError::Altered { record, .. })) => {
                let record = record as usize;
                assert!(recorded.records[record] <= at);
                assert!(
                    recorded
                        .records
                        .get(record + 1)
                        .is_none_or(|next| at < *next)
                );
            }
            // A longer length reaches beyond the end, which the log's length tells apart.
            Ok((_, Some(Ending::Interrupted { .. }))) => {}
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[test]
fn records_cannot_be_cut_out_swapped_or_added() {
    let entries: Vec<_> = ["one", "two", "six"]
        .into_iter()
        .map(|text| Entry::Output(text.into()))
        .collect();
    let recorded = record(&terminal(), false, false, &entries, true);
    let part =
        |from: usize, to: usize| &recorded.file[recorded.records[from]..recorded.records[to]];
    let head = &recorded.file[..recorded.records[1]];
    let end = &recorded.file[recorded.records[4]..];
    for file in [
        [head, part(2, 3), part(3, 4), end].concat(),
        [head, part(2, 3), part(1, 2), part(3, 4), end].concat(),
        [head, end].concat(),
    ] {
        assert!(matches!(
            play(&file, &recorded.identity),
            Err(PlayError::Read(ReadError::Altered { record: 1, .. }))
        ));
    }
    let longer = [&recorded.file, part(1, 2)].concat();
    assert!(matches!(
        play(&longer, &recorded.identity),
        Err(PlayError::Read(ReadError::Added { .. }))
    ));
}

#[test]
fn the_name_in_the_header_is_bound_to_every_record() {
    let recorded = record(&terminal(), false, false, &[], true);
    let (old, new) = (name(0).to_string(), name(1).to_string());
    let mut file = recorded.file.clone();
    let at = file
        .windows(old.len())
        .position(|part| part == old.as_bytes())
        .unwrap();
    file[at..at + new.len()].copy_from_slice(new.as_bytes());
    assert!(matches!(
        play(&file, &recorded.identity),
        Err(PlayError::Read(ReadError::Altered { record: 0, .. }))
    ));
}

#[test]
fn only_a_recipient_opens_a_recording() {
    let recorded = record(&terminal(), false, false, &[], true);
    assert!(matches!(
        play(&recorded.file, &Identity::generate()),
        Err(PlayError::Open(OpenError::Identity))
    ));
    assert!(!format!("{:?}", DataKey::new([3; 32])).contains('3'));
}

proptest! {
    #[test]
    fn a_hostile_file_never_panics(
        at in 0..500usize, bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0..600usize,
    ) {
        let recorded = record(&terminal(), false, false, &[Entry::Output("x".into())], true);
        let mut file = recorded.file.clone();
        file.truncate(cut);
        let at = at.min(file.len());
        file.splice(at..file.len().min(at + bytes.len()), bytes);
        let _ = play(&file, &recorded.identity);
    }

    #[test]
    fn any_bytes_come_back_exactly(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..6),
    ) {
        let entries: Vec<_> = chunks.iter().map(|chunk| Entry::Output(chunk.clone().into())).collect();
        let recorded = record(&streams(), false, false, &entries, true);
        prop_assert_eq!(joined(&recorded.play().unwrap().0), chunks.concat());
    }
}
