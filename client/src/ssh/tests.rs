//! The SSH client against an agent in this process.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::gateway::message::{CloseReason, Denied, DenyCode, OpenKind};
use postern_proto::names::SessionId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;

use super::SshError;
use super::forward::Forwards;
use super::forward::spec::{Dynamic, Local, Remote};
use super::link::Link;
use super::shell::{Control, Job, Status, Streams, TerminalRequest, run};
use super::terminal::Size;
use crate::error::Error as UserError;
use crate::gateway::{Gateway, Request};
use crate::output::Printer;
use crate::testing::{FakeAgent, Script};

fn request() -> Request {
    Request {
        target: "web-1".parse().unwrap(),
        kind: OpenKind::Ssh {
            user: "ec2-user".parse().unwrap(),
        },
        once: true,
    }
}

fn job(command: &str) -> Job {
    Job {
        command: Some(command.to_owned()),
        ..Job::default()
    }
}

/// Everything that a job printed, and how it ended.
#[derive(Debug)]
struct Ran {
    output: Vec<u8>,
    error: String,
    status: Result<Status, SshError>,
}

struct Ends {
    input: DuplexStream,
    output: DuplexStream,
    error: DuplexStream,
    control: mpsc::Sender<Control>,
}

fn streams(
    typed: bool,
) -> (
    Streams<'static, DuplexStream, DuplexStream, DuplexStream>,
    mpsc::Receiver<Control>,
    Ends,
) {
    let (input, far_input) = duplex(1 << 20);
    let (output, far_output) = duplex(1 << 20);
    let (error, far_error) = duplex(1 << 20);
    let (orders, control) = mpsc::channel(16);
    let ends = Ends {
        input,
        output,
        error,
        control: orders,
    };
    (
        Streams {
            input: far_input,
            output: far_output,
            error: far_error,
            typed,
            raw: None,
        },
        control,
        ends,
    )
}

async fn run_job(link: &mut Link, job: Job, input: &[u8]) -> Ran {
    let (streams, control, ends) = streams(false);
    let Ends {
        input: mut typed,
        mut output,
        mut error,
        control: _orders,
    } = ends;
    let feed = async {
        typed.write_all(input).await.unwrap();
        typed.shutdown().await.unwrap();
        typed
    };
    let (mut out, mut err) = (Vec::new(), String::new());
    let collect = async {
        tokio::try_join!(output.read_to_end(&mut out), error.read_to_string(&mut err)).unwrap();
    };
    let (status, _typed, ()) = tokio::join!(run(link, job, streams, control, None), feed, collect);
    Ran {
        output: out,
        error: err,
        status,
    }
}

async fn ran(agent: &FakeAgent, job: Job, input: &[u8]) -> Ran {
    let gateway = agent.gateway().await;
    let mut link = Link::open(&gateway, &request(), None).await.unwrap();
    let ran = within(run_job(&mut link, job, input)).await;
    if ran.status.is_ok() {
        within(link.close()).await.unwrap();
    }
    ran
}

async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("it hangs")
}

