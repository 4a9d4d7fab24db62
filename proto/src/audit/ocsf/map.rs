//! Which OCSF class, activity and objects an event becomes. One way: nothing is read from these.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::Place;
use crate::audit::event::{
    Access, Channel, Event, Fact, FileOperation, RecordingDigest, Source, SsmSession,
};
use crate::names::Assurance;

// Classes: schema.ocsf.io/classes.
const FILE_SYSTEM: u32 = 1001;
const AUTHENTICATION: u32 = 3002;
const RDP: u32 = 4005;
const SSH: u32 = 4007;
const TUNNEL: u32 = 4014;
const API: u32 = 6003;
const OTHER: u32 = 99;
const RDP_PORT: u16 = 3389;

/// Class, activity, and whether it was a success.
struct Kind(u32, u32, bool);

/// The object without `metadata` and `unmapped`.
pub(super) fn object(event: &Event, place: Place<'_>) -> Map<String, Value> {
    let Kind(class, activity, success) = kind(&event.fact, place.access);
    let severity = severity(&event.fact);
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| {
        object.insert(name.to_owned(), value);
    };
    put("class_uid", class.into());
    put("category_uid", (class / 1000).into());
    put("activity_id", activity.into());
    put("type_uid", (class * 100 + activity).into());
    put("severity_id", severity.into());
    put("status_id", if success { 1 } else { 2 }.into());
    put("time", event.time_ms.into());
    put("actor", actor(event, place));
    put("src_endpoint", source(event, place));
    put("dst_endpoint", target(event));
    put("session", session(event));
    match class {
        API => put("api", json!({ "operation": operation(&event.fact) })),
        AUTHENTICATION => {
            put("user", user(event));
            put("is_mfa", is_mfa(event).into());
            put(
                "service",
                json!({ "name": "postern-agent", "uid": place.origin }),
            );
        }
        FILE_SYSTEM => put(
            "device",
            json!({ "type_id": 1, "hostname": event.target.as_ref().map(|target| target.name.as_str()) }),
        ),
        _ => {}
    }
    for (name, value) in details(&event.fact) {
        put(name, value);
    }
    object
}

fn kind(fact: &Fact, access: Option<&Access>) -> Kind {
    let class = |access: Option<&Access>| match access {
        Some(Access::Tunnel { port: RDP_PORT, .. }) => RDP,
        Some(Access::Tunnel { .. }) => TUNNEL,
        // The nearest class to a shell without SSH.
        Some(Access::Ssh { .. } | Access::Shell) | None => SSH,
    };
    // SSH: 1 open, 2 close, 3 reset, 5 refuse, 7 listen. Tunnel: 1 open, 2 close. RDP: 1 initial
    // request, 6 traffic, 7 disconnect.
    let opened = |access: &Access, granted: bool| match (class(Some(access)), granted) {
        (SSH, false) => Kind(SSH, 5, false),
        (class, granted) => Kind(class, 1, granted),
    };
    let ended = |ssh: u32, success: bool| match class(access) {
        SSH => Kind(SSH, ssh, success),
        RDP => Kind(RDP, 7, success),
        class => Kind(class, 2, success),
    };
    match fact {
        Fact::SessionGranted { access, .. } | Fact::SessionClaimed { access, .. } => {
            opened(access, true)
        }
        Fact::Claimed(claim) => kind(&claim.fact, access),
        Fact::SsmSessionOpened { .. } => Kind(class(access), OTHER, true),
        Fact::SessionDenied { access, .. } => opened(access, false),
        Fact::SessionClosed { .. } => ended(2, true),
        Fact::SessionInterrupted { .. } => ended(3, false),
        Fact::PipeDetached { .. } => Kind(class(access), OTHER, false),
        Fact::PipeResumed { .. } => Kind(class(access), OTHER, true),
        Fact::ChannelOpened {
            refused: Some(_), ..
        } => Kind(SSH, 5, false),
        Fact::ChannelOpened {
            channel: Channel::Reverse { .. },
            ..
        } => Kind(SSH, 7, true),
        Fact::ChannelOpened { .. } => Kind(SSH, 1, true),
        Fact::Enrolled { .. } | Fact::StepUpApproved { .. } => Kind(AUTHENTICATION, 1, true),
        Fact::EnrollmentRefused { .. } | Fact::Unauthenticated { .. } => {
            Kind(AUTHENTICATION, 1, false)
        }
        Fact::FileOperation(operation) => Kind(
            FILE_SYSTEM,
            file_activity(operation),
            operation.error.is_none(),
        ),
        // API: 1 create, 2 read, 3 update, 4 delete.
        Fact::AuditRead { allowed, .. } => Kind(API, 2, *allowed),
        Fact::HostKeyPinned { .. } => Kind(API, 1, true),
        Fact::RecordingProgressed { .. } | Fact::LogKeyChanged { .. } => Kind(API, 3, true),
        Fact::PolicyLoaded { .. } => Kind(API, 3, true),
        Fact::PolicyBroken { .. } => Kind(API, 3, false),
        Fact::RecordingsDeleted { .. } => Kind(API, 4, true),
        Fact::HostKeyChanged { .. } => Kind(API, OTHER, false),
        Fact::AttestationChecked { fault } => Kind(API, OTHER, fault.is_none()),
        Fact::AgentStarted { .. } | Fact::AgentStopped | Fact::ClientLogStarted { .. } => {
            Kind(API, OTHER, true)
        }
        Fact::RecipientsChanged { .. } => Kind(API, 3, true),
    }
}

