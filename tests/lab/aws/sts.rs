//! STS: who is asking, MFA sessions, and roles.
//!
//! Source of constraints, codes and texts: the STS API model (2011-06-15) and reference; of which credentials may call
//! what: "Compare AWS STS credentials" in the IAM user guide.

use time::Duration;

use super::account::Issued;
use super::caller::Identity;
use super::dispatch::Call;
use super::error::ApiError;
use super::policy::{Policy, Verdict};
use super::reply::{Element, Output, node, text};
use super::request::Params;
use super::totp::Refusal;
use super::trail::timestamp;

/// Root may have an hour at most.
const ROOT_SESSION: i64 = 3_600;

/// A role session that assumes a role gets an hour at most.
const CHAINED_SESSION: i64 = 3_600;

type Answer = Result<Output, ApiError>;

pub(crate) fn handle(call: &mut Call<'_>, params: &Params) -> Answer {
    // GetSessionToken's credentials may call these two and nothing else of STS.
    if call.caller.is_user_session() && !matches!(call.action, "AssumeRole" | "GetCallerIdentity") {
        return Err(with_session(call.action));
    }
    match call.action {
        "GetCallerIdentity" => Ok(caller_identity(call)),
        "GetSessionToken" => session_token(call, params),
        "AssumeRole" => assume_role(call, params),
        "GetAccessKeyInfo" => access_key_info(call, params),
        _ => Err(call.unknown_action()),
    }
}

fn with_session(action: &str) -> ApiError {
    access_denied(format!("Cannot call {action} with session credentials"))
}

fn access_denied(message: impl Into<String>) -> ApiError {
    ApiError::new(403, "AccessDenied", message)
}

/// Needs no permission, and none can take it away.
fn caller_identity(call: &Call<'_>) -> Output {
    Output::Xml(Some(vec![
        text("Arn", call.caller.arn()),
        text("UserId", call.caller.user_id()),
        text("Account", call.caller.account.clone()),
    ]))
}

/// Needs no permission either, but a long-term key.
fn session_token(call: &mut Call<'_>, params: &Params) -> Answer {
    if call.caller.session.is_some() {
        return Err(with_session(call.action));
    }
    let root = call.caller.identity == Identity::Root;
    let default = if root { ROOT_SESSION } else { 43_200 };
    let seconds = duration(params, 129_600)?.unwrap_or(default);
    let seconds = if root {
        seconds.min(ROOT_SESSION)
    } else {
        seconds
    };
    let mfa = check_code(call, params)?.then_some(call.now);
    let identity = call.caller.identity.clone();
    let issued = call
        .account
        .issue(identity, call.now, Duration::seconds(seconds), mfa, None)
        .ok_or_else(throttled)?;
    Ok(Output::Xml(Some(vec![credentials(issued)])))
}

