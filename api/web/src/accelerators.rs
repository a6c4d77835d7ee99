//! The accelerators, the accelerator requests and the device profiles.

use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::accelerator_parts::{held, page_of, request_page, request_state, server, status};
use crate::api::part;
use crate::context::Context;
use crate::device_profile::group_words;
use crate::guests::Guests;
use crate::layout::Page;
use crate::parts::{items, shown, text, time};
use crate::problem::Problem;
use crate::table::{ACTIONS, table};

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
    let guests = Guests::all(&context).await;
    let content = html! {
        h1 { "Accelerators" }
        @if context.may("hotslot:accelerator:create") {
            p.actions { a.button href="accelerator-new" { "Create an accelerator" } }
        }
        div #accelerators data-live { (list(&guests, &accelerators)) }
        @if let Some(requests) = &requests {
            h2 { "Accelerator requests" }
            div #requests data-live { (requests_list(&context, &guests, requests)) }
        }
        @if let Some(profiles) = &profiles {
            h2 { "Device profiles" }
            div #profiles data-live { (profiles_list(&context, profiles)) }
            @if context.may("cyborg:device_profile:create") {
                p { a.button.small href="device-profile" { "Create a device profile" } }
            }
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

fn list(guests: &Guests<'_>, accelerators: &[Value]) -> Markup {
    html! {
        @if accelerators.is_empty() {
            p.empty { "There is no accelerator. An accelerator is a name for devices that a server or the host can have." }
        } @else {
            (table(
                &["Name", "Type", "Status", "Server", "Devices", "Project"],
                accelerators.iter().map(|one| line(guests, one)),
            ))
        }
    }
}

fn line(guests: &Guests<'_>, one: &Value) -> [Markup; 6] {
    [
        html! { a href=(page_of(text(&one["uuid"]))) { (text(&one["name"])) } },
        html! { (text(&one["device_type"])) " " small { (text(&one["acc_type"])) } },
        status(one),
        server(guests, one),
        html! { @for device in items(&one["devices"]) { (held(device)) } },
        html! { (shown(&one["project_id"])) },
    ]
}

fn requests_list(context: &Context, guests: &Guests<'_>, requests: &[Value]) -> Markup {
    let is_shown = context.may("cyborg:arq:get_one");
    let line = |one: &Value| {
        let id = html! { small { code { (text(&one["uuid"])) } } };
        [
            html! { @if is_shown { a href=(request_page(text(&one["uuid"]))) { (id) } } @else { (id) } },
            html! { (text(&one["device_profile_name"])) },
            request_state(one),
            server(guests, one),
            time(&one["created_at"]),
        ]
    };
    html! {
        @if requests.is_empty() { p.empty { "There is no accelerator request. Nova makes them for servers whose flavor names a device profile." } }
        @else { (table(&["Request", "Profile", "State", "Server", "Since"], requests.iter().map(line))) }
    }
}

fn profiles_list(context: &Context, profiles: &[Value]) -> Markup {
    let deletes = context.may("cyborg:device_profile:delete");
    let line = |one: &Value| {
        [
            html! { (text(&one["name"])) },
            html! { @for group in items(&one["groups"]) { div { (group_words(group)) } } },
            html! { (text(&one["description"])) },
            html! { @if deletes {
                a.button.small href={ "device-profile-delete?id=" (part(text(&one["uuid"]))) } { "Delete" span.unseen { " the profile " (text(&one["name"])) } }
            } },
        ]
    };
    html! {
        @if profiles.is_empty() { p.empty { "There is no device profile. An accelerator request names one." } }
        @else { (table(&["Name", "Asks for", "Description", ACTIONS], profiles.iter().map(line))) }
    }
}
