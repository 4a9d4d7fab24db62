//! What clients claim of sessions on routes without an agent. Anybody whose certificate is good
//! may, about themselves; the log says whose word it is.

use std::fmt::Display;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use postern_proto::audit::event::{Claim, Event, Fact, Source};
use postern_proto::audit::layout::ENTRY_LIMIT;
use postern_proto::audit::ocsf;
use postern_proto::audit::tree::leaf_hash;
use postern_proto::names::{AgentId, SessionId};
use postern_proto::recording::RecordingName;
use serde::Deserialize;

use super::Api;
use super::caller::Caller;
use super::error::ApiError;
use crate::evidence::{ClaimError, NotTaken, PieceError, Taken};

/// Where the entry stands in the client's log.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    log: AgentId,
    entry: u64,
}

/// Where a piece begins.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offset {
    offset: u64,
}

/// `POST /v1/claims?log=NAME&entry=N`: the entry, as it stands in the client's log. Answers once
/// it is durable in the agent's.
pub(super) async fn claim(
    State(api): State<Api>,
    caller: Caller,
    at: Result<Query<At>, QueryRejection>,
    leaf: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (at, leaf) = (asked(at)?, whole(leaf)?);
    let event = wrapped(&caller, &at, &leaf)?;
    let taken = api.core.evidence.claim(event).await.map_err(refused)?;
    Ok(Json(serde_json::json!({
        "next": at.entry.saturating_add(1),
        "before": taken == Taken::Before,
    }))
    .into_response())
}

/// `GET /v1/claims/recordings/NAME`: what is there of it.
pub(super) async fn handed(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name = recording_name(&name)?;
    let owner = caller.who.principal().key();
    let has = api.core.evidence.handed(&owner, name).await;
    Ok(Json(has.map_err(no_piece)?).into_response())
}

/// `POST /v1/claims/recordings/NAME?offset=N`: the next piece of it.
pub(super) async fn hand_over(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    at: Result<Query<Offset>, QueryRejection>,
    piece: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let (at, piece) = (asked(at)?, whole(piece)?);
    let name = recording_name(&name)?;
    let owner = caller.who.principal().key();
    let evidence = &api.core.evidence;
    let has = evidence.hand_over(&owner, name, at.offset, piece).await;
    Ok(Json(has.map_err(no_piece)?).into_response())
}

fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, ApiError> {
    let Query(asked) = query.map_err(|error| ApiError::bad(error.body_text(), None))?;
    Ok(asked)
}

fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|error| ApiError::too_long(&error.body_text()))
}

fn recording_name(text: &str) -> Result<RecordingName, ApiError> {
    text.parse()
        .map_err(|_| ApiError::not_found("that is no name of a recording"))
}

/// The client's entry as the agent's event: principal, source and time are what the agent saw.
fn wrapped(caller: &Caller, at: &At, leaf: &[u8]) -> Result<Event, ApiError> {
    let bad = |why: &str| ApiError::bad(format!("that is no claim: {why}"), None);
    if leaf.len() > ENTRY_LIMIT {
        return Err(ApiError::too_long("an entry has at most 65,535 bytes"));
    }
    let decoded = ocsf::decode(leaf, &[]).map_err(|error| bad(&error.to_string()))?;
    if (decoded.sequence, decoded.origin.as_str()) != (at.entry, at.log.as_str()) {
        return Err(bad("the entry names another log or place"));
    }
    if decoded.source != Source::Client {
        return Err(bad("the entry is not a client's"));
    }
    let claimed = decoded.event;
    let session = claimed.session.ok_or_else(|| bad("it is of no session"))?;
    if !session.is_of_client() {
        return Err(refused(ClaimError::OfAgent(session).into()));
    }
    if !Claim::is_claimable(&claimed.fact) {
        return Err(bad("a client cannot claim that"));
    }
    if !names_its_own(&claimed.fact, session) {
        return Err(bad("it names recordings of another session"));
    }
    let about = claimed.actor.as_ref().map(|actor| &actor.principal);
    if about != Some(caller.who.principal()) {
        return Err(ApiError::denied(
            "a claim is about whoever makes it, and this one is about somebody else".to_owned(),
            None,
        ));
    }
    let fact = Fact::Claimed(Claim {
        log: at.log.clone(),
        entry: at.entry,
        leaf_hash: hex::encode(leaf_hash(leaf).0),
        time_ms: claimed.time_ms,
        fact: Box::new(claimed.fact),
        sealed: ocsf::sealed_of(leaf),
    });
    Ok(Event {
        session: Some(session),
        target: claimed.target,
        ..caller.event(fact)
    })
}

fn names_its_own(fact: &Fact, session: SessionId) -> bool {
    let opened = match fact {
        Fact::ChannelOpened { recording, .. } => recording.as_ref(),
        _ => None,
    };
    let stated = fact.recordings().iter().map(|digest| &digest.name);
    stated.chain(opened).all(|name| {
        let name = name.parse::<RecordingName>();
        name.is_ok_and(|name| name.session == session)
    })
}

fn refused(error: NotTaken) -> ApiError {
    match error {
        NotTaken::Evidence(error) => error.into(),
        NotTaken::Claim(error) => match error {
            ClaimError::OfAgent(_) | ClaimError::OfAnother(_) => {
                ApiError::denied(error.to_string(), None)
            }
            ClaimError::NotOpen(_) => ApiError::conflict(&error),
            ClaimError::Limit(_) => ApiError::limit(&error),
            ClaimError::Busy => ApiError::busy(),
            ClaimError::TooLong => ApiError::too_long(&error.to_string()),
        },
    }
}

fn no_piece(error: PieceError) -> ApiError {
    match error {
        PieceError::Unknown => ApiError::denied(error.to_string(), None),
        PieceError::Busy => ApiError::busy(),
        PieceError::Offset(_) | PieceError::Other => ApiError::conflict(&error as &dyn Display),
        PieceError::Evidence(crate::evidence::EvidenceError::Quota(_)) => ApiError::limit(&error),
        PieceError::Evidence(error) => error.into(),
        PieceError::Io(error) => ApiError::internal(&error),
    }
}
