//! Events, and the events that each change of a row produces.

use std::collections::{BTreeMap, BTreeSet};

use hotslot_driver::pci::PciAddress;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::assignment::{Assignment, Attachment, InnerAddress, Settled, State};
use crate::device::{Device, DeviceFacts, DeviceStatus};
use crate::id::{AttachmentId, DeviceId, EventId, HypervisorId, ServerId};
use crate::identity::Actor;
use crate::rules::Rule;
use crate::string_enum;
use crate::time::Millis;

string_enum! {
    /// The kind of an event: the kind of record, and what changed.
    EventKind {
        /// A new device became assignable. `to` is its row.
        DeviceAdded = "device.added",
        /// The facts of a device changed. `from` and `to` have the keys that differ.
        DeviceChanged = "device.changed",
        /// The status of a device changed.
        DeviceStatus = "device.status",
        /// A device that is in use or waits to be cleaned is gone from the host or no longer assignable.
        DeviceGone = "device.gone",
        /// Such a device is back.
        DeviceBack = "device.back",
        /// A device was used and waits: one that is scrubbed, for its scrub, and one with `one_time_use` to be cleaned.
        DeviceUsed = "device.used",
        /// A device did not work any more during or after a use, or could not be scrubbed, and is assigned to nobody. `to` has
        /// the reason.
        DeviceQuarantined = "device.quarantined",
        /// An administrator has a device scrubbed that waits to be cleaned or is in quarantine.
        DeviceScrub = "device.scrub",
        /// A device was scrubbed, a `one_time_use` device was cleaned, or a device was released from quarantine.
        DeviceCleaned = "device.cleaned",
        /// A device was removed from the records.
        DeviceRemoved = "device.removed",
        /// The state of an attachment changed.
        AttachmentState = "attachment.state",
        /// The address of the device in the guest changed, or the source of that address.
        AttachmentInnerAddress = "attachment.inner_address",
        /// The reason of an attachment changed while its state stayed the same.
        AttachmentReason = "attachment.reason",
        /// A device that was unbound for its whole IOMMU group is bound to its host driver again.
        AttachmentGivenBack = "attachment.given_back",
        /// The state of a binding changed.
        BindingState = "binding.state",
        /// The state of a mediated device changed. The device of the event is the parent.
        MdevState = "mdev.state",
        /// A rule was added by the API.
        RuleAdded = "rule.added",
        /// A rule was replaced by the API.
        RuleChanged = "rule.changed",
        /// A rule was removed by the API.
        RuleRemoved = "rule.removed",
        /// An accelerator was created. `to` has its name and project.
        AcceleratorCreated = "accelerator.created",
        /// The spec of an accelerator was replaced. `to` has the spec and its generation.
        AcceleratorChanged = "accelerator.changed",
        /// An accelerator no longer wants the devices with which its server may come back.
        AcceleratorReleased = "accelerator.released",
        /// The record of an accelerator was removed.
        AcceleratorRemoved = "accelerator.removed",
        /// A device profile was created.
        ProfileCreated = "device_profile.created",
        /// A device profile was removed.
        ProfileRemoved = "device_profile.removed",
        /// An accelerator request was created. `to` has its profile and project.
        ArqCreated = "accelerator_request.created",
        /// The state of an accelerator request changed.
        ArqState = "accelerator_request.state",
        /// An accelerator request was removed.
        ArqRemoved = "accelerator_request.removed",
        /// An attribute of a deployable was created.
        AttributeCreated = "attribute.created",
        /// An attribute of a deployable was removed.
        AttributeRemoved = "attribute.removed",
        /// A card was disabled, so that its devices are unavailable. The address is that of the card.
        CardDisabled = "card.disabled",
        /// A card was enabled again.
        CardEnabled = "card.enabled",
        /// The dead letters of a webhook are to be delivered again. `to` has the webhook and their number.
        WebhookRedelivered = "webhook.redelivered",
        /// The file of the tokens changed. `to` has its owner, and the tokens that were added, changed or removed.
        TokensChanged = "token.changed",
        /// An administrator changed the project that owns a server. `from` and `to` are the projects.
        ServerOwner = "server.owner",
        /// Root ports were added to the definition of a server. `to` has their number.
        ServerPorts = "server.ports",
        /// Limits of a project were set, or are the defaults again. `from` and `to` have the project, and the limits that
        /// were set for it.
        QuotaChanged = "quota.changed",
        /// An administrator changed what may be changed on a host. `from` and `to` have the mode (open, draining or
        /// frozen) and the reason.
        HostMode = "host.mode",
        /// The number of VFs of a PF was changed to what the profile of its host says. `from` and `to` are the numbers.
        HostVfs = "host.vfs",
        /// The vGPU type of a VF was changed to what the profile of its host says. `from` and `to` are the types.
        HostVgpuType = "host.vgpu_type",
        /// A function was bound to another driver, because the profile of its host says so. `from` and `to` are the drivers.
        HostDriver = "host.driver",
        /// VFs or a vGPU type of the profile of a host could not be made, at the start or after a reconnect. `to` is what was to
        /// be made.
        HostProfileFailed = "host.profile_failed",
        /// Requests of one caller were refused. `to` has the last request and how many there were.
        RequestRefused = "request.refused",
    }
}

