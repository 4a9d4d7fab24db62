//! The local terminal, on either route: it is as before after every kind of end, the escapes
//! always work, and what is typed or pasted arrives as it is.

use std::time::Duration;

use lab::aws::{Fault, FaultRule, Service};
use lab::cutter::Cutter;
use lab::ssm::{Cut, Side};
use lab::stack::Lab;
use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{PATIENCE, eventually, lab};
use crate::person::{Modes, Person, prompt};

/// Both routes to a shell.
const ROUTES: [&[&str]; 2] = [
    &["connect", "-t", "web-1"],
    &["connect", "--via", "ssm", "app-1"],
];

/// A person in a shell, and the modes of the terminal before.
async fn in_shell(lab: &Lab, arguments: &[&str], agent: Option<&str>) -> (Person, Modes) {
    let mut before = None;
    let mut person = Person::with(lab, |postern| {
        let (pty, _slave) = pty_process::open().unwrap();
        before = Some(modes_of(&pty));
        let postern = postern.args(arguments);
        match agent {
            Some(address) => postern.env("POSTERN_AGENT", address),
            None => postern,
        }
    });
    person.sees(prompt()).await;
    let before = before.unwrap();
    assert_ne!(person.modes(), before, "the terminal is raw");
    (person, before)
}

/// Those of a terminal that nobody used.
fn modes_of(pty: &pty_process::Pty) -> Modes {
    use std::os::fd::AsFd as _;
    let modes = rustix::termios::tcgetattr(pty.as_fd()).unwrap();
    (modes.input_modes, modes.output_modes, modes.local_modes)
}

fn signal(person: &Person, signal: Signal) {
    let pid = person.child.id().and_then(|id| i32::try_from(id).ok());
    kill_process(pid.and_then(Pid::from_raw).unwrap(), signal).unwrap();
}

/// Demands the end with this status, words on the terminal, and the terminal as it was.
async fn ends(person: Person, before: Modes, status: i32, says: &str) {
    let (code, said, after) = person.leaves_within(PATIENCE).await;
    assert_eq!(code, Some(status), "{said}");
    assert!(said.contains(says), "no `{says}` in {said}");
    assert_eq!(after, before, "{said}");
}

