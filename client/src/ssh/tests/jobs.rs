//! Shells and commands: streams, terminal, signals, and how they end.

use postern_proto::gateway::message::CloseReason;
use tokio::net::UnixListener;

use super::super::shell::TerminalRequest;
use super::super::terminal::Size;
use super::*;

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
