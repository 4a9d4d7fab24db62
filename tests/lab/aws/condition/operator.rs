//! Operators by name, and how each compares two values by their type.

use std::net::IpAddr;

use ipnet::IpNet;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Context, Match};
use crate::aws::pattern::Pattern;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Bool,
    Null,
    String { ignore_case: bool },
    StringLike,
    Numeric(Order),
    Date(Order),
    IpAddress,
    Arn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Equals,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

pub(super) fn test_named(operator: &str) -> Option<(Test, bool)> {
    let exact = Test::String { ignore_case: false };
    let relaxed = Test::String { ignore_case: true };
    Some(match operator {
        "Bool" => (Test::Bool, false),
        "Null" => (Test::Null, false),
        "StringEquals" => (exact, false),
        "StringNotEquals" => (exact, true),
        "StringEqualsIgnoreCase" => (relaxed, false),
        "StringNotEqualsIgnoreCase" => (relaxed, true),
        "StringLike" => (Test::StringLike, false),
        "StringNotLike" => (Test::StringLike, true),
        "ArnEquals" | "ArnLike" => (Test::Arn, false),
        "ArnNotEquals" | "ArnNotLike" => (Test::Arn, true),
        "IpAddress" => (Test::IpAddress, false),
        "NotIpAddress" => (Test::IpAddress, true),
        other => {
            let (family, order) = match other.strip_prefix("Numeric") {
                Some(order) => (Test::Numeric as fn(Order) -> Test, order),
                None => (Test::Date as fn(Order) -> Test, other.strip_prefix("Date")?),
            };
            let (order, negated) = match order {
                "Equals" => (Order::Equals, false),
                "NotEquals" => (Order::Equals, true),
                "LessThan" => (Order::Less, false),
                "LessThanEquals" => (Order::LessOrEqual, false),
                "GreaterThan" => (Order::Greater, false),
                "GreaterThanEquals" => (Order::GreaterOrEqual, false),
                _ => return None,
            };
            (family(order), negated)
        }
    })
}

impl Test {
    pub(super) fn compare(self, actual: &str, wanted: &str, context: &Context) -> Match {
        match self {
            // Null is answered before values are compared.
            Self::Null => Match::Doubt,
            Self::Bool => match (bool_of(actual), bool_of(wanted)) {
                (Some(actual), Some(wanted)) => (actual == wanted).into(),
                _ => Match::Doubt,
            },
            Self::String { ignore_case } => match Pattern::literal(wanted, context) {
                Some(wanted) if ignore_case => {
                    (wanted.to_lowercase() == actual.to_lowercase()).into()
                }
                Some(wanted) => (wanted == actual).into(),
                None => Match::Doubt,
            },
            Self::StringLike => Pattern::parse(wanted, context)
                .map_or(Match::Doubt, |pattern| pattern.matches(actual).into()),
            Self::Arn => arn_like(actual, wanted, context),
            Self::Numeric(order) => compare(order, number(actual), number(wanted)),
            Self::Date(order) => compare(order, date(actual), date(wanted)),
            Self::IpAddress => {
                let wanted = wanted
                    .parse::<IpNet>()
                    .or_else(|_| wanted.parse::<IpAddr>().map(IpNet::from));
                match (actual.parse::<IpAddr>(), wanted) {
                    (Ok(actual), Ok(wanted)) => wanted.contains(&actual).into(),
                    _ => Match::Doubt,
                }
            }
        }
    }
}

fn compare<T: PartialOrd>(order: Order, actual: Option<T>, wanted: Option<T>) -> Match {
    let (Some(actual), Some(wanted)) = (actual, wanted) else {
        return Match::Doubt;
    };
    match order {
        Order::Equals => actual == wanted,
        Order::Less => actual < wanted,
        Order::LessOrEqual => actual <= wanted,
        Order::Greater => actual > wanted,
        Order::GreaterOrEqual => actual >= wanted,
    }
    .into()
}

fn bool_of(text: &str) -> Option<bool> {
    if text.eq_ignore_ascii_case("true") {
        Some(true)
    } else if text.eq_ignore_ascii_case("false") {
        Some(false)
    } else {
        None
    }
}

fn number(text: &str) -> Option<f64> {
    text.trim()
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
}

/// W3C dates, or seconds since 1970.
fn date(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(seconds);
    }
    let full = if text.len() == 10 {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    OffsetDateTime::parse(&full, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp)
}

/// Each of the six parts of an ARN is compared on its own, wildcards included.
fn arn_like(actual: &str, wanted: &str, context: &Context) -> Match {
    let actual: Vec<&str> = actual.splitn(6, ':').collect();
    let wanted: Vec<&str> = wanted.splitn(6, ':').collect();
    if actual.len() != 6 || wanted.len() != 6 {
        return Match::No;
    }
    actual
        .iter()
        .zip(wanted)
        .fold(Match::Yes, |so_far, (actual, wanted)| {
            let part = Pattern::parse(wanted, context)
                .map_or(Match::Doubt, |pattern| pattern.matches(actual).into());
            so_far.and(part)
        })
}
