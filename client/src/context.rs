//! Built once in `run`: what commands need, resolved.

use crate::config::AgentProfile;
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
    /// Login user when the command names none.
    pub login_user: Option<String>,
}
