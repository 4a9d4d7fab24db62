//! Dialling an agent, and what goes wrong with it.

use postern_proto::gateway::message::OpenKind;
use rustls::NamedGroup;
use tokio::net::TcpListener;

use super::{Dialer, TransportError};
use crate::config::AgentProfile;
use crate::error::{Error, Kind};
use crate::gateway::{GatewayError, Request};
use crate::testing::{FakeAgent, Pki};

fn told(error: TransportError, address: &str) -> String {
    let error = Error::from(error);
    assert_eq!(error.kind, Kind::Unreachable);
    format!(
        "{}\nhint: {}",
        error.message.replace(address, "ADDRESS"),
        error.hint.unwrap()
    )
}

async fn failure(agent: &FakeAgent, profile: &AgentProfile) -> String {
    let dialer = Dialer::new(profile, &agent.pki().client()).unwrap();
    let Err(error) = dialer.pipe().await else {
        panic!("it connected")
    };
    told(error, &profile.address)
}

#[tokio::test]
async fn the_key_exchange_is_hybrid_post_quantum_and_the_protocol_1_3() {
    let agent = FakeAgent::start().await;
    let dialer = Dialer::new(&agent.profile, &agent.pki().client()).unwrap();
    let first = dialer.pipe().await.unwrap();
    let tls = first.get_ref().1;
    assert_eq!(
        tls.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(
        tls.negotiated_key_exchange_group().unwrap().name(),
        NamedGroup::X25519MLKEM768
    );
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_the_agent() {
    let agent = FakeAgent::start().await;
    let profile = AgentProfile {
        ca: Pki::new().server_pem,
        ..agent.profile.clone()
    };
    insta::assert_snapshot!(failure(&agent, &profile).await, @r"
        the server at ADDRESS is not agent `bastion-1`: its certificate is not from the pinned CA
        hint: somebody may stand between you and the agent; if the agent got a new CA, take the profile from its operator again
        ");
}

#[tokio::test]
async fn another_agent_of_the_same_ca_is_not_the_agent() {
    let agent = FakeAgent::named("bastion-2", false).await;
    insta::assert_snapshot!(failure(&agent, &agent.profile).await, @r"
        the server at ADDRESS is not agent `bastion-1`: its certificate is for another name
        hint: compare `id` and `address` of the agent in the configuration with what its operator gave you
        ");
}

#[tokio::test]
async fn an_expired_agent_says_so() {
    let agent = FakeAgent::named("bastion-1", true).await;
    insta::assert_snapshot!(failure(&agent, &agent.profile).await, @r"
        the certificate of agent `bastion-1` at ADDRESS has expired
        hint: tell the agent's operator: `postern-agent check` says how to renew it
        ");
}

#[tokio::test]
async fn nobody_there_is_told_with_the_address() {
    let agent = FakeAgent::start().await;
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let profile = AgentProfile {
        address: free.to_string(),
        ..agent.profile.clone()
    };
    insta::assert_snapshot!(failure(&agent, &profile).await, @r"
        agent `bastion-1` at ADDRESS could not be reached: Connection refused (os error 111)
        hint: check the agent's address in the configuration, your network or VPN, and that the agent runs
        ");
}

#[tokio::test]
async fn a_client_certificate_that_the_agent_refuses_asks_for_a_new_one_and_then_gives_up() {
    let agent = FakeAgent::start().await;
    let stranger = FakeAgent::start().await;
    // The identity of another agent: its certificates are from another CA.
    let profile = agent.profile.clone();
    let gateway = stranger.gateway_to(profile.clone()).await.unwrap();
    let request = Request {
        target: "web-1".parse().unwrap(),
        kind: OpenKind::Tunnel {
            host: None,
            port: 5432,
        },
        once: false,
    };
    let Err(error) = gateway
        .open(&request, &mut crate::pipe::Early::none())
        .await
    else {
        panic!("it opened")
    };
    let GatewayError::Transport(error) = error else {
        panic!("{error}")
    };
    insta::assert_snapshot!(told(error, &profile.address), @r"
        agent `bastion-1` refused the client certificate: DecryptError
        hint: postern login
        ");
    assert_eq!(stranger.state.lock().unwrap().certificates, 2);
}

#[tokio::test]
async fn a_profile_without_a_ca_is_unusable() {
    let agent = FakeAgent::start().await;
    let profile = AgentProfile {
        ca: b"nothing".to_vec(),
        ..agent.profile.clone()
    };
    let Err(error) = Dialer::new(&profile, &agent.pki().client()) else {
        panic!("it is usable")
    };
    insta::assert_snapshot!(error, @"the profile of agent `bastion-1` is unusable: it holds no CA certificate");
}
