//! `postern connect` over SSM: shells and commands that the SSM Agent of `app-1` runs.

use std::time::Duration;

use lab::ssm::{Cut, CutEvery, Side};

use crate::harness::{eventually, lab, postern, postern_as};
use crate::person::{Person, prompt};

#[tokio::test]
async fn a_command_tells_its_output_and_its_exit_status() {
    let lab = lab().await;
    // The first of all tells where the evidence goes.
    let first = ["connect", "--via", "ssm", "app-1", "--", "true"];
    postern(&lab, &first).await.status(0);
    let script = "sh -c 'echo out; echo err >&2; exit 5'";
    let told = postern(&lab, &["connect", "--via", "ssm", "app-1", "--", script])
        .await
        .status(5);
    // AWS's document keeps both in one stream.
    assert_eq!(
        (told.out().as_str(), told.stderr.as_str()),
        ("out\nerr\n", "")
    );
    let told = postern(
        &lab,
        &[
            "connect",
            "--via",
            "ssm",
            "-t",
            "app-1",
            "--",
            "stty size; exit 3",
        ],
    )
    .await
    .status(3);
    assert_eq!(told.out(), "24 80\r\n");
    let ended = eventually("every session is over at AWS", async || {
        lab.aws.sessions().is_empty().then_some(())
    });
    ended.await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn without_a_route_the_agent_is_asked_first_and_its_denial_is_final() {
    let lab = lab().await;
    let told = postern(&lab, &["connect", "web-1", "--", "echo here"])
        .await
        .status(0);
    assert_eq!((told.out().as_str(), told.stderr.as_str()), ("here\n", ""));
    // Nobody but SSM reaches it.
    postern(&lab, &["connect", "app-1", "--", "echo there"])
        .await
        .status(0)
        .says(&["through SSM: "]);
    // bob may not enter production: SSM is not even asked.
    postern_as(&lab, "bob", &["login"]).await.status(0);
    lab.aws.clear_events();
    postern_as(&lab, "bob", &["connect", "bastion-1", "--", "true"])
        .await
        .status(255)
        .says(&["error (denied)"]);
    assert_eq!(lab.aws.events_of("StartSession").len(), 0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_target_is_found_by_all_its_names() {
    let lab = lab().await;
    let id = lab::account::HOSTS[1].id;
    let address = lab::account::HOSTS[1].address(&lab.network).to_string();
    for name in ["app-1", id, &address, "tag:Name=app-1"] {
        let told = postern(&lab, &["connect", "--via", "ssm", name, "--", "echo found"])
            .await
            .status(0);
        assert_eq!(told.out(), "found\n", "{name}");
    }
    postern(
        &lab,
        &["connect", "--via", "ssm", "tag:env=staging", "--", "true"],
    )
    .await
    .status(255)
    .says(&[
        "is the name of several targets",
        id,
        "hint: name the one by its id",
    ]);
    postern(&lab, &["connect", "--via", "ssm", "db-1", "--", "true"])
        .await
        .status(255)
        .says(&["SSM manages no target `db-1`"]);
    let told = postern(&lab, &["ls", "--via", "ssm", "tag:Name=app-1"])
        .await
        .status(0);
    assert!(
        told.out().contains(id) && told.out().contains("Online"),
        "{}",
        told.out()
    );
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_reached_is_told_and_nothing_hangs() {
    let lab = lab().await;
    let connect = ["connect", "--via", "ssm", "app-1", "--", "true"];
    lab.aws.change_knobs(|knobs| knobs.session_limit = Some(0));
    postern(&lab, &connect).await.status(255).says(&["hint: "]);
    lab.aws.change_knobs(|knobs| knobs.session_limit = None);
    // Sessions begin that nobody answers.
    assert!(lab.ssm.kill("app-1"));
    postern(&lab, &connect)
        .await
        .status(255)
        .says(&["error (unreachable)", "no session within the time limit"]);
    lab.ssm.vanish("app-1");
    postern(&lab, &connect)
        .await
        .status(255)
        .says(&["is not connected to AWS (ConnectionLost)"]);
    assert!(lab.ssm.bring_back("app-1"));
    postern(&lab, &connect).await.status(0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_shell_has_the_right_size_and_survives_cuts() {
    let lab = lab().await;
    let mut person = Person::at(&lab, &["connect", "--via", "ssm", "app-1"]);
    person.sees(prompt()).await;
    person.types("stty size\r").await;
    person.sees("40 100").await;
    person.pty.resize(pty_process::Size::new(50, 132)).unwrap();
    person.types("sleep 1; stty size\r").await;
    person.sees("50 132").await;
    // Ctrl-C is a byte.
    person.types("sleep 60\r").await;
    person.sees("sleep 60").await;
    person.types("\x03").await;
    // What is typed before the shell is back is thrown away by the terminal.
    person.sees(prompt()).await;
    person.types("echo 'af'ter\r").await;
    person.sees("after").await;
    for (round, how) in [Cut::Close, Cut::Abort, Cut::Close].into_iter().enumerate() {
        lab.aws.cut(Side::Client, how, None);
        if round == 1 {
            lab.aws.cut(Side::Agent, Cut::Abort, None);
        }
        person.types(&format!("echo 'cut'-{round}\r")).await;
        person.sees(&format!("cut-{round}")).await;
    }
    person.types("exit 3\r").await;
    // A shell's status is not carried.
    assert_eq!(person.leaves().await, Some(0));
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_escape_ends_a_shell_and_the_session_at_aws() {
    let lab = lab().await;
    let mut person = Person::at(&lab, &["connect", "--via", "ssm", "app-1"]);
    person.sees(prompt()).await;
    assert_eq!(lab.aws.sessions().len(), 1);
    person.types("~.").await;
    assert_eq!(person.leaves().await, Some(255));
    assert_eq!(lab.aws.sessions().len(), 0);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_output_is_whole_though_it_is_cut_every_second() {
    let lab = lab().await;
    lab.aws.change_knobs(|knobs| {
        knobs.cut_every = Some(CutEvery {
            side: Side::Client,
            how: Cut::Abort,
            every: Duration::from_millis(700),
        });
        knobs.to_client.drop = 1.0;
        knobs.to_client.double = 1.0;
    });
    let told = postern(
        &lab,
        &[
            "connect",
            "--via",
            "ssm",
            "app-1",
            "--",
            "seq 1 200000; exit 9",
        ],
    )
    .await
    .status(9);
    let expected: String = (1..=200_000).map(|line| format!("{line}\n")).collect();
    assert!(told.out() == expected, "{} bytes", told.stdout.len());
    lab.stop().await.unwrap();
}
