//! The driver and the shell against a service in this process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::messages::sentence;
use super::shell::{self, Job, Status};
use super::testing::{FakeSsm, Order, Plays};
use super::{Event, Session, Ssm, SsmError, Start, document};
use crate::identity::testing::Authority;
use crate::proxy::Proxies;
use crate::ssh::shell::{Control, Streams};
use crate::ssh::terminal::Size;

const NODE: &str = "i-0123456789abcdef0";
/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(60);

fn start(document: &str) -> Start {
    Start {
        target: NODE.to_owned(),
        document: document.to_owned(),
        parameters: document::parameters([("command", "uptime".to_owned())]),
        reason: "test".to_owned(),
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.unwrap()
}

/// Data until there is so much of it.
async fn read(session: &mut Session, length: usize) -> Vec<u8> {
    let mut data = Vec::new();
    while data.len() < length {
        match soon(session.next_event()).await {
            Some(Event::Data(bytes)) => data.extend_from_slice(&bytes),
            other => panic!("after {} bytes: {other:?}", data.len()),
        }
    }
    data
}

/// Bytes that do not repeat soon.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_carries_both_ways_and_is_ended_at_aws() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let mut session = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .unwrap();
    assert_eq!(read(&mut session, 2).await, b"$ ");
    let size = postern_proto::ssm::payload::TerminalSize {
        cols: 132,
        rows: 43,
    };
    session.resize(size).await.unwrap();
    assert_eq!(read(&mut session, 8).await, b"[132x43]");
    // A lone line feed stays one.
    session.write(Bytes::from_static(b"\n")).await.unwrap();
    assert_eq!(read(&mut session, 1).await, b"\n");
    assert_eq!(session.id(), "alice-0001");
    assert_eq!(session.request_id(), Some("r-1"));
    assert_eq!(fake.count("TerminateSession"), 0);
    soon(session.end()).await.unwrap();
    assert_eq!(fake.count("TerminateSession"), 1);
    let started = fake.lock().started[0].clone();
    assert_eq!(started["Target"], NODE);
    assert_eq!(started["DocumentName"], document::SHELL);
    assert_eq!(started["Reason"], "test");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_dropped_while_it_starts_is_ended_too() {
    let fake = FakeSsm::start(Plays::Silent).await;
    let ssm = fake.ssm();
    let starting = Session::start(&ssm, start(document::SHELL));
    let began = async {
        while fake.count("StartSession") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = starting => panic!("nobody answered"),
        () = began => {}
    }
    soon(ssm.settle()).await;
    assert_eq!(fake.count("TerminateSession"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_over_twenty_cuts() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let session = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .unwrap();
    let (writer, mut reader) = session.split();
    let sent = pattern(2 << 20);
    let whole = Bytes::from(sent.clone());
    let writing = async {
        for chunk in whole.chunks(20_000) {
            let chunk = whole.slice_ref(chunk);
            writer.write(chunk).await.unwrap();
        }
        writer.settled().await.unwrap();
    };
    let reading = async {
        let (mut got, mut cuts) = (Vec::new(), 0);
        while got.len() < sent.len() + 2 {
            match reader.next_event().await {
                Some(Event::Data(bytes)) => got.extend_from_slice(&bytes),
                other => panic!("after {} bytes and {cuts} cuts: {other:?}", got.len()),
            }
            if got.len() > cuts * 100_000 && cuts < 20 {
                cuts += 1;
                fake.order(if cuts % 2 == 0 {
                    Order::Abort
                } else {
                    Order::Shut
                });
            }
        }
        got
    };
    let ((), got) = timeout(4 * SOON, async { tokio::join!(writing, reading) })
        .await
        .unwrap();
    assert!(got[2..] == sent[..], "what came back is what was sent");
    assert!(fake.count("ResumeSession") >= 10, "it was cut");
    soon(writer.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_told_to_be_away_and_back() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    let mut away = session.away();
    fake.lock().is_shut = true;
    fake.order(Order::Abort);
    let told = soon(away.wait_for(|away| away.since.is_some() && !away.why.is_empty())).await;
    drop(told.unwrap());
    session
        .write(Bytes::from_static(b"typed in the gap"))
        .await
        .unwrap();
    fake.lock().is_shut = false;
    drop(
        soon(away.wait_for(|away| away.since.is_none()))
            .await
            .unwrap(),
    );
    assert_eq!(read(&mut session, 16).await, b"typed in the gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_aws_does_not_resume_is_over_with_that_reason() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    fake.lock().is_over = true;
    fake.order(Order::Abort);
    match soon(session.next_event()).await {
        Some(Event::Ended(end)) => assert_eq!(end.why, Some(SsmError::Over)),
        other => panic!("{other:?}"),
    }
    assert!(soon(session.next_event()).await.is_none());
    assert!(session.write(Bytes::from_static(b"x")).await.is_err());
    soon(session.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_services_reason_is_the_persons() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    fake.order(Order::Close(
        "----------ERROR-------\nno such user".to_owned(),
    ));
    match soon(session.next_event()).await {
        Some(Event::Ended(end)) => assert_eq!(
            end.why.unwrap().to_string(),
            format!(
                "the session on {NODE} failed: the session ended: \
                 ----------ERROR-------\nno such user"
            )
        ),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_end_in_between_are_renewed_and_nobody_is_asked() {
    let fake = FakeSsm::configured(
        Plays::Echo,
        "role_arn = arn:aws:iam::111122223333:role/operator\nsource_profile = alice\n",
    )
    .await;
    let mut session = soon(Session::start(&fake.ssm(), start(document::SHELL)))
        .await
        .unwrap();
    read(&mut session, 2).await;
    let first = fake.lock().calls.last().unwrap().1.clone();
    fake.lock().expired.push(first.clone());
    fake.order(Order::Shut);
    // With another role session: the first attempt may be with the one that ended.
    let is_resumed = |(call, key): &(String, String)| call == "ResumeSession" && *key != first;
    soon(async {
        while !fake.lock().calls.last().is_some_and(is_resumed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    session.write(Bytes::from_static(b"on")).await.unwrap();
    assert_eq!(read(&mut session, 2).await, b"on");
    soon(session.end()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_tls_is_refused() {
    let tls = Arc::clone(FakeSsm::start(Plays::Echo).await.ssm().tls());
    let opened =
        super::socket::Socket::open("ws://127.0.0.1:1/v1", &tls, &Proxies::default()).await;
    assert_eq!(
        opened.err().unwrap().to_string(),
        "the session's stream at `127.0.0.1` could not be opened: only wss is encrypted, and this \
         is not"
    );
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_preferences_gets_awss_own_shell() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    fake.refuse("StartSession", "InvalidDocument", "no such document");
    let refused = soon(Session::start(&ssm, start(document::SHELL))).await;
    assert!(refused.is_err());
    assert_eq!(fake.count("StartSession"), 2, "the second without a name");
    let refused = soon(Session::start(&ssm, start(document::NON_INTERACTIVE))).await;
    assert!(refused.is_err());
    assert_eq!(fake.count("StartSession"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_aws_refuses_is_told_with_the_next_step() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let ssm = fake.ssm();
    let mut told = Vec::new();
    let refusals = [
        ("TargetNotConnected", format!("{NODE} is not connected.")),
        (
            "AccessDeniedException",
            format!(
                "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: \
                 ssm:StartSession on resource: arn:aws:ec2:eu-west-1:111122223333:instance/{NODE} \
                 because no identity-based policy allows the ssm:StartSession action"
            ),
        ),
        (
            "AccessDeniedException",
            "User: arn:aws:iam::111122223333:user/alice is not authorized to perform: \
             ssm:StartSession with an explicit deny in an identity-based policy"
                .to_owned(),
        ),
        (
            "InvalidDocument",
            "Document with name AWS-StartNonInteractiveCommand does not exist.".to_owned(),
        ),
        (
            "ServiceQuotaExceededException",
            "Active session limit exceeded".to_owned(),
        ),
        ("ThrottlingException", "Rate exceeded".to_owned()),
    ];
    for (code, message) in refusals {
        fake.refuse("StartSession", code, &message);
        let error = soon(Session::start(&ssm, start(document::NON_INTERACTIVE)))
            .await
            .err()
            .unwrap();
        told.push(sentence(error));
    }
    fake.lock().refusals.clear();
    let key = fake.lock().calls.last().unwrap().1.clone();
    fake.lock().expired.push(key);
    let error = soon(Session::start(&ssm, start(document::SHELL)))
        .await
        .err()
        .unwrap();
    told.push(sentence(error));
    insta::assert_snapshot!(told.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_certificate_nobody_vouches_for_is_refused_with_the_next_step() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let url = fake.lock().url.clone();
    let mut roots = rustls::RootCertStore::empty();
    let other = Authority::new();
    roots
        .add(CertificateDer::from_pem_slice(other.pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let stranger = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (stranger, direct) = (Arc::new(stranger), Proxies::default());
    let refused = soon(super::socket::Socket::open(&url, &stranger, &direct)).await;
    let refused = refused.err().unwrap();
    insta::assert_snapshot!(sentence(refused), @r"
    the session's stream at `127.0.0.1` could not be opened: invalid peer certificate: BadSignature [unreachable, exit 3]
    hint: set `ca_bundle` in the profile or AWS_CA_BUNDLE if this endpoint has a CA of its own
    ");
}

#[tokio::test]
async fn nothing_that_prints_shows_the_proxys_password() {
    let fake = FakeSsm::start(Plays::Echo).await;
    let mut context = fake.world.context.clone();
    let proxy = "http://me:canary-password@127.0.0.1:1";
    context.environment = context.environment.with("HTTPS_PROXY", proxy);
    let ssm = Ssm::of(&context).unwrap();
    let refused = soon(Session::start(&ssm, start(document::SHELL))).await;
    let refused = refused.err().unwrap();
    let printed = format!("{ssm:?} {context:?} {refused:?}");
    assert!(!printed.contains("canary-password"), "{printed}");
    let told = sentence(refused);
    let parts = [
        "cannot be reached: through the proxy `127.0.0.1:1`: ",
        "exit 3]\nhint: check HTTPS_PROXY",
    ];
    assert!(parts.iter().all(|part| told.contains(part)), "{told}");
}
