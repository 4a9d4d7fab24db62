//! Sessions over SSM of our own client, when AWS, the target or the account is not as usual.

use std::time::Duration;

use lab::account::SESSION_KEY;
use lab::forward::Forward;
use lab::ssm::{Cut, Noise, Retention, Side};
use lab::stack::Lab;
use tokio::io::AsyncReadExt as _;

use crate::harness::{PATIENCE, eventually, lab, postern, setting};
use crate::person::{Person, prompt};
use crate::ssm_forward::peer::{self, Peer};

const SHELL: [&str; 4] = ["connect", "--via", "ssm", "app-1"];

async fn forward(lab: &Lab, port: u16) -> Forward {
    let mut command = lab.postern("alice");
    command.env("POSTERN_VIA", "ssm");
    Forward::start(command, "app-1", &format!("0:{port}"))
        .await
        .unwrap()
}

#[tokio::test]
async fn an_account_that_encrypts_its_sessions_gets_shells_commands_and_forwards() {
    let lab = lab().await;
    let key = format!("alias/{SESSION_KEY}");
    let peer = Peer::start().await;
    // With the random challenge of newer SSM Agents, and without.
    for challenge in [true, false] {
        lab.aws.change_knobs(|knobs| {
            knobs.session_key = Some(key.clone());
            (knobs.kms_challenge, knobs.kms_challenge_required) = (challenge, challenge);
        });
        lab.aws.clear_events();
        let mut person = Person::at(&lab, &SHELL);
        let before = person.sees_within(PATIENCE, prompt()).await;
        assert!(before.contains("encrypted using AWS KMS"), "{before}");
        // Numbers, keys and messages go on behind a cut.
        for round in 0..2 {
            person.types(&format!("echo $((40+{round}))\r")).await;
            person.sees(&format!("{}", 40 + round)).await;
            lab.aws.cut(Side::Client, Cut::Abort, None);
        }
        person.types("exit\r").await;
        assert_eq!(person.leaves().await, Some(0));
        let command = [
            "connect",
            "--via",
            "ssm",
            "app-1",
            "--",
            "seq 1 5000; exit 9",
        ];
        let told = postern(&lab, &command).await.status(9);
        let expected: String = (1..=5000).map(|line| format!("{line}\n")).collect();
        assert!(told.out() == expected, "{} bytes", told.stdout.len());
        let forward = forward(&lab, peer.port).await;
        peer::exchange(forward.local, 1, 300_000).await.unwrap();
        forward.interrupt().await.unwrap();
        let keys = lab.aws.events_of("GenerateDataKey").len();
        assert!(keys >= 3, "each session has a key of its own: {keys}");
    }
    // A key that cannot be used is named, and nothing runs.
    assert!(lab.aws.enable_key(&key, false));
    postern(&lab, &["connect", "--via", "ssm", "app-1", "--", "true"])
        .await
        .status(255)
        .says(&["the KMS key", "cannot be used", "hint:"]);
    eventually("every session is over at AWS", async || {
        lab.aws.sessions().is_empty().then_some(())
    })
    .await;
    assert_eq!(lab.aws.complaints(), Vec::<String>::new());
    lab.stop().await.unwrap();
}

/// What AWS does with messages for a side that is away, nobody has said.
#[tokio::test]
async fn a_shell_survives_cuts_and_lost_frames_with_either_retention() {
    let lab = lab().await;
    for retention in [Retention::Keep, Retention::Drop] {
        let noisy = Noise {
            drop: 1.0,
            double: 2.0,
            delay: 2.0,
            delay_for: Duration::from_millis(30),
        };
        lab.aws.change_knobs(|knobs| {
            knobs.retention = retention;
            (knobs.to_agent, knobs.to_client) = (noisy, noisy);
        });
        let mut person = Person::at(&lab, &SHELL);
        person.sees(prompt()).await;
        let sides = [Side::Client, Side::Agent, Side::Client, Side::Agent];
        for (round, side) in sides.into_iter().enumerate() {
            let how = if round % 2 == 0 {
                Cut::Close
            } else {
                Cut::Abort
            };
            person
                .types(&format!(
                    "seq {round}00000 {round}02000; echo en'd' {round}\r"
                ))
                .await;
            lab.aws.cut(side, how, None);
            let end = format!("end {round}");
            let seen = person.sees_within(PATIENCE, &end).await;
            lab.aws.cut(side, how, None);
            let numbers: Vec<u32> = seen
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect();
            let first = round as u32 * 100_000;
            assert_eq!(numbers, (first..=first + 2000).collect::<Vec<_>>());
        }
        person.types("exit\r").await;
        assert_eq!(person.leaves().await, Some(0));
    }
    lab.stop().await.unwrap();
}

/// An SSM Agent that is gone says nothing: the person can always leave, and who waits is told.
/// `POSTERN_VANISH=1` waits for that, which takes five minutes.
#[tokio::test]
async fn a_target_that_vanishes_holds_nobody() {
    let lab = lab().await;
    let mut idle = Person::at(&lab, &SHELL);
    let mut typing = Person::at(&lab, &SHELL);
    for person in [&mut idle, &mut typing] {
        person.sees(prompt()).await;
    }
    assert!(lab.ssm.vanish("app-1"));
    typing.types("ls\r").await;
    if setting("POSTERN_VANISH", 0) == 0 {
        for mut person in [idle, typing] {
            person.types("\r~.").await;
            assert_eq!(person.leaves().await, Some(255));
        }
    } else {
        // Who typed has something unanswered: that shows first, and says what it may be.
        ends_by_itself(typing, "does not answer any more").await;
        ends_by_itself(idle, "AWS does not hear it").await;
    }
    assert_eq!(lab.aws.sessions(), Vec::<String>::new());
    lab.stop().await.unwrap();
}

async fn ends_by_itself(mut person: Person, words: &str) {
    person.sees_within(PATIENCE, "target away").await;
    let (code, said, _) = person.leaves_within(Duration::from_secs(480)).await;
    // The status line before it was written every second.
    let last = said.rsplit_once("error").map_or("", |(_, last)| last);
    assert_eq!(code, Some(255), "{last}");
    assert!(last.contains(words), "{last}");
}

/// A restart takes the sessions on the target with it, and AWS tells nobody.
#[tokio::test]
async fn a_forward_goes_on_with_new_connections_when_the_ssm_agent_was_restarted() {
    let lab = lab().await;
    let peer = Peer::start().await;
    let forward = forward(&lab, peer.port).await;
    peer::exchange(forward.local, 1, 10_000).await.unwrap();
    assert!(lab.ssm.vanish("app-1"));
    assert!(lab.ssm.bring_back("app-1"));
    // Nobody tells the client. A connection that gets no answer is not left waiting, and the next
    // one gets a new session.
    let mut unlucky = peer::ask(forward.local, 2, 10_000).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(40), unlucky.read_u8()).await;
    assert!(ended.expect("it hangs").is_err(), "of whom is this?");
    let again = peer::exchange(forward.local, 3, 10_000);
    let again = tokio::time::timeout(Duration::from_secs(10), again).await;
    again.expect("it hangs").unwrap();
    forward.interrupt().await.unwrap();
    eventually("every session is over at AWS", async || {
        lab.aws.sessions().is_empty().then_some(())
    })
    .await;
    lab.stop().await.unwrap();
}
