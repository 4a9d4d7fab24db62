//! An event as one leaf of the log, and back.
//!
//! A leaf is one OCSF object (schema.ocsf.io, 1.x), which any SIEM takes, with the event in our
//! own words under `unmapped.event`, from which it is read back. What may hold secrets (command
//! lines, file names) stands in neither: it is encrypted to the auditors in `unmapped.sealed`, an
//! age file as base64, so that a leaf can be shipped and proven without showing it.

mod map;

use age::x25519::Identity;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::event::{Access, Channel, Event, Fact, Source};
use super::layout::ENTRY_LIMIT;
use super::sealed::{self, UnsealError};
use crate::names::AgentId;

/// What stands in the place of a sealed text.
pub const SEALED: &str = "(sealed)";
/// Version of the schema that the mapping follows.
const SCHEMA: &str = "1.8.0";
/// Texts are cut to this many bytes first when a leaf is too long, then to less.
const FIRST_CUT: usize = 8 * 1024;
/// No text that has a form (names, hashes, addresses) is longer than this.
const LAST_CUT: usize = 256;

/// Where a leaf will stand.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The log.
    pub origin: &'a AgentId,
    /// The index of the leaf.
    pub sequence: u64,
    /// Version of the program that writes it.
    pub version: &'a str,
    /// What the event's session carries, where the event itself does not say.
    pub access: Option<&'a Access>,
    /// Whose log it is.
    pub source: Source,
}

/// Why an event did not become a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The caller could not seal what must not stand in the clear.
    #[error("sealing failed: {0}")]
    Seal(String),
    /// It is longer than [`ENTRY_LIMIT`] even with every text cut.
    #[error("the event does not fit into {ENTRY_LIMIT} bytes")]
    TooLong,
    /// It could not be written as JSON.
    #[error("the event cannot be written as JSON")]
    Json,
}

/// Why a leaf could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Not a JSON object.
    #[error("not a JSON object")]
    Json,
    /// JSON, but not an event that this version knows.
    #[error("not an event that this version knows")]
    Unknown,
}

/// A leaf that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The event; sealed texts read [`SEALED`] unless they were opened.
    pub event: Event,
    /// The index that the leaf states.
    pub sequence: u64,
    /// The log that it states.
    pub origin: String,
    /// Whether texts were cut to make it fit.
    pub truncated: bool,
    /// What became of its sealed texts.
    pub seal: Seal,
    /// Whose word it is.
    pub source: Source,
}

/// What became of sealed texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// There were none.
    None,
    /// They were opened.
    Opened,
    /// No identity at hand opens them.
    Closed,
    /// They are not what was sealed.
    Damaged,
}

/// Encrypts to the auditors: plaintext in, age file out. It draws randomness, so it is the
/// caller's.
pub type SealFn<'a> = dyn FnMut(&[u8]) -> Result<Vec<u8>, String> + 'a;

/// Makes the leaf. Longer texts than fit are cut, which `metadata.is_truncated` says.
pub fn encode(
    event: &Event,
    place: Place<'_>,
    seal: &mut SealFn<'_>,
) -> Result<Vec<u8>, EncodeError> {
    let whole = build(event, place, None, seal)?;
    if whole.len() <= ENTRY_LIMIT {
        return Ok(whole);
    }
    let mut limit = FIRST_CUT;
    while limit >= LAST_CUT {
        let shorter = build(event, place, Some((limit, whole.len())), seal)?;
        if shorter.len() <= ENTRY_LIMIT {
            return Ok(shorter);
        }
        limit /= 2;
    }
    Err(EncodeError::TooLong)
}

fn build(
    event: &Event,
    place: Place<'_>,
    cut: Option<(usize, usize)>,
    seal: &mut SealFn<'_>,
) -> Result<Vec<u8>, EncodeError> {
    let mut ours = serde_json::to_value(event).map_err(|_| EncodeError::Json)?;
    if let Some((limit, _)) = cut {
        shorten(&mut ours, limit);
    }
    // The mapping is made from the shortened event without its secrets: nothing can leak there.
    let mut secrets = Map::new();
    for pointer in sealed_texts(&event.fact) {
        if let Some(text) = ours.pointer_mut(pointer).filter(|text| text.is_string()) {
            secrets.insert((*pointer).to_owned(), text.take());
            *text = SEALED.into();
        }
    }
    let bare: Event = serde_json::from_value(ours.clone()).map_err(|_| EncodeError::Json)?;
    let mut leaf = map::object(&bare, place);
    let mut metadata = json!({
        "version": SCHEMA,
        "product": {"name": "Postern", "vendor_name": "Postern", "version": place.version},
        "uid": format!("{}/{}", place.origin, place.sequence),
        "sequence": place.sequence,
        "log_name": place.origin,
        "event_code": ours.pointer("/fact/type"),
        "correlation_uid": event.session,
    });
    if let (Some((_, size)), Some(metadata)) = (cut, metadata.as_object_mut()) {
        metadata.insert("is_truncated".to_owned(), true.into());
        metadata.insert("untruncated_size".to_owned(), size.into());
    }
    let mut unmapped = json!({ "event": ours });
    if let (Source::Client, Some(unmapped)) = (source(event, place), unmapped.as_object_mut()) {
        unmapped.insert("source".to_owned(), "client".into());
    }
    if !secrets.is_empty() {
        let plain = serde_json::to_vec(&secrets).map_err(|_| EncodeError::Json)?;
        let file = seal(&plain).map_err(EncodeError::Seal)?;
        if let Some(unmapped) = unmapped.as_object_mut() {
            unmapped.insert("sealed".to_owned(), STANDARD.encode(file).into());
        }
    }
    leaf.insert("metadata".to_owned(), metadata);
    leaf.insert("unmapped".to_owned(), unmapped);
    leaf.retain(|_, value| !value.is_null());
    serde_json::to_vec(&leaf).map_err(|_| EncodeError::Json)
}

