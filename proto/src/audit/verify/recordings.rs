//! Recordings against what the log states of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};

use aws_lc_rs::digest::{Context, SHA256};

use super::log::Facts;
use super::report::{Fault, Report, SessionState};
use super::{StoreReader, Trust};
use crate::audit::event::RecordingDigest;
use crate::audit::layout::StorePath;
use crate::recording::open::header_name;
use crate::recording::{Ending, OpenError, Opened, RecordingName};

pub(super) fn check(
    store: &dyn StoreReader,
    trust: &Trust<'_>,
    facts: &Facts,
    report: &mut Report,
) -> io::Result<()> {
    let present: BTreeSet<RecordingName> = store.recordings()?.into_iter().collect();
    for (name, digests) in &facts.digests {
        if facts.deleted.contains(name) {
            report.deleted.push(*name);
            continue;
        }
        let before = report.faults.len();
        let last = stated(*name, digests, report);
        if !present.contains(name) && facts.claims.is_stated(&name.to_string()) {
            report.claims.elsewhere += 1;
            continue;
        }
        if !present.contains(name) {
            report.faults.push(Fault::RecordingMissing {
                name: *name,
                entry: last.0,
            });
            continue;
        }
        let open = facts.is_open(name.session);
        file(store, *name, digests, open, report)?;
        if report.faults.len() == before {
            content(store, trust, *name, last.1, open, report)?;
        }
        if report.faults.len() == before {
            report.recordings += 1;
            if !last.1.complete && !open {
                report.interrupted.push(*name);
            }
        }
    }
    unstated(facts, &present, report);
    Ok(())
}

/// Digests may only grow, and end. Answers with the last one.
fn stated<'a>(
    name: RecordingName,
    digests: &'a [(u64, RecordingDigest)],
    report: &mut Report,
) -> (u64, &'a RecordingDigest) {
    for pair in digests.windows(2) {
        if let [(_, before), (entry, after)] = pair {
            let shrinks = after.length < before.length;
            let goes_on =
                before.complete && (after.length, &after.sha256) != (before.length, &before.sha256);
            if shrinks || goes_on {
                let entry = *entry;
                report.faults.push(Fault::RecordingDigests { name, entry });
            }
        }
    }
    static NONE: RecordingDigest = RecordingDigest {
        name: String::new(),
        length: 0,
        sha256: String::new(),
        complete: false,
    };
    digests
        .last()
        .map_or((0, &NONE), |(entry, digest)| (*entry, digest))
}

/// Hashes the file and compares at every length that the log states.
fn file(
    store: &dyn StoreReader,
    name: RecordingName,
    digests: &[(u64, RecordingDigest)],
    open: bool,
    report: &mut Report,
) -> io::Result<()> {
    let mut points: BTreeMap<u64, Vec<(u64, &str)>> = BTreeMap::new();
    for (entry, digest) in digests {
        let point = points.entry(digest.length).or_default();
        point.push((*entry, digest.sha256.as_str()));
    }
    let Some(mut input) = store.open(StorePath::Recording(name))? else {
        return Ok(());
    };
    let mut hash = Context::new(&SHA256);
    let mut length = 0u64;
    let mut good = 0u64;
    let mut buffer = vec![0; 256 * 1024];
    for (point, stated) in &points {
        while length < *point {
            let room = usize::try_from(*point - length).unwrap_or(usize::MAX);
            let room = room.min(buffer.len());
            let part = buffer.get_mut(..room).unwrap_or_default();
            let read = input.read(part)?;
            if read == 0 {
                break;
            }
            hash.update(part.get(..read).unwrap_or_default());
            length += read as u64;
        }
        let Some((entry, _)) = stated.first() else {
            continue;
        };
        if length < *point {
            let logged = digests.iter().map(|(_, digest)| digest.length).max();
            report
                .faults
                .push(cut(store, name, length, logged.unwrap_or(*point), *entry)?);
            return Ok(());
        }
        let found = hex::encode(hash.clone().finish());
        if stated.iter().any(|(_, sha256)| **sha256 != *found) {
            let fault = match holds(store, name)? {
                Some(holds) => Fault::RecordingSwapped { name, holds },
                None => Fault::RecordingAltered {
                    name,
                    from: good,
                    to: *point,
                    entry: *entry,
                },
            };
            report.faults.push(fault);
            return Ok(());
        }
        good = *point;
    }
    // A live recording goes on; one whose session ended does not.
    let Some((entry, last)) = digests.last() else {
        return Ok(());
    };
    let more = io::copy(&mut input, &mut io::sink())?;
    if more > 0 && (last.complete || !open) {
        let fault = match holds(store, name)? {
            Some(holds) => Fault::RecordingSwapped { name, holds },
            None => Fault::RecordingExtended {
                name,
                length: length + more,
                logged: length,
                entry: *entry,
            },
        };
        report.faults.push(fault);
    }
    Ok(())
}

