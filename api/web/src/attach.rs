//! Attaching devices to a server: a form, the verdict of a dry run, and the attach itself.

use axum::extract::Query;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::{id_part, part};
use crate::context::{Context, Fields};
use crate::layout::{Page, form_token, go};
use crate::parts::{badge, function_page, items, server_badge, server_page, text};
use crate::problem::Problem;
use crate::remedy::by_pages;
use crate::session::random;
use crate::table::table;

/// The number of different aliases that the form takes.
const PARTS: usize = 3;

/// The NUMA policies, by their names and what they mean.
const POLICIES: [(&str, &str); 5] = [
    ("", "as the alias says"),
    ("required", "required: only devices of the guest's NUMA nodes"),
    ("socket", "socket: only devices of the same socket"),
    ("preferred", "preferred: any device, near ones first"),
    ("legacy", "legacy: near ones, or those whose node is not known"),
];

/// The fields of text besides the aliases, by the keys of the API.
const TEXTS: [&str; 4] = ["numa_policy", "mac_address", "vlan", "physical_network"];

/// The right to attach a device by its address.
pub(crate) const BY_ADDRESS: &str = "hotslot:attachment:create_by_address";

/// The server, and the devices to begin with.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    /// Without one, the person chooses a server.
    #[serde(default)]
    id: String,
    #[serde(default)]
    address: String,
    /// The host of the device.
    #[serde(default)]
    host: String,
}

/// What the person asks for, as the form has it.
#[derive(Default)]
struct Asked {
    aliases: Vec<(String, String)>,
    addresses: String,
    texts: Vec<(&'static str, String)>,
    live_only: bool,
    whole_group: bool,
}

impl Asked {
    fn read(fields: &Fields) -> Self {
        let aliases = (0..PARTS).map(|number| {
            let name = |of: &str| fields.get(&format!("{of}{number}")).to_owned();
            (name("alias"), name("count"))
        });
        Self {
            aliases: aliases.filter(|(alias, _)| !alias.is_empty()).collect(),
            addresses: fields.get("addresses").to_owned(),
            texts: TEXTS.iter().map(|key| (*key, fields.get(key).to_owned())).collect(),
            live_only: fields.is_set("live_only"),
            whole_group: fields.is_set("whole_group"),
        }
    }

    fn text(&self, key: &str) -> &str {
        self.texts.iter().find(|(name, _)| *name == key).map_or("", |(_, value)| value)
    }

    fn body(&self, dry_run: bool) -> Result<Value, Problem> {
        let parts = self.aliases.iter().map(|(alias, count)| {
            let count = if count.is_empty() { "1" } else { count };
            format!("{alias}:{count}")
        });
        let alias = parts.collect::<Vec<_>>().join(",");
        let mut body = Map::new();
        let addresses = self.addresses.split([' ', ',']).filter(|address| !address.is_empty());
        let addresses: Vec<_> = addresses.map(full_address).collect();
        if !alias.is_empty() || addresses.is_empty() {
            body.insert("pci_passthrough:alias".to_owned(), alias.into());
        }
        if !addresses.is_empty() {
            body.insert("addresses".to_owned(), addresses.into());
        }
        body.insert("persistent".to_owned(), (!self.live_only).into());
        body.insert("whole_group".to_owned(), self.whole_group.into());
        body.insert("dry_run".to_owned(), dry_run.into());
        for (key, value) in self.texts.iter().filter(|(_, value)| !value.is_empty()) {
            let value = if *key == "vlan" {
                let wrong =
                    || Problem::new(400, format!("invalid vlan {value}: expected a number from 1 to 4094"));
                Value::from(value.parse::<u32>().map_err(|_| wrong())?)
            } else {
                value.clone().into()
            };
            body.insert((*key).to_owned(), value);
        }
        Ok(json!({ "pciAttachment": body }))
    }
}

/// Adds the domain 0000 to an address without one, as people write it.
fn full_address(address: &str) -> String {
    if address.matches(':').count() == 1 { format!("0000:{address}") } else { address.to_owned() }
}

/// Returns the form.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    if wanted.id.is_empty() {
        return choose_server(&context, &wanted).await;
    }
    let server = Server::find(&context, &wanted.id).await?;
    let asked = Asked { addresses: wanted.address, ..Asked::default() };
    let aliases = aliases(&context).await;
    let content = html! { (server.head()) (fields(&context, &server, &asked, aliases.as_deref())) };
    Ok(server.page(content).show(&context))
}

