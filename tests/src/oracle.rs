//! The oracle checks whether the service's records, the host and the initial state agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Answer, Hotslot};

/// The `[pci]` configuration for the simulated host `small`: VFs with a network, plain NICs, and a pair in one IOMMU
/// group.
pub const PCI: &str = r#"
[pci]
device_spec = [
  '{"address": "*:06:00.*", "kind": "pair"}',
  '{"vendor_id": "8086", "product_id": "10ca", "physical_network": "physnet1"}',
  '{"vendor_id": "8086"}',
]
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "e1000e", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "pair", "vendor_id": "8086", "product_id": "10d3", "kind": "pair"}',
]
"#;

/// The `[pci]` configuration for the simulated host `vgpu`: VFs that are virtual GPUs while they have a type.
pub const VGPU: &str = r#"
[pci]
device_spec = ['{"vendor_id": "10de", "product_id": "26b9", "managed": "false"}']
alias = ['{"name": "vgpu", "vendor_id": "10de", "product_id": "26b9", "device_type": "type-VF"}']
"#;

/// The `[pci]` configuration for the NVMe controller of the host `small` that the host itself does not use.
pub const NVME: &str = r#"
[pci]
device_spec = ['{"address": "0000:08:00.0"}']
alias = ['{"name": "nvme", "vendor_id": "1b36", "product_id": "0010", "device_type": "type-PF"}']
"#;

/// The initial state of a host.
pub struct Oracle {
    /// The initial driver of each function.
    drivers: BTreeMap<String, Value>,
}

/// A domain as the simulated host keeps it.
struct Guest {
    server: String,
    live: Option<String>,
    persistent: Option<String>,
}

impl Guest {
    fn has(document: Option<&String>, id: &str) -> bool {
        document.is_some_and(|document| document.contains(&format!("ua-{id}")))
    }
}

/// Returns the objects of a list in a response; empty when the response has no such list.
fn list<'a>(answer: &'a Answer, key: &str) -> Vec<&'a Value> {
    answer.body[key].as_array().into_iter().flatten().collect()
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

impl Oracle {
    /// Records the initial state of a service's host.
    pub async fn of(service: &Hotslot) -> Self {
        let functions = service.functions().await;
        let driver = |(address, function): (String, Value)| (address, function["driver"].clone());
        Self { drivers: functions.into_iter().map(driver).collect() }
    }

