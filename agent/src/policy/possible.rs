//! What could be allowed at all, before port and host are known: a certificate for the target
//! carries no permission that policy would never use.

use cedar_policy::Effect;
use postern_proto::names::Assurance;

use super::decide::Outcome;
use super::load::{Policies, Rule};
use super::question::{Facts, Question};
use super::{Action, Request};

impl Policies {
    /// Whether the request would be allowed now, for `tunnel` and `reverse` with some port and
    /// host. What cannot be told without these counts as possible: each channel is decided again
    /// when it opens, and nothing opens because of this answer alone. A fresh code cannot be given
    /// inside a session, so what needs one is not possible.
    pub fn possible(&self, request: &Request) -> bool {
        let facts = Facts::of(request);
        match request.action {
            Action::Tunnel | Action::Reverse => self.possible_somewhere(&facts),
            _ => matches!(self.outcome(&facts), Outcome::Allowed(_)),
        }
    }

    fn possible_somewhere(&self, facts: &Facts<'_>) -> bool {
        if facts.assurance == Assurance::None {
            return false;
        }
        // The question must have a port; parts that read it are not asked.
        let question = Question::new(&Facts {
            port: Some(1),
            host: None,
            ..*facts
        });
        let Ok(question) = question else {
            return false;
        };
        let of = |effect| {
            self.rules
                .values()
                .filter(move |rule| rule.effect == effect)
        };
        of(Effect::Permit).any(|rule| rule.may_hold(&question))
            && !of(Effect::Forbid).any(|rule| rule.must_hold(&question))
    }
}

impl Rule {
    /// Whether it holds on some port and host, as far as the rest tells.
    fn may_hold(&self, question: &Question) -> bool {
        self.is_about(question)
            && self.parts.principal.is_true(question)
            && self
                .parts
                .conditions
                .iter()
                .all(|part| part.reads_destination || part.is_true(question))
    }

    /// Whether it holds on every port and host.
    fn must_hold(&self, question: &Question) -> bool {
        self.may_hold(question)
            && !self
                .parts
                .conditions
                .iter()
                .any(|part| part.reads_destination)
    }
}
