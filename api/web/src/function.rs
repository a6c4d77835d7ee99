//! One function of a host, with everything that decides on whether it is offered: what `hotslot pci explain` says.

use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{id_part, part};
use crate::attach::BY_ADDRESS;
use crate::context::Context;
use crate::guests::Guests;
use crate::layout::Page;
use crate::parts::{
    attachment_badge, badge, device_status, function_name, function_page, items, link_words, server_link,
    shown, size, text,
};
use crate::problem::Problem;
use crate::remedy::by_pages;
use crate::table::{Row, table};

#[derive(Deserialize)]
pub(crate) struct Wanted {
    host: String,
    address: String,
}

/// Returns the page of a function.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let path =
        format!("/v2.1/os-hypervisors/{}/pci_devices/{}", id_part(&wanted.host)?, id_part(&wanted.address)?);
    let function = context.api.get(&path).await?["pci_device"].take();
    let (host, address) = (text(&function["host"]).to_owned(), text(&function["address"]).to_owned());
    // Callers who may not see the host see the UUIDs of its guests instead of their names.
    let mut on = Value::Null;
    if context.may("os_compute_api:os-hypervisors:show") {
        on = context.api.get(&format!("/v2.1/os-hypervisors/{}", id_part(&host)?)).await.unwrap_or_default();
    }
    let guests = Guests::of(&context, &on["hypervisor"]);
    let title = format!("{address} on {host}");
    let content = html! {
        p.crumbs {
            a href="hosts" { "Hosts" } " / " a href={ "host?host=" (part(&host)) } { (host) } " / " (address)
        }
        h1 { (function_name(&function)) " " small { code { (address) } } }
        div #function data-live {
            (verdict(&guests, &function))
            @if function["offered"] == true && context.may(BY_ADDRESS) {
                p.actions { a.button href={ "attach?host=" (part(&host)) "&address=" (part(&address)) } { "Attach to a server" } }
            }
            div.columns {
                section { h2 { "What it is" } (facts(&function)) }
                section { h2 { "Why" } (reasons(&context, &function)) }
            }
            (whitelist(&function))
            (group(&guests, &host, &function))
            (mediated(&guests, &function))
        }
    };
    let live = Some(format!("host={}", part(&host)));
    Ok(Page { title: &title, place: "hosts", live, content }.show(&context))
}

/// Returns in one sentence whether the function is offered.
fn verdict(guests: &Guests<'_>, function: &Value) -> Markup {
    let (word, colour) = device_status(function);
    html! {
        @if function["offered"] == true {
            p.verdict.good { (badge("offered", "free")) " A server can have this function now." }
        } @else {
            p.verdict { (badge(word, colour)) " " (why_not(function)) " " (guests.holder(function)) }
        }
    }
}

fn why_not(function: &Value) -> String {
    if let Some(reason) = function["withheld"].as_str() {
        return format!("It is not offered: {}.", by_pages(reason));
    }
    match (function["bridge"] == true, text(&function["status"])) {
        (true, _) => "A bridge or port is never assignable.".to_owned(),
        (false, "") => "It is not offered, because no device_spec lists it.".to_owned(),
        (false, "allocated") => "It is in use.".to_owned(),
        (false, "claimed") => "It is being attached or detached.".to_owned(),
        (false, _) if text(&function["dev_type"]) == "type-PF" => {
            "It is not offered while its VFs are in use, because a PF and its VFs are never both given away."
                .to_owned()
        }
        (false, _) if text(&function["dev_type"]) == "type-VF" => {
            "It is not offered while its PF is in use, because a PF and its VFs are never both given away."
                .to_owned()
        }
        (false, status) => format!("It is not offered: its status is {status}."),
    }
}

fn facts(function: &Value) -> Markup {
    let ids = format!("{}:{}", text(&function["vendor_id"]), text(&function["product_id"]));
    let host = text(&function["host"]);
    let row = |name: &str, value: Markup| html! { dt { (name) } dd { (value) } };
    html! {
        dl.facts {
            (row("Ids", html! { code { (ids) } " " (text(&function["vendor_name"])) }))
            (row("Class", html! { (shown(&function["class_name"])) }))
            (row("Driver", html! { (shown(&function["driver"])) }))
            (row("NUMA node", html! { (shown(&function["numa_node"])) }))
            @if let Some((link, below)) = link_words(&function["link"]) {
                (row("Link", html! { (link) @if below { " " small.warn { "below its maximum of " (shown(&function["link"]["max_speed"])) " GT/s ×" (shown(&function["link"]["max_width"])) } } }))
            }
            (row("Reset", html! {
                @match function["reset_methods"].as_array() {
                    Some(methods) if methods.is_empty() => "the kernel knows no way",
                    Some(methods) => @for method in methods { code { (text(method)) } " " },
                    None => "can only be read on its own host",
                }
            }))
            @if let Some(physical) = function["parent_addr"].as_str() {
                (row("PF", html! { a.address href=(function_page(host, physical)) { (physical) } }))
            }
            @if let Some(most) = function["max_vfs"].as_u64() {
                (row("VFs", html! { (items(&function["vfs"]).len()) " of at most " (most) }))
            }
            @for bar in items(&function["bars"]) {
                (row(&format!("BAR {}", bar["index"]), html! {
                    (size(bar["size"].as_u64().unwrap_or_default())) " " (text(&bar["kind"]))
                    @if bar["prefetchable"] == true { ", prefetchable" }
                }))
            }
            @for (name, key) in [("Interfaces", "net"), ("Disks", "block"), ("vDPA", "vdpa")] {
                @let names = items(&function[key]);
                @if !names.is_empty() { (row(name, html! { @for name in names { code { (text(name)) } " " } })) }
            }
            @if let Some(serial) = function["serial"].as_str() { (row("Serial", html! { code { (serial) } })) }
        }
    }
}

