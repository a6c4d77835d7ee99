//! The service as one value: what handlers are given.

use std::path::Path;
use std::sync::{Arc, RwLock};

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::DetachLimits;
use hotslot_driver::hypervisor::{DomainView, Hypervisor};
use hotslot_driver::xml::hostdev::{HostdevSpec, InterfaceSpec, Templates};
use tokio::sync::Mutex;

use crate::attachment::reconcile;
use crate::busy::{Busy, Turns};
use crate::config::{self, Config, ConfigError, Flavor};
use crate::error::Error;
use crate::flavor;
use crate::host::{self, Host};
use crate::id::{HypervisorId, ServerId};
use crate::inventory::{Rule, Rules};
use crate::others;
use crate::store::{self, Attachment, Device, Store};

/// The running service.
pub struct Service {
    /// Its configuration.
    pub config: Config,
    /// Its records.
    pub store: Store,
    /// Its hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Which devices may be given away, and by which names: [`Self::rules`].
    pub(crate) rules: RwLock<Arc<Rules>>,
    /// Changes of the rules go in turn.
    pub(crate) changing: Mutex<()>,
    /// The hostdev documents.
    pub templates: Templates,
    /// Attachments that someone is working on: reconciliation leaves them to it.
    pub(crate) in_flight: Arc<Busy>,
    /// Attachments whose address is being verified.
    pub(crate) verifying: Arc<Busy>,
    /// Attaches to one server go in turn.
    pub(crate) turns: Turns,
}

/// Why the service does not start.
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
        Self::start_on(config, host::open).await
    }

    /// As [`start`](Self::start), on hypervisors that the caller opens: several services may share one.
    ///
    /// # Errors
    /// [`StartError`], and what `open` says.
    pub async fn start_on(
        config: Config,
        open: impl Fn(&config::Hypervisor, &config::Libvirt) -> Result<Arc<dyn Hypervisor>, ConfigError>,
    ) -> Result<Arc<Self>, StartError> {
        let problems = problems(&config);
        if !problems.is_empty() {
            return Err(StartError::Rules(problems));
        }
        let templates = Templates::load(config.pci.templates.as_deref())?;
        let store = open_store(&config).await?;
        let rules = read_rules(&config, &store).await.map_err(StartError::Records)?;
        let rules = RwLock::new(Arc::new(rules));
        let mut hosts = Vec::new();
        for configured in config.hypervisors() {
            let hypervisor = open(&configured, &config.libvirt)?;
            let row =
                store.hypervisor(&configured.name, &configured.uri).await.map_err(StartError::Records)?;
            hosts.push(Arc::new(Host::new(row, &configured, hypervisor)));
        }
        let changing = Mutex::default();
        let in_flight = Busy::new("attachment", store.locks());
        let verifying = Busy::new("address of attachment", store.locks());
        let turns = Turns::new(store.locks());
        for entry in &config.pci.unguarded {
            tracing::warn!(
                pci.address = %entry.address, host = entry.host.as_deref().unwrap_or("every host"),
                "[pci] unguarded: {} is offered even if the host needs it", entry.address
            );
        }
        let service = Self { config, store, hosts, rules, changing, templates, in_flight, verifying, turns };
        let service = Arc::new(service);
        for host in &service.hosts {
            tokio::spawn(reconcile::follow(Arc::clone(&service), Arc::clone(host)));
        }
        tokio::spawn(others::follow(Arc::clone(&service)));
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

    /// The flavor of an id or a name.
    pub fn flavor(&self, id: &str) -> Option<&Flavor> {
        self.config.flavor.iter().find(|flavor| flavor.id() == id || flavor.name == id)
    }

    /// How often and how long guests are asked to let a device go.
    pub fn detach_limits(&self) -> DetachLimits {
        DetachLimits { attempts: self.config.detach.attempts, timeout: self.config.detach.timeout.0 }
    }
}

/// Everything in the rules and flavors of a configuration that is refused, with its place.
pub fn problems(config: &Config) -> Vec<ConfigError> {
    let rules = Rules::read(Rule::of_file(&config.pci), &config.pci);
    let mut problems = rules.problems();
    problems.extend(flavor::problems(&config.flavor, &rules.inventory));
    problems
}

