//! Session documents: AWS's own, which every account sees, and the account's.

use serde_json::{Map, Value, json};

use super::{Answer, text, validation};
use crate::aws::dispatch::Call;
use crate::aws::error::ApiError;
use crate::aws::reply::Output;
use crate::ssm::{AWS_DOCUMENTS, SessionDocument};

/// A document's ARN: AWS's own belong to no account.
pub(super) fn arn(call: &Call<'_>, name: &str) -> String {
    let owner = match AWS_DOCUMENTS.contains(&name) {
        true => "",
        false => &call.account.id,
    };
    format!("arn:aws:ssm:{}:{owner}:document/{name}", call.region)
}

/// The document of a name or ARN.
pub(super) fn find(call: &Call<'_>, name: &str) -> Result<SessionDocument, ApiError> {
    let own = call.documents.iter().find(|own| own.name == name).cloned();
    own.or_else(|| SessionDocument::of_aws(name))
        .or_else(|| {
            let shell = SessionDocument::default_shell();
            (shell.name == name).then_some(shell)
        })
        .ok_or_else(|| {
            ApiError::new(
                400,
                "InvalidDocument",
                format!("Document with name {name} does not exist."),
            )
        })
}

/// The name in `field`, without the ARN around it.
pub(super) fn name<'a>(
    body: &'a Map<String, Value>,
    field: &str,
) -> Result<Option<&'a str>, ApiError> {
    let Some(given) = text(body, field)? else {
        return Ok(None);
    };
    let name = match given.strip_prefix("arn:aws:ssm:") {
        Some(arn) => arn.rsplit('/').next().unwrap_or(arn),
        None => given,
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match (3..=128).contains(&name.len()) && name.chars().all(fits) {
        true => Ok(Some(name)),
        false => Err(validation(format!(
            "Value '{given}' at '{field}' failed to satisfy constraint"
        ))),
    }
}

pub(super) fn get(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    let name = name(body, "Name")?.ok_or_else(|| validation("Name is required"))?;
    call.authorise("ssm:GetDocument", &arn(call, name))?;
    let document = find(call, name)?;
    let content = serde_json::to_string_pretty(&document.content).unwrap_or_default();
    Ok(Output::Json(json!({
        "Name": document.name,
        "DocumentVersion": "1",
        "Status": "Active",
        "Content": content,
        "DocumentType": "Session",
        "DocumentFormat": "JSON",
    })))
}