/// Returns the guards, and what the host says of the function.
fn reasons(context: &Context, function: &Value) -> Markup {
    html! {
        @match function["guards"].as_array() {
            None => p { "Whether the host needs this function can only be read on the host itself." },
            Some(guards) if guards.is_empty() => p { "The host does not need this function." },
            Some(guards) => {
                p { "The host needs this function" @if function["unguarded"] == true { ", but the configuration says that this does not count" } ":" }
                ul { @for guard in guards { li { (badge(text(&guard["kind"]), "bad")) " " (text(&guard["reason"])) } } }
            },
        }
        @if let Some(foreign) = function["foreign"].as_object() {
            p { "Somebody else put it into the domain "
                (server_link(context, text(&foreign["uuid"]), &html! { (text(&foreign["domain"])) })) "." }
        }
        @if function["pool"].is_object() {
            p { "It belongs to a pool of which " strong { (function["pool"]["count"]) } " are free." }
        }
    }
}

fn whitelist(function: &Value) -> Markup {
    let lines = items(&function["whitelist"]);
    let line = |entry: &Value| {
        let matches = html! {
            @if entry["counts"] == true { (badge("decides", "free")) }
            @else if entry["matches"] == true { (badge("matches", "used")) }
            @else { (shown(&entry["why"])) }
        };
        let (position, place) = (&entry["position"], text(&entry["place"]));
        let cells =
            vec![html! { (position) }, html! { code { (entry["entry"]) } }, matches, html! { (place) }];
        Row(if entry["matches"] == true { "" } else { "quiet" }, cells)
    };
    html! {
        h2 { "Entries of device_spec" }
        @if lines.is_empty() { p.empty { "There is no entry. Without one, no device is assignable." } }
        @else { (table(&["#", "Entry", "Matches", "From"], lines.iter().map(line))) }
    }
}

fn group(guests: &Guests<'_>, host: &str, function: &Value) -> Markup {
    let members = items(&function["group_members"]);
    let line = |member: &Value| {
        let address = text(&member["address"]);
        [
            html! { a.address href=(function_page(host, address)) { (address) } },
            html! { (shown(&member["driver"])) },
            html! { @if member["status"] == "available" { "not in use" } @else { (device_status(member).0) } },
            guests.server(member),
        ]
    };
    html! {
        @if members.len() > 1 {
            h2 { "IOMMU group " (function["iommu_group"]["number"]) }
            (table(&["Function", "Driver", "Status", "Server"], members.iter().map(line)))
        }
    }
}

fn mediated(guests: &Guests<'_>, function: &Value) -> Markup {
    let (types, devices) = (items(&function["mdev_types"]), items(&function["mdevs"]));
    let kind = |one: &Value| {
        [
            html! { code { (text(&one["id"])) } },
            html! { (shown(&one["name"])) },
            html! { (text(&one["device_api"])) },
            html! { (one["available"]) },
        ]
    };
    let device = |one: &Value| {
        [
            html! { code { (text(&one["uuid"])) } },
            html! { (text(&one["type"])) },
            html! { (one["holder"].as_str().unwrap_or("somebody else")) },
            guests.server(one),
            html! { @if let Some(status) = one["status"].as_str() { (attachment_badge(status)) } },
        ]
    };
    let vgpu_types = items(&function["vgpu_types"]);
    let vgpu_type = |one: &Value| {
        [html! { code { (text(&one["id"])) } }, html! { (text(&one["name"])) }, html! { (one["available"]) }]
    };
    html! {
        @if let Some(current) = function["vgpu_type"].as_str() {
            h2 { "Virtual GPU" }
            p { "The VF is a virtual GPU of the type " code { (current) } "." }
        }
        @if !vgpu_types.is_empty() {
            h2 { "Types of virtual GPUs on VFs" }
            (table(&["Type", "Name", "VFs that can be given it"], vgpu_types.iter().map(vgpu_type)))
        }
        @if !types.is_empty() {
            h2 { "Types of mediated devices" }
            (table(&["Type", "Name", "API", "Can still be made"], types.iter().map(kind)))
        }
        @if !devices.is_empty() {
            h2 { "Mediated devices" }
            (table(&["UUID", "Type", "Made for", "Server", "State"], devices.iter().map(device)))
        }
    }
}
