//! One server: its records against the documents of its domain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::domain::{DomainXml, Hostdev, MdevHostdev, UserAlias};
use hotslot_driver::hotplug::Presence;
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::mdev;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;

use super::finding::{Action, Finding, Kind, Source, is_gone, record};
use crate::DeviceEvent;
use crate::assignment::{Adopted, Adoption, Assignment, Network, Observation, State};
use crate::device::Device;
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};

/// The input of the comparison of one server.
pub struct Comparison<'a> {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server that is compared.
    pub server: ServerId,
    /// Its open assignments on this host that nobody works on.
    pub rows: &'a [Assignment],
    /// The records that the aliases in its documents name, except those that somebody works on; `None` for an alias
    /// without a record.
    pub named: &'a BTreeMap<AttachmentId, Option<Assignment>>,
    /// The server as the host has it; `None` when the host does not have it.
    pub view: Option<&'a DomainView>,
    /// Finds a device on record.
    pub device: &'a dyn Fn(DeviceId) -> Option<Arc<Device>>,
    /// Finds a device of the host on record by its address.
    pub device_at: &'a dyn Fn(PciAddress) -> Option<Arc<Device>>,
    /// Another host that has the server.
    pub elsewhere: Option<&'a str>,
    /// The mediated devices that ended although nobody had requested that, and that their holders cannot have again: the
    /// holder is deleted, holds something else now, or stands for another device than their parent.
    pub replaced: &'a BTreeSet<AttachmentId>,
    /// The host's mediated devices, as they were last read.
    pub mdevs: &'a [mdev::Mdev],
    /// Whether a device is held for mediated devices that are made of it.
    pub is_in_parts: &'a dyn Fn(DeviceId) -> bool,
}

