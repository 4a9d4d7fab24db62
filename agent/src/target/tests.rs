use std::sync::Mutex;

use tokio::net::TcpListener;

use super::*;

fn settings(allow: &[&str]) -> Settings {
    Settings {
        source_address: None,
        allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
        own: vec![],
        deadline: Duration::from_secs(10),
    }
}

fn scripted(settings: Settings, answers: &[&[&str]]) -> Dialer {
    let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
    Dialer {
        settings,
        resolver: Resolver::Scripted(Mutex::new(answers.iter().map(parse).collect())),
    }
}

async fn rule(dialer: &Dialer, host: &str) -> Rule {
    match dialer.resolve(host, 22).await {
        Err(DialError::Forbidden { rule, .. }) => rule,
        other => panic!("{host}: {other:?}"),
    }
}

#[tokio::test]
async fn a_name_that_changes_its_answer_is_dialled_where_it_was_checked() {
    let listener = TcpListener::bind("127.66.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // The second answer must never be asked for: the script would run out or lead elsewhere.
    let dialer = scripted(
        settings(&["127.66.0.0/16"]),
        &[&["127.66.0.1"], &["169.254.169.254"]],
    );
    let checked = dialer.resolve("rebinds.example", port).await.unwrap();
    let (stream, address) = dialer.dial(&checked).await.unwrap();
    assert_eq!(address, listener.local_addr().unwrap());
    assert_eq!(stream.peer_addr().unwrap(), address);
    assert!(stream.nodelay().unwrap());
    assert_eq!(rule(&dialer, "rebinds.example").await, Rule::Metadata);
}

#[tokio::test]
async fn one_forbidden_address_among_good_ones_refuses_the_name() {
    let dialer = scripted(settings(&[]), &[&["10.0.0.1", "::ffff:127.0.0.1"]]);
    assert_eq!(rule(&dialer, "mixed.example").await, Rule::Loopback);
}

#[tokio::test]
async fn spellings_that_the_system_takes_for_loopback_are_refused() {
    let dialer = Dialer::new(settings(&[]));
    for host in [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f.1",
        "::1",
        "0",
    ] {
        match dialer.resolve(host, 22).await {
            // A resolver may also not know the spelling.
            Err(DialError::Forbidden { .. } | DialError::Unresolvable { .. }) => {}
            other => panic!("{host}: {other:?}"),
        }
    }
    assert_eq!(rule(&dialer, "127.0.0.1").await, Rule::Loopback);
    assert_eq!(rule(&dialer, "169.254.169.254").await, Rule::Metadata);
}

#[tokio::test]
async fn a_mapped_address_is_dialled_as_the_address_it_maps() {
    let dialer = Dialer::new(settings(&[]));
    let checked = dialer.resolve("::ffff:10.0.0.1", 22).await.unwrap();
    assert_eq!(checked.addresses(), ["10.0.0.1:22".parse().unwrap()]);
}

#[tokio::test]
async fn the_allow_list_excepts_networks_but_never_where_the_agent_listens() {
    let mut settings = settings(&["127.0.0.0/8"]);
    settings.own = vec![
        "127.0.0.9:8443".parse().unwrap(),
        "0.0.0.0:9090".parse().unwrap(),
    ];
    let dialer = Dialer::new(settings);
    assert!(dialer.resolve("127.0.0.9", 22).await.is_ok());
    assert!(dialer.resolve("::ffff:127.0.0.9", 22).await.is_ok());
    for port in [8443, 9090] {
        match dialer.resolve("127.0.0.9", port).await {
            Err(DialError::Forbidden {
                rule: Rule::Own, ..
            }) => {}
            other => panic!("{other:?}"),
        }
    }
    // Another form of an allowed address is not in the list.
    assert_eq!(rule(&dialer, "64:ff9b::7f00:9").await, Rule::Loopback);
}

#[tokio::test]
async fn the_agents_further_addresses_are_its_own_on_all_ports() {
    let mut settings = settings(&[]);
    settings.own = vec!["198.51.100.7:0".parse().unwrap()];
    let dialer = Dialer::new(settings);
    assert_eq!(rule(&dialer, "198.51.100.7").await, Rule::Own);
    assert_eq!(rule(&dialer, "::ffff:198.51.100.7").await, Rule::Own);
    assert!(dialer.resolve("198.51.100.8", 22).await.is_ok());
}

#[tokio::test]
async fn the_source_address_is_the_configured_one() {
    let listener = TcpListener::bind("127.66.0.2:0").await.unwrap();
    let mut settings = settings(&["127.0.0.0/8"]);
    settings.source_address = Some("127.66.0.77".parse().unwrap());
    let dialer = scripted(
        settings,
        &[&["2001:db8::1", "127.66.0.2"], &["2001:db8::1"]],
    );
    let port = listener.local_addr().unwrap().port();
    let checked = dialer.resolve("dual.example", port).await.unwrap();
    let (_stream, address) = dialer.dial(&checked).await.unwrap();
    assert!(address.is_ipv4());
    let (_, peer) = listener.accept().await.unwrap();
    assert_eq!(peer.ip(), "127.66.0.77".parse::<IpAddr>().unwrap());

    let checked = dialer.resolve("six.example", port).await.unwrap();
    let error = dialer.dial(&checked).await.unwrap_err();
    assert!(matches!(error, DialError::Family { .. }), "{error}");
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let listener = TcpListener::bind("127.66.0.4:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dialer = scripted(
        settings(&["127.66.0.0/16"]),
        &[&["127.66.0.3", "127.66.0.4"]],
    );
    let checked = dialer.resolve("two.example", port).await.unwrap();
    let (_stream, address) = dialer.dial(&checked).await.unwrap();
    assert_eq!(address, listener.local_addr().unwrap());
}

#[tokio::test]
async fn a_closed_port_is_refused_in_plain_words() {
    let listener = TcpListener::bind("127.66.0.5:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let dialer = Dialer::new(settings(&["127.66.0.0/16"]));
    let checked = dialer.resolve("127.66.0.5", address.port()).await.unwrap();
    let error = dialer.dial(&checked).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address} (`127.66.0.5`) refused the connection")
    );
    assert_eq!(error.code(), DenyCode::TargetUnreachable);
    assert!(error.hint().contains(&address.port().to_string()));
}

#[tokio::test]
async fn silence_times_out() {
    // A listener whose queue is full drops further handshakes: nothing answers.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.66.0.6:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut settings = settings(&["127.66.0.0/16"]);
    settings.deadline = Duration::from_millis(300);
    let dialer = Dialer::new(settings);
    let checked = dialer.resolve("127.66.0.6", address.port()).await.unwrap();
    let mut open = Vec::new();
    let error = loop {
        match dialer.dial(&checked).await {
            Ok((stream, _)) => open.push(stream),
            Err(error) => break error,
        }
        assert!(open.len() < 64, "the queue never filled");
    };
    assert!(matches!(error, DialError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_name_without_address_says_so() {
    let dialer = scripted(settings(&[]), &[&[]]);
    let error = dialer
        .resolve("nothing\u{1b}[2J.example", 22)
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot resolve `nothing\\u{1b}[2J.example`: it has no address"
    );
    let error = Dialer::new(settings(&[]))
        .resolve("10.0.0.1", 0)
        .await
        .unwrap_err();
    assert!(matches!(error, DialError::Unresolvable { .. }));
}
