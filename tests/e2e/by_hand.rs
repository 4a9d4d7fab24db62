//! A client that keeps no rules: the agent's protocols and STS, spoken by hand.

pub(crate) mod enrolment;
pub(crate) mod sts;
pub(crate) mod wire;
