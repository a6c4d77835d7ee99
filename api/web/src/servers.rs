//! The servers, and one server: its PCI tree, and the devices that hotslot gave it.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::accelerator_parts::request_page;
use crate::api::{id_part, part};
use crate::context::Context;
use crate::guest_tree::GuestTree;
use crate::layout::Page;
use crate::parts::{
    attachment_badge, badge, function_page, items, server_badge, server_link, shown, text, time,
};
use crate::problem::Problem;
use crate::steps::steps;
use crate::table::{ACTIONS, table};

/// The maximum number of servers in the list.
const MOST: usize = 2000;

#[derive(Deserialize)]
pub(crate) struct Find {
    #[serde(default)]
    q: String,
}

/// Returns the list of the servers that the caller may use.
pub(crate) async fn list(context: Context, Query(find): Query<Find>) -> Result<Response, Problem> {
    let path = format!("/v2.1/servers/detail?name={}", part(find.q.trim()));
    let (servers, more) = context.api.list(&path, "servers", MOST).await?;
    let (attachments, unread) = match attachments_by_server(&context).await {
        Ok(attachments) => (attachments, None),
        Err(problem) => (BTreeMap::new(), Some(problem)),
    };
    let away = hosts_away(&context).await;
    let content = html! {
        h1 { "Servers" }
        form.filter method="get" action="servers" role="search" {
            label { span { "Name" } input type="search" name="q" value=(find.q); }
            button type="submit" { "Filter" }
        }
        div #servers data-live {
            @for (host, reason) in &away {
                p.refusal { "Host " strong { (host) } " is away, and so are its servers: " (reason) }
            }
            @if let Some(problem) = &unread {
                p.refusal role="alert" { "The devices of the servers cannot be read now: " (problem.message) }
            }
            @if servers.is_empty() {
                p.empty {
                    @if find.q.is_empty() {
                        "There is no server that you may use. A server is a domain of libvirt on one of the hosts; \
                         define one with virt-install or virsh, or ask for the project of an existing one."
                    } @else { "No server has this name." }
                }
            } @else {
                (table(&COLUMNS, servers.iter().map(|server| line(&context, server, &attachments))))
            }
            @if more { p { "Only the first " (MOST) " are shown; filter by name." } }
        }
    };
    Ok(Page { title: "Servers", place: "servers", live: Some(String::new()), content }.show(&context))
}

/// Returns the names of the hosts that cannot be read, with the reasons; none when the caller may not see hosts.
async fn hosts_away(context: &Context) -> Vec<(String, String)> {
    if !context.may("os_compute_api:os-hypervisors:list-detail") {
        return Vec::new();
    }
    let hosts = context.api.list("/v2.1/os-hypervisors/detail", "hypervisors", MOST).await;
    let away = |host: &Value| {
        let named = |key: &str| text(&host[key]).to_owned();
        (host["state"] != "up").then(|| (named("hypervisor_hostname"), named("state_reason")))
    };
    hosts.map(|(hosts, _)| hosts.iter().filter_map(away).collect()).unwrap_or_default()
}

/// Returns the attachments of each server; none when the caller may not list them.
async fn attachments_by_server(context: &Context) -> Result<BTreeMap<String, Vec<Value>>, Problem> {
    let mut by_server = BTreeMap::<String, Vec<Value>>::new();
    if context.may("hotslot:attachment:list_all") {
        let (all, _) = context.api.list("/v2.1/os-pci_attachments", "pciAttachment", MOST * 8).await?;
        for attachment in all {
            by_server.entry(text(&attachment["serverId"]).to_owned()).or_default().push(attachment);
        }
    }
    Ok(by_server)
}

/// The columns of the list.
const COLUMNS: [&str; 5] = ["Server", "State", "Host", "Devices", "Project"];

fn line(context: &Context, server: &Value, attachments: &BTreeMap<String, Vec<Value>>) -> [Markup; 5] {
    let id = text(&server["id"]);
    let own = attachments.get(id).map(Vec::as_slice).unwrap_or_default();
    let in_transition =
        own.iter().filter(|one| ["attaching", "detaching"].contains(&text(&one["status"]))).count();
    [
        html! { (server_link(context, id, &html! { (text(&server["name"])) })) br; small { code { (id) } } },
        server_badge(text(&server["status"])),
        html! { @if let Some(host) = server["host"].as_str() { a href={ "host?host=" (part(host)) } { (host) } } },
        html! {
            @if own.is_empty() { "–" } @else { (own.len()) }
            @if in_transition > 0 { " " (badge(&format!("{in_transition} in transition"), "busy")) }
        },
        html! { (shown(&server["tenant_id"])) },
    ]
}

