//! The lab's AWS: STS with real TOTP and SigV4 verification, IAM's MFA calls, EC2 and SSM look-ups, EC2
//! Instance Connect.
//!
//! One HTTPS endpoint serves all of them; the service is the one that the signature is scoped to, as clients with
//! `endpoint_url` sign it. Nothing is accepted on a caller's word: every request's signature is rebuilt from its bytes,
//! every code is checked against its device and used up, every policy is evaluated. What is not emulated is refused in
//! AWS's own words.
//!
//! [`Aws`] is the server and the handle of whoever runs it: seeds, clock, codes, events, faults.

mod account;
mod caller;
mod clock;
mod condition;
mod dispatch;
mod ec2;
mod error;
mod faults;
mod fleet;
mod iam;
mod ids;
mod instance_connect;
mod kms;
mod pattern;
mod policy;
mod reply;
mod request;
mod seed;
mod server;
mod service;
mod sigv4;
mod ssm;
mod sts;
mod totp;
mod trail;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use clock::Clock;
pub use faults::{Fault, FaultRule};
pub use fleet::PasswordError;
pub use instance_connect::PushedKey;
pub use policy::MalformedPolicy;
pub use seed::{
    AccessKey, Instance, InstanceState, Platform, Role, Root, SsmNode, Subnet, User, Vpc,
    WindowsPassword,
};
pub use service::Service;

pub(crate) use kms::Kms;

use account::Account;
use dispatch::State;

use crate::ssm::{Cut, Gateway, Hub, Knobs, SessionDocument, Side};

/// What the emulated AWS starts with.
#[derive(Debug)]
pub struct AwsConfig {
    /// Twelve digits.
    pub account: String,
    /// Regions that are enabled; the first is the account's main one.
    pub regions: Vec<String>,
    /// An address of 127.0.0.0/8; port 0 takes a free one.
    pub listen: SocketAddr,
    pub tls: Tls,
    pub clock: Clock,
    pub root: Root,
    pub users: Vec<User>,
    /// In order: a trust policy can name users and the roles before it.
    pub roles: Vec<Role>,
    pub vpcs: Vec<Vpc>,
    pub subnets: Vec<Subnet>,
    pub instances: Vec<Instance>,
    /// Session documents of the account's own.
    pub documents: Vec<SessionDocument>,
    /// Aliases of KMS keys, without `alias/`.
    pub kms_keys: Vec<String>,
}

impl AwsConfig {
    /// An empty account in one region.
    #[must_use]
    pub fn new(account: &str, region: &str, listen: SocketAddr, tls: Tls) -> Self {
        Self {
            account: account.to_owned(),
            regions: vec![region.to_owned()],
            listen,
            tls,
            clock: Clock::system(),
            root: Root::default(),
            users: Vec::new(),
            roles: Vec::new(),
            vpcs: Vec::new(),
            subnets: Vec::new(),
            instances: Vec::new(),
            documents: Vec::new(),
            kms_keys: Vec::new(),
        }
    }
}

/// The endpoint's certificate chain, its own certificate first, and key.
pub struct Tls {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Tls {
    /// Reads both from PEM.
    ///
    /// # Errors
    /// If either is missing or not PEM.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, StartError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| StartError::Certificate(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| StartError::Certificate(error.to_string()))?;
        Ok(Self { chain, key })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Why the emulated AWS did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is not an account id of twelve digits")]
    Account(String),
    #[error("no region is enabled")]
    NoRegion,
    #[error("the lab's AWS listens on loopback only, not on {0}")]
    NotLoopback(SocketAddr),
    #[error("the certificate or key of the lab's AWS cannot be used: {0}")]
    Certificate(String),
    #[error("the lab's AWS cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    #[error("{0} has a policy that IAM would refuse: {1}")]
    Policy(String, MalformedPolicy),
    #[error(transparent)]
    Password(#[from] PasswordError),
}

/// The code that a device with this base32 seed shows now. `None`: that is not base32.
#[must_use]
pub fn current_code(seed: &str) -> Option<String> {
    let device = totp::Device::new(String::new(), totp::from_base32(seed)?);
    Some(device.code(Clock::system().now()))
}

/// What the server and its handle share.
struct Shared {
    clock: Clock,
    root_key: Option<AccessKey>,
    /// Guards data for the length of one call and is never held across a wait.
    state: Mutex<State>,
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        // A panic in another call has no half-done change worth refusing everything for.
        let mut guard: MutexGuard<'_, State> =
            self.state.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut guard)
    }
}

/// A running emulated AWS. It ends when dropped.
pub struct Aws {
    address: SocketAddr,
    shared: Arc<Shared>,
    gateway: Gateway,
    kms: Arc<Kms>,
    shutdown: CancellationToken,
    server: Option<JoinHandle<()>>,
}