/// The content of an event. A field is `None` when it does not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    /// The kind.
    pub kind: EventKind,
    /// The host.
    pub hypervisor: Option<HypervisorId>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// The address of the device at that time.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// The rule.
    pub rule: Option<Uuid>,
    /// The record of another kind, such as an accelerator or a device profile.
    pub resource: Option<Uuid>,
    /// The value before.
    pub from: Option<Value>,
    /// The value after.
    pub to: Option<Value>,
    /// The reason, if one is known.
    pub reason: Option<String>,
}

/// A row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The id. Ids increase by one, in the order of the commits.
    pub id: EventId,
    /// When the event was written.
    pub time: Millis,
    /// On whose behalf: a request and its caller, or a task of hotslot such as `discovery`.
    pub actor: Actor,
    /// The name of the host.
    pub host: Option<String>,
    /// The content.
    pub what: What,
}

/// A filter for events. A field that is `None` matches every event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// The name of the host.
    pub host: Option<String>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// The address of the device at the time of the event.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// A kind such as `device.added`, or its first part such as `device`.
    pub kind: Option<String>,
    /// The name of the user.
    pub user: Option<String>,
    /// The id of the user.
    pub user_id: Option<String>,
    /// The id of the project of the user.
    pub project: Option<String>,
}

impl EventFilter {
    /// Whether every event matches.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an event matches. The result is the same as that of the query on the table `events`.
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
            && is(self.user.as_ref(), event.actor.user.as_ref().map(|user| &user.name))
            && is(self.user_id.as_ref(), event.actor.user.as_ref().map(|user| &user.id))
            && is(self.project.as_ref(), event.actor.project.as_ref())
    }
}

impl EventKind {
    /// Whether a text is this kind or its first part. `device` is the first part of every `device.…`.
    pub fn is_of(self, text: &str) -> bool {
        let rest = self.as_str().strip_prefix(text);
        !text.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Checks that a text is a kind or the first part of one, and returns it.
    ///
    /// # Errors
    /// Returns a message with the known kinds otherwise.
    pub fn known(text: &str) -> Result<&str, String> {
        if Self::ALL.iter().any(|kind| kind.is_of(text)) {
            return Ok(text);
        }
        let nouns: BTreeSet<_> = Self::ALL.iter().map(|kind| kind.noun()).collect();
        let all = Self::ALL.iter().map(|kind| kind.as_str()).chain(nouns.iter().copied());
        let (lower, shown) = (text.to_lowercase(), text.chars().take(80).collect::<String>());
        let nearest = all
            .map(|known| (strsim::osa_distance(&lower, known), known))
            .filter(|(distance, known)| *distance <= known.len() / 3)
            .min();
        let meant = nearest.map_or_else(String::new, |(_, known)| format!("did you mean `{known}`? "));
        let first = |text: &str| text.split('.').next().unwrap_or_default().to_owned();
        let written = first(&lower);
        let noun = match nearest {
            Some((_, known)) if !nouns.contains(written.as_str()) => first(known),
            _ => written,
        };
        let of_noun: Vec<_> =
            Self::ALL.iter().filter(|kind| kind.noun() == noun).map(|kind| kind.as_str()).collect();
        let (what, which) = match &of_noun[..] {
            [] => ("every event has one of these nouns".to_owned(), nouns.into_iter().collect::<Vec<_>>()),
            _ => (format!("the kinds of {noun} are"), of_noun),
        };
        Err(format!("`{shown}` is no kind of events; {meant}{what}: {}", which.join(", ")))
    }

    /// The first part of the kind.
    fn noun(self) -> &'static str {
        self.as_str().split('.').next().unwrap_or_default()
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
            resource: None,
            from: None,
            to: None,
            reason: None,
        }
    }
}

