//! One verb per file. A command gets resolved settings and its arguments, never flags or variables.

pub mod audit;
pub mod completions;
pub mod connect;
pub mod forward;
pub mod login;
pub mod logout;
pub mod ls;
pub mod policy;
pub mod proxy;
pub mod ssh_config;
pub mod status;
pub mod why;
