//! Calls to AWS IAM: the only file that names its SDK. It reads and asks, and changes nothing.

use std::time::Duration;

use aws_sdk_iam::config::retry::RetryConfig;
use aws_sdk_iam::config::timeout::TimeoutConfig;
use aws_sdk_iam::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_iam::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_iam::types::{
    ContextEntry, ContextKeyTypeEnum, EvaluationResult, PolicyEvaluationDecisionType,
    ResourceSpecificResult, Role, Statement, User,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::identity::aws::{AwsProfile, service_host};
use crate::identity::secret::Keys;
use crate::identity::sts::deepest;
use crate::identity::trust::https;
use crate::proxy::Proxies;

use super::error::PolicyError;
use super::probe::{Fact, Probe, Subject};
use super::trust::decoded;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// With its tries: IAM answers slowly and throttles early.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
const TRIES: u32 = 5;
/// Users, and roles, that are looked at when none is named.
const MOST: usize = 1_000;
/// Results of one page: few, so that an answer stays small.
const PAGE: i32 = 100;
/// Roles of AWS's own services: only those services assume them, and nobody can change them.
const SERVICE_LINKED: &str = "/aws-service-role/";

/// IAM, asked with one set of credentials.
#[derive(Debug)]
pub struct Iam {
    client: aws_sdk_iam::Client,
    host: String,
    proxies: Proxies,
}

/// A user or a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub subject: Subject,
    /// JSON of a role's trust policy.
    pub trust: Option<String>,
}

/// IAM's decision on one action and resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The action.
    pub action: String,
    /// The resource.
    pub resource: String,
    /// Whether it is allowed.
    pub allowed: bool,
    /// The policies that decided, as IAM names them.
    pub policies: Vec<String>,
    /// Condition keys that policies read and the question did not give.
    pub missing: Vec<String>,
    /// An organisation's service control policy denies it.
    pub organisation_denies: bool,
}

impl Iam {
    /// Nothing of the environment is read: the profile says it all.
    pub fn new(profile: &AwsProfile, keys: &Keys) -> Result<Self, PolicyError> {
        let host = service_host(profile.iam_endpoint.as_deref(), "iam", &profile.region);
        let http = https(profile, &host)?;
        let token = keys.session_token.as_ref();
        let credentials = Credentials::new(
            &keys.access_key_id,
            keys.secret_access_key.expose(),
            token.map(|token| token.expose().to_owned()),
            None,
            "postern",
        );
        let mut config = aws_sdk_iam::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(profile.region.clone()))
            .credentials_provider(credentials)
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_DEADLINE)
                    .operation_timeout(CALL_DEADLINE)
                    .build(),
            );
        if let Some(url) = &profile.iam_endpoint {
            config = config.endpoint_url(url);
        }
        Ok(Self {
            client: aws_sdk_iam::Client::from_conf(config.build()),
            host,
            proxies: profile.proxies.clone(),
        })
    }

    /// One user.
    pub async fn user(&self, name: &str) -> Result<Identity, PolicyError> {
        let subject = format!("user/{name}");
        let answer = self.client.get_user().user_name(name).send().await;
        let answer = answer.map_err(|error| self.error("GetUser", &subject, error))?;
        let user = answer.user.ok_or_else(|| nobody("GetUser"))?;
        Ok(Identity::of_user(user))
    }

    /// One role.
    pub async fn role(&self, name: &str) -> Result<Identity, PolicyError> {
        let subject = format!("role/{name}");
        let answer = self.client.get_role().role_name(name).send().await;
        let answer = answer.map_err(|error| self.error("GetRole", &subject, error))?;
        Identity::of_role(answer.role.ok_or_else(|| nobody("GetRole"))?)
    }

    /// Every user, if they are not too many.
    pub async fn users(&self) -> Result<Vec<Identity>, PolicyError> {
        let mut pages = self
            .client
            .list_users()
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut users = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.error("ListUsers", "the account", error))?;
            users.extend(page.users.into_iter().map(Identity::of_user));
            few("users", users.len())?;
        }
        Ok(users)
    }

    /// Every role but AWS's own, if they are not too many.
    pub async fn roles(&self) -> Result<Vec<Identity>, PolicyError> {
        let mut pages = self
            .client
            .list_roles()
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut roles = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.error("ListRoles", "the account", error))?;
            for role in page.roles {
                if !role.path.starts_with(SERVICE_LINKED) {
                    roles.push(Identity::of_role(role)?);
                }
            }
            few("roles", roles.len())?;
        }
        Ok(roles)
    }

    /// SimulatePrincipalPolicy: one answer for each action and resource of the probe.
    pub async fn simulate(
        &self,
        subject: &Subject,
        probe: &Probe,
    ) -> Result<Vec<Answer>, PolicyError> {
        let mut pages = self
            .client
            .simulate_principal_policy()
            .policy_source_arn(&subject.arn)
            .set_action_names(Some(
                probe.actions.iter().map(ToString::to_string).collect(),
            ))
            .set_resource_arns(Some(probe.resources.clone()))
            .set_context_entries(Some(probe.facts.iter().map(entry).collect()))
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut results = Vec::new();
        while let Some(page) = pages.next().await {
            let page =
                page.map_err(|error| self.error("SimulatePrincipalPolicy", &subject.arn, error))?;
            results.extend(page.evaluation_results.unwrap_or_default());
            few("results", results.len())?;
        }
        let pairs = probe.actions.iter().flat_map(|action| {
            let resources = probe.resources.iter();
            resources.map(move |resource| (*action, resource.as_str()))
        });
        // What IAM did not answer is not fine: it is an error.
        let answers = pairs.map(|(action, resource)| {
            answer(&results, action, resource).ok_or_else(|| {
                PolicyError::Answer(format!("no decision on {action} on {resource}"))
            })
        });
        answers.collect()
    }

    fn error<E>(
        &self,
        action: &'static str,
        subject: &str,
        error: SdkError<E, HttpResponse>,
    ) -> PolicyError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let unreachable = |cause: String| PolicyError::Unreachable {
            cause: self.proxies.explain(&self.host, cause),
            host: self.host.clone(),
        };
        let SdkError::ServiceError(context) = &error else {
            return match &error {
                SdkError::TimeoutError(_) => unreachable("it did not answer in time".to_owned()),
                SdkError::DispatchFailure(_) => unreachable(deepest(&error)),
                _ => PolicyError::Answer(format!("{action}: {}", deepest(&error))),
            };
        };
        let message = context.err().message().unwrap_or_default().to_owned();
        let subject = subject.to_owned();
        match context.err().code().unwrap_or("unknown") {
            code if code.starts_with("AccessDenied") => PolicyError::NotAllowed {
                action,
                subject,
                message,
            },
            "NoSuchEntity" => PolicyError::NoSuch(subject),
            code => PolicyError::Refused {
                action,
                subject,
                code: code.to_owned(),
                message,
            },
        }
    }
}

