//! The PCI tree of a guest: its controllers, the devices in their slots, and the slots that are free.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};
use serde_json::Value;

use crate::parts::{attachment_badge, badge, function_page, items, size, text};

/// The maximum depth of controllers; libvirt allows 256 indexes and real guests have three levels.
const DEEPEST: usize = 16;

/// The number of free slots of one controller that are shown one by one.
const SHOWN_FREE: usize = 3;

/// The parts of the tree, by the index of the controller that they are behind.
pub(crate) struct GuestTree<'a> {
    host: Option<&'a str>,
    is_running: bool,
    controllers: BTreeMap<u64, Vec<&'a Value>>,
    roots: Vec<&'a Value>,
    devices: BTreeMap<u64, Vec<&'a Value>>,
    free: BTreeMap<u64, Vec<&'a Value>>,
    status: BTreeMap<&'a str, &'a str>,
}

/// Returns the index of the controller that an address is behind: its bus.
pub(crate) fn bus(address: &Value) -> Option<u64> {
    u64::from_str_radix(text(address).get(5..7)?, 16).ok()
}

fn by_bus(places: &[Value]) -> BTreeMap<u64, Vec<&Value>> {
    let mut by_bus = BTreeMap::<u64, Vec<&Value>>::new();
    for place in places {
        if let Some(bus) = bus(&place["address"]) {
            by_bus.entry(bus).or_default().push(place);
        }
    }
    by_bus
}

impl<'a> GuestTree<'a> {
    pub(crate) fn of(topology: &'a Value, attachments: &'a [Value]) -> Self {
        let all = items(&topology["controllers"]);
        let status = attachments.iter().map(|one| (text(&one["attachment_id"]), text(&one["status"])));
        let mut free = by_bus(items(&topology["free_ports"]["express"]));
        for (bus, places) in by_bus(items(&topology["free_ports"]["conventional"])) {
            free.entry(bus).or_default().extend(places);
        }
        Self {
            host: topology["host"].as_str(),
            is_running: topology["running"] == true,
            controllers: by_bus(all),
            roots: all.iter().filter(|controller| controller["address"].is_null()).collect(),
            devices: by_bus(items(&topology["devices"])),
            free,
            status: status.collect(),
        }
    }

    pub(crate) fn show(&self) -> Markup {
        let free: usize = self.free.values().map(Vec::len).sum();
        html! {
            p.lead {
                @if free == 0 { "No port is free: nothing can be hot-plugged until a device is detached, or ports are added to the definition." }
                @else { strong { (free) } @if free == 1 { " port is" } @else { " ports are" } " free for another device." }
            }
            @let usual: BTreeSet<_> = self.free.keys().chain(self.devices.keys()).filter_map(|bus| self.unplug_by(*bus)).collect();
            @if let (true, 1, Some(by)) = (self.is_running, usual.len(), usual.first()) { p.legend { (unplug_words(by)) } }
            ul.tree.guest { @for root in &self.roots { (self.controller(root, 0)) } }
        }
    }

