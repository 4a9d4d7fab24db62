//! Events, the transparency log's layout, and its verification (DESIGN.md section 7).
//!
//! | module | owns |
//! |---|---|
//! | [`event`] | what can happen, in our own words |
//! | [`ocsf`] | an event as one leaf, and back |
//! | [`sealed`] | opening what is encrypted to the auditors |
//! | [`layout`] | the files of a store: C2SP `tlog-tiles`, entry bundles, recordings |
//! | [`tree`] | roots and proofs from tiles |
//! | [`note`] | keys and signed checkpoints |
//! | [`append`] | growing a log: which bytes go where, in which order |
//! | [`recover`] | opening a log that was written before |
//! | [`verify`] | what an auditor demands of a store |
//! | [`witness`] | what a client demands of an agent's log |

pub mod append;
pub mod event;
pub mod layout;
pub mod note;
pub mod ocsf;
pub mod recover;
pub mod sealed;
pub mod tree;
pub mod verify;
pub mod witness;
