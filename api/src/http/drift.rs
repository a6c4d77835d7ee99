//! `drift`: differences between the records, the domains and the hosts, and their repair. An extension of hotslot.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Finding, Kind, Trigger};
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_service::assignment::Assignments;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::Path;
use super::error::Fault;
use super::hypervisors::HypervisorPath;
use super::schema;

/// A disagreement, and what is to be done about it.
#[derive(Serialize, ToSchema)]
#[schema(as = Drift)]
pub(super) struct Shown {
    /// The name of the host.
    host: String,
    /// What disagrees.
    #[schema(value_type = schema::DriftKind)]
    kind: Kind,
    /// The server whose domain it is about.
    #[schema(value_type = Option<Uuid>)]
    server_id: Option<ServerId>,
    /// The name of the server's domain; null when there is no such domain.
    server_name: Option<String>,
    /// The assignment that it is about.
    #[schema(value_type = Option<Uuid>)]
    attachment_id: Option<AttachmentId>,
    /// The address of the device on the host.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// What each of `record`, `live` (the running guest), `definition`, `host` and `profile` says.
    said: BTreeMap<&'static str, String>,
    /// What resolves the disagreement.
    action: String,
    /// Whether the service does it `by itself`, or `by a repair`; null when only a person can do it.
    done: Option<&'static str>,
    /// Whether the repair did it. Only the answer to a repair has this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool)]
    repaired: Option<bool>,
    /// Why it is left as it was; null when it was repaired. Only the answer to a repair has this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = serde_json::Value)]
    left: Option<Option<String>>,
}

/// What disagrees at one host.
#[derive(Serialize, ToSchema)]
pub(super) struct DriftOfHost {
    /// The disagreements.
    drift: Vec<Shown>,
}

/// What disagrees at all hosts. A host that is unreachable is listed, and the other hosts are still shown.
#[derive(Default, Serialize, ToSchema)]
pub(super) struct DriftEverywhere {
    /// The disagreements, by host.
    drift: Vec<Shown>,
    /// The hosts that cannot be read.
    hosts_away: Vec<HostAway>,
}

/// A host that cannot be read.
#[derive(Serialize, ToSchema)]
pub(super) struct HostAway {
    /// The name of the host.
    host: String,
    /// Why that is so.
    reason: String,
}

fn shown(host: &Host, finding: &Finding) -> Shown {
    let said = finding.observations.iter().map(|(witness, what)| (witness.as_str(), what.clone())).collect();
    let done = finding.action.trigger().map(|trigger| match trigger {
        Trigger::Event | Trigger::Arrival | Trigger::Round => "by itself",
        Trigger::Repair => "by a repair",
    });
    Shown {
        host: host.name.clone(),
        kind: finding.kind,
        server_id: finding.server.as_ref().map(|(id, _)| *id),
        server_name: finding.server.as_ref().and_then(|(_, name)| name.clone()),
        attachment_id: finding.attachment,
        address: finding.address,
        said,
        action: finding.action.to_string(),
        done,
        repaired: None,
        left: None,
    }
}

async fn findings(assignments: &Assignments, host: &Host) -> Result<Vec<Shown>, Error> {
    Ok(assignments.drift(host).await?.iter().map(|finding| shown(host, finding)).collect())
}

async fn repaired(assignments: &Arc<Assignments>, host: &Arc<Host>) -> Result<Vec<Shown>, Error> {
    let outcomes = assignments.repair(host).await?.into_iter();
    let repaired = |(finding, outcome): (Finding, Result<(), String>)| Shown {
        repaired: Some(outcome.is_ok()),
        left: Some(outcome.err()),
        ..shown(host, &finding)
    };
    Ok(outcomes.map(repaired).collect())
}

/// Repairs a host among others. On one that admits no repair everything is left, with that as the reason.
async fn repaired_or_left(assignments: &Arc<Assignments>, host: &Arc<Host>) -> Result<Vec<Shown>, Error> {
    let reason = match repaired(assignments, host).await {
        Err(Error::Restricted { reason, .. }) => reason,
        done => return done,
    };
    let left = |one: Shown| Shown { repaired: Some(false), left: Some(Some(reason.clone())), ..one };
    Ok(findings(assignments, host).await?.into_iter().map(left).collect())
}

impl DriftEverywhere {
    fn add(&mut self, host: &Host, found: Result<Vec<Shown>, Error>) -> Result<(), Error> {
        match found {
            Ok(found) => self.drift.extend(found),
            Err(error @ (Error::HostAway { .. } | Error::Hypervisor { .. })) => {
                self.hosts_away.push(HostAway { host: host.name.clone(), reason: error.to_string() });
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Shows where the records, the domains and the hosts disagree.
#[utoipa::path(get, path = "/drift", tag = "Drift",
    responses((status = 200, description = "What disagrees.", body = DriftEverywhere)))]
pub(super) async fn list(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
) -> Result<Json<DriftEverywhere>, Fault> {
    let mut all = DriftEverywhere::default();
    for host in hosts.iter() {
        all.add(host, findings(&assignments, host).await)?;
    }
    Ok(Json(all))
}

/// Repairs what disagrees at all hosts.
#[utoipa::path(post, path = "/drift", tag = "Drift",
    responses((status = 200, description = "What disagreed, and whether it was repaired. At a host that is frozen or \
        read-only all is left, with that as the reason.", body = DriftEverywhere)))]
pub(super) async fn repair(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
) -> Result<Json<DriftEverywhere>, Fault> {
    let mut all = DriftEverywhere::default();
    for host in hosts.iter() {
        all.add(host, repaired_or_left(&assignments, host).await)?;
    }
    Ok(Json(all))
}

/// Shows where the records, the domains and one host disagree.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/drift", tag = "Drift", params(HypervisorPath),
    operation_id = "list_of_host",
    responses((status = 200, description = "What disagrees.", body = DriftOfHost)))]
pub(super) async fn of_host(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<DriftOfHost>, Fault> {
    Ok(Json(DriftOfHost { drift: findings(&assignments, path.host(&hosts)?).await? }))
}

/// Repairs what disagrees at one host.
#[utoipa::path(post, path = "/os-hypervisors/{hypervisor_id}/drift", tag = "Drift", params(HypervisorPath),
    responses(
        (status = 200, description = "What disagreed, and whether it was repaired.", body = DriftOfHost),
        (status = 409, description = "The host is frozen or read-only."),
    ))]
pub(super) async fn repair_host(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<DriftOfHost>, Fault> {
    Ok(Json(DriftOfHost { drift: repaired(&assignments, path.host(&hosts)?).await? }))
}
