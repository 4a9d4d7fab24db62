//! Errors with the codes and texts that AWS has for them in each protocol.

use super::request::MalformedQuery;
use super::service::{Protocol, Service};
use super::sigv4::SignatureError;

/// An error as AWS tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
        }
    }

    /// A parameter that breaks a constraint of the API model.
    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new(400, "ValidationError", message)
    }

    /// A key id or token that leads to nobody.
    pub(crate) fn unknown_key(service: Service) -> Self {
        const INVALID: &str = "The security token included in the request is invalid.";
        match service.protocol() {
            Protocol::Query { .. } => Self::new(403, "InvalidClientTokenId", INVALID),
            Protocol::Ec2 => Self::auth_failure(),
            Protocol::Json { .. } => Self::new(400, "UnrecognizedClientException", INVALID),
        }
    }

    /// Temporary credentials after their end.
    pub(crate) fn expired(service: Service) -> Self {
        const EXPIRED: &str = "The security token included in the request is expired";
        match service.protocol() {
            Protocol::Query { .. } => Self::new(403, "ExpiredToken", EXPIRED),
            Protocol::Ec2 => Self::new(400, "RequestExpired", "Request has expired."),
            Protocol::Json { .. } => Self::new(400, "ExpiredTokenException", EXPIRED),
        }
    }

    pub(crate) fn signature(service: Service, error: &SignatureError) -> Self {
        let message = error.to_string();
        let expired = matches!(
            error,
            SignatureError::Expired { .. } | SignatureError::Early { .. }
        );
        match (service.protocol(), error) {
            (Protocol::Ec2, SignatureError::Missing) => Self::new(
                400,
                "MissingParameter",
                "The request must contain the parameter AWSAccessKeyId",
            ),
            (Protocol::Ec2, _) if expired => {
                Self::new(400, "RequestExpired", "Request has expired.")
            }
            (Protocol::Ec2, _) => Self::auth_failure(),
            (Protocol::Query { .. }, SignatureError::Missing) => {
                Self::new(403, "MissingAuthenticationToken", message)
            }
            (Protocol::Query { .. }, SignatureError::Incomplete(_)) => {
                Self::new(400, "IncompleteSignature", message)
            }
            (Protocol::Query { .. }, _) => Self::new(403, "SignatureDoesNotMatch", message),
            (Protocol::Json { .. }, SignatureError::Missing) => {
                Self::new(400, "MissingAuthenticationTokenException", message)
            }
            (Protocol::Json { .. }, SignatureError::Incomplete(_)) => {
                Self::new(400, "IncompleteSignatureException", message)
            }
            (Protocol::Json { .. }, _) => Self::new(400, "InvalidSignatureException", message),
        }
    }

    /// An action that the service does not have, or that the lab does not emulate.
    pub(crate) fn unknown_action(service: Service, action: &str) -> Self {
        match service.protocol() {
            Protocol::Query { version, .. } => Self::new(
                400,
                "InvalidAction",
                format!("Could not find operation {action} for version {version}"),
            ),
            Protocol::Ec2 => Self::new(
                400,
                "InvalidAction",
                format!("The action {action} is not valid for this web service."),
            ),
            Protocol::Json { .. } => Self::new(400, "UnknownOperationException", ""),
        }
    }

    pub(crate) fn malformed_query(error: &MalformedQuery) -> Self {
        Self::new(400, "MalformedQueryString", error.to_string())
    }

    /// Nothing allows it, or something forbids it.
    pub(crate) fn denied(
        service: Service,
        who: &str,
        action: &str,
        resource: &str,
        explicit: bool,
    ) -> Self {
        let why = if explicit {
            "with an explicit deny in a policy".to_owned()
        } else {
            format!("because no identity-based policy allows the {action} action")
        };
        let on = if resource == "*" {
            String::new()
        } else {
            format!(" on resource: {resource}")
        };
        let message = format!("User: {who} is not authorized to perform: {action}{on} {why}");
        match service.protocol() {
            Protocol::Query { .. } => Self::new(403, "AccessDenied", message),
            Protocol::Ec2 => Self::new(
                403,
                "UnauthorizedOperation",
                format!("You are not authorized to perform this operation. {message}"),
            ),
            Protocol::Json { .. } => Self::new(400, "AccessDeniedException", message),
        }
    }

    fn auth_failure() -> Self {
        Self::new(
            401,
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
        )
    }
}

impl From<MalformedQuery> for ApiError {
    fn from(error: MalformedQuery) -> Self {
        Self::malformed_query(&error)
    }
}
