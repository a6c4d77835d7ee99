//! The life of a guest: start, boot, pause, resume, reboot, save and stop.
//!
//! ```text
//! shut off ──start──▶ booting ──boot_ms──▶ running ◀──resume── paused
//!     ▲                  ▲                    │ └──────pause──────▲
//!     │                  └─────reboot─────────┤
//!     └──── shutdown, destroy, crash ─────────┘   devices return to the host, with lifecycle events only
//!     └──── save ── restore, or a start after a managed save: running, with the document that was saved
//! ```
//! A guest with host devices can only be saved or migrated when it is `migratable`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::hypervisor::{DomainState, ErrorKind, Event, Lifecycle};
use crate::pci::PciAddress;

use super::document::Document;
use super::host::{Domain, Host};
use super::plug::Source;
use super::refusal::{self, Refusal};
use super::store::SavedImage;

impl Host {
    /// Starts a domain from its definition, or restores it after a managed save.
    pub(super) fn start(&mut self, uuid: Uuid, now: Instant) -> Result<(), Refusal> {
        let domain = self.domain(uuid)?;
        if domain.live.is_some() {
            return Err(refusal::already_running());
        }
        if domain.image.as_ref().is_some_and(|image| image.managed) {
            return self.restore(uuid);
        }
        let definition = domain.persistent.clone().ok_or_else(refusal::transient)?;
        self.run(uuid, &definition, |host| {
            definition.started(host.next_id, |source| host.is_express(source))
        })?;
        self.boot(uuid, now)
    }

    /// Starts a domain with the devices of a document, after libvirt's checks of the devices.
    fn run(
        &mut self,
        uuid: Uuid,
        document: &Document,
        live: impl FnOnce(&Self) -> Result<Document, Refusal>,
    ) -> Result<(), Refusal> {
        let wanted: Vec<PciAddress> = document.parsed().hostdevs.iter().map(|held| held.source).collect();
        for held in &document.parsed().hostdevs {
            self.check_free(uuid, held.source, held.managed, held.interface)?;
        }
        let mdevs: Vec<Uuid> = document.parsed().mdevs.iter().map(|held| held.uuid).collect();
        mdevs.iter().try_for_each(|mdev| self.check_mdev(*mdev))?;
        let gone = wanted.iter().filter_map(|address| self.devices.get(*address));
        let gone: Vec<PciAddress> =
            gone.flat_map(|device| self.devices.virtual_functions(&device.info)).collect();
        if let Some(vf) = wanted.iter().find(|address| gone.contains(address)) {
            return Err(refusal::no_such_function(*vf));
        }
        let live = match self.check_viable(&wanted).and_then(|()| live(self)) {
            Ok(live) => live,
            Err(refused) => {
                wanted.into_iter().for_each(|address| self.bounce(address));
                return Err(refused);
            }
        };
        for address in wanted {
            self.hold(uuid, address);
        }
        mdevs.into_iter().for_each(|mdev| self.hold_mdev(uuid, mdev));
        self.next_id += 1;
        let domain = self.domain_mut(uuid)?;
        domain.live = Some(live);
        domain.state = DomainState::Running;
        self.live_changed(uuid, Lifecycle::Started);
        self.emit(Event::Lifecycle { domain: uuid, change: Lifecycle::Resumed });
        Ok(())
    }

    /// Saves a run and stops the domain. With `managed` the next start restores it.
    pub(super) fn save_run(&mut self, uuid: Uuid, managed: bool, now: Instant) -> Result<(), Refusal> {
        self.check_migratable(uuid)?;
        let domain = self.domain_mut(uuid)?;
        let live = domain.live.as_ref().ok_or_else(refusal::not_running)?.text().to_owned();
        domain.image = Some(SavedImage { live, managed });
        self.stop(uuid, &[Lifecycle::Suspended, Lifecycle::Stopped], now)
    }

    /// Restores a saved run with its own document, even when the definition has changed since.
    pub(super) fn restore(&mut self, uuid: Uuid) -> Result<(), Refusal> {
        let domain = self.domain(uuid)?;
        if domain.live.is_some() {
            return Err(refusal::already_running());
        }
        let image = domain.image.clone().ok_or_else(refusal::nothing_saved)?;
        let document =
            Document::read(image.live).map_err(|error| Refusal::new(ErrorKind::Document, error))?;
        self.run(uuid, &document, |host| document.renumbered(host.next_id))?;
        self.domain_mut(uuid)?.image = None;
        self.save(uuid);
        Ok(())
    }

