//! A third implementation: the npm package `ssm-session`, a client of shells by another author, with nothing of ours
//! or of Amazon's in it.

use std::path::PathBuf;
use std::time::Duration;

use lab::account::HOSTS;
use serde_json::{Value, json};
use tokio::process::Command;

use super::peer::{Peer, Talk};
use crate::aws::python;
use crate::harness::{eventually, run};

const START: &str = "import boto3, json, sys
answer = boto3.client('ssm').start_session(Target=sys.argv[1])
print(json.dumps({name: answer[name] for name in ('SessionId', 'TokenValue', 'StreamUrl')}))";

/// Where tests/setup installs it.
fn modules() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .expect("HOME or XDG_CACHE_HOME is set");
    let modules = cache.join("postern-tests/node/node_modules");
    assert!(
        modules.join("ssm-session").exists(),
        "{} is missing: the client by another author is not installed; hint: run tests/setup",
        modules.display()
    );
    modules
}

/// A shell on app-1, started by boto3 and spoken by the package.
async fn shell(peer: &Peer) -> (Talk, String) {
    let aws = peer.aws(&[]);
    let environment: Vec<_> = aws
        .as_std()
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    let mut start = Command::new(python());
    start
        .args(["-c", START, HOSTS[1].id])
        .env_clear()
        .envs(environment);
    let told = run(&mut start, b"").await.status(0);
    let answer: Value = serde_json::from_slice(&told.stdout).unwrap();
    let mut client = Command::new("node");
    client
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/ssm/node.js"))
        .env("NODE_PATH", modules())
        .env(
            "NODE_EXTRA_CA_CERTS",
            &peer.lab.environment["AWS_CA_BUNDLE"],
        )
        .env("STREAM_URL", answer["StreamUrl"].as_str().unwrap())
        .env("TOKEN", answer["TokenValue"].as_str().unwrap())
        .kill_on_drop(true);
    let id = answer["SessionId"].as_str().unwrap().to_owned();
    (peer.talk(&mut client), id)
}

async fn tell(talk: &mut Talk, order: Value) {
    talk.send(format!("{order}\n").as_bytes()).await;
}

#[tokio::test]
async fn a_client_by_another_author_has_a_shell_with_its_size_and_its_end() {
    let peer = Peer::start().await;
    let (mut talk, id) = shell(&peer).await;
    talk.expect("# ").await;
    // What it said first.
    tell(&mut talk, json!({"text": "stty size\r"})).await;
    talk.expect("34 97").await;
    tell(
        &mut talk,
        json!({"text": "echo $((6*7)) caf\u{e9}; seq 5000; echo 'do'ne\r"}),
    )
    .await;
    let shown = talk.expect("done").await;
    let numbers: String = (1..=5000).map(|number| format!("{number}\r\n")).collect();
    assert!(
        shown.contains(&format!("42 caf\u{e9}\r\n{numbers}")),
        "{shown}"
    );
    tell(&mut talk, json!({"size": [132, 50]})).await;
    tell(
        &mut talk,
        json!({"text": "until stty size | grep -w 132; do sleep 0.1; done\r"}),
    )
    .await;
    talk.expect("50 132").await;
    // Ctrl-C is a byte.
    tell(
        &mut talk,
        json!({"text": "sh -c 'echo slee\"\"ping; exec sleep 1000'\r"}),
    )
    .await;
    talk.expect("sleeping").await;
    tell(&mut talk, json!({"text": "\u{3}"})).await;
    talk.expect("# ").await;
    tell(&mut talk, json!({"text": "exit\r"})).await;
    let told = talk.end().await.status(0);
    assert!(told.stderr.contains("channel_closed"), "{}", told.stderr);
    eventually("the session is over", async || {
        (!peer.lab.aws.sessions().contains(&id)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_lab_repeats_for_a_client_by_another_author_what_the_network_lost() {
    let peer = Peer::start().await;
    peer.lab.aws.change_knobs(|knobs| {
        knobs.to_client.drop = 2.0;
        knobs.to_client.double = 2.0;
        knobs.to_client.delay = 2.0;
        knobs.to_client.delay_for = Duration::from_millis(20);
    });
    let (mut talk, _) = shell(&peer).await;
    talk.expect("# ").await;
    tell(&mut talk, json!({"text": "seq 2000; exit\r"})).await;
    talk.end().await.status(0);
}
