//! `os-pci`: the devices that some `device_spec` matches, with Nova's keys and those of hotslot.
//!
//! A list can be filtered by its keys and by any key of `extra_info`. It is paged and ordered by id.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_model::device::{DevType, Device, DeviceStatus};
use hotslot_model::id::{DeviceId, HypervisorId, RequestId, ServerId};
use hotslot_model::rules::Foreign;
use hotslot_model::texts::Texts;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::body::{Page, Pairs, Path, id, read, time};
use super::error::Fault;
use super::hypervisors::owner;
use super::state::DeviceParts;

/// A device in the brief list: Nova's six keys.
#[derive(Serialize)]
struct Brief {
    id: DeviceId,
    address: PciAddress,
    compute_node_id: HypervisorId,
    product_id: PciId,
    vendor_id: PciId,
    status: DeviceStatus,
}

impl From<&Device> for Brief {
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

/// A device in the detailed list: Nova's keys, and then the keys that hotslot adds.
#[derive(Serialize)]
struct Full<'a> {
    id: DeviceId,
    address: PciAddress,
    compute_node_id: HypervisorId,
    product_id: PciId,
    vendor_id: PciId,
    status: DeviceStatus,
    dev_id: String,
    dev_type: DevType,
    label: String,
    extra_info: &'a Texts,
    instance_uuid: Option<ServerId>,
    server_uuid: Option<ServerId>,
    created_at: String,
    updated_at: Option<String>,
    deleted: bool,
    deleted_at: Option<String>,

    uuid: Uuid,
    numa_node: Option<u32>,
    parent_addr: Option<PciAddress>,
    request_id: Option<RequestId>,
    host: Option<&'a str>,
    gone_at: Option<String>,
    used_at: Option<String>,
    owner: Option<String>,
}

/// The devices that somebody other than hotslot put into domains, by host.
type ForeignOf = BTreeMap<HypervisorId, BTreeMap<PciAddress, Foreign>>;

fn foreign(hosts: &Hosts) -> ForeignOf {
    hosts.iter().map(|host| (host.row.id, host.foreign())).collect()
}

fn full<'a>(hosts: &'a Hosts, device: &'a Device, foreign: &ForeignOf) -> Full<'a> {
    let facts = &device.facts;
    let foreign = foreign.get(&device.hypervisor).and_then(|of_host| of_host.get(&facts.address));
    Full {
        id: device.id,
        address: facts.address,
        compute_node_id: device.hypervisor,
        product_id: facts.product_id,
        vendor_id: facts.vendor_id,
        status: device.status,
        dev_id: facts.dev_id(),
        dev_type: facts.dev_type,
        label: facts.label(),
        extra_info: &facts.extra_info,
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
        host: hosts.host(device.hypervisor).map(|host| host.name.as_str()),
        gone_at: device.gone_at.map(time),
        used_at: device.used_at.map(time),
        owner: owner(Some(device), foreign),
    }
}

/// The filter of a list.
#[derive(Default)]
struct Filter {
    /// Whether the conditions contradict each other, so that no row can match.
    nothing: bool,
    hypervisor: Option<HypervisorId>,
    vendor_id: Option<PciId>,
    product_id: Option<PciId>,
    dev_type: Option<DevType>,
    status: Option<DeviceStatus>,
    server: Option<ServerId>,
    address: Option<PciAddress>,
    parent_addr: Option<PciAddress>,
    numa_node: Option<u32>,
    id: Option<DeviceId>,
    uuid: Option<Uuid>,
    request: Option<RequestId>,
    dev_id: Option<String>,
    label: Option<String>,
    extra_info: Vec<(String, String)>,
}

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
    links: Option<Value>,
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

/// A page of a list, with the link to the next page.
#[derive(Serialize)]
pub(super) struct List<T> {
    pci_devices: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pci_devices_links: Option<Value>,
}

pub(super) async fn list(
    State(parts): State<DeviceParts>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let found = Found::by(&parts, &uri, &headers, pairs).await?;
    let pci_devices: Vec<Brief> = found.devices.iter().map(|device| Brief::from(&**device)).collect();
    Ok(Json(List { pci_devices, pci_devices_links: found.links }).into_response())
}

pub(super) async fn detail(
    State(parts): State<DeviceParts>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let found = Found::by(&parts, &uri, &headers, pairs).await?;
    let foreign = foreign(&parts.hosts);
    let pci_devices: Vec<_> =
        found.devices.iter().map(|device| full(&parts.hosts, device, &foreign)).collect();
    Ok(Json(List { pci_devices, pci_devices_links: found.links }).into_response())
}

#[derive(Deserialize)]
pub(super) struct DevicePath {
    device_id: String,
}

impl DevicePath {
    /// Returns the device with this id or UUID.
    fn device(&self, records: &Records) -> Result<Arc<Device>, Error> {
        let device = match id::<Uuid>(&self.device_id, "PCI device") {
            Ok(uuid) => records.devices().into_iter().find(|device| device.uuid == uuid),
            Err(_) => records.device(DeviceId(id(&self.device_id, "PCI device")?)),
        };
        device.ok_or_else(|| Error::NotFound(format!("PCI device {}", self.device_id)))
    }
}

pub(super) async fn show(
    State(parts): State<DeviceParts>,
    Path(path): Path<DevicePath>,
) -> Result<Json<Value>, Fault> {
    let device = path.device(&parts.records)?;
    Ok(Json(json!({ "pci_device": full(&parts.hosts, &device, &foreign(&parts.hosts)) })))
}

const CLEANED: &str = r#"{"cleaned": null}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Action {
    cleaned: Value,
}

/// Records that a device with `one_time_use` has been cleaned. An extension of hotslot.
pub(super) async fn act(
    State(parts): State<DeviceParts>,
    Path(path): Path<DevicePath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let device = path.device(&parts.records)?;
    let Action { cleaned } = read(&headers, body, CLEANED)?;
    if !cleaned.is_null() {
        let message = format!("bad body: `cleaned` must be null, not {cleaned}; send {CLEANED}");
        return Err(Error::Invalid(message).into());
    }
    parts.catalog.cleaned(device.id).await?;
    let device = path.device(&parts.records)?;
    Ok(Json(json!({ "pci_device": full(&parts.hosts, &device, &foreign(&parts.hosts)) })))
}
