//! Who may do what where: policies and targets.

use crate::cli::Finding;
use crate::config::Config;
use crate::inventory::{self, InventoryError, TargetLogin};
use crate::policy::{Policies, PolicyError};
use crate::run::inventory_settings;

/// Every policy file, each problem with its place.
pub(super) fn policies(config: &Config) -> Vec<Finding> {
    const SUBJECT: &str = "policy";
    let folder = config.policy.display();
    let loaded = match Policies::load(&config.policy) {
        Ok(loaded) => loaded,
        Err(PolicyError::Invalid(problems)) => {
            return problems
                .iter()
                .map(|problem| {
                    let hint = problem.hint.as_deref();
                    Finding::error(
                        SUBJECT,
                        format!("{folder}/{problem}"),
                        hint.unwrap_or("the agent starts with policies that are all valid"),
                    )
                })
                .collect();
        }
        Err(error) => {
            let hint = error.hint().unwrap_or_default();
            return vec![Finding::error(SUBJECT, error.to_string(), &hint)];
        }
    };
    let suspicious = loaded.warnings().iter().map(|warning| {
        Finding::warning(
            SUBJECT,
            format!("{folder}/{warning}"),
            "it is valid, but look whether it says what was meant",
        )
    });
    let count = loaded.ids().count();
    let whole = if count == 0 {
        Finding::warning(
            SUBJECT,
            format!("{folder} holds no policy, so nothing is allowed"),
            "write one: policy/example.cedar shows how",
        )
    } else {
        let policies = if count == 1 { "policy" } else { "policies" };
        Finding::ok(SUBJECT, format!("{count} {policies} in {folder}"))
    };
    std::iter::once(whole).chain(suspicious).collect()
}

/// The sources of targets; EC2 is asked unless `local`.
pub(super) async fn inventory(config: &Config, local: bool) -> Vec<Finding> {
    const SUBJECT: &str = "inventory";
    let mut findings = Vec::new();
    if config.inventory.file.is_none() && config.inventory.ec2.is_none() {
        findings.push(Finding::warning(
            SUBJECT,
            "there is no source of targets, so nothing can be reached",
            "set `inventory.file`, or [inventory.ec2], in agent.toml",
        ));
    }
    if let Some(path) = &config.inventory.file {
        findings.push(match inventory::read_file(path) {
            Ok(targets) => {
                let count = targets.len();
                let pushes = targets
                    .iter()
                    .find(|target| target.login == TargetLogin::InstanceConnect);
                match (pushes, &config.inventory.ec2) {
                    (Some(target), None) => Finding::error(
                        SUBJECT,
                        format!(
                            "{}: `{}` takes keys from EC2 Instance Connect, and this agent knows no EC2",
                            path.display(),
                            target.name
                        ),
                        "configure [inventory.ec2] in agent.toml, or let the target trust the SSH user CA: `login = \"certificate\"`",
                    ),
                    _ => Finding::ok(SUBJECT, format!("{count} targets in {}", path.display())),
                }
            }
            Err(error) => {
                let hint = error.hint().unwrap_or_else(|| {
                    "each target is a [[target]] with `name` and `address`".to_owned()
                });
                Finding::error(SUBJECT, error.to_string(), &hint)
            }
        });
    }
    if !local && let Some(ec2) = inventory_settings(config).ec2 {
        match inventory::ask_ec2(&ec2).await {
            Ok(answers) => findings.extend(answers.into_iter().map(region)),
            Err(error) => findings.push(unusable(&error)),
        }
    }
    findings
}

fn region((region, answer): (String, Result<usize, String>)) -> Finding {
    let subject = format!("EC2 in {region}");
    match answer {
        Ok(0) => Finding::warning(
            &subject,
            "no instance runs there",
            "look at `inventory.ec2.regions`",
        ),
        Ok(count) => Finding::ok(&subject, format!("{count} instances run")),
        Err(why) => Finding::error(
            &subject,
            why,
            "the agent's own role needs ec2:DescribeInstances, and the machine a way to the endpoint",
        ),
    }
}

fn unusable(error: &InventoryError) -> Finding {
    let hint = error.hint().unwrap_or_default();
    Finding::error("inventory", error.to_string(), &hint)
}
