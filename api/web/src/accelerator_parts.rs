//! Parts of the pages of accelerators and accelerator requests.

use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::guests::Guests;
use crate::parts::{attachment_badge, badge, function_page, text};
use crate::remedy::by_pages;

/// Returns the address of the page of an accelerator.
pub(crate) fn page_of(id: &str) -> String {
    format!("accelerator?id={}", part(id))
}

/// Returns the address of the page of a request.
pub(crate) fn request_page(id: &str) -> String {
    format!("accelerator-request?id={}", part(id))
}

/// Returns what an accelerator is doing, and why.
pub(crate) fn status(one: &Value) -> Markup {
    let colour = match text(&one["status"]) {
        "available" => "free",
        "attached" | "in-use" | "bound" => "used",
        "error" => "bad",
        _ => "busy",
    };
    html! {
        (badge(text(&one["status"]), colour))
        @if let Some(reason) = one["status_reason"].as_str() { " " span.reason { (by_pages(reason)) } }
    }
}

/// Returns the server of an accelerator or a request.
pub(crate) fn server(guests: &Guests<'_>, one: &Value) -> Markup {
    html! { @if one["instance_uuid"].is_string() { (guests.server(one)) } @else { "–" } }
}

/// Returns a device that an accelerator has.
pub(crate) fn held(device: &Value) -> Markup {
    html! {
        div {
            @if let (Some(host), Some(address)) = (device["host"].as_str(), device["address"].as_str()) {
                a.address href=(function_page(host, address)) { (address) } " "
            }
            (attachment_badge(text(&device["status"])))
            @if let Some(inner) = device["inner_address"].as_str() { " guest sees " code { (inner) } }
        }
    }
}

/// Returns the state of a request, and why.
pub(crate) fn request_state(one: &Value) -> Markup {
    let (meaning, colour) = match text(&one["state"]) {
        "Initial" => ("not bound yet", "held"),
        "BindStarted" => ("being bound", "busy"),
        "Bound" => ("bound", "used"),
        "Unbound" => ("unbound; it can be bound again", "held"),
        "BindFailed" => ("it could not be bound", "bad"),
        "UnbindFailed" => ("it could not be unbound", "bad"),
        "Deleting" => ("being deleted", "busy"),
        _ => ("", "held"),
    };
    html! {
        (badge(text(&one["state"]), colour)) " " (meaning)
        @if let Some(reason) = one["state_reason"].as_str() { " " span.reason { (by_pages(reason)) } }
    }
}
