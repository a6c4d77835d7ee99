//! Drift: where the records, a domain's two documents and the host's devices say different things of an attachment, or
//! of what an accelerator holds otherwise, and what is done about it.
//!
//! ```text
//! compare (one server, or the host's devices) → findings, each with its action
//!   an event does what is safe · a round asks guests again, too · a repair does the rest · people are told the others
//! ```
//! Reconciliation and `GET /drift` see the same findings, for both come from here. What is done is in `repair`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::domain::{DomainXml, Hostdev, MdevHostdev, UserAlias};
use hotslot_driver::hotplug::Presence;
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::mdev;
use hotslot_driver::pci::PciAddress;

use super::{Assignment, AssignmentKind, Observation, State};
use crate::assignment::{Adopted, Adoption, Attachment, Binding, Mdev, Network};
use crate::device::{Device, Functions};
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::rules::Foreign;
use crate::{DeviceEvent, string_enum};

string_enum! {
    /// What disagrees.
    Kind {
        /// No document of the domain has an attachment, or there is no such domain.
        Absent = "absent",
        /// An attachment is in transition, and nobody works on it.
        Unfinished = "unfinished",
        /// The record says something else of an attachment than the documents.
        Outdated = "outdated",
        /// The running guest lacks a device that its definition has.
        NotLive = "not-live",
        /// The definition lacks a device that is to survive a power cycle.
        NotDefined = "not-defined",
        /// The definition has a device that was for this run only.
        Defined = "defined",
        /// A domain has the device of an attachment that has ended, or a domain or the host a mediated device whose
        /// record has ended.
        Stray = "stray",
        /// A domain has a device under our alias, and there is no record of it, or one that has ended although nobody
        /// asked for the device to go.
        Unrecorded = "unrecorded",
        /// Two things that cannot both be so.
        Conflict = "conflict",
        /// A device on record is in a domain, and hotslot did not put it there.
        Foreign = "foreign",
        /// The host lacks a device that a server has, or the host itself.
        DeviceGone = "device-gone",
        /// A device is promised to a server, and no attachment says why.
        Unattached = "unattached",
        /// A device that nobody has any more is not with its host driver again.
        NoHostDriver = "no-host-driver",
        /// A device that the host itself has is not bound as its accelerator says.
        OtherDriver = "other-driver",
        /// A domain cannot be read.
        Unread = "unread",
    }
}

string_enum! {
    /// Who says something.
    Source {
        /// hotslot's records.
        Record = "record",
        /// The running guest's document.
        Live = "live",
        /// The domain's definition.
        Definition = "definition",
        /// The host.
        Host = "host",
    }
}

/// When something is done, the earliest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// As soon as it is seen.
    Event,
    /// When a device came into a guest, or a guest's life went on.
    Arrival,
    /// With the next full comparison.
    Round,
    /// When somebody asks for it.
    Repair,
}

/// What would be done about a disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The record follows; a mediated device that no document has is removed from the host first.
    Settle(Box<Assignment>, Observation),
    /// A mediated device whose record has ended is taken away from the host.
    TakeAway(Box<Assignment>),
    /// The attachment gets a record.
    Adopt(Box<Adoption>),
    /// The guest is asked again to let the device go.
    AskAgain(Box<Assignment>),
    /// The device is taken out of the domain.
    TakeOut {
        /// The record, as if it were of the server that has the device.
        row: Box<Assignment>,
        /// Whether that is safe at any time: what a failed attach left, and its caller was told so.
        left_over: bool,
    },
    /// The device is plugged into the running guest.
    Plug(Box<Assignment>),
    /// The device is put into the definition.
    Define(Box<Assignment>),
    /// The device is taken out of the definition.
    Undefine(Box<Assignment>),
    /// The device goes back to its host driver.
    GiveBack(AttachmentId),
    /// The promise is forgotten.
    Free(DeviceId),
    /// Nothing, for hotslot cannot know what is right: what a person can do.
    Manual(String),
}

impl Action {
    /// When it is done; none when it is a person's.
    pub fn occasion(&self) -> Option<Trigger> {
        match self {
            Self::Settle(..) | Self::TakeAway(_) | Self::Adopt(_) | Self::GiveBack(_) => Some(Trigger::Event),
            // Not at every event: a guest that refuses is heard of, too.
            Self::TakeOut { left_over: true, .. } => Some(Trigger::Arrival),
            Self::AskAgain(_) => Some(Trigger::Round),
            Self::Plug(_)
            | Self::Define(_)
            | Self::Undefine(_)
            | Self::Free(_)
            | Self::TakeOut { left_over: false, .. } => Some(Trigger::Repair),
            Self::Manual(_) => None,
        }
    }
}

