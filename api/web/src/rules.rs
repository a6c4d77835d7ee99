//! The rules: which devices are assignable, the aliases, and the extra information of devices. Those of the configuration
//! file are shown, and those of the API can be added, replaced and removed.

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::part;
use crate::context::{Context, Fields};
use crate::field::written_json;
use crate::guests::Guests;
use crate::layout::{Page, form_token, go};
use crate::parts::{badge, device_status, function_name, function_page, guard, items, text, visible_json};
use crate::problem::Problem;
use crate::table::{ACTIONS, table};

/// A kind of rules: its name in the API, its title, what it is for, and an example.
struct Kind {
    name: &'static str,
    title: &'static str,
    purpose: &'static str,
    example: &'static str,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "whitelist",
        title: "Assignable devices (device_spec)",
        purpose: "A device is assignable when an entry matches it. The first entry that matches decides.",
        example: r#"{"vendor_id": "8086", "product_id": "10ca"}"#,
    },
    Kind {
        name: "alias",
        title: "Aliases",
        purpose: "An attach asks for devices by the name of an alias.",
        example: r#"{"name": "nic", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}"#,
    },
    Kind {
        name: "extra_info",
        title: "Extra information",
        purpose: "Each entry adds values to the devices that it matches.",
        example: r#"{"match": {"address": "0000:3b:00.1"}, "values": {"switch": "tor-3"}}"#,
    },
];

fn kind_named(name: &str) -> Result<&'static Kind, Problem> {
    let unknown = || Problem::new(404, "there are rules of these kinds: whitelist, alias, extra_info");
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(unknown)
}

/// Returns all rules.
pub(crate) async fn list(context: Context) -> Result<Response, Problem> {
    let mut lists = Vec::new();
    for kind in &KINDS {
        let path = format!("/v2.1/os-pci-config/{}", kind.name);
        lists.push((kind, context.api.list(&path, kind.name, 5000).await?.0));
    }
    let content = html! {
        h1 { "Rules" }
        div #rules data-live {
            @for (kind, rules) in &lists {
                section {
                    h2 { (kind.title) }
                    p.lead { (kind.purpose) }
                    (entries(&context, kind, rules))
                    @if context.may("hotslot:rule:create") {
                        p { a.button.small href={ "rule?kind=" (kind.name) } { "Add an entry" } }
                    }
                }
            }
        }
    };
    Ok(Page { title: "Rules", place: "rules", live: Some("kind=rule".to_owned()), content }.show(&context))
}

fn entries(context: &Context, kind: &Kind, rules: &[Value]) -> Markup {
    html! {
        @if rules.is_empty() { p.empty { "There is no entry yet. Example: " code { (kind.example) } } }
        @else {
            (table(&["#", "Entry", "From", ACTIONS], rules.iter().map(|rule| line(context, kind, rule))))
        }
    }
}

fn line(context: &Context, kind: &Kind, rule: &Value) -> [Markup; 4] {
    [
        html! { (rule["position"]) },
        html! {
            code { (rule["entry"]) }
            @if let Some(problem) = rule["problem"].as_str() { br; (badge("has no effect", "bad")) " " span.reason { (problem) } }
        },
        html! { (rule["place"].as_str().unwrap_or("the API")) },
        html! { @if rule["read_only"] != true && context.may("hotslot:rule:update") {
            a.button.small href={ "rule?kind=" (kind.name) "&id=" (part(text(&rule["id"]))) } { "Change" span.unseen { " entry " (rule["position"]) } }
        } },
    ]
}

/// Which rule to change; without an id, a new one.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    kind: String,
    #[serde(default)]
    id: String,
}

impl Wanted {
    fn path(&self) -> String {
        let id = if self.id.is_empty() { String::new() } else { format!("/{}", part(&self.id)) };
        format!("/v2.1/os-pci-config/{}{id}", part(&self.kind))
    }
}

/// Returns the form of a rule.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let kind = kind_named(&wanted.kind)?;
    let rule = if wanted.id.is_empty() { "hotslot:rule:create" } else { "hotslot:rule:update" };
    if !context.may(rule) {
        let text =
            "your roles let you read the rules only; ask an administrator of this service to change them";
        return Err(Problem::new(403, text));
    }
    let entry = if wanted.id.is_empty() {
        kind.example.to_owned()
    } else {
        let found = context.api.get(&wanted.path()).await?;
        if found[kind.name]["read_only"] == true {
            let place = found[kind.name]["place"].as_str().unwrap_or("the configuration");
            let text = format!("this entry is from {place}; change it there, and reload the configuration");
            return Err(Problem::new(409, text));
        }
        visible_json(&found[kind.name]["entry"])
    };
    Ok(page(&context, kind, &wanted, &entry, None))
}

