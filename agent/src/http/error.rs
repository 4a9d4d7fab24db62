//! What goes wrong, as `{"error", "hint"}`.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::evidence::EvidenceError;

#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: Body,
}

#[derive(Debug, Serialize)]
struct Body {
    error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>, hint: Option<String>) -> Self {
        Self {
            status,
            body: Body {
                error: error.into(),
                hint,
            },
        }
    }

    pub(super) fn unverified(error: String, hint: String) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error, Some(hint))
    }

    pub(super) fn denied(error: String, hint: Option<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, error, hint)
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error, None)
    }

    pub(super) fn bad(error: impl Into<String>, hint: Option<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, hint)
    }

    pub(super) fn conflict(error: &dyn std::fmt::Display) -> Self {
        Self::new(StatusCode::CONFLICT, error.to_string(), None)
    }

    pub(super) fn limit(error: &dyn std::fmt::Display) -> Self {
        let hint = Some("try again later".to_owned());
        Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string(), hint)
    }

    pub(super) fn too_long(error: &str) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, error, None)
    }

    pub(super) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this path does not take that method",
            None,
        )
    }

    pub(super) fn busy() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent did not answer in time",
            Some("try again in a moment".to_owned()),
        )
    }

    /// Our fault; the detail is for the log.
    pub(super) fn internal(detail: &dyn std::fmt::Display) -> Self {
        tracing::error!(%detail, "an HTTP request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the agent failed; its log tells why",
            None,
        )
    }
}

/// Without evidence nothing is read either.
impl From<EvidenceError> for ApiError {
    fn from(error: EvidenceError) -> Self {
        tracing::error!(%error, "reading could not be logged");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent cannot write evidence, so nothing is read",
            Some("tell the operator of the agent".to_owned()),
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
