//! The tour: Postern's main job, command by command, each shown as it would be typed.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::console;
use crate::forward::Forward;
use crate::stack::{DATABASE_PORT, Lab};
use crate::targets::Flavor;

/// No single command of the tour takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
const GREETING: &str = "echo hello from web-1 as $(id -un); echo to stderr >&2; exit 7";
const OVER_SSM: &str = "echo hello from app-1 through SSM; exit 5";

/// Runs it. The first step that does not do what it should ends it.
pub async fn run(lab: &Lab) -> Result<()> {
    step(lab, "alice", &["login"], 0).await?;
    step(lab, "alice", &["status"], 0).await?;
    step(lab, "alice", &["ls"], 0).await?;
    step(lab, "alice", &["connect", "web-1", "--", GREETING], 7).await?;
    query(lab).await?;
    // No agent knows a way to it; AWS does.
    let over_ssm = ["connect", "--via", "ssm", "app-1", "--", OVER_SSM];
    step(lab, "alice", &over_ssm, 5).await?;
    step(lab, "bob", &["login"], 0).await?;
    step(
        lab,
        "bob",
        &["forward", "db-1", &format!("0:{DATABASE_PORT}")],
        1,
    )
    .await?;
    step(
        lab,
        "bob",
        &[
            "why",
            "db-1",
            "tunnel",
            "--port",
            &DATABASE_PORT.to_string(),
        ],
        1,
    )
    .await?;
    step(lab, "carol", &["login"], 0).await?;
    step(lab, "carol", &["audit", "ls"], 0).await?;
    replay(lab).await?;
    step(lab, "carol", &["audit", "verify"], 0).await
}

/// The auditor reads what alice's command showed.
async fn replay(lab: &Lab) -> Result<()> {
    let mut command = lab.postern("carol");
    command.args(["audit", "ls", "--json"]).stdin(Stdio::null());
    let listed = tokio::time::timeout(PATIENCE, command.output()).await??;
    let list: List = serde_json::from_slice(&listed.stdout).context("`audit ls --json`")?;
    let shell = list.sessions.iter().find(|row| row.kind.starts_with("ssh"));
    let session = &shell.context("the session of alice is not listed")?.session;
    step(lab, "carol", &["audit", "play", session], 0).await
}

/// What the tour needs of `audit ls --json`.
#[derive(serde::Deserialize)]
struct List {
    sessions: Vec<Row>,
}

#[derive(serde::Deserialize)]
struct Row {
    session: String,
    kind: String,
}

/// Runs `postern ARGUMENTS` as `user` and demands `status`.
async fn step(lab: &Lab, user: &str, arguments: &[&str], status: i32) -> Result<()> {
    show(user, arguments);
    let mut command = lab.postern(user);
    command.args(arguments).stdin(Stdio::null());
    let ended = finish(&mut command).await?;
    if status != 0 && ended == Some(status) {
        console::answer(&format!("(exit status {status})"));
    }
    ensure!(
        ended == Some(status),
        "`postern {}` ended with {ended:?}, expected {status}",
        arguments.join(" ")
    );
    Ok(())
}

fn show(user: &str, arguments: &[&str]) {
    let quoted: Vec<String> = arguments
        .iter()
        .map(|argument| match argument.contains(' ') {
            true => format!("'{argument}'"),
            false => (*argument).to_owned(),
        })
        .collect();
    let profile = if user == "alice" {
        String::new()
    } else {
        format!("AWS_PROFILE={user} ")
    };
    console::typed(&format!("{profile}postern {}", quoted.join(" ")));
}

async fn finish(command: &mut Command) -> Result<Option<i32>> {
    let run = async { Ok::<_, anyhow::Error>(command.status().await?) };
    let status = tokio::time::timeout(PATIENCE, run)
        .await
        .with_context(|| format!("no end after {} s", PATIENCE.as_secs()))??;
    Ok(status.code())
}

/// Forwards the database's port and asks it something.
async fn query(lab: &Lab) -> Result<()> {
    let port = format!("0:{DATABASE_PORT}");
    show("alice", &["forward", "db-1", &port]);
    let forward = Forward::start(lab.postern("alice"), "db-1", &port).await?;
    console::answer(&format!("{} -> db-1:{DATABASE_PORT}", forward.local));
    match lab.database.as_ref().map(|database| database.flavor) {
        Some(Flavor::Genuine) => psql(lab, forward.local.port()).await?,
        _ => echo(forward.local.port()).await?,
    }
    forward.interrupt().await
}

async fn psql(lab: &Lab, port: u16) -> Result<()> {
    let port = port.to_string();
    let sql = "select version()";
    console::typed(&format!(
        "psql -h 127.0.0.1 -p {port} -U postgres -c '{sql}'"
    ));
    let mut command = lab.command("psql");
    command
        .args([
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-c",
            sql,
        ])
        .stdin(Stdio::null());
    ensure!(finish(&mut command).await? == Some(0), "the query failed");
    Ok(())
}

async fn echo(port: u16) -> Result<()> {
    console::typed(&format!(
        "echo hello | nc 127.0.0.1 {port}   # PostgreSQL is not installed"
    ));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"hello\n").await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await??;
    ensure!(answer == "hello\n", "the echo answered {answer:?}");
    console::answer(answer.trim_end());
    Ok(())
}
