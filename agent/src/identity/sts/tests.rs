use super::response::is_xml;
use super::*;

#[test]
fn private_and_link_local_resolver_answers_are_refused() {
    let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 443);
    for bad in [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a00:1",
        "2002::1",
        "2001:db8::1",
        "ff02::1",
    ] {
        let both = [at("52.95.0.1"), at(bad)];
        assert!(check_public("sts", &both).is_err(), "{bad}");
    }
    let good = [at("52.95.0.1"), at("2600:1f00::1"), at("::ffff:52.95.0.1")];
    assert!(check_public("sts", &good).is_ok());
}

#[test]
fn only_the_form_that_was_asked_for_is_read() {
    assert!(is_xml("text/xml"));
    assert!(is_xml("text/xml; charset=UTF-8"));
    for bad in [
        "application/json",
        "text/html",
        "text/xml; charset=utf-7",
        "text/xmlx",
        "",
    ] {
        assert!(!is_xml(bad), "{bad}");
    }
}

#[test]
fn the_host_is_built_from_the_region_or_the_configured_endpoint() {
    let settings = |endpoint: Option<&str>| StsSettings {
        region: "eu-west-1".to_owned(),
        endpoint_url: endpoint.map(str::to_owned),
        ca_bundle: None,
        accounts: vec![],
    };
    let authority =
        |endpoint| StsClient::new(&settings(endpoint)).map(|client| client.authority().to_owned());
    // A machine without root certificates cannot make the public client; the name is built
    // before that.
    match authority(None) {
        Ok(name) => assert_eq!(name, "sts.eu-west-1.amazonaws.com"),
        Err(error) => assert!(error.to_string().contains("root certificates"), "{error}"),
    }
    if let Ok(name) = authority(Some("https://127.0.0.2:4443/")) {
        assert_eq!(name, "127.0.0.2:4443");
    }
    assert!(authority(Some("http://127.0.0.2:4443")).is_err());
}
