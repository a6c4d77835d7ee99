//! An attachment as callers see it.

use hotslot_driver::hotplug::CheckResult;
use hotslot_driver::net::VlanTag;
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_driver::vf::VfLink;
use hotslot_model::assignment::{Attachment, InnerSource, State as AttachmentState};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, RequestId, ServerId};
use hotslot_service::assignment::DryRun;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::under_way;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::body::{Link, time};
use crate::http::permit::Permit;
use crate::http::schema;
use crate::http::state::DeviceParts;
use crate::http::trace::TraceReport;

/// An attachment: the seven keys of the wiki page "Nova/pci hotplug", and then the keys that hotslot adds.
#[derive(Serialize, ToSchema)]
#[schema(as = PciAttachment)]
pub(in crate::http) struct Wire {
    /// The id of the attachment.
    #[schema(value_type = Uuid)]
    pub(super) attachment_id: AttachmentId,
    /// The server.
    #[serde(rename = "serverId")]
    #[schema(value_type = Uuid)]
    server_id: ServerId,
    /// libvirt's name of the device; null for callers who may not see hosts.
    dev_id: Option<String>,
    /// The address on the host; null for callers who may not see hosts.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<String>,
    /// The address that the guest sees; null when it is not known.
    #[schema(value_type = Option<schema::PciAddress>)]
    inner_address: Option<String>,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: String,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: String,

    /// Where `inner_address` comes from.
    #[schema(value_type = Option<schema::InnerAddressSource>)]
    inner_address_source: Option<InnerSource>,
    /// The state.
    #[schema(value_type = schema::AssignmentState)]
    status: AttachmentState,
    /// Why the attachment is in this state; null when there is nothing to say.
    status_reason: Option<String>,
    /// Why nobody gets the device after this server: it has failed in the guest, or disappeared from the host; null when
    /// nothing is known against it, when the attachment has ended, and for callers who may not see hosts.
    quarantine: Option<String>,
    /// The alias that the device was requested by; null when it was adopted.
    alias: Option<String>,
    /// Whether the device is also in the definition, so that it survives a power cycle.
    persistent: bool,
    /// Whether a forced detach was requested.
    forced: bool,
    /// The request. Attachments that were requested together have the same.
    #[schema(value_type = Uuid)]
    request_id: RequestId,
    /// On behalf of what the device is attached, such as an accelerator; null for an attachment that was requested here.
    holder: Option<String>,
    /// Whether whole IOMMU groups were requested.
    whole_group: bool,
    /// The MAC address of a VF of a NIC that is attached as an interface.
    mac_address: Option<String>,
    /// The VLAN of such a VF.
    vlan: Option<u16>,
    /// The physical network of such a VF.
    physical_network: Option<String>,
    /// Whether the guest may change what such a VF filters.
    trusted: Option<bool>,
    /// Whether the NIC drops frames of such a VF with another source address; null when that was not requested.
    spoof_check: Option<bool>,
    /// The link that the guest sees of such a VF; null when it was not requested.
    #[schema(value_type = Option<schema::VfLinkState>)]
    link_state: Option<VfLink>,
    /// The bandwidth that is guaranteed to such a VF, in Mbit/s; null when it was not requested.
    min_tx_rate: Option<u32>,
    /// The bandwidth that such a VF cannot exceed, in Mbit/s; null when it was not requested.
    max_tx_rate: Option<u32>,
    /// The id of the type of virtual GPU that was requested for the VF; null when none was.
    vgpu_type: Option<String>,
    /// The name of the host; null for callers who may not see hosts.
    host: Option<String>,
    /// When the device was reserved.
    #[schema(value_type = schema::Time)]
    created_at: String,
    /// When the record last changed.
    #[schema(value_type = Option<schema::Time>)]
    updated_at: Option<String>,
    /// When the device was attached.
    #[schema(value_type = Option<schema::Time>)]
    attached_at: Option<String>,
    /// When the attachment ended.
    #[schema(value_type = Option<schema::Time>)]
    ended_at: Option<String>,
    /// The request to the guest to release the device, while its answer is awaited.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Progress)]
    progress: Option<Progress>,
    /// The attach or detach that the service is doing now. When several services share the database, only the one that does
    /// it shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Operation)]
    operation: Option<Operation>,
}

