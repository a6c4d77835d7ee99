//! An accelerator with the assignments that it holds, and the status that follows from them.

use std::sync::Arc;

use hotslot_driver::binding::HostDriver;
use hotslot_driver::device::HostDevice;

use super::spec::AccSpec;
use crate::assignment::{Assignment, State};
use crate::device::{Device, DeviceStatus};
use crate::id::{AcceleratorId, DeviceId, ServerId};
use crate::string_enum;
use crate::time::Millis;

/// A row of `accelerators`.
#[derive(Debug, Clone, PartialEq)]
pub struct Accelerator {
    /// The id.
    pub id: AcceleratorId,
    /// The name, which is unique.
    pub name: String,
    /// The spec, or `None` before the client has set one.
    pub spec: Option<AccSpec>,
    /// The number of times that the spec was set.
    pub generation: i64,
    /// The fixed device of the accelerator, or `None` when it takes any device that matches the spec.
    pub pinned: Option<DeviceId>,
    /// The project of its creator, or `None` when callers are not identified.
    pub project: Option<String>,
    /// When the accelerator was created.
    pub created_at: Millis,
    /// When the spec was last set.
    pub updated_at: Option<Millis>,
}

string_enum! {
    /// The status of an accelerator.
    Status {
        /// The accelerator holds no device and can be attached.
        Available = "available",
        /// A device is being attached or bound.
        Attaching = "attaching",
        /// All devices are attached or bound as requested.
        Attached = "attached",
        /// A device is being detached, or the guest has not released it yet.
        Detaching = "detaching",
        /// The fixed device is gone or unreachable, or the accelerator holds fewer devices than were requested.
        Error = "error",
    }
}

/// The target of an attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A server.
    Server(ServerId),
    /// A host, which uses the device itself.
    Host {
        /// The name or UUID of the host, or `None` for the host of the device.
        name: Option<String>,
        /// The host driver to bind the device to.
        driver: HostDriver,
    },
}

/// One device that an accelerator holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The assignment.
    pub by: Assignment,
    /// The device, or the parent of a mediated device.
    pub device: Arc<Device>,
    /// The device as the host reports it now, or `None` when it was not read or cannot be read.
    pub found: Option<HostDevice>,
}

/// An accelerator and the devices that it holds.
#[derive(Debug, Clone)]
pub struct View {
    /// The row of the accelerator.
    pub row: Accelerator,
    /// The devices that it holds, oldest first. Empty while it is not attached.
    pub held: Vec<Held>,
    /// The number of devices of the attach request to which `held` belongs, including those that were lost since.
    pub requested: usize,
    /// The fixed device of the accelerator, even while the device is gone.
    pub pinned: Option<Arc<Device>>,
    /// Whether the host of the fixed device is configured.
    pub reachable: bool,
}

impl View {
    /// Returns the status, and the reason as text if there is one.
    pub fn status(&self) -> (Status, Option<String>) {
        let states = || self.held.iter().map(|held| (held.by.state(), held.by.reason()));
        let in_state = |wanted: State| states().find(|(state, _)| *state == wanted);
        for (state, status) in [(State::Detaching, Status::Detaching), (State::Attaching, Status::Attaching)]
        {
            if let Some((_, reason)) = in_state(state) {
                return (status, reason.map(str::to_owned));
            }
        }
        if let Some((_, reason)) = in_state(State::Attached) {
            let gone = |held: &&Held| held.device.gone_at.is_some() && held.found.is_none();
            if let Some(gone) = self.held.iter().find(gone) {
                let address = gone.device.facts.address;
                let reason = format!(
                    "its device {address} is gone from the host; DELETE the accelerator to release it"
                );
                return (Status::Error, Some(reason));
            }
            let has = self.held.len();
            if has < self.requested {
                let reason = format!("holds {has} of {} devices; DELETE it again", self.requested);
                return (Status::Error, Some(reason));
            }
            return (Status::Attached, reason.map(str::to_owned));
        }
        let Some(device) = &self.pinned else {
            return match self.row.pinned {
                Some(_) => (Status::Error, Some("its device is no longer on record".into())),
                None => (Status::Available, None),
            };
        };
        let address = device.facts.address;
        if !self.reachable {
            let reason = format!("its device {address} is on a host that is no longer configured");
            return (Status::Error, Some(reason));
        }
        if device.gone_at.is_some() || device.status == DeviceStatus::Deleted {
            let reason = format!("its device {address} is gone from the host or no longer assignable");
            return (Status::Error, Some(reason));
        }
        // The status stays `available`: the device may be free by the time it is attached.
        let reason = match (device.owner, device.status) {
            (Some(owner), _) => Some(format!("its device {address} is held by {owner}; detach it there")),
            (None, DeviceStatus::Unclaimable | DeviceStatus::Unavailable) => {
                Some(format!("the PF or a VF of its device {address} is held; detach that first"))
            }
            (None, _) => None,
        };
        (Status::Available, reason)
    }

    /// Returns the server to which the devices are attached or being attached, if any.
    pub fn server(&self) -> Option<ServerId> {
        self.held.iter().find_map(|held| held.by.server())
    }

    /// Returns the spec, or the default spec when none was set.
    pub fn spec(&self) -> AccSpec {
        self.row.spec.clone().unwrap_or_default()
    }
}

/// Returns an assignable device as an accelerator. `name_in_use` says whether another accelerator has the name: it may have
/// been created before devices were listed as accelerators, or for the device that was at the address before.
pub fn discovered(device: &Arc<Device>, name: String, name_in_use: bool) -> View {
    let row = Accelerator {
        id: AcceleratorId(device.uuid),
        name: if name_in_use { disambiguated(&name, device) } else { name },
        spec: None,
        generation: 0,
        pinned: Some(device.id),
        project: None,
        created_at: 0,
        updated_at: None,
    };
    View { row, held: Vec::new(), requested: 0, pinned: Some(Arc::clone(device)), reachable: true }
}

/// Returns the name of a discovered accelerator when another accelerator has the preferred name.
pub fn disambiguated(name: &str, device: &Device) -> String {
    format!("{name}_{}", device.uuid)
}

/// Returns a message that names the holder of a device, or of its PF or one of its VFs.
pub fn in_use_message(row: &Device, rows: &[Arc<Device>]) -> String {
    let (address, status) = (row.facts.address, row.status);
    if let Some(owner) = row.owner {
        return format!("{address} is held by {owner}; detach it there");
    }
    let relative = |other: &Arc<Device>| {
        let what = if row.facts.parent_addr == Some(other.facts.address) {
            "its PF"
        } else if other.facts.parent_addr == Some(address) {
            "a VF of it"
        } else {
            return None;
        };
        Some(format!("{what}, {}, is held by {}; detach that first", other.facts.address, other.owner?))
    };
    let why = rows.iter().find_map(relative);
    why.map_or_else(|| format!("{address} is {status}"), |why| format!("{address} is {status}: {why}"))
}
