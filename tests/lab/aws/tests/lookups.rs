//! EC2, EC2 Instance Connect and SSM.

use super::*;

#[test]
fn instances_are_found_by_id_tag_state_and_address_page_by_page() {
    let mut lab = Lab::new();
    let reader = User::new("reader").with_policy("ec2", allow("ec2:Describe*", "*"));
    lab.state.account.put_user(reader, lab.now).expect("a user");
    let reader = lab.user("reader");
    let find = |lab: &mut Lab, params: &[(&str, &str)]| {
        let mut all = vec![("Action", "DescribeInstances")];
        all.extend(params);
        lab.query(&reader, Service::Ec2, &all)
    };
    let count = |answer: &Answer| answer.body.matches("<instanceId>").count();
    let filter = |name, value| [("Filter.1.Name", name), ("Filter.1.Value.1", value)];
    for (name, value, found) in [
        ("tag:Name", "web-1", 1),
        ("tag:Name", "*", 8),
        ("tag:env", "prod*", 1),
        ("tag-key", "env", 1),
        ("private-ip-address", "127.9.0.2", 1),
        ("instance-state-name", "running", 8),
        ("instance-state-name", "stopped", 0),
        ("platform", "windows", 0),
    ] {
        assert_eq!(
            count(&find(&mut lab, &filter(name, value))),
            found,
            "{name}={value}"
        );
    }
    assert_eq!(count(&find(&mut lab, &[("InstanceId.1", WEB_1)])), 1);
    let unknown = find(&mut lab, &[("InstanceId.1", "i-0aaaaaaaaaaaaaaaa")]);
    assert_eq!(code_of(&unknown), "InvalidInstanceID.NotFound");
    let malformed = find(&mut lab, &[("InstanceId.1", "web-1")]);
    assert_eq!(code_of(&malformed), "InvalidInstanceID.Malformed");
    let invalid = find(&mut lab, &filter("instance-color", "x"));
    assert_eq!(code_of(&invalid), "InvalidParameterValue");

    let first = find(&mut lab, &[("MaxResults", "5")]);
    assert_eq!(count(&first), 5);
    let token = element(&first.body, "nextToken").expect("more").to_owned();
    let second = find(&mut lab, &[("MaxResults", "5"), ("NextToken", &token)]);
    assert_eq!(
        (count(&second), element(&second.body, "nextToken")),
        (3, None)
    );
}

#[test]
fn a_pushed_key_needs_a_running_instance_permission_and_a_real_key() {
    let mut lab = Lab::new();
    let arn = format!("arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*");
    let policy = document(
        json!({"Effect": "Allow", "Action": "ec2-instance-connect:SendSSHPublicKey",
        "Resource": arn, "Condition": {"StringEquals": {"ec2:osuser": "ec2-user",
        "aws:ResourceTag/env": "production"}}}),
    );
    let pusher = User::new("pusher").with_policy("push", policy);
    lab.state.account.put_user(pusher, lab.now).expect("a user");
    let pusher = lab.user("pusher");
    let push = |lab: &mut Lab, id: &str, user: &str, key: &str| {
        let body = json!({"InstanceId": id, "InstanceOSUser": user, "SSHPublicKey": key});
        let target = "AWSEC2InstanceConnectService.SendSSHPublicKey";
        let (status, body) = lab.json(&pusher, Service::InstanceConnect, target, &body);
        if status == 200 {
            "ok".to_owned()
        } else {
            body["__type"].to_string()
        }
    };
    assert_eq!(push(&mut lab, WEB_1, "ec2-user", SSH_KEY), "ok");
    let live = lab.state.pushed.live(WEB_1, "ec2-user", lab.now);
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].public_key, SSH_KEY);
    assert!(push(&mut lab, WEB_1, "root", SSH_KEY).contains("AccessDenied"));
    let other = "i-00000000000000001";
    assert!(
        push(&mut lab, other, "ec2-user", SSH_KEY).contains("AccessDenied"),
        "another tag"
    );
    assert!(push(&mut lab, WEB_1, "ec2-user", &"k".repeat(80)).contains("InvalidArgs"));
    assert!(lab.state.fleet.set_state(WEB_1, InstanceState::Stopped));
    assert!(push(&mut lab, WEB_1, "ec2-user", SSH_KEY).contains("StateInvalid"));
}

#[test]
fn managed_nodes_are_listed_with_their_connection() {
    let mut lab = Lab::new();
    let reader = User::new("reader").with_policy("ssm", allow("ssm:*", "*"));
    lab.state.account.put_user(reader, lab.now).expect("a user");
    let reader = lab.user("reader");
    let ssm = |lab: &mut Lab, action: &str, body: Value| {
        lab.json(&reader, Service::Ssm, &format!("AmazonSSM.{action}"), &body)
    };
    let filter = json!({"Filters": [{"Key": "InstanceIds", "Values": [WEB_1]}]});
    let (_, listed) = ssm(&mut lab, "DescribeInstanceInformation", filter);
    assert_eq!(listed["InstanceInformationList"][0]["PingStatus"], "Online");
    let target = json!({"Target": WEB_1});
    assert_eq!(
        ssm(&mut lab, "GetConnectionStatus", target.clone()).1["Status"],
        "connected"
    );
    lab.state.fleet.set_state(WEB_1, InstanceState::Stopped);
    assert_eq!(
        ssm(&mut lab, "GetConnectionStatus", target).1["Status"],
        "notconnected"
    );
    let (_, sessions) = ssm(&mut lab, "DescribeSessions", json!({"State": "Active"}));
    assert_eq!(sessions, json!({"Sessions": []}));
    let (status, unknown) = ssm(&mut lab, "ListDocuments", json!({}));
    assert_eq!(
        (status, &unknown["__type"]),
        (400, &json!("UnknownOperationException"))
    );
    let unknown = lab.query(&reader, Service::Ec2, &[("Action", "RunInstances")]);
    assert_eq!(code_of(&unknown), "InvalidAction");
    let unknown = lab.query(&reader, Service::Sts, &[("Action", "GetWebIdentityToken")]);
    assert_eq!(code_of(&unknown), "InvalidAction");
}
