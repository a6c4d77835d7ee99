//! One accelerator request: its state, where it is bound, and unbinding or deleting it.

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::accelerator_parts::{request_page, request_state, server};
use crate::api::{part, uuid_part};
use crate::context::{Context, Fields};
use crate::detach::{Guest, consequences};
use crate::guests::Guests;
use crate::layout::{Page, form_token, go};
use crate::parts::{function_page, server_page, shown, text, time};
use crate::problem::Problem;

/// Which request.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    id: String,
}

fn path(id: &str) -> Result<String, Problem> {
    Ok(format!("/accelerator/v2/accelerator_requests/{}", uuid_part(id)?))
}

/// Returns the page of a request.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    page(&context, &wanted.id, None).await
}

async fn page(context: &Context, id: &str, refused: Option<&Problem>) -> Result<Response, Problem> {
    let one = context.api.get(&path(id)?).await?;
    let guests = Guests::all(context).await;
    let content = html! {
        p.crumbs { a href="accelerators" { "Accelerators" } " / request" }
        h1 { "Accelerator request " small { code { (text(&one["uuid"])) } } }
        @if let Some(problem) = refused { (problem.alert("")) }
        div #request data-live { (facts(&guests, &one)) }
        (release_forms(context, &one).await)
    };
    Ok(Page { title: "Accelerator request", place: "accelerators", live: Some(String::new()), content }
        .show_with(refused, context))
}

/// Returns the address of the device of a request, for callers who may see it.
fn address(one: &Value) -> Option<String> {
    let info = &one["attach_handle_info"];
    let (domain, bus) = (info["domain"].as_str()?, info["bus"].as_str()?);
    Some(format!("{domain}:{bus}:{}.{}", info["device"].as_str()?, info["function"].as_str()?))
}

fn facts(guests: &Guests<'_>, one: &Value) -> Markup {
    html! {
        dl.facts {
            dt { "State" } dd { (request_state(one)) }
            dt { "Device profile" } dd { (text(&one["device_profile_name"])) ", group " (one["device_profile_group_id"]) }
            dt { "Server" } dd { (server(guests, one)) }
            @if let Some(host) = one["hostname"].as_str() {
                dt { "Host" } dd { a href={ "host?host=" (part(host)) } { (host) } }
                @if let Some(address) = address(one) { dt { "Device" } dd { a.address href=(function_page(host, &address)) { (address) } } }
            }
            dt { "Project" } dd { (shown(&one["project_id"])) }
            dt { "Created" } dd { (time(&one["created_at"])) }
        }
    }
}

/// Returns what unbinding and deleting do, and their buttons, for callers who may do that.
async fn release_forms(context: &Context, one: &Value) -> Markup {
    let holds = one["attach_handle_uuid"].is_string() || one["state"] == "BindStarted";
    let serves = context.is_service_or_admin();
    let unbinds = serves && context.may("cyborg:arq:update") && one["instance_uuid"].is_string();
    let deletes = context.may("cyborg:arq:delete") && (serves || !holds);
    let guest = match one["instance_uuid"].as_str().filter(|_| holds) {
        Some(server) => Guest::of(context, server, text(&one["attach_handle_uuid"])).await,
        None => Guest::default(),
    };
    let progress =
        one["instance_uuid"].as_str().map(|server| format!("{}&done=detaching", server_page(server)));
    html! {
        @if unbinds || deletes {
            @if holds { (consequences(true, &guest)) } @else { h2 { "What happens" } p { "No server loses a device, because the request holds none." } }
            ul {
                @if unbinds { li { strong { "Unbind" } " keeps the request, which can be bound again." } }
                @if deletes { li { strong { "Delete" } " forgets the request" @if holds { ", once its device is released" } "." } }
            }
            form method="post" action="accelerator-request" data-progress="progress" data-steps=[progress.as_deref()] {
                (form_token(context))
                input type="hidden" name="id" value=(text(&one["uuid"]));
                @if unbinds { button type="submit" name="step" value="unbind" { "Unbind" } " " }
                @if deletes { button.danger type="submit" name="step" value="delete" { "Delete" } " " }
                a href="accelerators" { "Cancel" }
                ol #progress .steps hidden aria-live="polite" aria-label="Progress" {}
            }
        } @else if holds {
            p.empty { "Nova, or an administrator, unbinds or deletes a request that holds a device." }
        }
    }
}

/// Unbinds or deletes a request.
pub(crate) async fn release(context: Context, fields: Fields) -> Result<Response, Problem> {
    let id = fields.get("id");
    let deletes = match fields.get("step") {
        "delete" => true,
        "unbind" => false,
        _ => {
            return Err(Problem::new(
                400,
                "the form does not say whether to unbind or to delete; open the page again",
            ));
        }
    };
    let sent = if deletes {
        context.api.send(Method::DELETE, &path(id)?, None).await
    } else {
        let steps = ["/hostname", "/device_rp_uuid", "/instance_uuid"];
        let steps = steps.map(|path| json!({ "op": "remove", "path": path }));
        context.api.send(Method::PATCH, &path(id)?, Some(&json!({ id: steps }))).await
    };
    match sent {
        Ok(_) if deletes => Ok(go("accelerators")),
        Ok(_) => Ok(go(&request_page(id))),
        Err(problem) => page(&context, id, Some(&problem)).await,
    }
}
