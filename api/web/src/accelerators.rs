//! The accelerators, the accelerator requests and the device profiles.

use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::context::Context;
use crate::layout::Page;
use crate::parts::{attachment_badge, badge, function_page, items, server_link, shown, text, time};
use crate::problem::Problem;
use crate::table::table;

/// Returns the page: what the caller may see of each of the three.
pub(crate) async fn show(context: Context) -> Result<Response, Problem> {
    let (accelerators, _) = context.api.list("/v1/accelerators", "accelerators", 5000).await?;
    let requests =
        optional(&context, "cyborg:arq:get_all", "/accelerator/v2/accelerator_requests", "arqs").await;
    let profiles = optional(
        &context,
        "cyborg:device_profile:get_all",
        "/accelerator/v2/device_profiles",
        "device_profiles",
    )
    .await;
    let content = html! {
        h1 { "Accelerators" }
        div #accelerators data-live { (list(&context, &accelerators)) }
        @if let Some(requests) = &requests {
            h2 { "Accelerator requests" }
            div #requests data-live { (requests_list(&context, requests)) }
        }
        @if let Some(profiles) = &profiles {
            h2 { "Device profiles" }
            div #profiles data-live { (profiles_list(profiles)) }
        }
    };
    Ok(Page { title: "Accelerators", place: "accelerators", live: Some(String::new()), content }
        .show(&context))
}

/// Returns the items of a list; `None` when the caller may not list them.
async fn optional(context: &Context, rule: &str, path: &str, key: &str) -> Option<Vec<Value>> {
    if !context.may(rule) {
        return None;
    }
    context.api.list(path, key, 5000).await.ok().map(|(items, _)| items)
}

fn list(context: &Context, accelerators: &[Value]) -> Markup {
    html! {
        @if accelerators.is_empty() {
            p.empty { "There is no accelerator. An accelerator is a name for devices that a server or the host can have: "
                code { r#"hotslot accelerator create gpu0 --spec '{"device_type": "GPU"}'"# } "." }
        } @else {
            (table(
                &["Name", "Type", "Status", "Server", "Devices", "Project"],
                accelerators.iter().map(|one| line(context, one)),
            ))
        }
    }
}

fn line(context: &Context, one: &Value) -> [Markup; 6] {
    let colour = match text(&one["status"]) {
        "available" => "free",
        "attached" | "in-use" | "bound" => "used",
        "error" => "bad",
        _ => "busy",
    };
    [
        html! { (text(&one["name"])) },
        html! { (text(&one["device_type"])) " " small { (text(&one["acc_type"])) } },
        html! {
            (badge(text(&one["status"]), colour))
            @if let Some(reason) = one["status_reason"].as_str() { " " span.reason { (reason) } }
        },
        server(context, one),
        html! { @for device in items(&one["devices"]) { (held(device)) } },
        html! { (shown(&one["project_id"])) },
    ]
}

/// Returns the server of an accelerator or a request.
fn server(context: &Context, one: &Value) -> Markup {
    html! {
        @match one["instance_uuid"].as_str() {
            Some(server) => (server_link(context, server, &html! { small { code { (server) } } })),
            None => "–",
        }
    }
}

/// Returns a device that an accelerator has.
fn held(device: &Value) -> Markup {
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

fn requests_list(context: &Context, requests: &[Value]) -> Markup {
    let line = |one: &Value| {
        let colour = if one["state"] == "Bound" { "used" } else { "held" };
        [
            html! { small { code { (text(&one["uuid"])) } } },
            html! { (text(&one["device_profile_name"])) },
            html! {
                (badge(text(&one["state"]), colour))
                @if let Some(reason) = one["state_reason"].as_str() { " " span.reason { (reason) } }
            },
            server(context, one),
            time(&one["created_at"]),
        ]
    };
    html! {
        @if requests.is_empty() { p.empty { "There is no accelerator request. Nova makes them for servers whose flavor names a device profile." } }
        @else { (table(&["Request", "Profile", "State", "Server", "Since"], requests.iter().map(line))) }
    }
}

fn profiles_list(profiles: &[Value]) -> Markup {
    let line = |one: &Value| {
        [
            html! { (text(&one["name"])) },
            html! { @for group in items(&one["groups"]) { div { code { (group) } } } },
            html! { (text(&one["description"])) },
        ]
    };
    html! {
        @if profiles.is_empty() { p.empty { "There is no device profile. An accelerator request names one." } }
        @else { (table(&["Name", "Groups", "Description"], profiles.iter().map(line))) }
    }
}