/// For people.
impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settle(row, seen) if is_gone(seen) && row.kind() == AssignmentKind::Mdev => {
                "the mediated device is taken away from the host, and recorded as ended"
            }
            Self::Settle(_, seen) if is_gone(seen) => {
                "the attachment is recorded as ended, and its device as free"
            }
            Self::Settle(_, Observation::GivenUp { .. }) => "the attach is undone",
            Self::Settle(..) => "the record follows the documents",
            Self::TakeAway(_) => "the mediated device is taken away from the host",
            Self::Adopt(_) => "the attachment is put on record",
            Self::AskAgain(_) => "the guest is asked again to let it go",
            Self::TakeOut { .. } => "it is taken out of the domain",
            Self::Plug(_) => "it is plugged into the running guest",
            Self::Define(_) => "it is put into the definition",
            Self::Undefine(_) => "it is taken out of the definition",
            Self::GiveBack(_) => "it is given back to its host driver",
            Self::Free(_) => "the device is recorded as free",
            Self::Manual(what) => what,
        })
    }
}

/// Whether the device is in no document any more.
pub fn is_gone(seen: &Observation) -> bool {
    match seen {
        Observation::Removed { .. }
        | Observation::Absent
        | Observation::DomainStopped
        | Observation::DomainGone => true,
        Observation::Present { .. }
        | Observation::Verified { .. }
        | Observation::Restarted
        | Observation::AskedToDetach
        | Observation::GivenUp { .. }
        | Observation::DetachRefused { .. }
        | Observation::StillThere { .. }
        | Observation::AttachRefused { .. }
        | Observation::HostAway { .. } => false,
    }
}

/// One disagreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What disagrees.
    pub kind: Kind,
    /// The server that it is about, and its name where there is a domain.
    pub server: Option<(ServerId, Option<String>)>,
    /// The attachment that it is about.
    pub attachment: Option<AttachmentId>,
    /// Where the host has the device.
    pub address: Option<PciAddress>,
    /// What is said by whom.
    pub said: Vec<(Source, String)>,
    /// What would be done.
    pub action: Action,
}

impl Finding {
    /// Whether two findings are of the same thing, whatever is said of it now.
    pub fn is_of(&self, other: &Self) -> bool {
        let thing = |finding: &Self| {
            let server = finding.server.as_ref().map(|(id, _)| *id);
            (finding.kind, server, finding.attachment, finding.address)
        };
        thing(self) == thing(other)
    }
}

