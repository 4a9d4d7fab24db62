//! The agent's own STS client (AWS-FACTS.md B.4, sending).
//!
//! It sends the two rebuilt POSTs and nothing else, to one configured endpoint: https with TLS
//! 1.3, no proxy, no redirect, no retry, no environment. What a name resolves to must be public
//! unless the endpoint was configured explicitly. Every call has one deadline; an answer has at
//! most 64 KiB.

mod endpoint;
mod response;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, USER_AGENT};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use postern_proto::enroll::{Proof, StsRequest};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use zeroize::Zeroizing;

use super::answer::{self, AnswerFault, Attested, Identity};
use crate::aws::region_suffix;
use crate::config::StsSettings;
use endpoint::{bundle, check_public, system_roots};
use response::{date_of, read};

/// The longest answer, in bytes.
const BODY_LIMIT: usize = 64 * 1024;
/// How long one call may take, connecting included.
const DEADLINE: Duration = Duration::from_secs(8);
const ANSWER_FORM: &str = "text/xml";
const AGENT: &str = concat!("postern-agent/", env!("CARGO_PKG_VERSION"));

/// One STS endpoint.
pub struct StsClient {
    host: String,
    port: u16,
    /// `host[:port]` as it is signed.
    authority: String,
    region: String,
    /// Private addresses are fine: the operator named this endpoint.
    explicit: bool,
    connector: TlsConnector,
    deadline: Duration,
}

/// Why STS gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum StsFault {
    /// STS said no, in its own form: its error code.
    #[error("STS answered {0}")]
    Refused(String),
    /// The endpoint or its CAs cannot be used.
    #[error("the STS endpoint cannot be used: {0}")]
    Endpoint(String),
    /// The name leads to an address that no public endpoint has.
    #[error("{host} resolves to {address}, which is not public")]
    Address {
        /// The name.
        host: String,
        /// The address.
        address: IpAddr,
    },
    /// Connecting, TLS or HTTP failed.
    #[error("talking to STS failed: {0}")]
    Transport(String),
    /// It took too long.
    #[error("STS did not answer in time")]
    Deadline,
    /// Not the status of an answer: a redirect, a server error.
    #[error("STS answered with HTTP status {0}")]
    Status(u16),
    /// Not the form that was asked for.
    #[error("the answer of STS is not {ANSWER_FORM}")]
    Form,
    /// More than 64 KiB.
    #[error("the answer of STS is too long")]
    TooLong,
    /// Not what STS sends.
    #[error("the answer of STS cannot be trusted: {0}")]
    Answer(String),
}

impl From<AnswerFault> for StsFault {
    fn from(fault: AnswerFault) -> Self {
        Self::Answer(fault.to_string())
    }
}

impl StsClient {
    /// A client for the configured endpoint.
    pub fn new(settings: &StsSettings) -> Result<Self, StsFault> {
        let endpoint = |text: &str| StsFault::Endpoint(text.to_owned());
        let (host, port) = match &settings.endpoint_url {
            Some(url) => {
                let uri: http::Uri = url.parse().map_err(|_| endpoint("not a URL"))?;
                if uri.scheme_str() != Some("https") {
                    return Err(endpoint("not https"));
                }
                let host = uri.host().ok_or_else(|| endpoint("no host"))?.to_owned();
                (host, uri.port_u16())
            }
            None => {
                let suffix = region_suffix(&settings.region)
                    .ok_or_else(|| endpoint("the region is unknown"))?;
                (format!("sts.{}.{suffix}", settings.region), None)
            }
        };
        let roots = match &settings.ca_bundle {
            Some(path) => bundle(path)?,
            None => system_roots()?,
        };
        let config = ClientConfig::builder_with_provider(crate::crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| StsFault::Endpoint(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            authority: match port {
                Some(port) if port != 443 => format!("{host}:{port}"),
                _ => host.clone(),
            },
            host,
            port: port.unwrap_or(443),
            region: settings.region.clone(),
            explicit: settings.endpoint_url.is_some(),
            connector: TlsConnector::from(Arc::new(config)),
            deadline: DEADLINE,
        })
    }

    /// `host[:port]`: what both requests are signed for.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The region that both requests are signed for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Sends the rebuilt GetCallerIdentity.
    pub(super) async fn identity(&self, proof: &Proof, bind: &str) -> Result<Identity, StsFault> {
        let request = StsRequest::identity(&self.authority, bind);
        let body = self
            .send(&request, proof, &proof.identity_signature)
            .await?;
        Ok(answer::identity(&body)?)
    }

