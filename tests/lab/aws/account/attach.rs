//! Policies that are attached while the account lives.

use super::Account;
use crate::aws::policy::{MalformedPolicy, Policy};

impl Account {
    /// Stores a managed policy. `None`: there is one of that name.
    pub(crate) fn create_policy(
        &mut self,
        name: &str,
        document: &str,
    ) -> Result<Option<String>, MalformedPolicy> {
        Policy::parse(document)?;
        let arn = format!("arn:aws:iam::{}:policy/{name}", self.id);
        if self.managed.contains_key(&arn) {
            return Ok(None);
        }
        let policy = (name.to_owned(), document.to_owned());
        self.managed.insert(arn.clone(), policy);
        Ok(Some(arn))
    }

    /// Attaches a managed policy to a user. False if there is no such policy or user.
    pub(crate) fn attach_to_user(&mut self, user: &str, arn: &str) -> bool {
        let Some((name, policy)) = self.managed_policy(arn) else {
            return false;
        };
        let Some(user) = self.users.get_mut(user) else {
            return false;
        };
        user.seed.policies.push(name);
        user.policies.push(policy);
        true
    }

    /// The same for a role.
    pub(crate) fn attach_to_role(&mut self, role: &str, arn: &str) -> bool {
        let Some((name, policy)) = self.managed_policy(arn) else {
            return false;
        };
        let Some(role) = self.roles.get_mut(role) else {
            return false;
        };
        role.seed.policies.push(name);
        role.policies.push(policy);
        true
    }

    fn managed_policy(&self, arn: &str) -> Option<((String, String), Policy)> {
        let (name, document) = self.managed.get(arn)?;
        // It was parsed when it was stored.
        let policy = Policy::parse(document).ok()?;
        Some(((name.clone(), document.clone()), policy))
    }
}
