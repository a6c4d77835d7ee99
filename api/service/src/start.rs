//! Start: opens the database and the hosts, and starts the background tasks.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::available_parallelism;

use hotslot_driver::hypervisor::Hypervisor;
use hotslot_driver::xml::hostdev::Templates;
use hotslot_model::identity::Policy;
use hotslot_model::rules::Rules;
use hotslot_store::Store;
use tokio::runtime::Handle;

use crate::accelerator::Accelerators;
use crate::assignment::{Assignments, reconcile};
use crate::audit::Audit;
use crate::config::{Config, ConfigError};
use crate::current::Current;
use crate::cyborg::{Cyborg, settle};
use crate::error::Error;
use crate::feed::Feed;
use crate::fence::Fenced;
use crate::host::Host;
use crate::hosts::Hosts;
use crate::idempotency::Idempotency;
use crate::identity::{Callers, watch};
use crate::inventory::{Catalog, read_rules};
use crate::locks::{InFlight, KeyedMutex};
use crate::measured::Measured;
use crate::monitor::Monitor;
pub use crate::problems::problems;
use crate::quota::Quotas;
use crate::rate::Rates;
use crate::records::Records;
use crate::service::Service;
use crate::settings::Settings;
use crate::webhook::{Webhook, Webhooks};
use crate::{config, feed, host, monitor, peers, retention, webhook};

