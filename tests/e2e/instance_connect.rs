//! Targets that take keys from EC2 Instance Connect: pushed for one login, honoured for a minute.

use lab::account::HOSTS;
use lab::aws::{Fault, FaultRule, Service};
use lab::stack::{Lab, Options, login_user};

use crate::harness::{lab_with, postern};

const CONNECT: [&str; 4] = ["connect", "web-1", "--", "echo in"];

async fn with_pushed_keys() -> Lab {
    lab_with(Options {
        no_database: true,
        agent: vec![(
            "inventory.ec2.login".to_owned(),
            "\"instance-connect\"".to_owned(),
        )],
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn each_login_has_a_key_of_its_own_that_is_good_for_a_minute() {
    let lab = with_pushed_keys().await;
    let keys = || lab.aws.ssh_keys(HOSTS[0].id, &login_user());
    for logins in 1..=2 {
        let told = postern(&lab, &CONNECT).await.status(0);
        assert_eq!(told.out(), "in\n");
        assert_eq!(lab.aws.events_of("SendSSHPublicKey").len(), logins);
    }
    let pushed = keys();
    assert_eq!(pushed.len(), 2);
    assert_ne!(pushed[0].public_key, pushed[1].public_key);
    lab.aws.clock().advance(time::Duration::seconds(61));
    assert!(keys().is_empty(), "their minute is over");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_that_cannot_be_pushed_opens_nothing_and_says_why() {
    let lab = with_pushed_keys().await;
    lab.aws.inject(FaultRule::always(
        Service::InstanceConnect,
        "SendSSHPublicKey",
        Fault::Answer {
            status: 400,
            content_type: "application/x-amz-json-1.1",
            body: r#"{"__type":"EC2InstanceNotFoundException","message":"Instance not found"}"#
                .to_owned(),
        },
    ));
    let told = postern(&lab, &CONNECT).await.status(255);
    assert_eq!(told.out(), "");
    told.says(&["does not exist any more", "hint:"]);
    lab.stop().await.unwrap();
}