#[tokio::test]
async fn a_prompt_and_the_echo_of_a_key_are_shown_though_they_end_no_line() {
    let lab = lab().await;
    for route in ROUTES {
        let (mut person, before) = in_shell(&lab, route, None).await;
        person.types("echo").await;
        person.sees("echo").await;
        person.types(" it's").await;
        person.sees(" it's").await;
        person.types("~?'\rexit 0\r").await;
        person.sees("its~?").await;
        ends(person, before, 0, "").await;
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_terminal_is_as_before_after_the_shells_end_the_escape_and_signals() {
    let lab = lab().await;
    for (route, status) in ROUTES.into_iter().zip([3, 0]) {
        let (mut person, before) = in_shell(&lab, route, None).await;
        person.types("exit 3\r").await;
        // SSM carries no status of a shell.
        ends(person, before, status, "").await;

        let (mut person, before) = in_shell(&lab, route, None).await;
        // Also when a program does not answer to anything.
        person
            .types("trap '' INT QUIT TSTP; echo de'af'; sleep 1000\r")
            .await;
        person.sees("deaf").await;
        person.types("\x03\x1c\x1a\r~.").await;
        ends(person, before, 255, "").await;

        for killed in [Signal::TERM, Signal::HUP] {
            let (person, before) = in_shell(&lab, route, None).await;
            signal(&person, killed);
            ends(person, before, 255, "").await;
        }
    }
    eventually("every session is over at AWS", async || {
        lab.aws.sessions().is_empty().then_some(())
    })
    .await;
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_terminal_is_as_before_when_somebody_else_ends_the_session() {
    let mut lab = lab().await;
    let (person, before) = in_shell(&lab, ROUTES[1], None).await;
    let session = lab.aws.sessions().pop().unwrap();
    assert!(lab.aws.end_session(&session, "ended by an administrator"));
    ends(person, before, 255, "ended by an administrator").await;

    let (person, before) = in_shell(&lab, ROUTES[0], None).await;
    lab.agent.signal(Signal::TERM).unwrap();
    ends(person, before, 255, "shutting down").await;
    lab.agent.ended().await.unwrap();
    lab.agent.start().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_terminal_is_as_before_when_a_person_gives_up_a_lost_network() {
    let lab = lab().await;
    let network = Cutter::start(lab.agent.address).await.unwrap();
    let address = network.address.to_string();
    let (mut person, before) = in_shell(&lab, ROUTES[0], Some(&address)).await;
    network.cut();
    person.sees("network lost").await;
    person.types("\x03\x03").await;
    ends(person, before, 255, "").await;

    let (mut person, before) = in_shell(&lab, ROUTES[1], None).await;
    let away = FaultRule::always(Service::Ssm, "ResumeSession", Fault::ServerError);
    lab.aws.inject(away);
    lab.aws.cut(Side::Client, Cut::Abort, None);
    person.sees("network lost").await;
    person.types("\x03\x03").await;
    ends(person, before, 255, "").await;
    lab.aws.clear_faults();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_suspended_client_gives_the_terminal_back_and_takes_it_again() {
    let lab = lab().await;
    for route in ROUTES {
        // A process that has no shell above it is not suspended by anything.
        let shell = pty_process::Command::new("bash");
        let shell = shell
            .args(["--norc", "--noprofile", "--noediting", "-i"])
            .envs(&lab.environment)
            .env("PS1", "local> ");
        let mut person = Person::of(shell);
        person.sees("local> ").await;
        let before = person.modes();
        person
            .types(&format!("postern {}\r", route.join(" ")))
            .await;
        person.sees("\n").await;
        person.sees(prompt()).await;
        let raw = person.modes();
        assert_ne!(raw, before);
        person.types("~\x1a").await;
        person.sees("Stopped").await;
        person.sees("local> ").await;
        assert_eq!(person.modes(), before, "{route:?}");
        person.types("echo $((6*7)); fg\r").await;
        person.sees("42").await;
        eventually("the terminal is raw again", async || {
            (person.modes() == raw).then_some(())
        })
        .await;
        person.types("\recho still $((7*7))\r").await;
        person.sees("still 49").await;
        person.types("exit\r").await;
        person.sees("local> ").await;
        assert_eq!(person.modes(), before, "{route:?}");
        person.types("exit\r").await;
        assert_eq!(person.leaves().await, Some(0));
    }
    lab.stop().await.unwrap();
}

/// Whatever a key sends, the target's terminal gets it.
#[tokio::test]
async fn control_characters_are_bytes_like_others() {
    let lab = lab().await;
    for route in ROUTES {
        let (mut person, _) = in_shell(&lab, route, None).await;
        person
            .types("stty raw -echo; echo re'ady'; dd bs=1 count=8 2>/dev/null | od -An -tx1; stty sane\r")
            .await;
        person.sees("ready").await;
        // Ctrl-C, -Y (which suspends on macOS), -Z, -\, -S, -Q, -D, -V.
        person.types("\x03\x19\x1a\x1c\x13\x11\x04\x16").await;
        person.sees("03 19 1a 1c 13 11 04 16").await;
        person.sees(prompt()).await;
        person.types("exit\r").await;
        assert_eq!(person.leaves().await, Some(0));
    }
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_paste_of_a_hundred_thousand_lines_arrives_whole_on_either_route() {
    const LINES: usize = 100_000;
    let lab = lab().await;
    lab.aws.change_knobs(|knobs| knobs.pace = Duration::ZERO);
    let folder = tempfile::tempdir().unwrap();
    for (number, route) in ROUTES.into_iter().enumerate() {
        let got = folder.path().join(number.to_string());
        let (mut person, _) = in_shell(&lab, route, None).await;
        let taking = format!(
            "stty -echo; echo re'ady'; cat >{}; echo ta'ken'\r",
            got.display()
        );
        person.types(&taking).await;
        person.sees("ready").await;
        let pasted: String = (0..LINES).map(|line| format!("line {line}\r")).collect();
        person.types(&pasted).await;
        person.types("\x04").await;
        person.sees("taken").await;
        let got = std::fs::read_to_string(got).unwrap();
        assert!(got == pasted.replace('\r', "\n"), "{} bytes", got.len());
        person.types("stty echo\rexit\r").await;
        assert_eq!(person.leaves().await, Some(0));
    }
    lab.stop().await.unwrap();
}