    /// Waits until everything agrees.
    ///
    /// # Errors
    /// Returns the disagreements when `patience` has passed.
    pub async fn settled(&self, service: &Hotslot, patience: Duration) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let found = self.disagreements(service).await;
            if found.is_empty() {
                return Ok(());
            }
            if start.elapsed() > patience {
                return Err(found.join("; "));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns every disagreement as text: a row in transition, a device with two owners or none, a document that has a
    /// device without a row or lacks one with a row, a function without its driver.
    pub async fn disagreements(&self, service: &Hotslot) -> Vec<String> {
        let mut answers = Vec::new();
        for path in ["/v2/t/os-pci_attachments", "/v2/t/os-pci/detail", "/v2/t/os-hypervisors/1/pci_devices"]
        {
            match service.try_get(path).await {
                Some(answer) if answer.status == 200 => answers.push(answer),
                Some(answer) => return vec![format!("{path}: {} {}", answer.status, answer.message())],
                None => return vec![format!("{path}: no answer")],
            }
        }
        let [attachments, devices, functions] = &answers[..] else { return vec!["no answers".into()] };
        let attachments = list(attachments, "pciAttachment");
        let guests = guests(service);
        let mut found = Vec::new();
        let assigned = compare_attachments(&attachments, &guests, &mut found);
        compare_documents(&attachments, &guests, &mut found);
        compare_devices(&list(devices, "pci_devices"), &assigned, attachments.is_empty(), &mut found);
        self.compare_drivers(service, &list(functions, "pci_devices"), &assigned, &mut found);
        compare_vgpu_types(service, &attachments, &mut found);
        found
    }

    /// Compares the drivers of all functions with the initial ones, and with vfio-pci for functions that a guest has.
    fn compare_drivers(
        &self,
        service: &Hotslot,
        functions: &[&Value],
        assigned: &Assigned<'_>,
        found: &mut Vec<String>,
    ) {
        let in_guest = |address: &str| assigned.in_guests.contains(address);
        let grouped = functions.iter().filter(|function| in_guest(text(function, "address")));
        // Functions of a group with a host driver block the guest that has the others.
        let grouped: BTreeSet<&str> = grouped
            .flat_map(|function| function["iommu_group"]["members"].as_array().into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let vfio = Value::from("vfio-pci");
        for function in functions {
            let address = text(function, "address");
            // The driver that makes a virtual GPU of a VF stays bound.
            let own = self.driver(address);
            let expected = if in_guest(address) && own != "nvidia" { &vfio } else { own };
            if function["driver"] != *expected && (in_guest(address) || !grouped.contains(address)) {
                found.push(format!("{address} has the driver {}, not {expected}", function["driver"]));
            }
        }
        // The host's own view of the drivers, for functions that no guest has.
        for (name, saved) in saved(service, "devices") {
            let address = name.trim_start_matches("pci_").replacen('_', ":", 2).replacen('_', ".", 1);
            let native = self.driver(&address);
            if saved["present"] == true && saved["driver"] != *native && !grouped.contains(&*address) {
                found.push(format!("on the host {address} has the driver {}, not {native}", saved["driver"]));
            }
        }
    }

    fn driver(&self, address: &str) -> &Value {
        self.drivers.get(address).unwrap_or(&Value::Null)
    }
}

/// Compares the vGPU types of VFs with those that the attachments say.
fn compare_vgpu_types(service: &Hotslot, attachments: &[&Value], found: &mut Vec<String>) {
    let of_rows = attachments.iter().filter(|row| row["vgpu_type"].is_string());
    let expected: BTreeMap<_, _> =
        of_rows.map(|row| (text(row, "address").to_owned(), text(row, "vgpu_type").to_owned())).collect();
    let types = service.vgpu_types();
    if types != expected {
        found.push(format!("the vGPU types of the VFs are {types:?}, and by the attachments {expected:?}"));
    }
}

/// The devices of the attachments.
#[derive(Default)]
struct Assigned<'a> {
    /// The server of each attached device, by address.
    owners: BTreeMap<&'a str, &'a str>,
    /// The devices that are in the live document of their server.
    in_guests: BTreeSet<&'a str>,
}

/// Compares the attachments with the documents of their servers.
fn compare_attachments<'a>(
    attachments: &[&'a Value],
    guests: &[Guest],
    found: &mut Vec<String>,
) -> Assigned<'a> {
    let mut assigned = Assigned::default();
    for row in attachments {
        let (id, address, server) = (text(row, "attachment_id"), text(row, "address"), text(row, "serverId"));
        if row["status"] != "attached" {
            found.push(format!("{address} is {}: {}", row["status"], row["status_reason"]));
            continue;
        }
        if let Some(other) = assigned.owners.insert(address, server) {
            found.push(format!("{address} is attached to {other} and to {server}"));
        }
        let Some(guest) = guests.iter().find(|guest| guest.server == server) else {
            found.push(format!("{address} is attached to {server}, which is unchanged"));
            continue;
        };
        let live = Guest::has(guest.live.as_ref(), id);
        if live {
            assigned.in_guests.insert(address);
        }
        let waits = text(row, "status_reason").starts_with("only in the domain's definition");
        if guest.live.is_some() && !live && !waits {
            found.push(format!("{address} is attached to {server}, which runs without it"));
        }
        if row["persistent"] == true
            && guest.persistent.is_some()
            && !Guest::has(guest.persistent.as_ref(), id)
        {
            found.push(format!("{address} is attached to {server}, whose definition does not have it"));
        }
    }
    assigned
}

/// Checks that each device with an alias of hotslot in a document has an attachment.
fn compare_documents(attachments: &[&Value], guests: &[Guest], found: &mut Vec<String>) {
    for guest in guests {
        for (which, document) in [("live", &guest.live), ("persistent", &guest.persistent)] {
            let document = document.as_deref().unwrap_or_default();
            for id in document.split("ua-").skip(1).filter_map(|rest| rest.get(..36)) {
                let has_row = attachments
                    .iter()
                    .any(|row| row["attachment_id"] == id && row["serverId"] == *guest.server);
                if !has_row {
                    found
                        .push(format!("the {which} document of {} has {id}, which no row has", guest.server));
                }
            }
        }
    }
}

/// Compares the status of each device with the attachments.
fn compare_devices(devices: &[&Value], assigned: &Assigned<'_>, all_free: bool, found: &mut Vec<String>) {
    for device in devices {
        let (address, status) = (text(device, "address"), text(device, "status"));
        let owner = assigned.owners.get(address).copied();
        if device["instance_uuid"].as_str() != owner || (status == "allocated") != owner.is_some() {
            found
                .push(format!("{address} is {status} for {}, and {owner:?} has it", device["instance_uuid"]));
        }
        if device["scrub"] == true || device["quarantine"].is_string() {
            found.push(format!(
                "{address} waits for its scrub, or is in quarantine: {}",
                device["quarantine"]
            ));
        }
        if status == "claimed" || (status != "available" && all_free) {
            found.push(format!("{address} is {status}"));
        }
    }
}

/// Returns the files of one kind that the simulated host keeps, by name.
fn saved(service: &Hotslot, kind: &str) -> Vec<(String, Value)> {
    let folder = service.host_dir().join("state").join(kind);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    files
        .filter_map(|path| {
            let saved = serde_json::from_str(&std::fs::read_to_string(&path).ok()?).ok()?;
            Some((path.file_stem()?.to_str()?.to_owned(), saved))
        })
        .collect()
}

/// Returns the domains that were changed since the start.
fn guests(service: &Hotslot) -> Vec<Guest> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    saved(service, "domains")
        .into_iter()
        .map(|(server, saved)| Guest {
            server,
            live: text(&saved["live"]),
            persistent: text(&saved["persistent"]),
        })
        .collect()
}