    /// Sends the rebuilt AssumeRole. The credentials in its answer are wiped unread.
    pub(super) async fn attest(
        &self,
        proof: &Proof,
        bind: &str,
        role: &str,
        code: Option<(&str, &str)>,
    ) -> Result<Attested, StsFault> {
        let request = StsRequest::attest(&self.authority, bind, role, code);
        let body = self.send(&request, proof, &proof.attest_signature).await?;
        Ok(answer::attested(&body)?)
    }

    /// Seconds that this machine's clock is ahead of AWS's, from the `Date` of any answer.
    pub async fn clock_skew(&self) -> Result<i64, StsFault> {
        let request = Request::get("/")
            .header(http::header::HOST, &self.authority)
            .header(USER_AGENT, AGENT)
            .body(Full::default())
            .map_err(|error| StsFault::Transport(error.to_string()))?;
        let response = tokio::time::timeout(self.deadline, self.exchange(request, date_of));
        let theirs = response.await.map_err(|_| StsFault::Deadline)??;
        Ok(time::OffsetDateTime::now_utc().unix_timestamp() - theirs)
    }

    async fn send(
        &self,
        request: &StsRequest,
        proof: &Proof,
        signature: &str,
    ) -> Result<Zeroizing<Vec<u8>>, StsFault> {
        let request = self.http_request(request, proof, signature)?;
        match tokio::time::timeout(self.deadline, self.exchange(request, read)).await {
            Ok(result) => result,
            Err(_) => Err(StsFault::Deadline),
        }
    }

    fn http_request(
        &self,
        request: &StsRequest,
        proof: &Proof,
        signature: &str,
    ) -> Result<Request<Full<bytes::Bytes>>, StsFault> {
        let token = proof.session_token.as_deref();
        let authorization = StsRequest::authorization(
            &proof.access_key_id,
            &proof.date,
            &self.region,
            token.is_some(),
            signature,
        );
        let mut builder = Request::post("/")
            .header(ACCEPT, ANSWER_FORM)
            .header(USER_AGENT, AGENT)
            .header(CONTENT_LENGTH, request.body.len())
            .header(AUTHORIZATION, secret(&authorization)?)
            .header("x-amz-date", &proof.date);
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        if let Some(token) = token {
            builder = builder.header("x-amz-security-token", secret(token)?);
        }
        builder
            .body(Full::from(request.body.clone()))
            .map_err(|error| StsFault::Transport(error.to_string()))
    }

    /// One connection, one request, one answer.
    async fn exchange<T, R: Future<Output = Result<T, StsFault>>>(
        &self,
        request: Request<Full<bytes::Bytes>>,
        read: impl FnOnce(Response<Incoming>) -> R,
    ) -> Result<T, StsFault> {
        let transport = |error: hyper::Error| StsFault::Transport(error.to_string());
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(BODY_LIMIT)
            .max_headers(64)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(transport)?;
        // One request a connection: the driver lives in this future and ends with it.
        let answered = async {
            let response = sender.send_request(request).await.map_err(transport)?;
            read(response).await
        };
        let mut connection = std::pin::pin!(connection);
        let mut answered = std::pin::pin!(answered);
        let mut driving = true;
        loop {
            tokio::select! {
                biased;
                result = &mut answered => return result,
                _ = &mut connection, if driving => driving = false,
            }
        }
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, StsFault> {
        let transport = |error: std::io::Error| StsFault::Transport(error.to_string());
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| StsFault::Endpoint("no valid host name".to_owned()))?;
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((bare, self.port))
            .await
            .map_err(transport)?
            .collect();
        if !self.explicit {
            check_public(&self.host, &addresses)?;
        }
        let stream = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(transport)?;
        stream.set_nodelay(true).map_err(transport)?;
        self.connector
            .connect(name, stream)
            .await
            .map_err(transport)
    }

    #[cfg(test)]
    pub(super) fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    #[cfg(test)]
    pub(super) fn unconfigured(mut self) -> Self {
        self.explicit = false;
        self
    }
}

/// A header that HTTP's own logging will not show.
fn secret(text: &str) -> Result<HeaderValue, StsFault> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| StsFault::Transport("a header has the wrong form".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
