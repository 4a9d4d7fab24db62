//! The event log: what CloudTrail would have written, in memory, for tests to read.

use std::collections::VecDeque;
use std::net::IpAddr;

use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::caller::{Caller, Identity};
use super::error::ApiError;
use super::ids;
use super::service::Service;

/// Events kept; older ones are dropped.
const CAPACITY: usize = 10_000;

/// Parameters that CloudTrail never shows, or that say nothing.
const HIDDEN: &[&str] = &[
    "Action",
    "Version",
    "TokenCode",
    "AuthenticationCode1",
    "AuthenticationCode2",
];

#[derive(Default)]
pub(crate) struct Trail(VecDeque<Value>);

/// One call, decided.
pub(crate) struct Record<'a> {
    pub(crate) service: Service,
    pub(crate) action: &'a str,
    pub(crate) region: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) source: IpAddr,
    pub(crate) user_agent: &'a str,
    pub(crate) parameters: Map<String, Value>,
    /// `None` if the signature led to nobody.
    pub(crate) caller: Option<&'a Caller>,
    /// AWS saw MFA: in the session, or as a code in this very call.
    pub(crate) mfa: bool,
    pub(crate) error: Option<&'a ApiError>,
}

impl Trail {
    pub(crate) fn record(&mut self, record: &Record<'_>, now: OffsetDateTime) {
        let mut event = json!({
            "eventVersion": "1.11",
            "userIdentity": identity(record),
            "eventTime": timestamp(now),
            "eventSource": format!("{}.amazonaws.com", record.service.name()),
            "eventName": record.action,
            "awsRegion": record.region,
            "sourceIPAddress": record.source.to_string(),
            "userAgent": record.user_agent,
            "requestParameters": record.parameters,
            "requestID": record.request_id,
            "eventID": ids::request_id(),
            "eventType": "AwsApiCall",
            "managementEvent": true,
        });
        if let Some(caller) = record.caller {
            event["recipientAccountId"] = json!(caller.account);
        }
        if let Some(error) = record.error {
            event["errorCode"] = json!(error.code);
            event["errorMessage"] = json!(error.message);
        }
        if self.0.len() == CAPACITY {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.0.iter().cloned().collect()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

fn identity(record: &Record<'_>) -> Value {
    let Some(caller) = record.caller else {
        return json!({"type": "Unknown"});
    };
    let (kind, name) = match &caller.identity {
        Identity::Root => ("Root", None),
        Identity::User { name, .. } => ("IAMUser", Some(name)),
        Identity::Role { .. } => ("AssumedRole", None),
    };
    let mut identity = json!({
        "type": kind,
        "principalId": caller.user_id(),
        "arn": caller.arn(),
        "accountId": caller.account,
        "accessKeyId": caller.access_key_id,
        "sessionContext": {"attributes": {"mfaAuthenticated": record.mfa.to_string()}},
    });
    if let Some(name) = name {
        identity["userName"] = json!(name);
    }
    if let Some(session) = &caller.session {
        identity["sessionContext"]["attributes"]["creationDate"] = json!(timestamp(session.issued));
    }
    if let Identity::Role {
        name, unique_id, ..
    } = &caller.identity
    {
        identity["sessionContext"]["sessionIssuer"] = json!({
            "type": "Role",
            "principalId": unique_id,
            "accountId": caller.account,
            "userName": name,
        });
    }
    identity
}

/// CloudTrail writes parameter names with a small first letter, and no secrets.
pub(crate) fn shown<'a>(parameters: impl Iterator<Item = (&'a str, Value)>) -> Map<String, Value> {
    parameters
        .filter(|(name, _)| !HIDDEN.contains(name) && !name.starts_with("X-Amz-"))
        .map(|(name, value)| {
            let mut letters = name.chars();
            let first = letters.next().map(|c| c.to_ascii_lowercase());
            (first.into_iter().chain(letters).collect(), value)
        })
        .collect()
}

/// `2026-11-21T19:41:48Z`: whole seconds, as AWS writes most of its times.
pub(crate) fn timestamp(at: OffsetDateTime) -> String {
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}
