//! `os-pci`: the devices that some `device_spec` matches, with Nova's keys and those of hotslot.
//!
//! A list can be filtered by its keys and by any key of `extra_info`. It is paged and ordered by id.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_model::device::{DevType, Device, DeviceStatus};
use hotslot_model::id::{DeviceId, HypervisorId, RequestId, ServerId};
use hotslot_model::rules::Foreign;
use hotslot_model::texts::Texts;
use hotslot_service::assignment::Assignments;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Link, Page, PageParams, Pairs, Path, id, not_listed, read, time};
use super::error::Fault;
use super::host_function::owner;
use super::schema;
use super::state::DeviceParts;

/// A device in the brief list: Nova's six keys.
#[derive(Serialize, ToSchema)]
pub(super) struct PciDeviceBrief {
    /// The number of the device.
    #[schema(value_type = i64, minimum = 1)]
    id: DeviceId,
    /// The address on the host.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The number of the host, as `os-hypervisors` shows it.
    #[schema(value_type = i64, minimum = 1)]
    compute_node_id: HypervisorId,
    /// The product id, as the device's configuration space has it.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The vendor id, as the device's configuration space has it.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// Whether the device is free.
    #[schema(value_type = schema::PciDeviceStatus)]
    status: DeviceStatus,
}

impl From<&Device> for PciDeviceBrief {
    fn from(device: &Device) -> Self {
        Self {
            id: device.id,
            address: device.facts.address,
            compute_node_id: device.hypervisor,
            product_id: device.facts.product_id,
            vendor_id: device.facts.vendor_id,
            status: device.status,
        }
    }
}

/// A device with all that is known of it: Nova's keys, and then the keys that hotslot adds.
#[derive(Serialize, ToSchema)]
pub(super) struct PciDevice {
    /// The number of the device.
    #[schema(value_type = i64, minimum = 1)]
    id: DeviceId,
    /// The address on the host.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The number of the host, as `os-hypervisors` shows it.
    #[schema(value_type = i64, minimum = 1)]
    compute_node_id: HypervisorId,
    /// The product id, as the device's configuration space has it.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The vendor id, as the device's configuration space has it.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// Whether the device is free.
    #[schema(value_type = schema::PciDeviceStatus)]
    status: DeviceStatus,
    /// libvirt's name of the device, such as `pci_0000_3b_00_1`.
    dev_id: String,
    /// What kind of function the device is.
    #[schema(value_type = schema::PciDeviceType)]
    dev_type: DevType,
    /// Nova's label: `label_`, the vendor id, `_` and the product id.
    label: String,
    /// The tags of the `device_spec` that lists the device, and what hotslot adds to them. Every value is a string.
    #[schema(value_type = BTreeMap<String, String>)]
    extra_info: Texts,
    /// The server that has the device.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
    /// The same as `instance_uuid`.
    #[schema(value_type = Option<Uuid>)]
    server_uuid: Option<ServerId>,
    /// When the device was first seen.
    #[schema(value_type = schema::Time)]
    created_at: String,
    /// When the record of the device last changed.
    #[schema(value_type = Option<schema::Time>)]
    updated_at: Option<String>,
    /// Always false: a device that is gone is not shown.
    deleted: bool,
    /// Always null.
    #[schema(value_type = Option<schema::Time>)]
    deleted_at: Option<String>,

    /// The UUID of the device, which can be used instead of `id`.
    uuid: Uuid,
    /// The NUMA node of the host to which the device is connected; null when the host does not tell.
    numa_node: Option<u32>,
    /// The address of the PF of a VF.
    #[schema(value_type = Option<schema::PciAddress>)]
    parent_addr: Option<PciAddress>,
    /// The request by which the device was assigned.
    #[schema(value_type = Option<Uuid>)]
    request_id: Option<RequestId>,
    /// The name of the host.
    host: Option<String>,
    /// Since when a device in use has been gone from the host, or has not been assignable.
    #[schema(value_type = Option<schema::Time>)]
    gone_at: Option<String>,
    /// Since when a device has been waiting: for its scrub, to be cleaned (`one_time_use`), or in quarantine.
    #[schema(value_type = Option<schema::Time>)]
    used_at: Option<String>,
    /// Whether it waits for its scrub, which erases what its last owner left; one in quarantine is scrubbed when it is released.
    scrub: bool,
    /// Why the device is in quarantine: what did not work during or after a use, or why it was not scrubbed; null when it is
    /// not.
    quarantine: Option<String>,
    /// Who has the device, in words: a server, the host itself, or a domain into which somebody else put it.
    owner: Option<String>,
}

