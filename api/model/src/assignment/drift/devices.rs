//! The devices of a host: the records against what the host has.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::mdev;
use hotslot_driver::pci::PciAddress;

use super::finding::{Action, Finding, Kind, Source, record};
use crate::assignment::{Assignment, Attachment, Binding, Mdev};
use crate::device::{Device, Functions};
use crate::id::ServerId;
use crate::rules::Foreign;

/// Returns the disagreements between the records and the devices of the host.
pub fn of_devices(
    rows: &[Attachment],
    devices: &[Arc<Device>],
    functions: &Functions,
    foreign: &BTreeMap<PciAddress, Foreign>,
) -> Vec<Finding> {
    let of_device = |device: &Arc<Device>| {
        let address = device.facts.address;
        let row = rows.iter().find(|row| row.device == device.id);
        let missing = device.gone_at.is_some() || !functions.contains_key(&address);
        let gone = row.filter(|_| missing).map(|row| of_gone(row, device));
        let unattached =
            device.server().filter(|_| row.is_none()).map(|server| of_unattached(device, server));
        let foreign = foreign.get(&address).map(|foreign| of_foreign(device, foreign));
        [gone, unattached, foreign]
    };
    devices.iter().flat_map(of_device).flatten().collect()
}

/// Returns the finding for a device that a server has, and that the host does not have any more.
fn of_gone(row: &Attachment, device: &Device) -> Finding {
    let address = device.facts.address;
    Finding {
        kind: Kind::DeviceGone,
        server: Some((row.server, None)),
        attachment: Some(row.id),
        address: Some(address),
        observations: vec![
            (Source::Record, format!("{}: {address} is {}", row.state, device.status)),
            (Source::Host, "it is not there, or no device_spec lists it any more".into()),
        ],
        action: Action::Manual(format!(
            "nothing is changed automatically, because the device may come back; if it does not, detach attachment {} \
             under os-pci_attachments",
            row.id
        )),
    }
}

/// Returns the finding for a device that is promised to a server without an open attachment.
fn of_unattached(device: &Device, server: ServerId) -> Finding {
    let address = device.facts.address;
    Finding {
        kind: Kind::Unattached,
        server: Some((server, None)),
        attachment: None,
        address: Some(address),
        observations: vec![(
            Source::Record,
            format!("{address} is {} to the server, and no attachment is open", device.status),
        )],
        action: Action::Free(device.id),
    }
}

/// Returns the finding for a device that a domain has under an alias which is not one of ours.
fn of_foreign(device: &Device, foreign: &Foreign) -> Finding {
    let address = device.facts.address;
    let owner = device.owner.map(|owner| format!(" to {owner}")).unwrap_or_default();
    let place = if foreign.live { Source::Live } else { Source::Definition };
    Finding {
        kind: Kind::Foreign,
        server: Some((foreign.server, Some(foreign.domain.clone()))),
        attachment: None,
        address: Some(address),
        observations: vec![
            (Source::Record, format!("{address} is {}{owner}", device.status)),
            (place, format!("domain {} has it ({})", foreign.domain, foreign.place())),
        ],
        action: Action::Manual(
            "nothing, and it is offered to nobody: take it out of the domain (virsh detach-device), or leave it out of \
             device_spec"
                .into(),
        ),
    }
}

/// Returns the disagreement about a function for the host's own use, if any. `found` is the function as the host has it
/// now; `None` when it is not there.
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
        observations: vec![
            (Source::Record, format!("{}: for the host, on its {} driver", row.state, row.driver)),
            (Source::Host, is),
        ],
        action: Action::Manual(format!(
            "nothing, for a program may use it: DELETE {path}, and attach it again"
        )),
    })
}

/// Returns the finding for a binding that was left in transition, and that nobody works on.
pub fn of_unfinished_binding(row: &Binding, device: &Device) -> Finding {
    let reason = row.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    Finding {
        kind: Kind::Unfinished,
        server: None,
        attachment: None,
        address: Some(device.facts.address),
        observations: vec![(
            Source::Record,
            format!("{}: for the host, on its {} driver{reason}", row.state, row.driver),
        )],
        action: Action::Rebind(row.id),
    }
}

/// Returns the finding for a mediated device that a server has, or starts with, and that the host does not have.
pub fn of_mdev(row: &Mdev, parent: &Device) -> Finding {
    Finding {
        kind: Kind::DeviceGone,
        server: Some((row.server, None)),
        attachment: Some(row.id),
        address: Some(parent.facts.address),
        observations: vec![
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

/// Returns the finding for a mediated device that the host has although its record has ended. `used_by` is the domain
/// that has it under an alias which is not one of ours.
pub fn of_stray_mdev(row: &Mdev, found: &mdev::Mdev, used_by: Option<ServerId>) -> Finding {
    let place = found.parent.map_or_else(String::new, |parent| format!(" of {parent}"));
    let action = match used_by {
        None => Action::Destroy(Box::new(Assignment::Mdev(row.clone()))),
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
        observations: vec![
            (Source::Record, record(&Assignment::Mdev(row.clone()))),
            (Source::Host, format!("has it{place} as {}", found.name)),
        ],
        action,
    }
}
