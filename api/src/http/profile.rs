//! `os-hypervisors/{hypervisor_id}/profile`: what the configuration says of the VFs and drivers of a host, and what the host
//! has. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::Role;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Finding, Kind, Source};
use hotslot_model::rules::ProfileEntry;
use hotslot_service::assignment::{Assignments, Profiled};
use hotslot_service::hosts::Hosts;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Path;
use super::error::Fault;
use super::hypervisors::HypervisorPath;
use super::schema;

/// The profile of a host.
#[derive(Serialize, ToSchema)]
#[schema(as = HypervisorProfile)]
pub(super) struct HostProfile {
    /// The entries for the host, in the order in which they count.
    profile: Vec<Entry>,
}

/// An entry of the profile, and the functions for which it is the first that names them.
#[derive(Serialize, ToSchema)]
#[schema(as = ProfileEntry)]
struct Entry {
    /// The place in the configuration, such as `[[profile]][0]`.
    place: String,
    /// The name of the host; null for every host.
    host: Option<String>,
    /// The vendor id of the functions.
    vendor_id: Option<String>,
    /// The product id of the functions.
    product_id: Option<String>,
    /// The address of the functions, whose fields may be `*`.
    address: Option<String>,
    /// The network interface of the function.
    devname: Option<String>,
    /// The number of VFs of each PF.
    vfs: Option<u32>,
    /// The id of the vGPU type of each VF.
    vgpu_type: Option<String>,
    /// The driver of each VF; without `vfs` and `vgpu_type`, of the functions themselves.
    driver: Option<String>,
    /// The functions, as the host has them now.
    functions: Vec<Function>,
}

/// A function that an entry names.
#[derive(Serialize, ToSchema)]
#[schema(as = ProfiledFunction)]
struct Function {
    /// The address.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The driver that is bound; null for none.
    driver: Option<String>,
    /// The maximum number of VFs; null when it is no PF.
    max_vfs: Option<u32>,
    /// The VFs that it has.
    #[schema(value_type = Vec<schema::PciAddress>)]
    vfs: Vec<PciAddress>,
    /// Where it or its VFs differ from the entry.
    differences: Vec<Difference>,
}

/// A difference between a host and its profile. Drift lists it too.
#[derive(Serialize, ToSchema)]
#[schema(as = ProfileDifference)]
struct Difference {
    /// What differs.
    #[schema(value_type = schema::DriftKind)]
    kind: Kind,
    /// The address of the function that differs.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// What the host has, in words.
    host: String,
    /// What resolves the difference.
    action: String,
    /// `by a repair`; null when only a person can do it.
    done: Option<&'static str>,
}

impl From<&Finding> for Difference {
    fn from(finding: &Finding) -> Self {
        let host = finding.observations.iter().find(|(source, _)| *source == Source::Host);
        Self {
            kind: finding.kind,
            address: finding.address,
            host: host.map(|(_, says)| says.clone()).unwrap_or_default(),
            action: finding.action.to_string(),
            done: finding.action.trigger().map(|_| "by a repair"),
        }
    }
}

impl From<&Profiled> for Function {
    fn from(profiled: &Profiled) -> Self {
        let function = &profiled.function;
        let (max_vfs, vfs) = match &function.role {
            Role::Physical { max_vfs, vfs } => (Some(*max_vfs), vfs.clone()),
            Role::Plain | Role::Virtual { .. } => (None, Vec::new()),
        };
        let differences = profiled.differences.iter().map(Difference::from).collect();
        Self { address: function.address, driver: function.driver_name(), max_vfs, vfs, differences }
    }
}

fn shown(entry: ProfileEntry, all: &[Profiled]) -> Entry {
    let functions = all.iter().filter(|profiled| profiled.entry == entry.index).map(Function::from).collect();
    let (place, profile) = (entry.place(), entry.profile);
    Entry {
        place,
        host: profile.host,
        vendor_id: profile.vendor_id,
        product_id: profile.product_id,
        address: profile.address,
        devname: profile.devname,
        vfs: profile.vfs,
        vgpu_type: profile.vgpu_type,
        driver: profile.driver,
        functions,
    }
}

/// Shows the profile of a host, and what the host has. An extension of hotslot.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/profile", tag = "Hypervisors", params(HypervisorPath),
    operation_id = "show_profile",
    responses((status = 200, description = "The profile; empty when no `[[profile]]` is for the host.",
        body = HostProfile)))]
pub(super) async fn show(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<HostProfile>, Fault> {
    let (entries, functions) = assignments.profile(path.host(&hosts)?).await?;
    Ok(Json(HostProfile { profile: entries.into_iter().map(|entry| shown(entry, &functions)).collect() }))
}