impl Comparison<'_> {
    fn finding(&self, kind: Kind, row: &Assignment, action: Action) -> Finding {
        Finding {
            attachment: Some(row.id()),
            address: (self.device)(row.device()).map(|device| device.facts.address),
            observations: vec![(Source::Record, record(row))],
            ..self.of_server(kind, action)
        }
    }

    fn of_server(&self, kind: Kind, action: Action) -> Finding {
        let name = self.view.map(|view| view.info.name.clone());
        let server = Some((self.server, name));
        Finding { kind, server, attachment: None, address: None, observations: Vec::new(), action }
    }

    /// Returns what each document says about the device under an alias.
    fn documents(&self, id: AttachmentId) -> Vec<(Source, String)> {
        let Some(view) = self.view else {
            let where_else = self.elsewhere.map(|host| format!("; host {host} has it")).unwrap_or_default();
            return vec![(Source::Host, format!("there is no such domain{where_else}"))];
        };
        let observed = |document: &Option<DomainXml>| {
            let document = document.as_ref()?;
            let alias = UserAlias(id.0);
            Some(match (document.hostdev(alias), document.mdev(alias)) {
                (Some(hostdev), _) => format!("has {}", hostdev.source),
                (None, Some(mdev)) => format!("has mediated device {}", mdev.uuid),
                (None, None) => "does not have it".to_owned(),
            })
        };
        let both = [(Source::Live, observed(&view.live)), (Source::Definition, observed(&view.persistent))];
        both.into_iter().filter_map(|(witness, observed)| Some((witness, observed?))).collect()
    }

    /// Returns every disagreement about the server's assignments.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (row, observation) in observe(self.rows, self.view, self.elsewhere) {
            if row.state().on(row.record(), &observation).is_some() {
                let kind = match (row.state(), &observation) {
                    (State::Attaching, _) => Kind::Unfinished,
                    (_, seen) if is_gone(seen) => Kind::Absent,
                    _ => Kind::Outdated,
                };
                let action = Action::Settle(Box::new(row.clone()), observation);
                findings.push(self.finding(kind, row, action));
            }
            findings.extend(self.view.and_then(|view| self.of_present(row, view)));
        }
        findings.extend(self.named.iter().filter_map(|(id, row)| match row {
            Some(row) => self.of_others(row),
            None => self.unrecorded(*id, None),
        }));
        for finding in &mut findings {
            if let Some(id) = finding.attachment {
                finding.observations.extend(self.documents(id));
            }
        }
        findings
    }

    /// Returns what is wrong with a device that a document has, if anything.
    fn of_present(&self, row: &Assignment, view: &DomainView) -> Option<Finding> {
        let presence = Presence::of(view, UserAlias(row.id().0));
        if presence.is_absent() {
            return None;
        }
        let own = || Box::new(row.clone());
        match row.state() {
            State::Detaching => return Some(self.finding(Kind::Unfinished, row, Action::RetryUnplug(own()))),
            State::Attached => {}
            State::Attaching | State::Detached | State::Failed => return None,
        }
        let (is_another, again) = match row {
            Assignment::Binding(_) => return None,
            Assignment::Attachment(row) => (
                (self.device)(row.device)
                    .zip(hostdev(view, row.id))
                    .is_some_and(|(device, found)| device.facts.address != found.source),
                format!("detach attachment {} and attach the device again", row.id),
            ),
            Assignment::Mdev(row) => (
                mdev_of(view, row.id).is_some_and(|found| found.uuid != row.id.0),
                format!("DELETE {}, and attach it again", row.holder.path()),
            ),
        };
        if is_another {
            let advice = format!("nothing, for the guest may use it: {again}");
            return Some(self.finding(Kind::Conflict, row, Action::Manual(advice)));
        }
        match (presence.live, presence.config) {
            (_, true) if !row.persistent() => Some(self.finding(Kind::Defined, row, Action::Undefine(own()))),
            (false, true) if view.live.is_some() => {
                Some(self.finding(Kind::NotLive, row, Action::Plug(own())))
            }
            (true, false) if row.persistent() && view.persistent.is_some() => {
                Some(self.finding(Kind::NotDefined, row, Action::Define(own())))
            }
            _ => None,
        }
    }

    /// An alias of ours in this server's documents whose record is of another server, or has ended.
    fn of_others(&self, row: &Assignment) -> Option<Finding> {
        let is_of_server = row.server() == Some(self.server);
        let here = is_of_server && row.hypervisor() == self.hypervisor;
        let mut finding = match (here, row.state().is_final()) {
            (true, false) => return None,
            // Nobody requested its end, so it came back together with its domain.
            (_, true) if row.unrequested() && !self.replaced.contains(&row.id()) => {
                return self.unrecorded(row.id(), Some(row));
            }
            (_, true) => self.finding(
                Kind::Stray,
                row,
                Action::TakeOut {
                    row: Box::new(row.clone().in_server(self.hypervisor, self.server)),
                    // Its removal was requested, and is still wanted on whichever host the server is now.
                    requested: is_of_server && !row.unrequested(),
                },
            ),
            (false, false) => {
                let advice = format!(
                    "nothing: it is {} of {}; take the copy out of here (virsh detach-device-alias {} {} --config)",
                    row.key(),
                    row.owner(),
                    self.server,
                    UserAlias(row.id().0)
                );
                self.finding(Kind::Conflict, row, Action::Manual(advice))
            }
        };
        if !here && let Some((_, record)) = finding.observations.first_mut() {
            *record = format!("{record} (of {})", row.owner());
        }
        Some(finding)
    }

    /// An alias of ours without an open record. `ended` is the record if it has ended although nobody had requested
    /// that.
    fn unrecorded(&self, id: AttachmentId, ended: Option<&Assignment>) -> Option<Finding> {
        let view = self.view?;
        if let Some(found) = mdev_of(view, id) {
            return Some(self.unrecorded_mdev(view, id, found, ended));
        }
        let hostdev = hostdev(view, id)?;
        let what = Adopted::Function {
            managed: hostdev.managed,
            network: hostdev.mac.filter(|_| hostdev.interface).map(|mac| Network {
                mac,
                vlan: hostdev.vlan,
                physical_network: None,
                trusted: None,
                vf: VfSettings::default(),
            }),
        };
        let record = ended_record(&format!("attachment {id}"), ended);
        Some(self.adoptable(view, id, hostdev.source, record, what))
    }

    /// A mediated device under an alias of ours without an open record. Only a record that has ended tells for which
    /// accelerator it was made.
    fn unrecorded_mdev(
        &self,
        view: &DomainView,
        id: AttachmentId,
        found: &MdevHostdev,
        ended: Option<&Assignment>,
    ) -> Finding {
        let record = ended_record(&format!("mediated device {}", found.uuid), ended);
        let known = self.mdevs.iter().find(|mdev| mdev.uuid == found.uuid);
        let manual = |why: &str| {
            let advice = format!(
                "nothing, for {why}: take it out of the domain (virsh detach-device-alias {} {}), then away from the \
                 host (virsh nodedev-destroy)",
                view.info.name,
                UserAlias(id.0)
            );
            Finding {
                attachment: Some(id),
                observations: vec![(Source::Record, record.clone())],
                ..self.of_server(Kind::Unrecorded, Action::Manual(advice))
            }
        };
        let Some(Assignment::Mdev(_)) = ended.filter(|row| row.id().0 == found.uuid) else {
            return manual("it is not known for which accelerator it was made");
        };
        match known.and_then(|known| Some((known, known.parent?))) {
            None => manual("the host does not show which function makes it"),
            Some((known, parent)) => {
                let what = Adopted::Mdev { mdev_type: known.mdev_type.clone() };
                self.adoptable(view, id, parent, record, what)
            }
        }
    }

    /// A device under an alias of ours without an open record: it is adopted if its function is free, or if it is a
    /// mediated device and its function makes such devices.
    fn adoptable(
        &self,
        view: &DomainView,
        id: AttachmentId,
        address: PciAddress,
        record: String,
        what: Adopted,
    ) -> Finding {
        let presence = Presence::of(view, UserAlias(id.0));
        let device = (self.device_at)(address);
        let shared = matches!(what, Adopted::Mdev { .. })
            && device.as_ref().is_some_and(|device| (self.is_in_parts)(device.id));
        let (kind, record, action) = match device {
            None => {
                let advice = format!(
                    "nothing, for no device_spec lists {address}: add one, or take the device out (virsh \
                     detach-device-alias {} {})",
                    view.info.name,
                    UserAlias(id.0)
                );
                let record = format!("{record}, and there is no device {address}");
                (Kind::Unrecorded, record, Action::Manual(advice))
            }
            Some(device) => match device.owner.filter(|_| !shared) {
                Some(owner) => {
                    let record = format!("{record}; {address} is {} to {owner}", device.status);
                    let advice = "nothing: detach the device from one of the two".to_owned();
                    (Kind::Conflict, record, Action::Manual(advice))
                }
                None if !shared && device.status.on(DeviceEvent::Allocate).is_err() => {
                    let record = format!("{record}; {address} is {}", device.status);
                    let advice =
                        format!("nothing: the PF or a VF of {address} is in use; detach one of them");
                    (Kind::Conflict, record, Action::Manual(advice))
                }
                None => {
                    let adoption = Adoption {
                        id,
                        hypervisor: self.hypervisor,
                        server: self.server,
                        address,
                        persistent: presence.config,
                        inner: presence.inner_address,
                        what,
                    };
                    let record = format!("{record}; {address} is {}", device.status);
                    (Kind::Unrecorded, record, Action::Adopt(Box::new(adoption)))
                }
            },
        };
        Finding {
            attachment: Some(id),
            address: Some(address),
            observations: vec![(Source::Record, record)],
            ..self.of_server(kind, action)
        }
    }
}

