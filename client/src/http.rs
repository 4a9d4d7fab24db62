//! Small HTTP requests to an agent over mutual TLS: JSON in, JSON or bytes out, all bounded.

use std::sync::Arc;
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
use tokio_util::task::AbortOnDropHandle;

use crate::error::{Error as UserError, Kind};
use crate::gateway::{Gateway, GatewayError};

/// For one request with its answer; for the next piece of a long one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// The longest JSON answer.
const JSON_LIMIT: usize = 16 * 1024 * 1024;

/// Why a request has no answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// There is no connection.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
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
    error: Option<String>,
    #[serde(default)]
    hint: Option<String>,
}

/// One connection that carries requests one after the other. A refused certificate is renewed
/// once.
pub struct Client {
    gateway: Arc<Gateway>,
    agent: String,
    sender: SendRequest<Full<Bytes>>,
    driver: AbortOnDropHandle<Result<(), hyper::Error>>,
    renewed: bool,
}

impl Client {
    /// Connects to the gateway's agent.
    pub async fn connect(gateway: Arc<Gateway>) -> Result<Self, HttpError> {
        let agent = gateway.agent().id.to_string();
        let (sender, driver) = open(&gateway).await?;
        Ok(Self {
            gateway,
            agent,
            sender,
            driver,
            renewed: false,
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

    /// POST of bytes, answered by JSON.
    pub async fn post_bytes<T: DeserializeOwned>(
        &mut self,
        path: &str,
        body: Bytes,
    ) -> Result<T, HttpError> {
        let body = self.request(Method::POST, path, body, JSON_LIMIT).await?;
        self.parse(path, &body)
    }

    /// DELETE; the answer says no more than yes.
    pub async fn delete(&mut self, path: &str) -> Result<(), HttpError> {
        let answer = self.request(Method::DELETE, path, Bytes::new(), JSON_LIMIT);
        answer.await.map(drop)
    }

    /// GET, with the body as it arrives: of any length. The connection serves nothing else.
    pub async fn stream(mut self, path: &str) -> Result<Answer, HttpError> {
        let mut response = self.send(Method::GET, path, Bytes::new()).await?;
        if response.status() == StatusCode::UNAUTHORIZED && !self.renewed {
            self.renew().await?;
            response = self.send(Method::GET, path, Bytes::new()).await?;
        }
        if response.status() == StatusCode::OK {
            return Ok(Answer {
                body: response.into_body(),
                _connection: self.driver,
            });
        }
        let status = response.status();
        let body = collect(response, JSON_LIMIT).await.unwrap_or_default();
        Err(self.refused(status, path, &body))
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
        match self
            .attempt(method.clone(), path, body.clone(), limit)
            .await
        {
            Err(HttpError::Refused { status: 401, .. }) if !self.renewed => {}
            // With TLS 1.3 a refused certificate ends the connection at its first use.
            Err(HttpError::Broken { .. }) if !self.renewed && self.driver.is_finished() => {}
            answer => return answer,
        }
        self.renew().await?;
        self.attempt(method, path, body, limit).await
    }

    async fn renew(&mut self) -> Result<(), HttpError> {
        self.renewed = true;
        self.gateway.renew_current().await?;
        (self.sender, self.driver) = open(&self.gateway).await?;
        Ok(())
    }

    async fn attempt(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: usize,
    ) -> Result<Bytes, HttpError> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = tokio::time::timeout(DEADLINE, collect(response, limit))
            .await
            .map_err(|_| broken(&self.agent, path, &"no answer in time"))?
            .map_err(|error| broken(&self.agent, path, &error))?;
        if status == StatusCode::OK {
            return Ok(body);
        }
        Err(self.refused(status, path, &body))
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, HttpError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.agent.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| broken(&self.agent, path, &error))?;
        let answered = async {
            // The one before may have been read to its end a moment ago.
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        tokio::time::timeout(DEADLINE, answered)
            .await
            .map_err(|_| broken(&self.agent, path, &"no answer in time"))?
            .map_err(|error| broken(&self.agent, path, &error))
    }

    fn refused(&self, status: StatusCode, path: &str, body: &[u8]) -> HttpError {
        let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
        let made = || format!("agent `{}` answered {path} with {status}", self.agent);
        HttpError::Refused {
            status: status.as_u16(),
            message: refusal.error.unwrap_or_else(made),
            hint: refusal.hint,
        }
    }
}

/// A body that is being received.
pub struct Answer {
    pub(crate) body: Incoming,
    _connection: AbortOnDropHandle<Result<(), hyper::Error>>,
}

type Opened = (
    SendRequest<Full<Bytes>>,
    AbortOnDropHandle<Result<(), hyper::Error>>,
);

async fn open(gateway: &Gateway) -> Result<Opened, HttpError> {
    let connection = gateway.http().await?;
    let (sender, driver) = handshake(TokioIo::new(connection))
        .await
        .map_err(|error| broken(gateway.agent().id.as_str(), "(connection)", &error))?;
    Ok((sender, AbortOnDropHandle::new(tokio::spawn(driver))))
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

/// Text as one segment or value of a URL.
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
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
            HttpError::Gateway(error) => error.into(),
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

#[cfg(test)]
mod tests;
