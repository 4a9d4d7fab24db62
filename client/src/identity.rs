//! MFA-backed sessions and the client certificates that agents issue for them.
//!
//! ```text
//! aws (configuration) ─ code (six digits) ─ sts (session) ─ store (sealed; keyring) ─ enroll (certificate)
//! ```
//!
//! Long-term keys are read by [`login`] and [`step_up`] alone.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_proto::gateway::message::Denied;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::config::AgentProfile;
use crate::context::Context;

pub mod aws;
pub mod code;
pub mod enroll;
mod error;
pub mod keyring;
mod login;
pub(crate) mod sealed;
pub mod secret;
pub mod sign;
pub mod store;
pub mod sts;
pub mod terminal;
pub(crate) mod trust;

pub use error::IdentityError;
pub use keyring::{Memory, Ring};
pub use store::{Certificate, Kept, RoleSession};

use enroll::{Enrolment, FreshAct, parse_chain};
use login::Wish;
use sign::ClientKey;
use store::Store;
use sts::now;

/// A certificate is renewed when a sixth of its time is left, and at least that many seconds
/// before its end.
const RENEWAL_MARGIN: i64 = 60;

/// A certificate for one agent, with its key.
pub struct ClientCertificate {
    /// Leaf first, then the agent's intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// Seconds since 1970 when it ends.
    pub not_after: i64,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Logs in with a code and keeps the session, in place of one that may live.
pub async fn login(
    context: &Context,
    code: Option<&SecretString>,
    duration: Option<Duration>,
) -> Result<Kept, IdentityError> {
    let store = Store::new(context);
    let _lock = store.lock().await?;
    login::login(context, &store, Wish { code, duration }).await
}

/// Forgets the context's profile, or every profile. Returns the profiles that were forgotten.
pub async fn logout(context: &Context, all: bool) -> Result<Vec<String>, IdentityError> {
    let profiles = if all {
        store::profiles(context)
    } else {
        vec![context.profile.clone()]
    };
    let mut forgotten = Vec::new();
    for profile in profiles {
        let store = store::of(context, &profile);
        let _lock = store.lock().await?;
        if store.wipe().await? {
            forgotten.push(profile);
        }
    }
    Ok(forgotten)
}

/// What is kept for the context's profile while it lives, and in which keyring its key is.
pub async fn kept(context: &Context) -> Result<Option<(Kept, Ring)>, IdentityError> {
    let store = Store::new(context);
    let Some(ring) = store.ring()? else {
        return Ok(None);
    };
    Ok(login::live(context, &store).await?.map(|kept| (kept, ring)))
}

/// Credentials for EC2 and SSM calls: the role session, assumed again without a code when it is
/// over, else the user session when the profile has no role.
pub async fn call_keys(context: &Context) -> Result<sts::TemporaryKeys, IdentityError> {
    call_keys_but(context, None).await
}

/// The same, when AWS no longer takes `over` though its time is not up: a role is assumed again,
/// unless another `postern` did so already.
pub async fn call_keys_anew(
    context: &Context,
    over: &secret::Keys,
) -> Result<sts::TemporaryKeys, IdentityError> {
    call_keys_but(context, Some(over)).await
}

async fn call_keys_but(
    context: &Context,
    over: Option<&secret::Keys>,
) -> Result<sts::TemporaryKeys, IdentityError> {
    let store = Store::new(context);
    let _lock = store.lock().await?;
    match login::role_session(context, &store, over).await? {
        Some(role) => Ok(role.session),
        None => Ok(login::session(context, &store).await?.0.user),
    }
}

/// The AWS profile that the context names.
pub fn aws_profile(context: &Context) -> Result<aws::AwsProfile, IdentityError> {
    login::aws_profile(context)
}

/// A certificate for `agent`: the kept one while it lives, else a new enrolment (which asks for
/// a code only when no user session lives and a terminal is there).
pub async fn certified(
    context: &Context,
    agent: &AgentProfile,
) -> Result<ClientCertificate, IdentityError> {
    let store = Store::new(context);
    let kept = login::live(context, &store).await?;
    if let Some(certificate) = kept.as_ref().and_then(|kept| usable(kept, agent, true)) {
        return Ok(certificate);
    }
    let _lock = store.lock().await?;
    // Another `postern` may have enrolled while this one waited for its turn.
    let kept = login::live(context, &store).await?;
    if let Some(certificate) = kept.as_ref().and_then(|kept| usable(kept, agent, true)) {
        return Ok(certificate);
    }
    let renewed = renew(context, &store, agent).await;
    match (
        renewed,
        kept.as_ref().and_then(|kept| usable(kept, agent, false)),
    ) {
        (Ok(certificate), _) => Ok(certificate),
        // The old one lives a little longer; the agent may be back by then.
        (Err(IdentityError::Enrol(enroll::EnrolError::Unreachable { .. })), Some(old)) => Ok(old),
        (Err(error), _) => Err(error),
    }
}

/// A new certificate, whatever is kept: for when the agent said that the kept one will not do
/// (`DenyCode::Certificate`).
pub async fn certified_anew(
    context: &Context,
    agent: &AgentProfile,
) -> Result<ClientCertificate, IdentityError> {
    let store = Store::new(context);
    let _lock = store.lock().await?;
    renew(context, &store, agent).await
}

/// Answers a step-up denial: asks for a code and has the agent approve that one `Open`.
pub async fn step_up(
    context: &Context,
    agent: &AgentProfile,
    certificate: &ClientCertificate,
    denied: &Denied,
) -> Result<(), IdentityError> {
    let incomplete = || IdentityError::StepUpIncomplete(agent.id.clone());
    let session = denied.session.ok_or_else(incomplete)?;
    let mut open_hash = [0; 32];
    hex::decode_to_slice(
        denied.open_hash.as_deref().unwrap_or_default(),
        &mut open_hash,
    )
    .map_err(|_| incomplete())?;
    let profile = login::aws_profile(context)?;
    let keys = profile.long_term_keys(&context.environment)?;
    let serial = profile
        .mfa_serial
        .clone()
        .ok_or_else(|| IdentityError::NoDevice(profile.source.clone()))?;
    let client_key = ClientKey::from_pkcs8(certificate.key.secret_der())?;
    let store = Store::new(context);
    let _lock = store.lock().await?;
    let mut kept = login::live(context, &store).await?;
    context.printer.note(format!(
        "agent `{}` wants a fresh MFA code: {}",
        agent.id, denied.message
    ));
    let last_used = kept.as_ref().map(|kept| kept.code_at);
    let (code, _) = code::fresh(context, &profile, None, last_used).await?;
    if let Some(kept) = &mut kept {
        // Burnt or not: nobody offers it a second time.
        kept.code_at = now();
        store.update(kept).await?;
    }
    let sts_host = profile.sts_host();
    let enrolment = Enrolment {
        agent,
        sts_host: &sts_host,
        keys: &keys,
        client_key: &client_key,
        claimed_end: None,
        serial: &serial,
        step_up: Some(FreshAct {
            code: &code,
            session,
            open_hash,
        }),
    };
    let until = enrolment.approve().await?;
    let lapses = crate::output::moment(until);
    context.printer.detail(format!(
        "agent `{}` approved this one session until {lapses}",
        agent.id
    ));
    Ok(())
}

/// Enrols with the user session; a session that AWS or the agent no longer takes is replaced by
/// one login, never more.
async fn renew(
    context: &Context,
    store: &Store<'_>,
    agent: &AgentProfile,
) -> Result<ClientCertificate, IdentityError> {
    let (mut kept, new) = login::session(context, store).await?;
    match enrol(&kept, agent).await {
        Err(IdentityError::Enrol(error)) if error.wants_login() && !new => {
            context.printer.note(error.to_string());
            kept = login::again(context, store).await?;
            let certificate = enrol(&kept, agent).await?;
            remember(store, &mut kept, certificate, agent).await
        }
        enrolled => remember(store, &mut kept, enrolled?, agent).await,
    }
}

async fn enrol(kept: &Kept, agent: &AgentProfile) -> Result<Certificate, IdentityError> {
    let client_key = client_key(kept)?;
    let issued = Enrolment {
        agent,
        sts_host: &kept.sts_host,
        keys: &kept.user.keys,
        client_key: &client_key,
        claimed_end: Some(kept.user.ends_at),
        serial: &kept.serial,
        step_up: None,
    }
    .issue()
    .await?;
    Ok(Certificate {
        agent: agent.id.to_string(),
        pin: pin(agent),
        chain: issued.chain,
        not_before: issued.not_before,
        not_after: issued.not_after,
    })
}

async fn remember(
    store: &Store<'_>,
    kept: &mut Kept,
    certificate: Certificate,
    agent: &AgentProfile,
) -> Result<ClientCertificate, IdentityError> {
    kept.certificates
        .retain(|old| old.agent != certificate.agent && old.not_after > now());
    kept.certificates.push(certificate);
    store.update(kept).await?;
    usable(kept, agent, false).ok_or_else(|| IdentityError::Certificate(agent.id.clone()))
}

/// The kept certificate for an agent: with time to spare (`early`), or living at all.
fn usable(kept: &Kept, agent: &AgentProfile, early: bool) -> Option<ClientCertificate> {
    let pin = pin(agent);
    let certificate = kept
        .certificates
        .iter()
        .find(|kept| kept.agent == agent.id.as_str() && kept.pin == pin)?;
    let sixth = (certificate.not_after - certificate.not_before) / 6;
    let margin = if early { sixth.max(RENEWAL_MARGIN) } else { 0 };
    if certificate.not_after - margin <= now() {
        return None;
    }
    Some(ClientCertificate {
        chain: parse_chain(&certificate.chain)?,
        key: client_key(kept).ok()?.to_tls(),
        not_after: certificate.not_after,
    })
}

fn client_key(kept: &Kept) -> Result<ClientKey, IdentityError> {
    let pkcs8 = STANDARD
        .decode(kept.client_key.expose())
        .map(Zeroizing::new)
        .map_err(|_| sign::SignError::Key("it is damaged".to_owned()))?;
    Ok(ClientKey::from_pkcs8(&pkcs8)?)
}

/// Ties a certificate to the CA that was pinned when it was issued: another agent of the same
/// name gets another one.
fn pin(agent: &AgentProfile) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &agent.ca);
    hex::encode(digest)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
