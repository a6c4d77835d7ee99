//! The quotas of a project: its limits and what it uses, and the form that sets the limits.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::part;
use crate::context::{Context, Fields};
use crate::layout::{Page, form_token, go};
use crate::parts::badge;
use crate::problem::Problem;
use crate::table::table;

/// The right to set limits.
const UPDATE: &str = "os_compute_api:os-quota-sets:update";

/// The beginning of the names of fields that have a limit.
const LIMIT: &str = "limit ";

#[derive(Deserialize)]
pub(crate) struct Wanted {
    /// The project; without one, that of the caller.
    #[serde(default)]
    project: String,
}

/// Returns the page.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    page(&context, wanted.project.trim(), None).await
}

async fn page(context: &Context, project: &str, refused: Option<&Problem>) -> Result<Response, Problem> {
    let own = context.who.as_ref().and_then(|who| who.project.clone()).unwrap_or_default();
    let project = if project.is_empty() { own.as_str() } else { project };
    let usage = if project.is_empty() { None } else { Some(usage(context, project).await?) };
    let may_set = context.may(UPDATE);
    let content = html! {
        h1 { "Quotas" @if !project.is_empty() { " " small { "of project " code { (project) } } } }
        @if let Some(problem) = refused { (problem.alert("")) }
        @if may_set {
            form.filter method="get" action="quotas" role="search" {
                label { span { "Project" } input name="project" value=(project) placeholder="id of the project" autocomplete="off"; }
                button type="submit" { "Show" }
            }
        }
        @match &usage {
            None => p.empty { "You act in no project. Name the id of one to see its limits and what it uses." },
            Some(usage) if may_set => (form(context, project, usage)),
            Some(usage) => (limits(usage, false)),
        }
    };
    let page = Page { title: "Quotas", place: "quotas", live: None, content };
    Ok(page.show_with(refused, context))
}

/// Returns the limit and the use of each resource, by its name in the API.
async fn usage(context: &Context, project: &str) -> Result<BTreeMap<String, Value>, Problem> {
    let found = context.api.get(&format!("/v2.1/os-quota-sets/{}/detail", part(project))).await?;
    let set = found["quota_set"].as_object().into_iter().flatten();
    Ok(set.filter(|(key, _)| *key != "id").map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// Returns a resource in words.
fn words(resource: &str) -> Markup {
    let name = match resource {
        "pci_attachments" => "Devices of servers",
        "accelerators" => "Accelerators",
        "accelerator_requests" => "Accelerator requests",
        "accelerator_spec_bytes" => "Bytes of the specs of accelerators",
        "idempotency_keys" => "Answers kept for repeated requests",
        other => match other.strip_prefix("pci_attachments:") {
            Some(alias) => return html! { "Devices by alias " strong { (alias) } },
            None => other,
        },
    };
    html! { (name) }
}

fn limits(usage: &BTreeMap<String, Value>, editable: bool) -> Markup {
    let line = |(resource, of): (&String, &Value)| {
        [
            html! { (words(resource)) " " small { code { (resource) } } },
            html! { (of["in_use"]) },
            html! { (of["reserved"]) },
            limit(resource, of, editable),
        ]
    };
    html! { section { (table(&["What", "In use", "Being attached", "Limit"], usage.iter().map(line))) } }
}

fn limit(resource: &str, of: &Value, editable: bool) -> Markup {
    let limit = of["limit"].as_i64().unwrap_or(-1);
    let used = [&of["in_use"], &of["reserved"]].iter().filter_map(|number| number.as_i64()).sum::<i64>();
    html! {
        @if editable {
            input type="number" min="-1" name={ (LIMIT) (resource) } value=(limit) aria-label={ "Limit of " (resource) };
        } @else if limit < 0 { "no limit" } @else { (limit) }
        @if limit >= 0 && used >= limit { " " (badge("used up", "busy")) }
    }
}

fn form(context: &Context, project: &str, usage: &BTreeMap<String, Value>) -> Markup {
    html! {
        form method="post" action="quotas" {
            (form_token(context))
            input type="hidden" name="project" value=(project);
            (limits(usage, true))
            p.help { "-1 is no limit. A limit below what is used takes nothing away: it only refuses what is new." }
            div.filter {
                label { span { "Limit for one more alias" } input name="alias" placeholder="name of the alias" autocomplete="off"; }
                label { span { "Limit" } input type="number" min="-1" name="alias_limit"; }
            }
            p.actions {
                button.primary type="submit" name="step" value="set" { "Set the limits" }
                " " button type="submit" name="step" value="reset" formnovalidate { "Restore the defaults" }
            }
        }
    }
}

/// Sets the limits that differ, or makes all of them the defaults again.
pub(crate) async fn set(context: Context, fields: Fields) -> Result<Response, Problem> {
    let project = fields.get("project");
    let path = format!("/v2.1/os-quota-sets/{}", part(project));
    let sent = if fields.get("step") == "reset" {
        context.api.send(Method::DELETE, &path, None).await
    } else {
        let limits = changed(&usage(&context, project).await?, &fields);
        let body = json!({ "quota_set": limits });
        context.api.send(Method::PUT, &path, Some(&body)).await
    };
    match sent {
        Ok(_) => Ok(go(&format!("quotas?project={}", part(project)))),
        Err(problem) => page(&context, project, Some(&problem)).await,
    }
}

/// Returns the limits of the form that are not those that are in force. The API reads numbers in texts.
fn changed(usage: &BTreeMap<String, Value>, fields: &Fields) -> Map<String, Value> {
    let mut limits = Map::new();
    for (resource, of) in usage {
        let wanted = fields.get(&format!("{LIMIT}{resource}"));
        let limit = of["limit"].to_string();
        if !wanted.is_empty() && wanted != limit {
            limits.insert(resource.clone(), wanted.into());
        }
    }
    let alias = fields.get("alias");
    if !alias.is_empty() {
        limits.insert(format!("pci_attachments:{alias}"), fields.get("alias_limit").into());
    }
    limits
}