/// The service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Rules or flavors of the configuration cannot be used.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<ConfigError>),
    /// A template cannot be used.
    #[error("[pci] templates")]
    Templates(#[from] hotslot_driver::xml::hostdev::TemplateError),
    /// The database cannot be opened.
    #[error("cannot open the database; {advice}")]
    Database {
        /// The cause.
        source: hotslot_store::Error,
        /// What to do about it.
        advice: String,
    },
    /// The files of the database belong to another user. The text says what to do.
    #[error("cannot open the database: {0}")]
    Owner(String),
    /// The records cannot be read or written.
    #[error("cannot read the records")]
    Records(#[source] Error),
}

/// The configuration, and everything that is read and opened at the start.
struct Opened {
    config: Config,
    policy: Policy,
    callers: Callers,
    templates: Templates,
    store: Store,
    rules: Rules,
    hosts: Hosts,
    webhooks: Vec<Arc<Webhook>>,
}

impl Service {
    /// Opens the database and the hosts, and starts the background tasks.
    ///
    /// # Errors
    /// [`StartError`]. An unreachable libvirt host is no error; it is connected to later.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        Self::start_on(config, host::open).await
    }

    /// As [`start`](Self::start), but `open` opens the hypervisors, so that several services may share one.
    ///
    /// # Errors
    /// [`StartError`]; errors of `open`.
    pub async fn start_on(
        config: Config,
        open: impl Fn(&config::Hypervisor, &config::Libvirt) -> Result<Arc<dyn Hypervisor>, ConfigError> + Sync,
    ) -> Result<Arc<Self>, StartError> {
        let config = config.with_secrets()?;
        let problems = problems(&config);
        if !problems.is_empty() {
            return Err(StartError::Rules(problems));
        }
        let policy = config.policy().map_err(StartError::Rules)?;
        let callers = Callers::new(&config)?;
        let templates = Templates::load(config.pci.templates.as_deref())?;
        let store = open_store(&config).await?.with_default_limits(config.quota.limits());
        let rules = read_rules(&config, &store).await.map_err(StartError::Records)?;
        let hosts = open_hosts(&config, &store, open).await?;
        let webhooks = open_webhooks(&config, &store).await?;
        for entry in &config.pci.unguarded {
            tracing::warn!(
                pci.address = %entry.address, host = entry.host.as_deref().unwrap_or("every host"),
                "[pci] unguarded: {} is assignable even if the host needs it", entry.address
            );
        }
        let opened = Opened { config, policy, callers, templates, store, rules, hosts, webhooks };
        let service = Arc::new(Self::of_parts(opened));
        service.start_tasks();
        Ok(service)
    }

    fn of_parts(opened: Opened) -> Self {
        let Opened { config, policy, callers, templates, store, rules, hosts, webhooks } = opened;
        let feed = Arc::new(Feed::new(config.api.followers.get()));
        let audit = Arc::new(Audit::new(store.clone()));
        let webhooks = Arc::new(Webhooks::new(webhooks, store.clone()));
        let hosts = Arc::new(hosts);
        let turns = Arc::new(KeyedMutex::new(store.locks()));
        let (time, rates) = (config.api.idempotency_time.0, Rates::new(&config.api));
        let (config, policy) = (Arc::new(Current::new(config)), Arc::new(Current::new(policy)));
        let idempotency = Arc::new(Idempotency::new(store.clone(), time, Arc::clone(&turns)));
        let catalog = Arc::new(Catalog::new(Arc::clone(&config), store.clone(), Arc::clone(&hosts), rules));
        let assignments = Arc::new(Assignments {
            config: Arc::clone(&config),
            store: store.clone(),
            hosts: Arc::clone(&hosts),
            catalog: Arc::clone(&catalog),
            idempotency: Arc::clone(&idempotency),
            templates,
            in_flight: InFlight::new("attachment", store.locks()),
            verifying: InFlight::new("address of attachment", store.locks()),
            turns,
            choosing: Arc::default(),
        });
        let accelerators = Arc::new(Accelerators {
            config: Arc::clone(&config),
            store: store.clone(),
            hosts: Arc::clone(&hosts),
            assignments: Arc::clone(&assignments),
        });
        let cyborg = Arc::new(Cyborg {
            store: store.clone(),
            hosts: Arc::clone(&hosts),
            assignments: Arc::clone(&assignments),
            accelerators: Arc::clone(&accelerators),
            binding: InFlight::new("accelerator request", store.locks()),
        });
        let quotas = Arc::new(Quotas { store: store.clone(), catalog: Arc::clone(&catalog) });
        let monitor = Monitor::new(&assignments, &webhooks, &feed);
        Self {
            callers: Arc::new(callers),
            rates: Arc::new(rates),
            policy: Arc::clone(&policy),
            settings: Arc::new(Settings { policy, catalog: Arc::clone(&catalog) }),
            records: Arc::new(Records::new(store.clone())),
            config,
            store,
            hosts,
            catalog,
            assignments,
            accelerators,
            cyborg,
            quotas,
            idempotency,
            webhooks,
            feed,
            audit,
            monitor: Arc::new(monitor),
            lifecycle: Arc::default(),
        }
    }

    fn start_tasks(self: &Arc<Self>) {
        monitor::note_start();
        for webhook in self.webhooks.iter() {
            let context = webhook::Context { store: self.store.clone(), stopping: self.lifecycle.stopping() };
            tokio::spawn(Arc::clone(webhook).follow(context));
        }
        let followed = Arc::clone(self);
        self.go_on(async move { feed::read(&followed.feed, &followed.store).await });
        let recorded = Arc::clone(self);
        self.go_on(async move { recorded.audit.record_in_rounds().await });
        if let Some(tokens) = self.config.get().identity.tokens.clone() {
            let store = self.store.clone();
            self.go_on(async move { watch::record_changes(&tokens, &store).await });
        }
        self.go_on(retention::prune_in_rounds(Arc::clone(self)));
        self.go_on(settle::in_rounds(Arc::clone(&self.cyborg)));
        for host in self.hosts.iter() {
            self.go_on(reconcile::follow(Arc::clone(&self.assignments), Arc::clone(host)));
            self.go_on(reconcile::rebind_in_background(Arc::clone(&self.assignments), Arc::clone(host)));
        }
        self.go_on(peers::follow(Arc::clone(self)));
    }

    /// Runs a background task until the service ends. Work that is unfinished then is done after the next start.
    fn go_on(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let service = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = service.lifecycle.ending() => {}
                () = work => {}
            }
        });
    }
}

