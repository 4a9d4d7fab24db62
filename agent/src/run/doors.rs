//! What the core asks and the network answers: targets are dialled and logged in to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt as _;
use postern_proto::audit::event::{Event, EventTarget, Fact};
use postern_proto::gateway::message::{DenyCode, HostKeyCheck};
use postern_proto::names::HostName;
use time::OffsetDateTime;
use tokio::net::TcpStream;

use crate::aws::AwsSettings;
use crate::ca::ssh::{self as ssh_ca, UserRequest};
use crate::config::Config;
use crate::doors::{Dial, Dialled, Doors, Fresh, Login, SshLogin, SshTarget, Trouble};
use crate::evidence::{Evidence, agent_event};
use crate::identity::Approvals;
use crate::instance_connect::InstanceConnect;
use crate::inventory::{Target, TargetLogin};
use crate::keys::Keys;
use crate::refusal::NotReached;
use crate::ssh::{self, Credential, HostIdentity, HostKeys, Upstream, UpstreamError};
use crate::target::{DialError, Dialer, Settings};

/// What the doors are made of.
pub(super) struct Parts {
    pub(super) config: Arc<Config>,
    pub(super) keys: Arc<Keys>,
    pub(super) approvals: Arc<Approvals>,
    pub(super) evidence: Evidence,
    /// Where this agent listens.
    pub(super) own_addresses: Vec<SocketAddr>,
    pub(super) troubles: Vec<Trouble>,
}

impl Parts {
    pub(super) async fn doors(self) -> anyhow::Result<Doors> {
        let dial = &self.config.dial;
        let dialer = Arc::new(Dialer::new(Settings {
            source_address: dial.source_address,
            allow: dial.allow.clone(),
            own: self.own_addresses.clone(),
            deadline: dial.deadline,
        }));
        let approvals = self.approvals;
        let host_ca = self.keys.ssh_host_ca.public_key().to_openssh()?;
        let ssh = SshDoor {
            host_keys: host_keys(&self.config)?,
            instance_connect: instance_connect(&self.config).await?,
            source_address: dial.source_address,
            agent: self.config.id.to_string(),
            keys: self.keys,
            evidence: self.evidence,
        };
        Ok(Doors {
            dial: dial_door(dialer),
            ssh: ssh_door(Arc::new(ssh)),
            approval: Arc::new(move |who, open_hash, session| {
                let now = OffsetDateTime::now_utc().unix_timestamp();
                let approval = approvals.take(who, open_hash, session, now)?;
                Some(Fresh {
                    given_at: approval.given_at,
                    aws_request_ids: approval.aws_request_ids,
                })
            }),
            troubles: self.troubles,
            ssh_host_ca: Some(host_ca),
        })
    }
}

fn host_keys(config: &Config) -> anyhow::Result<HostKeys> {
    std::fs::create_dir_all(&config.state)?;
    Ok(HostKeys::load(config.state.join("host-keys.json"), &[])?)
}

/// Only where EC2 is a source of targets: a push needs an instance.
async fn instance_connect(config: &Config) -> anyhow::Result<Option<InstanceConnect>> {
    let Some(ec2) = &config.inventory.ec2 else {
        return Ok(None);
    };
    let settings = AwsSettings {
        endpoint_url: ec2.endpoint_url.clone(),
        ca_bundle: ec2.ca_bundle.clone(),
        credentials: None,
    };
    Ok(Some(InstanceConnect::new(&settings).await?))
}

fn dial_door(dialer: Arc<Dialer>) -> Dial {
    Arc::new(move |target: Arc<Target>, host: Option<HostName>, port| {
        let dialer = Arc::clone(&dialer);
        async move {
            let host = host
                .as_ref()
                .map_or(target.address.as_str(), HostName::as_str);
            let checked = dialer
                .resolve(host, port)
                .await
                .map_err(|error| told(&error))?;
            let (stream, address) = dialer.dial(&checked).await.map_err(|error| told(&error))?;
            Ok(Dialled { stream, address })
        }
        .boxed()
    })
}

fn told(error: &DialError) -> NotReached {
    NotReached {
        code: error.code(),
        message: error.to_string(),
        hint: Some(error.hint()),
    }
}

/// Logs in to targets, with keys that exist for seconds.
struct SshDoor {
    keys: Arc<Keys>,
    host_keys: HostKeys,
    instance_connect: Option<InstanceConnect>,
    source_address: Option<IpAddr>,
    agent: String,
    evidence: Evidence,
}

