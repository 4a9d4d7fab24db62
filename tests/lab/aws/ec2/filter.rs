//! Filters and pages, the same for every EC2 list.

use super::error;
use crate::aws::error::ApiError;
use crate::aws::pattern::Pattern;
use crate::aws::request::Params;

/// A list's longest page, and its length when nobody asks for another.
const PAGE: usize = 1_000;

/// The range of this page and the token of the next. The token is the place to go on from.
pub(super) fn page(
    params: &Params,
    total: usize,
    by_id: bool,
) -> Result<(usize, usize, Option<String>), ApiError> {
    let size = match params.get("MaxResults") {
        None => PAGE,
        Some(_) if by_id => {
            let message = "The parameter instancesSet cannot be used with the parameter maxResults";
            return Err(error("InvalidParameterCombination", message));
        }
        Some(value) => value
            .parse()
            .ok()
            .filter(|size| (5..=PAGE).contains(size))
            .ok_or_else(|| {
                let message = format!(
                    "Value ( {value} ) for parameter maxResults is invalid. Expecting 5 to 1000."
                );
                error("InvalidParameterValue", message)
            })?,
    };
    let from = match params.get("NextToken") {
        None => 0,
        Some(token) => token
            .strip_prefix("page-")
            .and_then(|from| from.parse().ok())
            .filter(|from| *from <= total)
            .ok_or_else(|| error("InvalidNextToken", "The token is not valid"))?,
    };
    let to = total.min(from + size);
    Ok((from, to, (to < total).then(|| format!("page-{to}"))))
}

/// `Filter.N.Name` and `Filter.N.Value.M`.
pub(super) fn filters(params: &Params) -> Result<Vec<(&str, Vec<Pattern>)>, ApiError> {
    let mut filters = Vec::new();
    for index in 1_usize.. {
        let Some(name) = params.get(&format!("Filter.{index}.Name")) else {
            break;
        };
        let values = params.list(&format!("Filter.{index}.Value"));
        if values.is_empty() {
            return Err(error(
                "InvalidParameterValue",
                format!("The filter '{name}' has no values"),
            ));
        }
        filters.push((name, values.into_iter().map(Pattern::plain).collect()));
    }
    Ok(filters)
}

/// Filters are and-ed, the values of one are or-ed. A filter that is not known is an error, never ignored.
pub(super) fn fits(
    filters: &[(&str, Vec<Pattern>)],
    tags: &[(String, String)],
    field: impl Fn(&str) -> Option<Option<String>>,
) -> Result<bool, ApiError> {
    for (name, patterns) in filters {
        let any = |value: &str| patterns.iter().any(|pattern| pattern.matches(value));
        let found = if let Some(key) = name.strip_prefix("tag:") {
            tags.iter().any(|(k, value)| k == key && any(value))
        } else if *name == "tag-key" {
            tags.iter().any(|(key, _)| any(key))
        } else {
            field(name)
                .ok_or_else(|| {
                    error(
                        "InvalidParameterValue",
                        format!("The filter '{name}' is invalid"),
                    )
                })?
                .is_some_and(|value| any(&value))
        };
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}