/// 1 informational, 2 low, 3 medium, 4 high.
fn severity(fact: &Fact) -> u32 {
    match fact {
        Fact::Claimed(claim) => severity(&claim.fact),
        Fact::HostKeyChanged { .. } | Fact::AttestationChecked { fault: Some(_) } => 4,
        Fact::EnrollmentRefused { .. }
        | Fact::SessionInterrupted { .. }
        | Fact::PolicyBroken { .. }
        | Fact::LogKeyChanged { .. }
        | Fact::RecipientsChanged { .. }
        | Fact::RecordingsDeleted { .. } => 3,
        Fact::SessionDenied { .. }
        | Fact::Unauthenticated { .. }
        | Fact::AuditRead { allowed: false, .. }
        | Fact::ChannelOpened {
            refused: Some(_), ..
        } => 2,
        _ => 1,
    }
}

/// File System Activity: 1 create, 2 read, 3 update, 4 delete, 5 rename, 6 set attributes.
fn file_activity(operation: &FileOperation) -> u32 {
    match operation.operation.as_str() {
        "mkdir" | "symlink" => 1,
        "read" | "list" => 2,
        "write" => 3,
        "remove" | "rmdir" => 4,
        "rename" => 5,
        "setstat" => 6,
        _ => OTHER,
    }
}

fn user(event: &Event) -> Value {
    event.actor.as_ref().map_or(Value::Null, |actor| {
        json!({
            "uid": actor.principal.user_id,
            "name": actor.principal.arn,
            "account": {"uid": actor.principal.account, "type_id": 10},
            "credential_uid": actor.certificate,
        })
    })
}

fn is_mfa(event: &Event) -> bool {
    event
        .actor
        .as_ref()
        .is_some_and(|actor| actor.assurance > Assurance::None)
}

fn actor(event: &Event, place: Place<'_>) -> Value {
    if event.actor.is_none() {
        let program = match place.source {
            Source::Agent => "postern-agent",
            Source::Client => "postern",
        };
        return json!({ "app_name": program });
    }
    json!({ "user": user(event), "session": session(event) })
}

fn session(event: &Event) -> Value {
    event.session.map_or(
        Value::Null,
        |session| json!({ "uid": session, "is_mfa": is_mfa(event), "is_remote": true }),
    )
}

fn source(event: &Event, place: Place<'_>) -> Value {
    match &event.source {
        Some(source) => endpoint(source),
        None => json!({ "uid": place.origin }),
    }
}

fn target(event: &Event) -> Value {
    let Some(target) = &event.target else {
        return Value::Null;
    };
    let mut value = target
        .address
        .as_deref()
        .map_or_else(|| json!({}), endpoint);
    if let Some(members) = value.as_object_mut() {
        members.insert("uid".to_owned(), target.id.as_str().into());
        members.insert("name".to_owned(), target.name.as_str().into());
    }
    value
}

