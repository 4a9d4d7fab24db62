//! What the agent signs. Five keys, none for two purposes:
//!
//! | key | signs | where |
//! |---|---|---|
//! | server CA | agents' server certificates | offline |
//! | client CA root | one intermediate for each agent | offline |
//! | client CA intermediate | [client certificates](client), an hour each | agent |
//! | SSH user CA | [user certificates](ssh) for targets, five minutes each | agent |
//! | SSH host CA | the agent's own host certificate, `*.postern` | agent |
//! | audit log | checkpoints of the [log] | agent |

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};

pub mod client;
pub mod log;
mod pem;
pub mod ssh;
mod subject;
pub mod x509;

pub use pem::{certificates_from_pem, certificates_to_pem};
pub use subject::{ClientSubject, SubjectFault};

/// Why something could not be signed or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The system's random numbers failed.
    #[error("the system has no random numbers")]
    Random,
    /// An X.509 object could not be made.
    #[error("cannot make the certificate: {0}")]
    X509(#[from] rcgen::Error),
    /// An SSH object could not be made or read.
    #[error("cannot use the SSH key or certificate: {0}")]
    Ssh(#[from] russh::keys::ssh_key::Error),
    /// A key of the wrong kind.
    #[error("the key is not {expected}")]
    KeyKind {
        /// What was expected.
        expected: &'static str,
    },
    /// A time that no certificate can carry.
    #[error("{0} seconds since 1970 is outside of what certificates can say")]
    Time(i64),
    /// A text that is no PEM of what was expected.
    #[error("there is no {expected} in the file")]
    Pem {
        /// What was expected.
        expected: &'static str,
    },
}

/// Fills an array from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map(|()| bytes).map_err(|_| CaError::Random)
}