#[derive(Deserialize)]
pub(crate) struct Wanted {
    id: String,
    /// What has just been done.
    #[serde(default)]
    done: String,
    /// The attachments to which that was done, separated by commas.
    #[serde(default)]
    of: String,
}

/// Returns the page of a server.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let path = format!("/v2.1/servers/{}", id_part(&wanted.id)?);
    let topology = context.api.get(&format!("{path}/pci_topology")).await;
    let list = format!("{path}/os-pci_attachments");
    let listed = context.api.list(&list, "pciAttachment", 1000).await.map(|(rows, _)| rows);
    let topology = match (topology, &listed) {
        (Ok(mut answer), _) => Ok(answer["pci_topology"].take()),
        (Err(problem), Ok(attachments)) if !attachments.is_empty() => Err(problem),
        (Err(problem), _) => return Err(problem),
    };
    let attachments = listed.as_deref().unwrap_or_default();
    let name = topology.as_ref().map_or(wanted.id.as_str(), |tree| text(&tree["name"])).to_owned();
    let pending = attachments.iter().any(|one| ["attaching", "detaching"].contains(&text(&one["status"])));
    let own = own_accelerators(&context, attachments).await;
    let steps = steps(&context, &wanted.id, attachments, !wanted.done.is_empty()).await;
    let content = html! {
        p.crumbs { a href="servers" { "Servers" } " / " (name) }
        h1 { (name) }
        @if let Some(done) = outcome(&wanted, &listed) { p.done role="status" { (done) } }
        div #state data-live data-pending[pending] { (lead(&topology, &wanted.id)) }
        @if context.may("hotslot:attachment:create") {
            p.actions { a.button href={ "attach?id=" (part(&wanted.id)) } { "Attach devices" } }
        }
        div #steps data-live { (steps) }
        div #attachments data-live {
            @match &listed {
                Ok(attachments) => (devices(&context, &own, &wanted.id, attachments)),
                Err(problem) => p.refusal role="alert" { "The devices of this server cannot be read now: " (problem.message) },
            }
        }
        div #topology data-live {
            @if let Ok(tree) = &topology {
                h2 { "PCI tree of the guest" }
                (GuestTree::of(tree, attachments).show())
            }
        }
        @if context.may("hotslot:event:list") {
            p { a href={ "events?server=" (part(&wanted.id)) } { "Events of this server" } }
        }
    };
    let live = Some(format!("server={}", part(&wanted.id)));
    Ok(Page { title: &name, place: "servers", live, content }.show(&context))
}

/// Returns what to say after a form was sent, when the list agrees: anybody can write the address of this page.
fn outcome(wanted: &Wanted, listed: &Result<Vec<Value>, Problem>) -> Option<&'static str> {
    let listed = listed.as_ref().ok()?;
    let status =
        |id: &str| listed.iter().find(|one| one["attachment_id"] == id).map(|one| text(&one["status"]));
    let are = |expected: &str| wanted.of.split(',').all(|id| status(id) == Some(expected));
    match wanted.done.as_str() {
        "attached" if are("attached") => Some("The devices are attached."),
        "detaching" if are("detaching") => {
            Some("The guest has been asked to release the device. This page shows when it has.")
        }
        "detaching" if status(&wanted.of).is_none() => Some("This server does not have the device any more."),
        _ => None,
    }
}

fn lead(topology: &Result<Value, Problem>, id: &str) -> Markup {
    html! {
        @match topology {
            Ok(tree) => p.lead {
                (server_badge(text(&tree["status"]))) " "
                @if let Some(host) = tree["host"].as_str() { "on " a href={ "host?host=" (part(host)) } { (host) } " · " }
                (text(&tree["machine"])) " · " code { (id) }
                @if tree["running"] != true { " · the tree is that of its definition, because it does not run" }
            },
            Err(problem) => div.refusal role="alert" {
                p { "The server cannot be read now: " (problem.message) }
                p { "What follows is what hotslot has on record." }
            },
        }
    }
}

/// Returns the accelerators that hold attachments, by the ids of these, where the attachments themselves do not tell the
/// caller which ones they are.
async fn own_accelerators(context: &Context, attachments: &[Value]) -> BTreeMap<String, String> {
    let mut own = BTreeMap::new();
    if context.may("hotslot:accelerator:list") && attachments.iter().any(|one| one["holder"] == ACCELERATOR) {
        let listed = context.api.list("/v1/accelerators", "accelerators", MOST).await;
        for accelerator in listed.map(|(listed, _)| listed).unwrap_or_default() {
            for attachment in
                items(&accelerator["devices"]).iter().filter_map(|one| one["attachment_id"].as_str())
            {
                own.insert(attachment.to_owned(), text(&accelerator["uuid"]).to_owned());
            }
        }
    }
    own
}

