//! Events: what happened, and what each change of a row tells.

use std::collections::BTreeMap;

use hotslot_driver::pci::PciAddress;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::assignment::{Assignment, Attachment, InnerAddress, Settled, State};
use crate::device::{Device, DeviceFacts, DeviceStatus};
use crate::id::{AttachmentId, DeviceId, EventId, HypervisorId, ServerId};
use crate::rules::Rule;
use crate::string_enum;
use crate::time::Millis;

string_enum! {
    /// What happened: a noun, and what of it changed.
    EventKind {
        /// A device may be given away that was not on record; `to` is its row.
        DeviceAdded = "device.added",
        /// What the host says of a device; `from` and `to` have the keys that differ.
        DeviceChanged = "device.changed",
        /// Nova's state of a device.
        DeviceStatus = "device.status",
        /// A device went from the host, or from what may be given away, while a server has it or it waits to be
        /// cleaned.
        DeviceGone = "device.gone",
        /// It came back.
        DeviceBack = "device.back",
        /// A `one_time_use` device was used, and waits to be cleaned.
        DeviceUsed = "device.used",
        /// It was cleaned.
        DeviceCleaned = "device.cleaned",
        /// A device is no longer on record.
        DeviceRemoved = "device.removed",
        /// An attachment's state.
        AttachmentState = "attachment.state",
        /// Where the guest sees the device, and how that is known.
        AttachmentInnerAddress = "attachment.inner_address",
        /// What there is to say of a state that stayed.
        AttachmentReason = "attachment.reason",
        /// The host driver has the device again that was taken from it for its whole IOMMU group.
        AttachmentGivenBack = "attachment.given_back",
        /// The state of a device that its host itself is to hold, or holds.
        BindingState = "binding.state",
        /// The state of a mediated device; the device is its parent.
        MdevState = "mdev.state",
        /// A rule came by the API.
        RuleAdded = "rule.added",
        /// It was replaced.
        RuleChanged = "rule.changed",
        /// It was removed.
        RuleRemoved = "rule.removed",
    }
}

/// What happened, and to what. What does not concern it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    /// What it was.
    pub kind: EventKind,
    /// The host.
    pub hypervisor: Option<HypervisorId>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// Where the host had the device then.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// The rule.
    pub rule: Option<Uuid>,
    /// What it was before.
    pub from: Option<Value>,
    /// What it became.
    pub to: Option<Value>,
    /// Why, where something is known of that.
    pub reason: Option<String>,
}

/// A row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id; ids go up by one, in the order of the commits.
    pub id: EventId,
    /// When it was written.
    pub time: Millis,
    /// The request that did it (`request req-…`), or what hotslot did on its own.
    pub who: String,
    /// The host's name.
    pub host: Option<String>,
    /// What happened.
    pub what: What,
}

/// Which events are asked for; none is any.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// The host's name.
    pub host: Option<String>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// Where the device was then.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// A kind, or the noun that kinds begin with.
    pub kind: Option<String>,
}

impl EventFilter {
    /// Whether an event passes, as the query of the table `events` has it.
    pub fn passes(&self, event: &Event) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, has: Option<&T>) -> bool {
            wanted.is_none() || wanted == has
        }
        let what = &event.what;
        is(self.host.as_ref(), event.host.as_ref())
            && is(self.server.as_ref(), what.server.as_ref())
            && is(self.device.as_ref(), what.device.as_ref())
            && is(self.address.as_ref(), what.address.as_ref())
            && is(self.attachment.as_ref(), what.attachment.as_ref())
            && self.kind.as_ref().is_none_or(|kind| what.kind.is_of(kind))
    }
}