fn assume_role(call: &mut Call<'_>, params: &Params) -> Answer {
    let arn = required(params, "RoleArn", "roleArn", 20..=2_048, |_| true)?.to_owned();
    let session_name = required(
        params,
        "RoleSessionName",
        "roleSessionName",
        2..=64,
        is_name,
    )?
    .to_owned();
    let asked = duration(params, 43_200)?;
    let policy = session_policy(params)?;
    if call.caller.identity == Identity::Root {
        return Err(access_denied("Roles may not be assumed by root accounts."));
    }
    let external_id = params
        .get("ExternalId")
        .map(|id| {
            constrained(id, "externalId", 2..=1_224, |c| {
                is_name(c) || c == ':' || c == '/'
            })
        })
        .transpose()?;

    // A code is burnt whether or not the role may be assumed with it.
    call.mfa_in_call = check_code(call, params)?;
    let mut context = call.context.clone();
    context.set("sts:RoleSessionName", session_name.clone());
    if let Some(id) = external_id {
        context.set("sts:ExternalId", id);
    }
    if call.mfa_in_call {
        context.set("aws:MultiFactorAuthPresent", "true");
        context.set("aws:MultiFactorAuthAge", "0");
    }

    let denied = || {
        let who = call.caller.arn();
        access_denied(format!(
            "User: {who} is not authorized to perform: sts:AssumeRole on resource: {arn}"
        ))
    };
    let role = call.account.role_by_arn(&arn).ok_or_else(denied)?;
    if call.account.decide_assume(&call.caller, role, &context) != Verdict::Allowed {
        return Err(denied());
    }
    refuse_unsupported(call, params, &arn)?;
    let limit = if call.caller.is_role() {
        CHAINED_SESSION
    } else {
        i64::from(role.seed.max_session)
    };
    let seconds = asked.unwrap_or(3_600);
    if seconds > limit {
        return Err(ApiError::validation(if call.caller.is_role() {
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
        } else {
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
        }));
    }

    let (name, path) = (role.seed.name.clone(), role.seed.path.clone());
    let unique_id = role.seed.unique_id.clone();
    let assumed = node(
        "AssumedRoleUser",
        vec![
            text("AssumedRoleId", format!("{unique_id}:{session_name}")),
            text(
                "Arn",
                format!(
                    "arn:aws:sts::{}:assumed-role/{name}/{session_name}",
                    call.account.id
                ),
            ),
        ],
    );
    let packed = policy
        .as_ref()
        .map(|(_, size)| text("PackedPolicySize", size.to_string()));
    // The session remembers no MFA, however it came about: AWS tells a role session nothing of it.
    let issued = call
        .account
        .issue(
            Identity::Role {
                name,
                path,
                unique_id,
                session_name,
            },
            call.now,
            Duration::seconds(seconds),
            None,
            policy.map(|(policy, _)| policy),
        )
        .ok_or_else(throttled)?;
    Ok(Output::Xml(Some(
        [credentials(issued), assumed]
            .into_iter()
            .chain(packed)
            .collect(),
    )))
}

/// What changes the session in a way that the emulator does not follow is refused, never ignored.
fn refuse_unsupported(call: &Call<'_>, params: &Params, arn: &str) -> Result<(), ApiError> {
    let needs = [
        ("Tags.", "sts:TagSession"),
        ("SourceIdentity", "sts:SetSourceIdentity"),
        ("ProvidedContexts.", "sts:SetContext"),
    ];
    for (prefix, action) in needs {
        if params.any_starts_with(prefix) {
            let who = call.caller.arn();
            return Err(access_denied(format!(
                "User: {who} is not authorized to perform: {action} on resource: {arn}"
            )));
        }
    }
    if params.any_starts_with("PolicyArns.") {
        return Err(ApiError::validation(
            "The specified managed policies do not exist.",
        ));
    }
    Ok(())
}

fn access_key_info(call: &mut Call<'_>, params: &Params) -> Answer {
    let id = required(params, "AccessKeyId", "accessKeyId", 16..=128, |c| {
        c.is_ascii_alphanumeric()
    })?;
    call.authorise("sts:GetAccessKeyInfo", "*")?;
    if !call.account.knows_key(id) {
        return Err(ApiError::validation(
            "The specified access key does not exist.",
        ));
    }
    Ok(Output::Xml(Some(vec![text(
        "Account",
        call.account.id.clone(),
    )])))
}