/// What is known when a server is compared.
pub struct Comparison<'a> {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server that is compared.
    pub server: ServerId,
    /// What it was promised on this host that has not ended, and that nobody works on.
    pub rows: &'a [Assignment],
    /// What the aliases in its documents name that nobody works on: a record, or none.
    pub named: &'a BTreeMap<AttachmentId, Option<Assignment>>,
    /// The server as the host has it; none when the host has no such server.
    pub view: Option<&'a DomainView>,
    /// The devices on record.
    pub device: &'a dyn Fn(DeviceId) -> Option<Arc<Device>>,
    /// The host's devices on record, by their places.
    pub device_at: &'a dyn Fn(PciAddress) -> Option<Arc<Device>>,
    /// Another host that has the server.
    pub elsewhere: Option<&'a str>,
    /// The mediated devices that ended although nobody had requested that, and whose holders hold something else now.
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
            said: vec![(Source::Record, record(row))],
            ..self.of_server(kind, action)
        }
    }

    fn of_server(&self, kind: Kind, action: Action) -> Finding {
        let name = self.view.map(|view| view.info.name.clone());
        let server = Some((self.server, name));
        Finding { kind, server, attachment: None, address: None, said: Vec::new(), action }
    }

    /// What the documents say of a device under an alias.
    fn documents(&self, id: AttachmentId) -> Vec<(Source, String)> {
        let Some(view) = self.view else {
            let where_else = self.elsewhere.map(|host| format!("; host {host} has it")).unwrap_or_default();
            return vec![(Source::Host, format!("there is no such domain{where_else}"))];
        };
        let said = |document: &Option<DomainXml>| {
            let document = document.as_ref()?;
            let alias = UserAlias(id.0);
            Some(match (document.hostdev(alias), document.mdev(alias)) {
                (Some(hostdev), _) => format!("has {}", hostdev.source),
                (None, Some(mdev)) => format!("has mediated device {}", mdev.uuid),
                (None, None) => "does not have it".to_owned(),
            })
        };
        let both = [(Source::Live, said(&view.live)), (Source::Definition, said(&view.persistent))];
        both.into_iter().filter_map(|(witness, said)| Some((witness, said?))).collect()
    }

    /// Every disagreement about what the server was promised.
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
                finding.said.extend(self.documents(id));
            }
        }
        findings
    }

    /// What is wrong with a device that a document has.
    fn of_present(&self, row: &Assignment, view: &DomainView) -> Option<Finding> {
        let presence = Presence::of(view, UserAlias(row.id().0));
        if presence.is_absent() {
            return None;
        }
        let own = || Box::new(row.clone());
        match row.state() {
            State::Detaching => return Some(self.finding(Kind::Unfinished, row, Action::AskAgain(own()))),
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
            (_, true) if row.unasked() && !self.replaced.contains(&row.id()) => {
                return self.unrecorded(row.id(), Some(row));
            }
            (_, true) => self.finding(
                Kind::Stray,
                row,
                Action::TakeOut {
                    row: Box::new(row.clone().in_server(self.hypervisor, self.server)),
                    // Its removal was requested, and is still wanted on whichever host the server is now.
                    left_over: is_of_server && !row.unasked(),
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
        if !here && let Some((_, record)) = finding.said.first_mut() {
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
                said: vec![(Source::Record, record.clone())],
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
            said: vec![(Source::Record, record)],
            ..self.of_server(kind, action)
        }
    }
}

/// What the records say of a device that has no open record; `name` is its noun and id.
fn ended_record(name: &str, ended: Option<&Assignment>) -> String {
    match ended {
        None => format!("no {name}"),
        Some(row) => {
            let reason = row.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{name} is {}{reason}", row.state())
        }
    }
}

/// The device under our alias, as the running guest has it, else as the definition has it.
fn hostdev(view: &DomainView, id: AttachmentId) -> Option<&Hostdev> {
    let mut documents = [&view.live, &view.persistent].into_iter().flatten();
    documents.find_map(|document| document.hostdev(UserAlias(id.0)))
}

/// The mediated device under our alias, as the running guest has it, else as the definition has it.
fn mdev_of(view: &DomainView, id: AttachmentId) -> Option<&MdevHostdev> {
    let mut documents = [&view.live, &view.persistent].into_iter().flatten();
    documents.find_map(|document| document.mdev(UserAlias(id.0)))
}

/// What the record says of a promise.
fn record(row: &Assignment) -> String {
    let what = match row {
        Assignment::Attachment(_) | Assignment::Binding(_) => None,
        Assignment::Mdev(row) => Some(format!("mediated device {} of type {}", row.id, row.mdev_type)),
    };
    let said: Vec<_> = what.as_deref().into_iter().chain(row.reason()).collect();
    match said.is_empty() {
        true => row.state().to_string(),
        false => format!("{}: {}", row.state(), said.join("; ")),
    }
}

/// The aliases of ours in a domain's documents, those of mediated devices among them.
pub fn aliases(view: &DomainView) -> BTreeSet<AttachmentId> {
    let documents = [&view.live, &view.persistent].into_iter().flatten();
    let names = documents.flat_map(|document| {
        let functions = document.hostdevs.iter().map(|hostdev| hostdev.alias.as_deref());
        functions.chain(document.mdevs.iter().map(|mdev| mdev.alias.as_deref())).flatten()
    });
    names.filter_map(UserAlias::parse).map(|alias| AttachmentId(alias.0)).collect()
}

/// What a domain's documents say of what it was promised.
fn observe<'a>(
    rows: &'a [Assignment],
    view: Option<&DomainView>,
    elsewhere: Option<&str>,
) -> Vec<(&'a Assignment, Observation)> {
    let presence = |row: &Assignment| view.map(|view| Presence::of(view, UserAlias(row.id().0)));
    let defined = view.is_some_and(|view| view.persistent.is_some());
    let whole = |row: &Assignment, is: Presence| is.config || is.live && !(row.persistent() && defined);
    // All devices of a request or none: one that was cut off in the middle is taken back.
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
            let reason = "taken back, for an attach of the same request was cut off".to_owned();
            Observation::GivenUp { reason }
        }
        Some(presence) => Observation::Present {
            inner: presence.inner_address,
            only_in_definition: running && !presence.live,
            // A run that is not known has gone on as long as nothing is heard of a start or reboot.
            same_run: view.filter(|view| view.live.is_some()).is_some_and(|view| {
                let run = row.inner().and_then(|inner| inner.run);
                run.is_none() || run == view.info.run
            }),
        },
    };
    rows.iter().map(|row| (row, seen(row))).collect()
}

