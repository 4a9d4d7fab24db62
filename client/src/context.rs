//! Built once in `run`: what commands need, resolved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use postern_proto::names::TargetName;
use secrecy::SecretString;

use crate::cli::{GlobalArgs, Via};
use crate::config::{AgentProfile, ConfigError, Environment, KeyringChoice, Settings};
use crate::error::Error;
use crate::identity::{Memory, terminal};
use crate::output::Printer;

/// Passed to every command.
#[derive(Debug, Clone)]
pub struct Context {
    /// Output.
    pub printer: Printer,
    /// Agents, by preference.
    pub agents: Vec<AgentProfile>,
    /// The AWS profile in use.
    pub profile: String,
    /// Whether the command line named the profile: then its keys come before the environment's.
    pub profile_named: bool,
    /// Login user when the command names none.
    pub login_user: Option<String>,
    /// Route to targets when a command names none.
    pub via: Via,
    /// Names of one's own for targets.
    pub aliases: BTreeMap<String, TargetName>,
    /// Folder of what the client keeps: sessions (encrypted), newest checkpoints.
    pub state: PathBuf,
    /// Where the wrapping key of the kept sessions is.
    pub keyring: KeyringChoice,
    /// Folder of an audit store, when no agent is to be asked.
    pub audit_store: Option<PathBuf>,
    /// The auditor's age identity file.
    pub auditor_identity: Option<PathBuf>,
    /// SSM sessions of one forward at once.
    pub ssm_sessions: usize,
    /// Folder of the evidence that this client writes itself.
    pub evidence: PathBuf,
    /// Age recipients of the auditors of that evidence; the user's own key when there are none.
    pub auditors: Vec<String>,
    /// A code that was given in the environment.
    pub mfa_code: Option<SecretString>,
    /// Whether somebody can be asked: there is a terminal, with us in its foreground.
    pub may_ask: bool,
    /// The variables of the process: the AWS configuration is read from them when it is needed.
    pub environment: Environment,
    /// What this process knows already, so that it asks for nothing twice.
    pub memory: Memory,
}

impl Context {
    /// Flags over environment over file.
    pub fn resolve(
        printer: Printer,
        global: &GlobalArgs,
        environment: Environment,
    ) -> Result<Self, ConfigError> {
        let settings = Settings::load(global, &environment)?;
        Ok(Self::new(printer, settings, environment))
    }

    /// From settings that are resolved.
    pub fn new(printer: Printer, settings: Settings, environment: Environment) -> Self {
        Self {
            printer,
            agents: settings.agents,
            profile: settings.profile,
            profile_named: settings.profile_named,
            login_user: settings.login_user,
            via: settings.via,
            aliases: settings.aliases,
            state: settings.state,
            keyring: settings.keyring,
            audit_store: settings.audit_store,
            auditor_identity: settings.auditor_identity,
            ssm_sessions: settings.ssm_sessions,
            evidence: settings.evidence,
            auditors: settings.auditors,
            mfa_code: settings.mfa_code,
            may_ask: terminal::available(),
            environment,
            memory: Memory::default(),
        }
    }

    /// The target that was meant, `USER@` kept: an alias comes before what others call so.
    pub fn aliased(&self, typed: &TargetName) -> Result<TargetName, Error> {
        let (user, name) = match typed.as_str().split_once('@') {
            Some((user, name)) => (Some(user), name),
            None => (None, typed.as_str()),
        };
        match (self.aliases.get(name), user) {
            (None, _) => Ok(typed.clone()),
            (Some(target), None) => Ok(target.clone()),
            (Some(target), Some(user)) => format!("{user}@{target}")
                .parse()
                .map_err(|error| Error::usage(format!("alias `{name}`: {error}"))),
        }
    }

    /// The agent to go through: the first one.
    pub fn agent(&self) -> Result<&AgentProfile, Error> {
        self.agents.first().ok_or_else(|| {
            Error::usage("no agent is configured").hint(
                "add an [[agent]] section to the configuration file, or set POSTERN_AGENT \
                 and its companions",
            )
        })
    }
}