impl Identity {
    fn of_user(user: User) -> Self {
        Self {
            subject: Subject {
                is_role: false,
                name: user.user_name,
                arn: user.arn,
                unique_id: user.user_id,
            },
            trust: None,
        }
    }

    fn of_role(role: Role) -> Result<Self, PolicyError> {
        let unreadable = || {
            let name = &role.role_name;
            PolicyError::Answer(format!("the trust policy of role/{name} cannot be read"))
        };
        let trust = role.assume_role_policy_document.as_deref();
        let trust = trust.and_then(decoded).ok_or_else(unreadable)?;
        Ok(Self {
            subject: Subject {
                is_role: true,
                name: role.role_name,
                arn: role.arn,
                unique_id: role.role_id,
            },
            trust: Some(trust),
        })
    }
}

/// IAM's decision on one action and resource. Since 2026 an answer holds one result an action, whose
/// decisions on single resources are inside; before, it held one for each resource.
fn answer(results: &[EvaluationResult], action: &str, resource: &str) -> Option<Answer> {
    let mut of_action = results
        .iter()
        .filter(|result| result.eval_action_name.eq_ignore_ascii_case(action));
    let specific = of_action.clone().find_map(|result| {
        let mut resources = result.resource_specific_results().iter();
        let one = resources.find(|one| one.eval_resource_name == resource)?;
        Some((result, one))
    });
    let blank = |result: &EvaluationResult| Answer {
        action: action.to_owned(),
        resource: resource.to_owned(),
        allowed: false,
        policies: Vec::new(),
        missing: Vec::new(),
        organisation_denies: result
            .organizations_decision_detail()
            .is_some_and(|detail| !detail.allowed_by_organizations()),
    };
    if let Some((result, one)) = specific {
        return Some(Answer {
            allowed: one.eval_resource_decision == PolicyEvaluationDecisionType::Allowed,
            policies: policies(one.matched_statements()),
            missing: missing(result, Some(one)),
            ..blank(result)
        });
    }
    // Without decisions on single resources the one on the whole counts, if it is about this one.
    let result = of_action.find(|result| {
        let name = result.eval_resource_name();
        result.resource_specific_results().is_empty() && (resource == "*" || name == Some(resource))
    })?;
    Some(Answer {
        allowed: result.eval_decision == PolicyEvaluationDecisionType::Allowed,
        policies: policies(result.matched_statements()),
        missing: missing(result, None),
        ..blank(result)
    })
}