/// The disagreements that are about the host's devices alone.
pub fn of_devices(
    rows: &[Attachment],
    devices: &[Arc<Device>],
    functions: &Functions,
    foreign: &BTreeMap<PciAddress, Foreign>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in devices {
        let address = device.facts.address;
        let row = rows.iter().find(|row| row.device == device.id);
        if let Some(row) = row
            && (device.gone_at.is_some() || !functions.contains_key(&address))
        {
            findings.push(Finding {
                kind: Kind::DeviceGone,
                server: Some((row.server, None)),
                attachment: Some(row.id),
                address: Some(address),
                said: vec![
                    (Source::Record, format!("{}: {address} is {}", row.state, device.status)),
                    (Source::Host, "it is not there, or no device_spec lists it any more".into()),
                ],
                action: Action::Manual(format!(
                    "nothing, for it may come back: detach attachment {}",
                    row.id
                )),
            });
        }
        if let (None, Some(server)) = (row, device.server()) {
            findings.push(Finding {
                kind: Kind::Unattached,
                server: Some((server, None)),
                attachment: None,
                address: Some(address),
                said: vec![(
                    Source::Record,
                    format!("{address} is {} to the server, and no attachment is open", device.status),
                )],
                action: Action::Free(device.id),
            });
        }
        if let Some(foreign) = foreign.get(&address) {
            let owner = device.owner.map(|owner| format!(" to {owner}")).unwrap_or_default();
            let place = if foreign.live { Source::Live } else { Source::Definition };
            findings.push(Finding {
                kind: Kind::Foreign,
                server: Some((foreign.server, Some(foreign.domain.clone()))),
                attachment: None,
                address: Some(address),
                said: vec![
                    (Source::Record, format!("{address} is {}{owner}", device.status)),
                    (place, format!("domain {} has it ({})", foreign.domain, foreign.place())),
                ],
                action: Action::Manual(
                    "nothing, and it is offered to nobody: take it out of the domain (virsh detach-device), or leave \
                     it out of device_spec"
                        .into(),
                ),
            });
        }
    }
    findings
}

/// What disagrees about a device that the host itself has, as the host shows it now; none of it when it is not there.
pub fn of_binding(row: &Binding, device: &Device, found: Option<&HostDevice>) -> Option<Finding> {
    let address = device.facts.address;
    let (kind, is) = match found {
        Some(found) if row.driver.has(found) => return None,
        Some(found) => match &found.driver {
            Some(driver) => (Kind::OtherDriver, format!("{address} is bound to {driver}")),
            None => (Kind::OtherDriver, format!("{address} is bound to no driver")),
        },
        None => (Kind::DeviceGone, format!("{address} is not there")),
    };
    let path = row.holder.path();
    Some(Finding {
        kind,
        server: None,
        attachment: None,
        address: Some(address),
        said: vec![
            (Source::Record, format!("{}: for the host, on its {} driver", row.state, row.driver)),
            (Source::Host, is),
        ],
        action: Action::Manual(format!(
            "nothing, for a program may use it: DELETE {path}, and attach it again"
        )),
    })
}

/// A binding that was left in transition, and that nobody works on.
pub fn of_unfinished_binding(row: &Binding, device: &Device) -> Finding {
    let reason = row.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Finding {
        kind: Kind::Unfinished,
        server: None,
        attachment: None,
        address: Some(device.facts.address),
        said: vec![(
            Source::Record,
            format!("{}: for the host, on its {} driver{reason}", row.state, row.driver),
        )],
        action: Action::GiveBack(row.id),
    }
}

/// What disagrees about a mediated device that a server has, or starts with, and the host does not have.
pub fn of_mdev(row: &Mdev, parent: &Device) -> Finding {
    Finding {
        kind: Kind::DeviceGone,
        server: Some((row.server, None)),
        attachment: Some(row.id),
        address: Some(parent.facts.address),
        said: vec![
            (Source::Record, record(&Assignment::Mdev(row.clone()))),
            (Source::Host, "it is not there".into()),
        ],
        action: Action::Manual(format!(
            "it is made again when {} has the driver that makes it, while its server is shut off; or DELETE {}",
            parent.facts.address,
            row.holder.path()
        )),
    }
}

/// A mediated device that the host has although its record has ended. `used_by` is the domain that has it under an
/// alias which is not ours.
pub fn of_stray_mdev(row: &Mdev, found: &mdev::Mdev, used_by: Option<ServerId>) -> Finding {
    let place = found.parent.map_or_else(String::new, |parent| format!(" of {parent}"));
    let action = match used_by {
        None => Action::TakeAway(Box::new(Assignment::Mdev(row.clone()))),
        Some(server) => Action::Manual(format!(
            "nothing, for server {server} has it: take it out of the domain (virsh detach-device); then it is taken \
             away from the host"
        )),
    };
    Finding {
        kind: Kind::Stray,
        server: Some((row.server, None)),
        attachment: Some(row.id),
        address: found.parent,
        said: vec![
            (Source::Record, record(&Assignment::Mdev(row.clone()))),
            (Source::Host, format!("has it{place} as {}", found.name)),
        ],
        action,
    }
}