/// Opens the configured hosts. A libvirt host that is unreachable is connected to later.
async fn open_hosts(
    config: &Config,
    store: &Store,
    open: impl Fn(&config::Hypervisor, &config::Libvirt) -> Result<Arc<dyn Hypervisor>, ConfigError> + Sync,
) -> Result<Hosts, StartError> {
    let mut hosts = Vec::new();
    let all = config.hypervisors();
    let opened = open_all(&all, |configured| open(configured, &config.libvirt));
    for (configured, opened) in all.into_iter().zip(opened) {
        let mut hypervisor: Arc<dyn Hypervisor> = Arc::new(Measured(opened?));
        let row = store.hypervisor(&configured.name, &configured.uri).await;
        let row = row.map_err(|error| unusable(&config.database.url, error))?;
        if store.is_shared() {
            hypervisor = Fenced::new(hypervisor, store.clone(), row.id);
        }
        hosts.push(Arc::new(Host::new(row, &configured, hypervisor, config.api.queue.get())));
    }
    Ok(Hosts::new(hosts, store.clone()))
}

/// Opens hosts on all processors, because a simulated host is read from a file for each device.
fn open_all<T: Send>(hosts: &[config::Hypervisor], open: impl Fn(&config::Hypervisor) -> T + Sync) -> Vec<T> {
    let (runtime, open) = (Handle::current(), &open);
    let processors = available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let open_part = |part: &[config::Hypervisor]| {
            let _context = runtime.enter();
            part.iter().map(open).collect::<Vec<_>>()
        };
        let parts = hosts.chunks(hosts.len().div_ceil(processors).max(1));
        let opening: Vec<_> = parts.map(|part| scope.spawn(move || open_part(part))).collect();
        opening
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

async fn open_webhooks(config: &Config, store: &Store) -> Result<Vec<Arc<Webhook>>, StartError> {
    let mut webhooks = Vec::new();
    for configured in &config.webhook {
        // This records a new webhook, so that it gets the events from now on.
        let recorded = store.last_delivered(&configured.name).await;
        recorded.map_err(|error| StartError::Records(error.into()))?;
        webhooks.push(Arc::new(Webhook::new(configured.clone())?));
    }
    Ok(webhooks)
}

/// Converts an error at opening a database into a [`StartError`], with advice if there is some.
fn unusable(url: &str, error: hotslot_store::Error) -> StartError {
    match error.advice_at_open(url) {
        Some(advice) => StartError::Database { advice, source: error },
        None => StartError::Records(error.into()),
    }
}

async fn open_store(config: &Config) -> Result<Store, StartError> {
    let url = &config.database.url;
    let failed = |error| unusable(url, error);
    if hotslot_store::is_postgres(url) {
        return Store::open(url, None).await.map_err(failed);
    }
    let path = hotslot_store::sqlite_file(url).map_err(|error| StartError::Records(error.into()))?;
    let io = |error| failed(hotslot_store::Error::io(error));
    let path = hotslot_store::prepare(&path).map_err(|error| {
        // An error of this kind says what to do.
        if error.kind() == std::io::ErrorKind::Other {
            StartError::Owner(error.to_string())
        } else {
            io(error)
        }
    })?;
    // Two services on one file would each mistake the other's work for that of a process which has ended.
    let Some(lock) = hotslot_store::lock(&path).map_err(io)? else {
        let path = path.display();
        let source = hotslot_store::Error::io(std::io::Error::other("another process has locked it"));
        let advice = format!(
            "stop the other hotslot (`fuser -v {path}.lock` shows its process), or configure another [database] url \
             for this one instead of {path}"
        );
        return Err(StartError::Database { source, advice });
    };
    hotslot_store::make(&path).map_err(io)?;
    Store::open_at(url, &path, Some(lock)).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_start_reports_all_problems() {
        let config = r#"
            [database]
            url = "sqlite:///nowhere/hotslot.db"
            [pci]
            device_spec = ['{"vendor_id": "x"}', '{}']
            alias = ['{"name": "a"}']
            [[flavor]]
            name = "gzm"
            extra_specs = { "pci_passthrough:alias" = "b:1" }
        "#;
        let config = Config::parse(config).unwrap();
        let refused = Service::start(config).await.err().unwrap().to_string();
        let lines: Vec<_> = refused.lines().collect();
        let places = [
            "[pci] device_spec[0]: vendor_id",
            "[pci] device_spec[1]: it has none",
            "[pci] alias[0]: vendor_id",
            "[[flavor]][0] extra_specs",
        ];
        assert_eq!(lines.len(), places.len(), "{refused}");
        for (line, place) in lines.iter().zip(places) {
            assert!(line.starts_with(place), "{refused}");
        }
    }
}
