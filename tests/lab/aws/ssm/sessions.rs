//! Sessions: start, resume, end, list. What runs them is in [`crate::ssm`].

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Answer, documents, is_online, page, text, validation};
use crate::aws::caller::Identity;
use crate::aws::dispatch::Call;
use crate::aws::ec2::instance_facts;
use crate::aws::error::ApiError;
use crate::aws::reply::Output;
use crate::ssm::{BadParameter, Gateway, NotStarted, Request, Status, Summary};

const START: &str = "ssm:StartSession";
const DEFAULT_DOCUMENT: &str = "SSM-SessionManagerRunShell";

pub(super) fn start(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    let target = text(body, "Target")?
        .filter(|target| (1..=400).contains(&target.len()))
        .ok_or_else(|| validation("Target must have 1 to 400 characters"))?;
    let reason = text(body, "Reason")?.unwrap_or_default();
    if reason.len() > 256 {
        return Err(validation("Reason must have 1 to 256 characters"));
    }
    let parameters = parameters(body)?;
    let named = documents::name(body, "DocumentName")?;
    authorise_start(call, target, named)?;
    let document = documents::find(call, named.unwrap_or(DEFAULT_DOCUMENT))?;
    let plan = document.plan(&parameters).map_err(|error| {
        let code = match error {
            BadParameter::Document => "InvalidDocument",
            _ => "InvalidParameters",
        };
        ApiError::new(400, code, error.to_string())
    })?;
    let is_connected = call
        .fleet
        .instance(call.region, target)
        .is_some_and(|instance| {
            let node = instance.seed.ssm.as_ref();
            node.is_some_and(|node| is_online(instance, node))
        });
    if !is_connected {
        let message = format!("{target} is not connected.");
        return Err(ApiError::new(400, "TargetNotConnected", message));
    }
    let started = call.sessions.start(Request {
        caller_name: caller_name(call),
        owner: call.caller.arn(),
        owner_id: call.caller.user_id(),
        target: target.to_owned(),
        region: call.region.to_owned(),
        reason: reason.to_owned(),
        plan,
    });
    match started {
        Ok((id, token)) => Ok(opened(call, &id, Some(token))),
        Err(NotStarted::Limit(limit)) => Err(ApiError::new(
            400,
            "SessionLimitExceededException",
            format!("The limit of {limit} sessions is reached. End some sessions."),
        )),
        Err(NotStarted::Busy) => Err(ApiError::new(400, "ThrottlingException", "Rate exceeded")),
    }
}

/// The instance and the document, each a resource of the call. The default document counts only
/// for policies that ask for the check (`ssm:SessionDocumentAccessCheck`), a named one always.
fn authorise_start(call: &Call<'_>, target: &str, named: Option<&str>) -> Result<(), ApiError> {
    let instance = call.fleet.instance(call.region, target);
    let arn = format!(
        "arn:aws:ec2:{}:{}:instance/{target}",
        call.region, call.account.id
    );
    let facts = |checked: &str| {
        let mut facts = instance.map(instance_facts).unwrap_or_default();
        let key = "ssm:SessionDocumentAccessCheck".to_owned();
        facts.push((key, checked.to_owned()));
        facts
    };
    let checked = facts("true");
    if named.is_none() && call.authorise_with(START, &arn, &facts("false")).is_ok() {
        return Ok(());
    }
    let document = documents::arn(call, named.unwrap_or(DEFAULT_DOCUMENT));
    call.authorise_with(START, &arn, &checked)?;
    // The document has no tags of the instance.
    let checked = checked.get(checked.len() - 1..).unwrap_or_default();
    call.authorise_with(START, &document, checked)
}

fn parameters(body: &Map<String, Value>) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
    let malformed = || validation("Parameters is not a map of lists of texts");
    let Some(given) = body.get("Parameters").filter(|given| !given.is_null()) else {
        return Ok(BTreeMap::new());
    };
    given
        .as_object()
        .ok_or_else(malformed)?
        .iter()
        .map(|(name, values)| {
            let values = values.as_array().ok_or_else(malformed)?.iter();
            let texts = values.map(|value| value.as_str().map(str::to_owned));
            let texts = texts.collect::<Option<_>>().ok_or_else(malformed)?;
            Ok((name.clone(), texts))
        })
        .collect()
}

/// The first part of a session's id.
fn caller_name(call: &Call<'_>) -> String {
    match &call.caller.identity {
        Identity::Root => "root".to_owned(),
        Identity::User { name, .. } => name.clone(),
        Identity::Role { session_name, .. } => session_name.clone(),
    }
}

fn opened(call: &Call<'_>, id: &str, token: Option<String>) -> Output {
    let mut answer = json!({
        "SessionId": id,
        "StreamUrl": Gateway::stream_url(call.gateway, id),
    });
    if let Some(token) = token {
        answer["TokenValue"] = token.into();
    }
    Output::Json(answer)
}

