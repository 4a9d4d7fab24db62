//! A person at a terminal: a program that draws the whole screen twenty times a second, as `tmux`
//! does with busy panes, and keys that are typed meanwhile.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use lab::cutter::Toll;
use pty_process::{OwnedReadPty, OwnedWritePty};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::{Stormy, Trial};
use crate::harness::figures;

const ROWS: u32 = 20;
/// Between two lines that are typed.
const TYPING: Duration = Duration::from_millis(100);
/// Bytes between two outages: about a second of drawing.
const EVERY: usize = 16 * 1024;

/// Draws until somebody ends its input with Ctrl-D, and keeps what is typed.
fn script(folder: &Path) -> String {
    let (stop, typed) = (folder.join("stop"), folder.join("typed"));
    format!(
        "stty -echo; draw() {{ f=0; while [ ! -e {stop} ]; do f=$((f+1)); printf '\\033[H\\033[2J'; r=0; \
         while [ $r -lt {ROWS} ]; do r=$((r+1)); printf '\\033[%d;1H\\033[3%dm│ frame %d row %d\\033[0m' \
         $r $((r%8)) $f $r; done; sleep 0.05; done; printf '\\033[Hdrawn %d' $f; }}; \
         draw & cat >{typed}; touch {stop}; wait; exit 5",
        stop = stop.display(),
        typed = typed.display(),
    )
}

/// What so many frames look like.
fn drawn(frames: usize) -> String {
    let mut drawn = String::new();
    for frame in 1..=frames {
        drawn.push_str("\x1b[H\x1b[2J");
        for row in 1..=ROWS {
            let colour = row % 8;
            let _infallible = write!(
                drawn,
                "\x1b[{row};1H\x1b[3{colour}m│ frame {frame} row {row}\x1b[0m"
            );
        }
    }
    let _infallible = write!(drawn, "\x1b[Hdrawn {frames}");
    drawn
}

/// Demands that `seen` is what some frames look like, whole and in order.
fn demand_drawn(what: &str, seen: &str) {
    let frames = seen.rsplit("\x1b[Hdrawn ").next().unwrap();
    let frames: usize = frames.parse().expect("the number of frames at the end");
    figures(format_args!("{what}: {frames} frames"));
    let expected = drawn(frames);
    let differs = seen.bytes().zip(expected.bytes()).position(|(a, b)| a != b);
    let around =
        differs.and_then(|at| seen.get(at.saturating_sub(100)..(at + 100).min(seen.len())));
    assert!(
        seen == expected,
        "{what} differs at {differs:?}: {around:?}"
    );
}

/// What the status line wrote on the terminal, taken out: from "save the cursor" to "restore it".
fn without_status(seen: &str) -> (String, usize) {
    let mut parts = seen.split("\x1b7");
    let mut program = parts.next().unwrap_or_default().to_owned();
    let mut lines = 0;
    for part in parts {
        let (line, rest) = part.split_once("\x1b8").expect("a whole status line");
        assert!(!line.contains("frame"), "nothing comes between: {line:?}");
        lines += 1;
        program.push_str(rest);
    }
    (program, lines)
}

/// Everything until the terminal's last user is gone.
async fn read(mut terminal: OwnedReadPty, begun: &Notify) -> String {
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while let Ok(length @ 1..) = terminal.read(&mut buffer).await {
        seen.extend_from_slice(&buffer[..length]);
        begun.notify_one();
    }
    String::from_utf8(seen).unwrap()
}

/// Types numbered lines until the storm is over, then Ctrl-D. Returns the lines.
async fn type_until(terminal: &mut OwnedWritePty, over: &Notify) -> String {
    let mut typed = String::new();
    for number in 0.. {
        let line = format!("key {number}");
        terminal
            .write_all(format!("{line}\r").as_bytes())
            .await
            .unwrap();
        typed.push_str(&line);
        typed.push('\n');
        if tokio::time::timeout(TYPING, over.notified()).await.is_ok() {
            break;
        }
    }
    terminal.write_all(b"\x04").await.unwrap();
    typed
}

/// The recording's output, and its remarks about the network.
fn recorded(cast: &str) -> (String, Vec<String>) {
    let (mut output, mut remarks) = (String::new(), Vec::new());
    // The first line is the header.
    for line in cast.lines().skip(1).filter(|line| !line.starts_with('#')) {
        let (_, code, text): (f64, String, Value) = serde_json::from_str(line).expect(line);
        let text = text.as_str().unwrap();
        match code.as_str() {
            "o" => output.push_str(text),
            "m" => remarks.push(text.to_owned()),
            "O" => panic!("the output is text: {line}"),
            _ => {}
        }
    }
    (output, remarks)
}

#[tokio::test]
async fn a_shell_goes_on_through_cuts_and_its_recording_is_whole() {
    let trial = Trial::new(0);
    let stormy = Stormy::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (pty, slave) = pty_process::open().unwrap();
    pty.resize(pty_process::Size::new(24, 80)).unwrap();
    let mut child = pty_process::Command::new(&stormy.lab.programs.client)
        .args(["connect", "-t", "web-1", "--", &script(folder.path())])
        .envs(&stormy.lab.environment)
        .env("POSTERN_AGENT", stormy.network.address.to_string())
        .kill_on_drop(true)
        .spawn(slave)
        .unwrap();
    let (reader, mut writer) = pty.into_split();
    let (drawing, over) = (Notify::new(), Notify::new());
    let told = async {
        drawing.notified().await;
        let storm = async {
            let toll = stormy.network.weather(trial.storm(EVERY)).await;
            over.notify_one();
            toll
        };
        tokio::join!(type_until(&mut writer, &over), storm)
    };
    let story = async { tokio::join!(read(reader, &drawing), told) };
    let (seen, (typed, toll)) = tokio::time::timeout(trial.patience(), story)
        .await
        .expect("the story ends");
    assert_eq!(child.wait().await.unwrap().code(), Some(5), "{seen}");

    let (program, lines) = without_status(&seen);
    figures(format_args!("{lines} status lines"));
    demand_drawn("the screen", &program);
    let arrived = std::fs::read_to_string(folder.path().join("typed")).unwrap();
    assert!(arrived == typed, "typed {typed}, arrived {arrived}");
    demand_recorded(&stormy, toll).await;
    stormy.end(toll).await;
}

/// The recording is what was drawn, and says when the network was away.
async fn demand_recorded(stormy: &Stormy, toll: Toll) {
    let listed = stormy.audit(&["ls", "--json"]).await;
    let id = listed
        .split('"')
        .find(|text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_alphanumeric()))
        .unwrap();
    let cast = stormy.audit(&["play", "--raw", id]).await;
    let (output, remarks) = recorded(&cast);
    demand_drawn("the recording", &output);
    let count = |text: &str| {
        let said = remarks.iter().filter(|remark| remark.contains(text));
        said.count()
    };
    let (lost, back) = (
        count("the network was lost"),
        count("the network is back from 127.0."),
    );
    let moved = count("the connection moved to 127.0.");
    figures(format_args!(
        "the recording: lost {lost}, back {back}, moved {moved}"
    ));
    assert_eq!(lost, back, "{remarks:?}");
    // A client that is back before the agent missed it has moved.
    assert!(
        lost + moved >= 1 && (lost + moved) * 2 >= toll.cut + toll.lost,
        "{remarks:?}"
    );
    // An auditor who plays it sees them.
    let played = stormy.audit(&["play", "--speed", "0", id]).await;
    for remark in &remarks {
        assert!(played.contains(&format!("[{remark}]")), "{played}");
    }
}
