//! Reading the log and recordings. What is read is logged first.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::Mutex;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use postern_proto::audit::layout::StorePath;
use postern_proto::audit::verify::read_file;
use postern_proto::recording::RecordingName;
use serde::Serialize;
use tokio::time::Instant;

use super::Api;
use super::caller::Caller;
use super::error::ApiError;
use crate::policy::Action;

/// A log is read in many small files: one event covers what one principal reads in this time, or
/// reading the log would be what fills it.
const ONE_EVENT: Duration = Duration::from_secs(60);
/// Bytes of a recording in memory at a time.
const CHUNK: usize = 64 * 1024;

/// Who was last logged as reading what.
#[derive(Debug, Default)]
pub(super) struct Reads(Mutex<HashMap<(String, &'static str), Instant>>);

impl Reads {
    /// Whether this read needs an event of its own.
    fn is_new(&self, principal: String, what: &'static str, now: Instant) -> bool {
        let mut reads = self.0.lock().unwrap_or_else(|e| e.into_inner());
        reads.retain(|_, since| now.saturating_duration_since(*since) < ONE_EVENT);
        if reads.contains_key(&(principal.clone(), what)) {
            return false;
        }
        reads.insert((principal, what), now);
        true
    }

    /// The event could not be written: the next read tries again.
    fn forget(&self, principal: String, what: &'static str) {
        let mut reads = self.0.lock().unwrap_or_else(|e| e.into_inner());
        reads.remove(&(principal, what));
    }
}

/// A recording as it is listed.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    session: String,
    /// Bytes at this moment.
    length: u64,
}

/// `GET /v1/log/{path}`
pub(super) async fn log(
    State(api): State<Api>,
    caller: Caller,
    Path(path): Path<String>,
) -> Result<Response, ApiError> {
    let parsed = path.parse::<StorePath>();
    let (what, path) = match parsed {
        Ok(path @ StorePath::Entries { .. }) => ("event", path),
        Ok(path @ (StorePath::Checkpoint | StorePath::Tile { .. })) => ("tile", path),
        Ok(StorePath::Recording(_)) | Err(_) => {
            return Err(ApiError::not_found("the log has no such file"));
        }
    };
    if let Err(no) = caller.may(&api, Action::AuditList) {
        caller
            .log_read(&api, what, &path.to_string(), false)
            .await?;
        return Err(no);
    }
    let key = caller.who.principal().key();
    if api.reads.is_new(key.clone(), what, Instant::now())
        && let Err(error) = caller.log_read(&api, what, &path.to_string(), true).await
    {
        api.reads.forget(key, what);
        return Err(error);
    }
    let store = api.core.evidence.reader();
    // Tiles and bundles are bounded: 256 entries of at most 64 KiB.
    let bytes = blocking(move || read_file(&store, path)).await?;
    let bytes = bytes.ok_or_else(|| ApiError::not_found("the log has no such file"))?;
    let kind = match path {
        StorePath::Checkpoint => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    Ok(([(CONTENT_TYPE, kind)], bytes).into_response())
}

/// `GET /v1/recordings`
pub(super) async fn recordings(
    State(api): State<Api>,
    caller: Caller,
) -> Result<Response, ApiError> {
    if let Err(no) = caller.may(&api, Action::AuditList) {
        caller.log_read(&api, "list", "recordings", false).await?;
        return Err(no);
    }
    caller.log_read(&api, "list", "recordings", true).await?;
    let store = api.core.evidence.reader();
    let listed = blocking(move || {
        let mut listed = Vec::new();
        for name in store.recordings()? {
            // Retention may delete one meanwhile.
            if let Some(file) = store.file(StorePath::Recording(name))? {
                listed.push(Listed {
                    name: name.to_string(),
                    session: name.session.to_string(),
                    length: file.metadata()?.len(),
                });
            }
        }
        Ok(listed)
    })
    .await?;
    Ok(Json(serde_json::json!({ "recordings": listed })).into_response())
}

/// `GET /v1/recordings/{name}`
pub(super) async fn recording(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let name: RecordingName = name
        .parse()
        .map_err(|_| ApiError::not_found("that is no name of a recording"))?;
    let subject = name.to_string();
    if let Err(no) = caller.may(&api, Action::AuditPlay) {
        caller.log_read(&api, "recording", &subject, false).await?;
        return Err(no);
    }
    let store = api.core.evidence.reader();
    let opened = blocking(move || {
        let Some(file) = store.file(StorePath::Recording(name))? else {
            return Ok(None);
        };
        let length = file.metadata()?.len();
        Ok(Some((file, length)))
    })
    .await?;
    let (file, length) = opened.ok_or_else(|| ApiError::not_found("there is no such recording"))?;
    caller.log_read(&api, "recording", &subject, true).await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(chunks(file, length))).into_response())
}

/// The first `length` bytes of a file that may grow, piece by piece as the reader takes them.
fn chunks(
    file: File,
    length: u64,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = vec![0; most];
            let length = file.read(&mut chunk)?;
            chunk.truncate(length);
            Ok::<_, std::io::Error>((file, chunk))
        });
        let (file, chunk) = read.await.map_err(std::io::Error::other)??;
        if chunk.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let left = left - chunk.len() as u64;
        Ok(Some((Bytes::from(chunk), (file, left))))
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(ApiError::internal(&error)),
        Err(error) => Err(ApiError::internal(&error)),
    }
}