/// An attach or a detach that is under way.
#[derive(Serialize, ToSchema)]
#[schema(as = OperationUnderWay)]
struct Operation {
    /// `attach` or `detach`.
    name: &'static str,
    /// The step that it is doing, such as `plug`; null before the first one.
    step: Option<&'static str>,
    /// When it began.
    #[schema(value_type = schema::Time)]
    began_at: String,
    /// When the step began.
    #[schema(value_type = schema::Time)]
    step_began_at: String,
    /// When the step, or the whole detach, ends at the latest; null when that is not known.
    #[schema(value_type = Option<schema::Time>)]
    ends_by: Option<String>,
}

/// A request to a guest to release a device, whose answer is awaited.
#[derive(Serialize, ToSchema)]
#[schema(as = DetachProgress)]
struct Progress {
    /// The number of the request, from 1.
    attempt: u32,
    /// The configured number of requests. A detach with `timeout` repeats them until that time is over.
    attempts: u32,
    /// How long each request waits for the guest at most, in seconds.
    seconds: f64,
}

fn wire(hosts: &Hosts, attachment: Attachment, device: &Device) -> Wire {
    let network = attachment.network;
    Wire {
        request_id: attachment.request,
        holder: attachment.holder.map(|holder| holder.to_string()),
        whole_group: attachment.whole_group,
        mac_address: network.as_ref().map(|network| network.mac.to_string()),
        vlan: network.as_ref().and_then(|network| network.vlan).map(VlanTag::get),
        trusted: network.as_ref().and_then(|network| network.trusted),
        spoof_check: network.as_ref().and_then(|network| network.vf.spoof_check),
        link_state: network.as_ref().and_then(|network| network.vf.link_state),
        min_tx_rate: network.as_ref().and_then(|network| network.vf.min_tx_rate),
        max_tx_rate: network.as_ref().and_then(|network| network.vf.max_tx_rate),
        physical_network: network.and_then(|network| network.physical_network),
        vgpu_type: attachment.vgpu.map(|vgpu| vgpu.id),
        attachment_id: attachment.id,
        server_id: attachment.server,
        dev_id: Some(device.facts.dev_id()),
        address: Some(device.facts.address.to_string()),
        inner_address: attachment.inner.map(|inner| inner.address.to_string()),
        vendor_id: device.facts.vendor_id.to_string(),
        product_id: device.facts.product_id.to_string(),
        inner_address_source: attachment.inner.map(|inner| inner.source),
        status: attachment.state,
        status_reason: attachment.reason,
        quarantine: device.quarantine.clone().filter(|_| attachment.ended_at.is_none()),
        alias: Some(attachment.alias).filter(|alias| !alias.is_empty()),
        persistent: attachment.persistent,
        // An attach that was given up is also removed by force, but no caller requested that, so it is not shown.
        forced: attachment.forced && attachment.attached_at.is_some(),
        host: hosts.host(attachment.hypervisor).map(|host| host.name.clone()),
        created_at: time(attachment.created_at),
        updated_at: attachment.updated_at.map(time),
        attached_at: attachment.attached_at.map(time),
        ended_at: attachment.ended_at.map(time),
        progress: None,
        operation: None,
    }
}

impl Wire {
    /// Returns the attachment for callers who may not see the host: without its name, its addresses, the holder, which may
    /// be of another project, and the reason of the state, which may name any of these.
    fn without_host(self) -> Self {
        let status_reason = self.status_reason.map(|reason| {
            match self.status {
                AttachmentState::Attaching => "the device is being attached",
                AttachmentState::Attached if reason.starts_with("adopted: ") => {
                    "adopted: the server had the device already, and there was no record of it"
                }
                AttachmentState::Attached => "an earlier detach failed; detach again",
                AttachmentState::Detaching => "the guest has not released the device yet",
                AttachmentState::Detached => "the guest does not have the device any more",
                AttachmentState::Failed => "the attach failed",
            }
            .to_owned()
        });
        let holder = self.holder.and_then(|holder| holder.split(':').next().map(str::to_owned));
        Self { dev_id: None, address: None, host: None, holder, status_reason, quarantine: None, ..self }
    }
}

/// What an attach would do.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct DryRunReport {
    /// Whether the attach would be made.
    would_attach: bool,
    /// The devices that it would take.
    pci_devices: Vec<DryRunDevice>,
    /// What was checked.
    checks: Vec<DryRunCheck>,
}

