//! The SSH client against an agent in this process.

mod denials;
mod forwards;
mod jobs;

use std::time::Duration;

use postern_proto::gateway::message::OpenKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::SshError;
use super::link::Link;
use super::shell::{Control, Job, Status, Streams, run};
use crate::error::Error as UserError;
use crate::gateway::Request;
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
