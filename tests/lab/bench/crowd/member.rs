//! One person of a crowd: a context as `postern` has it, and an agent that it was certified for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use postern::cli::GlobalArgs;
use postern::config::{Environment, Settings};
use postern::context::Context;
use postern::gateway::Gateway;
use postern::identity;
use postern::output::Printer;

use crate::aws::current_code;

/// A login is tried again with the next code when this one was used up already.
const STEP: Duration = Duration::from_secs(30);

/// A person.
pub(super) struct Member {
    context: Context,
    gateway: Option<Arc<Gateway>>,
}

impl Member {
    pub(super) fn new(environment: BTreeMap<String, String>) -> Result<Self> {
        let environment: Environment = environment.into_iter().collect();
        let settings = Settings::load(&GlobalArgs::default(), &environment)?;
        let mut context = Context::new(Printer::plain_json(), settings, environment);
        context.may_ask = false;
        Ok(Self {
            context,
            gateway: None,
        })
    }

    /// `postern login`.
    pub(super) async fn log_in(&self, seed: &str) -> Result<()> {
        let code = || current_code(seed).context("the seed is not base32");
        let first = identity::login(&self.context, Some(&code()?.into()), None).await;
        if first.is_err() {
            tokio::time::sleep(STEP).await;
            identity::login(&self.context, Some(&code()?.into()), None).await?;
        }
        Ok(())
    }

    /// `postern logout`.
    pub(super) async fn log_out(&self) {
        // What stays nevertheless ends with its time.
        drop(identity::logout(&self.context, true).await);
    }

    /// The agent: enrols when no certificate is kept.
    pub(super) async fn gateway(&mut self) -> Result<Arc<Gateway>> {
        if let Some(gateway) = &self.gateway {
            return Ok(Arc::clone(gateway));
        }
        let gateway = Gateway::of(&self.context)
            .await
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Arc::clone(self.gateway.insert(gateway)))
    }
}