/// Checks or does what the form asks for.
pub(crate) async fn attach(context: Context, fields: Fields) -> Result<Response, Problem> {
    let server = Server::find(&context, fields.get("id")).await?;
    let asked = Asked::read(&fields);
    let done = if fields.get("step") == "attach" {
        send(&context, &server, &asked, fields.get("key")).await.map(Done::Attached)
    } else {
        dry_run(&context, &server, &asked).await.map(Done::Checked)
    };
    let mut status = 200;
    let verdict = match done {
        Ok(Done::Attached(made)) => {
            let ids: Vec<_> =
                items(&made["pci_devices"]).iter().map(|one| part(text(&one["attachment_id"]))).collect();
            return Ok(go(&format!("{}&of={}&done=attached", server_page(&server.id), ids.join(","))));
        }
        Ok(Done::Checked(run)) => html! { (verdict(&context, &server, &asked, &run)) },
        Err(problem) => {
            status = problem.status;
            problem.alert("Nothing was attached, or it was undone. Change the request, and check again.")
        }
    };
    let aliases = aliases(&context).await;
    let content = html! {
        (server.head())
        (verdict)
        details.again { summary { "Change the request" } (self::fields(&context, &server, &asked, aliases.as_deref())) }
    };
    Ok(server.page(content).show_as(status, &context))
}

/// Returns the list of the servers to which a device can be attached.
async fn choose_server(context: &Context, wanted: &Wanted) -> Result<Response, Problem> {
    let (servers, more) = context.api.list(&servers_on(&wanted.host), "servers", MOST_SERVERS).await?;
    let content = html! {
        p.crumbs { a href="servers" { "Servers" } " / attach" }
        h1 { "Attach " @if wanted.address.is_empty() { "devices" } @else { code { (wanted.address) } } " to …" }
        @if servers.is_empty() {
            p.empty { "There is no server" @if !wanted.host.is_empty() { " on " (wanted.host) } " that you may use." }
        } @else {
            ul.choices { @for server in &servers { li {
                a href={ "attach?id=" (part(text(&server["id"]))) "&address=" (part(&wanted.address)) } { (text(&server["name"])) }
                " " (server_badge(text(&server["status"]))) " " small { code { (text(&server["id"])) } }
            } } }
            @if more { p { "Only the first " (MOST_SERVERS) " are shown; go by the page of the server." } }
        }
    };
    Ok(Page { title: "Attach devices", place: "servers", live: None, content }.show(context))
}

/// The maximum number of servers to choose from.
const MOST_SERVERS: usize = 1000;

fn servers_on(host: &str) -> String {
    let host = if host.is_empty() { String::new() } else { format!("?host={}", part(host)) };
    format!("/v2.1/servers/detail{host}")
}

enum Done {
    Checked(Value),
    Attached(Value),
}

async fn dry_run(context: &Context, server: &Server, asked: &Asked) -> Result<Value, Problem> {
    let body = asked.body(true)?;
    Ok(context.api.send(Method::POST, &server.path(), Some(&body)).await?["dry_run"].take())
}

/// Attaches. A form that is sent twice attaches once, because of its key.
async fn send(context: &Context, server: &Server, asked: &Asked, key: &str) -> Result<Value, Problem> {
    let body = asked.body(false)?;
    let api = context.api.clone();
    let api = match HeaderValue::from_str(key) {
        Ok(key) if !key.is_empty() => api.with(HeaderName::from_static("idempotency-key"), key),
        Ok(_) | Err(_) => api,
    };
    api.send(Method::POST, &server.path(), Some(&body)).await
}

struct Server {
    id: String,
    name: String,
    status: String,
}

