//! What looks into streams as they pass: the cut of a stream must not change what it finds.

use bytes::BytesMut;

use crate::pieces;

/// The client's reader of exit statuses.
#[path = "../../../client/src/ssm"]
mod ssm {
    pub(super) mod exit_status;

    pub(super) mod error {
        #[derive(Debug)]
        pub(in crate::streams) enum SsmError {
            NoRandomness,
        }
    }
}

/// The client's escapes.
#[path = "../../../client/src/ssh"]
mod ssh {
    #[expect(dead_code, reason = "the client prints the help")]
    pub(super) mod escape;
}

/// The agent's look for SSH in tunnels.
#[path = "../../../agent/src/pipe"]
mod pipe {
    mod scan;

    pub(super) fn finds_ssh(input: &[u8], step: usize) -> bool {
        let mut scan = scan::SshScan::default();
        input.chunks(step).any(|chunk| scan.finds(chunk))
    }
}

/// The client's SOCKS proxy.
#[path = "../../../client/src/ssh/forward"]
mod forward {
    #[expect(dead_code, reason = "nobody is answered here")]
    mod socks;

    mod spec {
        pub(super) struct Destination {
            pub(super) host: String,
            pub(super) port: u16,
        }
    }

    pub(super) async fn asks(input: &[u8]) -> Option<(String, u16)> {
        let mut stream = tokio::io::join(input, tokio::io::sink());
        let asked = socks::request(&mut stream).await.ok()?;
        Some((asked.host, asked.port))
    }
}

/// All of them.
pub(crate) fn streams(input: &[u8]) {
    let Some((step, input)) = input.split_first() else {
        return;
    };
    let step = usize::from(*step).max(1);
    let whole = input.len().max(1);
    assert_eq!(pipe::finds_ssh(input, whole), pipe::finds_ssh(input, step));
    assert_eq!(typed(input, whole), typed(input, step));
    exit_status(input, step);
    socks(input);
}

/// What is sent of typed bytes, and whether they end the session.
fn typed(input: &[u8], step: usize) -> (BytesMut, bool) {
    let (mut escapes, mut out) = (ssh::escape::Escapes::default(), BytesMut::new());
    let ends = input
        .chunks(step)
        .any(|typed| escapes.feed(typed, &mut out) == Some(ssh::escape::Command::Disconnect));
    (out, ends)
}

/// A command's output, with lines of ours wherever a piece begins with 0xff.
fn exit_status(input: &[u8], step: usize) {
    let Ok((asked, mut watch)) = ssm::exit_status::asked("true", Some((80, 24))) else {
        panic!("there is randomness");
    };
    let number = asked
        .rsplit(' ')
        .nth(1)
        .expect("the number stands before the status");
    let (mut said, mut wanted, mut last) = (Vec::new(), Vec::new(), None);
    for piece in pieces(input) {
        match piece.split_first() {
            Some((0xff, rest)) => {
                let status = rest.first().copied().unwrap_or_default();
                said.extend_from_slice(format!("\x1e{number} {status}\x1e").as_bytes());
                last = Some(status);
            }
            _ => {
                said.extend_from_slice(piece);
                wanted.extend_from_slice(piece);
            }
        }
    }
    let mut out = BytesMut::new();
    for chunk in said.chunks(step) {
        watch.feed(chunk, &mut out);
    }
    let (held, status) = watch.finish();
    out.extend_from_slice(&held);
    assert!(out == wanted, "the command's own output changed");
    assert_eq!(status, last);
}

/// A request of a program on this computer.
fn socks(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let asked = runtime.expect("a runtime").block_on(forward::asks(input));
    if let Some((host, port)) = asked {
        assert!(port != 0 && !host.is_empty() && host.len() < 256);
    }
}
