//! Rules and tunnels.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::tunnel::{TunnelError, through};
use super::*;

const CANARY: &str = "canary-password";

fn proxies(proxy: &str, direct: &str) -> Proxies {
    Proxies::of(
        &[("HTTPS_PROXY", proxy), ("NO_PROXY", direct)]
            .into_iter()
            .collect(),
    )
    .unwrap()
}

fn is_direct(direct: &str, host: &str) -> bool {
    proxies("http://proxy:3128", direct).toward(host).is_none()
}

#[test]
fn without_a_variable_nothing_goes_through_a_proxy() {
    let none = Proxies::of(&Environment::default()).unwrap();
    assert!(none.toward("ssm.eu-west-1.amazonaws.com").is_none());
    // A proxy for other protocols is no business of ours.
    let others = [("HTTP_PROXY", "http://p:1"), ("ALL_PROXY", "http://p:1")];
    let others = Proxies::of(&others.into_iter().collect()).unwrap();
    assert!(others.toward("ssm.eu-west-1.amazonaws.com").is_none());
}

#[test]
fn lower_case_comes_first_and_a_proxy_may_stand_without_scheme() {
    let both = [
        ("HTTPS_PROXY", "http://upper:1"),
        ("https_proxy", "lower:3128"),
        ("NO_PROXY", "*"),
        ("no_proxy", "example.com"),
    ];
    let both = Proxies::of(&both.into_iter().collect()).unwrap();
    let proxy = both.toward("ssm.eu-west-1.amazonaws.com").unwrap();
    assert_eq!(proxy.to_string(), "`lower:3128`");
    assert!(both.toward("example.com").is_none());
    let named = |url| proxies(url, "").toward("x").unwrap().to_string();
    assert_eq!(named("https://secure"), "`secure:443`");
    assert_eq!(named("http://plain"), "`plain:80`");
    assert_eq!(named("http://[::1]:3128/"), "`[::1]:3128`");
}

#[test]
fn no_proxy_names_hosts_with_their_subdomains_addresses_networks_and_ports() {
    let host = "ssm.eu-west-1.amazonaws.com";
    for direct in [
        host,
        "other, SSM.eu-west-1.amazonaws.com",
        "amazonaws.com",
        ".amazonaws.com",
        "*.amazonaws.com",
        "other amazonaws.com",
        "amazonaws.com:443",
        "*",
        "*:443",
    ] {
        assert!(is_direct(direct, host), "{direct}");
    }
    for direct in [
        "",
        "aws.com",
        "azonaws.com",
        "amazonaws.com:8443",
        "10.0.0.0/8",
        ",",
    ] {
        assert!(!is_direct(direct, host), "{direct}");
    }
    assert!(is_direct(
        "amazonaws.com:8443",
        "ssm.eu-west-1.amazonaws.com:8443"
    ));
    for (direct, host) in [
        ("127.0.0.1", "127.0.0.1:8443"),
        ("127.0.0.0/8", "127.4.5.6"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
        ("*", "127.0.0.1"),
        ("::1", "[::1]:8443"),
        ("[::1]", "[::1]"),
        ("[::1]:443", "[::1]"),
        ("fd00::/8", "[fd00:ec2::254]"),
    ] {
        assert!(is_direct(direct, host), "{direct} {host}");
    }
    assert!(!is_direct("127.0.0.1:8443", "127.0.0.1:8444"));
    assert!(!is_direct("127.0.0.2", "127.0.0.1"));
}

#[test]
fn what_is_no_http_proxy_is_told_and_credentials_never_are() {
    let mut told = Vec::new();
    for url in [
        "socks5://u:canary-password@p:1",
        "http://",
        "http://u:canary-password@",
        "a b",
    ] {
        let error = Proxies::of(&[("HTTPS_PROXY", url)].into_iter().collect()).unwrap_err();
        told.push(error.to_string());
    }
    told.dedup();
    insta::assert_snapshot!(told.join("\n"), @"HTTPS_PROXY: it is no URL of an HTTP proxy: http://HOST:PORT or https://HOST:PORT");
    let proxies = proxies(&format!("http://me%40here:{CANARY}@proxy:3128"), "");
    let proxy = proxies.toward("x").unwrap();
    let authorization = proxy.authorization().unwrap();
    // me@here:canary-password
    assert_eq!(authorization, "Basic bWVAaGVyZTpjYW5hcnktcGFzc3dvcmQ=");
    let printed = format!("{proxies:?} {proxy:?} {proxy} {authorization:?}");
    assert!(
        !printed.contains("canary") && !printed.contains("bWVA"),
        "{printed}"
    );
}

/// What the tunnel says to a proxy that answers with this, and how it ends.
async fn asked(answer: &str) -> (String, Result<DuplexStream, TunnelError>) {
    let proxy = proxies(&format!("http://me:{CANARY}@proxy:3128"), "");
    let proxy = proxy.toward("ssm.eu-west-1.amazonaws.com").unwrap();
    let (near, mut far) = duplex(64 * 1024);
    let answering = async {
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            asked.push(far.read_u8().await.unwrap());
        }
        far.write_all(answer.as_bytes()).await.unwrap();
        (String::from_utf8(asked).unwrap(), far)
    };
    let tunnel = through(near, &proxy, "ssm.eu-west-1.amazonaws.com:443");
    let both = async { tokio::join!(tunnel, answering) };
    let (tunnel, (asked, mut far)) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .unwrap();
    let Ok(mut near) = tunnel else {
        return (asked, tunnel);
    };
    near.write_all(b"hello").await.unwrap();
    far.write_all(b"world").await.unwrap();
    let (mut there, mut here) = ([0; 5], [0; 5]);
    far.read_exact(&mut there).await.unwrap();
    near.read_exact(&mut here).await.unwrap();
    assert_eq!((&there, &here), (b"hello", b"world"));
    (asked, Ok(near))
}

#[tokio::test]
async fn a_tunnel_asks_for_the_host_with_the_credentials_and_then_carries_bytes() {
    let (asked, tunnel) = asked("HTTP/1.1 200 Connection established\r\nvia: p\r\n\r\n").await;
    assert!(tunnel.is_ok());
    insta::assert_snapshot!(asked.replace('\r', ""), @r"
    CONNECT ssm.eu-west-1.amazonaws.com:443 HTTP/1.1
    host: ssm.eu-west-1.amazonaws.com:443
    proxy-authorization: Basic bWU6Y2FuYXJ5LXBhc3N3b3Jk

    ");
}

#[tokio::test]
async fn a_proxy_that_does_not_connect_is_told_with_the_next_step() {
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(20_000));
    let mut told = Vec::new();
    for answer in [
        "HTTP/1.1 407 Who are you\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 403 No\r\ncontent-length: 5\r\n\r\nnever",
        "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-early",
        "SSH-2.0-OpenSSH_9.6\r\n",
        &long,
    ] {
        let error = asked(answer).await.1.unwrap_err();
        told.push(format!("{error}\nhint: {}", error.hint().unwrap_or("-")));
    }
    let refused = TunnelError::Unreachable {
        proxy: "`proxy:3128`".to_owned(),
        cause: "Connection refused".to_owned(),
    };
    told.push(format!(
        "{refused}\nhint: {}",
        refused.hint().unwrap_or("-")
    ));
    insta::assert_snapshot!(told.join("\n\n"));
}