/// Returns the events for a change of a device's row. `was` is `None` for a new row.
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
    let mut events = Vec::new();
    if was.facts != row.facts {
        let (before, after) = (facts(&was.facts), facts(&row.facts));
        let differ = |one: &BTreeMap<&str, Value>, other: &BTreeMap<&str, Value>| {
            let differs = one.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differs.map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>().into()
        };
        let (from, to) = (differ(&before, &after), differ(&after, &before));
        events.push(of(EventKind::DeviceChanged, Some(from), Some(to)));
    }
    if was.status != row.status {
        let (from, to) = (was.status.as_str().into(), row.status.as_str().into());
        events.push(of(EventKind::DeviceStatus, Some(from), Some(to)));
    }
    if let (None, Some(reason)) = (&was.quarantine, &row.quarantine) {
        events.push(of(EventKind::DeviceQuarantined, None, Some(reason.as_str().into())));
    }
    if row.waits_for_scrub() && !was.waits_for_scrub() && was.used_at.is_some() {
        events.push(of(EventKind::DeviceScrub, None, None));
    }
    let since = if row.quarantine.is_some() { was.used_at.or(row.used_at) } else { was.used_at };
    for (was, is, begins, ends) in [
        (was.gone_at, row.gone_at, EventKind::DeviceGone, EventKind::DeviceBack),
        (since, row.used_at, EventKind::DeviceUsed, EventKind::DeviceCleaned),
    ] {
        match (was, is) {
            (None, Some(_)) => events.push(of(begins, None, None)),
            (Some(_), None) => events.push(of(ends, None, None)),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
    events
}

/// Returns the facts of a device as a map: columns and `extra_info` together.
fn facts(facts: &DeviceFacts) -> BTreeMap<&str, Value> {
    let extra_info = facts.extra_info.iter().map(|(key, value)| (key, Value::from(value)));
    let mut all: BTreeMap<_, _> = extra_info.collect();
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

/// Returns the event for a new attachment in its first state.
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

/// Returns the event for a change of a binding.
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

/// Returns the event for a change of a mediated device.
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

/// Returns the events for a change of an assignment. `device` is its function, as far as it is on record.
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
    let mut events = Vec::new();
    if was.state != next.state {
        let (from, to) = (was.state.as_str().into(), next.state.as_str().into());
        let state = of(EventKind::AttachmentState, Some(from), Some(to));
        events.push(What { reason: next.reason.clone(), ..state });
    } else if was.reason != next.reason {
        let (from, to) = (was.reason.clone().map(Value::from), next.reason.clone().map(Value::from));
        events.push(of(EventKind::AttachmentReason, from, to));
    }
    if was.inner != next.inner {
        let seen =
            |inner: InnerAddress| json!({ "address": inner.address.to_string(), "source": inner.source });
        events.push(of(EventKind::AttachmentInnerAddress, was.inner.map(seen), next.inner.map(seen)));
    }
    events
}

/// Returns the event for a device of an attachment that is bound to its host driver again.
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

/// Returns the event for a change of a rule. `was` and `is` are the texts before and after. Returns `None` when nothing
/// changed.
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

/// Returns the event for a record without a device, such as an accelerator or a device profile.
pub fn of_record(kind: EventKind, resource: Uuid, from: Option<Value>, to: Option<Value>) -> What {
    What { resource: Some(resource), from, to, ..kind.what() }
}

/// Returns the event for something that has no id.
pub fn of_kind(kind: EventKind, from: Option<Value>, to: Option<Value>) -> What {
    What { from, to, ..kind.what() }
}
