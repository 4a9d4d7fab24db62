//! A writer that is killed in the middle of output.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use postern_proto::audit::verify::SessionState;

use super::*;

const CHILD: &str = "POSTERN_TEST_CRASH_STORE";
const CHUNK: usize = 3000;

/// What the child records and, once it is reported written, "relays" to its parent.
fn chunk(number: usize) -> Vec<u8> {
    format!("{number:08}").into_bytes().repeat(CHUNK / 8)
}

#[tokio::test]
async fn a_writer_killed_in_the_middle_of_output_loses_nothing_that_was_reported_written() {
    if let Ok(folder) = std::env::var(CHILD) {
        return child(Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let (settings, identity) = settings(folder.path());
    let text = format!("{}\n{}", settings.recipients[0], identity_text(&identity));
    std::fs::write(folder.path().join("recipient"), text).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(
            "evidence::tests::crash::\
             a_writer_killed_in_the_middle_of_output_loses_nothing_that_was_reported_written",
        )
        .env(CHILD, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut relayed = 0;
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    while relayed < 500 {
        let line = out.next().expect("the child ended").unwrap();
        if let Some(number) = line.strip_prefix("written ") {
            relayed = number.parse::<usize>().unwrap() + 1;
        }
    }
    // SIGKILL, by its pid.
    child.kill().unwrap();
    for line in out {
        if let Some(number) = line.unwrap().strip_prefix("written ") {
            relayed = number.parse::<usize>().unwrap() + 1;
        }
    }
    assert!(!child.wait().unwrap().success());

    let (evidence, startup) = Evidence::open(settings).unwrap();
    assert_eq!(startup.interrupted, [session(1)]);
    evidence.shutdown().await.unwrap();
    let name = format!("{}-0", session(1));
    let recorded = output(&lines(folder.path(), &name, &identity));
    let expected: Vec<u8> = (0..relayed).flat_map(chunk).collect();
    assert!(
        recorded.len() >= expected.len(),
        "{} < {}",
        recorded.len(),
        expected.len()
    );
    assert_eq!(recorded[..expected.len()], expected);
    let report = report(folder.path(), &identity);
    assert_eq!(report.faults, []);
    assert_eq!(report.sessions[0].state, SessionState::Interrupted);
    assert_eq!(report.interrupted, [name.parse().unwrap()]);
}

async fn child(folder: &Path) {
    let (mut settings, _) = settings(folder);
    let text = std::fs::read_to_string(folder.join("recipient")).unwrap();
    settings.recipients = vec![text.lines().next().unwrap().to_owned()];
    let (evidence, _) = Evidence::open(settings).unwrap();
    evidence.append(granted(1)).await.unwrap();
    let recording = evidence.begin(session(1), "p", terminal()).await.unwrap();
    for number in 0.. {
        recording
            .write(Entry::Output(chunk(number).into()))
            .await
            .unwrap();
        let mut out = std::io::stdout().lock();
        if writeln!(out, "written {number}")
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
    }
}