impl EventKind {
    /// Whether a text is the kind, or its noun: `device` is every `device.…`.
    pub fn is_of(self, text: &str) -> bool {
        let rest = self.as_str().strip_prefix(text);
        !text.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// A kind or a noun.
    ///
    /// # Errors
    /// What would be right, when no kind is so.
    pub fn known(text: &str) -> Result<&str, String> {
        if Self::ALL.iter().any(|kind| kind.is_of(text)) {
            return Ok(text);
        }
        let known: Vec<_> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
        Err(format!("`{text}` is neither device, attachment or rule, nor one of {}", known.join(", ")))
    }

    fn what(self) -> What {
        What {
            kind: self,
            hypervisor: None,
            server: None,
            device: None,
            address: None,
            attachment: None,
            rule: None,
            from: None,
            to: None,
            reason: None,
        }
    }
}

/// What the writing of a device's row tells. `was` is none for a new one.
pub fn of_device(was: Option<&Device>, row: &Device) -> Vec<What> {
    let server = row.server().or(was.and_then(Device::server));
    let of = |kind: EventKind, from: Option<Value>, to: Option<Value>| What {
        hypervisor: Some(row.hypervisor),
        server,
        device: Some(row.id),
        address: Some(row.facts.address),
        from,
        to,
        ..kind.what()
    };
    let Some(was) = was else {
        let facts = facts(&row.facts).into_iter().map(|(key, value)| (key.to_owned(), value));
        let status = ("status".to_owned(), row.status.as_str().into());
        let all: Map<_, _> = facts.chain([status]).collect();
        return vec![of(EventKind::DeviceAdded, None, Some(all.into()))];
    };
    if row.status == DeviceStatus::Deleted {
        return vec![of(EventKind::DeviceRemoved, Some(was.status.as_str().into()), None)];
    }
    let mut told = Vec::new();
    if was.facts != row.facts {
        let (before, after) = (facts(&was.facts), facts(&row.facts));
        let differ = |one: &BTreeMap<&str, Value>, other: &BTreeMap<&str, Value>| {
            let differs = one.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differs.map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>().into()
        };
        let (from, to) = (differ(&before, &after), differ(&after, &before));
        told.push(of(EventKind::DeviceChanged, Some(from), Some(to)));
    }
    if was.status != row.status {
        let (from, to) = (was.status.as_str().into(), row.status.as_str().into());
        told.push(of(EventKind::DeviceStatus, Some(from), Some(to)));
    }
    for (was, is, begins, ends) in [
        (was.gone_at, row.gone_at, EventKind::DeviceGone, EventKind::DeviceBack),
        (was.used_at, row.used_at, EventKind::DeviceUsed, EventKind::DeviceCleaned),
    ] {
        match (was, is) {
            (None, Some(_)) => told.push(of(begins, None, None)),
            (Some(_), None) => told.push(of(ends, None, None)),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
    told
}

/// The columns of a device that a host tells, and what is said of it besides.
fn facts(facts: &DeviceFacts) -> BTreeMap<&str, Value> {
    let said = facts.extra_info.iter().map(|(key, value)| (key, Value::from(value)));
    let mut all: BTreeMap<_, _> = said.collect();
    all.extend([
        ("address", facts.address.to_string().into()),
        ("vendor_id", facts.vendor_id.to_string().into()),
        ("product_id", facts.product_id.to_string().into()),
        ("dev_type", facts.dev_type.as_str().into()),
    ]);
    all.extend(facts.numa_node.map(|node| ("numa_node", node.into())));
    all.extend(facts.parent_addr.map(|address| ("parent_addr", address.to_string().into())));
    all
}

/// That an attachment was made, in its first state.
pub fn made(device: &Device, server: ServerId, attachment: AttachmentId, state: State) -> What {
    What {
        hypervisor: Some(device.hypervisor),
        server: Some(server),
        device: Some(device.id),
        address: Some(device.facts.address),
        attachment: Some(attachment),
        to: Some(state.as_str().into()),
        ..EventKind::AttachmentState.what()
    }
}

/// What a change of a binding tells.
pub fn binding(device: &Device, was: Option<State>, state: State, reason: Option<&str>) -> What {
    What {
        hypervisor: Some(device.hypervisor),
        device: Some(device.id),
        address: Some(device.facts.address),
        from: was.map(|was| was.as_str().into()),
        to: Some(state.as_str().into()),
        reason: reason.map(str::to_owned),
        ..EventKind::BindingState.what()
    }
}

/// What a change of a mediated device tells.
pub fn mdev(
    parent: &Device,
    server: ServerId,
    id: AttachmentId,
    was: Option<State>,
    state: State,
    reason: Option<&str>,
) -> What {
    let from = was.map(|was| was.as_str().into());
    let reason = reason.map(str::to_owned);
    What { kind: EventKind::MdevState, from, reason, ..made(parent, server, id, state) }
}

/// The events of a change of an assignment; `device` is its function, as far as it is on record.
pub fn of_assignment(was: &Assignment, next: &Settled, device: Option<&Device>) -> Vec<What> {
    let (from, reason) = (Some(was.state()), next.reason.as_deref());
    let has_changed = (was.state(), was.reason()) != (next.state, reason);
    match (was, device) {
        (Assignment::Attachment(row), _) => of_attachment(row, next, device),
        (Assignment::Binding(_), Some(device)) if has_changed => {
            vec![binding(device, from, next.state, reason)]
        }
        (Assignment::Mdev(row), Some(device)) if has_changed => {
            vec![mdev(device, row.server, row.id, from, next.state, reason)]
        }
        (Assignment::Binding(_) | Assignment::Mdev(_), _) => Vec::new(),
    }
}

fn of_attachment(was: &Attachment, next: &Settled, device: Option<&Device>) -> Vec<What> {
    let of = |kind: EventKind, from: Option<Value>, to: Option<Value>| What {
        hypervisor: Some(was.hypervisor),
        server: Some(was.server),
        device: Some(was.device),
        address: device.map(|device| device.facts.address),
        attachment: Some(was.id),
        from,
        to,
        ..kind.what()
    };
    let mut told = Vec::new();
    if was.state != next.state {
        let (from, to) = (was.state.as_str().into(), next.state.as_str().into());
        let state = of(EventKind::AttachmentState, Some(from), Some(to));
        told.push(What { reason: next.reason.clone(), ..state });
    } else if was.reason != next.reason {
        let (from, to) = (was.reason.clone().map(Value::from), next.reason.clone().map(Value::from));
        told.push(of(EventKind::AttachmentReason, from, to));
    }
    if was.inner != next.inner {
        let seen =
            |inner: InnerAddress| json!({ "address": inner.address.to_string(), "source": inner.source });
        told.push(of(EventKind::AttachmentInnerAddress, was.inner.map(seen), next.inner.map(seen)));
    }
    told
}

/// That a host driver has the device of an attachment again.
pub fn given_back(row: &Attachment, address: Option<PciAddress>) -> What {
    What {
        hypervisor: Some(row.hypervisor),
        server: Some(row.server),
        device: Some(row.device),
        address,
        attachment: Some(row.id),
        ..EventKind::AttachmentGivenBack.what()
    }
}

/// What a change of a rule tells; `was` and `is` are its texts.
pub fn of_rule(rule: &Rule, was: Option<&str>, is: Option<&str>) -> Option<What> {
    let kind = match (was, is) {
        (None, Some(_)) => EventKind::RuleAdded,
        (Some(was), Some(is)) if was != is => EventKind::RuleChanged,
        (Some(_), None) => EventKind::RuleRemoved,
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let entry = |text: &str| {
        let entry: Value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
        json!({ "kind": rule.kind, "entry": entry })
    };
    Some(What { rule: Some(rule.id), from: was.map(entry), to: is.map(entry), ..kind.what() })
}
