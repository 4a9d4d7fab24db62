//! Targets, and what policy lets the caller do there: `postern ls` and `postern why`.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use postern_proto::names::{LoginUser, TargetName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Api;
use super::caller::Caller;
use super::error::ApiError;
use crate::inventory::{Target, TargetLogin};
use crate::policy::{Action, Decision, Request, Verdict};
use crate::rules::NotFound;

/// Filters of one request, and characters of each.
const FILTERS: usize = 16;
const FILTER_LENGTH: usize = 256;
/// Targets looked at before other tasks of the thread get a turn: each costs several decisions.
const BATCH: usize = 16;
/// A user and a port that no policy names: what is allowed for them is allowed for any.
const ANY_USER: &str = "any.user";
const ANY_PORT: u16 = 65_535;

/// A target as `postern ls` shows it.
#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    name: String,
    tags: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vpc: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    platform: String,
    address: String,
    aliases: Vec<String>,
    ssh_port: u16,
    login: &'static str,
    allowed: Allowed,
}

/// What policy lets the caller do on a target, now or with a fresh code.
#[derive(Debug, Serialize)]
struct Allowed {
    /// Login users that policies name.
    users: Vec<String>,
    /// Whether any login user is allowed.
    any_user: bool,
    /// Ports that policies name.
    ports: Vec<u16>,
    /// Whether any port is allowed.
    any_port: bool,
}

/// A question to `why`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    target: TargetName,
    /// A name of the policy schema; `connect` when absent.
    #[serde(default)]
    action: Option<String>,
    #[serde(default)]
    user: Option<LoginUser>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    host: Option<String>,
}

/// `GET /v1/whoami`
pub(super) async fn whoami(State(api): State<Api>, caller: Caller) -> Response {
    let who = &caller.who;
    Json(serde_json::json!({
        "principal": who.principal().key(),
        "account": who.principal().account,
        "user_id": who.principal().user_id,
        "arn": who.principal().arn,
        "assurance": who.assurance(),
        "mfa_not_before": who.mfa_not_before(),
        "certificate": who.serial(),
        "certificate_not_after": who.not_after(),
        "source": caller.source.ip().to_canonical(),
        "agent_version": env!("CARGO_PKG_VERSION"),
        // For stock SSH clients: `postern ssh-config` prints it behind `@cert-authority`.
        "ssh_host_ca": api.core.doors.ssh_host_ca,
    }))
    .into_response()
}

/// `GET /v1/targets?filter=…&filter=…`: those that all filters leave, sorted by name.
pub(super) async fn list(
    State(api): State<Api>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let filters = filters(query.as_deref().unwrap_or_default())?;
    let mut listed = Vec::new();
    for (index, target) in (api.core.rules.list)(&filters).into_iter().enumerate() {
        if index % BATCH == BATCH - 1 {
            tokio::task::yield_now().await;
        }
        let allowed = allowed(&api, &caller, &target);
        listed.push(Listed::new(&target, allowed));
    }
    Ok(Json(serde_json::json!({
        "targets": listed,
        "trouble": (api.core.rules.inventory_trouble)(),
    }))
    .into_response())
}

/// `POST /v1/why`: asks policy without opening anything.
pub(super) async fn why(
    State(api): State<Api>,
    caller: Caller,
    question: Result<Json<Question>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(question) = question.map_err(|error| ApiError::bad(error.body_text(), None))?;
    let action = question.action.as_deref().unwrap_or("connect");
    let action: Action = action
        .parse()
        .map_err(|error: crate::policy::UnknownAction| ApiError::bad(error.to_string(), None))?;
    let shown: String = question.target.as_str().escape_debug().collect();
    let target = (api.core.rules.lookup)(&question.target).map_err(|fault| match fault {
        NotFound::Unknown { hint } => {
            ApiError::bad(format!("no target is called `{shown}`"), Some(hint))
        }
        NotFound::Ambiguous(candidates) => ApiError::bad(
            format!("{} targets match `{shown}`", candidates.len()),
            Some(format!("use an id: {}", candidates.join("; "))),
        ),
    })?;
    let asks_log = matches!(
        action,
        Action::AuditList
            | Action::AuditPlay
            | Action::SessionList
            | Action::SessionWatch
            | Action::SessionKill
    );
    let request = Request {
        target: (!asks_log).then_some(target),
        user: question.user,
        port: question.port,
        host: question.host,
        ..caller.request(action)
    };
    Ok(Json((api.core.rules.explain)(&request)).into_response())
}

fn allowed(api: &Api, caller: &Caller, target: &Arc<Target>) -> Allowed {
    let ask = |action, user: Option<LoginUser>, port| Request {
        target: Some(Arc::clone(target)),
        user,
        port,
        ..caller.request(action)
    };
    let any_user = ask(Action::Connect, ANY_USER.parse().ok(), None);
    let tunnel = (api.core.rules.explain)(&ask(Action::Tunnel, None, Some(ANY_PORT)));
    Allowed {
        users: (api.core.rules.login_users)(&any_user),
        any_user: !matches!((api.core.rules.decide)(&any_user), Decision::Deny(_)),
        any_port: tunnel.verdict != Verdict::Deny,
        ports: tunnel.ports,
    }
}

impl Listed {
    fn new(target: &Target, allowed: Allowed) -> Self {
        Self {
            id: target.id.to_string(),
            name: target.name.clone(),
            tags: target.tags.clone(),
            account: target.account.clone(),
            region: target.region.clone(),
            vpc: target.vpc.clone(),
            zone: target.zone.clone(),
            platform: target.platform.clone(),
            address: target.address.clone(),
            aliases: target.aliases.clone(),
            ssh_port: target.ssh_port,
            login: match target.login {
                TargetLogin::Certificate => "certificate",
                TargetLogin::InstanceConnect => "instance-connect",
            },
            allowed,
        }
    }
}

/// The values of all `filter` parameters.
fn filters(query: &str) -> Result<Vec<String>, ApiError> {
    let mut filters = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let value = pair
            .strip_prefix("filter=")
            .and_then(percent_decoded)
            .ok_or_else(|| ApiError::bad("the query takes `filter=TEXT` alone", None))?;
        if value.len() > FILTER_LENGTH || filters.len() >= FILTERS {
            return Err(ApiError::bad(
                format!("at most {FILTERS} filters of {FILTER_LENGTH} bytes"),
                None,
            ));
        }
        filters.push(value);
    }
    Ok(filters)
}

/// RFC 3986 percent-encoding, and `+` for a space as forms write it.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let mut decoded = [0];
                hex::decode_to_slice(digits, &mut decoded).ok()?;
                bytes.extend_from_slice(&decoded);
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn filters_are_decoded_and_bounded() {
        assert_eq!(
            filters("filter=tag%3Aenv%3Dprod&filter=web+1").unwrap(),
            ["tag:env=prod", "web 1"]
        );
        assert!(filters("").unwrap().is_empty());
        assert!(filters("other=1").is_err());
        assert!(filters("filter=%f").is_err());
        assert!(filters("filter=%ff").is_err(), "not UTF-8");
        assert!(filters(&"filter=x&".repeat(17)).is_err());
        assert!(filters(&format!("filter={}", "x".repeat(257))).is_err());
    }
}