#[tokio::test]
async fn the_exit_status_is_the_commands() {
    let agent = FakeAgent::start().await;
    let ran = ran(&agent, job("status 7"), b"").await;
    assert_eq!(ran.status.unwrap(), Status::Exited(7));
    // The agent takes it when it takes it.
    within(async {
        while agent.state.lock().unwrap().closes.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(agent.state.lock().unwrap().opens[0].known_size, None);
}

#[tokio::test]
async fn a_killed_command_counts_128_and_its_signal() {
    let status = ran(&FakeAgent::start().await, job("signal TERM"), b"")
        .await
        .status
        .unwrap();
    assert_eq!(status.code(), 143);
}

#[tokio::test]
async fn standard_error_stays_apart() {
    let ran = ran(&FakeAgent::start().await, job("both"), b"").await;
    assert_eq!(
        (ran.output.as_slice(), ran.error.as_str()),
        (b"out\n".as_slice(), "err\n")
    );
}

#[tokio::test]
async fn an_end_of_the_input_does_not_end_the_output() {
    let ran = ran(&FakeAgent::start().await, job("cat"), b"all\0of\xffit").await;
    assert_eq!(ran.output, b"all\0of\xffit");
    assert_eq!(ran.status.unwrap(), Status::Exited(0));
}

#[tokio::test]
async fn variables_terminal_and_size_are_there_from_the_first_byte() {
    let wanted = Job {
        terminal: Some(TerminalRequest {
            kind: "xterm-256color".to_owned(),
            size: Size {
                columns: 132,
                rows: 43,
                width: 0,
                height: 0,
            },
            modes: vec![(russh::Pty::ECHO, 1)],
        }),
        environment: vec![("LANG".to_owned(), "C.UTF-8".to_owned())],
        ..job("told")
    };
    let ran = ran(&FakeAgent::start().await, wanted, b"").await;
    assert_eq!(
        String::from_utf8(ran.output).unwrap(),
        r#"["LANG=C.UTF-8"] Some(("xterm-256color", 132, 43, 1)) agent=false"#
    );
}

#[tokio::test]
async fn new_sizes_and_signals_reach_the_command() {
    let agent = FakeAgent::start().await;
    let gateway = agent.gateway().await;
    let mut link = Link::open(&gateway, &request(), None).await.unwrap();
    let (streams, control, mut ends) = streams(false);
    let talk = async {
        let mut seen = vec![0; 6];
        ends.output.read_exact(&mut seen).await.unwrap();
        ends.control
            .send(Control::Resize(Size {
                columns: 10,
                rows: 5,
                width: 0,
                height: 0,
            }))
            .await
            .unwrap();
        let mut size = vec![0; 8];
        ends.output.read_exact(&mut size).await.unwrap();
        ends.control.send(Control::Signal("INT")).await.unwrap();
        let mut rest = String::new();
        ends.output.read_to_string(&mut rest).await.unwrap();
        (String::from_utf8(size).unwrap(), rest)
    };
    let (status, (size, signal)) =
        within(async { tokio::join!(run(&mut link, job("wait"), streams, control, None), talk) })
            .await;
    assert_eq!((size.as_str(), signal.as_str()), ("(10, 5)\n", "INT\n"));
    assert_eq!(status.unwrap(), Status::Exited(3));
}

#[tokio::test]
async fn a_tilde_and_a_dot_end_a_typed_session() {
    let agent = FakeAgent::start().await;
    let gateway = agent.gateway().await;
    let mut link = Link::open(&gateway, &request(), None).await.unwrap();
    let (streams, control, mut ends) = streams(true);
    ends.input.write_all(b"ls\r~.").await.unwrap();
    let status = within(run(&mut link, Job::default(), streams, control, None))
        .await
        .unwrap();
    assert_eq!(status, Status::Left);
    within(link.close()).await.unwrap();
}

#[tokio::test]
async fn a_refused_command_is_an_error_and_a_refused_terminal_a_warning() {
    let agent = FakeAgent::start().await;
    let refused = ran(&agent, job("refuse"), b"").await;
    assert!(
        matches!(refused.status, Err(SshError::Refused { .. })),
        "{refused:?}"
    );
    let terminal = TerminalRequest {
        kind: "refused".to_owned(),
        size: Size::default(),
        modes: vec![],
    };
    let warned = ran(
        &agent,
        Job {
            terminal: Some(terminal),
            ..job("status 0")
        },
        b"",
    )
    .await;
    assert_eq!(warned.status.unwrap(), Status::Exited(0));
    assert!(
        warned
            .error
            .starts_with("warning: the target gives no terminal"),
        "{}",
        warned.error
    );
}

#[tokio::test]
async fn a_lost_network_is_no_end_of_file() {
    let agent = FakeAgent::start().await.script([Script::Cut(100_000)]);
    let gateway = agent.gateway().await;
    let mut link = Link::open(&gateway, &request(), None).await.unwrap();
    let ran = within(run_job(&mut link, job("bulk 10000000"), b"")).await;
    let Err(error @ SshError::Protocol(_)) = ran.status else {
        panic!("{:?}", ran.status)
    };
    let error = UserError::from(link.why(error).await);
    assert_eq!(error.kind, crate::error::Kind::Unreachable);
    assert!(
        error.message.starts_with("the network connection was lost"),
        "{error}"
    );
}

#[tokio::test]
async fn an_end_for_the_agents_reasons_names_them() {
    let agent = FakeAgent::start()
        .await
        .script([Script::End(CloseReason::Policy, 100_000)]);
    let gateway = agent.gateway().await;
    let mut link = Link::open(&gateway, &request(), None).await.unwrap();
    let ran = within(run_job(&mut link, job("bulk 10000000"), b"")).await;
    let error = link.why(ran.status.unwrap_err()).await;
    assert_eq!(
        error.to_string(),
        "the session was ended: policy no longer allows it"
    );
}

fn denied(code: DenyCode, open_hash: Option<&str>) -> Denied {
    Denied {
        code,
        message: "alice may not connect to web-1 as ec2-user".to_owned(),
        hint: None,
        session: Some(SessionId::from_parts(5, 5)),
        open_hash: open_hash.map(str::to_owned),
        candidates: vec![],
    }
}

async fn refusal(agent: &FakeAgent) -> UserError {
    let gateway: Arc<Gateway> = agent.gateway().await;
    match within(Link::open(&gateway, &request(), None)).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.into(),
    }
}

#[tokio::test]
async fn a_denial_is_told_with_its_session() {
    let agent = FakeAgent::start()
        .await
        .script([Script::Deny(denied(DenyCode::Policy, None))]);
    let error = refusal(&agent).await;
    insta::assert_snapshot!(error, @"alice may not connect to web-1 as ec2-user (session 00000000050000000000000005)");
    assert_eq!(error.kind, crate::error::Kind::Denied);
}

#[tokio::test]
async fn a_fresh_code_is_given_once_for_this_very_request() {
    let wanted = Script::Deny(denied(DenyCode::StepUp, Some("right")));
    let agent = FakeAgent::start().await.script([wanted.clone()]);
    assert_eq!(
        ran(&agent, job("status 0"), b"").await.status.unwrap(),
        Status::Exited(0)
    );
    {
        let state = agent.state.lock().unwrap();
        assert_eq!(state.step_ups.len(), 1);
        assert_eq!(state.opens[1].approved, Some(SessionId::from_parts(5, 5)));
    }
    // A second demand for the same request is final.
    agent
        .state
        .lock()
        .unwrap()
        .script
        .extend([wanted.clone(), wanted]);
    assert_eq!(refusal(&agent).await.kind, crate::error::Kind::Denied);
    assert_eq!(agent.state.lock().unwrap().step_ups.len(), 2);
}

#[tokio::test]
async fn no_code_is_given_for_a_request_that_was_not_made() {
    let agent = FakeAgent::start()
        .await
        .script([Script::Deny(denied(DenyCode::StepUp, Some("00")))]);
    let error = refusal(&agent).await;
    insta::assert_snapshot!(error, @"agent `bastion-1` answered another question than was asked: it wants a fresh code for another request");
    assert!(agent.state.lock().unwrap().step_ups.is_empty());
}

#[tokio::test]
async fn a_refused_certificate_is_renewed_once() {
    let refused = Script::Deny(denied(DenyCode::Certificate, None));
    let agent = FakeAgent::start().await.script([refused.clone()]);
    assert_eq!(
        ran(&agent, job("status 0"), b"").await.status.unwrap(),
        Status::Exited(0)
    );
    assert_eq!(agent.state.lock().unwrap().certificates, 2);
    agent
        .state
        .lock()
        .unwrap()
        .script
        .extend([refused.clone(), refused]);
    let error = refusal(&agent).await;
    assert_eq!(error.hint.as_deref(), Some("postern login"));
}

#[tokio::test]
async fn a_log_that_was_rewritten_is_refused_in_the_next_session() {
    let agent = FakeAgent::start().await;
    ran(&agent, job("status 0"), b"").await.status.unwrap();
    agent
        .state
        .lock()
        .unwrap()
        .script
        .push_back(Script::Rewrite);
    let error = refusal(&agent).await;
    assert_eq!(
        agent.state.lock().unwrap().opens[1].known_size,
        Some(2),
        "grant and close were kept"
    );
    insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint.as_deref().unwrap()), @r"
        agent `bastion-1` is not to be trusted: the agent's log was rewritten: its first 2 entries are not what they were
        hint: do not use this agent; tell your auditors, and keep the client's state folder as evidence
        ");
}

