//! The evidence of an SSM session: what is claimed of it when it begins.

use postern_proto::names::TargetId;

use super::target::Node;
use super::{Session, Ssm, Start};
use crate::context::Context;
use crate::error::Error;
use crate::evidence::{Carries, Evidence, Facts, Record, SsmSession};
use crate::identity::{self, IdentityError};

/// What AWS and CloudTrail keep as the reason of every session of ours.
pub fn reason() -> String {
    concat!("postern ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Begins the record of a session that AWS has begun and that carries nothing yet. On an error the
/// caller drops the session, and with that ends it.
pub async fn open(
    context: &Context,
    ssm: &Ssm,
    node: &Node,
    session: &Session,
    start: &Start,
    carries: Carries,
) -> Result<Record, Error> {
    let (kept, _) = identity::kept(context)
        .await?
        .ok_or_else(|| IdentityError::LoginNeeded(context.profile.clone()))?;
    let target: TargetId = node
        .id
        .parse()
        .map_err(|error| Error::failed(format!("SSM names a node `{}`: {error}", node.id)))?;
    let facts = Facts {
        target,
        name: node.name.clone(),
        caller: kept.caller,
        mfa_at: kept.mfa_at,
        ssm: ssm_session(ssm, session, start),
        carries,
    };
    Ok(Evidence::open(context, facts).await?)
}

/// What AWS knows a session by.
pub fn ssm_session(ssm: &Ssm, session: &Session, start: &Start) -> SsmSession {
    SsmSession {
        id: session.id().to_owned(),
        document: session.document().to_owned(),
        region: ssm.region().to_owned(),
        reason: Some(start.reason.clone()),
        request_id: session.request_id().map(str::to_owned),
    }
}
