//! Targets from EC2: the instances that run.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{Builder, Region};
use aws_sdk_ec2::types::{Filter, Instance, Reservation};

use postern_proto::names::TargetId;

use super::{Ec2Settings, Target, TargetLogin};
use crate::aws::{AwsError, clean, reason};

/// Why EC2's instances are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ec2Error {
    /// The call failed.
    #[error("listing instances failed: {0}")]
    Call(String),
    /// More than this agent holds.
    #[error("more than {0} instances run there")]
    TooMany(usize),
}

/// One region.
pub(super) struct Ec2 {
    pub(super) region: String,
    client: Client,
    login: TargetLogin,
}

impl Ec2 {
    /// One for each region. Calls nobody.
    pub(super) async fn all(settings: &Ec2Settings) -> Result<Vec<Self>, AwsError> {
        let config = settings.aws.load().await?;
        let regions = settings.regions.iter().map(|region| {
            let region_config = Builder::from(&config).region(Region::new(region.clone()));
            Self {
                region: region.clone(),
                client: Client::from_conf(region_config.build()),
                login: settings.login,
            }
        });
        Ok(regions.collect())
    }

    /// The instances that run now, all pages.
    pub(super) async fn list(&self) -> Result<Vec<Target>, Ec2Error> {
        let running = Filter::builder()
            .name("instance-state-name")
            .values("running")
            .build();
        let mut pages = self
            .client
            .describe_instances()
            .filters(running)
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut targets = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| Ec2Error::Call(reason(&error)))?;
            for reservation in page.reservations() {
                let instances = reservation.instances().iter();
                targets.extend(instances.filter_map(|one| self.target(reservation, one)));
            }
            if targets.len() > MAX_INSTANCES {
                return Err(Ec2Error::TooMany(MAX_INSTANCES));
            }
        }
        Ok(targets)
    }

    /// `None` for what cannot be reached: no id, no private address.
    fn target(&self, reservation: &Reservation, instance: &Instance) -> Option<Target> {
        let id: TargetId = instance.instance_id()?.parse().ok()?;
        let address = instance
            .private_ip_address()
            .or_else(|| instance.ipv6_address())?
            .parse::<IpAddr>()
            .ok()?;
        let tags: BTreeMap<_, _> = instance
            .tags()
            .iter()
            .filter_map(|tag| Some((clean(tag.key()?), clean(tag.value().unwrap_or_default()))))
            .collect();
        let name = tags.get("Name").filter(|name| !name.trim().is_empty());
        let dns_name = instance.private_dns_name().filter(|name| !name.is_empty());
        let placement = instance.placement();
        Some(Target {
            name: name.cloned().unwrap_or_else(|| id.to_string()),
            account: reservation.owner_id().map(clean),
            region: Some(self.region.clone()),
            vpc: instance.vpc_id().map(clean),
            zone: placement.and_then(|p| p.availability_zone()).map(clean),
            // EC2 says `windows` where the SDK's model has `Windows`.
            platform: match instance.platform() {
                Some(platform) if platform.as_str().eq_ignore_ascii_case("windows") => {
                    "windows".to_owned()
                }
                _ => "linux".to_owned(),
            },
            address: address.to_string(),
            aliases: dns_name.map(clean).into_iter().collect(),
            ssh_port: ssh_port(&tags),
            login: login(&tags).unwrap_or(self.login),
            id,
            tags,
        })
    }
}

/// `postern:ssh-port` where sshd listens elsewhere; what is no port counts as absent.
fn ssh_port(tags: &BTreeMap<String, String>) -> u16 {
    let port = tags
        .get("postern:ssh-port")
        .and_then(|port| port.parse().ok());
    port.filter(|port| *port != 0).unwrap_or(22)
}

/// `postern:login` where an instance differs from the others.
fn login(tags: &BTreeMap<String, String>) -> Option<TargetLogin> {
    match tags.get("postern:login")?.as_str() {
        "certificate" => Some(TargetLogin::Certificate),
        "instance-connect" => Some(TargetLogin::InstanceConnect),
        _ => None,
    }
}

/// Instances of one answer: EC2's largest.
const PAGE: i32 = 1_000;
/// Instances of one region.
const MAX_INSTANCES: usize = 50_000;
