//! Step-up approvals: one key, one `Open`, one session, 60 seconds, once.

use std::collections::HashMap;
use std::sync::Mutex;

use postern_proto::names::{Principal, SessionId};

use super::VerifiedPrincipal;

/// Seconds that an approval waits.
const LIFETIME: i64 = 60;
/// Approvals that wait at one time.
const CAPACITY: usize = 4096;
/// The same, for one principal.
const CAPACITY_EACH: usize = 16;

/// A fresh MFA act that waits to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// Who gave the code.
    pub principal: Principal,
    /// Ids of the STS requests that attested it.
    pub aws_request_ids: Vec<String>,
    /// Seconds since 1970 when the code was given.
    pub given_at: i64,
}

/// Why an approval cannot be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many approvals are waiting")]
pub struct ApprovalFault;

/// All approvals that wait. Bounded.
#[derive(Debug, Default)]
pub struct Approvals {
    waiting: Mutex<HashMap<Key, Approval>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    key_hash: [u8; 32],
    open_hash: [u8; 32],
    session: SessionId,
}

impl Approvals {
    /// Holds an approval, and returns when it lapses (seconds since 1970).
    pub(super) fn hold(
        &self,
        key_hash: [u8; 32],
        open_hash: [u8; 32],
        session: SessionId,
        approval: Approval,
    ) -> Result<i64, ApprovalFault> {
        let now = approval.given_at;
        let key = Key {
            key_hash,
            open_hash,
            session,
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        waiting.retain(|_, held| lives(held, now));
        let same = waiting
            .values()
            .filter(|held| held.principal == approval.principal);
        if waiting.len() >= CAPACITY || same.count() >= CAPACITY_EACH {
            return Err(ApprovalFault);
        }
        waiting.insert(key, approval);
        Ok(now.saturating_add(LIFETIME))
    }

    /// Takes the approval that `who` has for the `Open` with this hash
    /// ([`postern_proto::gateway::message::open_hash`]), in the session that the denial named.
    /// It is gone then, whatever comes of it.
    pub fn take(
        &self,
        who: &VerifiedPrincipal,
        open_hash: &[u8; 32],
        session: SessionId,
        now: i64,
    ) -> Option<Approval> {
        let key = Key {
            key_hash: *who.key_hash(),
            open_hash: *open_hash,
            session,
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(|e| e.into_inner());
        let held = waiting.remove(&key)?;
        // The long-term keys that gave the code are the certificate holder's own.
        (lives(&held, now) && held.principal == *who.principal()).then_some(held)
    }
}

fn lives(approval: &Approval, now: i64) -> bool {
    // A clock that was set back must not prolong anything.
    (approval.given_at..=approval.given_at.saturating_add(LIFETIME)).contains(&now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::Says;

    const NOW: i64 = 1_790_000_000;

    fn who(id: &str, key: u8) -> VerifiedPrincipal {
        Says {
            user_id: id,
            key_hash: [key; 32],
            ..Says::default()
        }
        .verified()
    }

    const ALICE: &str = "AIDAALICEALICEALICE1";

    fn held() -> (Approvals, SessionId) {
        let approvals = Approvals::default();
        let session = SessionId::from_parts(1, 1);
        approvals
            .hold([1; 32], [2; 32], session, approval(ALICE, NOW))
            .unwrap();
        (approvals, session)
    }

    fn approval(id: &str, given_at: i64) -> Approval {
        Approval {
            principal: who(id, 0).principal,
            aws_request_ids: vec!["r".to_owned()],
            given_at,
        }
    }

    #[test]
    fn an_approval_works_once() {
        let (approvals, session) = held();
        let alice = who(ALICE, 1);
        assert!(
            approvals
                .take(&alice, &[2; 32], session, NOW + 60)
                .is_some()
        );
        assert!(
            approvals
                .take(&alice, &[2; 32], session, NOW + 60)
                .is_none()
        );
    }

    #[test]
    fn an_approval_lapses_after_a_minute_and_not_by_a_clock_set_back() {
        let (approvals, session) = held();
        assert!(
            approvals
                .take(&who(ALICE, 1), &[2; 32], session, NOW + 61)
                .is_none()
        );
        let (approvals, session) = held();
        assert!(
            approvals
                .take(&who(ALICE, 1), &[2; 32], session, NOW - 1)
                .is_none()
        );
    }

    #[test]
    fn an_approval_is_for_one_key_one_open_one_session_and_one_user() {
        let (approvals, session) = held();
        let other = SessionId::from_parts(1, 2);
        assert!(
            approvals
                .take(&who(ALICE, 9), &[2; 32], session, NOW)
                .is_none()
        );
        assert!(
            approvals
                .take(&who(ALICE, 1), &[9; 32], session, NOW)
                .is_none()
        );
        assert!(
            approvals
                .take(&who(ALICE, 1), &[2; 32], other, NOW)
                .is_none()
        );
        assert!(
            approvals
                .take(&who("AIDABOBBOBBOBBOBBOB1", 1), &[2; 32], session, NOW)
                .is_none()
        );
    }

    #[test]
    fn waiting_approvals_are_bounded_and_make_room_when_they_lapse() {
        let approvals = Approvals::default();
        for number in 0..CAPACITY_EACH {
            let session = SessionId::from_parts(1, number as u128);
            let held = approvals.hold([1; 32], [2; 32], session, approval(ALICE, NOW));
            assert!(held.is_ok());
        }
        let session = SessionId::from_parts(2, 0);
        let hold = |at| approvals.hold([1; 32], [2; 32], session, approval(ALICE, at));
        assert_eq!(hold(NOW), Err(ApprovalFault));
        assert!(hold(NOW + 61).is_ok());
    }
}
