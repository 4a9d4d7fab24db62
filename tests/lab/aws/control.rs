//! The handle of whoever runs the emulated AWS: its account, instances and sessions, and what was seen of them.

use serde_json::Value;

use super::Aws;
use super::faults::FaultRule;
use super::fleet::PasswordError;
use super::instance_connect::PushedKey;
use super::policy::MalformedPolicy;
use super::seed::{AccessKey, Instance, InstanceState, Role, User};
use crate::ssm::{Cut, Knobs, SessionDocument, Side};

impl Aws {
    /// A user as seeded, secrets included.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<User> {
        self.shared
            .with(|state| state.account.user(name).map(|user| user.seed.clone()))
    }

    /// The root user's access key, if it has one.
    #[must_use]
    pub fn root_key(&self) -> Option<AccessKey> {
        self.shared.root_key.clone()
    }

    /// `arn:aws:iam::ACCOUNT:mfa/NAME`.
    #[must_use]
    pub fn mfa_serial(&self, user: &str) -> String {
        self.shared.with(|state| state.account.mfa_serial(user))
    }

    /// The code that the user's device shows now. It may be used up already.
    #[must_use]
    pub fn totp(&self, user: &str) -> Option<String> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.device_of(user).map(|device| device.code(now)))
    }

    /// A code that is accepted now: the one that is shown, else the next one. `None` if both are used up.
    #[must_use]
    pub fn unused_code(&self, user: &str) -> Option<String> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.device_of(user)?.unused_code(now))
    }

    /// Creates a user; one of the same name is deleted first, so a new unique id makes somebody else of it.
    ///
    /// # Errors
    /// If a policy is malformed.
    pub fn put_user(&self, user: User) -> Result<(), MalformedPolicy> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.account.put_user(user, now))
    }

    /// Deletes a user with keys, sessions and device.
    pub fn remove_user(&self, name: &str) {
        self.shared.with(|state| state.account.remove_user(name));
    }

    /// Creates or replaces a role.
    ///
    /// # Errors
    /// If a policy is malformed or the trust policy names a user or role that does not exist.
    pub fn put_role(&self, role: Role) -> Result<(), MalformedPolicy> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.account.put_role(role, now))
    }

    /// Deletes a role; its sessions end.
    pub fn remove_role(&self, name: &str) {
        self.shared.with(|state| state.account.remove_role(name));
    }

    /// Ends a temporary credential before its time. False if there is none of that key id.
    pub fn expire_session(&self, access_key_id: &str) -> bool {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.expire(access_key_id, now))
    }

    /// Ends all temporary credentials of a user before their time.
    pub fn expire_sessions_of(&self, user: &str) {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.account.expire_all(user, now));
    }

    /// Adds or replaces an instance.
    ///
    /// # Errors
    /// If its Windows password cannot be encrypted.
    pub fn put_instance(&self, instance: Instance) -> Result<(), PasswordError> {
        let now = self.shared.clock.now();
        self.shared.with(|state| state.fleet.put(instance, now))
    }

    /// Changes an instance's state. False if there is none of that id.
    pub fn set_instance_state(&self, id: &str, state: InstanceState) -> bool {
        self.shared.with(|shared| shared.fleet.set_state(id, state))
    }

    /// Tells whether the instance's SSM Agent is connected. False if there is no such node.
    pub fn set_ssm_online(&self, id: &str, online: bool) -> bool {
        self.shared.with(|state| {
            let mut managed = false;
            state.fleet.change(id, |instance| {
                if let Some(node) = &mut instance.ssm {
                    (node.online, managed) = (online, true);
                }
            });
            managed
        })
    }

    /// Changes what version its SSM Agent says that it is. False if there is no such node.
    pub fn set_ssm_agent_version(&self, id: &str, version: &str) -> bool {
        self.shared.with(|state| {
            let mut managed = false;
            state.fleet.change(id, |instance| {
                if let Some(node) = &mut instance.ssm {
                    version.clone_into(&mut node.agent_version);
                    managed = true;
                }
            });
            managed
        })
    }

    /// Adds or replaces a session document of the account's own; that of the preferences too.
    pub fn put_document(&self, document: SessionDocument) {
        self.shared.with(|state| {
            state.documents.retain(|own| own.name != document.name);
            state.documents.push(document);
        });
    }

    /// Removes an instance. False if there is none of that id.
    pub fn remove_instance(&self, id: &str) -> bool {
        self.shared.with(|state| state.fleet.remove(id))
    }

    /// How the message gateway and the SSM Agents behave.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        self.gateway.hub().knobs()
    }

    /// Changes that. Connections feel it at once, SSM Agents with their next session.
    pub fn change_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        self.gateway.hub().change_knobs(change);
    }

    /// Cuts data channels of one side, of one session or of all. Answers how many.
    pub fn cut(&self, side: Side, how: Cut, session: Option<&str>) -> usize {
        self.gateway.hub().cut(side, how, session)
    }

    /// Ends an SSM session from outside, with a text for its client. False if it does not run.
    pub fn end_session(&self, session: &str, output: &str) -> bool {
        self.gateway.hub().terminate(session, output)
    }

    /// Ids of SSM sessions that run, the oldest first.
    #[must_use]
    pub fn sessions(&self) -> Vec<String> {
        let sessions = self.gateway.hub().list().into_iter();
        let running = sessions.filter(|session| session.ended.is_none());
        running.map(|session| session.id).collect()
    }

    /// What ends of data channels did that the protocol does not allow, oldest first.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        self.gateway.hub().complaints()
    }

    /// Switches a KMS key, by alias or id. False if there is none.
    pub fn enable_key(&self, name: &str, enabled: bool) -> bool {
        self.kms.enable(name, enabled)
    }

    /// Keys that SendSSHPublicKey put for this user of this instance and that are still honoured: for the
    /// `AuthorizedKeysCommand` of the lab's hosts.
    #[must_use]
    pub fn ssh_keys(&self, instance_id: &str, os_user: &str) -> Vec<PushedKey> {
        let now = self.shared.clock.now();
        self.shared
            .with(|state| state.pushed.live(instance_id, os_user, now))
    }

    /// Calls this with every key that is pushed from now on, before the push is answered. It must
    /// not call back.
    pub fn on_push(&self, listener: impl Fn(&PushedKey) + Send + 'static) {
        self.shared
            .with(|state| state.pushed.listeners.push(Box::new(listener)));
    }

    /// Every call so far, oldest first, as CloudTrail records.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.shared.with(|state| state.trail.events())
    }

    /// The records of one action.
    #[must_use]
    pub fn events_of(&self, action: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["eventName"] == action);
        events
    }

    pub fn clear_events(&self) {
        self.shared.with(|state| state.trail.clear());
    }

    /// Makes calls meet a fault from now on.
    pub fn inject(&self, rule: FaultRule) {
        self.shared.with(|state| state.faults.add(rule));
    }

    pub fn clear_faults(&self) {
        self.shared.with(|state| state.faults.clear());
    }
}
