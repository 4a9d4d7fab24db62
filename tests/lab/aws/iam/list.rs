//! Users and roles of the account, in pages.

use crate::aws::dispatch::Call;
use crate::aws::error::ApiError;
use crate::aws::reply::{Element, node, text};
use crate::aws::request::Params;

use super::{Answer, Output, role_fields, user_fields};

/// Items of a page, when the caller names no number.
const PAGE: usize = 100;

pub(super) fn users(call: &Call<'_>, params: &Params) -> Answer {
    call.authorise("iam:ListUsers", &call.account.user_arn(""))?;
    let users = call.account.users();
    let members = users.map(|user| node("member", user_fields(call, user)));
    paged("Users", members.collect(), params)
}

pub(super) fn roles(call: &Call<'_>, params: &Params) -> Answer {
    let all = format!("arn:aws:iam::{}:role/", call.account.id);
    call.authorise("iam:ListRoles", &all)?;
    let roles = call.account.roles();
    let members = roles.map(|role| node("member", role_fields(call, role)));
    paged("Roles", members.collect(), params)
}

/// One page of a list, with the marker of the next.
pub(super) fn paged(name: &'static str, items: Vec<Element>, params: &Params) -> Answer {
    let invalid = |what: &str| ApiError::validation(format!("Value at '{what}' is not valid"));
    let size = match params.get("MaxItems") {
        None => PAGE,
        Some(size) => size
            .parse()
            .ok()
            .filter(|size| (1..=1_000).contains(size))
            .ok_or_else(|| invalid("maxItems"))?,
    };
    let from = match params.get("Marker") {
        None => 0,
        Some(marker) => marker
            .strip_prefix("from-")
            .and_then(|from| from.parse::<usize>().ok())
            .ok_or_else(|| invalid("marker"))?,
    };
    let next = from.saturating_add(size);
    let more = next < items.len();
    let page = items.into_iter().skip(from).take(size).collect();
    let mut answer = vec![node(name, page), text("IsTruncated", more.to_string())];
    if more {
        answer.push(text("Marker", format!("from-{next}")));
    }
    Ok(Output::Xml(Some(answer)))
}
