//! The agent from start to end, as a checklist: evidence, policy, inventory, trust, attestation,
//! listeners; then signals; then an orderly stop.

mod chronicle;
mod doors;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::assemble::Core;
use crate::aws::AwsSettings;
use crate::config::{Config, LoginMethod};
use crate::evidence::{self, Evidence};
use crate::identity::attestation::{Attestation, AttestationState};
use crate::identity::{Approvals, DenyHook, Enroller, EnrollerParts, PeerTrust, Record, StsClient};
use crate::inventory::{Ec2Settings, Inventory, InventorySettings, TargetLogin};
use crate::keys::Keys;
use crate::limits::{Ceilings, Limits};
use crate::pipe::Patience;
use crate::policy::PolicyStore;
use crate::server::Server;
use crate::session::Lifetimes;
use crate::socket;
use crate::tls::TlsSettings;
use crate::{health, http};
use chronicle::Chronicle;

/// How long an idle session without a step-up waits for a further pipe.
const LINGER: Duration = Duration::from_secs(60);

/// Serves until SIGTERM or SIGINT. Errors are those of the start: what fails later is told on
/// `/readyz` and in the log, and ends no more than it must.
pub async fn run(config: Config, keys: Keys) -> anyhow::Result<()> {
    // Before anything counts.
    health::recorder();
    let (config, keys) = (Arc::new(config), Arc::new(keys));
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();

    let evidence = open_evidence(&config, &keys).await?;
    let policy = PolicyStore::open(&config.policy)
        .map_err(|error| hinted("policy", &error, error.hint()))?;
    let (inventory, refresher) = Inventory::open(inventory_settings(&config))
        .await
        .map_err(|error| hinted("inventory", &error, error.hint()))?;
    tasks.spawn(Arc::clone(&policy).run(stop.clone()));
    tasks.spawn(refresher.run(stop.clone()));

    let own = keys.client_ca.certificate().clone();
    let hook = deny_hook(Arc::clone(&policy));
    let trust = Arc::new(PeerTrust::load(&config, &own, Some(hook))?);
    let tls = Arc::new(TlsSettings::new(
        &keys.server_chain,
        &keys.server_key,
        Arc::clone(&trust),
    )?);

    tasks.spawn(Arc::clone(&trust).run(Arc::clone(&config), own, stop.clone()));

    let record = record(evidence.clone());
    let chronicle = Chronicle::begin(&policy, Arc::clone(&record)).await?;
    tasks.spawn(until(stop.clone(), chronicle.run()));
    let check_again = Arc::new(Notify::new());
    let (attestation, checker) =
        attest(&config, Arc::clone(&record), Arc::clone(&check_again)).await?;
    if let Some(keep) = config.evidence.retention {
        tasks.spawn(until(stop.clone(), evidence.clone().run_retention(keep)));
    }
    tasks.spawn(until(stop.clone(), checker));
    tasks.spawn(until(stop.clone(), health::tidy()));

    let listener = bind(config.listen)?;
    let health_listener = bind(config.health_listen)?;
    let approvals = Arc::new(Approvals::default());
    let parts = EnrollerParts {
        sts: StsClient::new(&config.sts)?,
        ca: Arc::clone(&keys.client_ca),
        trust: Arc::clone(&trust),
        approvals: Arc::clone(&approvals),
        attestation: attestation.clone(),
        record,
    };
    let enroller = Arc::new(Enroller::new(&config, parts));

    let own_addresses = [listener.local_addr()?, health_listener.local_addr()?];
    let doors = doors::Parts {
        config: Arc::clone(&config),
        keys: Arc::clone(&keys),
        approvals,
        evidence: evidence.clone(),
        own_addresses: own_addresses.to_vec(),
        troubles: troubles(&policy, &inventory, &trust, attestation),
    };
    let changes = changes(&mut tasks, &stop, &policy, &inventory, &trust);
    let core = Core::new(
        evidence.clone(),
        rules::rules(
            Arc::clone(&trust),
            Arc::clone(&policy),
            Arc::clone(&inventory),
            changes,
        ),
        doors.doors().await?,
        Limits::new(ceilings(&config)),
        Lifetimes {
            grant: config.session.grant,
            detach: config.session.detach,
            linger: LINGER,
        },
        Patience::default(),
    );
    tasks.spawn(health::serve(
        Arc::clone(&core),
        health_listener,
        stop.clone(),
    ));
    tasks.spawn(reload(
        stop.clone(),
        config.clone(),
        keys.clone(),
        trust,
        policy,
        inventory,
        check_again,
    ));
    let server = Server {
        core: Arc::clone(&core),
        tls,
        enroll: Arc::new(move |stream, source| {
            let enroller = Arc::clone(&enroller);
            async move { enroller.serve_tls(stream, source).await }.boxed()
        }),
        http: http::Api::new(Arc::clone(&core)),
        drain: config.limits.drain,
    };
    tracing::info!(agent = %config.id, listen = %own_addresses[0], health = %own_addresses[1],
        "serving");
    server.serve(listener, until_told(stop.clone())?).await;

    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a background task failed");
        }
    }
    evidence
        .shutdown()
        .await
        .context("the audit log was not closed properly")?;
    tracing::info!("stopped");
    Ok(())
}

