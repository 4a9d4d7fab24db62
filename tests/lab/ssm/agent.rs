//! An SSM Agent: takes the sessions of one instance and does their work, as the genuine one does.

mod command;
mod driver;
mod mux;
mod places;
mod port;
mod shell;
mod work;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use places::Places;

use super::gateway::Gateway;
use super::hub::Order;
use crate::aws::Aws;
use crate::aws::Kms;

/// A running SSM Agent. When dropped it vanishes: its connections break, its programs are killed,
/// and nobody tells anything to anybody.
pub struct SsmAgent {
    shutdown: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// What every session of an SSM Agent needs.
pub(super) struct Host {
    pub(super) instance: String,
    pub(super) gateway: Gateway,
    pub(super) kms: Arc<Kms>,
    pub(super) places: Places,
}

impl SsmAgent {
    /// Opens the control channel of `instance`. An older SSM Agent of it gets no more sessions.
    #[must_use]
    pub fn start(aws: &Aws, instance: &str, places: Places) -> Self {
        let host = Arc::new(Host {
            instance: instance.to_owned(),
            gateway: aws.gateway().clone(),
            kms: Arc::clone(aws.kms()),
            places,
        });
        let mut orders = host.gateway.hub().register(instance);
        let shutdown = CancellationToken::new();
        let ended = shutdown.clone();
        let task = tokio::spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let order: Order = tokio::select! {
                    () = ended.cancelled() => return,
                    order = orders.recv() => match order {
                        Some(order) => order,
                        // Replaced: what runs, runs on.
                        None => break,
                    },
                };
                while sessions.try_join_next().is_some() {}
                sessions.spawn(driver::run(Arc::clone(&host), order));
            }
            tokio::select! {
                () = ended.cancelled() => {}
                () = async { while sessions.join_next().await.is_some() {} } => {}
            }
        });
        Self {
            shutdown,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Vanishes and waits until everything is gone.
    pub async fn stop(self) {
        self.shutdown.cancel();
        // A panic of it was reported by the runtime.
        let _ = self.task.await;
    }
}
