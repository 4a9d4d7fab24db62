//! Systems Manager: which nodes are managed and whether they are connected; sessions and their
//! documents.
//!
//! Source of names, limits and errors: the SSM API model (2014-11-06).

mod documents;
mod sessions;

use serde_json::{Map, Value, json};

use super::dispatch::Call;
use super::ec2::instance_facts;
use super::error::ApiError;
use super::fleet::Instance;
use super::reply::Output;
use super::seed::{InstanceState, Platform, SsmNode};

type Answer = Result<Output, ApiError>;

pub(crate) fn handle(call: &mut Call<'_>, body: &Map<String, Value>) -> Answer {
    match call.action {
        "DescribeInstanceInformation" => instance_information(call, body),
        "GetConnectionStatus" => connection_status(call, body),
        "DescribeSessions" => sessions::describe(call, body),
        "StartSession" => sessions::start(call, body),
        "ResumeSession" => sessions::resume(call, body),
        "TerminateSession" => sessions::terminate(call, body),
        "GetDocument" => documents::get(call, body),
        _ => Err(call.unknown_action()),
    }
}

fn validation(message: impl Into<String>) -> ApiError {
    ApiError::new(400, "ValidationException", message)
}

/// A text that may be missing.
fn text<'a>(body: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(validation(format!("{name} is not a text"))),
    }
}

fn instance_information(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    call.authorise("ssm:DescribeInstanceInformation", "*")?;
    let filters = filters(body)?;
    let (from, size) = page(body, 5..=50, 10)?;
    let mut found = Vec::new();
    for instance in call.fleet.in_region(call.region) {
        let Some(node) = &instance.seed.ssm else {
            continue;
        };
        if fits(instance, node, &filters)? {
            found.push(information(instance, node, call));
        }
    }
    let next = from.saturating_add(size);
    let more = next < found.len();
    let items: Vec<Value> = found.into_iter().skip(from).take(size).collect();
    let mut answer = json!({"InstanceInformationList": items});
    if more {
        answer["NextToken"] = json!(format!("page-{next}"));
    }
    Ok(Output::Json(answer))
}

/// A stopped instance has no agent that could be online.
fn is_online(instance: &Instance, node: &SsmNode) -> bool {
    node.online && instance.seed.state == InstanceState::Running
}

fn ping_status(instance: &Instance, node: &SsmNode) -> &'static str {
    if is_online(instance, node) {
        "Online"
    } else {
        "ConnectionLost"
    }
}

fn platform_type(instance: &Instance) -> &'static str {
    match instance.seed.platform {
        Platform::Linux => "Linux",
        Platform::Windows => "Windows",
    }
}

fn information(instance: &Instance, node: &SsmNode, call: &Call<'_>) -> Value {
    json!({
        "InstanceId": instance.seed.id,
        "PingStatus": ping_status(instance, node),
        "LastPingDateTime": call.now.unix_timestamp(),
        "AgentVersion": node.agent_version,
        "IsLatestVersion": true,
        "PlatformType": platform_type(instance),
        "PlatformName": node.platform_name,
        "PlatformVersion": node.platform_version,
        "ResourceType": "EC2Instance",
        "IPAddress": instance.seed.private_ip.to_string(),
        "ComputerName": format!(
            "ip-{}.{}.compute.internal",
            instance.seed.private_ip.to_string().replace('.', "-"),
            instance.seed.region()
        ),
    })
}

/// Both spellings that the API has: `Filters` and the older `InstanceInformationFilterList`.
fn filters(body: &Map<String, Value>) -> Result<Vec<(String, Vec<String>)>, ApiError> {
    let mut filters = Vec::new();
    let spellings = [
        ("Filters", "Key", "Values"),
        ("InstanceInformationFilterList", "key", "valueSet"),
    ];
    for (list, key, values) in spellings {
        let Some(given) = body.get(list) else {
            continue;
        };
        for filter in given
            .as_array()
            .ok_or_else(|| validation(format!("{list} is not a list")))?
        {
            let name = filter.get(key).and_then(Value::as_str);
            let texts = filter.get(values).and_then(Value::as_array).map(|values| {
                values
                    .iter()
                    .filter_map(|value| value.as_str().map(str::to_owned))
                    .collect::<Vec<_>>()
            });
            match (name, texts) {
                (Some(name), Some(texts)) if !texts.is_empty() => {
                    filters.push((name.to_owned(), texts))
                }
                _ => {
                    return Err(ApiError::new(
                        400,
                        "InvalidInstanceInformationFilterValue",
                        "",
                    ));
                }
            }
        }
    }
    Ok(filters)
}

fn fits(
    instance: &Instance,
    node: &SsmNode,
    filters: &[(String, Vec<String>)],
) -> Result<bool, ApiError> {
    for (name, values) in filters {
        let actual = match name.as_str() {
            "InstanceIds" => Some(instance.seed.id.as_str()),
            "PingStatus" => Some(ping_status(instance, node)),
            "PlatformTypes" => Some(platform_type(instance)),
            "AgentVersion" => Some(node.agent_version.as_str()),
            "ResourceType" => Some("EC2Instance"),
            "tag-key" => None,
            tag if tag.starts_with("tag:") => instance.seed.tag(&tag[4..]),
            _ => return Err(ApiError::new(400, "InvalidFilterKey", "")),
        };
        let found = if name == "tag-key" {
            values.iter().any(|key| instance.seed.tag(key).is_some())
        } else {
            values.iter().any(|value| actual == Some(value))
        };
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where to start and how many to give.
fn page(
    body: &Map<String, Value>,
    sizes: std::ops::RangeInclusive<u64>,
    default: usize,
) -> Result<(usize, usize), ApiError> {
    let size = match body.get("MaxResults") {
        None | Some(Value::Null) => default,
        Some(value) => value
            .as_u64()
            .filter(|size| sizes.contains(size))
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| {
                validation(format!(
                    "MaxResults is not between {} and {}",
                    sizes.start(),
                    sizes.end()
                ))
            })?,
    };
    let from = match body.get("NextToken").and_then(Value::as_str) {
        None => 0,
        Some(token) => token
            .strip_prefix("page-")
            .and_then(|from| from.parse().ok())
            .ok_or_else(|| ApiError::new(400, "InvalidNextToken", ""))?,
    };
    Ok((from, size))
}

fn connection_status(call: &Call<'_>, body: &Map<String, Value>) -> Answer {
    let target = body
        .get("Target")
        .and_then(Value::as_str)
        .filter(|target| (1..=400).contains(&target.len()))
        .ok_or_else(|| validation("Target must have 1 to 400 characters"))?;
    let instance = call.fleet.instance(call.region, target);
    let arn = format!(
        "arn:aws:ec2:{}:{}:instance/{target}",
        call.region, call.account.id
    );
    let facts = instance.map(instance_facts).unwrap_or_default();
    call.authorise_with("ssm:GetConnectionStatus", &arn, &facts)?;
    let online = instance.is_some_and(|instance| {
        instance
            .seed
            .ssm
            .as_ref()
            .is_some_and(|node| is_online(instance, node))
    });
    let status = if online { "connected" } else { "notconnected" };
    Ok(Output::Json(json!({"Target": target, "Status": status})))
}
