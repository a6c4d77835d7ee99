//! The verdict of a dry run: whether devices can be attached, which, and what was checked.

use maud::{Markup, html};
use serde_json::Value;

use crate::parts::{badge, function_page, items, text};
use crate::remedy::by_pages;
use crate::table::table;

/// Returns the verdict of a dry run. What follows is shown where the attach is possible: what is asked for besides, and the
/// form that attaches.
pub(crate) fn verdict(run: &Value, then: &Markup) -> Markup {
    let possible = run["would_attach"] == true;
    let (mut failed, others): (Vec<_>, Vec<_>) =
        items(&run["checks"]).iter().partition(|check| check["result"] == "fail");
    // Those that name their cure come first.
    failed.sort_by_key(|check| check["cure"].is_null());
    html! {
        section #verdict .verdict.good[possible].bad[!possible] aria-labelledby="verdict-title" {
            h2 #verdict-title { @if possible { "These devices can be attached" } @else { "These devices cannot be attached" } }
            @if !failed.is_empty() {
                ul.failed { @for check in &failed { li {
                    strong { (by_pages(check["message"].as_str().unwrap_or("a check failed; ask an administrator why"))) }
                    @if let Some(cure) = check["cure"].as_str() { br; span.cure { (by_pages(cure)) } }
                } } }
            }
            @let devices = items(&run["pci_devices"]);
            @if !devices.is_empty() { (taken(devices)) }
            @if possible { (then) }
        }
        details.checks { summary { (others.len()) " other checks" }
            ul { @for check in &others { li {
                @if check["result"] == "pass" { (badge("passed", "free")) } @else { (badge("not known", "held")) }
                " " (check["message"].as_str().unwrap_or(text(&check["check"])))
            } } }
        }
    }
}

fn taken(devices: &[Value]) -> Markup {
    let line = |device: &Value| {
        [
            html! { @match (device["host"].as_str(), device["address"].as_str()) {
                (Some(host), Some(address)) => a.address href=(function_page(host, address)) { (address) },
                (None, Some(address)) => code { (address) },
                (_, None) => "chosen at the attach",
            } },
            // A device that was named by its address has that as its alias.
            html! { @if device["alias"] == device["address"] { "–" } @else { (text(&device["alias"])) } },
            html! { code { (text(&device["vendor_id"])) ":" (text(&device["product_id"])) } },
        ]
    };
    table(&["Device", "Alias", "Ids"], devices.iter().map(line))
}