/// An error of a part that keeps its hint beside it, as `main` tells it.
fn hinted(part: &str, error: &dyn std::fmt::Display, hint: Option<String>) -> anyhow::Error {
    match hint {
        Some(hint) => anyhow::anyhow!("{part}: {error}\nhint: {hint}"),
        None => anyhow::anyhow!("{part}: {error}"),
    }
}

/// Opening reads the whole log: not on a runtime thread.
async fn open_evidence(config: &Config, keys: &Keys) -> anyhow::Result<Evidence> {
    let settings = evidence::Settings {
        previous_key: keys
            .previous_log_key
            .as_ref()
            .map(|key| key.text().to_owned().into()),
        free_floor: config.evidence.free_floor,
        session_quota: config.evidence.session_quota,
        principal_quota: config.evidence.principal_quota,
        record_input: config.evidence.record_input,
        bulk_programs: config.evidence.bulk_programs.clone(),
        ..evidence::Settings::new(
            config.evidence_store(),
            config.id.clone(),
            keys.log_key.text().to_owned().into(),
            config.evidence.recipients.clone(),
        )
    };
    let (evidence, startup) = tokio::task::spawn_blocking(move || Evidence::open(settings))
        .await?
        .map_err(|error| hinted("evidence", &error, error.hint()))?;
    tracing::info!(
        entries = startup.entries,
        kept = startup.kept,
        interrupted = startup.interrupted.len(),
        "audit log opened"
    );
    for warning in startup.warnings {
        tracing::warn!("{warning}");
    }
    Ok(evidence)
}

pub(crate) fn inventory_settings(config: &Config) -> InventorySettings {
    InventorySettings {
        file: config.inventory.file.clone(),
        ec2: config.inventory.ec2.as_ref().map(|ec2| Ec2Settings {
            regions: ec2.regions.clone(),
            aws: AwsSettings {
                endpoint_url: ec2.endpoint_url.clone(),
                ca_bundle: ec2.ca_bundle.clone(),
                credentials: None,
            },
            login: match ec2.login {
                LoginMethod::Certificate => TargetLogin::Certificate,
                LoginMethod::InstanceConnect => TargetLogin::InstanceConnect,
            },
            refresh: ec2.refresh,
        }),
    }
}

/// A `forbid` on a user or a certificate bars both at once, from enrolment on.
fn deny_hook(policy: Arc<PolicyStore>) -> DenyHook {
    Arc::new(move |principal, serial| {
        let serial = (!serial.is_empty()).then_some(serial);
        // The source is decided with each request; an unspecified one is on nobody's list.
        let nowhere = std::net::Ipv4Addr::UNSPECIFIED.into();
        let now = OffsetDateTime::now_utc();
        let denial = policy
            .current()
            .admit(principal, serial, nowhere, now)
            .err()?;
        Some(denial.message)
    })
}

