//! The part of the service that knows which devices are assignable, and by which names.

use std::sync::{Arc, PoisonError, RwLock};

use hotslot_model::rules::{Inventory, Rules};
use hotslot_store::Store;
use tokio::sync::Mutex;

use crate::config::Config;
use crate::current::Current;
use crate::hosts::Hosts;

/// The rules in force, and the device table that follows them and the hosts.
pub struct Catalog {
    pub(crate) config: Arc<Current<Config>>,
    pub(crate) store: Store,
    pub(crate) hosts: Arc<Hosts>,
    rules: RwLock<Arc<Rules>>,
    /// Serializes changes of the rules.
    pub(crate) changing: Mutex<()>,
}

impl Catalog {
    pub(crate) fn new(config: Arc<Current<Config>>, store: Store, hosts: Arc<Hosts>, rules: Rules) -> Self {
        Self { config, store, hosts, rules: RwLock::new(Arc::new(rules)), changing: Mutex::default() }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts rules in force.
    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }

    /// Which devices are assignable, and by which names.
    pub fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.rules().inventory)
    }
}
