//! Writing a claim: wrapped as the agent saw it, whole, and once.

use postern_proto::audit::event::{Event, Fact, Source};
use postern_proto::audit::ocsf::{self, Place};
use postern_proto::names::AgentId;

use super::claims::ClaimError;
use super::{Evidence, EvidenceError, VERSION};

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is durable now.
    Now,
    /// The log had it before.
    Before,
}

/// Why a claim was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTaken {
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

impl Evidence {
    /// Appends a claim, wrapped in `event` as the agent saw it: once, durable when this returns.
    pub(crate) async fn claim(&self, event: Event) -> Result<Taken, NotTaken> {
        let (Fact::Claimed(claim), Some(session), Some(actor)) =
            (&event.fact, event.session, &event.actor)
        else {
            return Err(EvidenceError::Failed("not a claim".into()).into());
        };
        self.admit()?;
        let bytes = self.fits(&event)?;
        let claims = &self.shared.claims;
        let owner = actor.principal.key();
        let Some(turn) = claims.admit(&owner, session, claim, bytes)? else {
            return Ok(Taken::Before);
        };
        // Whoever asks may hang up meanwhile: what is written is followed all the same, or it
        // would be taken once more.
        let evidence = self.clone();
        let written = tokio::spawn(async move {
            evidence.append(event.clone()).await?;
            evidence.shared.claims.follow(&event, bytes);
            drop(turn);
            metrics::counter!("postern_claims_total").increment(1);
            Ok::<_, EvidenceError>(Taken::Now)
        });
        let written = written.await.map_err(|_| self.closed())?;
        Ok(written?)
    }

    /// Bytes of the entry that it will be; nothing of a claim is cut.
    fn fits(&self, event: &Event) -> Result<u64, ClaimError> {
        let origin = self.vkey().split('+').next().unwrap_or_default();
        let origin: AgentId = origin.parse().map_err(|_| ClaimError::TooLong)?;
        let place = Place {
            origin: &origin,
            sequence: u64::MAX,
            version: VERSION,
            access: None,
            source: Source::Agent,
        };
        // What a client claims it sealed itself.
        let leaf = ocsf::encode(event, place, &mut |_| {
            Err("nothing is sealed here".to_owned())
        })
        .map_err(|_| ClaimError::TooLong)?;
        match ocsf::decode(&leaf, &[]) {
            Ok(decoded) if !decoded.truncated => Ok(leaf.len() as u64),
            _ => Err(ClaimError::TooLong),
        }
    }
}
