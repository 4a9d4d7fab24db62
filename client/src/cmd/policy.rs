//! `postern policy iam`: policies to print. `postern policy check`: whether an account has them.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{
    PolicyArgs, PolicyCheckArgs, PolicyCommand, PolicyIamArgs, PolicySubject, ShapeArgs,
};
use crate::context::Context;
use crate::error::Error;
use crate::iam::api::Iam;
use crate::iam::document::{All, Document};
use crate::iam::probe::{Fact, Scope, is_own_key};
use crate::iam::report::Report;
use crate::iam::shape::{Shape, Typed};
use crate::iam::{PolicyError, check};
use crate::identity;

/// One of both.
pub async fn run(context: &Context, args: PolicyArgs) -> Result<ExitCode, Error> {
    match args.command {
        PolicyCommand::Iam(args) => write(context, args).await,
        PolicyCommand::Check(args) => compare(context, args).await,
    }
}

/// Prints what was asked for. Touches no network.
async fn write(context: &Context, args: PolicyIamArgs) -> Result<ExitCode, Error> {
    let account = match args.account {
        Some(account) => account,
        None => account(context).await?,
    };
    let shape = Shape::new(Typed {
        account,
        login_users: args.login_users,
        sources: args.sources,
        ..typed(context, args.shape)?
    })?;
    match args.subject {
        None => show(context, &All::new(&shape)?),
        Some(PolicySubject::Operators) => show(context, &Document::operators(&shape)?),
        Some(PolicySubject::OperatorsRole) => show(context, &Document::operators_role(&shape)?),
        Some(PolicySubject::Bastion) => show(context, &Document::bastion(&shape)?),
        Some(PolicySubject::Attestation) => show(context, &Document::attestation(&shape)?),
        Some(PolicySubject::Recorded) => show(context, &Document::recorded(&shape)?),
        Some(PolicySubject::Checker) => show(context, &Document::checker()?),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Asks IAM and tells what it found: 0 when all holds.
async fn compare(context: &Context, args: PolicyCheckArgs) -> Result<ExitCode, Error> {
    let recorded = !args.shape.recorded.is_empty();
    let attestation = args.shape.attestation_role.is_some() || !context.agents.is_empty();
    let mut typed = typed(context, args.shape)?;
    let instances = instances(args.instances)?;
    // First what costs nobody a code.
    typed.account = "000000000000".to_owned();
    let facts = facts(&args.context, &Shape::new(typed.clone())?)?;
    let profile = identity::aws_profile(context).map_err(PolicyError::from)?;
    let keys = identity::call_keys(context).await?.keys;
    typed.account = account_of_login(context).await?;
    let shape = Shape::new(typed)?;
    let scope = Scope {
        shape: &shape,
        instances: &instances,
        context: &facts,
        recorded,
        attestation,
    };
    let iam = Iam::new(&profile, &keys)?;
    let mut identities = Vec::new();
    for name in &args.users {
        identities.push((iam.user(name).await?, true));
    }
    for name in &args.roles {
        identities.push((iam.role(name).await?, true));
    }
    if identities.is_empty() {
        let users = iam.users().await?;
        let roles = iam.roles().await?;
        identities.extend(users.into_iter().chain(roles).map(|one| (one, false)));
    }
    let about = format!("asking AWS IAM about {} users and roles", identities.len());
    context.printer.detail(about);
    let mut judged = Vec::new();
    if attestation {
        let name = shape
            .attestation_role
            .rsplit('/')
            .next()
            .unwrap_or_default();
        judged.push(check::attests(&shape, iam.role(name).await?));
    }
    judged.extend(check::judge_all(&iam, &scope, identities).await?);
    let report = Report::new(&shape, judged);
    if context.printer.json {
        context.printer.json(&report.json())?;
    } else {
        for line in report.lines(context.printer.verbose) {
            context.printer.answer(line)?;
        }
    }
    Ok(ExitCode::from(u8::from(report.faults() > 0)))
}

fn typed(context: &Context, args: ShapeArgs) -> Result<Typed, Error> {
    let regions = match args.regions.is_empty() {
        false => args.regions,
        // A profile that is not there is no failure of somebody who needs none.
        true => identity::aws_profile(context)
            .map(|profile| vec![profile.region])
            .unwrap_or_default(),
    };
    let of_agent = || {
        context
            .agents
            .first()
            .map(|agent| agent.attestation_role.clone())
    };
    Ok(Typed {
        regions,
        tags: args.tags,
        recorded: args.recorded,
        documents: args.documents,
        max_age: args.max_age,
        kms_keys: args.kms_keys,
        attestation_role: args.attestation_role.or_else(of_agent),
        ..Typed::default()
    })
}

/// Without a network: the account of the agents, else of the session that is kept.
async fn account(context: &Context) -> Result<String, Error> {
    let role = context
        .agents
        .first()
        .map(|agent| agent.attestation_role.as_str());
    if let Some(account) = role.and_then(|arn| arn.split(':').nth(4)) {
        return Ok(account.to_owned());
    }
    match identity::kept(context).await? {
        Some((kept, _)) => Ok(kept.caller.account),
        None => Err(PolicyError::NoAccount.into()),
    }
}

/// The account that the credentials ask in: a role may be in another one than the user.
async fn account_of_login(context: &Context) -> Result<String, Error> {
    let (kept, _) = identity::kept(context)
        .await?
        .ok_or_else(|| Error::login_needed("the MFA session is gone"))?;
    let of_role = kept
        .role
        .as_ref()
        .and_then(|role| role.arn.split(':').nth(4));
    Ok(of_role.unwrap_or(&kept.caller.account).to_owned())
}

fn facts(typed: &[String], shape: &Shape) -> Result<Vec<Fact>, PolicyError> {
    let fact = |text: &String| {
        let parts = text.split_once('=').filter(|(key, value)| {
            key.contains(':')
                && key.len() <= 256
                && !value.is_empty()
                && key.chars().all(|c| c.is_ascii_graphic())
        });
        let (key, value) = parts.ok_or_else(|| PolicyError::Context(text.clone()))?;
        if is_own_key(key, shape) {
            return Err(PolicyError::OwnContext(key.to_owned()));
        }
        Ok(Fact {
            key: key.to_owned(),
            value: value.to_owned(),
        })
    };
    typed.iter().map(fact).collect()
}

fn instances(typed: Vec<String>) -> Result<Vec<String>, PolicyError> {
    let valid = |id: &str| {
        let digits = id.strip_prefix("mi-").or_else(|| id.strip_prefix("i-"));
        digits.is_some_and(|digits| {
            (8..=17).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit())
        })
    };
    match typed.iter().find(|id| !valid(id)) {
        Some(wrong) => Err(PolicyError::Instance(wrong.clone())),
        None => Ok(typed),
    }
}

/// A policy is JSON in either form: for a file, or on one line.
fn show(context: &Context, value: &impl Serialize) -> Result<(), Error> {
    if context.printer.json {
        return context.printer.json(value);
    }
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::bug(format!("the policy is no JSON: {error}")))?;
    text.push('\n');
    context.printer.raw(text.as_bytes())
}
