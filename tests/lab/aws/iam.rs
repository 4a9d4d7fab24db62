//! IAM: users and roles to read, policies to attach and to simulate, and MFA devices.
//!
//! Source of constraints, codes and texts: the IAM API model (2010-05-08) and reference.

mod list;
mod simulate;
mod write;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::account::{Role, User};
use super::caller::Identity;
use super::dispatch::Call;
use super::error::ApiError;
use super::ids;
use super::reply::{Element, Output, node, text};
use super::request::{Params, encode};
use super::totp::{self, Device, Refusal};
use super::trail::timestamp;

/// Virtual MFA devices that the account may hold, assigned or not.
const MAX_DEVICES: usize = 1_000;

type Answer = Result<Output, ApiError>;

pub(crate) fn handle(call: &mut Call<'_>, params: &Params) -> Answer {
    // GetSessionToken's credentials may call IAM only if they carry MFA; IAM then says they are unknown.
    if call.caller.is_user_session() && call.caller.mfa_time().is_none() {
        return Err(ApiError::unknown_key(call.service));
    }
    match call.action {
        "GetUser" => get_user(call, params),
        "GetRole" => get_role(call, params),
        "ListRolePolicies" => list_role_policies(call, params),
        "GetRolePolicy" => get_role_policy(call, params),
        "ListAttachedRolePolicies" => list_attached_role_policies(call, params),
        "ListUsers" => list::users(call, params),
        "ListRoles" => list::roles(call, params),
        "SimulatePrincipalPolicy" => simulate::principal_policy(call, params),
        "CreatePolicy" => write::create_policy(call, params),
        "CreateRole" => write::create_role(call, params),
        "AttachUserPolicy" => write::attach_user_policy(call, params),
        "AttachRolePolicy" => write::attach_role_policy(call, params),
        "GetAccountSummary" => account_summary(call),
        "ListMFADevices" => list_devices(call, params),
        "CreateVirtualMFADevice" => create_device(call, params),
        "DeleteVirtualMFADevice" => delete_device(call, params),
        "EnableMFADevice" => enable_device(call, params),
        "ResyncMFADevice" => resync_device(call, params),
        "DeactivateMFADevice" => deactivate_device(call, params),
        _ => Err(call.unknown_action()),
    }
}

fn required<'a>(params: &'a Params, name: &str) -> Result<&'a str, ApiError> {
    params.get(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        ApiError::validation(format!(
            "1 validation error detected: Value null at '{name}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

fn no_such(what: impl std::fmt::Display) -> ApiError {
    ApiError::new(404, "NoSuchEntity", format!("{what} cannot be found."))
}

/// `UserName`, or the calling user.
fn user_name(call: &Call<'_>, params: &Params) -> Result<String, ApiError> {
    match (params.get("UserName"), &call.caller.identity) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, Identity::User { name, .. }) => Ok(name.clone()),
        _ => Err(ApiError::validation(
            "Must specify userName when calling with non-User credentials",
        )),
    }
}

fn find_user<'a>(call: &'a Call<'_>, name: &str) -> Result<&'a User, ApiError> {
    call.account
        .user(name)
        .ok_or_else(|| no_such(format!("The user with name {name}")))
}

fn get_user(call: &Call<'_>, params: &Params) -> Answer {
    if params.get("UserName").is_none() && call.caller.identity == Identity::Root {
        return Ok(Output::Xml(Some(vec![node(
            "User",
            vec![
                text("UserId", call.account.id.clone()),
                text("Arn", call.caller.arn()),
                text("CreateDate", timestamp(call.now)),
            ],
        )])));
    }
    let name = user_name(call, params)?;
    let arn = call.account.user_arn(&name);
    call.authorise("iam:GetUser", &arn)?;
    let user = find_user(call, &name)?;
    Ok(Output::Xml(Some(vec![node(
        "User",
        user_fields(call, user),
    )])))
}

fn user_fields(call: &Call<'_>, user: &User) -> Vec<Element> {
    vec![
        text("Path", "/"),
        text("UserName", &user.seed.name),
        text("UserId", &user.seed.unique_id),
        text("Arn", call.account.user_arn(&user.seed.name)),
        text("CreateDate", timestamp(user.created)),
    ]
}

/// The role that a call names, if the caller may do `action` with it.
fn permitted_role<'a>(
    call: &'a Call<'_>,
    params: &Params,
    action: &str,
) -> Result<&'a Role, ApiError> {
    let name = required(params, "RoleName")?;
    let role = call.account.role(name);
    let arn = match role {
        Some(role) => call.account.role_arn(role),
        None => format!("arn:aws:iam::{}:role/{name}", call.account.id),
    };
    call.authorise(action, &arn)?;
    role.ok_or_else(|| no_such(format!("The role with name {name}")))
}

