//! Whole sessions: stock OpenSSH on both ends, and peers that misbehave.

mod hostile;
mod limits;
mod openssh;
pub(super) mod support;
