//! `postern proxy USER@TARGET [PORT]`: carries stock `ssh` over stdin and stdout.

mod ssm;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postern_proto::gateway::EARLY_DATA;
use postern_proto::gateway::message::{CloseReason, OpenKind};
use postern_proto::names::{LoginUser, TargetName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ProxyArgs;
use crate::context::Context;
use crate::error::Error;
use crate::gateway::{Gateway, Opened, Request};
use crate::output::Printer;
use crate::pipe::{self, Early};
use crate::route::{self, Way};
use crate::stdio;

/// What names for stock clients end in.
pub(super) const SUFFIX: &str = ".postern";
/// What `ssh` asks for when nobody told it a port.
const DEFAULT_PORT: u16 = 22;
/// For what the local `ssh` says first. It speaks as soon as it runs.
const IDENTIFICATION: Duration = Duration::from_secs(1);

/// For what the local side said before it killed us.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Relays until the session ends.
pub async fn run(context: &Context, args: ProxyArgs) -> Result<ExitCode, Error> {
    let (user, target) = destination(context, &args)?;
    if std::io::stdin().is_terminal() {
        return Err(Error::usage("`proxy` carries the SSH protocol, which no person types")
            .hint("postern ssh-config >> ~/.ssh/config, then ssh TARGET.postern; or `postern connect`"));
    }
    let stdio = stdio::outlets()
        .map_err(|error| Error::failed(format!("the standard output failed: {error}")))?;
    let mut local = tokio::io::join(tokio::io::stdin(), stdio.output);
    let early = first_words(&mut local).await?;
    let way = route::open(context, args.via, &target, async |gateway| {
        let request = Request {
            target: target.clone(),
            kind: OpenKind::Ssh { user },
            once: false,
        };
        let opened = gateway.open(&request, &mut Early::said(&early)).await?;
        Ok((Arc::clone(gateway), opened))
    });
    let carried = match way.await? {
        Way::Bastion((gateway, opened)) => {
            carry(context.printer, &gateway, opened, args.port, local).await
        }
        Way::Ssm(ssm, node) => {
            // Who logs in there is between `ssh` and the target.
            let port = args.port.unwrap_or(DEFAULT_PORT);
            let carried = ssm::carry(context, &ssm, &node, port, early, local).await;
            // Whatever happened: what was started at AWS is ended there.
            ssm.settle().await;
            carried
        }
    };
    stdio.rest.settle().await;
    carried?;
    Ok(ExitCode::SUCCESS)
}

fn destination(context: &Context, args: &ProxyArgs) -> Result<(LoginUser, TargetName), Error> {
    let usage = |error: postern_proto::names::NameError| Error::usage(error.to_string());
    let stripped = args
        .destination
        .strip_suffix(SUFFIX)
        .unwrap_or(&args.destination);
    let target: TargetName = stripped.parse().map_err(usage)?;
    let target = context.aliased(&target)?;
    super::connect::destination(context, None, &target)
}

/// Checks the port and relays.
async fn carry(
    printer: Printer,
    gateway: &Gateway,
    opened: Opened,
    port: Option<u16>,
    mut local: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), Error> {
    let Opened {
        granted,
        mut wire,
        seen,
    } = opened;
    super::connect::describe(printer, &granted);
    if let Err(error) = check_port(port, &granted.target.address) {
        wire.farewell(CloseReason::Client).await;
        return Err(error);
    }
    let relayed = {
        let mut relaying = std::pin::pin!(pipe::relay(&mut wire, &mut local));
        tokio::select! {
            relayed = &mut relaying => Some(relayed),
            // `ssh` kills its ProxyCommand when it is done: its last words are still passed on.
            () = killed() => tokio::time::timeout(LAST_WORDS, relaying).await.ok(),
            () = pipe::outage::tell(gateway.away(), printer) => None,
        }
    };
    let Some(outcome) = relayed.transpose()? else {
        wire.farewell(CloseReason::Client).await;
        return Ok(());
    };
    wire.farewell(CloseReason::Done).await;
    gateway.check_close(&outcome.close, &seen)?;
    match pipe::ending(&outcome.close) {
        None => Ok(()),
        Some(reason) => Err(Error::denied(format!("the session was ended: {reason}"))
            .hint("`postern why TARGET` shows what policy says now")),
    }
}

/// Waits for a signal that is to end us.
pub(super) async fn killed() {
    let kinds = [
        SignalKind::hangup(),
        SignalKind::terminate(),
        SignalKind::interrupt(),
    ];
    let Ok(mut signals) = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() else {
        // They end us as they always do.
        return std::future::pending().await;
    };
    let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(any).await;
}

/// The inventory decides about the port: another one than `ssh` thinks of is a mistake.
fn check_port(port: Option<u16>, address: &str) -> Result<(), Error> {
    let Some(port) = port.filter(|port| *port != DEFAULT_PORT) else {
        return Ok(());
    };
    if address
        .rsplit_once(':')
        .and_then(|(_, real)| real.parse().ok())
        == Some(port)
    {
        return Ok(());
    }
    Err(Error::usage(format!(
        "SSH of this target is at {address}, not at port {port}"
    ))
    .hint("leave the port away; for other ports there is `postern forward`"))
}

async fn first_words(local: &mut (impl AsyncRead + Unpin)) -> Result<Bytes, Error> {
    let mut early = BytesMut::with_capacity(EARLY_DATA);
    match tokio::time::timeout(IDENTIFICATION, local.read_buf(&mut early)).await {
        Ok(Ok(0)) => Err(Error::usage(
            "nothing is to be carried: the standard input is at its end",
        )
        .hint("`proxy` is for the ProxyCommand of ssh; see `postern ssh-config`")),
        Ok(Ok(_)) => Ok(early.freeze()),
        Ok(Err(error)) => Err(Error::failed(format!("the standard input failed: {error}"))),
        // A program that waits to be spoken to.
        Err(_) => Ok(Bytes::new()),
    }
}

#[cfg(test)]
mod tests {
    use russh::client;
    use russh::keys::PublicKeyOrCertificate;
    use tokio::io::duplex;

    use super::*;
    use crate::testing::FakeAgent;

    /// A stock client, which knows nothing of pipes.
    struct Stock;

    impl client::Handler for Stock {
        type Error = russh::Error;

        async fn check_server_key(
            &mut self,
            _: &PublicKeyOrCertificate,
        ) -> Result<bool, russh::Error> {
            Ok(true)
        }
    }

    fn request() -> Request {
        Request {
            target: "web-1".parse().unwrap(),
            kind: OpenKind::Ssh {
                user: "ec2-user".parse().unwrap(),
            },
            once: false,
        }
    }

    #[tokio::test]
    async fn a_stock_client_speaks_through_it() {
        let agent = FakeAgent::start().await;
        let gateway = agent.gateway().await;
        let (near, mut far) = duplex(1 << 20);
        let ssh = async {
            let mut handle = client::connect_stream(Arc::default(), near, Stock)
                .await
                .unwrap();
            assert!(
                handle
                    .authenticate_none("ec2-user")
                    .await
                    .unwrap()
                    .success()
            );
            let mut channel = handle.channel_open_session().await.unwrap();
            channel.exec(true, "status 7").await.unwrap();
            let mut status = None;
            while let Some(message) = channel.wait().await {
                if let russh::ChannelMsg::ExitStatus { exit_status } = message {
                    status = Some(exit_status);
                }
            }
            status
        };
        let request = request();
        let carried = async {
            let early = first_words(&mut far).await?;
            let opened = gateway.open(&request, &mut Early::said(&early)).await?;
            carry(Printer::plain_json(), &gateway, opened, Some(22), far).await
        };
        let (carried, status) = tokio::join!(carried, ssh);
        assert_eq!((carried, status), (Ok(()), Some(7)));
    }

    #[tokio::test]
    async fn another_port_than_the_inventorys_is_a_mistake() {
        assert_eq!(check_port(None, "10.0.0.5:2222"), Ok(()));
        assert_eq!(check_port(Some(22), "10.0.0.5:2222"), Ok(()));
        assert_eq!(check_port(Some(2222), "[fd00::5]:2222"), Ok(()));
        let error = check_port(Some(80), "10.0.0.5:22").unwrap_err();
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint.as_deref().unwrap()), @r"
        SSH of this target is at 10.0.0.5:22, not at port 80
        hint: leave the port away; for other ports there is `postern forward`
        ");
    }
}
