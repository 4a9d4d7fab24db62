//! An open session looked at again.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::Session;
use crate::identity::VerifiedPrincipal;
use crate::policy::Decision;
use crate::rules::Rules;

impl Session {
    /// Why policy no longer allows what the session does from these addresses, asked again by
    /// `who` where that was proved anew; `None` when it still does.
    pub(crate) fn objection(
        &self,
        rules: &Rules,
        who: Option<&VerifiedPrincipal>,
        sources: &[IpAddr],
    ) -> Option<String> {
        let now = OffsetDateTime::now_utc();
        let granted = self.grant.request();
        let target = match &granted.target {
            None => None,
            Some(target) => match (rules.target)(&target.id) {
                Some(current) => Some(current),
                None => return Some(format!("`{}` is no longer in the inventory", target.name)),
            },
        };
        let inner = self.state.inner();
        for source in sources {
            if let Err(denial) = (rules.admit)(who.unwrap_or(&granted.who), *source) {
                return Some(format!("you may not come in any more: {}", denial.message));
            }
            for grant in std::iter::once(&self.grant).chain(&inner) {
                let mut again = grant.again(now, *source, target.clone());
                if let Some(who) = who {
                    again.who = who.clone();
                }
                match (rules.decide)(&again) {
                    Decision::Allow(_) => {}
                    Decision::StepUp { .. } => {
                        return Some("policy wants a fresh MFA code for this now".to_owned());
                    }
                    Decision::Deny(denial) => {
                        return Some(format!("policy no longer allows this: {}", denial.message));
                    }
                }
            }
        }
        None
    }

    /// Tells the person, once, that the session's time is nearly over.
    pub(crate) fn warn(&self) {
        self.notice.send_if_modified(|notice| {
            let first = notice.is_none();
            if first {
                let left = (self.ends_at - OffsetDateTime::now_utc())
                    .whole_seconds()
                    .max(0);
                let minutes = (left + 59) / 60;
                *notice = Some(format!("this session ends in {minutes} minutes").into());
                tracing::info!(session = %self.id, minutes, "session ends soon");
            }
            first
        });
    }
}
