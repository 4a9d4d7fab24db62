//! What the network, the service and the SSM Agent can do to a session, on order.

use std::time::Duration;

use lab::ssm::{Cut, CutEvery, Noise, Retention, Side};
use serde_json::json;

use super::peer::{Peer, echoes};
use crate::aws::python;
use crate::harness::{eventually, noise, run};

#[tokio::test]
async fn transfers_survive_cuts_of_either_side_with_either_retention() {
    let peer = Peer::start().await;
    let (_talk, local) = peer.forward(peer.echo().await).await;
    for retention in [Retention::Keep, Retention::Drop] {
        for (side, how) in [
            (Side::Client, Cut::Close),
            (Side::Client, Cut::Abort),
            (Side::Agent, Cut::Close),
            (Side::Agent, Cut::Abort),
        ] {
            let every = Duration::from_millis(400);
            peer.lab.aws.change_knobs(|knobs| {
                knobs.retention = retention;
                knobs.cut_every = Some(CutEvery { side, how, every });
            });
            echoes(local, noise(300_000)).await;
        }
    }
    assert!(!peer.lab.aws.events_of("ResumeSession").is_empty());
}

#[tokio::test]
async fn transfers_survive_lost_doubled_and_late_frames() {
    let peer = Peer::start().await;
    let (_talk, local) = peer.forward(peer.echo().await).await;
    let noisy = Noise {
        drop: 1.0,
        double: 3.0,
        delay: 3.0,
        delay_for: Duration::from_millis(30),
    };
    peer.lab
        .aws
        .change_knobs(|knobs| (knobs.to_agent, knobs.to_client) = (noisy, noisy));
    tokio::join!(
        echoes(local, noise(100_000)),
        echoes(local, noise(100_001).split_off(1))
    );
    peer.assert_no_complaints();
}

#[tokio::test]
async fn data_channels_end_with_their_time_and_sessions_do_not() {
    let peer = Peer::start().await;
    peer.lab
        .aws
        .change_knobs(|knobs| knobs.data_channel_life = Some(Duration::from_secs(1)));
    let mut talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    talk.expect("# ").await;
    for round in 0..3 {
        eventually("a resumption", async || {
            let resumed = peer.lab.aws.events_of("ResumeSession").len();
            (resumed > round).then_some(())
        })
        .await;
        talk.send(format!("echo $(({round} + 40))\n").as_bytes())
            .await;
        talk.expect(&format!("{}", round + 40)).await;
    }
    talk.send(b"exit\n").await;
    talk.end().await.status(0);
}

#[tokio::test]
async fn a_handler_that_is_not_ready_gets_its_data_a_little_later() {
    let peer = Peer::start().await;
    peer.lab
        .aws
        .change_knobs(|knobs| knobs.handler_delay = Duration::from_millis(700));
    let (_talk, local) = peer.forward(peer.echo().await).await;
    echoes(local, b"first").await;
}

#[tokio::test]
async fn an_ssm_agent_that_vanishes_leaves_its_sessions_and_takes_no_new_ones_until_it_returns() {
    let peer = Peer::start().await;
    let mut talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    let id = talk.session_id().await;
    talk.expect("# ").await;
    assert!(peer.lab.ssm.vanish("app-1"));
    let mut next = peer.session("app-1", None, &json!({}));
    let refused = run(&mut next, b"").await;
    assert_ne!(refused.status, Some(0));
    refused.says(&["TargetNotConnected", "is not connected"]);
    // Nobody told its client anything: only the API ends it.
    assert_eq!(peer.lab.aws.sessions(), [id.clone()]);
    assert!(peer.lab.ssm.bring_back("app-1"));
    let mut end = peer.aws(&["ssm", "terminate-session", "--session-id", &id]);
    run(&mut end, b"").await.status(0);
    talk.end().await.status(0);
    let mut talk = peer.talk(&mut peer.session("app-1", None, &json!({})));
    talk.expect("# ").await;
}

#[tokio::test]
async fn the_gateway_opens_to_the_right_token_at_the_right_time_alone() {
    let peer = Peer::start().await;
    let mut command = peer.aws(&[]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/ssm/gateway.py");
    command = {
        let mut plain = tokio::process::Command::new(python());
        plain.args(["-B", script]).env_clear().kill_on_drop(true);
        for (name, value) in command.as_std().get_envs() {
            if let Some(value) = value {
                plain.env(name, value);
            }
        }
        plain
    };
    command.env("TARGET", lab::account::HOSTS[1].id);
    command.env("CONTROL", peer.lab.control.url());
    run(&mut command, b"").await.status(0);
    let complaints = peer.lab.aws.complaints().join("\n");
    for expected in [
        "the token is wrong or expired",
        "the first frame is not a text",
        "there is no such session",
        "the session is over",
        "does not match its digest",
    ] {
        assert!(
            complaints.contains(expected),
            "no `{expected}` in {complaints}"
        );
    }
}