fn ssh_door(door: Arc<SshDoor>) -> SshLogin {
    Arc::new(move |stream, login| {
        let door = Arc::clone(&door);
        async move { door.login(stream, login).await }.boxed()
    })
}

impl SshDoor {
    async fn login(&self, stream: TcpStream, login: Login) -> Result<SshTarget, NotReached> {
        let address = stream.peer_addr().ok().map(|address| address.to_string());
        let credential = self.credential(&login).await?;
        let connected = Upstream::connect(
            stream,
            &login.target,
            &login.user,
            credential,
            &self.host_keys,
        )
        .await;
        let event = |fact| Event {
            session: Some(login.session),
            actor: Some(login.who.actor()),
            target: Some(EventTarget {
                id: login.target.id.clone(),
                name: login.target.name.clone(),
                address: address.clone(),
            }),
            ..agent_event(fact)
        };
        let (upstream, host_key) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                if let UpstreamError::HostKeyChanged { pinned, seen, .. } = &error {
                    let (pinned, seen) = (pinned.clone(), seen.clone());
                    self.log(event(Fact::HostKeyChanged { pinned, seen }))
                        .await?;
                }
                return Err(NotReached {
                    code: error.code(),
                    message: error.to_string(),
                    hint: error.hint(),
                });
            }
        };
        if host_key.check == HostKeyCheck::FirstUse {
            let fingerprint = host_key.fingerprint.clone();
            self.log(event(Fact::HostKeyPinned { fingerprint })).await?;
        }
        let host = self.host_identity(&login.target)?;
        let once = login.once;
        Ok(SshTarget {
            host_key,
            serve: Box::new(move |stream, session| {
                ssh::serve(stream, upstream, session, host, once).boxed()
            }),
        })
    }

    /// A key for this login alone, as the target wants it vouched for.
    async fn credential(&self, login: &Login) -> Result<Credential, NotReached> {
        let key = ssh_ca::generate("postern").map_err(|error| internal(&error))?;
        match login.target.login {
            TargetLogin::Certificate => {
                let request = UserRequest {
                    principal: login.who.principal(),
                    session: login.session,
                    user: &login.user,
                    source: self.source_address,
                    extensions: &login.extensions,
                    now: OffsetDateTime::now_utc().unix_timestamp(),
                };
                let certified = self.keys.ssh_user_ca.certify(key.public_key(), &request);
                Ok(Credential::certified(
                    key,
                    certified.map_err(|error| internal(&error))?,
                ))
            }
            TargetLogin::InstanceConnect => {
                let Some(pusher) = &self.instance_connect else {
                    return Err(NotReached {
                        code: DenyCode::TargetLogin,
                        message: format!(
                            "{} takes keys from EC2 Instance Connect, and this agent knows no EC2",
                            login.target.name
                        ),
                        hint: Some("configure [inventory.ec2] in agent.toml".to_owned()),
                    });
                };
                let line = key
                    .public_key()
                    .to_openssh()
                    .map_err(|error| internal(&error))?;
                let pushed = pusher.push_key(&login.target, &login.user, &line).await;
                pushed.map_err(|error| NotReached {
                    code: DenyCode::TargetLogin,
                    message: error.to_string(),
                    hint: Some(error.hint().to_owned()),
                })?;
                Ok(Credential::key(key))
            }
        }
    }

    /// Made anew for each session, for all names of its target: a stock client knows the one that
    /// it was given.
    fn host_identity(&self, target: &Target) -> Result<HostIdentity, NotReached> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let names: Vec<&str> = [target.id.as_str(), &target.name, &target.address]
            .into_iter()
            .chain(target.aliases.iter().map(String::as_str))
            .collect();
        let certificate = self
            .keys
            .ssh_host_certificate(&self.agent, &names, now)
            .map_err(|error| internal(&error))?;
        HostIdentity::new((*self.keys.ssh_host_key).clone(), Some(certificate))
            .map_err(|error| internal(&error))
    }

    async fn log(&self, event: Event) -> Result<(), NotReached> {
        self.evidence
            .append(event)
            .await
            .map(drop)
            .map_err(|error| NotReached {
                code: DenyCode::Evidence,
                message: error.to_string(),
                hint: None,
            })
    }
}

fn internal(error: &dyn std::fmt::Display) -> NotReached {
    tracing::error!(%error, "a target's credential could not be made");
    NotReached {
        code: DenyCode::Internal,
        message: "the agent could not make a credential for the target".to_owned(),
        hint: Some("the agent's log says why".to_owned()),
    }
}

#[cfg(test)]
mod tests;