fn get_role(call: &Call<'_>, params: &Params) -> Answer {
    let role = permitted_role(call, params, "iam:GetRole")?;
    let mut fields = role_fields(call, role);
    if role.seed.boundary.is_some() {
        fields.push(node(
            "PermissionsBoundary",
            vec![
                text("PermissionsBoundaryType", "Policy"),
                text(
                    "PermissionsBoundaryArn",
                    format!(
                        "arn:aws:iam::{}:policy/{}-boundary",
                        call.account.id, role.seed.name
                    ),
                ),
            ],
        ));
    }
    Ok(Output::Xml(Some(vec![node("Role", fields)])))
}

fn role_fields(call: &Call<'_>, role: &Role) -> Vec<Element> {
    vec![
        text("Path", &role.seed.path),
        text("RoleName", &role.seed.name),
        text("RoleId", &role.seed.unique_id),
        text("Arn", call.account.role_arn(role)),
        text("CreateDate", timestamp(role.created)),
        text(
            "AssumeRolePolicyDocument",
            encode(role.seed.trust_policy.as_bytes()),
        ),
        text("MaxSessionDuration", role.seed.max_session.to_string()),
    ]
}

fn list_role_policies(call: &Call<'_>, params: &Params) -> Answer {
    let role = permitted_role(call, params, "iam:ListRolePolicies")?;
    let names = role
        .seed
        .policies
        .iter()
        .map(|(name, _)| text("member", name))
        .collect();
    Ok(Output::Xml(Some(vec![
        node("PolicyNames", names),
        text("IsTruncated", "false"),
    ])))
}

fn get_role_policy(call: &Call<'_>, params: &Params) -> Answer {
    let role = permitted_role(call, params, "iam:GetRolePolicy")?;
    let wanted = required(params, "PolicyName")?;
    let found = role.seed.policies.iter().find(|(name, _)| name == wanted);
    let (name, document) =
        found.ok_or_else(|| no_such(format!("The role policy with name {wanted}")))?;
    Ok(Output::Xml(Some(vec![
        text("RoleName", &role.seed.name),
        text("PolicyName", name),
        text("PolicyDocument", encode(document.as_bytes())),
    ])))
}

/// All policies of the lab are inline.
fn list_attached_role_policies(call: &Call<'_>, params: &Params) -> Answer {
    permitted_role(call, params, "iam:ListAttachedRolePolicies")?;
    Ok(Output::Xml(Some(vec![
        node("AttachedPolicies", vec![]),
        text("IsTruncated", "false"),
    ])))
}

fn account_summary(call: &Call<'_>) -> Answer {
    call.authorise("iam:GetAccountSummary", "*")?;
    let (users, roles) = call.account.counts();
    let in_use = call
        .account
        .devices
        .values()
        .filter(|device| device.owner.is_some())
        .count();
    let entries = [
        ("Users", users),
        ("Roles", roles),
        ("MFADevices", call.account.devices.len()),
        ("MFADevicesInUse", in_use),
        ("AccountMFAEnabled", usize::from(call.account.root_mfa)),
        (
            "AccountAccessKeysPresent",
            usize::from(call.account.root_has_key()),
        ),
    ];
    let entry = |(key, value): (&str, usize)| {
        node(
            "entry",
            vec![text("key", key), text("value", value.to_string())],
        )
    };
    Ok(Output::Xml(Some(vec![node(
        "SummaryMap",
        entries.map(entry).into(),
    )])))
}

fn list_devices(call: &Call<'_>, params: &Params) -> Answer {
    let name = user_name(call, params)?;
    call.authorise("iam:ListMFADevices", &call.account.user_arn(&name))?;
    find_user(call, &name)?;
    let members = call
        .account
        .devices
        .values()
        .filter(|device| device.owner.as_deref() == Some(&name))
        .map(|device| {
            node(
                "member",
                vec![
                    text("UserName", &name),
                    text("SerialNumber", &device.serial),
                    text(
                        "EnableDate",
                        timestamp(device.enabled_at.unwrap_or(call.now)),
                    ),
                ],
            )
        })
        .collect();
    Ok(Output::Xml(Some(vec![
        node("MFADevices", members),
        text("IsTruncated", "false"),
    ])))
}