    /// Migrates a domain with its definition to another host: it vanishes from this one.
    pub(super) fn migrate_away(&mut self, uuid: Uuid, now: Instant) -> Result<(), Refusal> {
        self.check_migratable(uuid)?;
        if self.domain(uuid)?.persistent.is_some() {
            self.undefine(uuid)?;
        }
        if self.domains.contains_key(&uuid) {
            self.stop(uuid, &[Lifecycle::Suspended, Lifecycle::Stopped], now)?;
        }
        Ok(())
    }

    /// Refuses a guest with a host device, unless it is migratable.
    fn check_migratable(&self, uuid: Uuid) -> Result<(), Refusal> {
        let domain = self.domain(uuid)?;
        let held = domain.live.as_ref().and_then(|live| live.sources().next());
        match held.filter(|_| !domain.guest.migratable) {
            Some((Source::Function(held), _)) => Err(refusal::not_migratable(held)),
            Some((Source::Mdev(held), _)) => Err(refusal::not_migratable(held)),
            None => Ok(()),
        }
    }

    /// Renames a shut-off domain.
    pub(super) fn rename(&mut self, uuid: Uuid, name: &str) -> Result<(), Refusal> {
        if self.domains.values().any(|domain| domain.name == name) {
            return Err(refusal::name_in_use(name));
        }
        let domain = self.domain_mut(uuid)?;
        if domain.live.is_some() {
            return Err(refusal::rename_running());
        }
        if domain.image.as_ref().is_some_and(|image| image.managed) {
            return Err(refusal::rename_saved());
        }
        let definition = domain.persistent.as_ref().ok_or_else(refusal::transient)?;
        domain.persistent = Some(definition.renamed(name)?);
        name.clone_into(&mut domain.name);
        self.live_changed(uuid, Lifecycle::Undefined);
        self.emit(Event::Lifecycle { domain: uuid, change: Lifecycle::Defined });
        Ok(())
    }

