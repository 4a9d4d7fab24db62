//! Port sessions: multiplexed, basic, to remote hosts, and raw.

use lab::account::HOSTS;
use lab::stack::{RDP_PORT, SSH_PORT};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::peer::{Peer, Talk, echoes};
use crate::harness::{PATIENCE, eventually, noise};

/// Ctrl-C, for the plugin below the `aws` command.
fn interrupt(talk: &Talk) {
    let own = talk.child.id().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    let plugin = children.split_whitespace().next().unwrap();
    let plugin = Pid::from_raw(plugin.parse().unwrap()).unwrap();
    kill_process(plugin, Signal::INT).unwrap();
}

#[tokio::test]
async fn many_connections_share_a_forward_and_arrive_whole() {
    let peer = Peer::start().await;
    let (talk, local) = peer.forward(peer.echo().await).await;
    // Lengths at which frames and messages end together, and the byte that the plugin changes.
    let mut exact = noise(1017);
    exact[1016] = b'\n';
    tokio::join!(
        echoes(local, b"\n"),
        echoes(local, &exact),
        echoes(local, noise(1016)),
        echoes(local, noise(200_000)),
        echoes(local, noise(200_001).split_off(1)),
    );
    interrupt(&talk);
    talk.end().await.status(0);
    // The flag ended it, not a call.
    eventually("the end of the session", async || {
        peer.lab.aws.sessions().is_empty().then_some(())
    })
    .await;
    assert!(peer.lab.aws.events_of("TerminateSession").is_empty());
    peer.assert_no_complaints();
}

#[tokio::test]
async fn a_destination_that_refuses_is_told_and_others_go_on() {
    let peer = Peer::start().await;
    let gone = TcpListener::bind((peer.lab.network.app(), 0))
        .await
        .unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let (mut talk, local) = peer.forward(port).await;
    let mut refused = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    talk.expect("Connection to destination port failed").await;
    let mut end = Vec::new();
    let read = tokio::time::timeout(PATIENCE, refused.read_to_end(&mut end)).await;
    assert_eq!(read.expect("in time").unwrap_or(0), 0);
    let listener = TcpListener::bind((peer.lab.network.app(), port))
        .await
        .unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
    let accepted = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (mut server, from) = accepted.expect("in time").unwrap();
    assert_eq!(from.ip(), peer.lab.network.app());
    client.write_all(b"now").await.unwrap();
    let mut got = [0; 3];
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"now");
}

#[tokio::test]
async fn remote_hosts_are_reached_from_the_instance_and_metadata_never() {
    let peer = Peer::start().await;
    let document = Some("AWS-StartPortForwardingSessionToRemoteHost");
    let to = |host: &str, port: u16| json!({"host": [host], "portNumber": [port.to_string()]});
    let address = peer.lab.network.win();
    // Not from here: it is private.
    let mut direct = TcpStream::connect((address, RDP_PORT)).await.unwrap();
    let mut end = [0];
    assert!(direct.read(&mut end).await.is_err(), "win-1 is not private");
    for host in ["win-1", &address.to_string()] {
        let mut talk = peer.talk(&mut peer.session("app-1", document, &to(host, RDP_PORT)));
        let local = talk.local_port().await;
        let mut rdp = TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        // An X.224 connection request, as RDP clients begin.
        let request =
            b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00";
        rdp.write_all(request).await.unwrap();
        let mut answer = [0; 4];
        let read = tokio::time::timeout(PATIENCE, rdp.read_exact(&mut answer)).await;
        read.expect("in time").unwrap();
        assert_eq!(answer[..2], [3, 0]);
        interrupt(&talk);
        talk.end().await.status(0);
    }
    for (host, why) in [
        (
            "169.254.169.254",
            "Forwarding to IP address 169.254.169.254 is forbidden.",
        ),
        ("fd00:ec2::254", "is forbidden."),
        ("no-such-host", "no such host"),
    ] {
        let talk = peer.talk(&mut peer.session("app-1", document, &to(host, 80)));
        let told = talk.end().await.status(0);
        assert!(told.out().contains(why), "{host}: {}", told.out());
    }
    peer.assert_no_complaints();
}

#[tokio::test]
async fn old_ssm_agents_forward_one_connection_at_a_time() {
    let peer = Peer::start().await;
    peer.lab
        .aws
        .change_knobs(|knobs| knobs.agent_version = "3.0.100.0".to_owned());
    let (talk, local) = peer.forward(peer.echo().await).await;
    echoes(local, noise(50_000)).await;
    echoes(local, b"second").await;
    interrupt(&talk);
    talk.end().await.status(0);
    peer.assert_no_complaints();
}

#[tokio::test]
async fn a_raw_stream_carries_ssh_and_ends_with_the_server() {
    let peer = Peer::start().await;
    let document = Some("AWS-StartSSHSession");
    let parameters = json!({"portNumber": [SSH_PORT.to_string()]});
    let mut talk = peer.talk(&mut peer.session("web-1", document, &parameters));
    // Before the first byte of ours.
    talk.expect("SSH-2.0-OpenSSH").await;
    talk.send(b"not ssh at all\r\n").await;
    // sshd hangs up, so the session ends.
    let told = talk.end().await.status(0);
    assert!(told.out().contains("Exiting session"), "{}", told.out());
    let closed = json!({"portNumber": ["9"]});
    let talk = peer.talk(&mut peer.session("app-1", document, &closed));
    let told = talk.end().await.status(0);
    assert!(
        told.out().contains("Unable to connect to specified port"),
        "{}",
        told.out()
    );
    peer.assert_no_complaints();
}

#[tokio::test]
async fn bob_reaches_staging_alone_and_nobody_without_mfa() {
    let peer = Peer::start().await;
    let mut bob = peer.session("app-1", None, &json!({}));
    bob.envs(peer.login("bob").await);
    let mut talk = peer.talk(&mut bob);
    talk.expect("# ").await;
    talk.send(b"exit\n").await;
    talk.end().await.status(0);
    let db = HOSTS.iter().find(|host| host.name == "db-1").unwrap().id;
    for (user, mfa, target, code) in [
        ("bob", true, db, "AccessDeniedException"),
        ("alice", true, db, "TargetNotConnected"),
        ("alice", false, HOSTS[1].id, "AccessDeniedException"),
        ("carol", true, HOSTS[1].id, "AccessDeniedException"),
    ] {
        let mut command = peer.aws(&["ssm", "start-session", "--target", target]);
        match (user, mfa) {
            ("alice", true) => {}
            (user, true) => {
                command.envs(peer.login(user).await);
            }
            (user, false) => {
                for name in [
                    "AWS_ACCESS_KEY_ID",
                    "AWS_SECRET_ACCESS_KEY",
                    "AWS_SESSION_TOKEN",
                ] {
                    command.env_remove(name);
                }
                command.env("AWS_PROFILE", user);
            }
        }
        let told = crate::harness::run(&mut command, b"").await;
        assert_ne!(told.status, Some(0), "{user} {target}");
        told.says(&[code]);
    }
}