/// What holds an attachment, for callers who are not told which accelerator it is.
const ACCELERATOR: &str = "accelerator";

fn devices(context: &Context, own: &BTreeMap<String, String>, server: &str, attachments: &[Value]) -> Markup {
    let columns = ["Device", "On the host", "In the guest", "State", "Since", ACTIONS];
    html! {
        h2 { "Devices by hotslot" }
        @if attachments.is_empty() {
            p.empty { "This server has no device by hotslot." @if context.may("hotslot:attachment:create") { " Attach devices to give it one." } }
        } @else {
            (table(&columns, attachments.iter().map(|one| attachment(context, own, server, one))))
        }
    }
}

fn attachment(context: &Context, own: &BTreeMap<String, String>, server: &str, one: &Value) -> [Markup; 6] {
    let status = text(&one["status"]);
    let address = one["address"].as_str();
    let release = release_page(context, own, server, one).filter(|_| status != "attaching");
    [
        html! {
            (one["alias"].as_str().or_else(|| holder_words(one)).unwrap_or("adopted"))
            " " small { code { (text(&one["vendor_id"])) ":" (text(&one["product_id"])) } }
        },
        html! { @if let Some(address) = address { a.address href=(function_page(text(&one["host"]), address)) { (address) } } },
        inner(one),
        html! {
            (attachment_badge(status))
            @if status == "detaching" { " " (waiting(one)) }
            @if is_refused(one) { " " (badge("detach refused", "bad")) }
            @if let Some(reason) = one["status_reason"].as_str() { " " span.reason { (reason) } }
            @if one["persistent"] == false { " " small { "until the next power cycle" } }
        },
        time(if one["attached_at"].is_null() { &one["created_at"] } else { &one["attached_at"] }),
        html! {
            @if let Some(page) = release {
                a.button.small href=(page) {
                    @if status == "detaching" { "Detach again" } @else { "Detach" }
                    @if let Some(address) = address { span.unseen { " " (address) } }
                }
            } @else if one["holder"] == ACCELERATOR {
                small { "Whoever may use its accelerator detaches it, on the page of the accelerator." }
            }
        },
    ]
}

/// Returns the page that detaches a device: that of its accelerator or accelerator request, where one holds it. `None` for
/// callers who may not detach it, or may not know what holds it.
fn release_page(
    context: &Context,
    own: &BTreeMap<String, String>,
    server: &str,
    one: &Value,
) -> Option<String> {
    let (rule, page) = match one["holder"].as_str().map(|holder| holder.split_once(':')) {
        None => {
            let id = part(text(&one["attachment_id"]));
            ("hotslot:attachment:delete", format!("detach?server={}&attachment={id}", part(server)))
        }
        Some(Some(("accelerator", id))) => {
            ("hotslot:accelerator:delete", format!("accelerator-detach?id={}", part(id)))
        }
        Some(None) => {
            let id = own.get(text(&one["attachment_id"]))?;
            ("hotslot:accelerator:delete", format!("accelerator-detach?id={}", part(id)))
        }
        Some(Some(("accelerator-request", id))) => ("cyborg:arq:get_one", request_page(id)),
        Some(_) => return None,
    };
    context.may(rule).then_some(page)
}

/// Returns what holds an attachment, in words.
fn holder_words(one: &Value) -> Option<&'static str> {
    match one["holder"].as_str()?.split(':').next()? {
        ACCELERATOR => Some("accelerator"),
        "accelerator-request" => Some("accelerator request"),
        _ => Some("another service"),
    }
}

/// Returns that the guest has been asked and has not answered.
fn waiting(one: &Value) -> Markup {
    html! { (badge("pending", "busy")) @if one["status_reason"].is_null() { " " span.reason { "waiting for the guest" } } }
}

/// Whether a device stayed in the guest after it was asked for: then it is attached with a reason. One that was adopted
/// has a reason from the beginning.
fn is_refused(one: &Value) -> bool {
    let is_of_adoption = one["status_reason"].as_str().is_some_and(|reason| reason.starts_with("adopted: "));
    one["status"] == "attached" && one["status_reason"].is_string() && !is_of_adoption
}

/// Returns where the guest sees a device, and how that is known.
fn inner(one: &Value) -> Markup {
    html! {
        @match one["inner_address"].as_str() {
            Some(address) => { code { (address) } " " small.source { (text(&one["inner_address_source"])) } },
            None => "–",
        }
    }
}
