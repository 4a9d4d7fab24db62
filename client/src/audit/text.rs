//! An event as a person reads it: one line. Callers neutralise it, since texts in it come from
//! outside.

use postern_proto::audit::event::{Channel, Event, Fact, RecordingDigest, SsmSession};
use serde::Serialize;
use time::OffsetDateTime;
use time::macros::format_description;

use super::log::{kind, who};

/// `2026-11-21 19:48:03.120` in UTC.
pub fn moment(unix_ms: i64) -> String {
    let format =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| unix_ms.to_string())
}

/// `1h02m03s`, `4.2s`.
pub fn duration(ms: i64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{:.1}s", ms as f64 / 1000.0),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!(
            "{}h{:02}m{:02}s",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

/// The name that a value has on the wire.
pub(crate) fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "?".to_owned(),
    }
}

/// What happened, with who and where.
pub fn event(event: &Event) -> String {
    let mut line = fact(&event.fact);
    if let Some(target) = &event.target {
        line.push_str(&format!("; target {}", target.name));
        if let Some(address) = &target.address {
            line.push_str(&format!(" at {address}"));
        }
    }
    let actor = who(event);
    if !actor.is_empty() {
        line.push_str(&format!("; by {actor}"));
    }
    if let Some(actor) = &event.actor {
        line.push_str(&format!(" ({})", actor.assurance));
    }
    if let Some(source) = &event.source {
        line.push_str(&format!(" from {source}"));
    }
    line
}

fn fact(fact: &Fact) -> String {
    match fact {
        Fact::AgentStarted {
            version,
            interrupted,
            ..
        } if interrupted.is_empty() => format!("agent {version} started"),
        Fact::AgentStarted {
            version,
            interrupted,
            ..
        } => {
            format!(
                "agent {version} started; {} sessions had been interrupted",
                interrupted.len()
            )
        }
        Fact::AgentStopped => "agent stopped".to_owned(),
        Fact::Enrolled { .. } => "certificate issued".to_owned(),
        Fact::EnrollmentRefused { code, reason } => format!("enrolment refused ({code}): {reason}"),
        Fact::StepUpApproved { .. } => "fresh MFA code accepted for one session".to_owned(),
        Fact::SessionGranted {
            access,
            policies,
            step_up,
            ..
        } => {
            let fresh = if *step_up {
                " with a fresh MFA code"
            } else {
                ""
            };
            format!(
                "session granted: {}{fresh}, by policy {}",
                kind(access),
                policies.join(", ")
            )
        }
        Fact::SessionDenied {
            access,
            code,
            reason,
            ..
        } => {
            format!(
                "session denied ({}): {}: {reason}",
                wire_name(code),
                kind(access)
            )
        }
        Fact::SessionClosed {
            reason,
            message,
            exit_status,
            up,
            down,
            duration_ms,
            recordings,
        } => {
            let mut line = format!(
                "session closed ({}) after {}, {up} bytes up, {down} down",
                wire_name(reason),
                duration(*duration_ms)
            );
            if let Some(status) = exit_status {
                line.push_str(&format!(", exit status {status}"));
            }
            if let Some(message) = message {
                line.push_str(&format!(": {message}"));
            }
            line.push_str(&digests(recordings));
            line
        }
        Fact::SessionInterrupted { recordings } => {
            format!(
                "session interrupted: its writer died{}",
                digests(recordings)
            )
        }
        Fact::PipeDetached { pipe, reason } => format!("pipe {pipe} lost its connection: {reason}"),
        Fact::PipeResumed { pipe, attempt } => {
            format!("pipe {pipe} resumed on a new connection, attempt {attempt}")
        }
        Fact::ChannelOpened {
            channel,
            refused: Some(reason),
            ..
        } => {
            format!("{} refused: {reason}", self::channel(channel))
        }
        Fact::ChannelOpened {
            channel, recording, ..
        } => match recording {
            Some(recording) => {
                format!("{} opened, recorded as {recording}", self::channel(channel))
            }
            None => format!("{} opened", self::channel(channel)),
        },
        Fact::RecordingProgressed { recording } => format!(
            "recording {} has {} bytes",
            recording.name, recording.length
        ),
        Fact::FileOperation(operation) => {
            let mut line = format!("file {} {}", operation.operation, operation.path);
            if let Some(to) = &operation.to {
                line.push_str(&format!(" -> {to}"));
            }
            line.push_str(&format!(" ({} bytes)", operation.size));
            if let Some(hash) = &operation.sha256 {
                line.push_str(&format!(" sha256 {hash}"));
            }
            if let Some(error) = &operation.error {
                line.push_str(&format!(" failed: {error}"));
            }
            line
        }
        Fact::HostKeyPinned { fingerprint } => format!("host key pinned: {fingerprint}"),
        Fact::HostKeyChanged { pinned, seen } => {
            format!("host key changed: pinned {pinned}, seen {seen}")
        }
        Fact::PolicyLoaded { policies, .. } => format!("policy loaded: {}", policies.join(", ")),
        Fact::PolicyBroken { reason } => format!("policy broken, the old one stays: {reason}"),
        Fact::AttestationChecked { fault: None } => {
            "attestation role checked: enrolment is open".to_owned()
        }
        Fact::AttestationChecked { fault: Some(fault) } => {
            format!("attestation role is at fault, enrolment is closed: {fault}")
        }
        Fact::AuditRead {
            what,
            subject,
            allowed: true,
        } => format!("{what} read: {subject}"),
        Fact::AuditRead {
            what,
            subject,
            allowed: false,
        } => format!("reading {what} denied: {subject}"),
        Fact::RecordingsDeleted { recordings, reason } => {
            format!("{} recordings deleted: {reason}", recordings.len())
        }
        Fact::ClientLogStarted {
            version, previous, ..
        } => match previous {
            None => format!("log of client {version} started"),
            Some(previous) => format!(
                "log of client {version} started, in place of {}",
                previous.vkey.split('+').next().unwrap_or_default()
            ),
        },
        Fact::RecipientsChanged { recipients } => {
            format!("recordings are for {} from here on", recipients.join(", "))
        }
        Fact::SessionClaimed { access, ssm } => format!(
            "session opened through SSM: {}, {}",
            kind(access),
            ssm_session(ssm)
        ),
        Fact::SsmSessionOpened { ssm } => format!("carried further by {}", ssm_session(ssm)),
        Fact::Claimed(claim) => {
            // Nesting is for nobody: a claim of a claim is never taken.
            let inside = match &*claim.fact {
                Fact::Claimed(_) => "a claim".to_owned(),
                inside => self::fact(inside),
            };
            format!(
                "a client claims: {inside} (entry {} of {})",
                claim.entry, claim.log
            )
        }
        Fact::LogKeyChanged { vkey, .. } => format!("log key changed to {vkey}"),
        Fact::Unauthenticated { count, kinds } => {
            format!(
                "{count} failures before authentication: {}",
                kinds.join(", ")
            )
        }
    }
}

