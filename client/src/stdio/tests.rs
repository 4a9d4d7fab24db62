use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::pipe;
use tokio::io::AsyncWriteExt as _;

use super::*;

/// No step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pipe as a stream, and its other end.
fn piped() -> (Patient, File) {
    let (read, write): (OwnedFd, OwnedFd) = pipe().unwrap();
    (Patient(File::from(write)), File::from(read))
}

/// What arrives until the end, read beside the test.
fn read_all(mut file: File) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        all
    })
}

#[tokio::test]
async fn both_streams_keep_their_order() {
    // One file behind both, as on a terminal.
    let (write, read) = piped();
    let second = Patient(write.0.try_clone().unwrap());
    let Stdio {
        mut output,
        mut error,
        ..
    } = over(write, second).unwrap();
    let mut expected = Vec::new();
    for n in 0..500 {
        let (out, err) = (format!("out {n} "), format!("err {n}\n"));
        output.write_all(out.as_bytes()).await.unwrap();
        error.write_all(err.as_bytes()).await.unwrap();
        expected.extend_from_slice(out.as_bytes());
        expected.extend_from_slice(err.as_bytes());
    }
    let all = read_all(read);
    drop((output, error));
    assert_eq!(all.join().unwrap(), expected);
}

#[tokio::test]
async fn what_is_flushed_has_been_written_and_bulk_arrives_whole() {
    let (write, read) = piped();
    let Stdio {
        mut output, error, ..
    } = over(write, io::sink()).unwrap();
    let all = read_all(read);
    let bulk: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for part in bulk.chunks(70_000) {
        output.write_all(part).await.unwrap();
    }
    output.flush().await.unwrap();
    assert_eq!(output.shared.lock().length, 0);
    drop((output, error));
    assert_eq!(all.join().unwrap(), bulk);
}

#[tokio::test]
async fn a_reader_that_stops_holds_up_the_writer_and_costs_no_more_than_is_allowed() {
    let (write, read) = piped();
    let Stdio {
        mut output, error, ..
    } = over(write, io::sink()).unwrap();
    let much = vec![7; 4 * FULL];
    let write_all = output.write_all(&much);
    let waited = tokio::time::timeout(Duration::from_millis(200), write_all).await;
    assert!(waited.is_err(), "4 x {FULL} bytes fit nowhere");
    let length = output.shared.lock().length;
    assert!(length <= FULL, "{length} wait");
    drop((read, error));
}

#[tokio::test]
async fn a_reader_that_went_away_is_an_error_of_its_stream_alone() {
    let ((write, read), (second, heard)) = (piped(), piped());
    drop(read);
    let Stdio {
        mut output,
        mut error,
        ..
    } = over(write, second).unwrap();
    output.write_all(b"to nobody").await.unwrap();
    let failed = tokio::time::timeout(PATIENCE, output.flush()).await;
    let failed = failed.unwrap().unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(failed.to_string(), "Broken pipe (os error 32)");
    error.write_all(b"why").await.unwrap();
    error.flush().await.unwrap();
    drop((output, error));
    assert_eq!(read_all(heard).join().unwrap(), b"why");
}

#[tokio::test]
async fn a_stream_that_another_program_made_impatient_loses_nothing() {
    let (write, read) = piped();
    let flags = fcntl_getfl(write.0.as_fd()).unwrap();
    fcntl_setfl(write.0.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    let Stdio {
        mut output, error, ..
    } = over(write, io::sink()).unwrap();
    let (go, wait) = mpsc::channel::<()>();
    let reading = thread::spawn(move || {
        wait.recv_timeout(PATIENCE).unwrap();
        let mut length = 0;
        let mut buffer = vec![0; 10_000];
        let mut read = read;
        while let Ok(more @ 1..) = read.read(&mut buffer) {
            length += more;
        }
        length
    });
    output.write_all(&vec![7; FULL]).await.unwrap();
    go.send(()).unwrap();
    output.flush().await.unwrap();
    drop((output, error));
    assert_eq!(reading.join().unwrap(), FULL);
}

#[tokio::test]
async fn the_end_waits_for_the_rest_but_not_for_a_reader_that_stopped() {
    let (write, read) = piped();
    let Stdio {
        mut output,
        error,
        rest,
    } = over(write, io::sink()).unwrap();
    output.write_all(&vec![7; FULL]).await.unwrap();
    let all = read_all(read);
    drop((output, error));
    rest.settle().await;
    assert_eq!(all.join().unwrap().len(), FULL);

    let (write, _silent) = piped();
    let Stdio {
        mut output, rest, ..
    } = over(write, io::sink()).unwrap();
    output.write_all(&vec![7; FULL]).await.unwrap();
    let settled = tokio::time::timeout(PATIENCE, rest.settle()).await;
    assert!(settled.is_ok(), "an exit that hangs");
}