#[tokio::test]
async fn the_local_ssh_agent_is_lent_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut hello = [0; 11];
        socket.read_exact(&mut hello).await.unwrap();
        socket.write_all(b"right").await.unwrap();
        hello
    };
    let fake = FakeAgent::start().await;
    let lent = Job {
        lend_agent: Some(path.clone()),
        ..job("ask-agent")
    };
    let (ran, hello) = within(async { tokio::join!(ran(&fake, lent, b""), serve) }).await;
    assert_eq!(
        (&hello, ran.output.as_slice()),
        (b"hello agent", b"right".as_slice())
    );
}

async fn forwarding(
    agent: &FakeAgent,
    forwards: Forwards,
) -> (Arc<Gateway>, Link, super::forward::Running) {
    let gateway = agent.gateway().await;
    let link = Link::open(&gateway, &request(), None).await.unwrap();
    let request = request();
    let open = Link::open(&gateway, &request, link.membership());
    let running = forwards.start(open, Printer::plain_json()).await.unwrap();
    (gateway, link, running)
}

async fn echo() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

async fn free_port() -> u16 {
    echo().await.local_addr().unwrap().port()
}

#[tokio::test]
async fn a_local_forward_reaches_what_the_target_reaches_on_a_pipe_of_its_own() {
    let target = echo().await;
    let to = target.local_addr().unwrap().port();
    let port = free_port().await;
    let agent = FakeAgent::start().await;
    let local = vec![Local::parse(&format!("{port}:db.internal:{to}")).unwrap()];
    let (_gateway, mut link, _running) = forwarding(
        &agent,
        Forwards {
            local,
            ..Forwards::default()
        },
    )
    .await;
    let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    near.write_all(b"ping").await.unwrap();
    near.shutdown().await.unwrap();
    let mut got = String::new();
    within(far.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "ping");
    // A connection that nobody reads from does not stop the shell.
    let stalled = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut flood, _) = target.accept().await.unwrap();
    let flooding = tokio::spawn(async move { flood.write_all(&vec![0; 100 << 20]).await });
    let ran = within(run_job(&mut link, job("both"), b"")).await;
    assert_eq!(ran.output, b"out\n");
    flooding.abort();
    drop(stalled);
    let state = agent.state.lock().unwrap();
    assert!(state.opens[0].join.is_none() && state.opens[1].join.is_some());
}