/// True if the call carries a right code of the caller's own device, which is thereby used up; false if it has none.
fn check_code(call: &mut Call<'_>, params: &Params) -> Result<bool, ApiError> {
    let (serial, code) = match (params.get("SerialNumber"), params.get("TokenCode")) {
        (None, None) => return Ok(false),
        (Some(serial), Some(code)) => (serial, code),
        _ => {
            return Err(access_denied(
                "MultiFactorAuthentication failed, must provide both MFA serial number and one time pass code.",
            ));
        }
    };
    constrained(serial, "serialNumber", 9..=256, |c| {
        is_name(c) || c == ':' || c == '/'
    })?;
    constrained(code, "tokenCode", 6..=6, |c| c.is_ascii_digit())?;
    let owner = match &call.caller.identity {
        Identity::User { name, .. } => Some(name.as_str()),
        _ => None,
    };
    let device = call
        .account
        .devices
        .get_mut(serial)
        .filter(|device| device.owner.is_some() && device.owner.as_deref() == owner);
    let Some(device) = device else {
        return Err(access_denied(
            "MultiFactorAuthentication failed, unable to validate MFA code. Please verify your MFA serial number \
             is valid and associated with this user.",
        ));
    };
    match device.accept(code, call.now) {
        Ok(()) => Ok(true),
        Err(Refusal::WrongCode | Refusal::NotEnabled) => Err(access_denied(
            "MultiFactorAuthentication failed with invalid MFA one time pass code. ",
        )),
        Err(Refusal::Throttled) => Err(access_denied(
            "MultiFactorAuthentication failed, too many attempts with this device. Wait a minute and try again.",
        )),
    }
}

/// The session policy and how many percent of the packed limit it takes.
fn session_policy(params: &Params) -> Result<Option<(Policy, usize)>, ApiError> {
    const LIMIT: usize = 2_048;
    let Some(document) = params.get("Policy") else {
        return Ok(None);
    };
    if document.len() > LIMIT {
        let message =
            "Packed policy consumes more than 100% of allotted space, please use smaller policy.";
        return Err(ApiError::new(400, "PackedPolicyTooLarge", message));
    }
    let policy = Policy::parse(document)
        .map_err(|error| ApiError::new(400, "MalformedPolicyDocument", error.to_string()))?;
    Ok(Some((policy, (document.len() * 100).div_ceil(LIMIT))))
}

fn credentials(issued: Issued) -> Element {
    node(
        "Credentials",
        vec![
            text("AccessKeyId", issued.access_key_id),
            text("SecretAccessKey", issued.secret),
            text("SessionToken", issued.token),
            text("Expiration", timestamp(issued.expires)),
        ],
    )
}

fn throttled() -> ApiError {
    ApiError::new(400, "Throttling", "Rate exceeded")
}

fn duration(params: &Params, maximum: i64) -> Result<Option<i64>, ApiError> {
    let Some(text) = params.get("DurationSeconds") else {
        return Ok(None);
    };
    let seconds = text.parse::<i64>().ok();
    let bound = match seconds {
        None => {
            return Err(ApiError::new(
                400,
                "MalformedInput",
                "DurationSeconds is not an integer",
            ));
        }
        Some(seconds) if seconds < 900 => "greater than or equal to 900".to_owned(),
        Some(seconds) if seconds > maximum => format!("less than or equal to {maximum}"),
        fine => return Ok(fine),
    };
    Err(ApiError::validation(format!(
        "1 validation error detected: Value '{text}' at 'durationSeconds' failed to satisfy constraint: Member must \
         have value {bound}"
    )))
}

fn required<'a>(
    params: &'a Params,
    name: &str,
    member: &str,
    length: std::ops::RangeInclusive<usize>,
    allowed: impl Fn(char) -> bool,
) -> Result<&'a str, ApiError> {
    let value = params.get(name).ok_or_else(|| {
        ApiError::validation(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ))
    })?;
    constrained(value, member, length, allowed)
}

fn constrained<'a>(
    value: &'a str,
    member: &str,
    length: std::ops::RangeInclusive<usize>,
    allowed: impl Fn(char) -> bool,
) -> Result<&'a str, ApiError> {
    let why = if value.len() < *length.start() {
        format!("have length greater than or equal to {}", length.start())
    } else if value.len() > *length.end() {
        format!("have length less than or equal to {}", length.end())
    } else if !value.chars().all(allowed) {
        "satisfy the regular expression pattern of this member".to_owned()
    } else {
        return Ok(value);
    };
    Err(ApiError::validation(format!(
        "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: Member must {why}"
    )))
}

/// `[\w+=,.@-]`
fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)
}
