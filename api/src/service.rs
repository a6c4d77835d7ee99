//! The service as one value: what handlers are given.

use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::DetachLimits;
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::xml::hostdev::{HostdevSpec, Templates};

use crate::attachment::reconcile;
use crate::busy::Busy;
use crate::config::{Config, ConfigError};
use crate::error::Error;
use crate::host::{self, Host};
use crate::id::{HypervisorId, ServerId};
use crate::inventory::Inventory;
use crate::store::{Attachment, Device, Store};

/// The running service.
pub struct Service {
    /// Its configuration.
    pub config: Config,
    /// Its records.
    pub store: Store,
    /// Its hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Which devices may be given away, and by which names.
    pub inventory: Inventory,
    /// The hostdev documents.
    pub templates: Templates,
    /// Attachments that a task of this process is working on: reconciliation leaves them to it.
    pub(crate) in_flight: Arc<Busy>,
    /// Attachments whose address is being verified.
    pub(crate) verifying: Arc<Busy>,
}

/// Why the service does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A template cannot be used.
    #[error("[pci] templates: {0}")]
    Templates(#[from] hotslot_driver::xml::hostdev::TemplateError),
    /// The database cannot be opened.
    #[error("cannot open the database: {source}; {advice}")]
    Database {
        /// Why.
        source: sqlx::Error,
        /// What to do.
        advice: String,
    },
    /// The database does not do what it should.
    #[error("cannot read the records")]
    Records(#[source] Error),
}

impl Service {
    /// Opens the database and the hosts, and starts following them.
    ///
    /// # Errors
    /// [`StartError`]. A libvirt host that is away is none.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let inventory = Inventory::new(&config.pci)?;
        let templates = Templates::load(config.pci.templates.as_deref())?;
        let store = open_store(&config).await?;
        let mut hosts = Vec::new();
        for configured in config.hypervisors() {
            let hypervisor = host::open(&configured, &config.libvirt)?;
            let row =
                store.hypervisor(&configured.name, &configured.uri).await.map_err(StartError::Records)?;
            hosts.push(Arc::new(Host::new(row, &configured, hypervisor)));
        }
        let (in_flight, verifying) = Default::default();
        let service = Arc::new(Self { config, store, hosts, inventory, templates, in_flight, verifying });
        for host in &service.hosts {
            tokio::spawn(reconcile::follow(Arc::clone(&service), Arc::clone(host)));
        }
        Ok(service)
    }

    /// The host that has a server, and the server.
    ///
    /// # Errors
    /// [`Error::NoServer`]; [`Error::HostAway`] when a host that might have it cannot be asked.
    pub async fn find(&self, server: ServerId) -> Result<(Arc<Host>, DomainView), Error> {
        let mut away = None;
        for host in &self.hosts {
            match host.server(server).await {
                Ok(Some(view)) => return Ok((Arc::clone(host), view)),
                Ok(None) => {}
                Err(error) => away = Some(error),
            }
        }
        Err(away.unwrap_or(Error::NoServer(server)))
    }

    /// The host of a row.
    pub fn host(&self, id: HypervisorId) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.row.id == id)
    }

    /// How often and how long guests are asked to let a device go.
    pub fn detach_limits(&self) -> DetachLimits {
        DetachLimits { attempts: self.config.detach.attempts, timeout: self.config.detach.timeout.0 }
    }
}

/// What the domain's document says of an attachment.
pub(crate) fn hostdev_spec(attachment: &Attachment, device: &Device) -> HostdevSpec {
    HostdevSpec {
        source: device.facts.address,
        alias: UserAlias(attachment.id.0),
        managed: attachment.managed,
        rom_bar: None,
        guest: None,
        interface: None,
    }
}

async fn open_store(config: &Config) -> Result<Store, StartError> {
    let path = config.database.url.trim_start_matches("sqlite://").split('?').next().unwrap_or_default();
    let directory = std::path::Path::new(path).parent();
    let failed = |source: sqlx::Error| StartError::Database {
        source,
        advice: format!("[database] url names {path}: is its directory there, and may hotslot write it?"),
    };
    if let Some(directory) = directory.filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory).map_err(|error| failed(sqlx::Error::Io(error)))?;
    }
    Store::open(&config.database.url).await.map_err(failed)
}
