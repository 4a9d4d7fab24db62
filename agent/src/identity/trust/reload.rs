//! The deny list and the trusted agents are read again when their files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::select_all;
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use super::PeerTrust;
use crate::config::Config;
use crate::watch::FolderWatch;

impl PeerTrust {
    /// Reloads whenever a file changes, until told to stop. The caller owns the task.
    pub async fn run(
        self: Arc<Self>,
        config: Arc<Config>,
        own: CertificateDer<'static>,
        stop: CancellationToken,
    ) {
        let watches: Vec<_> = folders(&config)
            .iter()
            .map(|folder| FolderWatch::new(folder))
            .collect();
        loop {
            // First of all: the files may have changed between loading and the watch.
            let (trust, config, own) = (Arc::clone(&self), Arc::clone(&config), own.clone());
            let reload = tokio::task::spawn_blocking(move || trust.reload(&config, &own));
            match reload.await {
                Ok(Ok(true)) => tracing::info!("deny list or trusted agents changed"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "deny list and trusted agents: the old ones stay");
                }
                Err(error) => tracing::error!(%error, "reading the deny list failed"),
            }
            // Never empty: the deny list has a folder.
            let changed = select_all(watches.iter().map(|watch| Box::pin(watch.changed())));
            tokio::select! {
                _ = changed => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

fn folders(config: &Config) -> Vec<PathBuf> {
    let intermediates = config.trust.agents.iter().map(|agent| &agent.intermediate);
    let mut folders: Vec<_> = std::iter::once(&config.deny)
        .chain(intermediates)
        .map(|file| match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        })
        .map(Path::to_owned)
        .collect();
    folders.sort();
    folders.dedup();
    folders
}