/// Describes the record of a device that has no open record, for people. `name` is its noun and id.
fn ended_record(name: &str, ended: Option<&Assignment>) -> String {
    match ended {
        None => format!("no {name}"),
        Some(row) => {
            let reason = row.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{name} is {}{reason}", row.state())
        }
    }
}

/// Finds the device under an alias of ours: in the live document, or else in the definition.
fn hostdev(view: &DomainView, id: AttachmentId) -> Option<&Hostdev> {
    let mut documents = [&view.live, &view.persistent].into_iter().flatten();
    documents.find_map(|document| document.hostdev(UserAlias(id.0)))
}

/// Finds the mediated device under an alias of ours: in the live document, or else in the definition.
fn mdev_of(view: &DomainView, id: AttachmentId) -> Option<&MdevHostdev> {
    let mut documents = [&view.live, &view.persistent].into_iter().flatten();
    documents.find_map(|document| document.mdev(UserAlias(id.0)))
}

/// Returns the aliases of ours in a domain's documents, including those of mediated devices.
pub fn aliases(view: &DomainView) -> BTreeSet<AttachmentId> {
    let documents = [&view.live, &view.persistent].into_iter().flatten();
    let names = documents.flat_map(|document| {
        let functions = document.hostdevs.iter().map(|hostdev| hostdev.alias.as_deref());
        functions.chain(document.mdevs.iter().map(|mdev| mdev.alias.as_deref())).flatten()
    });
    names.filter_map(UserAlias::parse).map(|alias| AttachmentId(alias.0)).collect()
}

/// Returns the observation for each assignment, from the domain's documents.
fn observe<'a>(
    rows: &'a [Assignment],
    view: Option<&DomainView>,
    elsewhere: Option<&str>,
) -> Vec<(&'a Assignment, Observation)> {
    let presence = |row: &Assignment| view.map(|view| Presence::of(view, UserAlias(row.id().0)));
    let defined = view.is_some_and(|view| view.persistent.is_some());
    let whole = |row: &Assignment, is: Presence| is.config || is.live && !(row.persistent() && defined);
    // A request gets all its devices or none, so the devices of a request that was interrupted are taken back.
    let cut_off: BTreeSet<RequestId> = rows
        .iter()
        .filter(|row| row.state() == State::Attaching && !presence(row).is_some_and(|is| whole(row, is)))
        .map(Assignment::request)
        .collect();
    let running = view.is_some_and(|view| view.live.is_some());
    let seen = |row: &Assignment| match presence(row) {
        None => match elsewhere {
            Some(host) => Observation::Removed { reason: Some(format!("the server is on host {host} now")) },
            None => Observation::DomainGone,
        },
        Some(presence) if presence.is_absent() => {
            if running {
                Observation::Absent
            } else {
                Observation::DomainStopped
            }
        }
        Some(_) if row.state() == State::Attaching && cut_off.contains(&row.request()) => {
            let reason =
                "undone, because the attach of another device of the same request was interrupted".to_owned();
            Observation::GivenUp { reason }
        }
        Some(presence) => Observation::Present {
            inner: presence.inner_address,
            only_in_definition: running && !presence.live,
            // If the run is not known, assume the same run until an event reports a start or reboot.
            same_run: view.filter(|view| view.live.is_some()).is_some_and(|view| {
                let run = row.inner().and_then(|inner| inner.run);
                run.is_none() || run == view.info.run
            }),
        },
    };
    rows.iter().map(|row| (row, seen(row))).collect()
}
