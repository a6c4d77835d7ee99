//! The webhooks: how far each has come, what could not be delivered, and the button that delivers it again.

use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::context::{Context, Fields};
use crate::layout::{Page, form_token, go};
use crate::parts::{badge, items, text, time};
use crate::problem::Problem;
use crate::table::table;

/// Returns the list of the webhooks.
pub(crate) async fn show(context: Context) -> Result<Response, Problem> {
    let found = context.api.get("/webhooks").await?;
    let webhooks = items(&found["webhooks"]);
    let content = html! {
        h1 { "Webhooks" }
        p.lead { "Each webhook posts events to a program of yours, in their order." }
        div #webhooks data-live {
            @if webhooks.is_empty() {
                p.empty { "There is no webhook. Add " code { "[[webhook]]" } " with a " code { "name" } ", a " code { "url" } " and a " code { "secret" } " to the configuration." }
            }
            @for webhook in webhooks { (one(&context, webhook)) }
        }
    };
    Ok(Page { title: "Webhooks", place: "webhooks", live: Some(String::new()), content }.show(&context))
}

fn one(context: &Context, webhook: &Value) -> Markup {
    let name = text(&webhook["name"]);
    let (behind, letters) = (webhook["behind"].as_i64(), webhook["dead_letter_count"].as_i64().unwrap_or(0));
    let kinds = items(&webhook["kinds"]);
    html! {
        section.card {
            h2 { (name) " " (state(webhook)) }
            dl.facts {
                dt { "To" } dd { code { (text(&webhook["url"])) } }
                dt { "Events" } dd { @if kinds.is_empty() { "all" } @for kind in kinds { code { (text(kind)) } " " } }
                dt { "Delivered" } dd {
                    "up to event " (webhook["told"])
                    @if webhook["told_at"].is_string() { ", at " (time(&webhook["told_at"])) }
                    @if let Some(behind) = behind.filter(|behind| *behind > 0) { "; " (behind) @if behind == 1 { " event is" } @else { " events are" } " younger" }
                }
                @if let Some(reason) = webhook["reason"].as_str() {
                    dt { "Last failure" } dd { (reason) " " small { "after " (webhook["attempts"]) " attempts" } }
                }
                @if webhook["next_attempt_at"].is_string() { dt { "Next attempt" } dd { (time(&webhook["next_attempt_at"])) } }
            }
            @if letters > 0 { (dead_letters(webhook, letters)) }
            @if context.may("hotslot:webhook:redeliver") && (letters > 0 || webhook["reason"].is_string()) {
                form method="post" action="webhooks" {
                    (form_token(context))
                    input type="hidden" name="name" value=(name);
                    button.primary type="submit" { "Deliver again" span.unseen { " to " (name) } }
                    p.help { "The dead letters are queued again, and what waits for its next attempt is sent at once." }
                }
            }
        }
    }
}

/// Returns in a word how a webhook does.
fn state(webhook: &Value) -> Markup {
    match (webhook["reason"].is_string(), webhook["dead_letter_count"].as_i64()) {
        (true, _) => badge("failing", "bad"),
        (false, Some(letters)) if letters > 0 => badge("has dead letters", "busy"),
        (false, _) => badge("delivers", "free"),
    }
}

fn dead_letters(webhook: &Value, count: i64) -> Markup {
    let shown = items(&webhook["dead_letters"]);
    html! {
        details id={ "letters-" (text(&webhook["name"])) } {
            summary { (count) @if count == 1 { " dead letter" } @else { " dead letters" } }
            (table(&["Event", "Given up", "Attempts", "Why"], shown.iter().map(letter)))
            @if (shown.len() as i64) < count { p { "Only the first " (shown.len()) " are shown." } }
        }
    }
}

fn letter(letter: &Value) -> [Markup; 4] {
    [
        html! { "#" (letter["event_id"]) @if letter["due"] == true { " " (badge("to be sent", "busy")) } },
        time(&letter["died_at"]),
        html! { (letter["attempts"]) },
        html! { (text(&letter["reason"])) },
    ]
}

/// Has a webhook deliver its dead letters again.
pub(crate) async fn redeliver(context: Context, fields: Fields) -> Result<Response, Problem> {
    let path = format!("/webhooks/{}/redeliver", part(fields.get("name")));
    context.api.send(Method::POST, &path, None).await?;
    Ok(go("webhooks"))
}