impl Aws {
    /// Starts serving.
    ///
    /// # Errors
    /// If the configuration cannot be used or the address cannot be listened on.
    pub async fn start(config: AwsConfig) -> Result<Self, StartError> {
        if config.account.len() != 12 || !config.account.chars().all(|c| c.is_ascii_digit()) {
            return Err(StartError::Account(config.account));
        }
        if config.regions.is_empty() {
            return Err(StartError::NoRegion);
        }
        if !config.listen.ip().is_loopback() {
            return Err(StartError::NotLoopback(config.listen));
        }
        let tls = acceptor(config.tls)?;
        let now = config.clock.now();
        let shutdown = CancellationToken::new();
        let ip = config.listen.ip();
        let sessions = Arc::new(Hub::new(config.clock.clone()));
        let gateway = Gateway::start(ip, tls.clone(), Arc::clone(&sessions), shutdown.clone())
            .await
            .map_err(|error| StartError::Listen(SocketAddr::new(ip, 0), error))?;
        let kms = Arc::new(Kms::default());
        for alias in config.kms_keys {
            kms.create(&alias);
        }
        let mut state = State {
            sessions,
            gateway: gateway.address(),
            documents: config.documents,
            kms: Arc::clone(&kms),
            account: Account::new(&config.account, &config.root),
            fleet: fleet::Fleet::new(config.vpcs, config.subnets),
            pushed: Default::default(),
            trail: Default::default(),
            faults: Default::default(),
            regions: config.regions,
        };
        for user in config.users {
            let name = user.name.clone();
            state
                .account
                .put_user(user, now)
                .map_err(|error| StartError::Policy(name, error))?;
        }
        for role in config.roles {
            let name = role.name.clone();
            state
                .account
                .put_role(role, now)
                .map_err(|error| StartError::Policy(name, error))?;
        }
        for instance in config.instances {
            state.fleet.put(instance, now)?;
        }
        let failed = |error| StartError::Listen(config.listen, error);
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            clock: config.clock,
            root_key: config.root.access_key,
            state: Mutex::new(state),
        });
        let server = tokio::spawn(server::serve(
            listener,
            tls,
            Arc::clone(&shared),
            shutdown.clone(),
        ));
        Ok(Self {
            address,
            shared,
            gateway,
            kms,
            shutdown,
            server: Some(server),
        })
    }

    /// Stops serving and waits until every connection is closed.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(server) = self.server.take() {
            // The only failure would be a panic, which the runtime has reported.
            let _ = server.await;
        }
        self.gateway.stopped().await;
    }

    /// `https://127.x.y.z:port`, for every service.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("https://{}", self.address)
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// A user as seeded, secrets included.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<User> {
        self.shared
            .with(|state| state.account.user(name).map(|user| user.seed.clone()))
    }

    /// The root user's access key, if it has one.
    #[must_use]
    pub fn root_key(&self) -> Option<AccessKey> {
        self.shared.root_key.clone()
    }

    /// `arn:aws:iam::ACCOUNT:mfa/NAME`.
    #[must_use]
    pub fn mfa_serial(&self, user: &str) -> String {
        self.shared.with(|state| state.account.mfa_serial(user))
    }

    /// The code that the user's device shows now. It may be used up already.
    #[must_use]
    pub fn totp(&self, user: &str) -> Option<String> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.device_of(user).map(|device| device.code(now)))
    }

    /// A code that is accepted now: the one that is shown, else the next one. `None` if both are used up.
    #[must_use]
    pub fn unused_code(&self, user: &str) -> Option<String> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.device_of(user)?.unused_code(now))
    }

    /// Creates a user; one of the same name is deleted first, so a new unique id makes somebody else of it.
    ///
    /// # Errors
    /// If a policy is malformed.
    pub fn put_user(&self, user: User) -> Result<(), MalformedPolicy> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.account.put_user(user, now))
    }

    /// Deletes a user with keys, sessions and device.
    pub fn remove_user(&self, name: &str) {
        self.shared.with(|state| state.account.remove_user(name));
    }

    /// Creates or replaces a role.
    ///
    /// # Errors
    /// If a policy is malformed or the trust policy names a user or role that does not exist.
    pub fn put_role(&self, role: Role) -> Result<(), MalformedPolicy> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.account.put_role(role, now))
    }

    /// Deletes a role; its sessions end.
    pub fn remove_role(&self, name: &str) {
        self.shared.with(|state| state.account.remove_role(name));
    }

    /// Ends a temporary credential before its time. False if there is none of that key id.
    pub fn expire_session(&self, access_key_id: &str) -> bool {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.expire(access_key_id, now))
    }

    /// Ends all temporary credentials of a user before their time.
    pub fn expire_sessions_of(&self, user: &str) {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.expire_all(user, now));
    }

    /// Adds or replaces an instance.
    ///
    /// # Errors
    /// If its Windows password cannot be encrypted.
    pub fn put_instance(&self, instance: Instance) -> Result<(), PasswordError> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.fleet.put(instance, now))
    }

    /// Changes an instance's state. False if there is none of that id.
    pub fn set_instance_state(&self, id: &str, state: InstanceState) -> bool {
        self.shared.with(|shared| shared.fleet.set_state(id, state))
    }

    /// Tells whether the instance's SSM Agent is connected. False if there is no such node.
    pub fn set_ssm_online(&self, id: &str, online: bool) -> bool {
        self.shared.with(|state| {
            let mut managed = false;
            state.fleet.change(id, |instance| {
                if let Some(node) = &mut instance.ssm {
                    (node.online, managed) = (online, true);
                }
            });
            managed
        })
    }

    /// Changes what version its SSM Agent says that it is. False if there is no such node.
    pub fn set_ssm_agent_version(&self, id: &str, version: &str) -> bool {
        self.shared.with(|state| {
            let mut managed = false;
            state.fleet.change(id, |instance| {
                if let Some(node) = &mut instance.ssm {
                    version.clone_into(&mut node.agent_version);
                    managed = true;
                }
            });
            managed
        })
    }

    /// Adds or replaces a session document of the account's own; that of the preferences too.
    pub fn put_document(&self, document: SessionDocument) {
        self.shared.with(|state| {
            state.documents.retain(|own| own.name != document.name);
            state.documents.push(document);
        });
    }

    /// Removes an instance. False if there is none of that id.
    pub fn remove_instance(&self, id: &str) -> bool {
        self.shared.with(|state| state.fleet.remove(id))
    }

    /// Where clients of SSM sessions connect.
    #[must_use]
    pub fn gateway_address(&self) -> SocketAddr {
        self.gateway.address()
    }

    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    pub(crate) fn kms(&self) -> &Arc<Kms> {
        &self.kms
    }

    /// How the message gateway and the SSM Agents behave.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        self.gateway.hub().knobs()
    }

    /// Changes that. Connections feel it at once, SSM Agents with their next session.
    pub fn change_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        self.gateway.hub().change_knobs(change);
    }

    /// Cuts data channels of one side, of one session or of all. Answers how many.
    pub fn cut(&self, side: Side, how: Cut, session: Option<&str>) -> usize {
        self.gateway.hub().cut(side, how, session)
    }

    /// Ends an SSM session from outside, with a text for its client. False if it does not run.
    pub fn end_session(&self, session: &str, output: &str) -> bool {
        self.gateway.hub().terminate(session, output)
    }

    /// Ids of SSM sessions that run, the oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<String> {
        let sessions = self.gateway.hub().list().into_iter();
        let running = sessions.filter(|session| session.ended.is_none());
        running.map(|session| session.id).collect()
    }

    /// What ends of data channels did that the protocol does not allow, oldest first.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.gateway.hub().complaints()
    }

    /// Switches a KMS key, by alias or id. False if there is none.
    pub fn enable_key(&self, name: &str, enabled: bool) -> bool {
        self.kms.enable(name, enabled)
    }

    /// Keys that SendSSHPublicKey put for this user of this instance and that are still honoured: for the
    /// `AuthorizedKeysCommand` of the lab's hosts.
    #[must_use]
    pub fn ssh_keys(&self, instance_id: &str, os_user: &str) -> Vec<PushedKey> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.pushed.live(instance_id, os_user, now))
    }

    /// Calls this with every key that is pushed from now on, before the push is answered. It must
    /// not call back.
    pub fn on_push(&self, listener: impl Fn(&PushedKey) + Send + 'static) {
        self.shared
            .with(|state| state.pushed.listeners.push(Box::new(listener)));
    }

    /// Every call so far, oldest first, as CloudTrail records.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.shared.with(|state| state.trail.events())
    }

    /// The records of one action.
    #[must_use]
    pub fn events_of(&self, action: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["eventName"] == action);
        events
    }

    pub fn clear_events(&self) {
        self.shared.with(|state| state.trail.clear());
    }

    /// Makes calls meet a fault from now on.
    pub fn inject(&self, rule: FaultRule) {
        self.shared.with(|state| state.faults.add(rule));
    }

    pub fn clear_faults(&self) {
        self.shared.with(|state| state.faults.clear());
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl std::fmt::Debug for Aws {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aws")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// TLS 1.3, and 1.2 as AWS's own endpoints still offer it.
fn acceptor(tls: Tls) -> Result<TlsAcceptor, StartError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let unusable = |error: rustls::Error| StartError::Certificate(error.to_string());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(tls.chain, tls.key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
