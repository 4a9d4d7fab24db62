use std::net::Ipv4Addr;

use postern_proto::names::SessionId;
use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::*;
use crate::ca::client::ClientCa;
use crate::ca::ssh::{SshHostCa, SshUserCa, generate};
use crate::ca::x509::{Authority, Purpose};
use crate::keys::SecretText;
use crate::testing::{events, evidence, principal, target};

/// Keys as `init` makes them, in memory.
fn keys() -> Keys {
    let agent = "bastion-1".parse().unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let clients = Authority::root(Purpose::Client, "clients", now).unwrap();
    let server_key = KeyPair::generate().unwrap().serialize_der();
    let (log_key, log_verifier_key) = crate::ca::log::generate(&agent).unwrap();
    Keys {
        server_chain: vec![],
        server_key: PrivateKeyDer::try_from(server_key).unwrap(),
        client_ca: Arc::new(ClientCa::new(clients.intermediate(&agent, now).unwrap())),
        ssh_user_ca: Arc::new(SshUserCa::new(generate("users").unwrap()).unwrap()),
        ssh_host_ca: Arc::new(SshHostCa::new(generate("hosts").unwrap()).unwrap()),
        ssh_host_key: Arc::new(generate("agent").unwrap()),
        log_key: SecretText::new(log_key),
        previous_log_key: None,
        log_verifier_key,
    }
}

/// russh as a target that would let anybody in, under a key of its own.
struct Anybody;

impl russh::server::Handler for Anybody {
    type Error = russh::Error;

    async fn auth_openssh_certificate(
        &mut self,
        _: &str,
        _: &russh::keys::Certificate,
    ) -> Result<russh::server::Auth, russh::Error> {
        Ok(russh::server::Auth::Accept)
    }
}

/// One connection to a target that shows this key.
async fn connected(key: russh::keys::PrivateKey) -> (TcpStream, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = Arc::new(russh::server::Config {
        keys: vec![key],
        ..Default::default()
    });
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(running) = russh::server::run_stream(config, stream, Anybody).await {
            running.await.ok();
        }
    });
    (TcpStream::connect(address).await.unwrap(), serving)
}

#[tokio::test]
async fn a_first_host_key_is_an_event_and_a_changed_one_is_refused_and_an_event() {
    let folder = tempfile::tempdir().unwrap();
    let door = SshDoor {
        keys: Arc::new(keys()),
        host_keys: HostKeys::load(folder.path().join("host-keys.json"), &[]).unwrap(),
        instance_connect: None,
        source_address: None,
        agent: "bastion-1".to_owned(),
        evidence: evidence(),
    };
    let session = SessionId::from_parts(1, 2);
    let login = || Login {
        session,
        who: principal("alice"),
        target: target("web-1"),
        user: "root".parse().unwrap(),
        extensions: vec![],
        once: false,
    };
    let (stream, first) = connected(generate("first").unwrap()).await;
    let reached = door.login(stream, login()).await;
    let shown = reached.map_err(|fault| fault.message).unwrap().host_key;
    assert_eq!(shown.check, HostKeyCheck::FirstUse);

    let (stream, second) = connected(generate("second").unwrap()).await;
    let refused = door.login(stream, login()).await.map(drop).unwrap_err();
    assert_eq!(refused.code, DenyCode::HostKeyChanged);
    assert!(refused.message.contains("changed"), "{}", refused.message);

    let all = events(&door.evidence);
    let ours: Vec<_> = all.iter().filter(|e| e.session == Some(session)).collect();
    let [pinned, changed] = ours[..] else {
        panic!("{ours:?}");
    };
    assert!(matches!(
        &pinned.fact,
        Fact::HostKeyPinned { fingerprint } if *fingerprint == shown.fingerprint
    ));
    assert!(matches!(
        &changed.fact,
        Fact::HostKeyChanged { pinned, seen } if *pinned == shown.fingerprint && seen != pinned
    ));
    assert_eq!(changed.target.as_ref().unwrap().name, "web-1");
    first.abort();
    second.abort();
}
