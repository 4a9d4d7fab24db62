//! Calls to AWS Systems Manager: the only file that names its SDK.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_ssm::config::retry::RetryConfig;
use aws_sdk_ssm::config::timeout::TimeoutConfig;
use aws_sdk_ssm::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_ssm::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ssm::operation::RequestId as _;
use aws_sdk_ssm::types::{InstanceInformation, InstanceInformationStringFilter};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use postern_proto::ssm::payload::SecretText;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::identity::aws::{AwsProfile, service_host};
use crate::identity::secret::Keys;
use crate::identity::sts::{TemporaryKeys, deepest};
use crate::identity::trust::{TrustError, https, tls_config};
use crate::identity::{self, IdentityError};
use crate::proxy::Proxies;

use super::document;
use super::error::SsmError;
use super::session::Start;
use super::target::Node;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Nodes that are listed at most: 50 a page.
const PAGES: usize = 200;

/// SSM, asked with the profile's credentials. Those are fresh for each call: a session lives for
/// longer than they do.
#[derive(Debug)]
pub struct Ssm {
    profile: AwsProfile,
    http: SharedHttpClient,
    tls: Arc<ClientConfig>,
    host: String,
    context: Context,
    // Whoever asked once for a code in this process does not again, in the middle of a session.
    asked: AtomicBool,
    /// The tasks of its sessions, and what ends them.
    pub(super) drivers: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// A session that AWS has begun.
pub(super) struct Started {
    pub(super) id: String,
    pub(super) token: SecretText,
    /// Of all its connections, unchanged.
    pub(super) url: String,
    /// AWS's id of the request.
    pub(super) request_id: Option<String>,
}

impl Ssm {
    /// From the AWS profile of the context. Touches no network.
    pub fn of(context: &Context) -> Result<Arc<Self>, SsmError> {
        let profile = identity::aws_profile(context)?;
        let host = service_host(profile.ssm_endpoint.as_deref(), "ssm", &profile.region);
        Ok(Arc::new(Self {
            http: https(&profile, &host)?,
            tls: tls_config(&profile)?,
            host,
            profile,
            context: context.clone(),
            asked: AtomicBool::new(false),
            drivers: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// The region that it is asked in.
    pub fn region(&self) -> &str {
        &self.profile.region
    }

    /// Ends every session that is left and waits until AWS was told, within their deadlines.
    /// Nothing can be started afterwards.
    pub async fn settle(&self) {
        self.stop.cancel();
        self.drivers.close();
        self.drivers.wait().await;
    }

    /// StartSession.
    pub(super) async fn start(&self, start: &Start) -> Result<Started, SsmError> {
        match self.start_with(start, Some(&start.document)).await {
            // The account never kept preferences; AWS has its own, under no name.
            Err(SsmError::Refused { code, .. })
                if code == "InvalidDocument" && start.document == document::SHELL =>
            {
                self.start_with(start, None).await
            }
            started => started,
        }
    }

    async fn start_with(&self, start: &Start, document: Option<&str>) -> Result<Started, SsmError> {
        let parameters =
            (!start.parameters.is_empty()).then(|| start.parameters.clone().into_iter().collect());
        let reason = (!start.reason.is_empty()).then(|| start.reason.clone());
        let answer = self
            .call("StartSession", Some(&start.target), |client| {
                client
                    .start_session()
                    .target(&start.target)
                    .set_document_name(document.map(str::to_owned))
                    .set_parameters(parameters.clone())
                    .set_reason(reason.clone())
                    .send()
            })
            .await?;
        let request_id = answer.request_id().map(str::to_owned);
        match (answer.session_id, answer.token_value, answer.stream_url) {
            (Some(id), Some(token), Some(url)) => Ok(Started {
                id,
                token: SecretText::new(token),
                url,
                request_id,
            }),
            _ => Err(unusable("StartSession without session, token or URL")),
        }
    }

    /// ResumeSession: a token for another connection. `None`: the session is over.
    pub(super) async fn resume(&self, session: &str) -> Result<Option<SecretText>, SsmError> {
        let answer = self
            .call("ResumeSession", None, |client| {
                client.resume_session().session_id(session).send()
            })
            .await?;
        let token = answer.token_value.filter(|token| !token.is_empty());
        Ok(token.map(SecretText::new))
    }

    /// TerminateSession. One that is over already is fine.
    pub(super) async fn terminate(&self, session: &str) -> Result<(), SsmError> {
        let ended = self
            .call("TerminateSession", None, |client| {
                client.terminate_session().session_id(session).send()
            })
            .await;
        match ended {
            Err(SsmError::Refused { code, .. }) if code == "DoesNotExistException" => Ok(()),
            other => other.map(drop),
        }
    }

    /// GetConnectionStatus: whether the target's SSM Agent is connected to the message service.
    pub async fn is_connected(&self, target: &str) -> Result<bool, SsmError> {
        let answer = self
            .call("GetConnectionStatus", Some(target), |client| {
                client.get_connection_status().target(target).send()
            })
            .await?;
        Ok(answer
            .status
            .is_some_and(|status| status.as_str() == "connected"))
    }

    /// DescribeInstanceInformation: the nodes that match every filter, which are `(key, value)`
    /// as that call names them.
    pub async fn nodes(&self, filters: &[(&str, &str)]) -> Result<Vec<Node>, SsmError> {
        let filters: Vec<InstanceInformationStringFilter> = filters
            .iter()
            .map(|(key, value)| {
                InstanceInformationStringFilter::builder()
                    .key(*key)
                    .values(*value)
                    .build()
            })
            .collect::<Result<_, _>>()
            .map_err(|error| unusable(&error.to_string()))?;
        let mut nodes = Vec::new();
        let mut next = None;
        for _ in 0..PAGES {
            let answer = self
                .call("DescribeInstanceInformation", None, |client| {
                    client
                        .describe_instance_information()
                        .set_filters(Some(filters.clone()))
                        .max_results(50)
                        .set_next_token(next.clone())
                        .send()
                })
                .await?;
            let page = answer.instance_information_list.unwrap_or_default();
            nodes.extend(page.into_iter().filter_map(node));
            next = answer.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        Ok(nodes)
    }

    /// TLS for the stream.
    pub(super) fn tls(&self) -> &Arc<ClientConfig> {
        &self.tls
    }

    /// Which way leads to AWS.
    pub(super) fn proxies(&self) -> &Proxies {
        &self.profile.proxies
    }

    /// The profile and credentials, for another service.
    pub(super) async fn lend(&self) -> Result<(&AwsProfile, Keys), SsmError> {
        let keys = self.keys(None).await?.keys;
        Ok((&self.profile, keys))
    }

    /// Asks with credentials that live. When AWS says that they do not, once more with others.
    async fn call<T, E, F>(
        &self,
        action: &'static str,
        target: Option<&str>,
        send: impl Fn(aws_sdk_ssm::Client) -> F,
    ) -> Result<T, SsmError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let first = self.keys(None).await?;
        match send(self.client(&first.keys)).await {
            Err(error) if is_expired(&error) => {}
            answer => return answer.map_err(|error| self.error(action, target, error)),
        }
        let second = self.keys(Some(&first.keys)).await?;
        if second.keys.access_key_id == first.keys.access_key_id {
            return Err(self.expired());
        }
        match send(self.client(&second.keys)).await {
            Err(error) if is_expired(&error) => Err(self.expired()),
            answer => answer.map_err(|error| self.error(action, target, error)),
        }
    }

    /// Credentials; others than those that are `over`. Asks for a code once at most, and only
    /// before there were any.
    async fn keys(&self, over: Option<&Keys>) -> Result<TemporaryKeys, IdentityError> {
        let quiet = Context {
            may_ask: self.context.may_ask && !self.asked.load(Ordering::Relaxed),
            ..self.context.clone()
        };
        let keys = match over {
            None => identity::call_keys(&quiet).await?,
            Some(over) => identity::call_keys_anew(&quiet, over).await?,
        };
        self.asked.store(true, Ordering::Relaxed);
        Ok(keys)
    }

    fn client(&self, keys: &Keys) -> aws_sdk_ssm::Client {
        let mut config = aws_sdk_ssm::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(self.profile.region.clone()))
            .credentials_provider(credentials(keys))
            .http_client(self.http.clone())
            // A second StartSession would start a second session.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_DEADLINE)
                    .operation_timeout(CALL_DEADLINE)
                    .build(),
            );
        if let Some(url) = &self.profile.ssm_endpoint {
            config = config.endpoint_url(url);
        }
        aws_sdk_ssm::Client::from_conf(config.build())
    }

    fn expired(&self) -> SsmError {
        SsmError::Expired(self.profile.name.clone())
    }

    fn error<E>(
        &self,
        action: &'static str,
        target: Option<&str>,
        error: SdkError<E, HttpResponse>,
    ) -> SsmError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let at = (self.host.as_str(), self.proxies());
        call_error("SSM", at, action, target, error)
    }
}

impl From<TrustError> for SsmError {
    fn from(error: TrustError) -> Self {
        match error {
            TrustError::Config(error) => Self::Config(error),
            TrustError::Tls(cause) => unusable(&format!("TLS: {cause}")),
        }
    }
}

/// What an SDK's error means; the same for every service.
pub(super) fn call_error<E>(
    service: &'static str,
    (host, proxies): (&str, &Proxies),
    action: &'static str,
    target: Option<&str>,
    error: SdkError<E, HttpResponse>,
) -> SsmError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let unreachable = |cause: String| SsmError::Unreachable {
        service,
        host: host.to_owned(),
        cause: proxies.explain(host, cause),
    };
    match &error {
        // An outage of theirs is no answer.
        SdkError::ServiceError(context) if context.raw().status().as_u16() >= 500 => {
            unreachable(format!(
                "{action} failed there ({})",
                context.err().code().unwrap_or("no code")
            ))
        }
        SdkError::ServiceError(context) => SsmError::Refused {
            service,
            action,
            target: target.map(str::to_owned),
            code: context.err().code().unwrap_or("unknown").to_owned(),
            message: context.err().message().unwrap_or_default().to_owned(),
        },
        SdkError::TimeoutError(_) => unreachable("it did not answer in time".to_owned()),
        SdkError::DispatchFailure(_) => unreachable(deepest(&error)),
        _ => SsmError::Answer {
            service,
            what: format!("{action}: {}", deepest(&error)),
        },
    }
}

pub(super) fn credentials(keys: &Keys) -> Credentials {
    Credentials::new(
        &keys.access_key_id,
        keys.secret_access_key.expose(),
        keys.session_token
            .as_ref()
            .map(|token| token.expose().to_owned()),
        None,
        "postern",
    )
}

/// Whether AWS says that the credentials themselves are over.
pub(super) fn is_expired<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let SdkError::ServiceError(context) = error else {
        return false;
    };
    matches!(
        context.err().code(),
        Some(
            "ExpiredToken"
                | "ExpiredTokenException"
                | "InvalidClientTokenId"
                | "UnrecognizedClientException"
        )
    )
}

fn node(information: InstanceInformation) -> Option<Node> {
    let text = |text: Option<String>| text.unwrap_or_default();
    let id = information.instance_id?;
    Some(Node {
        name: information
            .name
            .filter(|name| !name.is_empty())
            .or(information.computer_name)
            .unwrap_or_else(|| id.clone()),
        id,
        address: text(information.ip_address),
        status: information
            .ping_status
            .map_or_else(String::new, |status| status.as_str().to_owned()),
        agent_version: text(information.agent_version),
        platform: information
            .platform_type
            .map_or_else(String::new, |platform| platform.as_str().to_owned()),
    })
}

fn unusable(what: &str) -> SsmError {
    SsmError::Answer {
        service: "SSM",
        what: what.to_owned(),
    }
}