/// One device.
#[derive(Serialize, ToSchema)]
pub(super) struct PciDeviceAnswer {
    /// The device.
    pci_device: PciDevice,
}

/// The devices that somebody other than hotslot put into domains, by host.
type ForeignOf = BTreeMap<HypervisorId, BTreeMap<PciAddress, Foreign>>;

fn foreign(hosts: &Hosts) -> ForeignOf {
    hosts.iter().map(|host| (host.row.id, host.foreign())).collect()
}

fn full(hosts: &Hosts, device: &Device, foreign: &ForeignOf) -> PciDevice {
    let facts = &device.facts;
    let foreign = foreign.get(&device.hypervisor).and_then(|of_host| of_host.get(&facts.address));
    PciDevice {
        id: device.id,
        address: facts.address,
        compute_node_id: device.hypervisor,
        product_id: facts.product_id,
        vendor_id: facts.vendor_id,
        status: device.status,
        dev_id: facts.dev_id(),
        dev_type: facts.dev_type,
        label: facts.label(),
        extra_info: facts.extra_info.clone(),
        instance_uuid: device.server(),
        server_uuid: device.server(),
        created_at: time(device.created_at),
        updated_at: device.updated_at.map(time),
        deleted: false,
        deleted_at: None,
        uuid: device.uuid,
        numa_node: facts.numa_node,
        parent_addr: facts.parent_addr,
        request_id: device.request,
        host: hosts.host(device.hypervisor).map(|host| host.name.clone()),
        gone_at: device.gone_at.map(time),
        used_at: device.used_at.map(time),
        scrub: device.scrub,
        quarantine: device.quarantine.clone(),
        owner: owner(Some(device), foreign),
    }
}

/// The filter of a list. Any other key of the query is a key of `extra_info`.
#[derive(Default, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Whether the conditions contradict each other, so that no row can match.
    #[param(ignore)]
    nothing: bool,
    /// The number of the host. `host` and `hypervisor_hostname` name it instead.
    #[param(rename = "compute_node_id", value_type = Option<i64>)]
    hypervisor: Option<HypervisorId>,
    /// The vendor id.
    #[param(value_type = Option<schema::PciIdText>, inline)]
    vendor_id: Option<PciId>,
    /// The product id.
    #[param(value_type = Option<schema::PciIdText>, inline)]
    product_id: Option<PciId>,
    /// What kind of function the device is.
    #[param(value_type = Option<schema::PciDeviceType>)]
    dev_type: Option<DevType>,
    /// Whether the device is free.
    #[param(value_type = Option<schema::PciDeviceStatus>)]
    status: Option<DeviceStatus>,
    /// The server that has the device. `server_uuid` is the same.
    #[param(rename = "instance_uuid", value_type = Option<Uuid>)]
    server: Option<ServerId>,
    /// The address on the host.
    #[param(value_type = Option<schema::PciAddressText>, inline)]
    address: Option<PciAddress>,
    /// The address of the PF.
    #[param(value_type = Option<schema::PciAddressText>, inline)]
    parent_addr: Option<PciAddress>,
    /// The NUMA node.
    #[param(value_type = Option<schema::NumaNode>, inline)]
    numa_node: Option<u32>,
    /// The number of the device.
    #[param(value_type = Option<i64>)]
    id: Option<DeviceId>,
    /// The UUID of the device.
    uuid: Option<Uuid>,
    /// The request by which the device was assigned.
    #[param(rename = "request_id", value_type = Option<Uuid>)]
    request: Option<RequestId>,
    /// libvirt's name of the device.
    dev_id: Option<String>,
    /// Nova's label of the device.
    label: Option<String>,
    #[param(ignore)]
    extra_info: Vec<(String, String)>,
}

