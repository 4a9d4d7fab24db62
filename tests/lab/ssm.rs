//! The service side of AWS Systems Manager Session Manager, and the SSM Agents behind it.
//!
//! ```text
//! aws::ssm ── StartSession, … ──► hub ◄── gateway ◄═ WebSocket ═ a client
//!                                  │  └── link: two lanes, with faults
//!                                  └────► agent ═ WebSocket ═► gateway
//!                                           ├ shell, command     a process of this machine
//!                                           └ port, mux          TCP from the host's own address
//! ```
//!
//! SSM-PROTOCOL.md is the wire and the behaviour: what the genuine `amazon-ssm-agent` does slowly
//! or badly is done as slowly and badly here, and every such trait is a knob ([`Knobs`]). Both
//! ends come through the gateway, each over WebSockets of its own, so either can be cut alone.

mod agent;
mod document;
mod gateway;
mod hosts;
mod hub;
mod knobs;
mod link;
mod session;

pub use agent::{Places, SsmAgent};
pub use document::{AWS_DOCUMENTS, SessionDocument};
pub use hosts::SsmHosts;
pub use knobs::{CutEvery, Knobs, Noise, Retention, merge};
pub use session::{Cut, Side};

pub(crate) use document::BadParameter;
pub(crate) use gateway::Gateway;
pub(crate) use hub::{Hub, NotStarted, Request, Summary};
pub(crate) use session::Status;
