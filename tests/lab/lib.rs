//! The lab: an emulated AWS, private hosts and a real agent, all on loopback. For the demo, the
//! tests and the benchmarks; ships in no product binary.

pub mod bench;
pub mod network;
pub mod pki;
pub mod targets;
