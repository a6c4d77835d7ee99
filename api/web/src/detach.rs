//! Detaching a device: what it will do, and the request.

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::api::{id_part, part};
use crate::context::{Context, Fields};
use crate::guest_tree::{bus, unplug_words};
use crate::layout::{Page, form_token, go};
use crate::parts::{attachment_badge, items, server_page, shown, text};
use crate::problem::Problem;

#[derive(Deserialize)]
pub(crate) struct Wanted {
    server: String,
    attachment: String,
}

impl Wanted {
    fn path(&self) -> Result<String, Problem> {
        let (server, attachment) = (id_part(&self.server)?, id_part(&self.attachment)?);
        Ok(format!("/v2.1/servers/{server}/os-pci_attachments/{attachment}"))
    }
}

/// Returns the form.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    page(&context, &wanted, None).await
}

async fn page(context: &Context, wanted: &Wanted, refused: Option<&Problem>) -> Result<Response, Problem> {
    let attachment = context.api.get(&wanted.path()?).await?["pciAttachment"].take();
    let guest = Guest::of(context, &wanted.server, &wanted.attachment).await;
    let live = Some(format!("server={}", part(&wanted.server)));
    let content = html! {
        p.crumbs { a href="servers" { "Servers" } " / " a href=(server_page(&wanted.server)) { "server" } " / detach" }
        h1 { "Detach a device" }
        @if let Some(problem) = refused { (problem.alert("")) }
        (described(&attachment))
        (consequences(attachment["persistent"] == true, &guest))
        (buttons(context, wanted))
    };
    Ok(Page { title: "Detach a device", place: "servers", live, content }.show_with(refused, context))
}

fn described(attachment: &Value) -> Markup {
    html! {
        dl.facts {
            dt { "Device" } dd { code { (text(&attachment["vendor_id"])) ":" (text(&attachment["product_id"])) }
                @if let Some(alias) = attachment["alias"].as_str() { " by alias " (alias) } }
            @if attachment["address"].is_string() { dt { "On the host" } dd { code { (text(&attachment["address"])) } " on " (shown(&attachment["host"])) } }
            dt { "In the guest" } dd { code { (shown(&attachment["inner_address"])) } }
            dt { "State" } dd { (attachment_badge(text(&attachment["status"]))) " " (text(&attachment["status_reason"])) }
            @if let Some(holder) = attachment["holder"].as_str() { dt { "For" } dd { (holder) } }
        }
    }
}

/// The guest that has the device.
#[derive(Default)]
pub(crate) struct Guest {
    is_off: bool,
    /// How it is asked to release the device; `None` when that is not known.
    unplug_by: Option<String>,
}

impl Guest {
    /// Reads the guest of a server that has an attachment.
    pub(crate) async fn of(context: &Context, server: &str, attachment: &str) -> Self {
        let path = format!("/v2.1/servers/{}/pci_topology", part(server));
        let Ok(mut found) = context.api.get(&path).await else { return Self::default() };
        let topology = found["pci_topology"].take();
        let by = unplug_by(&topology, attachment).map(str::to_owned);
        Self { is_off: topology["running"] == false, unplug_by: by }
    }
}

fn unplug_by<'a>(topology: &'a Value, attachment: &str) -> Option<&'a str> {
    let mut devices = items(&topology["devices"]).iter();
    let device = devices.find(|one| one["host_device"]["attachment_id"] == attachment)?;
    let index = bus(&device["address"])?;
    let mut controllers = items(&topology["controllers"]).iter();
    controllers.find(|one| one["index"].as_u64() == Some(index))?["unplug_by"].as_str()
}

/// Returns what a detach will do. `persistent` is whether the definition of the server has the device.
pub(crate) fn consequences(persistent: bool, guest: &Guest) -> Markup {
    if guest.is_off {
        return html! {
            h2 { "What happens" }
            p { "The device is taken out of the definition of the server, which does not run, and is free for others at once." }
        };
    }
    let by = guest.unplug_by.as_deref();
    html! {
        h2 { "What happens" }
        ol {
            @if persistent { li { "The device is taken out of the definition of the server." } }
            li { "The guest is asked to release the device. " (by.map_or("How long it takes depends on the guest.", unplug_words)) }
            li { "When the guest has released it, the host gets it back and it is free for others." }
        }
        p { "When the guest does not answer in time, the detach stays pending and is completed later. When the guest refuses, everything is as before. Stop what uses the device in the guest first." }
    }
}

fn buttons(context: &Context, wanted: &Wanted) -> Markup {
    let common = html! {
        (form_token(context))
        input type="hidden" name="server" value=(wanted.server);
        input type="hidden" name="attachment" value=(wanted.attachment);
    };
    html! {
        form method="post" action="detach" data-progress {
            (common)
            button type="submit" { "Detach" }
            " " a href=(server_page(&wanted.server)) { "Cancel" }
        }
        (by_force("detach", &common))
    }
}

/// Returns the form of a detach by force, behind a warning. `common` is what its form has besides.
pub(crate) fn by_force(action: &str, common: &Markup) -> Markup {
    html! {
        details.force {
            summary { "Detach by force" }
            p.note {
                "By force, also a device is taken out that must not be taken from a running guest, and it stays out of the \
                 definition when the guest refuses. The guest may lose data, hang or crash. Use it only when the guest is \
                 lost anyway."
            }
            form method="post" action=(action) {
                (common)
                label.check { input type="checkbox" name="force" value="1" required; span { "I know what this may do to the guest" } }
                button.danger type="submit" { "Detach by force" }
            }
        }
    }
}

/// Begins the detach, and returns to the server, whose page shows how it goes on.
pub(crate) async fn detach(context: Context, fields: Fields) -> Result<Response, Problem> {
    let wanted =
        Wanted { server: fields.get("server").to_owned(), attachment: fields.get("attachment").to_owned() };
    let force = if fields.is_set("force") { "?force=true" } else { "" };
    match context.api.send(Method::DELETE, &format!("{}{force}", wanted.path()?), None).await {
        Ok(_) => {
            let of = part(&wanted.attachment);
            Ok(go(&format!("{}&of={of}&done=detaching", server_page(&wanted.server))))
        }
        Err(problem) => page(&context, &wanted, Some(&problem)).await,
    }
}
