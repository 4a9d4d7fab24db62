//! `postern login`: a code for a session that AWS knows carries MFA.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;

use crate::context::Context;

use super::IdentityError;
use super::aws::AwsProfile;
use super::code::{self, Source};
use super::secret::{Keys, Secret};
use super::sign::ClientKey;
use super::store::{Kept, RoleSession, Store};
use super::sts::{Sts, StsError, TemporaryKeys, now};

/// GetSessionToken's own bounds.
const SHORTEST: Duration = Duration::from_secs(15 * 60);
const LONGEST: Duration = Duration::from_secs(36 * 3600);
const USUAL: Duration = Duration::from_secs(12 * 3600);
/// A role session is assumed again that long before its end, in seconds.
const ROLE_MARGIN: i64 = 300;

/// What the command line may say about a login.
#[derive(Debug, Default)]
pub(crate) struct Wish<'a> {
    pub(crate) code: Option<&'a SecretString>,
    pub(crate) duration: Option<Duration>,
}

/// Logs in. The caller holds the store's lock.
pub(crate) async fn login(
    context: &Context,
    store: &Store<'_>,
    wish: Wish<'_>,
) -> Result<Kept, IdentityError> {
    if let Some(code) = wish.code {
        code::check_given(code)?;
    }
    let profile = aws_profile(context)?;
    let duration = duration(&wish, &profile)?;
    let keys = profile.long_term_keys(&context.environment)?;
    let sts = Sts::new(&profile, &keys)?;
    // Tells of wrong keys, a wrong clock and root before a code is burnt.
    let caller = sts.caller().await?;
    if caller.is_root() {
        return Err(IdentityError::Root(caller.account));
    }
    if !caller.is_user() {
        return Err(IdentityError::NotUser(caller.arn));
    }
    let serial = profile
        .mfa_serial
        .clone()
        .ok_or_else(|| IdentityError::NoDevice(profile.source.clone()))?;
    let place = store.prepare(duration).await?;
    let before = store.load().await.ok().flatten();
    let request = Request {
        profile: &profile,
        sts: &sts,
        serial: &serial,
        duration,
    };
    let last_used = before.map(|before| before.code_at);
    let (user, mfa_at) = request.spend_code(context, wish.code, last_used).await?;
    let mut kept = Kept {
        caller,
        serial,
        sts_host: profile.sts_host(),
        long_term_key_id: keys.access_key_id.clone(),
        mfa_at,
        code_at: mfa_at,
        user,
        role: None,
        client_key: Secret::from(STANDARD.encode(ClientKey::generate()?.pkcs8())),
        certificates: Vec::new(),
    };
    match assume(&profile, &kept).await {
        Ok(role) => kept.role = role,
        // The user session serves the agents all the same.
        Err(error) => context.printer.warning(format!("no role session: {error}")),
    }
    store.keep(&place, &kept).await?;
    Ok(kept)
}

/// What GetSessionToken is asked with, but for the code.
struct Request<'a> {
    profile: &'a AwsProfile,
    sts: &'a Sts,
    serial: &'a str,
    duration: Duration,
}

impl Request<'_> {
    /// The session, and when its code was given.
    async fn spend_code(
        &self,
        context: &Context,
        given: Option<&SecretString>,
        mut last_used: Option<i64>,
    ) -> Result<(TemporaryKeys, i64), IdentityError> {
        let mut repeated = false;
        loop {
            let (code, source) = code::fresh(context, self.profile, given, last_used).await?;
            let at = now();
            match self.sts.session(self.serial, &code, self.duration).await {
                // The program cannot know that its code was used elsewhere; the next one is free.
                Err(error) if error.is_code() && source == Source::Program && !repeated => {
                    repeated = true;
                    last_used = Some(at);
                }
                session => return Ok((session?, at)),
            }
        }
    }
}

