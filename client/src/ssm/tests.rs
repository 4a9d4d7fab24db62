//! The driver and the shell against a service in this process.

mod refusals;
mod sessions;
mod shells;

use std::time::Duration;

use tokio::time::timeout;

use super::testing::{FakeSsm, Plays};
use super::{Session, SsmError, Start, document};

const NODE: &str = "i-0123456789abcdef0";
/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(60);

fn start(document: &str) -> Start {
    Start {
        target: NODE.to_owned(),
        document: document.to_owned(),
        parameters: document::parameters([("command", "uptime".to_owned())]),
        reason: "test".to_owned(),
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.unwrap()
}