/// A session of the caller's to act on: its id, allowed.
fn own_session<'a>(
    call: &Call<'_>,
    action: &str,
    body: &'a Map<String, Value>,
) -> Result<&'a str, ApiError> {
    let id = text(body, "SessionId")?
        .filter(|id| (1..=96).contains(&id.len()))
        .ok_or_else(|| validation("SessionId must have 1 to 96 characters"))?;
    let arn = format!(
        "arn:aws:ssm:{}:{}:session/{id}",
        call.region, call.account.id
    );
    let mut facts = Vec::new();
    if let Some(session) = call.sessions.session(id) {
        let tag = |name: &str| format!("ssm:resourceTag/aws:ssmmessages:{name}");
        facts.push((tag("session-id"), session.owner_id));
        facts.push((tag("target-id"), session.target));
    }
    call.authorise_with(action, &arn, &facts)?;
    Ok(id)
}

fn unknown_session(id: &str) -> ApiError {
    let message = format!("Session {id} does not exist.");
    ApiError::new(400, "DoesNotExistException", message)
}

/// A session that is over is known, but has no token any more: so clients learn it.
pub(super) fn resume(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    let id = own_session(call, "ssm:ResumeSession", body)?;
    if call.sessions.session(id).is_none() {
        return Err(unknown_session(id));
    }
    Ok(opened(call, id, call.sessions.resume(id)))
}

pub(super) fn terminate(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    let id = own_session(call, "ssm:TerminateSession", body)?;
    let session = call.sessions.session(id);
    let session = session.ok_or_else(|| unknown_session(id))?;
    let output = match session.owner == call.caller.arn() {
        true => String::new(),
        false => format!("Session terminated by {}", call.caller.arn()),
    };
    call.sessions.terminate(id, &output);
    Ok(Output::Json(json!({"SessionId": id})))
}

pub(super) fn describe(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    call.authorise("ssm:DescribeSessions", "*")?;
    let is_active = match text(body, "State")? {
        Some("Active") => true,
        Some("History") => false,
        _ => return Err(validation("State must be Active or History")),
    };
    let filters = filters(body)?;
    let (from, size) = page(body, 1..=200, 200)?;
    let mut found = Vec::new();
    // The latest first, as AWS lists them.
    for session in call.sessions.list().iter().rev() {
        if session.ended.is_none() == is_active
            && session.region == call.region
            && fits(session, &filters)?
        {
            found.push(described(session));
        }
    }
    let next = from.saturating_add(size);
    let more = next < found.len();
    let items: Vec<Value> = found.into_iter().skip(from).take(size).collect();
    let mut answer = json!({"Sessions": items});
    if more {
        answer["NextToken"] = json!(format!("page-{next}"));
    }
    Ok(Output::Json(answer))
}

fn described(session: &Summary) -> Value {
    let seconds = |at: OffsetDateTime| at.unix_timestamp_nanos() as f64 / 1e9;
    let mut answer = json!({
        "SessionId": session.id,
        "Target": session.target,
        "Status": session.status.name(),
        "StartDate": seconds(session.started),
        "DocumentName": session.document,
        "Owner": session.owner,
        "AccessType": "Standard",
        "OutputUrl": {},
    });
    if let Some(ended) = session.ended {
        answer["EndDate"] = json!(seconds(ended));
    }
    for (name, value) in [("Reason", &session.reason), ("Details", &session.details)] {
        if !value.is_empty() {
            answer[name] = json!(value);
        }
    }
    answer
}

fn filters(body: &Map<String, Value>) -> Result<Vec<(&str, &str)>, ApiError> {
    let malformed = || validation("Filters is not a list of keys and values");
    let Some(given) = body.get("Filters").filter(|given| !given.is_null()) else {
        return Ok(Vec::new());
    };
    let given = given.as_array().ok_or_else(malformed)?.iter();
    given
        .map(|filter| {
            let part = |name: &str| filter.get(name).and_then(Value::as_str);
            part("key").zip(part("value")).ok_or_else(malformed)
        })
        .collect()
}

fn fits(session: &Summary, filters: &[(&str, &str)]) -> Result<bool, ApiError> {
    for (key, value) in filters {
        let at = || {
            OffsetDateTime::parse(value, &Rfc3339)
                .map_err(|_| validation(format!("{value} is not a time")))
        };
        let fits = match *key {
            "InvokedAfter" => session.started > at()?,
            "InvokedBefore" => session.started < at()?,
            "Target" => session.target == *value,
            "Owner" => session.owner == *value,
            "SessionId" => session.id == *value,
            "AccessType" => *value == "Standard",
            "Status" => status(session.status) == *value || session.status.name() == *value,
            _ => return Err(ApiError::new(400, "InvalidFilterKey", "")),
        };
        if !fits {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The coarser states that the filter knows besides.
fn status(status: Status) -> &'static str {
    match status {
        Status::Terminated | Status::Failed => "Terminated",
        other => other.name(),
    }
}
