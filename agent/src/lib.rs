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

pub mod evidence;
pub mod identity;
pub mod inventory;
pub mod policy;
pub mod session;
pub mod ssh;
