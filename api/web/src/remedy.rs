//! The service names REST routes and JSON fields in its messages. Here they become pages and fields of forms.

use hotslot_model::remedy::{Words, translate};
use uuid::Uuid;

/// A request as a message of the service names it, and the page that does the same.
const ROUTES: [Words; 16] = [
    ("GET servers", "the page Servers"),
    ("GET os-pci", "the page of the host"),
    ("GET os-pci/detail", "the page of the host"),
    ("GET os-pci_attachments", "the page of each server"),
    ("GET os-hypervisors", "the page Hosts"),
    ("GET os-hypervisors/{}/pci_devices", "the page of the host {}"),
    ("GET os-hypervisors/{}/pci_devices/{}", "the page of the function"),
    ("GET accelerators", "the page Accelerators"),
    ("DELETE accelerators/{}", "detach it on the page of the accelerator"),
    ("DELETE accelerator/v2/accelerator_requests/{}", "unbind it on the page of the request"),
    ("GET drift", "the page Drift"),
    ("GET events", "the page Events"),
    ("PUT os-quota-sets/{}", "the page Quotas"),
    ("PUT os-hypervisors/{}/mode", "`hotslot host thaw {}`"),
    ("POST servers/{}/pci_ports", "`hotslot server prepare {}`"),
    ("PUT accelerators/{}/acc_specs", "the button \"Change what it takes\" of its page"),
];

/// Phrases of the service that are not a method with a route, and what they are on a page.
const PHRASES: [Words; 15] = [
    ("add ?force=true", "mark that it is wanted also when devices in use depend on it"),
    ("with force", "by force"),
    ("with whole_group", "for whole IOMMU groups (in the options)"),
    ("attach it with \"any_device\": true", "mark that it may take any other assignable device"),
    ("GET it until it is attached or available", "its page shows when it is attached or available"),
    ("PUT a spec with a num of", "change what it takes to a number of"),
    ("PUT a spec without", "change what it takes to one without"),
    ("DELETE the accelerator to release it", "detach the accelerator to release it"),
    ("DELETE it again", "detach it again"),
    ("min_tx_rate", "the minimum rate"),
    ("max_tx_rate", "the maximum rate"),
    // Not a part of the name of a file.
    (" vgpu_type", " the vGPU type"),
    (" of the service, under the x-openstack-request-id of this response", " of the service"),
    ("without whole_group", "without whole IOMMU groups (in the options)"),
    ("see with GET caller who you are", "see under your name at the top who you are"),
];

/// Returns a message of the service with pages in place of REST routes. A route for which there is no page stays as it is.
pub fn by_pages(message: &str) -> String {
    let message = translate(message, &ROUTES, &PHRASES);
    let message = message.strip_prefix("bad body: ").unwrap_or(&message);
    // A person sends a form, and no JSON.
    let example = ["; send {", "; send [{"].into_iter().find_map(|begins| message.rfind(begins));
    without_ids(&message[..example.unwrap_or(message.len())])
}

/// What holds a device, as the service writes it before the id, and in words.
const HOLDERS: [Words; 2] =
    [("accelerator-request:", "the accelerator request"), ("accelerator:", "the accelerator")];

/// Returns a message in which what holds a device is said in words.
fn without_ids(message: &str) -> String {
    HOLDERS.iter().fold(message.to_owned(), |message, (holder, words)| {
        let mut parts = message.split(holder);
        let mut said = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            match part.get(..ID).filter(|id| id.parse::<Uuid>().is_ok()) {
                Some(_) => said.extend([words, &part[ID..]]),
                None => said.extend([holder, part]),
            }
        }
        said
    })
}

/// The length of a UUID as text.
const ID: usize = 36;

#[cfg(test)]
mod tests {
    use super::by_pages;

    #[test]
    fn routes_and_fields_become_pages() {
        for (message, expected) in [
            (
                "server x not found; GET servers lists all servers",
                "server x not found; the page Servers lists all servers",
            ),
            (
                "host demo has no PCI function 0000:17:01.5; GET os-hypervisors/demo/pci_devices lists those that it has",
                "host demo has no PCI function 0000:17:01.5; the page of the host demo lists those that it has",
            ),
            (
                "correct that and detach again, or detach with force",
                "correct that and detach again, or detach by force",
            ),
            ("ask with whole_group", "ask for whole IOMMU groups (in the options)"),
            (
                "this requires the role admin; ask an administrator for it, or see with GET caller who you are",
                "this requires the role admin; ask an administrator for it, or see under your name at the top who you are",
            ),
            ("opened again (PUT os-hypervisors/node1/mode)", "opened again (`hotslot host thaw node1`)"),
            (
                "bad body: the name must have 1 to 255 characters; send {\"name\": \"IPSec Card\"}",
                "the name must have 1 to 255 characters",
            ),
            ("acc_specs: num is 300; write 0 to 256", "acc_specs: num is 300; write 0 to 256"),
            (
                "it is in use by accelerator:00000000-0000-4000-8000-000000000001; detach it there",
                "it is in use by the accelerator; detach it there",
            ),
            ("accelerator: no", "accelerator: no"),
            ("busy", "busy"),
        ] {
            assert_eq!(by_pages(message), expected);
        }
    }
}