fn policies(statements: &[Statement]) -> Vec<String> {
    let names = statements.iter().filter_map(|one| one.source_policy_id());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

fn missing(result: &EvaluationResult, one: Option<&ResourceSpecificResult>) -> Vec<String> {
    let mut keys = match one {
        Some(one) => one.missing_context_values().to_vec(),
        None => result.missing_context_values().to_vec(),
    };
    keys.sort();
    keys.dedup();
    keys
}

fn entry(fact: &Fact) -> ContextEntry {
    ContextEntry::builder()
        .context_key_name(&fact.key)
        .context_key_values(&fact.value)
        .context_key_type(kind(&fact.key))
        .build()
}

/// IAM wants to know how to read a value. Source: "AWS global condition context keys".
fn kind(key: &str) -> ContextKeyTypeEnum {
    match key.to_ascii_lowercase().as_str() {
        "aws:multifactorauthpresent"
        | "aws:securetransport"
        | "aws:viaawsservice"
        | "aws:principalisawsservice"
        | "ssm:sessiondocumentaccesscheck" => ContextKeyTypeEnum::Boolean,
        "aws:multifactorauthage" | "aws:epochtime" => ContextKeyTypeEnum::Numeric,
        "aws:sourceip" | "aws:vpcsourceip" => ContextKeyTypeEnum::Ip,
        "aws:currenttime" | "aws:tokenissuetime" => ContextKeyTypeEnum::Date,
        _ => ContextKeyTypeEnum::String,
    }
}

fn few(what: &'static str, count: usize) -> Result<(), PolicyError> {
    if count > MOST {
        return Err(PolicyError::TooMany { what, limit: MOST });
    }
    Ok(())
}

fn nobody(action: &str) -> PolicyError {
    PolicyError::Answer(format!("{action} names nobody"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specific(resource: &str, decision: &str, missing: &[&str]) -> ResourceSpecificResult {
        ResourceSpecificResult::builder()
            .eval_resource_name(resource)
            .eval_resource_decision(decision.into())
            .matched_statements(Statement::builder().source_policy_id("p").build())
            .set_missing_context_values(Some(missing.iter().map(ToString::to_string).collect()))
            .build()
            .unwrap()
    }

    fn whole(
        resource: &str,
        decision: &str,
        parts: Vec<ResourceSpecificResult>,
    ) -> EvaluationResult {
        EvaluationResult::builder()
            .eval_action_name("ssm:startsession")
            .eval_resource_name(resource)
            .eval_decision(decision.into())
            .set_resource_specific_results(Some(parts))
            .build()
            .unwrap()
    }

    #[test]
    fn the_decision_on_a_resource_counts_and_not_that_on_all() {
        let parts = vec![
            specific("a", "allowed", &["k"]),
            specific("b", "explicitDeny", &[]),
        ];
        let results = [whole("arn:${Partition}:x", "explicitDeny", parts)];
        let a = answer(&results, "ssm:StartSession", "a").unwrap();
        assert!(
            a.allowed && a.policies == ["p"] && a.missing == ["k"],
            "{a:?}"
        );
        assert!(!answer(&results, "ssm:StartSession", "b").unwrap().allowed);
        assert_eq!(answer(&results, "ssm:StartSession", "c"), None);
        assert_eq!(answer(&results, "ssm:ResumeSession", "a"), None);
    }

    #[test]
    fn answers_of_the_older_form_are_read_too() {
        let results = [
            whole("a", "allowed", vec![]),
            whole("b", "implicitDeny", vec![]),
        ];
        assert!(answer(&results, "ssm:StartSession", "a").unwrap().allowed);
        assert!(!answer(&results, "ssm:StartSession", "b").unwrap().allowed);
        assert_eq!(answer(&results, "ssm:StartSession", "c"), None);
        assert!(
            answer(&[whole("*", "allowed", vec![])], "ssm:StartSession", "*")
                .unwrap()
                .allowed
        );
    }

    #[test]
    fn a_decision_that_is_not_known_is_no_permission() {
        let results = [whole("a", "perhaps", vec![])];
        assert!(!answer(&results, "ssm:StartSession", "a").unwrap().allowed);
    }
}