/// The seed is told here and never again. A QR code would be a picture of it; nobody in the lab has a camera.
fn create_device(call: &mut Call<'_>, params: &Params) -> Answer {
    let name = required(params, "VirtualMFADeviceName")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    if name.len() > 226
        || !name.chars().all(plain)
        || params.get("Path").is_some_and(|path| path != "/")
    {
        return Err(ApiError::validation(
            "The name or path of the device is not valid",
        ));
    }
    let serial = call.account.mfa_serial(name);
    call.authorise("iam:CreateVirtualMFADevice", &serial)?;
    if call.account.devices.contains_key(&serial) {
        let message = "MFADevice entity at the same path and name already exists.";
        return Err(ApiError::new(409, "EntityAlreadyExists", message));
    }
    if call.account.devices.len() >= MAX_DEVICES {
        return Err(ApiError::new(
            409,
            "LimitExceeded",
            "Too many virtual MFA devices.",
        ));
    }
    let secret = ids::totp_secret();
    let seed = totp::from_base32(&secret).unwrap_or_default();
    call.account
        .devices
        .insert(serial.clone(), Device::new(serial.clone(), seed));
    Ok(Output::Xml(Some(vec![node(
        "VirtualMFADevice",
        vec![
            text("SerialNumber", serial),
            text("Base32StringSeed", STANDARD.encode(secret)),
        ],
    )])))
}

fn delete_device(call: &mut Call<'_>, params: &Params) -> Answer {
    let serial = required(params, "SerialNumber")?;
    call.authorise("iam:DeleteVirtualMFADevice", serial)?;
    match call.account.devices.get(serial) {
        None => return Err(no_device(serial)),
        Some(device) if device.owner.is_some() => {
            let message = "MFA VirtualDevice in use. Must deactivate first.";
            return Err(ApiError::new(409, "DeleteConflict", message));
        }
        Some(_) => {}
    }
    call.account.devices.remove(serial);
    Ok(Output::Xml(None))
}

fn no_device(serial: &str) -> ApiError {
    no_such(format!("VirtualMFADevice with serial number {serial}"))
}

fn codes(params: &Params) -> Result<(&str, &str), ApiError> {
    let code = |name| {
        required(params, name).and_then(|code: &str| {
            let six_digits = code.len() == 6 && code.chars().all(|c| c.is_ascii_digit());
            six_digits.then_some(code).ok_or_else(|| {
                ApiError::validation(format!(
                    "1 validation error detected: '{name}' must be six digits"
                ))
            })
        })
    };
    Ok((code("AuthenticationCode1")?, code("AuthenticationCode2")?))
}

fn refused(refusal: Refusal, serial: &str) -> ApiError {
    match refusal {
        Refusal::Throttled => ApiError::new(400, "Throttling", "Rate exceeded"),
        Refusal::WrongCode | Refusal::NotEnabled => ApiError::new(
            403,
            "InvalidAuthenticationCode",
            format!("Authentication code for device is not valid: {serial}"),
        ),
    }
}

fn enable_device(call: &mut Call<'_>, params: &Params) -> Answer {
    let name = required(params, "UserName")?;
    let serial = required(params, "SerialNumber")?;
    let codes = codes(params)?;
    call.authorise("iam:EnableMFADevice", &call.account.user_arn(name))?;
    find_user(call, name)?;
    // Since AWS-2023-001 a further device needs a session that proved an existing one.
    if call.account.device_of(name).is_some() && call.caller.mfa_time().is_none() {
        let arn = call.account.user_arn(name);
        return Err(ApiError::denied(
            call.service,
            &call.caller.arn(),
            "iam:EnableMFADevice",
            &arn,
            true,
        ));
    }
    let device = call
        .account
        .devices
        .get_mut(serial)
        .ok_or_else(|| no_device(serial))?;
    if device.owner.is_some() {
        let message = "MFA Device is already in use.";
        return Err(ApiError::new(409, "EntityAlreadyExists", message));
    }
    device
        .enable(name, codes, call.now)
        .map_err(|refusal| refused(refusal, serial))?;
    Ok(Output::Xml(None))
}

/// The device, if it belongs to the user that the call names and the caller may do `action` with it.
fn own_device<'a>(
    call: &'a mut Call<'_>,
    params: &'a Params,
    action: &str,
) -> Result<&'a mut Device, ApiError> {
    let name = required(params, "UserName")?;
    let serial = required(params, "SerialNumber")?;
    call.authorise(action, &call.account.user_arn(name))?;
    find_user(call, name)?;
    call.account
        .devices
        .get_mut(serial)
        .filter(|device| device.owner.as_deref() == Some(name))
        .ok_or_else(|| no_device(serial))
}

fn resync_device(call: &mut Call<'_>, params: &Params) -> Answer {
    let (codes, now) = (codes(params)?, call.now);
    let device = own_device(call, params, "iam:ResyncMFADevice")?;
    let serial = device.serial.clone();
    device
        .resync(codes, now)
        .map_err(|refusal| refused(refusal, &serial))?;
    Ok(Output::Xml(None))
}

fn deactivate_device(call: &mut Call<'_>, params: &Params) -> Answer {
    own_device(call, params, "iam:DeactivateMFADevice")?.deactivate();
    Ok(Output::Xml(None))
}
