//! EC2, EC2 Instance Connect and SSM as boto3 and the `aws` command see them.

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::aws::{InstanceState, Platform, WindowsPassword};
use serde_json::{Value, json};

use super::clients::{Lab, WEB_1};

const SSH_KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS a@b";

#[tokio::test]
async fn a_paginator_sees_every_instance_once() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let reader = lab.keys("reader");
    let request = json!({"do": "call", "service": "ec2", "operation": "describe_instances",
        "pages": true, "keys": reader.json(), "params": {"PaginationConfig": {"PageSize": 5}}});
    let pages = boto.ask(&request).await["pages"].take();
    let pages = pages.as_array().expect("pages");
    assert_eq!(pages.len(), 3);
    let mut ids: Vec<&str> = pages
        .iter()
        .flat_map(|page| page["Reservations"].as_array().expect("a list"))
        .flat_map(|reservation| reservation["Instances"].as_array().expect("a list"))
        .map(|instance| instance["InstanceId"].as_str().expect("an id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 12);

    let nodes = json!({"do": "call", "service": "ssm", "operation": "describe_instance_information",
        "pages": true, "keys": reader.json(), "params": {"PaginationConfig": {"PageSize": 5}}});
    let pages = boto.ask(&nodes).await["pages"].take();
    let nodes: usize = pages
        .as_array()
        .expect("pages")
        .iter()
        .map(|page| {
            page["InstanceInformationList"]
                .as_array()
                .map_or(0, Vec::len)
        })
        .sum();
    assert_eq!(nodes, 12);
}

#[tokio::test]
async fn look_ups_answer_in_the_types_that_boto3_knows() {
    let lab = Lab::start().await;
    let mut boto = lab.boto();
    let reader = lab.keys("reader");
    let mut ask =
        async |service, operation, params| boto.call(&reader, service, operation, params).await;
    let regions = ask("ec2", "describe_regions", json!({}))
        .await
        .expect("regions");
    assert_eq!(regions["Regions"][0]["RegionName"], "eu-west-1");
    let vpcs = ask("ec2", "describe_vpcs", json!({})).await.expect("vpcs");
    assert_eq!(vpcs["Vpcs"][0]["CidrBlock"], "10.20.0.0/16");
    let filter = json!({"Filters": [{"Name": "vpc-id", "Values": [vpcs["Vpcs"][0]["VpcId"]]}]});
    let subnets = ask("ec2", "describe_subnets", filter)
        .await
        .expect("subnets");
    assert_eq!(subnets["Subnets"][0]["AvailabilityZone"], "eu-west-1a");
    let found = ask("ec2", "describe_instances", json!({"InstanceIds": [WEB_1]})).await;
    let found = found.expect("an instance");
    let instance = &found["Reservations"][0]["Instances"][0];
    let tags: Vec<Value> = vec![
        json!({"Key": "Name", "Value": "web-1"}),
        json!({"Key": "env", "Value": "production"}),
    ];
    assert_eq!(instance["Tags"], json!(tags));
    assert_eq!(instance["State"], json!({"Code": 16, "Name": "running"}));

    let unknown = json!({"InstanceIds": ["i-0aaaaaaaaaaaaaaaa"]});
    let result = ask("ec2", "describe_instances", unknown).await;
    assert_eq!(result, Err("InvalidInstanceID.NotFound".into()));
    let dry = json!({"DryRun": true});
    assert_eq!(
        ask("ec2", "describe_vpcs", dry).await,
        Err("DryRunOperation".into())
    );

    let status = ask("ssm", "get_connection_status", json!({"Target": WEB_1})).await;
    assert_eq!(status.expect("a status")["Status"], "connected");
    let sessions = ask("ssm", "describe_sessions", json!({"State": "Active"})).await;
    assert_eq!(sessions.expect("a list")["Sessions"], json!([]));
    let start = ask("ssm", "describe_activations", json!({})).await;
    assert_eq!(start, Err("UnknownOperationException".into()));
    let gateways = ask("ec2", "describe_nat_gateways", json!({})).await;
    assert_eq!(gateways, Err("InvalidAction".into()));
    let summary = ask("iam", "get_account_summary", json!({}))
        .await
        .expect("a summary");
    assert_eq!(summary["SummaryMap"]["AccountAccessKeysPresent"], 1);
    assert_eq!(summary["SummaryMap"]["AccountMFAEnabled"], 0);
}

#[tokio::test]
async fn a_pushed_key_is_honoured_for_a_minute() {
    let lab = Lab::start().await;
    let reader = lab.keys("reader");
    let push = |key: &'static str| {
        [
            "ec2-instance-connect",
            "send-ssh-public-key",
            "--instance-id",
            WEB_1,
            "--instance-os-user",
            "ec2-user",
            "--ssh-public-key",
            key,
        ]
    };
    let answer = lab.cli(&reader, &push(SSH_KEY)).await.json();
    assert_eq!(answer["Success"], true);
    let keys = lab.aws.ssh_keys(WEB_1, "ec2-user");
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0].public_key, SSH_KEY);
    assert!(lab.aws.ssh_keys(WEB_1, "root").is_empty());
    lab.aws.clock().advance(
        std::time::Duration::from_secs(61)
            .try_into()
            .expect("in range"),
    );
    assert!(lab.aws.ssh_keys(WEB_1, "ec2-user").is_empty());

    assert!(lab.aws.set_instance_state(WEB_1, InstanceState::Stopped));
    let refused = lab.cli(&reader, &push(SSH_KEY)).await;
    assert!(
        refused.failed_with("EC2InstanceStateInvalidException"),
        "{refused:?}"
    );
    let nobody = lab.cli(&lab.keys("carol"), &push(SSH_KEY)).await;
    assert!(nobody.failed_with("AccessDeniedException"), "{nobody:?}");
}

