//! The hosts, and the functions of one host.

use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{id_part, part};
use crate::context::Context;
use crate::guests::Guests;
use crate::layout::Page;
use crate::parts::{badge, device_status, function_name, function_page, guard, items, link_words, text};
use crate::problem::Problem;
use crate::table::{Row, table};
use crate::tree::Tree;

/// The number of functions in a page of a filtered list.
const LINES: usize = 250;

/// Returns the list of the hosts.
pub(crate) async fn list(context: Context) -> Result<Response, Problem> {
    let (hosts, _) = context.api.list("/v2.1/os-hypervisors/detail", "hypervisors", 1000).await?;
    let content = html! {
        h1 { "Hosts" }
        div #hosts data-live {
            (table(&["Host", "State", "Guests", "Free devices", "libvirt"], hosts.iter().map(line)))
        }
    };
    Ok(Page { title: "Hosts", place: "hosts", live: Some(String::new()), content }.show(&context))
}

fn line(host: &Value) -> Row {
    let name = text(&host["hypervisor_hostname"]);
    let free: u64 = items(&host["pci_stats"]).iter().filter_map(|stat| stat["count"].as_u64()).sum();
    let head = html! {
        a href={ "host?host=" (part(name)) } { (name) }
        @if host["simulated"] == true { " " small.kind { "simulated" } }
        br; small { code { (text(&host["uri"])) } }
    };
    let cells = vec![
        head,
        state(host),
        html! { (host["running_vms"]) " running of " (items(&host["servers"]).len()) },
        html! { (free) },
        html! { (version(&host["libvirt_version"])) },
    ];
    Row(if host["state"] == "up" { "" } else { "stale" }, cells)
}

/// Returns whether a host is reachable and what may be changed there, and why.
fn state(host: &Value) -> Markup {
    let restriction = &host["restriction"];
    html! {
        @if host["state"] == "up" { (badge("up", "free")) } @else { (badge("away", "bad")) }
        @if let Some(reason) = host["state_reason"].as_str() { " " span.reason { (reason) } }
        @if !restriction.is_null() {
            " " (badge(text(&host["mode"]), "busy"))
            " " span.reason {
                "by " (restriction["by"].as_str().unwrap_or("the configuration"))
                @if let Some(reason) = restriction["reason"].as_str() { ": " (reason) }
            }
        }
    }
}

fn version(number: &Value) -> String {
    number.as_u64().map_or("–".to_owned(), |number| {
        format!("{}.{}.{}", number / 1_000_000, number / 1000 % 1000, number % 1000)
    })
}

/// What to show of a host.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    host: String,
    #[serde(default)]
    q: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    from: usize,
}

/// Returns the functions of a host: as a tree, or as a list of those that a filter finds.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let path = format!("/v2.1/os-hypervisors/{}", id_part(&wanted.host)?);
    let host = context.api.get(&path).await?["hypervisor"].take();
    let name = text(&host["hypervisor_hostname"]).to_owned();
    let guests = Guests::of(&context, &host);
    let functions = context.api.get(&format!("{path}/pci_devices")).await;
    let content = html! {
        p.crumbs { a href="hosts" { "Hosts" } " / " (name) }
        h1 { (name) }
        div #state data-live { p.lead { (state(&host)) " " code { (text(&host["uri"])) } " · "
            (host["running_vms"]) " guests running · libvirt " (version(&host["libvirt_version"])) } }
        (filter(&wanted, &name))
        div #functions data-live {
            @match &functions {
                Ok(functions) => (content_of(&guests, &wanted, &name, items(&functions["pci_devices"]))),
                Err(problem) => div.refusal role="alert" {
                    p { "The functions of this host cannot be read now: " (problem.message) }
                },
            }
        }
    };
    let live = Some(format!("host={}", part(&name)));
    Ok(Page { title: &name, place: "hosts", live, content }.show(&context))
}

/// The statuses by which the list can be filtered: the colour of the badge, and its name.
const STATUSES: [(&str, &str); 5] = [
    ("free", "free"),
    ("used", "in use"),
    ("busy", "in transition"),
    ("held", "not available"),
    ("foreign", "in use by others"),
];

fn filter(wanted: &Wanted, host: &str) -> Markup {
    html! {
        form.filter method="get" action="host" role="search" {
            input type="hidden" name="host" value=(host);
            label { span { "Find" } input type="search" name="q" value=(wanted.q) placeholder="address, name, driver, guest …"; }
            label {
                span { "Status" }
                select name="status" {
                    option value="" { "any" }
                    @for (colour, word) in STATUSES {
                        option value=(colour) selected[wanted.status == colour] { (word) }
                    }
                }
            }
            button type="submit" { "Filter" }
            @if !wanted.is_all() { a href={ "host?host=" (part(host)) } { "Show all as a tree" } }
        }
    }
}

