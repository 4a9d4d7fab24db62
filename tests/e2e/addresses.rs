//! Where the agent never dials, whatever policy says.

use lab::forward::Forward;
use lab::stack::{Lab, Options, RDP_PORT};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::harness::{PATIENCE, events, lab_with, postern};

/// Alice may reach anything behind `web-1`, as far as policy goes.
async fn permissive(agent: Vec<(String, String)>) -> Lab {
    lab_with(Options {
        no_database: true,
        agent,
        policy: Some(
            "@id(\"any-host\")\npermit (principal, action == Action::\"tunnel\", resource)\n\
             when { context has host && context.host != \"\" };\n"
                .to_owned(),
        ),
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn a_host_behind_a_target_is_reached_where_policy_speaks_of_it() {
    let lab = permissive(Vec::new()).await;
    let port = format!("0:{}:{RDP_PORT}", lab.network.win());
    let forward = Forward::start(lab.postern("alice"), "web-1", &port)
        .await
        .unwrap();
    let mut stream = TcpStream::connect(forward.local).await.unwrap();
    let mut first = [0; 1];
    use tokio::io::AsyncWriteExt as _;
    // An X.224 connection request, which RDP answers.
    let hello = [3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0];
    stream.write_all(&hello).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut first));
    read.await.expect("an answer in time").unwrap();
    assert_eq!(first, [3]);
    forward.interrupt().await.unwrap();
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn addresses_that_lead_nowhere_good_are_refused_in_every_form() {
    let lab = permissive(Vec::new()).await;
    let hosts = [
        ("127.0.0.1", "loopback"),
        ("[::1]", "loopback"),
        ("[::ffff:127.0.0.1]", "loopback"),
        ("[64:ff9b::7f00:1]", "loopback"),
        ("169.254.169.254", "metadata"),
        ("[::ffff:169.254.169.254]", "metadata"),
        ("[fd00:ec2::254]", "metadata"),
        ("169.254.7.7", "link-local"),
        ("[fe80::1]", "link-local"),
        ("0.0.0.0", "no host's address"),
        ("224.0.0.1", "multicast"),
        // Names are judged by what they resolve to.
        ("localhost", "loopback"),
    ];
    for (host, rule) in hosts {
        postern(&lab, &["forward", "web-1", &format!("0:{host}:80")])
            .await
            .status(1)
            .says(&["never dials", rule]);
    }
    let log = events(&lab).await;
    assert!(log.contains("169.254.169.254"), "{log}");
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn the_agents_own_listeners_are_refused_though_their_network_is_excepted() {
    let lab = permissive(Vec::new()).await;
    for own in [lab.agent.address, lab.agent.health] {
        for host in [own.ip().to_string(), format!("[::ffff:{}]", own.ip())] {
            let port = format!("0:{host}:{}", own.port());
            postern(&lab, &["forward", "web-1", &port])
                .await
                .status(1)
                .says(&["never dials", "the agent's own"]);
        }
    }
    // A target of that name is no way around it.
    let port = format!("0:{}", lab.agent.health.port());
    postern(&lab, &["forward", "bastion-1", &port])
        .await
        .status(1)
        .says(&["the agent's own"]);
    lab.stop().await.unwrap();
}

#[tokio::test]
async fn a_target_whose_name_resolves_to_loopback_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inventory = folder.path().join("inventory.toml");
    let entry = "[[target]]\nname = \"trap\"\naddress = \"localhost\"\n";
    std::fs::write(&inventory, entry).unwrap();
    let setting = format!("\"{}\"", inventory.display());
    let lab = permissive(vec![("inventory.file".to_owned(), setting)]).await;
    postern(&lab, &["connect", "trap", "--", "true"])
        .await
        .status(255)
        .says(&["never dials", "loopback"]);
    lab.stop().await.unwrap();
}
