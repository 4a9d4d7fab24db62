//! Every recorded frame decodes, each field as an independent decoder saw it, and encodes to the
//! same bytes again; every JSON body is read and written back.

use std::path::PathBuf;

use bytes::Bytes;
use postern_proto::ssm::Role;
use postern_proto::ssm::message::{Message, MessageKind};
use postern_proto::ssm::payload::handshake::{
    Challenge, HandshakeComplete, HandshakeRequest, HandshakeResponse,
};
use postern_proto::ssm::payload::{
    Acknowledge, AgentSessionState, ChannelClosed, Flag, OpenDataChannel, PayloadKind,
    TerminalSize, exit_code, exit_code_payload, publication,
};
use postern_proto::ssm::smux::frame::{Decoder, Piece};
use postern_proto::ssm::smux::{Limits, Mux};
use serde_json::Value;

/// One line of a file: what happened, and the frame if it was one.
pub(crate) struct Entry {
    pub(crate) value: Value,
    pub(crate) frame: Option<Bytes>,
}

impl Entry {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.value[name].as_str().unwrap_or_default()
    }
}

/// The sessions by name, in order.
pub(crate) fn sessions() -> Vec<(String, Vec<Entry>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ssm");
    let mut sessions: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, text.lines().map(entry).collect())
        })
        .collect();
    sessions.sort_by(|(one, _), (other, _): &(String, Vec<Entry>)| one.cmp(other));
    sessions
}

pub(crate) fn session(name: &str) -> Vec<Entry> {
    let found = sessions().into_iter().find(|(found, _)| found == name);
    found.unwrap_or_else(|| panic!("no session {name}")).1
}

fn entry(line: &str) -> Entry {
    let value: Value = serde_json::from_str(line).unwrap();
    let frame = value["hex"]
        .as_str()
        .map(|hex| hex::decode(hex).unwrap().into());
    Entry { value, frame }
}

fn frames() -> Vec<(String, Entry, Message)> {
    let mut frames = Vec::new();
    for (name, entries) in sessions() {
        for entry in entries {
            if let Some(frame) = &entry.frame {
                let message = Message::decode(frame).unwrap_or_else(|error| {
                    panic!("{name}: {error}: {}", entry.value);
                });
                frames.push((name.clone(), entry, message));
            }
        }
    }
    assert_eq!(
        frames.len(),
        293 + 14,
        "frames and task results of 14 sessions"
    );
    frames
}

#[test]
fn every_frame_decodes_to_its_fields_and_encodes_to_the_same_bytes() {
    for (name, entry, message) in frames() {
        let fields = &entry.value["message"];
        let number = |field: &str| fields[field].as_u64().unwrap();
        let context = || format!("{name}: {fields}");
        let kind = match message.kind {
            MessageKind::Other(other) => format!("{other:?}"),
            known => known.name().to_owned(),
        };
        assert_eq!(
            kind,
            fields["message_type"].as_str().unwrap(),
            "{}",
            context()
        );
        assert_eq!(u64::from(message.schema_version), number("schema_version"));
        assert_eq!(message.created, number("created_date"), "{}", context());
        assert_eq!(message.sequence, number("sequence_number"), "{}", context());
        assert_eq!(message.flags, number("flags"), "{}", context());
        assert_eq!(
            message.id.to_string(),
            fields["message_id"].as_str().unwrap(),
            "{}",
            context()
        );
        assert_eq!(message.payload.len() as u64, number("payload_length"));
        assert_eq!(message.encode(), entry.frame.unwrap(), "{name}: {fields}");
    }
}

#[test]
fn flags_are_set_as_the_genuine_programs_set_them() {
    for (name, entry, message) in frames() {
        let Message {
            kind,
            sequence,
            id,
            created,
            payload_kind,
            payload,
            ..
        } = message.clone();
        let ours = if kind.is_numbered() {
            Message::numbered(kind, sequence, id, created, payload_kind, payload)
        } else if matches!(
            kind,
            MessageKind::Acknowledge | MessageKind::AgentSessionState
        ) {
            Message::unnumbered(kind, id, created, payload)
        } else {
            // The service's: the emulation's choice, not AWS's.
            continue;
        };
        assert_eq!(ours, message, "{name}: {}", entry.value["message"]);
    }
}