/// The rules of file and database. One of the database that the file no longer goes with is left out.
pub(crate) async fn read_rules(config: &Config, store: &Store) -> Result<Rules, Error> {
    let mut entries = Rule::of_file(&config.pci);
    entries.extend(store.rules().await?);
    let rules = Rules::read(entries, &config.pci);
    for problem in rules.problems() {
        tracing::error!("{problem}; it is left out: change or remove it under os-pci-config");
    }
    Ok(rules)
}

/// What the domain's document says of an attachment.
pub(crate) fn hostdev_spec(attachment: &Attachment, device: &Device) -> HostdevSpec {
    HostdevSpec {
        source: device.facts.address,
        alias: UserAlias(attachment.id.0),
        managed: attachment.managed,
        rom_bar: None,
        guest: None,
        interface: attachment
            .network
            .as_ref()
            .map(|network| InterfaceSpec { mac: network.mac, vlan: network.vlan }),
    }
}

async fn open_store(config: &Config) -> Result<Store, StartError> {
    let url = &config.database.url;
    if store::is_postgres(url) {
        return Store::open(url, None).await.map_err(|error| {
            let Error::Store(source) = error else { return StartError::Records(error) };
            StartError::Database { advice: postgres_advice(&source), source }
        });
    }
    let path = store::sqlite_file(url);
    let failed = |source: sqlx::Error| StartError::Database { advice: advice(&source, path), source };
    let io = |error| failed(sqlx::Error::Io(error));
    let directory = Path::new(path).parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory).map_err(io)?;
    }
    // Two services on one file would each take the other's work for what a dead one left.
    let Some(lock) = store::lock(path).map_err(io)? else {
        let source = sqlx::Error::Io(std::io::Error::other("another hotslot has it open"));
        let advice = format!("stop the other one, or give this one its own [database] url instead of {path}");
        return Err(StartError::Database { source, advice });
    };
    Store::open(url, Some(lock)).await.map_err(|error| {
        if let Error::Store(source) = error { failed(source) } else { StartError::Records(error) }
    })
}

fn advice(error: &sqlx::Error, path: &str) -> String {
    const NOT_A_DATABASE: &str = "26";
    if matches!(error, sqlx::Error::Migrate(_)) {
        format!("{path} was written by another version of hotslot; use that one, or another [database] url")
    } else if matches!(error, sqlx::Error::Configuration(_)) {
        "write [database] url as sqlite:///var/lib/hotslot/hotslot.db".into()
    } else if error.as_database_error().and_then(|error| error.code()).as_deref() == Some(NOT_A_DATABASE) {
        format!("{path} is no SQLite database; name another file in [database] url")
    } else {
        format!("[database] url names {path}: is its directory there, and may hotslot write it?")
    }
}

fn postgres_advice(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let advice = match (error, code.as_deref()) {
        (sqlx::Error::Migrate(_), _) => {
            "it was written by another version of hotslot; use that one, or another [database] url"
        }
        (sqlx::Error::Configuration(_), _) => {
            "write [database] url as postgres://USER:PASSWORD@HOST/DATABASE"
        }
        (_, Some("3D000")) => "PostgreSQL has no database of that name; make it by createdb",
        (_, Some("28000" | "28P01")) => {
            "PostgreSQL does not let that user in; look at [database] url and its pg_hba.conf"
        }
        (_, Some("42501")) => {
            "give the user of [database] url the right to create tables: GRANT CREATE ON SCHEMA public"
        }
        _ => "does PostgreSQL run where [database] url says, and may this machine reach it?",
    };
    advice.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_start_that_is_refused_tells_everything_that_is_wrong() {
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
        let places =
            ["[pci] device_spec[0]: vendor_id", "[pci] alias[0]: vendor_id", "[[flavor]][0]: extra_specs"];
        assert_eq!(lines.len(), places.len(), "{refused}");
        for (line, place) in lines.iter().zip(places) {
            assert!(line.starts_with(place), "{refused}");
        }
    }
}
