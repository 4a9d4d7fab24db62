//! Whole sessions: stock OpenSSH on both ends, and peers that misbehave.

mod openssh;
pub(super) mod support;
