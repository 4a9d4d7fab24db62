//! Policies and roles that a caller makes.

use crate::aws::dispatch::Call;
use crate::aws::error::ApiError;
use crate::aws::policy::{MalformedPolicy, TrustPolicy};
use crate::aws::reply::{node, text};
use crate::aws::request::Params;
use crate::aws::seed;
use crate::aws::trail::timestamp;

use super::{Answer, Output, find_user, no_such, required, role_fields};

/// Characters of a managed policy, without white space (IAM quotas).
const LONGEST: usize = 6_144;
/// Characters of a trust policy.
const LONGEST_TRUST: usize = 2_048;

fn malformed(error: &MalformedPolicy) -> ApiError {
    ApiError::new(400, "MalformedPolicyDocument", error.to_string())
}

fn fits(document: &str, longest: usize) -> Result<(), ApiError> {
    let length = document.chars().filter(|c| !c.is_whitespace()).count();
    if length > longest {
        let message = format!("Cannot exceed quota for PolicySize: {longest}");
        return Err(ApiError::new(409, "LimitExceeded", message));
    }
    Ok(())
}

/// A name as IAM takes it.
fn name<'a>(params: &'a Params, key: &str) -> Result<&'a str, ApiError> {
    let name = required(params, key)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    if name.len() > 128 || !name.chars().all(plain) {
        return Err(ApiError::validation(format!(
            "The specified value for {key} is invalid."
        )));
    }
    Ok(name)
}

pub(super) fn create_policy(call: &mut Call<'_>, params: &Params) -> Answer {
    let name = name(params, "PolicyName")?;
    let document = required(params, "PolicyDocument")?;
    let arn = format!("arn:aws:iam::{}:policy/{name}", call.account.id);
    call.authorise("iam:CreatePolicy", &arn)?;
    fits(document, LONGEST)?;
    let created = call.account.create_policy(name, document);
    let arn = created.map_err(|error| malformed(&error))?.ok_or_else(|| {
        let message =
            format!("A policy called {name} already exists. Duplicate names are not allowed.");
        ApiError::new(409, "EntityAlreadyExists", message)
    })?;
    Ok(Output::Xml(Some(vec![node(
        "Policy",
        vec![
            text("PolicyName", name),
            text("Arn", arn),
            text("Path", "/"),
            text("DefaultVersionId", "v1"),
            text("AttachmentCount", "0"),
            text("IsAttachable", "true"),
            text("CreateDate", timestamp(call.now)),
        ],
    )])))
}

/// Without permissions, and trusting whom the document names.
pub(super) fn create_role(call: &mut Call<'_>, params: &Params) -> Answer {
    let name = name(params, "RoleName")?;
    let document = required(params, "AssumeRolePolicyDocument")?;
    let arn = format!("arn:aws:iam::{}:role/{name}", call.account.id);
    call.authorise("iam:CreateRole", &arn)?;
    fits(document, LONGEST_TRUST)?;
    TrustPolicy::parse(document).map_err(|error| malformed(&error))?;
    if call.account.role(name).is_some() {
        let message = format!("Role with name {name} already exists.");
        return Err(ApiError::new(409, "EntityAlreadyExists", message));
    }
    let role = seed::Role::new(name, document);
    let put = call.account.put_role(role, call.now);
    put.map_err(|error| malformed(&error))?;
    let role = call.account.role(name).ok_or_else(|| no_such(name))?;
    Ok(Output::Xml(Some(vec![node(
        "Role",
        role_fields(call, role),
    )])))
}

pub(super) fn attach_user_policy(call: &mut Call<'_>, params: &Params) -> Answer {
    let user = required(params, "UserName")?;
    let policy = required(params, "PolicyArn")?;
    call.authorise("iam:AttachUserPolicy", &call.account.user_arn(user))?;
    find_user(call, user)?;
    if !call.account.attach_to_user(user, policy) {
        return Err(no_such(format!("Policy {policy}")));
    }
    Ok(Output::Xml(None))
}

pub(super) fn attach_role_policy(call: &mut Call<'_>, params: &Params) -> Answer {
    let role = super::permitted_role(call, params, "iam:AttachRolePolicy")?;
    let role = role.seed.name.clone();
    let policy = required(params, "PolicyArn")?;
    if !call.account.attach_to_role(&role, policy) {
        return Err(no_such(format!("Policy {policy}")));
    }
    Ok(Output::Xml(None))
}
