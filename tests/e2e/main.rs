//! End-to-end tests.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(
    clippy::print_stdout,
    reason = "the figures of a run, for whoever reads its log"
)]

mod addresses;
mod attestation;
mod aws;
mod by_hand;
mod claims;
mod connect;
mod database;
mod denials;
mod drain;
mod enrolment;
mod evidence;
mod forwarding;
mod harness;
mod health;
mod hostile;
mod instance_connect;
mod interop;
mod listing;
mod log_key;
mod operate;
mod person;
mod policy_iam;
mod resume;
mod resumption;
mod rollback;
mod round_trips;
mod serve;
mod ssm;
mod ssm_forward;
mod ssm_network;
mod ssm_refusals;
mod ssm_shell;
mod ssm_stories;
mod step_up;
mod strangers;
mod takeover;
mod tampering;
mod terminals;
