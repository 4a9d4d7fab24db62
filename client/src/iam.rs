//! AWS's own guard of the SSM route: IAM policies that demand MFA, and whether an account has them.
//!
//! ```text
//! cmd/policy ─ shape (what it is about) ─ statement ─ document (policies)
//!                                      └─ probe (questions) ─ api (IAM) ─ check (findings) ─ report
//! ```
//!
//! On the SSM route IAM decides, not the agent. Nothing here changes an account.

pub mod api;
pub mod check;
pub mod document;
pub mod error;
pub mod probe;
pub mod question;
pub mod report;
pub mod shape;
pub mod statement;
pub mod trust;

pub use error::PolicyError;
pub use shape::Shape;
