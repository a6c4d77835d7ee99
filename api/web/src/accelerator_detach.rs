//! Detaching an accelerator, and deleting one that holds nothing: what it will do, and the request.

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::accelerator::{Wanted, crumbs, path};
use crate::accelerator_parts::{held, page_of};
use crate::context::{Context, Fields};
use crate::detach::{Guest, by_force, consequences};
use crate::layout::{Page, form_token, go};
use crate::parts::{items, server_page, text};
use crate::problem::Problem;

/// Returns the form.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    page(&context, &wanted.id, None).await
}

async fn page(context: &Context, id: &str, refused: Option<&Problem>) -> Result<Response, Problem> {
    let one = context.api.get(&path(id)?).await?;
    let is_held = !items(&one["devices"]).is_empty();
    let name = text(&one["name"]);
    let here = if is_held { "detach" } else { "delete" };
    let content = html! {
        (crumbs(&one, here))
        h1 { @if is_held { "Detach " } @else { "Delete " } (name) }
        @if let Some(problem) = refused { (problem.alert("")) }
        @if is_held { (detach_form(context, &one).await) } @else { (delete_form(context, &one)) }
    };
    let title = if is_held { "Detach an accelerator" } else { "Delete an accelerator" };
    let live = Some(String::new());
    Ok(Page { title, place: "accelerators", live, content }.show_with(refused, context))
}

async fn detach_form(context: &Context, one: &Value) -> Markup {
    let devices = items(&one["devices"]);
    let common = html! { (form_token(context)) input type="hidden" name="id" value=(text(&one["uuid"])); };
    let cancel = page_of(text(&one["uuid"]));
    let server = one["instance_uuid"].as_str();
    let attachment = devices.iter().find_map(|device| device["attachment_id"].as_str()).unwrap_or_default();
    let guest = match server {
        Some(server) => Guest::of(context, server, attachment).await,
        None => Guest::default(),
    };
    html! {
        dl.facts { dt { "Devices" } dd { @for device in devices { (held(device)) } } }
        @match server {
            Some(server) => {
                (consequences(true, &guest))
                p { "The accelerator keeps its name and what it takes." }
                form method="post" action="accelerator-detach" data-progress="progress" data-steps={ (server_page(server)) "&done=detaching" } {
                    (common)
                    button type="submit" name="step" value="detach" { "Detach" }
                    " " a href=(cancel) { "Cancel" }
                    ol #progress .steps hidden aria-live="polite" aria-label="Progress" {}
                }
                (by_force("accelerator-detach", &html! { (common) input type="hidden" name="step" value="detach"; }))
            },
            None => {
                h2 { "What happens" }
                p { "The host gets its devices back, bound to their drivers of before. Stop what uses them on the host first. The accelerator keeps its name and what it takes." }
                form method="post" action="accelerator-detach" {
                    (common)
                    button.primary type="submit" name="step" value="detach" { "Detach" }
                    " " a href=(cancel) { "Cancel" }
                }
            },
        }
    }
}

fn delete_form(context: &Context, one: &Value) -> Markup {
    html! {
        @if context.is_admin() {
            h2 { "What happens" }
            p { "It holds no device, so no server loses one. Its name and what it takes are forgotten." }
            form method="post" action="accelerator-detach" {
                (form_token(context))
                input type="hidden" name="id" value=(text(&one["uuid"]));
                button.danger type="submit" name="step" value="delete" { "Delete" }
                " " a href=(page_of(text(&one["uuid"]))) { "Cancel" }
            }
        } @else {
            p.empty { "It holds no device. Only an administrator can delete it." }
        }
    }
}

/// Detaches or deletes.
pub(crate) async fn detach(context: Context, fields: Fields) -> Result<Response, Problem> {
    let id = fields.get("id");
    let deletes = match fields.get("step") {
        "delete" => true,
        "detach" => false,
        _ => {
            return Err(Problem::new(
                400,
                "the form does not say whether to detach or to delete; open the page again",
            ));
        }
    };
    // The API would detach it first, which the form did not speak of.
    if deletes && !items(&context.api.get(&path(id)?).await?["devices"]).is_empty() {
        let problem = Problem::new(409, "it holds devices now; detach it first, and then delete it");
        return page(&context, id, Some(&problem)).await;
    }
    let query = match (deletes, fields.is_set("force")) {
        (true, _) => "?purge=true",
        (false, true) => "?force=true",
        (false, false) => "",
    };
    match context.api.send(Method::DELETE, &format!("{}{query}", path(id)?), None).await {
        Ok(_) if deletes => Ok(go("accelerators")),
        Ok(_) => Ok(go(&format!("{}&done=detached", page_of(id)))),
        Err(problem) => page(&context, id, Some(&problem)).await,
    }
}