#[test]
fn every_json_body_is_read_and_written_back() {
    let mut seen = std::collections::BTreeSet::new();
    for (name, entry, message) in frames() {
        let payload = &message.payload;
        let back = match (message.kind, message.payload_kind) {
            (MessageKind::Acknowledge, _) => {
                let sequence = Acknowledge::from_payload(payload).unwrap().sequence;
                let json = &entry.value["message"]["json"];
                let kind = json["AcknowledgedMessageType"].as_str().unwrap();
                let id = json["AcknowledgedMessageId"].as_str().unwrap();
                let kind = [MessageKind::InputStreamData, MessageKind::OutputStreamData]
                    .into_iter()
                    .find(|known| known.name() == kind)
                    .unwrap();
                let id = hex::decode(id.replace('-', ""))
                    .unwrap()
                    .try_into()
                    .unwrap();
                Acknowledge::payload(kind, postern_proto::ssm::message::MessageId(id), sequence)
            }
            (MessageKind::AgentSessionState, _) => {
                AgentSessionState::from_payload(payload).unwrap().payload()
            }
            (MessageKind::ChannelClosed, _) => {
                ChannelClosed::from_payload(payload).unwrap().payload()
            }
            (MessageKind::StartPublication | MessageKind::PausePublication, _) => publication(
                entry.value["message"]["json"]["SessionId"]
                    .as_str()
                    .unwrap(),
            ),
            (_, PayloadKind::HandshakeRequest) => {
                HandshakeRequest::from_payload(payload).unwrap().payload()
            }
            (_, PayloadKind::HandshakeResponse) => {
                HandshakeResponse::from_payload(payload).unwrap().payload()
            }
            (_, PayloadKind::HandshakeComplete) => {
                HandshakeComplete::from_payload(payload).unwrap().payload()
            }
            (_, PayloadKind::ChallengeRequest | PayloadKind::ChallengeResponse) => {
                Challenge::new(&Challenge::from_payload(payload).unwrap()).payload()
            }
            (_, PayloadKind::Size) => TerminalSize::from_payload(payload).unwrap().payload(),
            (_, PayloadKind::Flag) => Flag::from_payload(payload).unwrap().payload(),
            (_, PayloadKind::ExitCode) => exit_code_payload(exit_code(payload).unwrap()),
            _ => continue,
        };
        seen.insert(format!("{:?} {:?}", message.kind, message.payload_kind));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // Python wrote the emulation's bodies with spaces; a KMS result's two fields change
        // places in ours. Everything else is the same to the byte.
        if payload.windows(3).any(|part| part == b"\": ") || text(payload).contains("KMSCipher") {
            let value = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
            assert_eq!(value(&back), value(payload), "{name}");
        } else {
            assert_eq!(text(&back), text(payload), "{name}");
        }
    }
    assert_eq!(seen.len(), 14, "{seen:?}");
}

#[test]
fn every_opening_text_is_read_and_written_back() {
    let mut count = 0;
    for (_, entries) in sessions() {
        for entry in entries
            .iter()
            .filter(|entry| entry.text("event") == "open_data_channel")
        {
            let open = OpenDataChannel::from_text(&entry.value["open"].to_string()).unwrap();
            let back: Value = serde_json::from_str(open.to_text().expose()).unwrap();
            assert_eq!(back, entry.value["open"]);
            count += 1;
        }
    }
    assert_eq!(count, 29);
}

#[test]
fn the_multiplexed_bytes_are_the_frames_that_were_seen() {
    let mut seen = 0;
    for name in ["port_mux", "port_mux_refused", "port_remote_host"] {
        for side in ["client->service", "service->client"] {
            let mut decoder = Decoder::default();
            for entry in session(name)
                .into_iter()
                .filter(|entry| entry.text("where") == side)
            {
                let Some(frames) = entry.value["message"]["smux"].as_array() else {
                    continue;
                };
                let mut bytes = Message::decode(&entry.frame.unwrap()).unwrap().payload;
                let mut pieces = Vec::new();
                while let Some(piece) = decoder.next(&mut bytes).unwrap() {
                    pieces.push(piece);
                }
                if entry.value["message"]["smux_whole"] != true {
                    continue;
                }
                let ours: Vec<(String, u64, u64)> = pieces
                    .iter()
                    .map(|piece| match piece {
                        Piece::Control(command, id) => {
                            (format!("{command:?}").to_uppercase(), u64::from(*id), 0)
                        }
                        Piece::Data(id, data) => ("PSH".into(), u64::from(*id), data.len() as u64),
                    })
                    .collect();
                let theirs: Vec<(String, u64, u64)> = frames
                    .iter()
                    .map(|frame| {
                        (
                            frame["cmd"].as_str().unwrap().to_owned(),
                            frame["sid"].as_u64().unwrap(),
                            frame["length"].as_u64().unwrap(),
                        )
                    })
                    .collect();
                assert_eq!(ours, theirs, "{name} {side}");
                seen += ours.len();
            }
        }
    }
    assert!(seen >= 12, "{seen}");
}

#[test]
fn our_multiplexer_writes_what_the_plugin_wrote() {
    let now = std::time::Instant::now();
    let mut mux = Mux::new(Role::Client, Limits::default(), false, now);
    let mut out = Vec::new();
    let first = mux.open().unwrap();
    mux.write(first, b"ECHO\nhello through the tunnel");
    mux.poll_transmit(&mut out, 4096);
    mux.finish(first);
    let second = mux.open().unwrap();
    mux.poll_transmit(&mut out, 4096);
    mux.write(second, b"GET 3000\n");
    mux.poll_transmit(&mut out, 4096);
    mux.finish(second);
    mux.poll_transmit(&mut out, 4096);
    let theirs: Vec<u8> = session("port_mux")
        .iter()
        .filter(|entry| entry.text("where") == "client->service")
        .filter_map(|entry| Message::decode(entry.frame.as_ref()?).ok())
        .filter(|message| message.payload_kind == PayloadKind::Output)
        .flat_map(|message| message.payload.to_vec())
        .collect();
    assert_eq!(out, theirs);
}
