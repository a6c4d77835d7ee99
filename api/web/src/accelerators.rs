//! The accelerators, the accelerator requests and the device profiles.

use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::context::Context;
use crate::layout::Page;
use crate::parts::{attachment_badge, badge, function_page, items, server_link, shown, text, time};
use crate::problem::Problem;

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
        div #accelerators data-live { (table(&context, &accelerators)) }
        @if let Some(requests) = &requests {
            h2 { "Accelerator requests" }
            div #requests data-live { (requests_table(&context, requests)) }
        }
        @if let Some(profiles) = &profiles {
            h2 { "Device profiles" }
            div #profiles data-live { (profiles_table(profiles)) }
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

fn table(context: &Context, accelerators: &[Value]) -> Markup {
    html! {
        @if accelerators.is_empty() {
            p.empty { "There is no accelerator. An accelerator is a name for devices that a server or the host can have: "
                code { r#"hotslot accelerator create gpu0 --spec '{"device_type": "GPU"}'"# } "." }
        } @else {
            table.wide {
                thead { tr { th { "Name" } th { "Type" } th { "Status" } th { "Server" } th { "Devices" } th { "Project" } } }
                tbody { @for one in accelerators { (line(context, one)) } }
            }
        }
    }
}

fn line(context: &Context, one: &Value) -> Markup {
    let colour = match text(&one["status"]) {
        "available" => "free",
        "attached" | "in-use" | "bound" => "used",
        "error" => "bad",
        _ => "busy",
    };
    html! {
        tr {
            th scope="row" { (text(&one["name"])) }
            td { (text(&one["device_type"])) " " small { (text(&one["acc_type"])) } }
            td { (badge(text(&one["status"]), colour)) @if let Some(reason) = one["status_reason"].as_str() { " " span.reason { (reason) } } }
            td { @if let Some(server) = one["instance_uuid"].as_str() { (server_link(context, server, &html! { small { code { (server) } } })) } @else { "–" } }
            td { @for device in items(&one["devices"]) {
                div {
                    @if let (Some(host), Some(address)) = (device["host"].as_str(), device["address"].as_str()) {
                        a.address href=(function_page(host, address)) { (address) } " "
                    }
                    (attachment_badge(text(&device["status"])))
                    @if let Some(inner) = device["inner_address"].as_str() { " guest sees " code { (inner) } }
                }
            } }
            td { (shown(&one["project_id"])) }
        }
    }
}

fn requests_table(context: &Context, requests: &[Value]) -> Markup {
    html! {
        @if requests.is_empty() { p.empty { "There is no accelerator request. Nova makes them for servers whose flavor names a device profile." } }
        @else {
            table.wide {
                thead { tr { th { "Request" } th { "Profile" } th { "State" } th { "Server" } th { "Since" } } }
                tbody { @for one in requests { tr {
                    th scope="row" { small { code { (text(&one["uuid"])) } } }
                    td { (text(&one["device_profile_name"])) }
                    td { (badge(text(&one["state"]), if one["state"] == "Bound" { "used" } else { "held" }))
                        @if let Some(reason) = one["state_reason"].as_str() { " " span.reason { (reason) } } }
                    td { @if let Some(server) = one["instance_uuid"].as_str() { (server_link(context, server, &html! { small { code { (server) } } })) } }
                    td { (time(&one["created_at"])) }
                } } }
            }
        }
    }
}

fn profiles_table(profiles: &[Value]) -> Markup {
    html! {
        @if profiles.is_empty() { p.empty { "There is no device profile. An accelerator request names one." } }
        @else {
            table.wide {
                thead { tr { th { "Name" } th { "Groups" } th { "Description" } } }
                tbody { @for one in profiles { tr {
                    th scope="row" { (text(&one["name"])) }
                    td { @for group in items(&one["groups"]) { div { code { (group) } } } }
                    td { (text(&one["description"])) }
                } } }
            }
        }
    }
}
