//! Small HTTP requests to an agent over mutual TLS: JSON in, JSON or bytes out, all bounded.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::task::AbortHandle;

use crate::error::{Error as UserError, Kind};
use crate::gateway::Gateway;
use crate::transport::TransportError;

/// For one request with its answer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The longest JSON answer.
const JSON_LIMIT: usize = 16 * 1024 * 1024;

/// Why a request has no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// There is no connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection broke, or the answer is longer than allowed.
    #[error("the request {path} to agent `{agent}` failed: {reason}")]
    Broken {
        /// The agent's id.
        agent: String,
        /// What was asked for.
        path: String,
        /// What happened.
        reason: String,
    },
    /// The agent says no.
    #[error("{message}")]
    Refused {
        /// The status.
        status: u16,
        /// The agent's sentence, or a made one.
        message: String,
        /// The agent's hint.
        hint: Option<String>,
    },
}

/// What an agent says with a status other than 200.
#[derive(Debug, Default, serde::Deserialize)]
struct Refusal {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// One connection that carries requests one after the other.
pub struct Client {
    agent: String,
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Client {
    /// Connects to the gateway's agent.
    pub async fn connect(gateway: &Gateway) -> Result<Self, HttpError> {
        let agent = gateway.agent().id.to_string();
        let connection = gateway.http().await?;
        let (sender, driver) = handshake(TokioIo::new(connection))
            .await
            .map_err(|error| broken(&agent, "(connection)", &error))?;
        // Ends with the connection, at the latest when this client is dropped.
        let driver = tokio::spawn(driver).abort_handle();
        Ok(Self {
            agent,
            sender,
            driver,
        })
    }

    /// GET, as bytes of at most `limit`.
    pub async fn get(&mut self, path: &str, limit: usize) -> Result<Bytes, HttpError> {
        self.request(Method::GET, path, Bytes::new(), limit).await
    }

    /// GET, as JSON.
    pub async fn get_json<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, HttpError> {
        let body = self.get(path, JSON_LIMIT).await?;
        self.parse(path, &body)
    }

    /// POST of JSON, answered by JSON.
    pub async fn post_json<T: DeserializeOwned>(
        &mut self,
        path: &str,
        question: &impl Serialize,
    ) -> Result<T, HttpError> {
        let question =
            serde_json::to_vec(question).map_err(|error| broken(&self.agent, path, &error))?;
        let body = self
            .request(Method::POST, path, question.into(), JSON_LIMIT)
            .await?;
        self.parse(path, &body)
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, HttpError> {
        serde_json::from_slice(body).map_err(|error| broken(&self.agent, path, &error))
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Bytes, HttpError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.agent.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(&self.agent, path, &error))?;
        let exchange = async {
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
                status,
                collect(response, limit).await?,
            ))
        };
        let (status, body) = tokio::time::timeout(DEADLINE, exchange)
            .await
            .map_err(|_| broken(&self.agent, path, &"no answer in time"))?
            .map_err(|error| broken(&self.agent, path, &error))?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        let refusal: Refusal = serde_json::from_slice(&body).unwrap_or_default();
        let message = refusal.message.or(refusal.error);
        Err(HttpError::Refused {
            status: status.as_u16(),
            message: message
                .unwrap_or_else(|| format!("agent `{}` answered {path} with {status}", self.agent)),
            hint: refusal.hint,
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn collect(
    response: Response<Incoming>,
    limit: usize,
) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Limited::new(response.into_body(), limit)
        .collect()
        .await?
        .to_bytes())
}

fn broken(agent: &str, path: &str, reason: &dyn std::fmt::Display) -> HttpError {
    HttpError::Broken {
        agent: agent.to_owned(),
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

impl From<HttpError> for UserError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Transport(error) => error.into(),
            HttpError::Broken { .. } => Self::unreachable(error.to_string())
                .hint("try again; if it stays, compare the versions of `postern` and the agent"),
            HttpError::Refused {
                status,
                message,
                hint,
            } => {
                let kind = if matches!(status, 401 | 403) {
                    Kind::Denied
                } else {
                    Kind::Failed
                };
                Self {
                    kind,
                    message,
                    hint,
                }
            }
        }
    }
}