impl Server {
    async fn find(context: &Context, id: &str) -> Result<Self, Problem> {
        let found = context.api.get(&format!("/v2.1/servers/{}", id_part(id)?)).await?;
        let server = &found["server"];
        let own = |key: &str| text(&server[key]).to_owned();
        Ok(Self { id: own("id"), name: own("name"), status: own("status") })
    }

    fn path(&self) -> String {
        format!("/v2.1/servers/{}/os-pci_attachments", part(&self.id))
    }

    fn head(&self) -> Markup {
        html! {
            p.crumbs { a href="servers" { "Servers" } " / " a href=(server_page(&self.id)) { (self.name) } " / attach" }
            h1 { "Attach devices to " (self.name) }
            @if self.status != "ACTIVE" {
                p.note { "This server does not run. Its guest gets the devices at its next start." }
            }
        }
    }

    fn page(&self, content: Markup) -> Page<'_> {
        Page {
            title: "Attach devices",
            place: "servers",
            live: Some(format!("server={}", part(&self.id))),
            content,
        }
    }
}

/// Returns the names of the aliases; `None` when the caller may not list them.
async fn aliases(context: &Context) -> Option<Vec<String>> {
    if !context.may("hotslot:rule:list") {
        return None;
    }
    let rules = context.api.get("/v2.1/os-pci-config/alias").await.ok()?;
    let mut names: Vec<_> =
        items(&rules["alias"]).iter().map(|rule| text(&rule["entry"]["name"]).to_owned()).collect();
    names.sort();
    names.dedup();
    Some(names)
}