/// What was found about an entry that the person has written.
enum Found<'a> {
    Refused(&'a Problem),
    Preview(&'a Value, &'a Guests<'a>),
}

fn page(context: &Context, kind: &Kind, wanted: &Wanted, entry: &str, found: Option<Found<'_>>) -> Response {
    let is_new = wanted.id.is_empty();
    let content = html! {
        p.crumbs { a href="rules" { "Rules" } " / " (kind.title) }
        h1 { @if is_new { "Add an entry" } @else { "Change an entry" } }
        p.lead { (kind.purpose) }
        @match &found {
            Some(Found::Refused(problem)) => (problem.alert("")),
            Some(Found::Preview(preview, guests)) => (previewed(guests, kind, preview)),
            None => {},
        }
        form.stack method="post" action="rule" {
            (form_token(context))
            input type="hidden" name="kind" value=(kind.name);
            input type="hidden" name="id" value=(wanted.id);
            label { span { "Entry, as JSON" } textarea name="entry" rows="5" spellcheck="false" { (entry) } }
            p.help { "Example: " code { (kind.example) } }
            label.check { input type="checkbox" name="force" value="1"; span { "Also when devices in use depend on it" } }
            div {
                button.plain type="submit" name="step" value="preview" { "Preview" }
                " " button type="submit" name="step" value="save" { "Save" }
                @if !is_new && context.may("hotslot:rule:delete") {
                    " " button.danger type="submit" name="step" value="remove" { "Remove" }
                }
                " " a href="rules" { "Cancel" }
            }
        }
    };
    let status = if let Some(Found::Refused(problem)) = found { problem.status } else { 200 };
    Page { title: kind.title, place: "rules", live: None, content }.show_as(status, context)
}

/// Returns the functions that an entry would match, and what it would take away.
fn previewed(guests: &Guests<'_>, kind: &Kind, preview: &Value) -> Markup {
    let (functions, count) = (items(&preview["pci_devices"]), preview["count"].as_u64().unwrap_or(0));
    let withdrawn = items(&preview["withdrawn"]);
    let without_effect = match kind.name {
        "whitelist" => "an earlier entry decides",
        _ => "not assignable, so without effect",
    };
    html! {
        section #preview .verdict.good[count > 0] aria-labelledby="preview-title" {
            h2 #preview-title {
                @match count {
                    0 => "This entry is valid, and matches no function",
                    1 => "This entry matches 1 function",
                    _ => { "This entry matches " (count) " functions" },
                }
            }
            p { "Nothing was saved yet." }
            @if !withdrawn.is_empty() {
                p.note { "These devices in use would no longer be listed. They stay with their servers, and saving needs the mark below:" }
                ul { @for one in withdrawn { li { (text(one)) } } }
            }
            @if !functions.is_empty() {
                (table(
                    &["Function", "What", "Status now", "Effect"],
                    functions.iter().map(|function| previewed_function(guests, function, without_effect)),
                ))
                @if (functions.len() as u64) < count { p { "Only the first " (functions.len()) " are shown." } }
            }
        }
    }
}

fn previewed_function(guests: &Guests<'_>, function: &Value, without_effect: &str) -> [Markup; 4] {
    let (host, address) = (text(&function["host"]), text(&function["address"]));
    let (word, colour) = device_status(function);
    [
        html! { a.address href=(function_page(host, address)) { (address) } " " small { "on " (host) } },
        html! { (function_name(function)) },
        html! { (badge(word, colour)) " " (guests.holder(function)) (guard(function)) },
        html! { @if function["counts"] == true { (badge("applies", "free")) } @else { span.quiet { (without_effect) } } },
    ]
}

/// Shows what an entry would do, saves it, or removes it.
pub(crate) async fn save(context: Context, fields: Fields) -> Result<Response, Problem> {
    let kind = kind_named(fields.get("kind"))?;
    let wanted = Wanted { kind: kind.name.to_owned(), id: fields.get("id").to_owned() };
    let entry = fields.get("entry");
    let force = if fields.is_set("force") { "?force=true" } else { "" };
    let is_new = wanted.id.is_empty();
    let sent = if fields.get("step") == "remove" && !is_new {
        context.api.send(Method::DELETE, &format!("{}{force}", wanted.path()), None).await
    } else {
        match written_json("the entry is not valid JSON", entry) {
            Err(problem) => Err(problem),
            Ok(value) => {
                let body = json!({ kind.name: value });
                let method = if is_new { Method::POST } else { Method::PUT };
                let query = match fields.get("step") {
                    "preview" => "?dry_run=true",
                    _ if is_new => "",
                    _ => force,
                };
                context.api.send(method, &format!("{}{query}", wanted.path()), Some(&body)).await
            }
        }
    };
    match sent {
        Ok(answer) if fields.get("step") == "preview" => {
            // The functions may be those of several hosts.
            let guests = Guests::all(&context).await;
            Ok(page(&context, kind, &wanted, entry, Some(Found::Preview(&answer["preview"], &guests))))
        }
        Ok(_) => Ok(go("rules")),
        Err(problem) => Ok(page(&context, kind, &wanted, entry, Some(Found::Refused(&problem)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_json() {
        for kind in &KINDS {
            assert!(serde_json::from_str::<Value>(kind.example).unwrap().is_object());
        }
    }
}