/// The live session, or a login if somebody can be asked, or [`IdentityError::LoginNeeded`]. The
/// caller holds the store's lock. `true`: the login is new.
pub(crate) async fn session(
    context: &Context,
    store: &Store<'_>,
) -> Result<(Kept, bool), IdentityError> {
    match live(context, store).await? {
        Some(kept) => Ok((kept, false)),
        None => Ok((again(context, store).await?, true)),
    }
}

/// A login in the middle of another command: only for somebody at a terminal.
pub(crate) async fn again(context: &Context, store: &Store<'_>) -> Result<Kept, IdentityError> {
    if !context.may_ask {
        return Err(IdentityError::LoginNeeded(context.profile.clone()));
    }
    context.printer.note(format!(
        "no live MFA session for profile `{}`",
        context.profile
    ));
    login(context, store, Wish::default()).await
}

/// The session that was kept, while it lives and belongs to the profile as it is configured now.
pub(crate) async fn live(
    context: &Context,
    store: &Store<'_>,
) -> Result<Option<Kept>, IdentityError> {
    let Some(kept) = store.load().await?.filter(Kept::lives) else {
        return Ok(None);
    };
    // A profile that cannot be read (any more) does not end a session; another one does.
    Ok(match aws_profile(context) {
        Ok(profile) if !belongs(&kept, &profile) => None,
        _ => Some(kept),
    })
}

fn belongs(kept: &Kept, profile: &AwsProfile) -> bool {
    kept.sts_host == profile.sts_host()
        && profile
            .mfa_serial
            .as_ref()
            .is_none_or(|serial| *serial == kept.serial)
}

/// The role session, assumed again from the user session when it is over, or when its keys are
/// those that AWS said are `over`. `None`: the profile has no role. The caller holds the store's
/// lock.
pub(crate) async fn role_session(
    context: &Context,
    store: &Store<'_>,
    over: Option<&Keys>,
) -> Result<Option<RoleSession>, IdentityError> {
    let (mut kept, _) = session(context, store).await?;
    let profile = aws_profile(context)?;
    let wanted = profile.roles.last().map(|role| role.arn.as_str());
    let lives = kept
        .role
        .as_ref()
        .filter(|role| Some(role.arn.as_str()) == wanted)
        .filter(|role| {
            over.is_none_or(|over| over.access_key_id != role.session.keys.access_key_id)
        })
        .is_some_and(|role| role.session.ends_at > now() + ROLE_MARGIN);
    if !lives {
        kept.role = assume(&profile, &kept).await?;
        store.update(&kept).await?;
    }
    Ok(kept.role)
}

/// Assumes the profile's roles one after the other, the first from the user session.
async fn assume(profile: &AwsProfile, kept: &Kept) -> Result<Option<RoleSession>, StsError> {
    let mut keys = kept.user.keys.clone();
    let mut session = None;
    // The user's name in the role session's name, so that CloudTrail names the person.
    let name = kept.caller.arn.rsplit('/').next().unwrap_or("postern");
    let name: String = name.chars().take(64).collect();
    for role in &profile.roles {
        let assumed = Sts::new(profile, &keys)?.assume(role, &name).await?;
        keys = assumed.keys.clone();
        session = Some(RoleSession {
            arn: role.arn.clone(),
            session: assumed,
        });
    }
    Ok(session)
}

pub(crate) fn aws_profile(context: &Context) -> Result<AwsProfile, IdentityError> {
    Ok(AwsProfile::load(
        &context.environment,
        &context.profile,
        context.profile_named,
    )?)
}

fn duration(wish: &Wish<'_>, profile: &AwsProfile) -> Result<Duration, IdentityError> {
    let duration = wish
        .duration
        .or_else(|| {
            let seconds = u64::from(profile.session_seconds?);
            Some(Duration::from_secs(seconds))
        })
        .unwrap_or(USUAL);
    if (SHORTEST..=LONGEST).contains(&duration) {
        Ok(duration)
    } else {
        Err(IdentityError::Duration(duration.as_secs()))
    }
}