/// Other names of the columns by which devices are filtered.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Filter::read` reads the keys")]
struct OtherNames {
    /// The name of the host.
    host: Option<String>,
    /// The same as `host`.
    hypervisor_hostname: Option<String>,
    /// The same as `instance_uuid`.
    server_uuid: Option<Uuid>,
    /// Whether the row is deleted, as in Nova. No row of the list is.
    deleted: Option<bool>,
}

/// The columns by which devices are filtered.
const COLUMNS: [&str; 17] = [
    "host",
    "hypervisor_hostname",
    "compute_node_id",
    "vendor_id",
    "product_id",
    "dev_type",
    "status",
    "instance_uuid",
    "server_uuid",
    "address",
    "parent_addr",
    "numa_node",
    "id",
    "uuid",
    "request_id",
    "dev_id",
    "label",
];

impl Filter {
    fn read(hosts: &Hosts, pairs: Vec<(String, String)>) -> Result<Self, Error> {
        fn value<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, Error> {
            text.parse().map_err(|error| Error::Invalid(format!("query key {key}: {error}")))
        }
        /// Parses a type whose errors do not name the value.
        fn plain<T: std::str::FromStr>(key: &str, text: &str, right: &str) -> Result<T, Error> {
            text.parse().map_err(|_| {
                Error::Invalid(format!("query key {key}: invalid value `{text}`: expected {right}"))
            })
        }
        const NUMBER: &str = "a number from 0 up";
        const UUID: &str = "a UUID such as 3f0c7c2e-6f0e-4c0b-9f3a-0d3c7f0a4a55";
        /// Adds a condition, and returns whether it contradicts an earlier one for the same column.
        fn narrow<T: PartialEq>(column: &mut Option<T>, value: T) -> bool {
            column.replace(value).is_some_and(|before| Some(before) != *column)
        }
        let mut filter = Self::default();
        for (key, text) in pairs {
            let excluded = match key.as_str() {
                "host" | "hypervisor_hostname" => {
                    let host = hosts.iter().find(|host| host.name == text);
                    host.is_none_or(|host| narrow(&mut filter.hypervisor, host.row.id))
                }
                "compute_node_id" => {
                    narrow(&mut filter.hypervisor, HypervisorId(plain(&key, &text, NUMBER)?))
                }
                "vendor_id" => narrow(&mut filter.vendor_id, value(&key, &text)?),
                "product_id" => narrow(&mut filter.product_id, value(&key, &text)?),
                "dev_type" => narrow(&mut filter.dev_type, value(&key, &text)?),
                "status" => narrow(&mut filter.status, value(&key, &text)?),
                "instance_uuid" | "server_uuid" => narrow(&mut filter.server, plain(&key, &text, UUID)?),
                "address" => narrow(&mut filter.address, value(&key, &text)?),
                "parent_addr" => narrow(&mut filter.parent_addr, value(&key, &text)?),
                "numa_node" => narrow(&mut filter.numa_node, plain(&key, &text, NUMBER)?),
                "id" => narrow(&mut filter.id, DeviceId(plain(&key, &text, NUMBER)?)),
                "uuid" => narrow(&mut filter.uuid, plain(&key, &text, UUID)?),
                "request_id" => narrow(&mut filter.request, plain(&key, &text, UUID)?),
                "dev_id" => narrow(&mut filter.dev_id, text),
                "label" => narrow(&mut filter.label, text),
                "deleted" => plain::<bool>(&key, &text, "true or false")?,
                "created_at" | "updated_at" | "deleted_at" | "gone_at" | "used_at" => {
                    return Err(Error::Invalid(format!(
                        "os-pci cannot be filtered by {key}; GET events gives the times of changes"
                    )));
                }
                _ => {
                    filter.extra_info.push((key, text));
                    false
                }
            };
            filter.nothing |= excluded;
        }
        Ok(filter)
    }

    /// Checks that each further key is one that `extra_info` can have, so that a misspelt filter is not taken for one that
    /// nothing passes.
    async fn expect_known_keys(&self, parts: &DeviceParts) -> Result<(), Error> {
        if self.extra_info.is_empty() {
            return Ok(());
        }
        let known = parts.catalog.inventory().extra_info_keys();
        for (key, _) in self.extra_info.iter().filter(|(key, _)| !known.contains(key)) {
            // A device in use keeps the tags that it was promised with.
            let has = |device: &Device| device.facts.extra_info.get(key).is_some();
            if parts.records.devices_after(None, 1, has).is_empty() {
                let known = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let columns = COLUMNS.join(", ");
                return Err(Error::Invalid(format!(
                    "unknown query key {key}; known: limit, marker, {columns}; and of extra_info: {known}"
                )));
            }
        }
        Ok(())
    }

