//! The events: what changed, when, and who did it.

use axum::extract::{Query, RawQuery};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::api::part;
use crate::context::Context;
use crate::layout::{Page, secure};
use crate::parts::{function_page, items, server_link, text, time};
use crate::problem::Problem;
use crate::table::table;

/// The number of events in a page.
const LINES: i64 = 100;

#[derive(Deserialize)]
pub(crate) struct Wanted {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    server: String,
    #[serde(default)]
    device: String,
    #[serde(default)]
    user: String,
    /// The id after which the page begins; without one it has the newest events.
    since: Option<i64>,
}

/// The nouns that a filter can have; each stands for all of its kinds.
const NOUNS: [&str; 15] = [
    "device",
    "attachment",
    "binding",
    "mdev",
    "rule",
    "accelerator",
    "device_profile",
    "accelerator_request",
    "card",
    "webhook",
    "server",
    "quota",
    "token",
    "attribute",
    "request",
];

impl Wanted {
    /// Returns the filter as a query.
    fn query(&self) -> String {
        let pairs = [
            ("kind", &self.kind),
            ("host", &self.host),
            ("server", &self.server),
            ("device", &self.device),
            ("user", &self.user),
        ];
        let pairs = pairs.iter().filter(|(_, value)| !value.trim().is_empty());
        pairs.map(|(key, value)| format!("&{key}={}", part(value.trim()))).collect()
    }
}

/// Returns a page of the events, the newest first.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let filter = wanted.query();
    let path = match wanted.since {
        Some(since) => format!("/events?limit={LINES}&since={since}{filter}"),
        None => format!("/events?limit={LINES}&last={LINES}{filter}"),
    };
    let found = context.api.get(&path).await;
    let content = html! {
        h1 { "Events" }
        (form(&wanted))
        @match &found {
            Ok(found) => div #events data-live { (list(&context, &wanted, items(&found["events"]))) },
            Err(problem) => p.refusal role="alert" { (problem.message) },
        }
    };
    // The page of earlier events does not change.
    let live = wanted.since.is_none().then(|| filter.trim_start_matches('&').to_owned());
    Ok(Page { title: "Events", place: "events", live, content }.show(&context))
}

fn form(wanted: &Wanted) -> Markup {
    let field = |name: &str, label: &str, value: &str, hint: &str| {
        html! { label { span { (label) } input name=(name) value=(value) placeholder=(hint) autocomplete="off"; } }
    };
    html! {
        form.filter method="get" action="events" role="search" {
            label { span { "Kind" } select name="kind" {
                option value="" { "all" }
                @for noun in NOUNS { option value=(noun) selected[wanted.kind == noun] { (noun.replace('_', " ")) } }
            } }
            (field("server", "Server", &wanted.server, "UUID"))
            (field("device", "Device", &wanted.device, "0000:3b:00.1"))
            (field("host", "Host", &wanted.host, "name"))
            (field("user", "User", &wanted.user, "name"))
            button type="submit" { "Filter" }
        }
    }
}

fn list(context: &Context, wanted: &Wanted, events: &[Value]) -> Markup {
    let first = events.first().and_then(|event| event["id"].as_i64());
    html! {
        @if events.is_empty() { p.empty { "No event fits." } }
        @else {
            (table(
                &["Time (UTC)", "What", "Change", "Of", "Who"],
                events.iter().rev().map(|event| line(context, event)),
            ))
            @if let Some(first) = first.filter(|first| *first > 1) {
                p.pages {
                    a href={ "events?since=" ((first - 1 - LINES).max(0)) (wanted.query()) } { "Earlier events" }
                    @if wanted.since.is_some() { " · " a href={ "events?" (wanted.query().trim_start_matches('&')) } { "Newest events" } }
                }
            }
        }
    }
}

fn line(context: &Context, event: &Value) -> [Markup; 5] {
    let host = text(&event["host"]);
    [
        html! { (time(&event["time"])) br; small { "#" (event["id"]) } },
        html! { (text(&event["kind"])) },
        change(event),
        html! {
            @if let Some(address) = event["address"].as_str() { a.address href=(function_page(host, address)) { (address) } " " }
            @if let Some(server) = event["server_id"].as_str() { (server_link(context, server, &html! { small { code { (server) } } })) " " }
            @if !host.is_empty() { small { "on " (host) } }
        },
        who(event),
    ]
}

fn change(event: &Value) -> Markup {
    html! {
        @if !event["from"].is_null() { (brief(&event["from"])) " → " }
        @if !event["to"].is_null() { (brief(&event["to"])) }
        @if let Some(reason) = event["reason"].as_str() { " " span.reason { (reason) } }
    }
}

/// The longest value that is shown as a whole, in bytes.
const WHOLE: usize = 100;

/// Returns a value in a line: a word as it is, and an object with its keys. A long one opens on request.
fn brief(value: &Value) -> Markup {
    let written = value.to_string();
    html! {
        @match value.as_str() {
            Some(word) => (word),
            None if written.len() > WHOLE => details { summary { "all values" } code.value { (written) } },
            None => code.value { (written) },
        }
    }
}

fn who(event: &Value) -> Markup {
    html! {
        @match (event["user"].as_str(), event["via"].as_str()) {
            (Some(user), _) => (user),
            (None, Some(via)) => (via),
            (None, None) => "hotslot",
        }
        @if let Some(project) = event["project"].as_str() { small { " in " (project) } }
        br; small.cut title=(text(&event["who"])) { (text(&event["who"])) }
    }
}

/// Follows the events for the script of a page. The service decides what the caller may follow.
pub(crate) async fn live(context: Context, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    let query = query.filter(|query| !query.is_empty()).map_or(String::new(), |query| format!("&{query}"));
    let stream = HeaderValue::from_static("text/event-stream");
    let mut api = context.api.with(header::ACCEPT, stream);
    let mut from = "&last=0";
    if let Some(last) = headers.get("last-event-id") {
        api = api.with(HeaderName::from_static("last-event-id"), last.clone());
        from = "";
    }
    let mut response = api.respond(Method::GET, &format!("/events?follow=true{from}{query}"), None).await;
    secure(&mut response);
    response
}
