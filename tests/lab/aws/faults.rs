//! Answers that a hostile or broken endpoint would give, on order.

use std::time::Duration;

use super::error::ApiError;
use super::reply::Answer;
use super::service::Service;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The right status and an HTML page, as a captive portal gives.
    Html,
    /// The true answer as JSON with a JSON content type.
    Json,
    /// A JSON document that carries the true XML answer inside (CVE-2020-16250's shape).
    XmlInJson,
    /// Every element of this name twice: first the true one, then with this text.
    DoubledElement { name: String, second: String },
    /// The true answer, and more after its end.
    TrailingData(String),
    /// 302 to this URL.
    Redirect(String),
    /// 500 with AWS's InternalFailure text.
    ServerError,
    /// An error in the service's own form, before anything is decided: `ThrottlingException`.
    Error {
        status: u16,
        code: String,
        message: String,
    },
    /// The true answer, later. Nothing is decided before the delay is over.
    Delay(Duration),
    /// Exactly this.
    Answer {
        status: u16,
        content_type: &'static str,
        body: String,
    },
}

/// A fault, and which calls it meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    pub service: Service,
    /// `None`: every action of the service.
    pub action: Option<String>,
    /// How many calls it meets before it is gone. `None`: all of them.
    pub times: Option<u32>,
    pub fault: Fault,
}

impl FaultRule {
    /// A fault that every call of one action meets.
    #[must_use]
    pub fn always(service: Service, action: &str, fault: Fault) -> Self {
        Self {
            service,
            action: Some(action.to_owned()),
            times: None,
            fault,
        }
    }

    /// A fault that the next call of one action meets.
    #[must_use]
    pub fn once(service: Service, action: &str, fault: Fault) -> Self {
        Self {
            times: Some(1),
            ..Self::always(service, action, fault)
        }
    }
}

#[derive(Default)]
pub(crate) struct Faults(Vec<FaultRule>);

impl Faults {
    pub(crate) fn add(&mut self, rule: FaultRule) {
        self.0.push(rule);
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The faults that this call meets, each rule counting it.
    pub(crate) fn take(&mut self, service: Service, action: &str) -> Vec<Fault> {
        let mut met = Vec::new();
        self.0.retain_mut(|rule| {
            let fits =
                rule.service == service && rule.action.as_deref().is_none_or(|a| a == action);
            if !fits || rule.times == Some(0) {
                return rule.times != Some(0);
            }
            met.push(rule.fault.clone());
            match &mut rule.times {
                None => true,
                Some(left) => {
                    *left -= 1;
                    *left > 0
                }
            }
        });
        met
    }
}

impl Fault {
    /// Whether the answer is to be rendered as JSON.
    pub(crate) fn wants_json(&self) -> bool {
        *self == Self::Json
    }

    pub(crate) fn error(&self) -> Option<ApiError> {
        match self {
            Self::Error {
                status,
                code,
                message,
            } => Some(ApiError::new(*status, code, message.clone())),
            _ => None,
        }
    }

    pub(crate) fn delay(&self) -> Duration {
        match self {
            Self::Delay(delay) => *delay,
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn spoil(&self, answer: &mut Answer) {
        match self {
            Self::Json | Self::Delay(_) | Self::Error { .. } => {}
            Self::Html => {
                answer.content_type = "text/html";
                answer.body = "<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>".into();
            }
            Self::XmlInJson => {
                answer.content_type = "application/json";
                answer.body = serde_json::json!({"message": answer.body}).to_string();
            }
            Self::DoubledElement { name, second } => {
                answer.body = doubled(&answer.body, name, second)
            }
            Self::TrailingData(more) => answer.body.push_str(more),
            Self::Redirect(location) => {
                answer.status = 302;
                answer.location = Some(location.clone());
                answer.body.clear();
            }
            Self::ServerError => {
                answer.status = 500;
                answer.content_type = "text/xml";
                answer.body = "<ErrorResponse><Error><Type>Receiver</Type><Code>InternalFailure</Code></Error>\
                               </ErrorResponse>"
                    .into();
            }
            Self::Answer {
                status,
                content_type,
                body,
            } => {
                answer.status = *status;
                answer.content_type = content_type;
                answer.body.clone_from(body);
            }
        }
    }
}

fn doubled(body: &str, name: &str, second: &str) -> String {
    let end = format!("</{name}>");
    body.replace(&end, &format!("{end}<{name}>{second}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_meets_its_own_calls_as_often_as_it_says() {
        let mut faults = Faults::default();
        faults.add(FaultRule::once(Service::Sts, "AssumeRole", Fault::Html));
        assert_eq!(faults.take(Service::Sts, "GetCallerIdentity"), []);
        assert_eq!(faults.take(Service::Iam, "AssumeRole"), []);
        assert_eq!(faults.take(Service::Sts, "AssumeRole"), [Fault::Html]);
        assert_eq!(faults.take(Service::Sts, "AssumeRole"), []);
    }

    #[test]
    fn an_element_is_doubled_beside_itself() {
        assert_eq!(
            doubled("<a><Arn>x</Arn></a>", "Arn", "y"),
            "<a><Arn>x</Arn><Arn>y</Arn></a>"
        );
    }
}
