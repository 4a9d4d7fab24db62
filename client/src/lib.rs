//! The `postern` command.
//!
//! ```text
//! main ─ cli ─ cmd/VERB ─ identity (login, certificate) ─ transport (TLS, pipe) ─ ssh | forward ─ evidence
//! ```

pub mod config;
pub mod context;
pub mod identity;
pub mod output;
