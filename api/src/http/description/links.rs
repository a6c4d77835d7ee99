//! The links of `openapi.json`: which values of a request and its answer another operation takes. Programs that test an
//! API follow them.

use serde_json::{Map, Value, json};

/// The values that an operation passes on: a parameter of the other operation, or a key of its body after `body.`, and where
/// the value is.
type Passed = &'static [(&'static str, &'static str)];

const DEVICE: Passed = &[("device_id", "$response.body#/pci_devices/0/uuid")];
const SERVER: Passed = &[("server_id", "$response.body#/servers/0/id")];
const ATTACHMENT: Passed = &[
    ("server_id", "$request.path.server_id"),
    ("attachment_id", "$response.body#/pci_devices/0/attachment_id"),
];
const SAME_ATTACHMENT: Passed =
    &[("server_id", "$request.path.server_id"), ("attachment_id", "$request.path.attachment_id")];
const HOST: Passed = &[("hypervisor_id", "$response.body#/hypervisors/0/id")];
const FLAVOR: Passed = &[("flavor_id", "$response.body#/flavors/0/id")];
const PROJECT: Passed = &[("quota_id", "$request.path.quota_id")];
const ACCELERATOR: Passed = &[("accelerator_id", "$request.path.accelerator_id")];
const PROFILE: Passed = &[("id", "$response.body#/uuid")];
const PROFILE_NAME: Passed = &[("body.device_profile_name", "$response.body#/name")];
const ARQ: Passed = &[("id", "$response.body#/arqs/0/uuid")];
const CARD: Passed = &[("id", "$response.body#/devices/0/uuid")];
const DEPLOYABLE: Passed = &[("id", "$response.body#/deployables/0/uuid")];
const ATTRIBUTE: Passed = &[("id", "$response.body#/uuid")];
const WEBHOOK: Passed = &[("name", "$response.body#/webhooks/0/name")];

/// The links: an operation and the status of its answer, the operations that it leads to, and what they get.
const LINKS: &[(&str, &str, &[&str], Passed)] = &[
    (
        "servers_list",
        "200",
        &["servers_show", "servers_show_topology", "servers_show_owner", "servers_update_owner"],
        SERVER,
    ),
    ("servers_detail", "200", &["attachments_create", "attachments_list"], SERVER),
    ("attachments_create", "200", &["attachments_show", "attachments_delete"], ATTACHMENT),
    ("attachments_delete", "202", &["attachments_show"], SAME_ATTACHMENT),
    ("pci_devices_list", "200", &["pci_devices_show", "pci_devices_act", "pci_devices_scrub"], DEVICE),
    (
        "hypervisors_list",
        "200",
        &[
            "hypervisors_show",
            "hypervisors_list_candidates",
            "hypervisors_list_functions",
            "hypervisors_uptime",
            "drift_list_of_host",
            "drift_repair_host",
        ],
        HOST,
    ),
    ("flavors_list", "200", &["flavors_show", "flavors_extra_specs"], FLAVOR),
    ("quotas_update", "200", &["quotas_show", "quotas_detail", "quotas_delete"], PROJECT),
    (
        "accelerators_create_as",
        "201",
        &["accelerators_show", "accelerators_update", "accelerators_put_spec", "accelerators_detach"],
        ACCELERATOR,
    ),
    (
        "cyborg_device_profiles_create",
        "201",
        &["cyborg_device_profiles_show", "cyborg_device_profiles_delete_one"],
        PROFILE,
    ),
    ("cyborg_device_profiles_create", "201", &["cyborg_accelerator_requests_create"], PROFILE_NAME),
    (
        "cyborg_accelerator_requests_create",
        "201",
        &[
            "cyborg_accelerator_requests_show",
            "cyborg_accelerator_requests_update_one",
            "cyborg_accelerator_requests_delete_one",
        ],
        ARQ,
    ),
    (
        "cyborg_devices_list",
        "200",
        &["cyborg_devices_show", "cyborg_devices_disable", "cyborg_devices_enable"],
        CARD,
    ),
    (
        "cyborg_deployables_list",
        "200",
        &["cyborg_deployables_show", "cyborg_deployables_program"],
        DEPLOYABLE,
    ),
    ("cyborg_attributes_create", "201", &["cyborg_attributes_show", "cyborg_attributes_delete"], ATTRIBUTE),
    ("webhooks_list", "200", &["webhooks_redeliver"], WEBHOOK),
    (
        "rules_create",
        "201",
        &["rules_show", "rules_replace", "rules_delete"],
        &[("kind", "$request.path.kind"), ("entry_id", "$response.body#/alias/id")],
    ),
];

/// Adds the links to a document.
pub(super) fn add(document: &mut Value) {
    let operations = document["paths"].as_object_mut().into_iter().flatten();
    let operations = operations.flat_map(|(_, item)| item.as_object_mut().into_iter().flatten());
    for (_, operation) in operations {
        let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
        let (prefix, name) = name.strip_prefix("v1_").map_or(("", name.as_str()), |name| ("v1_", name));
        for (_, status, targets, passed) in LINKS.iter().filter(|(from, ..)| *from == name) {
            let (mut parameters, mut body) = (Map::new(), Map::new());
            for (key, from) in *passed {
                match key.strip_prefix("body.") {
                    Some(key) => body.insert(key.to_owned(), json!(from)),
                    None => parameters.insert((*key).to_owned(), json!(from)),
                };
            }
            for target in *targets {
                let mut link =
                    json!({ "operationId": format!("{prefix}{target}"), "parameters": parameters });
                if !body.is_empty() {
                    link["requestBody"] = json!(body);
                }
                operation["responses"][*status]["links"][*target] = link;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::description::{document, operations};

    #[test]
    fn every_link_leads_from_an_operation_to_parameters_of_another() {
        let document = document();
        let named = |id: &str| operations(&document).find(|(_, _, operation)| operation["operationId"] == id);
        for (from, status, targets, passed) in LINKS {
            let (_, path, operation) = named(from).expect(from);
            assert!(operation["responses"][*status]["description"].is_string(), "{from} {status}");
            for target in *targets {
                let (_, _, target) = named(target).expect(target);
                let parameters = target["parameters"].as_array().into_iter().flatten();
                let parameters: Vec<_> = parameters.map(|one| &one["name"]).collect();
                for (key, value) in *passed {
                    assert!(key.starts_with("body.") || parameters.contains(&&json!(key)), "{from}: {key}");
                    let of_path = value.strip_prefix("$request.path.");
                    assert!(
                        of_path.is_none_or(|name| path.contains(&format!("{{{name}}}"))),
                        "{from}: {value}"
                    );
                }
            }
        }
    }
}