/// Whose word an event is, at its place.
fn source(event: &Event, place: Place<'_>) -> Source {
    event.source_in_agents_log().max(place.source)
}

/// The sealed texts of a leaf, as they stand in it.
pub fn sealed_of(leaf: &[u8]) -> Option<String> {
    let leaf: Value = serde_json::from_slice(leaf).ok()?;
    let file = leaf.pointer("/unmapped/sealed")?.as_str()?;
    Some(file.to_owned())
}

/// Reads a leaf back; with identities its sealed texts too.
pub fn decode(leaf: &[u8], identities: &[Identity]) -> Result<Decoded, DecodeError> {
    let mut leaf: Value = serde_json::from_slice(leaf).map_err(|_| DecodeError::Json)?;
    if !leaf.is_object() {
        return Err(DecodeError::Json);
    }
    let mut ours = leaf
        .pointer_mut("/unmapped/event")
        .map(Value::take)
        .ok_or(DecodeError::Unknown)?;
    let blank: Event = serde_json::from_value(ours.clone()).map_err(|_| DecodeError::Unknown)?;
    // A claim brings the client's own sealed texts along, and they belong to the fact inside.
    let (file, fact, inside) = match &blank.fact {
        Fact::Claimed(claim) => (claim.sealed.as_deref(), claim.fact.as_ref(), "/fact"),
        fact => {
            let file = leaf.pointer("/unmapped/sealed").and_then(Value::as_str);
            (file, fact, "")
        }
    };
    let seal = match file {
        None => Seal::None,
        Some(file) => unseal(file, &mut ours, fact, inside, identities),
    };
    let event: Event = serde_json::from_value(ours).unwrap_or(blank);
    let source = match leaf.pointer("/unmapped/source").and_then(Value::as_str) {
        Some("client") => Source::Client,
        _ => event.source_in_agents_log(),
    };
    let metadata = |name: &str| leaf.pointer(&format!("/metadata/{name}"));
    Ok(Decoded {
        event,
        sequence: metadata("sequence")
            .and_then(Value::as_u64)
            .ok_or(DecodeError::Unknown)?,
        origin: metadata("log_name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        truncated: metadata("is_truncated")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        seal,
        source,
    })
}

/// `fact` stands in `ours` below the pointer `inside`.
fn unseal(
    file: &str,
    ours: &mut Value,
    fact: &Fact,
    inside: &str,
    identities: &[Identity],
) -> Seal {
    let opened = STANDARD
        .decode(file)
        .map_err(|_| UnsealError::Damaged)
        .and_then(|file| sealed::open(&file, identities));
    let plain = match opened {
        Ok(plain) => plain,
        Err(UnsealError::Identity) => return Seal::Closed,
        Err(UnsealError::Damaged) => return Seal::Damaged,
    };
    let Ok(Value::Object(mut secrets)) = serde_json::from_slice(&plain) else {
        return Seal::Damaged;
    };
    for pointer in sealed_texts(fact) {
        let place = format!("{inside}{pointer}");
        if let (Some(secret), Some(text)) = (secrets.remove(*pointer), ours.pointer_mut(&place)) {
            *text = secret;
        }
    }
    Seal::Opened
}

/// The texts of an event that may hold secrets, as JSON pointers.
fn sealed_texts(fact: &Fact) -> &'static [&'static str] {
    match fact {
        Fact::ChannelOpened {
            channel: Channel::Command { .. },
            ..
        } => &["/fact/channel/line"],
        // A server's error text tends to repeat the file's name.
        Fact::FileOperation(_) => &["/fact/path", "/fact/to", "/fact/error"],
        _ => &[],
    }
}

/// Cuts texts to `limit` bytes and lists to a sixteenth of that many members.
fn shorten(value: &mut Value, limit: usize) {
    match value {
        Value::String(text) if text.len() > limit => {
            let mut end = limit;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
        Value::Array(list) => {
            list.truncate(limit / 16);
            list.iter_mut().for_each(|member| shorten(member, limit));
        }
        Value::Object(members) => {
            members
                .values_mut()
                .for_each(|member| shorten(member, limit));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