fn endpoint(text: &str) -> Value {
    match text.parse::<SocketAddr>() {
        Ok(address) => json!({ "ip": address.ip().to_string(), "port": address.port() }),
        Err(_) => json!({ "hostname": text }),
    }
}

/// Names the fact for classes that carry no more of it.
fn operation(fact: &Fact) -> Value {
    if let Fact::Claimed(claim) = fact {
        return operation(&claim.fact);
    }
    serde_json::to_value(fact)
        .ok()
        .and_then(|fact| fact.get("type").cloned())
        .unwrap_or(Value::Null)
}

fn details(fact: &Fact) -> Vec<(&'static str, Value)> {
    match fact {
        Fact::Claimed(claim) => details(&claim.fact),
        Fact::SessionClaimed { ssm, .. } | Fact::SsmSessionOpened { ssm } => {
            vec![("observables", ssm_session(ssm))]
        }
        Fact::SessionGranted { policies, .. } => vec![("policies", policy_list(policies))],
        Fact::SessionDenied {
            policies, reason, ..
        } => vec![
            ("policies", policy_list(policies)),
            ("status_detail", reason.as_str().into()),
        ],
        Fact::ChannelOpened {
            refused: Some(reason),
            ..
        } => vec![("status_detail", reason.as_str().into())],
        Fact::SessionClosed {
            reason,
            exit_status,
            up,
            down,
            duration_ms,
            recordings,
            ..
        } => vec![
            (
                "status_detail",
                serde_json::to_value(reason).unwrap_or_default(),
            ),
            (
                "status_code",
                exit_status.map(|code| code.to_string()).into(),
            ),
            ("duration", (*duration_ms).into()),
            (
                "cumulative_traffic",
                json!({ "bytes_in": up, "bytes_out": down, "bytes": up.saturating_add(*down) }),
            ),
            ("observables", observables(recordings)),
        ],
        Fact::SessionInterrupted { recordings } => vec![
            ("status_detail", "interrupted".into()),
            ("observables", observables(recordings)),
        ],
        Fact::PipeDetached { reason, .. } => vec![("status_detail", reason.as_str().into())],
        Fact::RecordingProgressed { recording } => {
            vec![("observables", observables(std::slice::from_ref(recording)))]
        }
        Fact::FileOperation(operation) => vec![("file", file(operation))],
        Fact::Unauthenticated { count, kinds } => vec![
            ("count", (*count).into()),
            ("status_detail", kinds.join(", ").into()),
        ],
        Fact::EnrollmentRefused { code, reason } => vec![
            ("status_code", code.as_str().into()),
            ("status_detail", reason.as_str().into()),
        ],
        Fact::PolicyBroken { reason } => vec![("status_detail", reason.as_str().into())],
        Fact::AttestationChecked { fault: Some(fault) } => {
            vec![("status_detail", fault.as_str().into())]
        }
        _ => Vec::new(),
    }
}

fn policy_list(policies: &[String]) -> Value {
    policies.iter().map(|id| json!({ "uid": id })).collect()
}

/// Type 99 is other: the id that AWS knows the SSM session by.
fn ssm_session(ssm: &SsmSession) -> Value {
    json!([{ "name": "ssm.session_id", "type_id": OTHER, "value": ssm.id }])
}

/// Type 8 is a hash.
fn observables(recordings: &[RecordingDigest]) -> Value {
    recordings
        .iter()
        .take(16)
        .map(|digest| json!({ "name": digest.name, "type_id": 8, "value": digest.sha256 }))
        .collect()
}

/// The name is sealed; type 1 is a regular file, 2 a folder; algorithm 3 is SHA-256.
fn file(operation: &FileOperation) -> Value {
    let folder = matches!(operation.operation.as_str(), "mkdir" | "rmdir" | "list");
    let mut file = json!({
        "name": super::SEALED,
        "type_id": if folder { 2 } else { 1 },
        "size": operation.size,
    });
    if let (Some(sha256), Some(members)) = (&operation.sha256, file.as_object_mut()) {
        members.insert(
            "hashes".to_owned(),
            json!([{ "algorithm_id": 3, "value": sha256 }]),
        );
    }
    file
}
