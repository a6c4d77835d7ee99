//! Where the records, the guests and the hosts disagree, and the button that repairs it.

use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::context::{Context, Fields};
use crate::layout::{Page, form_token};
use crate::parts::{badge, function_page, items, server_link, text};
use crate::problem::Problem;
use crate::remedy::by_pages;
use crate::table::table;

/// Returns what disagrees now.
pub(crate) async fn show(context: Context) -> Result<Response, Problem> {
    let found = context.api.get("/drift").await?;
    Ok(page(&context, &html! { div #drift data-live { (list(&context, &found)) } }))
}

/// Repairs what disagrees at one host, or at all.
pub(crate) async fn repair(context: Context, fields: Fields) -> Result<Response, Problem> {
    let path = match fields.get("host") {
        "" => "/drift".to_owned(),
        host => format!("/v2.1/os-hypervisors/{}/drift", part(host)),
    };
    let done = context.api.send(Method::POST, &path, None).await?;
    let repaired = items(&done["drift"]);
    let count = repaired.iter().filter(|one| one["repaired"] == true).count();
    let left = context.api.get("/drift").await?;
    Ok(page(
        &context,
        &html! {
            section.outcome role="status" {
                p.done { (count) " of " (repaired.len()) " repaired." }
                @for one in repaired.iter().filter(|one| one["repaired"] != true) {
                    p.refusal { (text(&one["kind"])) " of " (subject(&context, one)) " is left as it is: " (by_pages(text(&one["left"]))) }
                }
            }
            div #drift data-live { (list(&context, &left)) }
        },
    ))
}

fn page(context: &Context, content: &Markup) -> Response {
    let content = html! {
        h1 { "Drift" }
        p.lead { "Where the records of hotslot, the running guests, their definitions and the hosts disagree." }
        (content)
    };
    Page { title: "Drift", place: "drift", live: Some(String::new()), content }.show(context)
}

fn list(context: &Context, found: &Value) -> Markup {
    let (drift, away) = (items(&found["drift"]), items(&found["hosts_away"]));
    let by_repair = drift.iter().any(|one| one["done"] == "by a repair");
    html! {
        @for host in away {
            p.refusal { "Host " strong { (text(&host["host"])) } " cannot be read, and may disagree too: " (text(&host["reason"])) }
        }
        @if drift.is_empty() {
            p.empty { (badge("in order", "free")) " Nothing disagrees" @if !away.is_empty() { " at the hosts that can be read" } "." }
        } @else {
            (table(
                &["What", "Of", "What each says", "What resolves it"],
                drift.iter().map(|one| line(context, one)),
            ))
            @if by_repair && context.may("hotslot:drift:repair") {
                form method="post" action="drift" {
                    (form_token(context))
                    button type="submit" { "Repair" }
                    p.help { "Does all that the table says is done by a repair. What only a person can do is left." }
                }
            }
        }
    }
}

/// Returns the server, the device and the host that a finding is about.
fn subject(context: &Context, one: &Value) -> Markup {
    let host = text(&one["host"]);
    html! {
        @if let Some(server) = one["server_id"].as_str() {
            (server_link(context, server, &html! { (one["server_name"].as_str().unwrap_or(server)) })) " "
        }
        @if let Some(address) = one["address"].as_str() { a.address href=(function_page(host, address)) { (address) } " " }
        small { "on " (host) }
    }
}

fn line(context: &Context, one: &Value) -> [Markup; 4] {
    [
        html! { (text(&one["kind"])) },
        subject(context, one),
        html! {
            dl.said { @for (source, what) in one["said"].as_object().into_iter().flatten() {
                dt { (source) } dd { (text(what)) }
            } }
        },
        html! {
            (text(&one["action"])) " "
            @match one["done"].as_str() {
                Some("by itself") => (badge("soon, by itself", "busy")),
                Some(_) => (badge("by a repair", "used")),
                None => (badge("only by a person", "held")),
            }
        },
    ]
}
