//! A [`Request`] as Cedar sees it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request as CedarRequest,
    RestrictedExpression as Value,
};
use postern_proto::names::{Assurance, LoginUser, Principal};
use time::OffsetDateTime;

use super::load::SCHEMA;
use super::{Action, Request};
use crate::inventory::Target;

/// All that a decision depends on. Copied freely, so that explanations can ask "what if".
#[derive(Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) principal: &'a Principal,
    /// Serial of the certificate; empty before there is one.
    pub(super) certificate: &'a str,
    pub(super) action: Action,
    pub(super) target: Option<&'a Target>,
    pub(super) source: IpAddr,
    pub(super) user: Option<&'a str>,
    pub(super) port: Option<u16>,
    pub(super) host: Option<&'a str>,
    pub(super) assurance: Assurance,
    pub(super) mfa_not_before: i64,
    pub(super) now: OffsetDateTime,
}

impl<'a> Facts<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        Self {
            principal: request.who.principal(),
            certificate: request.who.serial(),
            action: request.action,
            target: request.target.as_deref(),
            source: request.source,
            user: request.user.as_ref().map(LoginUser::as_str),
            port: request.port,
            host: request.host.as_deref(),
            assurance: request.assurance,
            mfa_not_before: request.mfa_not_before,
            now: request.now,
        }
    }

    /// The same with a code given for it just now.
    pub(super) fn with_fresh_mfa(self) -> Self {
        Self {
            assurance: Assurance::AwsMfaFresh,
            mfa_not_before: self.now.unix_timestamp(),
            ..self
        }
    }
}

/// What Cedar is asked. Checked against the schema.
pub(super) struct Question {
    pub(super) request: CedarRequest,
    pub(super) entities: Entities,
}

impl Question {
    /// An error is the caller's fault (no target for `connect`, no port for `tunnel`) and must
    /// deny.
    pub(super) fn new(facts: &Facts<'_>) -> Result<Self, String> {
        let principal = principal_entity(facts.principal)?;
        let resource = match facts.target {
            Some(target) => target_entity(target)?,
            None => Entity::with_uid(uid(&LOG, "audit")),
        };
        let request = CedarRequest::new(
            principal.uid(),
            uid(&ACTION, facts.action.as_str()),
            resource.uid(),
            Context::from_pairs(context(facts)).map_err(|e| e.to_string())?,
            Some(&SCHEMA),
        )
        .map_err(|e| e.to_string())?;
        let entities = Entities::from_entities([principal, resource], Some(&SCHEMA))
            .map_err(|e| e.to_string())?;
        Ok(Self { request, entities })
    }
}

fn principal_entity(principal: &Principal) -> Result<Entity, String> {
    Entity::new(
        uid(&PRINCIPAL, &principal.key()),
        [
            ("account".to_owned(), string(principal.account.as_str())),
            ("user_id".to_owned(), string(principal.user_id.as_str())),
            ("arn".to_owned(), string(&principal.arn)),
        ]
        .into(),
        HashSet::new(),
    )
    .map_err(|e| e.to_string())
}

fn target_entity(target: &Target) -> Result<Entity, String> {
    let optional = |value: &Option<String>| string(value.as_deref().unwrap_or_default());
    let attributes = [
        ("id".to_owned(), string(target.id.as_str())),
        ("name".to_owned(), string(&target.name)),
        ("account".to_owned(), optional(&target.account)),
        ("region".to_owned(), optional(&target.region)),
        ("vpc".to_owned(), optional(&target.vpc)),
        ("platform".to_owned(), string(&target.platform)),
    ];
    let tags = target
        .tags
        .iter()
        .map(|(key, value)| (key.clone(), string(value)));
    Entity::new_with_tags(uid(&TARGET, target.id.as_str()), attributes, [], tags)
        .map_err(|e| e.to_string())
}

fn context(facts: &Facts<'_>) -> Vec<(String, Value)> {
    let now = facts.now.to_offset(time::UtcOffset::UTC);
    let not_before = OffsetDateTime::from_unix_timestamp(facts.mfa_not_before)
        .ok()
        .filter(|time| (1..=9999).contains(&time.year()))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // A clock that was behind at the login must not make MFA younger than just now.
    let age = (now - not_before).whole_seconds().max(0);
    let mut pairs = vec![
        ("assurance", string(&facts.assurance.to_string())),
        ("mfa_not_before", datetime(not_before)),
        ("mfa_age", Value::new_duration(format!("{age}s"))),
        (
            "certificate",
            string(&facts.certificate.to_ascii_lowercase()),
        ),
        (
            "source",
            Value::new_ip(facts.source.to_canonical().to_string()),
        ),
        ("now", datetime(now)),
        ("hour", Value::new_long(i64::from(now.hour()))),
        (
            "weekday",
            string(&now.weekday().to_string().to_ascii_lowercase()),
        ),
    ];
    // What the action does not have stays out, whatever the caller filled in.
    let (has_user, has_port) = match facts.action {
        Action::Connect | Action::ForwardAgent => (true, false),
        Action::Tunnel | Action::Reverse => (true, true),
        _ => (false, false),
    };
    if has_user && let Some(user) = facts.user {
        pairs.push(("user", string(user)));
    }
    if has_port && let Some(port) = facts.port {
        pairs.push(("port", Value::new_long(i64::from(port))));
    }
    if has_port && let Some(host) = facts.host {
        // Names are compared as DNS does: without regard to case, and to a dot at the end.
        let host = host.to_ascii_lowercase();
        pairs.push(("host", string(host.strip_suffix('.').unwrap_or(&host))));
    }
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

fn string(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

fn datetime(time: OffsetDateTime) -> Value {
    Value::new_datetime(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    ))
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

/// Declares an entity type of the schema.
macro_rules! kind {
    ($name:ident, $text:literal) => {
        static $name: LazyLock<EntityTypeName> =
            LazyLock::new(|| $text.parse().expect("an identifier is an entity type name"));
    };
}

kind!(PRINCIPAL, "Principal");
kind!(ACTION, "Action");
kind!(TARGET, "Target");
kind!(LOG, "Log");