fn fields(context: &Context, server: &Server, asked: &Asked, aliases: Option<&[String]>) -> Markup {
    html! {
        @let by_address = context.may(BY_ADDRESS);
        @if aliases.is_some_and(<[String]>::is_empty) && !by_address {
            p.empty { "There is no alias yet. An alias names a kind of device; add one to the configuration, such as "
                code { r#"alias = ['{"name": "gpu", "vendor_id": "10de"}']"# } "." }
        } @else {
            form.stack method="post" action="attach" {
                (form_token(context))
                input type="hidden" name="id" value=(server.id);
                fieldset {
                    legend { "Which devices" }
                    @if aliases.is_none_or(|names| !names.is_empty()) {
                        @for number in 0..PARTS { (one_alias(number, asked, aliases, !by_address)) }
                    }
                    @if by_address {
                        label {
                            span { "Addresses on the host, instead of an alias or in addition" }
                            input name="addresses" value=(asked.addresses) placeholder="0000:3b:10.0" autocomplete="off" spellcheck="false";
                        }
                    }
                }
                (options(asked))
                button type="submit" name="step" value="check" { "Check" }
                p.help { "Nothing is changed yet: the check shows which devices would be taken, and what speaks against it." }
            }
        }
    }
}

fn one_alias(number: usize, asked: &Asked, aliases: Option<&[String]>, needed: bool) -> Markup {
    let (alias, count) = asked.aliases.get(number).map_or(("", "1"), |(alias, count)| (alias, count));
    let needed = needed && number == 0;
    let label = if number == 0 { "Alias".to_owned() } else { format!("and alias {}", number + 1) };
    html! {
        div.pair {
            label {
                span { (label) }
                @match aliases {
                    Some(names) => select name={ "alias" (number) } required[needed] {
                        @if !needed { option value="" { "–" } }
                        @for name in names { option value=(name) selected[name == alias] { (name) } }
                    },
                    None => input name={ "alias" (number) } value=(alias) required[needed] autocomplete="off";,
                }
            }
            label { span { "Count" } input type="number" name={ "count" (number) } min="1" max="255" value=(count); }
        }
    }
}

fn options(asked: &Asked) -> Markup {
    let is_set =
        asked.texts.iter().any(|(_, value)| !value.is_empty()) || asked.live_only || asked.whole_group;
    html! {
        details open[is_set] {
            summary { "Options" }
            label.check { input type="checkbox" name="live_only" value="1" checked[asked.live_only]; span { "Only until the next power cycle: leave the definition of the server as it is" } }
            label.check { input type="checkbox" name="whole_group" value="1" checked[asked.whole_group]; span { "Take whole IOMMU groups" } }
            label { span { "NUMA policy" } select name="numa_policy" {
                @for (policy, meaning) in POLICIES { option value=(policy) selected[asked.text("numa_policy") == policy] { (meaning) } }
            } }
            fieldset {
                legend { "For a VF of a network card" }
                label { span { "MAC address" } input name="mac_address" value=(asked.text("mac_address")) placeholder="52:54:00:12:34:56" autocomplete="off"; }
                label { span { "VLAN" } input name="vlan" inputmode="numeric" value=(asked.text("vlan")) placeholder="1 to 4094" autocomplete="off"; }
                label { span { "Physical network" } input name="physical_network" value=(asked.text("physical_network")) autocomplete="off"; }
            }
        }
    }
}

/// Returns what a dry run found, and the button that attaches.
fn verdict(context: &Context, server: &Server, asked: &Asked, run: &Value) -> Markup {
    let possible = run["would_attach"] == true;
    let key = random();
    let (mut failed, others): (Vec<_>, Vec<_>) =
        items(&run["checks"]).iter().partition(|check| check["result"] == "fail");
    // Those that name their cure come first.
    failed.sort_by_key(|check| check["cure"].is_null());
    html! {
        section #verdict .verdict.good[possible].bad[!possible] aria-labelledby="verdict-title" {
            h2 #verdict-title { @if possible { "These devices can be attached" } @else { "These devices cannot be attached" } }
            @if !failed.is_empty() {
                ul.failed { @for check in &failed { li {
                    strong { (by_pages(check["message"].as_str().unwrap_or("a check failed; ask an administrator why"))) }
                    @if let Some(cure) = check["cure"].as_str() { br; span.cure { (by_pages(cure)) } }
                } } }
            }
            @let devices = items(&run["pci_devices"]);
            @if !devices.is_empty() { (taken(devices)) }
            @if possible {
                form method="post" action="attach" data-progress="progress" data-steps={ (server_page(&server.id)) "&done=attached" } {
                    (form_token(context)) (hidden(server, asked))
                    input type="hidden" name="key" value=(key);
                    button type="submit" name="step" value="attach" { "Attach" }
                    ol #progress .steps hidden aria-live="polite" aria-label="Progress" {}
                }
            }
        }
        details.checks { summary { (others.len()) " other checks" }
            ul { @for check in &others { li {
                @if check["result"] == "pass" { (badge("passed", "free")) } @else { (badge("not known", "held")) }
                " " (check["message"].as_str().unwrap_or(text(&check["check"])))
            } } }
        }
    }
}

fn taken(devices: &[Value]) -> Markup {
    let line = |device: &Value| {
        [
            html! { @match (device["host"].as_str(), device["address"].as_str()) {
                (Some(host), Some(address)) => a.address href=(function_page(host, address)) { (address) },
                (None, Some(address)) => code { (address) },
                (_, None) => "chosen at the attach",
            } },
            // A device that was named by its address has that as its alias.
            html! { @if device["alias"] == device["address"] { "–" } @else { (text(&device["alias"])) } },
            html! { code { (text(&device["vendor_id"])) ":" (text(&device["product_id"])) } },
        ]
    };
    table(&["Device", "Alias", "Ids"], devices.iter().map(line))
}

/// Returns the fields of a request that was checked, as they were.
fn hidden(server: &Server, asked: &Asked) -> Markup {
    html! {
        input type="hidden" name="id" value=(server.id);
        @for (number, (alias, count)) in asked.aliases.iter().enumerate() {
            input type="hidden" name={ "alias" (number) } value=(alias);
            input type="hidden" name={ "count" (number) } value=(count);
        }
        @if !asked.addresses.is_empty() { input type="hidden" name="addresses" value=(asked.addresses); }
        @for (key, value) in &asked.texts { input type="hidden" name=(key) value=(value); }
        @if asked.live_only { input type="hidden" name="live_only" value="1"; }
        @if asked.whole_group { input type="hidden" name="whole_group" value="1"; }
    }
}