fn record(evidence: Evidence) -> Record {
    Arc::new(move |event| {
        let evidence = evidence.clone();
        async move {
            evidence
                .append(event)
                .await
                .map(drop)
                .map_err(|error| error.to_string())
        }
        .boxed()
    })
}

async fn attest(
    config: &Config,
    record: Record,
    again: Arc<Notify>,
) -> anyhow::Result<(
    watch::Receiver<AttestationState>,
    impl Future<Output = ()> + Send + 'static,
)> {
    let attestation = Attestation::new(config).await?;
    let sender = Attestation::channel();
    let receiver = sender.subscribe();
    Ok((receiver, async move {
        attestation.run(sender, record, &again).await
    }))
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    socket::listen(address).with_context(|| format!("cannot listen on {address}"))
}

fn troubles(
    policy: &PolicyStore,
    inventory: &Inventory,
    trust: &PeerTrust,
    attestation: watch::Receiver<AttestationState>,
) -> Vec<crate::doors::Trouble> {
    let (policy, inventory, trust) = (policy.trouble(), inventory.trouble(), trust.trouble());
    vec![
        Arc::new(move || policy.borrow().as_ref().map(|why| format!("policy: {why}"))),
        Arc::new(move || {
            inventory
                .borrow()
                .as_ref()
                .map(|why| format!("inventory: {why}"))
        }),
        Arc::new(move || trust.borrow().as_ref().map(|why| format!("trust: {why}"))),
        Arc::new(move || match &*attestation.borrow() {
            AttestationState::Open => None,
            AttestationState::Closed(why) => Some(format!("enrolment is closed: {why}")),
        }),
    ]
}

/// Counts up whenever policy, inventory, deny list or trusted agents become other ones.
fn changes(
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
    policy: &PolicyStore,
    inventory: &Inventory,
    trust: &PeerTrust,
) -> watch::Receiver<u64> {
    let (mut policies, mut targets) = (policy.subscribe(), inventory.subscribe());
    let mut trusted = trust.subscribe();
    let count = watch::Sender::new(0);
    let receiver = count.subscribe();
    tasks.spawn(until(stop.clone(), async move {
        loop {
            let changed = tokio::select! {
                changed = policies.changed() => changed,
                changed = targets.changed() => changed,
                changed = trusted.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            count.send_modify(|count| *count += 1);
        }
    }));
    receiver
}

fn ceilings(config: &Config) -> Ceilings {
    let limits = &config.limits;
    Ceilings {
        connections: limits.connections,
        unauthenticated: limits.unauthenticated,
        unauthenticated_per_address: limits.unauthenticated_per_address,
        enrollments: limits.enrollments,
        enrollments_per_address: limits.enrollments_per_address,
        pipes_per_principal: limits.pipes_per_principal,
        sessions_per_principal: limits.sessions_per_principal,
    }
}

/// SIGHUP: policy, inventory, deny list and trusted agents are read again, and the attestation
/// role is checked.
async fn reload(
    stop: CancellationToken,
    config: Arc<Config>,
    keys: Arc<Keys>,
    trust: Arc<PeerTrust>,
    policy: Arc<PolicyStore>,
    inventory: Arc<Inventory>,
    check_again: Arc<Notify>,
) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else {
        tracing::error!("SIGHUP cannot be caught");
        return;
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangup.recv() => {}
        }
        inventory.refresh();
        check_again.notify_one();
        if let Err(error) = policy.reload() {
            tracing::error!(%error, "policy: the old one stays");
        }
        if let Err(error) = trust.reload(&config, keys.client_ca.certificate()) {
            tracing::error!(%error, "deny list and trusted agents: the old ones stay");
        }
    }
}

/// Cancelled at SIGTERM or SIGINT.
fn until_told(stop: CancellationToken) -> anyhow::Result<CancellationToken> {
    let told = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let teller = told.clone();
    // Ends with `stop` at the latest.
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop.cancelled() => {}
        }
        teller.cancel();
    });
    Ok(told)
}