    fn passes(&self, device: &Device) -> bool {
        fn is<T: PartialEq + Copy>(wanted: Option<T>, has: T) -> bool {
            wanted.is_none_or(|wanted| wanted == has)
        }
        let facts = &device.facts;
        !self.nothing
            && is(self.hypervisor, device.hypervisor)
            && is(self.vendor_id, facts.vendor_id)
            && is(self.product_id, facts.product_id)
            && is(self.dev_type, facts.dev_type)
            && is(self.status, device.status)
            && (self.server.is_none() || self.server == device.server())
            && is(self.address, facts.address)
            && (self.parent_addr.is_none() || self.parent_addr == facts.parent_addr)
            && (self.numa_node.is_none() || self.numa_node == facts.numa_node)
            && is(self.id, device.id)
            && is(self.uuid, device.uuid)
            && (self.request.is_none() || self.request == device.request)
            && self.dev_id.as_ref().is_none_or(|dev_id| *dev_id == facts.dev_id())
            && self.label.as_ref().is_none_or(|label| *label == facts.label())
            && self.extra_info.iter().all(|(key, value)| facts.extra_info.get(key) == Some(value.as_str()))
    }
}

/// One page of a list that a query asks for.
struct Found {
    devices: Vec<Arc<Device>>,
    links: Option<Vec<Link>>,
}

impl Found {
    async fn by(
        parts: &DeviceParts,
        uri: &OriginalUri,
        headers: &HeaderMap,
        pairs: Pairs,
    ) -> Result<Self, Fault> {
        let (page, pairs) = Page::read(pairs)?;
        let filter = Filter::read(&parts.hosts, pairs)?;
        filter.expect_known_keys(parts).await?;
        let after = match &page.marker {
            None => None,
            Some(marker) => Some(parts.records.marker(marker).await?.ok_or_else(|| {
                Error::Invalid(format!(
                    "invalid marker {marker}: no PCI device has this id or uuid; GET os-pci lists them"
                ))
            })?),
        };
        let devices = parts.records.devices_after(after, page.limit + 1, |device| filter.passes(device));
        let (devices, links) =
            page.cut(devices, uri, headers, |device: &Arc<Device>| device.id.0.to_string());
        Ok(Self { devices, links })
    }
}

/// A page of the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct PciDeviceList {
    /// The devices, ordered by `id`.
    pci_devices: Vec<PciDeviceBrief>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    pci_devices_links: Option<Vec<Link>>,
}

/// A page of the detailed list.
#[derive(Serialize, ToSchema)]
pub(super) struct PciDeviceDetailList {
    /// The devices, ordered by `id`.
    pci_devices: Vec<PciDevice>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    pci_devices_links: Option<Vec<Link>>,
}

/// Lists the assignable devices of all hosts, with Nova's six keys of each.
#[utoipa::path(get, path = "/os-pci", tag = "PCI devices", params(PageParams, Filter, OtherNames),
    responses((status = 200, description = "A page of the list.", body = PciDeviceList)))]
pub(super) async fn list(
    State(parts): State<DeviceParts>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<PciDeviceList>, Fault> {
    let found = Found::by(&parts, &uri, &headers, pairs).await?;
    let pci_devices = found.devices.iter().map(|device| PciDeviceBrief::from(&**device)).collect();
    Ok(Json(PciDeviceList { pci_devices, pci_devices_links: found.links }))
}

/// Lists the assignable devices of all hosts, with all that is known of each.
#[utoipa::path(get, path = "/os-pci/detail", tag = "PCI devices", params(PageParams, Filter, OtherNames),
    responses((status = 200, description = "A page of the list.", body = PciDeviceDetailList)))]
