//! An accelerator with what it holds, and what it is doing by that.

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
    /// Its id.
    pub id: AcceleratorId,
    /// Its name, of which there is one.
    pub name: String,
    /// The spec that was put; `None` before the first.
    pub spec: Option<AccSpec>,
    /// How often its spec was put.
    pub generation: i64,
    /// The one device that it is; none takes any that its spec asks for.
    pub pinned: Option<DeviceId>,
    /// The project of who made it; none: nobody was asked who they are.
    pub project: Option<String>,
    /// When it was made.
    pub created_at: Millis,
    /// When its spec was last put.
    pub updated_at: Option<Millis>,
}

string_enum! {
    /// The status of an accelerator.
    Status {
        /// It holds nothing, and may be attached.
        Available = "available",
        /// It is being attached.
        Attaching = "attaching",
        /// All its devices are where they were asked for.
        Attached = "attached",
        /// It is being detached, or waits for a guest to let go.
        Detaching = "detaching",
        /// The one device that it is is gone, or it holds fewer than it was attached with.
        Error = "error",
    }
}

/// Where an accelerator is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into a server.
    Server(ServerId),
    /// To a host, of a name or where its device is.
    Host {
        /// The host's name or UUID; none is the device's own.
        name: Option<String>,
        /// How the host is to have it.
        driver: HostDriver,
    },
}

/// One device that an accelerator holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The promise.
    pub by: Assignment,
    /// The device; of a mediated device its parent.
    pub device: Arc<Device>,
    /// As the host has it now; none when that was not asked (the service's `look_at`), or cannot be read.
    pub found: Option<HostDevice>,
}

/// An accelerator with what it holds.
#[derive(Debug, Clone)]
pub struct View {
    /// Its row.
    pub row: Accelerator,
    /// Its devices, oldest first; none while it is not attached.
    pub held: Vec<Held>,
    /// How many devices the request asked for that `held` are of: those that it has lost since count too.
    pub asked: usize,
    /// The one device that it is, also while it is gone.
    pub pinned: Option<Arc<Device>>,
    /// Whether the host of that device is configured.
    pub reachable: bool,
}

impl View {
    /// The status, with a reason for people where there is one.
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
                let reason = format!("its device {address} is gone from the host; DELETE it to give it back");
                return (Status::Error, Some(reason));
            }
            let has = self.held.len();
            if has < self.asked {
                let reason = format!("holds {has} of {} devices; DELETE it again", self.asked);
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
            let reason =
                format!("its device {address} is gone from the host, or from what may be given away");
            return (Status::Error, Some(reason));
        }
        // It may be attached all the same: they may have let go by then.
        let reason = match (device.owner, device.status) {
            (Some(owner), _) => Some(format!("its device {address} is held by {owner}; detach it there")),
            (None, DeviceStatus::Unclaimable | DeviceStatus::Unavailable) => {
                Some(format!("the PF or a VF of its device {address} is held; detach that first"))
            }
            (None, _) => None,
        };
        (Status::Available, reason)
    }

    /// The server that it is in, or on its way to.
    pub fn server(&self) -> Option<ServerId> {
        self.held.iter().find_map(|held| held.by.server())
    }

    /// The spec by which its devices are chosen.
    pub fn spec(&self) -> AccSpec {
        self.row.spec.clone().unwrap_or_default()
    }
}

/// A device that may be given away, as the accelerator that it would be. Another may have its name: one that was made
/// before devices were listed, or that is the device which was there before.
pub fn discovered(device: &Arc<Device>, name: String, taken: bool) -> View {
    let row = Accelerator {
        id: AcceleratorId(device.uuid),
        name: if taken { told_apart(&name, device) } else { name },
        spec: None,
        generation: 0,
        pinned: Some(device.id),
        project: None,
        created_at: 0,
        updated_at: None,
    };
    View { row, held: Vec::new(), asked: 0, pinned: Some(Arc::clone(device)), reachable: true }
}

/// The name of a discovered accelerator while another one has its first choice.
pub fn told_apart(name: &str, device: &Device) -> String {
    format!("{name}_{}", device.uuid)
}

/// Says who holds a device that is not free, or its PF or one of its VFs.
pub fn taken(row: &Device, rows: &[Arc<Device>]) -> String {
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
