//! The managed bastion.
//!
//! ```text
//! server ─ accept, TLS by ALPN ─┬─ enrolment ── identity ─ STS          a certificate
//!                               ├─ pipe ─ session ─┬─ policy            a Grant
//!                               │                  ├─ target            a checked address
//!                               │                  ├─ evidence          a durable event, a Recording
//!                               │                  └─ ssh | tunnel      relay
//!                               └─ http ── evidence                     reading, itself an event
//! ```
//!
//! A security decision is a value that only its module builds: [`identity::VerifiedPrincipal`],
//! [`policy::Grant`], [`evidence::Recording`]. Relaying takes all three.

mod assemble;
pub mod aws;
pub mod ca;
pub mod cli;
pub mod config;
pub mod crypto;
mod doors;
mod end;
pub mod evidence;
pub mod files;
mod health;
mod http;
pub mod identity;
pub mod instance_connect;
pub mod inventory;
mod keeper;
pub mod keys;
mod limits;
#[cfg(test)]
mod messages;
mod pipe;
pub mod policy;
mod refusal;
mod rules;
pub mod run;
mod serve;
mod server;
pub mod session;
mod shell;
mod socket;
pub mod ssh;
mod strangers;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tls;
mod tunnel;
pub mod watch;
