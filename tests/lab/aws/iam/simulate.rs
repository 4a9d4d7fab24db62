//! SimulatePrincipalPolicy, answered by the same engine that decides real calls.
//!
//! In the form of answers that the API model describes since 2026: one result an action, with a decision on each
//! resource inside. What the simulator knows of the caller it sets itself; the rest of a request is what is given.

use crate::aws::account::simulate::{Simulated, Source};
use crate::aws::condition::Context;
use crate::aws::dispatch::Call;
use crate::aws::error::ApiError;
use crate::aws::policy::{Policy, Verdict};
use crate::aws::reply::{Element, node, text};
use crate::aws::request::Params;
use crate::aws::trail::timestamp;

use super::list::paged;
use super::{Answer, no_such, required};

/// Actions times resources of one call.
const MOST: usize = 1_000;

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "InvalidInput", message)
}

pub(super) fn principal_policy(call: &Call<'_>, params: &Params) -> Answer {
    let arn = required(params, "PolicySourceArn")?;
    call.authorise("iam:SimulatePrincipalPolicy", arn)?;
    if params.get("ResourcePolicy").is_some() || params.get("CallerArn").is_some() {
        return Err(invalid(
            "the lab simulates identity policies of the identity itself",
        ));
    }
    let source = source(call, arn).ok_or_else(|| no_such(arn))?;
    let more: Vec<Policy> = params
        .list("PolicyInputList.member")
        .into_iter()
        .map(|document| Policy::parse(document).map_err(|error| invalid(error.to_string())))
        .collect::<Result<_, _>>()?;
    let actions = params.list("ActionNames.member");
    if actions.is_empty() || actions.iter().any(|action| !action.contains(':')) {
        return Err(invalid("ActionNames must name actions of services"));
    }
    let mut resources = params.list("ResourceArns.member");
    let given = !resources.is_empty();
    if !given {
        resources.push("*");
    }
    if resources
        .iter()
        .any(|arn| *arn != "*" && arn.splitn(6, ':').count() != 6)
    {
        return Err(invalid("Invalid Resource Arn"));
    }
    if actions.len() * resources.len() > MOST {
        return Err(invalid("too many actions and resources"));
    }
    let context = context(call, params, source, arn)?;
    let mut results = Vec::new();
    for action in actions {
        let mut simulated = Vec::new();
        for resource in &resources {
            let one = call
                .account
                .simulate(source, &more, action, resource, &context);
            simulated.push((*resource, one.ok_or_else(|| no_such(arn))?));
        }
        results.push(result(action, &simulated, given));
    }
    paged("EvaluationResults", results, params)
}

fn source<'a>(call: &Call<'_>, arn: &'a str) -> Option<Source<'a>> {
    if let Some(role) = call.account.role_by_arn(arn) {
        let name = arn
            .rsplit('/')
            .next()
            .filter(|name| *name == role.seed.name)?;
        return Some(Source::Role(name));
    }
    let name = arn.strip_prefix(&call.account.user_arn(""))?;
    call.account.user(name).map(|_| Source::User(name))
}

/// What the simulator knows by itself, and over it what the caller gives.
fn context(
    call: &Call<'_>,
    params: &Params,
    source: Source<'_>,
    arn: &str,
) -> Result<Context, ApiError> {
    let mut context = Context::default();
    context.set("aws:PrincipalArn", arn);
    context.set("aws:PrincipalAccount", &*call.account.id);
    context.set("aws:CurrentTime", timestamp(call.now));
    if let Source::User(name) = source
        && let Some(user) = call.account.user(name)
    {
        context.set("aws:username", name);
        context.set("aws:userid", &*user.seed.unique_id);
        context.set("aws:PrincipalType", "User");
    }
    for index in 1.. {
        let entry = format!("ContextEntries.member.{index}");
        let Some(key) = params.get(&format!("{entry}.ContextKeyName")) else {
            break;
        };
        let kind = params.get(&format!("{entry}.ContextKeyType"));
        let values = params.list(&format!("{entry}.ContextKeyValues.member"));
        match (kind, &values[..]) {
            (Some("string" | "numeric" | "boolean" | "ip" | "date"), [value]) => {
                context.set(key, *value);
            }
            _ => return Err(invalid(format!("{key}: the lab knows single values"))),
        }
    }
    Ok(context)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allowed => "allowed",
        Verdict::ImplicitDeny => "implicitDeny",
        Verdict::ExplicitDeny => "explicitDeny",
    }
}

fn result(action: &str, simulated: &[(&str, Simulated)], given: bool) -> Element {
    // All of them together, the most restrictive wins.
    let decision = simulated
        .iter()
        .fold(Verdict::Allowed, |so_far, (_, one)| so_far.and(one.verdict));
    let mut fields = vec![
        text("EvalActionName", action),
        text("EvalResourceName", "*"),
        text("EvalDecision", word(decision)),
    ];
    let all = |pick: fn(&Simulated) -> &Vec<String>| {
        let mut texts: Vec<&String> = simulated.iter().flat_map(|(_, one)| pick(one)).collect();
        texts.sort();
        texts.dedup();
        texts.into_iter().cloned().collect::<Vec<_>>()
    };
    fields.push(statements(&all(|one| &one.policies)));
    fields.push(keys(&all(|one| &one.missing)));
    if given {
        let members = simulated.iter().map(|(resource, one)| {
            let fields = vec![
                text("EvalResourceName", *resource),
                text("EvalResourceDecision", word(one.verdict)),
                statements(&one.policies),
                keys(&one.missing),
            ];
            node("member", fields)
        });
        fields.push(node("ResourceSpecificResults", members.collect()));
    }
    node("member", fields)
}

fn statements(policies: &[String]) -> Element {
    let member = |policy: &String| {
        let fields = vec![
            text("SourcePolicyId", policy),
            text("SourcePolicyType", "IAM Policy"),
        ];
        node("member", fields)
    };
    node("MatchedStatements", policies.iter().map(member).collect())
}

fn keys(missing: &[String]) -> Element {
    let members = missing.iter().map(|key| text("member", key)).collect();
    node("MissingContextValues", members)
}