fn ssm_session(ssm: &SsmSession) -> String {
    let mut line = format!(
        "SSM session {} of {} in {}",
        ssm.id, ssm.document, ssm.region
    );
    if let Some(reason) = &ssm.reason {
        line.push_str(&format!(", reason: {reason}"));
    }
    line
}

fn channel(channel: &Channel) -> String {
    match channel {
        Channel::Shell { terminal: true } => "shell".to_owned(),
        Channel::Shell { terminal: false } => "shell without a terminal".to_owned(),
        Channel::Command { line, .. } => format!("command `{line}`"),
        Channel::Subsystem { name } => format!("subsystem {name}"),
        Channel::Direct { host, port } => format!("connection to {host}:{port}"),
        Channel::Reverse { host, port } => format!("listener on {host}:{port}"),
        Channel::AgentForward => "SSH agent forwarding".to_owned(),
    }
}

fn digests(recordings: &[RecordingDigest]) -> String {
    recordings
        .iter()
        .map(|digest| {
            let state = if digest.complete {
                ""
            } else {
                ", not complete"
            };
            format!(
                "; recording {} of {} bytes, sha256 {}{state}",
                digest.name, digest.length, digest.sha256
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        assert_eq!(moment(1_700_000_000_123), "2023-11-14 22:13:20.123");
        assert_eq!(
            (duration(4200).as_str(), duration(62_000).as_str()),
            ("4.2s", "1m02s")
        );
        assert_eq!(duration(3_723_000), "1h02m03s");
    }
}