/// A device that an attach would take.
#[derive(Serialize, ToSchema)]
struct DryRunDevice {
    /// libvirt's name of the device; null for callers who may not see hosts.
    dev_id: Option<String>,
    /// The address on the host; null for callers who may not see hosts.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<String>,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The alias by which it was requested.
    alias: String,
}

/// A check before an attach.
#[derive(Serialize, ToSchema)]
struct DryRunCheck {
    /// The name of the check.
    check: &'static str,
    /// The device that was checked; null for a check of the server.
    #[schema(value_type = Option<schema::PciAddress>)]
    device: Option<PciAddress>,
    /// `pass`, `fail` or `unknown`.
    result: &'static str,
    /// What was found; null for callers who may not see hosts.
    message: Option<String>,
    /// What a person can do about it; null when there is nothing to do.
    cure: Option<String>,
}

/// What a POST made, or would make.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CreatedPciAttachments)]
pub(in crate::http) enum Created {
    /// The attachments.
    Attached {
        /// The attachments, in the order of the request.
        pci_devices: Vec<Wire>,
        /// What the attach spent its time on, where that was requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = TraceReport)]
        trace: Option<TraceReport>,
    },
    /// What an attach would do.
    DryRun {
        /// What an attach would do.
        dry_run: DryRunReport,
        /// What the dry run spent its time on, where that was requested.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = TraceReport)]
        trace: Option<TraceReport>,
    },
}

/// One attachment.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct PciAttachmentAnswer {
    /// The attachment.
    #[serde(rename = "pciAttachment")]
    pub(super) attachment: Wire,
}

/// A page of a list of attachments.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct PciAttachmentList {
    /// The attachments.
    #[serde(rename = "pciAttachment")]
    pub(super) attachments: Vec<Wire>,
    /// The link to the next page; missing on the last page.
    #[serde(rename = "pciAttachment_links", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    pub(super) links: Option<Vec<Link>>,
}

pub(super) async fn with_device(
    parts: &DeviceParts,
    permit: &Permit,
    attachment: Attachment,
) -> Result<Wire, Error> {
    let device = parts.records.known_device(attachment.device).await?;
    let device = device.ok_or_else(|| {
        Error::Internal(format!("the device of attachment {} has no record", attachment.id))
    })?;
    let under_way = under_way::of(attachment.id);
    let mut shown = shown(&parts.hosts, permit, attachment, &device);
    if let Some(under_way) = under_way {
        let detach = &parts.config.detach;
        shown.progress = under_way.attempt().map(|attempt| Progress {
            attempt,
            attempts: detach.attempts,
            seconds: detach.timeout.0.as_secs_f64(),
        });
        let stage = under_way.stage();
        shown.operation = Some(Operation {
            name: under_way.name,
            step: stage.step,
            began_at: time(under_way.began),
            step_began_at: time(stage.began),
            ends_by: stage.ends_by.map(time),
        });
    }
    Ok(shown)
}

/// Returns what the caller may see of an attachment.
pub(super) fn shown(hosts: &Hosts, permit: &Permit, attachment: Attachment, device: &Device) -> Wire {
    let all = wire(hosts, attachment, device);
    if permit.sees_hosts() { all } else { all.without_host() }
}

/// Returns what a dry run tells. A caller who may not see the host gets neither addresses nor the checks of single devices,
/// because these tell which devices there are and who has them.
pub(in crate::http) fn described(run: &DryRun, sees_host: bool) -> DryRunReport {
    let shown = |text: String| sees_host.then_some(text);
    let devices = run.devices.iter().map(|(alias, device)| DryRunDevice {
        dev_id: shown(device.facts.dev_id()),
        address: shown(device.facts.address.to_string()),
        vendor_id: device.facts.vendor_id,
        product_id: device.facts.product_id,
        alias: alias.clone(),
    });
    let checks = run.checks.iter().filter(|check| sees_host || check.device.is_none()).map(|check| {
        let result = match check.result {
            CheckResult::Pass => "pass",
            CheckResult::Fail => "fail",
            CheckResult::Unknown => "unknown",
        };
        DryRunCheck {
            check: check.name,
            device: check.device,
            result,
            message: sees_host.then(|| check.message.clone()),
            cure: check.cure.clone().filter(|_| sees_host),
        }
    });
    DryRunReport {
        would_attach: run.would_attach(),
        pci_devices: devices.collect(),
        checks: checks.collect(),
    }
}