fn cut(
    store: &dyn StoreReader,
    name: RecordingName,
    length: u64,
    logged: u64,
    entry: u64,
) -> io::Result<Fault> {
    Ok(match holds(store, name)? {
        Some(holds) => Fault::RecordingSwapped { name, holds },
        None => Fault::RecordingCut {
            name,
            length,
            logged,
            entry,
        },
    })
}

/// The other recording that a file holds, by its header.
fn holds(store: &dyn StoreReader, name: RecordingName) -> io::Result<Option<RecordingName>> {
    let Some(mut input) = store.open(StorePath::Recording(name))? else {
        return Ok(None);
    };
    match header_name(&mut input) {
        Ok(holds) if holds != name => Ok(Some(holds)),
        Ok(_) | Err(OpenError::Header | OpenError::Identity | OpenError::Key) => Ok(None),
        Err(OpenError::Io(error)) => Err(error),
    }
}

/// With an identity: every record opens, and the end is what the log says.
fn content(
    store: &dyn StoreReader,
    trust: &Trust<'_>,
    name: RecordingName,
    last: &RecordingDigest,
    open: bool,
    report: &mut Report,
) -> io::Result<()> {
    if trust.identities.is_empty() {
        return Ok(());
    }
    let Some(input) = store.open(StorePath::Recording(name))? else {
        return Ok(());
    };
    let mut fault = |why: String| report.faults.push(Fault::RecordingContent { name, why });
    let mut opened = match Opened::new(io::BufReader::new(input), trust.identities) {
        Ok(opened) => opened,
        // It was made for other auditors, or interrupted before its header was whole.
        Err(OpenError::Identity) => return Ok(()),
        Err(OpenError::Header) if !last.complete => return Ok(()),
        Err(OpenError::Io(error)) => return Err(error),
        Err(error) => {
            fault(error.to_string());
            return Ok(());
        }
    };
    loop {
        match opened.next_record() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                fault(error.to_string());
                return Ok(());
            }
        }
    }
    if last.complete && !open && opened.ending() != Some(Ending::Complete) {
        fault("the log says that it is complete, its final record is missing".to_owned());
    }
    Ok(())
}

/// What one side alone knows.
fn unstated(facts: &Facts, present: &BTreeSet<RecordingName>, report: &mut Report) {
    for name in present {
        let known = facts.digests.contains_key(name) || facts.deleted.contains(name);
        if !known && !facts.is_open(name.session) {
            report.faults.push(Fault::RecordingUnlogged { name: *name });
        }
    }
    for (name, (entry, session)) in &facts.named {
        let parsed = name.parse::<RecordingName>().ok();
        let stated = parsed
            .is_some_and(|name| facts.digests.contains_key(&name) || facts.deleted.contains(&name));
        let state = session.and_then(|session| facts.sessions.get(&session));
        let ended = !matches!(state, Some((_, SessionState::Open)));
        if !stated && ended {
            report.faults.push(Fault::RecordingWithoutDigest {
                name: name.clone(),
                entry: *entry,
            });
        }
    }
}