impl Wanted {
    fn is_all(&self) -> bool {
        self.q.trim().is_empty() && self.status.is_empty()
    }

    fn passes(&self, function: &Value, guests: &Guests<'_>) -> bool {
        if !self.status.is_empty() && device_status(function).1 != self.status {
            return false;
        }
        let words = self.q.to_lowercase();
        let ids = format!("{}:{}", text(&function["vendor_id"]), text(&function["product_id"]));
        words.split_whitespace().all(|word| {
            let keys = [
                "address",
                "parent_addr",
                "product_name",
                "vendor_name",
                "class_name",
                "driver",
                "owner",
                "dev_type",
                "serial",
            ];
            let mut texts = keys.iter().map(|key| text(&function[key])).chain([ids.as_str()]);
            let mut names = items(&function["net"]).iter().chain(items(&function["block"])).map(text);
            texts.any(|text| text.to_lowercase().contains(word))
                || guests.name_of(function).is_some_and(|name| name.to_lowercase().contains(word))
                || names.any(|name| name.to_lowercase().contains(word))
        })
    }
}

fn content_of(guests: &Guests<'_>, wanted: &Wanted, host: &str, functions: &[Value]) -> Markup {
    if wanted.is_all() {
        return html! {
            (summary(functions))
            (legend())
            (Tree::of(guests, host, functions).show())
        };
    }
    let found: Vec<_> = functions.iter().filter(|function| wanted.passes(function, guests)).collect();
    let shown = found.iter().skip(wanted.from).take(LINES);
    let more = |from: usize| {
        format!("host?host={}&q={}&status={}&from={from}", part(host), part(&wanted.q), part(&wanted.status))
    };
    html! {
        p { (found.len()) " of " (functions.len()) " functions" }
        @if found.is_empty() { p.empty { "No function of this host fits. Use fewer words, or another status." } }
        @else {
            (table(&COLUMNS, shown.map(|function| row(guests, host, function))))
            p.pages {
                @if wanted.from > 0 { a href=(more(wanted.from.saturating_sub(LINES))) { "Earlier" } " " }
                @if wanted.from.saturating_add(LINES) < found.len() { a href=(more(wanted.from + LINES)) { "Next " (LINES) } }
            }
        }
    }
}

/// The columns of a list of functions.
const COLUMNS: [&str; 8] =
    ["Address", "What", "Status", "Who has it", "Driver", "Link", "NUMA node", "IOMMU group"];

fn row(guests: &Guests<'_>, host: &str, function: &Value) -> [Markup; 8] {
    let (word, colour) = device_status(function);
    let address = text(&function["address"]);
    [
        html! { a.address href=(function_page(host, address)) { (address) } },
        html! { (function_name(function)) },
        badge(word, colour),
        html! { (guests.holder(function)) (guard(function)) },
        html! { @if let Some(driver) = function["driver"].as_str() { span.driver { (driver) } } },
        html! { @if let Some((link, _)) = link_words(&function["link"]) { span.linkspeed { (link) } } },
        html! { @if let Some(node) = function["numa_node"].as_u64() { (node) } },
        html! { @if let Some(group) = function["iommu_group"]["number"].as_u64() { (group) } },
    ]
}

/// Returns how many functions have which status, as a bar.
fn summary(functions: &[Value]) -> Markup {
    let listed: Vec<_> = functions.iter().filter(|function| device_status(function).1 != "none").collect();
    let count = |colour: &str| listed.iter().filter(|function| device_status(function).1 == colour).count();
    let parts: Vec<_> = STATUSES
        .iter()
        .map(|(colour, word)| (colour, word, count(colour)))
        .filter(|part| part.2 > 0)
        .collect();
    let starts = parts.iter().scan(0, |at, part| Some(std::mem::replace(at, *at + part.2)));
    html! {
        @if listed.is_empty() {
            p.empty { "No device of this host is assignable yet. Add an entry to " code { "device_spec" } " that matches one: open a function below to see its ids." }
        } @else {
            p.lead {
                strong { (listed.len()) } " assignable devices: "
                @for (number, (colour, word, count)) in parts.iter().enumerate() {
                    @if number > 0 { ", " }
                    span class={ "count " (colour) } { (count) " " (word) }
                }
            }
            svg.bar viewBox={ "0 0 " (listed.len()) " 1" } preserveAspectRatio="none" aria-hidden="true" {
                @for ((colour, _, count), start) in parts.iter().zip(starts) {
                    rect class=(colour) x=(start) y="0" width=(count) height="1" {}
                }
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        p.legend { "Outlined functions share an IOMMU group: a guest gets them together or not at all. Click an address to see what decides on it." }
    }
}
