//! Shells and commands on a session: streams, size, escape, status.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::super::shell::{self, Job, Status};
use super::*;
use crate::ssh::shell::{Control, Streams};
use crate::ssh::terminal::Size;

/// The other ends of a shell's streams.
struct Ends {
    input: DuplexStream,
    output: DuplexStream,
    error: DuplexStream,
    control: mpsc::Sender<Control>,
}

/// Runs a job on streams of a test's own, and the test's part of it.
async fn on_streams<F: Future<Output = ()>>(
    fake: &FakeSsm,
    (document, job, typed): (&str, Job, bool),
    person: impl FnOnce(Ends) -> F,
) -> Result<Status, SsmError> {
    let ssm = fake.ssm();
    let session = soon(Session::start(&ssm, start(document))).await?;
    let (input, far_input) = duplex(1 << 16);
    let (output, far_output) = duplex(1 << 16);
    let (error, far_error) = duplex(1 << 16);
    let (orders, control) = mpsc::channel(16);
    let streams = Streams {
        input: far_input,
        output: far_output,
        error: far_error,
        typed,
        raw: None,
    };
    let ends = Ends {
        input,
        output,
        error,
        control: orders,
    };
    let running = shell::run(session, job, streams, control, None, None);
    let (status, ()) = timeout(4 * SOON, async { tokio::join!(running, person(ends)) })
        .await
        .unwrap();
    soon(ssm.settle()).await;
    status
}

fn terminal() -> Job {
    Job::Terminal(Size {
        columns: 132,
        rows: 43,
        ..Size::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_ends_by_its_input_after_its_output_and_has_the_right_size() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let status = on_streams(
        &fake,
        (document::SHELL, terminal(), false),
        |mut ends| async move {
            // As `</dev/null` is: over at once.
            ends.input.shutdown().await.unwrap();
            let mut shown = Vec::new();
            ends.output.read_to_end(&mut shown).await.unwrap();
            // The size overtakes nothing and waits for nothing: either comes first.
            let shown = String::from_utf8(shown).unwrap();
            assert!(
                ["$ [132x43]\x04", "$ \x04[132x43]"].contains(&shown.as_str()),
                "{shown:?}"
            );
        },
    );
    assert_eq!(status.await, Ok(Status::Unknown));
    assert_eq!(fake.count("TerminateSession"), 0, "it ended by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paste_of_a_hundred_thousand_lines_arrives_whole() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let paste: Vec<u8> = (0..100_000)
        .flat_map(|line| format!("line {line:06} of a paste\r").into_bytes())
        .collect();
    let expected = [b"$ ", &paste[..], b"\x04"].concat();
    let status = on_streams(
        &fake,
        (document::SHELL, terminal(), true),
        |ends| async move {
            let Ends {
                mut input,
                mut output,
                error: _error,
                control: _control,
            } = ends;
            let typing = async {
                input.write_all(&paste).await.unwrap();
                input.write_all(b"\x04").await.unwrap();
            };
            let mut shown = Vec::new();
            let looking = async { output.read_to_end(&mut shown).await };
            tokio::join!(typing, looking).1.unwrap();
            // The size comes somewhere near the start.
            let size: &[u8] = b"[132x43]";
            let at = shown.windows(size.len()).position(|part| part == size);
            let at = at.unwrap();
            shown.drain(at..at + size.len());
            assert!(
                shown == expected,
                "{} of {} bytes",
                shown.len(),
                expected.len()
            );
        },
    );
    assert_eq!(status.await, Ok(Status::Unknown));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_escape_ends_the_session_though_nobody_answers() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let status = on_streams(
        &fake,
        (document::SHELL, terminal(), true),
        |mut ends| async move {
            let mut greeting = [0; 2];
            ends.output.read_exact(&mut greeting).await.unwrap();
            ends.input.write_all(b"\x03\x19\x1c\r~?").await.unwrap();
            let mut help = vec![0; 20];
            ends.error.read_exact(&mut help).await.unwrap();
            assert!(help.starts_with(b"\r\n~.   end"), "{help:?}");
            ends.input.write_all(b"~.").await.unwrap();
            let mut rest = Vec::new();
            ends.output.read_to_end(&mut rest).await.unwrap();
            drop(ends.control);
        },
    );
    assert_eq!(status.await, Ok(Status::Left));
    assert_eq!(fake.count("TerminateSession"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commands_streams_and_status_are_its_own() {
    let fake = FakeSsm::start(Plays::Command).await;
    let what = (document::NON_INTERACTIVE, Job::Command, false);
    let status = on_streams(&fake, what, |mut ends| async move {
        let (mut out, mut err) = (String::new(), String::new());
        ends.output.read_to_string(&mut out).await.unwrap();
        ends.error.read_to_string(&mut err).await.unwrap();
        assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    });
    assert_eq!(status.await, Ok(Status::Exited(5)));
    let started = fake.lock().started[0].clone();
    assert_eq!(started["Parameters"], json!({"command": ["uptime"]}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_nobody_told_is_not_made_up() {
    let fake = FakeSsm::start(Plays::Mixed).await;
    let what = (document::NON_INTERACTIVE, Job::Command, false);
    let status = on_streams(&fake, what, |mut ends| async move {
        let mut out = String::new();
        ends.output.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "out\nerr\n");
    });
    assert_eq!(status.await, Ok(Status::Unknown));
}
