//! The SSM Agents of a lab, by host: they vanish and return on order.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

use super::agent::{Places, SsmAgent};
use crate::account::HOSTS;
use crate::aws::Aws;
use crate::network::Network;

/// All SSM Agents of a lab.
pub struct SsmHosts {
    aws: Arc<Aws>,
    /// Instance id and network, by host name.
    places: BTreeMap<&'static str, (&'static str, Places)>,
    running: Mutex<BTreeMap<&'static str, SsmAgent>>,
}

impl SsmHosts {
    /// Starts one on every managed host. Each has a home folder below `folder`.
    pub fn start(aws: &Arc<Aws>, network: &Network, folder: &Path) -> Result<Self> {
        let names: BTreeMap<String, IpAddr> = HOSTS
            .iter()
            .map(|host| (host.name.to_owned(), host.address(network)))
            .collect();
        let mut places = BTreeMap::new();
        for host in HOSTS.iter().filter(|host| host.managed) {
            let home = folder.join(host.name).join("home");
            std::fs::create_dir_all(&home)
                .with_context(|| format!("cannot make {}", home.display()))?;
            let own = Places {
                own: host.address(network),
                names: names.clone(),
                home,
            };
            places.insert(host.name, (host.id, own));
        }
        let hosts = Self {
            aws: Arc::clone(aws),
            places,
            running: Mutex::default(),
        };
        for name in hosts.places.keys() {
            hosts.bring_back(name);
        }
        Ok(hosts)
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<&'static str, SsmAgent>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a host's SSM Agent, in the place of one that may be there, and has it online. False
    /// if the host has none.
    pub fn bring_back(&self, name: &str) -> bool {
        let Some((name, (id, places))) = self.places.get_key_value(name) else {
            return false;
        };
        let agent = SsmAgent::start(&self.aws, id, places.clone());
        self.running().insert(name, agent);
        self.aws.set_ssm_online(id, true)
    }

    /// Kills a host's SSM Agent with all that it runs. The service notices nothing: sessions stay,
    /// and new ones start that nobody answers. False if there is none.
    pub fn kill(&self, name: &str) -> bool {
        self.running().remove(name).is_some()
    }

    /// The same, noticed: the node's connection is lost.
    pub fn vanish(&self, name: &str) -> bool {
        let was_there = self.kill(name);
        if let Some((id, _)) = self.places.get(name) {
            self.aws.set_ssm_online(id, false);
        }
        was_there
    }

    /// The home folder of a host's shells.
    #[must_use]
    pub fn home(&self, name: &str) -> Option<&Path> {
        self.places
            .get(name)
            .map(|(_, places)| places.home.as_path())
    }

    /// Ends all of them and waits.
    pub async fn stop(&self) {
        let agents = std::mem::take(&mut *self.running());
        for agent in agents.into_values() {
            agent.stop().await;
        }
    }
}
