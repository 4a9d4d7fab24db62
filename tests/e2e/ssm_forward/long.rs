//! A tunnel that lives for longer than its connections, and than the credentials that began it.

use std::collections::BTreeSet;
use std::time::Duration;

use lab::aws::{Aws, Role};
use lab::forward::Forward;
use lab::ssm::{Cut, Side};
use lab::stack::Lab;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::all_ended;
use super::peer::{self, Pattern};
use crate::harness::{PATIENCE, lab, postern_as, setting};

/// Closes in a life. A minute between two, when it is twenty minutes long.
const CLOSES: u32 = 20;
const CLOSES_OF_A_SHORT_LIFE: u32 = 4;
/// Between two pieces of the stream, and how large they are.
const PACE: Duration = Duration::from_millis(20);
const PIECE: usize = 4096;

const ROLE: &str = "operators-over-ssm";
const ROLE_ARN: &str = "arn:aws:iam::111122223333:role/operators-over-ssm";
const PROFILE: &str = "bob-as-operator";

/// A lab where bob works with a role that he assumes from his MFA session.
async fn lab_with_role() -> Lab {
    let lab = lab().await;
    let trust = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
        "Principal":{"AWS":"arn:aws:iam::111122223333:user/bob"},"Action":"sts:AssumeRole",
        "Condition":{"Bool":{"aws:MultiFactorAuthPresent":"true"}}}]}"#;
    let sessions = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
        "Action":["ssm:*","ec2:DescribeInstances"],"Resource":"*"}]}"#;
    let role = Role::new(ROLE, trust).with_policy("sessions", sessions);
    lab.aws.put_role(role).unwrap();
    let config = &lab.environment["AWS_CONFIG_FILE"];
    let profiles = std::fs::read_to_string(config).unwrap();
    let own = profiles
        .split("[profile ")
        .find(|part| part.starts_with("bob]"));
    let settings = own.unwrap().split_once('\n').unwrap().1;
    let settings = format!(
        "{profiles}\n[profile {PROFILE}]\nrole_arn = {ROLE_ARN}\nsource_profile = bob\n{settings}"
    );
    std::fs::write(config, settings).unwrap();
    postern_as(&lab, PROFILE, &["login"]).await.status(0);
    lab
}

/// The calls of the role's sessions.
fn calls(aws: &Aws, action: &str) -> Vec<Value> {
    let of_role = |event: &Value| event["userIdentity"]["type"] == "AssumedRole";
    aws.events_of(action).into_iter().filter(of_role).collect()
}

/// Ends every credential that was used so far, long before its time.
fn expire(aws: &Aws) {
    let used = aws.events().into_iter().filter_map(|event| {
        let identity = &event["userIdentity"];
        let key = identity["accessKeyId"].as_str()?;
        (identity["type"] == "AssumedRole").then(|| key.to_owned())
    });
    for key in used.collect::<BTreeSet<_>>() {
        aws.expire_session(&key);
    }
}

/// Sends pieces at a pace and demands them back from a service that returns what it gets.
async fn stream(forward: &Forward, service: &TcpListener, pieces: u32) {
    let near = TcpStream::connect(forward.local).await.unwrap();
    let (mut far, _) = timeout(PATIENCE, service.accept()).await.unwrap().unwrap();
    let echo = async {
        let (mut from, mut to) = far.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let (mut from, mut to) = near.into_split();
    let send = async move {
        let (begun, mut pattern) = (Instant::now(), Pattern::new(7));
        for number in 0..pieces {
            sleep_until(begun + PACE * number).await;
            to.write_all(&pattern.next(PIECE)).await.unwrap();
        }
        to.shutdown().await.unwrap();
    };
    let receive = async {
        let length = pieces as usize * PIECE;
        peer::take(&mut from, 7, length).await.unwrap();
        assert_eq!(from.read(&mut [0]).await.unwrap(), 0, "no further byte");
    };
    tokio::join!(echo, send, receive);
}

/// `POSTERN_LONG_TUNNEL=1200 cargo test --release --workspace --test e2e -- outlives_its` is what
/// releases are tried with: twenty minutes, with a close each minute.
#[tokio::test]
async fn a_tunnel_outlives_its_connections_and_credentials_and_never_asks_again() {
    let seconds: u64 = setting("POSTERN_LONG_TUNNEL", 8);
    let life = Duration::from_secs(seconds);
    let closes = if seconds < 60 {
        CLOSES_OF_A_SHORT_LIFE
    } else {
        CLOSES
    };
    let lab = lab_with_role().await;
    let mut command = lab.postern(PROFILE);
    command.env("POSTERN_VIA", "ssm");
    let service = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = service.local_addr().unwrap().port();
    let forward = Forward::start(command, "app-1", &format!("0:{port}"))
        .await
        .unwrap();
    let logins = || {
        let logins = lab.aws.events_of("GetSessionToken").into_iter();
        let of_bob = |event: &Value| event["userIdentity"]["userName"] == "bob";
        logins.filter(of_bob).count()
    };

    let pieces = (life.as_millis() / PACE.as_millis()) as u32;
    let closing = async {
        let (begun, every) = (Instant::now(), life / (closes + 1));
        for number in 1..=closes {
            sleep_until(begun + every * number).await;
            expire(&lab.aws);
            let how = if number % 2 == 0 {
                Cut::Abort
            } else {
                Cut::Close
            };
            assert!(
                lab.aws.cut(Side::Client, how, None) > 0,
                "there is a connection"
            );
        }
    };
    let both = async { tokio::join!(stream(&forward, &service, pieces), closing) };
    timeout(life + PATIENCE, both).await.expect("nothing hangs");

    let resumed = calls(&lab.aws, "ResumeSession");
    let good: Vec<_> = resumed
        .iter()
        .filter(|event| event["errorCode"].is_null())
        .collect();
    let keys: BTreeSet<_> = good
        .iter()
        .map(|event| event["userIdentity"]["accessKeyId"].to_string())
        .collect();
    let assumed = lab.aws.events_of("AssumeRole");
    let assumed = assumed
        .iter()
        .filter(|event| event["requestParameters"]["roleArn"] == ROLE_ARN);
    println!(
        "{seconds} s, {closes} closes, {} bytes each way: {} resumes with {} credentials, {} \
         times a role, {} logins",
        pieces as usize * PIECE,
        good.len(),
        keys.len(),
        assumed.count(),
        logins(),
    );
    assert!(good.len() >= closes as usize, "{resumed:?}");
    assert!(
        keys.len() >= closes as usize,
        "each time with fresh ones: {keys:?}"
    );
    // One login in all: by somebody who was asked for a code, and that was before.
    assert_eq!(logins(), 1);
    assert_eq!(lab.aws.complaints(), Vec::<String>::new());
    forward.interrupt().await.unwrap();
    all_ended(&lab.aws).await;
    lab.stop().await.unwrap();
}