    /// Returns how a guest is asked to release a device behind a controller, by the index of the controller.
    fn unplug_by(&self, bus: u64) -> Option<&'a str> {
        let all = self.roots.iter().chain(self.controllers.values().flatten());
        let mut found = all.filter(|controller| controller["index"].as_u64() == Some(bus));
        found.find_map(|controller| controller["unplug_by"].as_str())
    }

    fn controller(&self, controller: &Value, depth: usize) -> Markup {
        let index = controller["index"].as_u64().unwrap_or_default();
        let below = self.controllers.get(&index).map(Vec::as_slice).unwrap_or_default();
        let devices = self.devices.get(&index).map(Vec::as_slice).unwrap_or_default();
        let free = self.free.get(&index).map(Vec::as_slice).unwrap_or_default();
        html! {
            li {
                div.entry {
                    span.name { (model(text(&controller["model"]))) " " small.kind { "index " (index) } }
                    span.facts {
                        @if let Some(bus) = controller["inner_bus"].as_u64() { "guest bus " code { (format!("{bus:02x}")) } " " }
                        @if !free.is_empty() { (window(controller)) }
                    }
                }
                @if !(below.is_empty() && devices.is_empty() && free.is_empty()) && depth < DEEPEST {
                    ul.tree {
                        @for device in devices { (self.device(device)) }
                        @for controller in below { (self.controller(controller, depth + 1)) }
                        @for place in free.iter().take(SHOWN_FREE) {
                            li { div.entry.slot { (badge("free", "free")) " " span.name { "free slot" } span.facts { (seen_at(place)) } } }
                        }
                        @if free.len() > SHOWN_FREE {
                            li { div.entry.slot { (badge("free", "free")) " " (free.len() - SHOWN_FREE) " more free slots" } }
                        }
                    }
                }
            }
        }
    }

    fn device(&self, device: &Value) -> Markup {
        let (passed, mediated) = (&device["host_device"], &device["mediated_device"]);
        let attachment = passed["attachment_id"].as_str();
        let name = passed["product_name"].as_str().unwrap_or("device of the host");
        html! {
            li {
                @if mediated.is_object() {
                    div.entry.passed {
                        span.name { "mediated device " (mediated["mdev_type"].as_str().unwrap_or_default()) }
                        @if mediated["attachment_id"].is_null() { (badge("by others", "foreign")) }
                        @if let (Some(host), Some(address)) = (self.host, mediated["address"].as_str()) {
                            a.address href=(function_page(host, address)) { (address) }
                        }
                        span.facts { (mediated["mdev_uuid"].as_str().unwrap_or_default()) " " (seen_at(device)) }
                    }
                } @else if passed.is_object() {
                    div.entry.passed {
                        span.name { (name) }
                        @match attachment.and_then(|id| self.status.get(id)) {
                            Some(status) => (attachment_badge(status)),
                            None if attachment.is_some() => (badge("not on record", "bad")),
                            None => (badge("by others", "foreign")),
                        }
                        @if let (Some(host), Some(address)) = (self.host, passed["address"].as_str()) {
                            a.address href=(function_page(host, address)) { (address) }
                        }
                        span.facts { (seen_at(device)) }
                    }
                } @else {
                    div.entry { span.name.quiet { "emulated device" } span.facts { (seen_at(device)) } }
                }
            }
        }
    }
}

/// Returns the memory that firmware reserves behind a port for a device that is plugged later.
fn window(port: &Value) -> Markup {
    html! {
        @if let Some(memory) = port["memory_window"].as_u64() {
            span.window title="what the BARs of a device may need without the guest's kernel widening the window" {
                "· room for BARs: " (size(memory))
                @match port["prefetchable_window"].as_u64() {
                    Some(bytes) => { ", and " (size(bytes)) " prefetchable" },
                    None => ", and as much prefetchable as the firmware chose",
                }
            }
        }
    }
}

/// Returns how long a guest takes that is asked to release a device, by how it is asked.
pub(crate) fn unplug_words(by: &str) -> &'static str {
    match by {
        "native" => {
            "A detach takes about 6 seconds: this guest is asked by the attention button of the port, and waits for 5 \
             seconds before it switches the slot off."
        }
        _ => {
            "A detach takes as long as the guest's driver needs to let the device go, usually a second or two: this guest \
             is asked through ACPI, which has no waiting time of its own."
        }
    }
}

/// Returns where the guest sees a place, and how that is known.
fn seen_at(place: &Value) -> Markup {
    html! {
        @match place["inner_address"].as_str() {
            Some(address) => { "guest sees " code { (address) } " " small.source { (text(&place["inner_address_source"])) } },
            None => "the guest does not see it",
        }
    }
}

fn model(model: &str) -> &str {
    match model {
        "pcie-root" => "PCIe root",
        "pci-root" => "PCI root",
        "pcie-root-port" => "root port",
        "pcie-switch-upstream-port" => "switch, upstream port",
        "pcie-switch-downstream-port" => "switch, downstream port",
        "pcie-to-pci-bridge" | "dmi-to-pci-bridge" => "PCIe-to-PCI bridge",
        "pci-bridge" => "PCI bridge",
        "pcie-expander-bus" => "PCIe expander bus",
        "pci-expander-bus" => "PCI expander bus",
        other => other,
    }
}
