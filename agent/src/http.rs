//! Administration and audit reading: HTTP/1.1 over mutual TLS (ALPN `http/1.1`).
//!
//! | request | policy | answer |
//! |---|---|---|
//! | `GET /v1/whoami` | | who the agent takes the caller for |
//! | `GET /v1/targets?filter=…` | | targets, and what policy lets the caller do there |
//! | `POST /v1/why` | | a decision with its reasons, without opening anything |
//! | `GET /v1/log/PATH` | `audit_list` | the log's static files: `checkpoint`, `tile/…` |
//! | `GET /v1/recordings` | `audit_list` | names and lengths |
//! | `GET /v1/recordings/NAME` | `audit_play` | one recording, encrypted as it is stored |
//! | `GET /v1/sessions` | `session_list`, else the caller's own | live sessions |
//! | `DELETE /v1/sessions/ID` | `session_kill`, or the caller's own | ends one |
//! | `POST /v1/claims?log=…&entry=…` | | takes an entry of the client's own log |
//! | `GET`, `POST /v1/claims/recordings/NAME` | the claim's owner | takes its recording, in pieces |
//!
//! Every request checks the certificate again ([`caller::Caller`]). Reading is an event, durable
//! before the answer. Errors are `{"error", "hint"}`.

mod audit;
mod caller;
mod claims;
mod error;
mod sessions;
mod targets;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::assemble::Core;
use crate::session::Peer;
use audit::Reads;
use error::ApiError;

/// The longest request body.
const BODY: usize = 64 * 1024;
/// Header bytes that a connection may buffer.
const HEADERS: usize = 16 * 1024;
/// How long a request's header may take, and how long a connection may be idle between two.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// How long an answer may take to begin.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// Serves HTTP. Clones share everything.
#[derive(Clone)]
pub(crate) struct Api {
    core: Arc<Core>,
    reads: Arc<Reads>,
}

impl Api {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            reads: Arc::default(),
        }
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve<S>(&self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let source = peer.source;
        let service = TowerToHyperService::new(self.router(peer));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_buf_size(HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.core.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%source, %error, "http");
        }
    }

    fn router(&self, peer: Peer) -> Router {
        Router::new()
            .route("/v1/whoami", get(targets::whoami))
            .route("/v1/targets", get(targets::list))
            .route("/v1/why", post(targets::why))
            .route("/v1/log/{*path}", get(audit::log))
            .route("/v1/recordings", get(audit::recordings))
            .route("/v1/recordings/{name}", get(audit::recording))
            .route("/v1/sessions", get(sessions::list))
            .route("/v1/sessions/{id}", delete(sessions::kill))
            .route("/v1/claims", post(claims::claim))
            .route(
                "/v1/claims/recordings/{name}",
                get(claims::handed).post(claims::hand_over),
            )
            .fallback(async || ApiError::not_found("there is nothing at this path"))
            .method_not_allowed_fallback(async || ApiError::method())
            .layer(middleware::from_fn(in_time))
            .layer(DefaultBodyLimit::max(BODY))
            .layer(Extension(Arc::new(peer)))
            .with_state(self.clone())
    }
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => axum::response::IntoResponse::into_response(ApiError::busy()),
    }
}
