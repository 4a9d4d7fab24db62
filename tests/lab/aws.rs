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
mod config;
mod control;
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

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use clock::Clock;
pub use config::{AwsConfig, StartError, Tls};
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
use config::acceptor;
use dispatch::State;

use crate::ssm::{Gateway, Hub};

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