    /// Writes hotslot's own metadata into the documents of a domain, or removes it from them.
    pub(super) fn set_owner(&mut self, uuid: Uuid, project: Option<&str>) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        let with = |document: &Option<Document>| {
            document.as_ref().map(|document| document.with_owner(project)).transpose()
        };
        let (live, persistent) = (with(&domain.live)?, with(&domain.persistent)?);
        (domain.live, domain.persistent) = (live, persistent);
        self.save(uuid);
        Ok(())
    }

    /// Defines a domain, or replaces its definition (`virsh define`).
    pub(super) fn define(&mut self, xml: &str) -> Result<(), Refusal> {
        let unread = |error| Refusal::new(ErrorKind::Document, error);
        let definition = Document::read(xml.to_owned()).map_err(unread)?.stopped()?;
        let (uuid, name) = (definition.parsed().uuid, definition.parsed().name.clone());
        if self.domains.values().any(|domain| domain.name == name && domain.uuid != uuid) {
            return Err(refusal::name_in_use(&name));
        }
        let guest = self.config.guest.get(&name).cloned().unwrap_or_default();
        let domain = self.domains.entry(uuid).or_insert_with(|| Domain::new(uuid, name, guest));
        domain.persistent = Some(definition);
        self.live_changed(uuid, Lifecycle::Defined);
        Ok(())
    }

    /// Stops a domain. It sends `changes` as lifecycle events, and no events of its devices.
    pub(super) fn stop(&mut self, uuid: Uuid, changes: &[Lifecycle], now: Instant) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        let live = domain.live.take().ok_or_else(refusal::not_running)?;
        domain.state = DomainState::ShutOff;
        domain.booting = None;
        domain.pending.clear();
        self.save(uuid);
        for change in changes {
            self.emit(Event::Lifecycle { domain: uuid, change: *change });
        }
        let held: Vec<PciAddress> = live.parsed().hostdevs.iter().map(|held| held.source).collect();
        let delay = Duration::from_millis(self.config.release_ms);
        self.release(&held, (!delay.is_zero()).then(|| now + delay));
        live.parsed().mdevs.iter().for_each(|held| self.release_mdev(held.uuid));
        Ok(())
    }

    pub(super) fn pause(&mut self, uuid: Uuid) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        if domain.state != DomainState::Running {
            return Err(refusal::not_running());
        }
        domain.state = DomainState::Paused;
        domain.pending.values_mut().for_each(|pending| pending.due = None);
        self.live_changed(uuid, Lifecycle::Suspended);
        Ok(())
    }

    /// Resumes a paused guest, which then answers the unplug requests of the meantime.
    pub(super) fn resume(&mut self, uuid: Uuid, now: Instant) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        match domain.state {
            DomainState::Paused => {}
            DomainState::Running => return Err(refusal::already_running()),
            DomainState::Blocked
            | DomainState::ShuttingDown
            | DomainState::ShutOff
            | DomainState::Crashed
            | DomainState::Suspended
            | DomainState::Unknown => return Err(refusal::not_running()),
        }
        domain.state = DomainState::Running;
        let due = domain.answers_at(now);
        domain.pending.values_mut().for_each(|pending| pending.due = due);
        self.live_changed(uuid, Lifecycle::Resumed);
        Ok(())
    }

    /// Resets the guest: devices with a pending unplug request are removed, and the guest boots.
    pub(super) fn reboot(&mut self, uuid: Uuid, now: Instant) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        if domain.live.is_none() {
            return Err(refusal::not_running());
        }
        let pending = std::mem::take(&mut domain.pending);
        self.live_changed(uuid, Lifecycle::Rebooted);
        for (alias, pending) in pending {
            self.remove_from_guest(uuid, alias, pending.lose_event);
        }
        self.set_agent(uuid, false)?;
        self.boot(uuid, now)
    }

    /// Removes a domain's definition. A domain that does not run vanishes.
    pub(super) fn undefine(&mut self, uuid: Uuid) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        domain.persistent.take().ok_or_else(refusal::transient)?;
        self.live_changed(uuid, Lifecycle::Undefined);
        Ok(())
    }

    /// Connects or disconnects the guest agent.
    pub(super) fn set_agent(&mut self, uuid: Uuid, connected: bool) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        let live = domain.live.as_ref().ok_or_else(refusal::not_running)?;
        if !live.has_agent_channel() || live.parsed().agent_connected == connected {
            return Ok(());
        }
        domain.live = Some(live.with_agent(connected)?);
        self.save(uuid);
        self.emit(Event::Agent { domain: uuid, connected });
        Ok(())
    }

    /// Returns the guest agent's answer to a command.
    pub(super) fn ask_agent(&self, uuid: Uuid, command: &str) -> Result<String, Refusal> {
        let domain = self.domain(uuid)?;
        let live = domain.live.as_ref().ok_or_else(refusal::not_running)?;
        let command: serde_json::Value =
            serde_json::from_str(command).map_err(|error| Refusal::new(ErrorKind::Document, error))?;
        if !live.parsed().agent_connected || domain.state != DomainState::Running {
            return Err(refusal::agent_away());
        }
        let execute = command.get("execute").and_then(Value::as_str).unwrap_or_default();
        if let Some(answer) = domain.guest.agent_answers.get(execute) {
            return Ok(answer.clone());
        }
        let files = &domain.guest.agent_files;
        if files.is_empty() {
            return Err(refusal::agent_away());
        }
        agent_file(files, execute, &command["arguments"])
    }

    fn boot(&mut self, uuid: Uuid, now: Instant) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        domain.booting = Some(now + Duration::from_millis(domain.guest.boot_ms));
        Ok(())
    }

    /// Ends the boot when it is due, and connects the guest agent.
    pub(super) fn end_of_boot(&mut self, uuid: Uuid, now: Instant) {
        let Some(domain) = self.domains.get_mut(&uuid) else { return };
        if domain.booting.is_none_or(|until| until > now) {
            return;
        }
        domain.booting = None;
        if domain.guest.agent
            && let Err(error) = self.set_agent(uuid, true)
        {
            tracing::error!(domain = %uuid, error = error.message, "simulated host: cannot connect the guest agent");
        }
    }

    fn live_changed(&mut self, uuid: Uuid, change: Lifecycle) {
        self.save(uuid);
        self.emit(Event::Lifecycle { domain: uuid, change });
    }
}

/// Returns the answer of an agent that can read these files (QEMU, `qga/qapi-schema.json`). The handle of a file is its
/// index.
fn agent_file(files: &BTreeMap<String, String>, execute: &str, arguments: &Value) -> Result<String, Refusal> {
    let refused =
        |text: &str| Refusal::new(ErrorKind::Refused, format!("guest agent command failed: {text}"));
    let answer = match execute {
        "guest-file-open" => {
            let path = arguments["path"].as_str().unwrap_or_default();
            let handle = files.keys().position(|file| file == path);
            json!(handle.ok_or_else(|| refused(&format!("failed to open file '{path}': No such file")))?)
        }
        "guest-file-read" => {
            let handle = arguments["handle"].as_u64().and_then(|handle| usize::try_from(handle).ok());
            let text = handle.and_then(|handle| files.values().nth(handle));
            let text = text.ok_or_else(|| refused("handle not found"))?;
            let bytes = base64::engine::general_purpose::STANDARD.encode(text);
            json!({ "count": text.len(), "buf-b64": bytes, "eof": true })
        }
        "guest-file-close" => json!({}),
        _ => return Err(refused("unknown command")),
    };
    Ok(json!({ "return": answer }).to_string())
}
