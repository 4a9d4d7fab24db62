//! Users and targets at the login.

use super::*;
use crate::ssh::tests::support::DEADLINE;

#[tokio::test]
async fn only_the_granted_user_gets_in_and_only_without_a_method() {
    for (user, method, stays) in [
        ("root", "password", true),
        ("toor", "none", false),
        ("root\0", "none", false),
    ] {
        let (user_end, agent_end) = tokio::io::duplex(64 * 1024);
        let root = "root".parse().unwrap();
        let accepting = tokio::spawn(async move {
            let accepted = crate::ssh::user::accept(agent_end, host_identity(), &root, None).await;
            accepted.map(|_| ()).map_err(|error| error.to_string())
        });
        let algorithms = vec!["ssh-ed25519".to_owned()];
        let mut link = Link::new(user_end, Transport::client(algorithms).unwrap());
        within(link.exchange_keys()).await.unwrap();
        let service = Writer::new().u8(5).vec32(b"ssh-userauth").finish();
        link.transport.send(&service).unwrap();
        link.transport.send(&login(user, method)).unwrap();
        assert_eq!(within(link.receive()).await.unwrap()[0], 6);
        if stays {
            let answer = within(link.receive()).await.unwrap();
            assert_eq!(answer[0], message::USERAUTH_FAILURE);
            // Right once, then somebody else: out.
            link.transport.send(&login("other", "none")).unwrap();
        }
        let gone = within(link.receive()).await.map(drop);
        assert!(
            gone.unwrap_err().to_string().contains("must be root"),
            "{user:?}"
        );
        let refused = within(accepting).await.unwrap().unwrap_err();
        assert!(refused.contains("must be root"), "{refused}");
    }
}

/// A target that says what it likes to our client.
async fn connect_to(says: impl AsyncFnOnce(TcpStream)) -> UpstreamError {
    connect_within(DEADLINE, says).await
}

pub(super) async fn connect_within(
    deadline: Duration,
    says: impl AsyncFnOnce(TcpStream),
) -> UpstreamError {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let host_keys = HostKeys::load(folder.path().join("keys"), &[]).unwrap();
    let host = target("web-1", address.port());
    let root = "root".parse().unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let connecting =
        Upstream::connect_within(deadline, tcp, &host, &root, credential("root"), &host_keys);
    let (connected, ()) = within(async { tokio::join!(connecting, says(stream)) }).await;
    connected.map(drop).unwrap_err()
}

#[tokio::test]
async fn targets_that_are_no_ssh_servers_are_told_from_targets_that_are() {
    let http = connect_to(async |mut stream: TcpStream| {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    })
    .await;
    assert!(http.to_string().contains("web-1"), "{http}");
    assert!(http.hint().unwrap().contains("OpenSSH"), "{http}");
    let flood = connect_to(
        async |mut stream: TcpStream| {
            while stream.write_all(&[b'x'; 10_000]).await.is_ok() {}
        },
    )
    .await;
    assert!(
        flood.to_string().contains("does not identify itself"),
        "{flood}"
    );
    let lines = connect_to(
        async |mut stream: TcpStream| {
            while stream.write_all(b"patience\r\n").await.is_ok() {}
        },
    )
    .await;
    assert!(
        lines.to_string().contains("does not identify itself"),
        "{lines}"
    );
    let huge = connect_to(async |mut stream: TcpStream| {
        stream
            .write_all(b"SSH-2.0-x\r\n\x7f\xff\xff\xff")
            .await
            .unwrap();
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    assert!(huge.to_string().contains("too long"), "{huge}");
}

#[tokio::test]
async fn a_target_that_refuses_the_login_gets_a_hint_that_names_the_remedy() {
    let refused = connect_to(async |stream: TcpStream| {
        let identity = HostIdentity::new(key(66), None).unwrap();
        let mut link = Link::new(stream, Transport::server(identity).unwrap());
        link.exchange_keys().await.unwrap();
        link.receive().await.unwrap();
        link.receive().await.unwrap();
        let failure = Writer::new()
            .u8(message::USERAUTH_FAILURE)
            .vec32(b"publickey")
            .u8(0)
            .finish();
        link.transport.send(&failure).unwrap();
        link.flush().await.unwrap();
        link.stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    assert_eq!(refused.to_string(), "web-1 refused the login as root");
    assert!(refused.hint().unwrap().contains("TrustedUserCAKeys"));
}

#[tokio::test]
async fn a_silent_target_is_given_up_after_a_while() {
    let deadline = Duration::from_millis(50);
    let error = connect_within(deadline, async |mut stream: TcpStream| {
        // Until our client hangs up.
        stream.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    assert!(matches!(error, UpstreamError::Timeout { .. }), "{error}");
}