pub(super) async fn detail(
    State(parts): State<DeviceParts>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<PciDeviceDetailList>, Fault> {
    let found = Found::by(&parts, &uri, &headers, pairs).await?;
    let foreign = foreign(&parts.hosts);
    let pci_devices = found.devices.iter().map(|device| full(&parts.hosts, device, &foreign)).collect();
    Ok(Json(PciDeviceDetailList { pci_devices, pci_devices_links: found.links }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DevicePath {
    /// The number or the UUID of the device.
    device_id: String,
}

impl DevicePath {
    /// Returns the device with this id or UUID.
    fn device(&self, records: &Records) -> Result<Arc<Device>, Error> {
        let device = match id::<Uuid>(&self.device_id) {
            Some(uuid) => records.devices().into_iter().find(|device| device.uuid == uuid),
            None => id(&self.device_id).and_then(|number| records.device(DeviceId(number))),
        };
        device.ok_or_else(|| not_listed("PCI device", &self.device_id, "os-pci"))
    }
}

/// Shows a device.
#[utoipa::path(get, path = "/os-pci/{device_id}", tag = "PCI devices", params(DevicePath),
    responses((status = 200, description = "The device.", body = PciDeviceAnswer)))]
pub(super) async fn show(
    State(parts): State<DeviceParts>,
    Path(path): Path<DevicePath>,
) -> Result<Json<PciDeviceAnswer>, Fault> {
    let device = path.device(&parts.records)?;
    Ok(Json(PciDeviceAnswer { pci_device: full(&parts.hosts, &device, &foreign(&parts.hosts)) }))
}

const CLEANED: &str = r#"{"cleaned": null}"#;

/// An action on a device.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PciDeviceAction {
    /// Records that the device has been cleaned after its use, and is taken out of quarantine. Always null.
    #[schema(value_type = schema::OnlyNull)]
    cleaned: Value,
}

/// Records that a device with `one_time_use` has been cleaned, or that one in quarantine works again. An extension of hotslot.
#[utoipa::path(post, path = "/os-pci/{device_id}/action", tag = "PCI devices", params(DevicePath),
    request_body(content = PciDeviceAction, example = json!({ "cleaned": null })),
    responses(
        (status = 200, description = "The device, which can be assigned again, once it was scrubbed if that is due.",
         body = PciDeviceAnswer),
        (status = 409, description = "The device is in use or being scrubbed, or does not wait to be cleaned."),
    ))]
pub(super) async fn act(
    State(parts): State<DeviceParts>,
    State(assignments): State<Arc<Assignments>>,
    Path(path): Path<DevicePath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PciDeviceAnswer>, Fault> {
    let device = path.device(&parts.records)?;
    let PciDeviceAction { cleaned } = read(&headers, body, CLEANED)?;
    if !cleaned.is_null() {
        let message = format!("bad body: `cleaned` must be null, not {cleaned}; send {CLEANED}");
        return Err(Error::Invalid(message).into());
    }
    assignments.cleaned(&device).await?;
    // The record of a device that is gone ends with that.
    let forgotten = || {
        let mut row = Device::clone(&device);
        row.cleaned();
        Arc::new(row)
    };
    let device = path.device(&parts.records).unwrap_or_else(|_| forgotten());
    Ok(Json(PciDeviceAnswer { pci_device: full(&parts.hosts, &device, &foreign(&parts.hosts)) }))
}

/// Has a device scrubbed that waits to be cleaned or is in quarantine, which erases what its last owner left. An extension of
/// hotslot.
#[utoipa::path(post, path = "/os-pci/{device_id}/scrub", tag = "PCI devices", params(DevicePath),
    responses(
        (status = 202, description = "The device. Its scrub goes on in the background; when it has succeeded, the device can be \
                                      assigned again.", body = PciDeviceAnswer),
        (status = 409, description = "The device is in use or being scrubbed, or does not wait to be cleaned."),
    ))]
pub(super) async fn scrub(
    State(parts): State<DeviceParts>,
    State(assignments): State<Arc<Assignments>>,
    Path(path): Path<DevicePath>,
) -> Result<(StatusCode, Json<PciDeviceAnswer>), Fault> {
    let device = path.device(&parts.records)?;
    assignments.scrub(&device).await?;
    let device = path.device(&parts.records)?;
    let pci_device = full(&parts.hosts, &device, &foreign(&parts.hosts));
    Ok((StatusCode::ACCEPTED, Json(PciDeviceAnswer { pci_device })))
}