#[tokio::test]
async fn the_cli_decrypts_the_windows_password_with_the_key_pair() {
    let lab = Lab::start().await;
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("a key");
    let public = private
        .public_key()
        .as_der()
        .expect("DER")
        .as_ref()
        .to_vec();
    let mut windows = win_1(&public);
    windows.platform = Platform::Windows;
    lab.aws.put_instance(windows).expect("encrypts");

    let pkcs8: Pkcs8V1Der<'_> = private.as_der().expect("DER");
    std::fs::write(lab.path("key.pem"), pkcs1_pem(pkcs8.as_ref())).expect("written");
    let file = lab.path("key.pem");
    let file = file.to_str().expect("a path in UTF-8");
    let ask = [
        "ec2",
        "get-password-data",
        "--instance-id",
        WIN_1,
        "--priv-launch-key",
        file,
    ];
    let answer = lab.cli(&lab.keys("reader"), &ask).await.json();
    assert_eq!(answer["PasswordData"], "correct horse");
    assert!(
        lab.cli(&lab.keys("alice"), &ask)
            .await
            .failed_with("UnauthorizedOperation")
    );
}

const WIN_1: &str = "i-0fedcba9876543210";

fn win_1(public_key_der: &[u8]) -> lab::aws::Instance {
    let subnet = lab::aws::Subnet {
        id: "subnet-0a1b2c3d4e5f60718".into(),
        vpc_id: "vpc-0a1b2c3d4e5f60718".into(),
        cidr: "10.20.1.0/24".into(),
        availability_zone: "eu-west-1a".into(),
        name: "private-a".into(),
    };
    let ip = std::net::Ipv4Addr::new(127, 20, 0, 13);
    let mut instance = lab::aws::Instance::new(WIN_1, "win-1", ip, &subnet);
    instance.windows_password = Some(WindowsPassword {
        password: "correct horse".into(),
        public_key_der: public_key_der.to_vec(),
    });
    instance
}

/// The key as EC2 hands key pairs out: PKCS#1, which is the octet string at the end of PKCS#8.
fn pkcs1_pem(pkcs8: &[u8]) -> String {
    // SEQUENCE header 4, version 3, rsaEncryption 15, OCTET STRING header 4.
    let text = STANDARD.encode(&pkcs8[26..]);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!(
        "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----\n",
        lines.join("\n")
    )
}