#[tokio::test]
async fn a_socks_forward_connects_by_name() {
    let target = echo().await;
    let to = target.local_addr().unwrap().port();
    let port = free_port().await;
    let agent = FakeAgent::start().await;
    let dynamic = vec![Dynamic::parse(&port.to_string()).unwrap()];
    let (_gateway, _link, _running) = forwarding(
        &agent,
        Forwards {
            dynamic,
            ..Forwards::default()
        },
    )
    .await;
    let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    near.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    near.read_exact(&mut method).await.unwrap();
    let mut connect = vec![5, 1, 0, 3, 11];
    connect.extend_from_slice(b"db.internal");
    connect.extend_from_slice(&to.to_be_bytes());
    near.write_all(&connect).await.unwrap();
    let mut reply = [0; 10];
    within(near.read_exact(&mut reply)).await.unwrap();
    assert_eq!((method, reply[1]), ([5, 0], 0));
    let (mut far, _) = target.accept().await.unwrap();
    far.write_all(b"pong").await.unwrap();
    let mut got = [0; 4];
    within(near.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"pong");
}

#[tokio::test]
async fn a_listener_that_the_target_refuses_is_an_error() {
    let agent = FakeAgent::start().await;
    let gateway = agent.gateway().await;
    let link = Link::open(&gateway, &request(), None).await.unwrap();
    let remote = vec![Remote::parse("1:localhost:2").unwrap()];
    let forwards = Forwards {
        remote,
        ..Forwards::default()
    };
    let request = request();
    let open = Link::open(&gateway, &request, link.membership());
    let started = forwards.start(open, Printer::plain_json()).await;
    let Err(error) = started else {
        panic!("it listens")
    };
    insta::assert_snapshot!(error, @"a listener on the target at port 1 was refused: not allowed, or the port is taken");
}
