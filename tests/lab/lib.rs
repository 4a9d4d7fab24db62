//! The lab: an emulated AWS, private hosts and a real agent, all on loopback. For the demo, the
//! tests and the benchmarks; ships in no product binary.
//!
//! ```text
//! main ─ stack ─┬─ aws        STS, IAM, EC2, Instance Connect, SSM, KMS
//!               ├─ ssm        the message gateway, and SSM Agents on web-1 and app-1
//!               ├─ targets    sshd, PostgreSQL, an RDP greeter: let in the bastion alone
//!               ├─ agent      the real `postern-agent`, configured as an operator would
//!               └─ client     the environment of the real `postern`
//! ```

pub mod account;
pub mod agent;
pub mod aws;
pub mod bench;
pub mod client;
pub mod console;
pub mod control;
pub mod cutter;
pub mod forward;
pub mod network;
pub mod pki;
pub mod programs;
pub mod serve;
pub mod ssm;
pub mod stack;
pub mod targets;
pub mod totp;
pub mod tour;
