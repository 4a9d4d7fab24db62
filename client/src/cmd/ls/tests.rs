//! Both lists in one.

use serde_json::json;

use super::*;

fn node(id: &str, name: &str, status: &str) -> Node {
    Node {
        id: id.to_owned(),
        name: name.to_owned(),
        address: "10.0.0.9".to_owned(),
        status: status.to_owned(),
        agent_version: "3.3.0.0".to_owned(),
        platform: "Linux".to_owned(),
    }
}

fn listing() -> Listing {
    Listing::of(json!({
        "targets": [
            {"id": "i-1", "name": "web-1", "new": 1, "tags": {"env": "staging", "Name": "web-1"},
             "allowed": {"users": ["root"], "more": []}},
            {"id": "i-2", "name": "db-1", "allowed": {}},
            {"id": "i-3", "name": "app-1", "allowed": {"any_port": true}},
        ],
        "trouble": "EC2 did not answer",
    }))
    .unwrap()
}

fn nodes() -> Vec<Node> {
    vec![
        node("i-3", "ip-10-0-0-3", "ConnectionLost"),
        node("mi-4", "cellar", "Inactive"),
        node("i-1", "ip-10-0-0-1", "Online"),
        node("mi-5", "attic", "Online"),
    ]
}

fn rows(answer: Answer) -> String {
    let rows = answer.targets.into_iter().map(|target| {
        let row = bastion::row(target).unwrap();
        row.join(" | ")
    });
    rows.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_target_that_both_know_is_one_row_with_both_routes() {
    insta::assert_snapshot!(rows(merged(listing(), nodes(), &[])), @r"
    app-1 | i-3 |  |  |  | bastion, ssm (offline) | tunnel to any port
    attic | mi-5 | 10.0.0.9 | linux |  | ssm | as IAM allows
    cellar | mi-4 | 10.0.0.9 | linux |  | ssm (offline) | as IAM allows
    db-1 | i-2 |  |  |  | bastion | -
    web-1 | i-1 |  |  | env=staging | bastion, ssm | connect as root
    ");
}

#[test]
fn a_name_that_only_the_agent_knows_keeps_both_routes() {
    let mut agents = listing();
    agents.targets.truncate(1);
    let filters = ["web".to_owned()];
    insta::assert_snapshot!(
        rows(merged(agents, nodes(), &filters)),
        @"web-1 | i-1 |  |  | env=staging | bastion, ssm | connect as root"
    );
}

#[test]
fn the_stable_form_keeps_what_a_newer_agent_says_and_adds_the_ways() {
    let answer = merged(listing(), nodes(), &[]);
    assert_eq!(answer.trouble, ["EC2 did not answer"]);
    let web = &answer.targets[4];
    assert_eq!(web["new"], 1);
    assert_eq!(web["routes"], json!(["bastion", "ssm"]));
    let online = json!({"online": true, "status": "Online", "agent_version": "3.3.0.0"});
    assert_eq!(web["ssm"], online);
    let cellar = json!({
        "id": "mi-4", "name": "cellar", "address": "10.0.0.9", "platform": "linux",
        "routes": ["ssm"],
        "ssm": {"online": false, "status": "Inactive", "agent_version": "3.3.0.0"},
    });
    assert_eq!(Value::Object(answer.targets[2].clone()), cellar);
}

#[test]
fn filters_mean_the_same_of_both() {
    let fits = |filter: &str| {
        let filters = [filter.to_owned()];
        let mut nodes = nodes();
        nodes.retain(|node| ssm::fits(node, &filters));
        nodes.len()
    };
    assert_eq!(fits("cell"), 1);
    assert_eq!(fits("10.0.0.9"), 4);
    assert_eq!(fits("platform=linux"), 4);
    assert_eq!(fits("platform=windows"), 0);
    assert_eq!(fits("vpc=vpc-1"), 0);
    // AWS is asked for these.
    assert_eq!(fits("tag:env=staging"), 4);
}
