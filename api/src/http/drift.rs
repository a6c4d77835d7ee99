//! `drift`: differences between the records, the domains and the hosts, and their repair. An extension of hotslot.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_model::assignment::{Finding, Trigger};
use hotslot_service::assignment::Assignments;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use serde_json::{Value, json};

use super::body::Path;
use super::error::Fault;
use super::hypervisors::HypervisorPath;

fn wire(host: &Host, finding: &Finding) -> Value {
    let observations: BTreeMap<_, _> =
        finding.observations.iter().map(|(witness, what)| (witness.as_str(), what)).collect();
    let done = finding.action.trigger().map(|trigger| match trigger {
        Trigger::Event | Trigger::Arrival | Trigger::Round => "by itself",
        Trigger::Repair => "by a repair",
    });
    json!({
        "host": host.name,
        "kind": finding.kind,
        "server_id": finding.server.as_ref().map(|(id, _)| id),
        "server_name": finding.server.as_ref().and_then(|(_, name)| name.as_ref()),
        "attachment_id": finding.attachment,
        "address": finding.address,
        "said": observations,
        "action": finding.action.to_string(),
        "done": done,
    })
}

async fn findings(assignments: &Assignments, host: &Host) -> Result<Vec<Value>, Error> {
    Ok(assignments.drift(host).await?.iter().map(|finding| wire(host, finding)).collect())
}

async fn repaired(assignments: &Arc<Assignments>, host: &Arc<Host>) -> Result<Vec<Value>, Error> {
    let outcomes = assignments.repair(host).await?;
    let shown = outcomes.iter().map(|(finding, outcome)| {
        let mut wire = wire(host, finding);
        wire["repaired"] = json!(outcome.is_ok());
        wire["left"] = json!(outcome.as_ref().err());
        wire
    });
    Ok(shown.collect())
}

/// The findings of all hosts. An unreachable host is listed in `hosts_away`, and the other hosts are still shown.
#[derive(Default)]
struct Everywhere {
    drift: Vec<Value>,
    unreachable: Vec<Value>,
}

impl Everywhere {
    fn add(&mut self, host: &Host, found: Result<Vec<Value>, Error>) -> Result<(), Error> {
        match found {
            Ok(found) => self.drift.extend(found),
            Err(error @ (Error::HostAway { .. } | Error::Hypervisor { .. })) => {
                self.unreachable.push(json!({ "host": host.name, "reason": error.to_string() }));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn answer(self) -> Json<Value> {
        Json(json!({ "drift": self.drift, "hosts_away": self.unreachable }))
    }
}

pub(super) async fn list(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
) -> Result<Json<Value>, Fault> {
    let mut all = Everywhere::default();
    for host in hosts.iter() {
        all.add(host, findings(&assignments, host).await)?;
    }
    Ok(all.answer())
}

pub(super) async fn repair(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
) -> Result<Json<Value>, Fault> {
    let mut all = Everywhere::default();
    for host in hosts.iter() {
        all.add(host, repaired(&assignments, host).await)?;
    }
    Ok(all.answer())
}

pub(super) async fn of_host(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    Ok(Json(json!({ "drift": findings(&assignments, path.host(&hosts)?).await? })))
}

pub(super) async fn repair_host(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    Ok(Json(json!({ "drift": repaired(&assignments, path.host(&hosts)?).await? })))
}
