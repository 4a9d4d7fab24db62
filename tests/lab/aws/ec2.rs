//! EC2: the look-ups that an inventory needs, and GetPasswordData.
//!
//! Source of names, filters and errors: the EC2 API model (2016-11-15) and reference.

mod filter;

use time::OffsetDateTime;

use filter::{filters, fits, page};

use super::dispatch::Call;
use super::error::ApiError;
use super::fleet::Instance;
use super::pattern::Pattern;
use super::reply::{Element, Output, node, text};
use super::request::Params;
use super::seed::{Platform, region_of};
use super::trail::timestamp;

type Answer = Result<Output, ApiError>;

pub(crate) fn handle(call: &mut Call<'_>, params: &Params) -> Answer {
    match call.action {
        "DescribeInstances" => describe_instances(call, params),
        "DescribeRegions" => describe_regions(call, params),
        "DescribeVpcs" => describe_vpcs(call, params),
        "DescribeSubnets" => describe_subnets(call, params),
        "GetPasswordData" => password_data(call, params),
        _ => Err(call.unknown_action()),
    }
}

fn error(code: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(400, code, message)
}

/// DryRun answers by failing either way.
fn check_dry_run(params: &Params) -> Result<(), ApiError> {
    if params
        .get("DryRun")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    {
        let message = "Request would have succeeded, but DryRun flag is set.";
        return Err(ApiError::new(412, "DryRunOperation", message));
    }
    Ok(())
}

fn describe_instances(call: &Call<'_>, params: &Params) -> Answer {
    call.authorise("ec2:DescribeInstances", "*")?;
    check_dry_run(params)?;
    let ids = params.list("InstanceId");
    for id in &ids {
        known_instance(call, id)?;
    }
    let filters = filters(params)?;
    let mut found = Vec::new();
    for instance in call.fleet.in_region(call.region) {
        let id = instance.seed.id.as_str();
        if (ids.is_empty() || ids.contains(&id)) && instance_fits(instance, call, &filters)? {
            found.push(instance);
        }
    }
    let (from, to, next) = page(params, found.len(), !ids.is_empty())?;
    let items = found[from..to]
        .iter()
        .map(|instance| reservation(instance, call))
        .collect();
    let mut answer = vec![node("reservationSet", items)];
    answer.extend(next.map(|token| text("nextToken", token)));
    Ok(Output::Xml(Some(answer)))
}

fn known_instance<'a>(call: &Call<'a>, id: &str) -> Result<&'a Instance, ApiError> {
    let digits = id.strip_prefix("i-").unwrap_or("");
    if !matches!(digits.len(), 8 | 17) || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(error(
            "InvalidInstanceID.Malformed",
            format!("Invalid id: \"{id}\""),
        ));
    }
    call.fleet.instance(call.region, id).ok_or_else(|| {
        error(
            "InvalidInstanceID.NotFound",
            format!("The instance ID '{id}' does not exist"),
        )
    })
}

fn instance_fits(
    instance: &Instance,
    call: &Call<'_>,
    filters: &[(&str, Vec<Pattern>)],
) -> Result<bool, ApiError> {
    let seed = &instance.seed;
    let (code, state) = seed.state.wire();
    fits(filters, &seed.tags, |name| {
        Some(match name {
            "instance-id" => Some(seed.id.clone()),
            "instance-state-name" => Some(state.to_owned()),
            "instance-state-code" => Some(code.to_string()),
            "instance-type" => Some(seed.instance_type.clone()),
            "private-ip-address" | "network-interface.addresses.private-ip-address" => {
                Some(seed.private_ip.to_string())
            }
            "ip-address" => seed.public_ip.map(|ip| ip.to_string()),
            "private-dns-name" => Some(private_dns(instance)),
            "vpc-id" => Some(seed.vpc_id.clone()),
            "subnet-id" => Some(seed.subnet_id.clone()),
            "availability-zone" => Some(seed.availability_zone.clone()),
            "key-name" => seed.key_name.clone(),
            "owner-id" => Some(call.account.id.clone()),
            "platform" => (seed.platform == Platform::Windows).then(|| "windows".to_owned()),
            _ => return None,
        })
    })
}

fn private_dns(instance: &Instance) -> String {
    let ip = instance.seed.private_ip.to_string().replace('.', "-");
    format!("ip-{ip}.{}.compute.internal", instance.seed.region())
}

fn tag_set(tags: &[(String, String)]) -> Element {
    let item = |(key, value): &(String, String)| {
        node("item", vec![text("key", key), text("value", value)])
    };
    node("tagSet", tags.iter().map(item).collect())
}

