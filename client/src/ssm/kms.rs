//! The data key of an encrypted session: the only file that names KMS's SDK.

use std::time::Duration;

use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Region};
use postern_proto::ssm::channel::{KeyRequest, encryption_context};
use postern_proto::ssm::crypt::SessionKey;
use zeroize::Zeroizing;

use crate::identity::aws::service_host;
use crate::identity::trust::https;

use super::api::{Ssm, call_error, credentials};
use super::error::SsmError;

/// The SSM Agent waits 15 s for the answer.
const DEADLINE: Duration = Duration::from_secs(12);

/// A data key in both its forms.
pub(super) struct DataKey {
    pub(super) key: SessionKey,
    pub(super) ciphertext: Vec<u8>,
}

/// GenerateDataKey for one session. `target` is the one given to StartSession.
pub(super) async fn data_key(
    ssm: &Ssm,
    session: &str,
    target: &str,
    request: &KeyRequest,
) -> Result<DataKey, SsmError> {
    let (profile, keys) = ssm.lend().await?;
    let host = service_host(profile.kms_endpoint.as_deref(), "kms", &profile.region);
    let mut config = aws_sdk_kms::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(profile.region.clone()))
        .credentials_provider(credentials(&keys))
        .http_client(https(profile, &host)?)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(DEADLINE).build());
    if let Some(url) = &profile.kms_endpoint {
        config = config.endpoint_url(url);
    }
    let client = aws_sdk_kms::Client::from_conf(config.build());
    let length = i32::try_from(SessionKey::LENGTH).unwrap_or(i32::MAX);
    let mut call = client
        .generate_data_key()
        .key_id(&request.key_id)
        .number_of_bytes(length);
    for (name, value) in encryption_context(session, target, request.challenge.as_deref()) {
        call = call.encryption_context(name, value);
    }
    let unusable = |cause: String| SsmError::Key {
        key: request.key_id.clone(),
        cause,
    };
    let answer = call.send().await.map_err(|error| {
        match call_error(
            "KMS",
            (&host, ssm.proxies()),
            "GenerateDataKey",
            None,
            error,
        ) {
            SsmError::Refused { code, message, .. } => unusable(match message.as_str() {
                "" => code,
                message => format!("{message} ({code})"),
            }),
            other => other,
        }
    })?;
    let (Some(plain), Some(ciphertext)) = (answer.plaintext, answer.ciphertext_blob) else {
        return Err(unusable("KMS gave no data key".to_owned()));
    };
    let plain = Zeroizing::new(plain.into_inner());
    let key = SessionKey::new(&plain)
        .ok_or_else(|| unusable(format!("KMS gave {} bytes", plain.len())))?;
    Ok(DataKey {
        key,
        ciphertext: ciphertext.into_inner(),
    })
}
