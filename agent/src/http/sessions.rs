//! Live sessions: seen and ended.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use postern_proto::gateway::message::CloseReason;
use postern_proto::names::SessionId;

use super::Api;
use super::caller::Caller;
use super::error::ApiError;
use crate::policy::Action;
use crate::session::{Ending, Session};

/// `GET /v1/sessions`: all that policy lets the caller see, at least the caller's own.
pub(super) async fn list(State(api): State<Api>, caller: Caller) -> Result<Response, ApiError> {
    let all = caller.may(&api, Action::SessionList).is_ok();
    let what = if all { "sessions" } else { "own sessions" };
    caller.log_read(&api, "list", what, true).await?;
    let sessions: Vec<_> = api
        .core
        .sessions
        .all()
        .iter()
        .filter(|session| all || is_own(&caller, session))
        .map(|session| session.summary())
        .collect();
    let scope = if all { "all" } else { "own" };
    Ok(Json(serde_json::json!({ "scope": scope, "sessions": sessions })).into_response())
}

/// `DELETE /v1/sessions/{id}`: answers once the order to end is given. The closing event names
/// who gave it.
pub(super) async fn kill(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: SessionId = id
        .parse()
        .map_err(|_| ApiError::bad("that is no session id", None))?;
    // Ids are random: that one is unknown tells nobody anything.
    let session = api.core.sessions.get(id);
    let session = session.ok_or_else(|| ApiError::not_found("there is no such session now"))?;
    let own = is_own(&caller, &session);
    if !own && let Err(no) = caller.may(&api, Action::SessionKill) {
        caller
            .log_read(&api, "kill", &id.to_string(), false)
            .await?;
        return Err(no);
    }
    // The end is an event of its own: SessionClosed names the reason.
    let by = &caller.who.principal().arn;
    tracing::info!(session = %id, %by, "ordered to end");
    let ending = match own {
        true => Ending {
            reason: CloseReason::Client,
            message: None,
        },
        false => Ending {
            reason: CloseReason::Killed,
            message: Some(format!("ended by {by}")),
        },
    };
    api.core.sessions.end_one(&session, ending).await;
    Ok(Json(serde_json::json!({ "ending": id })).into_response())
}

fn is_own(caller: &Caller, session: &Session) -> bool {
    session.grant().request().who.principal() == caller.who.principal()
}