fn reservation(instance: &Instance, call: &Call<'_>) -> Element {
    let id = instance.seed.id.trim_start_matches("i-");
    node(
        "item",
        vec![
            text("reservationId", format!("r-{id}")),
            text("ownerId", call.account.id.clone()),
            node("groupSet", vec![]),
            node("instancesSet", vec![instance_item(instance)]),
        ],
    )
}

fn instance_item(instance: &Instance) -> Element {
    let seed = &instance.seed;
    let (code, state) = seed.state.wire();
    let windows = seed.platform == Platform::Windows;
    let mut item = vec![
        text("instanceId", &seed.id),
        text("imageId", "ami-0a1b2c3d4e5f60718"),
        node(
            "instanceState",
            vec![text("code", code.to_string()), text("name", state)],
        ),
        text("privateDnsName", private_dns(instance)),
        text("amiLaunchIndex", "0"),
        text("instanceType", &seed.instance_type),
        text("launchTime", launch_time(instance.launched)),
        node(
            "placement",
            vec![
                text("availabilityZone", &seed.availability_zone),
                text("tenancy", "default"),
            ],
        ),
        node("monitoring", vec![text("state", "disabled")]),
        text("subnetId", &seed.subnet_id),
        text("vpcId", &seed.vpc_id),
        text("privateIpAddress", seed.private_ip.to_string()),
        text("sourceDestCheck", "true"),
        text("architecture", "x86_64"),
        text("rootDeviceType", "ebs"),
        text("virtualizationType", "hvm"),
        text(
            "platformDetails",
            if windows { "Windows" } else { "Linux/UNIX" },
        ),
        tag_set(&seed.tags),
        node(
            "metadataOptions",
            vec![
                text("state", "applied"),
                text("httpTokens", "required"),
                text("httpEndpoint", "enabled"),
            ],
        ),
    ];
    if windows {
        item.push(text("platform", "windows"));
    }
    item.extend(seed.public_ip.map(|ip| text("ipAddress", ip.to_string())));
    item.extend(seed.key_name.as_ref().map(|name| text("keyName", name)));
    node("item", item)
}

fn launch_time(at: OffsetDateTime) -> String {
    timestamp(at).replace('Z', ".000Z")
}

fn describe_regions(call: &Call<'_>, params: &Params) -> Answer {
    call.authorise("ec2:DescribeRegions", "*")?;
    check_dry_run(params)?;
    let wanted = params.list("RegionName");
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !call.regions.iter().any(|r| r == *name))
    {
        return Err(error(
            "InvalidParameterValue",
            format!("Invalid region provided: {unknown}"),
        ));
    }
    let filters = filters(params)?;
    let mut items = Vec::new();
    for region in call
        .regions
        .iter()
        .filter(|r| wanted.is_empty() || wanted.contains(&r.as_str()))
    {
        let endpoint = format!("ec2.{region}.amazonaws.com");
        let field = |name: &str| {
            Some(match name {
                "region-name" => Some(region.clone()),
                "endpoint" => Some(endpoint.clone()),
                "opt-in-status" => Some("opt-in-not-required".to_owned()),
                _ => return None,
            })
        };
        if fits(&filters, &[], field)? {
            items.push(node(
                "item",
                vec![
                    text("regionName", region),
                    text("regionEndpoint", endpoint.clone()),
                    text("optInStatus", "opt-in-not-required"),
                ],
            ));
        }
    }
    Ok(Output::Xml(Some(vec![node("regionInfo", items)])))
}

fn describe_vpcs(call: &Call<'_>, params: &Params) -> Answer {
    call.authorise("ec2:DescribeVpcs", "*")?;
    check_dry_run(params)?;
    let (wanted, filters) = (params.list("VpcId"), filters(params)?);
    let mut items = Vec::new();
    for vpc in call
        .fleet
        .vpcs
        .iter()
        .filter(|vpc| vpc.region == call.region)
    {
        let tags = [("Name".to_owned(), vpc.name.clone())];
        let field = |name: &str| {
            Some(match name {
                "vpc-id" => Some(vpc.id.clone()),
                "cidr" | "cidr-block-association.cidr-block" => Some(vpc.cidr.clone()),
                "state" => Some("available".to_owned()),
                "is-default" => Some("false".to_owned()),
                "owner-id" => Some(call.account.id.clone()),
                _ => return None,
            })
        };
        if (wanted.is_empty() || wanted.contains(&vpc.id.as_str())) && fits(&filters, &tags, field)?
        {
            items.push((
                vpc.id.as_str(),
                node(
                    "item",
                    vec![
                        text("vpcId", &vpc.id),
                        text("ownerId", call.account.id.clone()),
                        text("state", "available"),
                        text("cidrBlock", &vpc.cidr),
                        text("dhcpOptionsId", "default"),
                        text("instanceTenancy", "default"),
                        text("isDefault", "false"),
                        tag_set(&tags),
                    ],
                ),
            ));
        }
    }
    listed("vpcSet", items, &wanted, "InvalidVpcID.NotFound", "vpc ID")
}

