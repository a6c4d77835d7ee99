//! What happens to the devices of a server, step by step: the events of its attachments in words, and what is being done
//! now.

use std::collections::BTreeSet;

use hotslot_model::under_way;
use maud::{Markup, html};
use serde_json::Value;

use crate::api::part;
use crate::context::Context;
use crate::parts::{badge, items, text, time};

/// The number of events in which the steps are looked for.
const EVENTS: u32 = 100;

/// Returns the steps of the devices that are being attached or detached, and after a form also those of the request that
/// the form sent. Callers who may not read events see only what is being done now.
pub(crate) async fn steps(
    context: &Context,
    server: &str,
    attachments: &[Value],
    after_form: bool,
) -> Markup {
    let is_pending = |one: &&Value| ["attaching", "detaching"].contains(&text(&one["status"]));
    let pending: Vec<_> = attachments.iter().filter(is_pending).collect();
    let mut found = Value::Null;
    if context.may("hotslot:event:list") && (after_form || !pending.is_empty()) {
        let path = format!("/events?server={}&kind=attachment&limit={EVENTS}&last={EVENTS}", part(server));
        found = context.api.get(&path).await.unwrap_or_default();
    }
    let ids = pending.iter().map(|one| text(&one["attachment_id"])).collect();
    let past = of_interest(items(&found["events"]), ids, after_form);
    let present: Vec<_> = pending.into_iter().filter_map(now).collect();
    html! {
        @if !past.is_empty() || !present.is_empty() {
            h2 { "Step by step" }
            ol.steps aria-live="polite" {
                @for event in past { li { (step(event)) } }
                @for doing in present { li.now { (doing) } }
            }
        }
    }
}

/// Returns what the service is doing for an attachment now, and how long that may take; `None` when it is not working on
/// it.
fn now(attachment: &Value) -> Option<Markup> {
    let operation = &attachment["operation"];
    let doing = || operation["step"].as_str().map(|name| under_way::step(name).to_owned());
    let doing = under_way::unplug_request(&attachment["progress"]).or_else(doing)?;
    Some(html! {
        (time(&operation["step_began_at"])) " "
        @if let Some(address) = attachment["address"].as_str() { code { (address) } " " }
        (badge("now", "busy")) " " (doing)
        @if operation["ends_by"].is_string() { ", until " (time(&operation["ends_by"])) " at the latest" }
    })
}

/// Returns the events of each attachment since it began to be attached or detached for the last time.
fn of_interest<'e>(events: &'e [Value], mut wanted: BTreeSet<&'e str>, after_form: bool) -> Vec<&'e Value> {
    let request = events.iter().rev().find(|event| begins(event)).map(|event| &event["who"]);
    if let Some(request) = request.filter(|_| after_form) {
        let of_request = events.iter().filter(|event| event["who"] == *request);
        wanted.extend(of_request.map(|event| text(&event["attachment_id"])));
    }
    let mut begun = BTreeSet::new();
    let mut shown: Vec<_> = events
        .iter()
        .rev()
        .filter(|event| {
            let id = text(&event["attachment_id"]);
            let is_shown = wanted.contains(id) && !begun.contains(id);
            if begins(event) {
                begun.insert(id);
            }
            is_shown
        })
        .collect();
    shown.reverse();
    shown
}

/// Whether a device begins to be attached or detached with an event.
fn begins(event: &Value) -> bool {
    event["kind"] == "attachment.state" && ["attaching", "detaching"].contains(&text(&event["to"]))
}

fn step(event: &Value) -> Markup {
    let (word, colour, meaning) = words(event);
    html! {
        (time(&event["time"])) " "
        @if let Some(address) = event["address"].as_str() { code { (address) } " " }
        (badge(word, colour)) " " (meaning)
        @if let Some(reason) = event["reason"].as_str() { " " span.reason { (reason) } }
    }
}

/// Returns a word for a step, its colour, and what it means.
fn words(event: &Value) -> (&'static str, &'static str, String) {
    let seen = || match event["to"]["address"].as_str() {
        Some(address) => {
            let source = text(&event["to"]["source"]);
            format!("the guest sees it at {address} ({source})")
        }
        None => "the guest does not see it".to_owned(),
    };
    let (word, colour, meaning) = match (text(&event["kind"]), text(&event["from"]), text(&event["to"])) {
        ("attachment.inner_address", _, _) => return ("address", "none", seen()),
        ("attachment.reason", _, _) => ("pending", "busy", "it is not gone yet"),
        ("attachment.given_back", _, _) => ("given back", "none", "it is bound to its host driver again"),
        (_, _, "attaching") => ("reserved", "busy", "it is reserved for this server"),
        (_, "detaching", "attached") => ("refused", "bad", "the guest keeps it, and everything is as before"),
        (_, _, "attached") => ("attached", "used", "it is plugged in"),
        (_, _, "detaching") => ("asked", "busy", "the guest is asked to release it"),
        (_, _, "detached") => ("released", "free", "it is gone from the guest, and the host has it back"),
        (_, _, "failed") => ("failed", "bad", "the attach failed, and was undone"),
        (_, _, _) => ("changed", "none", ""),
    };
    (word, colour, meaning.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_last_attach_or_detach_of_an_attachment_is_shown() {
        let event = |id: &str, who: &str, from: &str, to: &str| json!({ "kind": "attachment.state", "attachment_id": id, "who": who, "from": from, "to": to });
        let events = [
            event("a", "1", "", "attaching"),
            event("a", "1", "attaching", "attached"),
            event("b", "2", "", "attaching"),
            event("a", "3", "attached", "detaching"),
            event("a", "reconciliation", "detaching", "attached"),
        ];
        let shown = |wanted: &[&'static str], after_form| {
            let shown = of_interest(&events, wanted.iter().copied().collect(), after_form);
            shown.into_iter().map(|event| words(event).0).collect::<Vec<_>>()
        };
        assert_eq!(shown(&["b"], false), ["reserved"]);
        assert_eq!(shown(&[], true), ["asked", "refused"]);
        assert_eq!(shown(&["b"], true), ["reserved", "asked", "refused"]);
        assert!(shown(&[], false).is_empty());
    }
}