fn describe_subnets(call: &Call<'_>, params: &Params) -> Answer {
    call.authorise("ec2:DescribeSubnets", "*")?;
    check_dry_run(params)?;
    let (wanted, filters) = (params.list("SubnetId"), filters(params)?);
    let mut items = Vec::new();
    let here = |zone: &str| region_of(zone) == call.region;
    for subnet in call
        .fleet
        .subnets
        .iter()
        .filter(|subnet| here(&subnet.availability_zone))
    {
        let tags = [("Name".to_owned(), subnet.name.clone())];
        let field = |name: &str| {
            Some(match name {
                "subnet-id" => Some(subnet.id.clone()),
                "vpc-id" => Some(subnet.vpc_id.clone()),
                "cidr-block" | "cidr" | "cidrBlock" => Some(subnet.cidr.clone()),
                "availability-zone" | "availabilityZone" => Some(subnet.availability_zone.clone()),
                "state" => Some("available".to_owned()),
                "owner-id" => Some(call.account.id.clone()),
                _ => return None,
            })
        };
        let id = subnet.id.as_str();
        if (wanted.is_empty() || wanted.contains(&id)) && fits(&filters, &tags, field)? {
            items.push((
                id,
                node(
                    "item",
                    vec![
                        text("subnetId", id),
                        text(
                            "subnetArn",
                            format!(
                                "arn:aws:ec2:{}:{}:subnet/{id}",
                                call.region, call.account.id
                            ),
                        ),
                        text("state", "available"),
                        text("ownerId", call.account.id.clone()),
                        text("vpcId", &subnet.vpc_id),
                        text("cidrBlock", &subnet.cidr),
                        text("availabilityZone", &subnet.availability_zone),
                        text("mapPublicIpOnLaunch", "false"),
                        tag_set(&tags),
                    ],
                ),
            ));
        }
    }
    listed(
        "subnetSet",
        items,
        &wanted,
        "InvalidSubnetID.NotFound",
        "subnet ID",
    )
}

/// A list in which every id that was asked for by name must occur.
fn listed(
    set: &'static str,
    items: Vec<(&str, Element)>,
    wanted: &[&str],
    code: &str,
    what: &str,
) -> Answer {
    if let Some(missing) = wanted
        .iter()
        .find(|id| !items.iter().any(|(found, _)| found == *id))
    {
        return Err(error(
            code,
            format!("The {what} '{missing}' does not exist"),
        ));
    }
    Ok(Output::Xml(Some(vec![node(
        set,
        items.into_iter().map(|(_, item)| item).collect(),
    )])))
}

fn password_data(call: &Call<'_>, params: &Params) -> Answer {
    let id = params.get("InstanceId").ok_or_else(|| {
        error(
            "MissingParameter",
            "The request must contain the parameter InstanceId",
        )
    })?;
    let arn = format!(
        "arn:aws:ec2:{}:{}:instance/{id}",
        call.region, call.account.id
    );
    let tags = call
        .fleet
        .instance(call.region, id)
        .map(instance_facts)
        .unwrap_or_default();
    call.authorise_with("ec2:GetPasswordData", &arn, &tags)?;
    check_dry_run(params)?;
    let instance = known_instance(call, id)?;
    Ok(Output::Xml(Some(vec![
        text("instanceId", id),
        text("timestamp", launch_time(instance.launched)),
        text("passwordData", &instance.password_data),
    ])))
}

/// Condition keys that actions on one instance have.
pub(crate) fn instance_facts(instance: &Instance) -> Vec<(String, String)> {
    let tags = instance.seed.tags.iter().flat_map(|(key, value)| {
        ["aws:ResourceTag/", "ec2:ResourceTag/", "ssm:resourceTag/"]
            .map(|prefix| (format!("{prefix}{key}"), value.clone()))
    });
    tags.chain([
        ("ec2:InstanceID".to_owned(), instance.seed.id.clone()),
        ("ec2:Region".to_owned(), instance.seed.region().to_owned()),
    ])
    .collect()
}
