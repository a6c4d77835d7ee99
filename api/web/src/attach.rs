//! Attaching devices to a server: a form, the verdict of a dry run, and the attach itself.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::api::{id_part, part};
use crate::context::{Context, Fields};
use crate::field::{Choice, Field, Input, policies, refusal};
use crate::layout::{Page, form_token, go};
use crate::parts::{items, server_badge, server_page, text};
use crate::problem::Problem;
use crate::session::random;
use crate::verdict::verdict;
use crate::vf_settings::{all, offered};

/// The number of different aliases that the form takes.
const PARTS: usize = 3;

/// The NUMA policies, by their names and what they mean.
const POLICIES: [Choice; 5] = policies("as the alias says");

/// The fields of text besides those of a VF of a network card, by the keys of the API.
const TEXTS: [&str; 2] = ["flavor", "numa_policy"];

/// The type of virtual GPU that each VF is to be of.
static VGPU_TYPE: Field = Field {
    key: "vgpu_type",
    label: "vGPU type",
    input: Input::Text("nvidia-1155, as the alias says by default"),
};

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
    texts: BTreeMap<&'static str, String>,
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
            texts: keys().map(|key| (key, fields.get(key).to_owned())).collect(),
            live_only: fields.is_set("live_only"),
            whole_group: fields.is_set("whole_group"),
        }
    }

    fn text(&self, key: &str) -> &str {
        self.texts.get(key).map_or("", String::as_str)
    }

    /// Returns the settings of VFs that are asked for.
    fn set(&self) -> impl Iterator<Item = &'static Field> {
        of_vfs().filter(|field| !self.text(field.key).is_empty())
    }

    /// Returns the addresses, each with its domain.
    fn addresses(&self) -> Vec<String> {
        let addresses = self.addresses.split([' ', ',']).filter(|address| !address.is_empty());
        addresses.map(full_address).collect()
    }

    fn body(&self, dry_run: bool) -> Result<Value, Problem> {
        let parts = self.aliases.iter().map(|(alias, count)| {
            let count = if count.is_empty() { "1" } else { count };
            format!("{alias}:{count}")
        });
        let alias = parts.collect::<Vec<_>>().join(",");
        let mut body = Map::new();
        let addresses = self.addresses();
        match (alias.is_empty(), self.text("flavor").is_empty()) {
            (true, true) if addresses.is_empty() => {
                return Err(Problem::new(400, "choose an alias, a flavor or a device"));
            }
            (false, false) => {
                return Err(Problem::new(400, "an alias and a flavor are chosen; choose only one of them"));
            }
            _ => {}
        }
        if !alias.is_empty() {
            body.insert("pci_passthrough:alias".to_owned(), alias.into());
        }
        if !addresses.is_empty() {
            body.insert("addresses".to_owned(), addresses.into());
        }
        body.insert("persistent".to_owned(), (!self.live_only).into());
        body.insert("whole_group".to_owned(), self.whole_group.into());
        body.insert("dry_run".to_owned(), dry_run.into());
        for key in TEXTS.into_iter().filter(|key| !self.text(key).is_empty()) {
            body.insert(key.to_owned(), self.text(key).into());
        }
        for field in self.set() {
            body.insert(field.key.to_owned(), field.value(self.text(field.key))?);
        }
        Ok(json!({ "pciAttachment": body }))
    }
}

/// Returns the fields of what each VF is to be.
fn of_vfs() -> impl Iterator<Item = &'static Field> {
    std::iter::once(&VGPU_TYPE).chain(all())
}

/// Returns the keys of all fields of text.
fn keys() -> impl Iterator<Item = &'static str> {
    TEXTS.into_iter().chain(of_vfs().map(|field| field.key))
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
    let offer = Offer::of(&context, &server, &asked).await;
    let content = html! { (server.head()) (request_form(&context, &server, &asked, &offer, None)) };
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
    let (found, refused) = match done {
        Ok(Done::Attached(made)) => {
            let ids: Vec<_> =
                items(&made["pci_devices"]).iter().map(|one| part(text(&one["attachment_id"]))).collect();
            return Ok(go(&format!("{}&of={}&done=attached", server_page(&server.id), ids.join(","))));
        }
        Ok(Done::Checked(run)) => (verdict(&run, &then_attach(&context, &server, &asked)), None),
        Err(problem) => {
            let next = match fields.get("step") {
                "attach" => "Nothing was attached, or it was undone. Change the request, and check again.",
                _ => "Nothing was attached. Change the request, and check again.",
            };
            (refusal(&problem, of_vfs(), next), Some(problem))
        }
    };
    let offer = Offer::of(&context, &server, &asked).await;
    let message = refused.as_ref().map(|problem| problem.message.as_str());
    let is_wrong = message.is_some_and(|message| of_vfs().any(|field| field.is_refused_by(message)));
    let content = html! {
        (server.head())
        (found)
        details.again open[is_wrong] { summary { "Change the request" } (request_form(&context, &server, &asked, &offer, message)) }
    };
    Ok(server.page(content).show_with(refused.as_ref(), &context))
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
    /// The name of the host, for callers who may see it.
    host: Option<String>,
}

impl Server {
    async fn find(context: &Context, id: &str) -> Result<Self, Problem> {
        let found = context.api.get(&format!("/v2.1/servers/{}", id_part(id)?)).await?;
        let server = &found["server"];
        let own = |key: &str| text(&server[key]).to_owned();
        let host = server["host"].as_str().map(str::to_owned);
        Ok(Self { id: own("id"), name: own("name"), status: own("status"), host })
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

/// What the form offers.
struct Offer {
    /// The names of the aliases; `None` when the caller may not list them.
    aliases: Option<Vec<String>>,
    flavors: Vec<String>,
    /// Whether the request can be for VFs of a network card.
    vfs: bool,
    /// Whether the request can be for VFs of a card that makes virtual GPUs of them.
    vgpus: bool,
}

impl Offer {
    async fn of(context: &Context, server: &Server, asked: &Asked) -> Self {
        let aliases = names(context, "hotslot:rule:list", "/v2.1/os-pci-config/alias", "alias", |rule| {
            &rule["entry"]["name"]
        });
        let flavors =
            names(context, "hotslot:flavor:list", "/v2.1/flavors", "flavors", |flavor| &flavor["name"]);
        let classes = classes_of_vfs(context, server, asked).await;
        let may_be = |prefixes: &[&str]| {
            let is_one = |class: &String| prefixes.iter().any(|prefix| class.starts_with(prefix));
            classes.as_ref().is_none_or(|classes| classes.iter().any(is_one))
        };
        Self {
            aliases: aliases.await,
            flavors: flavors.await.unwrap_or_default(),
            vfs: all().any(|field| !asked.text(field.key).is_empty()) || may_be(&[NETWORK]),
            vgpus: !asked.text(VGPU_TYPE.key).is_empty() || may_be(&GPU),
        }
    }
}

/// Returns the names in a list, sorted; `None` when the caller may not list them.
async fn names(
    context: &Context,
    rule: &str,
    path: &str,
    key: &str,
    name: impl Fn(&Value) -> &Value,
) -> Option<Vec<String>> {
    if !context.may(rule) {
        return None;
    }
    let (listed, _) = context.api.list(path, key, 5000).await.ok()?;
    let mut names: Vec<_> = listed.iter().map(|one| text(name(one)).to_owned()).collect();
    names.sort();
    names.dedup();
    Some(names)
}

/// Returns the class codes of the VFs that a request can be for: those that it names, or the assignable ones of the host.
/// `None` when they are not known, or when the caller may not see the host, who is told nothing by that.
async fn classes_of_vfs(context: &Context, server: &Server, asked: &Asked) -> Option<Vec<String>> {
    let host = server.host.as_deref().filter(|_| context.may("hotslot:host:devices"))?;
    let found = context.api.get(&format!("/v2.1/os-hypervisors/{}/pci_devices", part(host))).await.ok()?;
    let named = asked.addresses();
    let by_name = asked.aliases.is_empty() && !named.is_empty();
    let vfs = items(&found["pci_devices"]).iter().filter(|function| {
        let is_asked = if by_name {
            named.iter().any(|address| function["address"] == *address)
        } else {
            function["status"].is_string()
        };
        is_asked && function["dev_type"] == "type-VF"
    });
    Some(vfs.map(|function| text(&function["class"]).to_owned()).collect())
}

/// The beginning of the class code of a network controller.
const NETWORK: &str = "0x02";

/// The beginnings of the class codes of cards that make virtual GPUs of VFs: display controllers and processing
/// accelerators.
const GPU: [&str; 2] = ["0x03", "0x12"];

fn request_form(
    context: &Context,
    server: &Server,
    asked: &Asked,
    offer: &Offer,
    refused: Option<&str>,
) -> Markup {
    let aliases = offer.aliases.as_deref();
    let by_address = context.may(BY_ADDRESS);
    let has_flavors = !offer.flavors.is_empty();
    html! {
        @if aliases.is_some_and(<[String]>::is_empty) && !by_address && !has_flavors {
            p.empty { "There is no alias yet. An alias names a kind of device; add one to the configuration, such as "
                code { r#"alias = ['{"name": "gpu", "vendor_id": "10de"}']"# } "." }
        } @else {
            form.stack method="post" action="attach" {
                (form_token(context))
                input type="hidden" name="id" value=(server.id);
                fieldset {
                    legend { "Which devices" }
                    @if aliases.is_none_or(|names| !names.is_empty()) {
                        @for number in 0..PARTS { (one_alias(number, asked, aliases, !by_address && !has_flavors)) }
                    }
                    @if has_flavors {
                        label { span { "Flavor, instead of aliases" } select name="flavor" {
                            option value="" { "–" }
                            @for name in &offer.flavors { option value=(name) selected[name == asked.text("flavor")] { (name) } }
                        } }
                    }
                    @if by_address {
                        label {
                            span { "Addresses on the host, instead of an alias or in addition" }
                            input name="addresses" value=(asked.addresses) placeholder="0000:3b:10.0" autocomplete="off" spellcheck="false";
                        }
                    }
                }
                (options(context, asked, offer, refused))
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
            label { span { "Count" } input type="number" name={ "count" (number) } min="1" max="256" value=(count); }
        }
    }
}

fn options(context: &Context, asked: &Asked, offer: &Offer, refused: Option<&str>) -> Markup {
    let is_set = keys().any(|key| key != "flavor" && !asked.text(key).is_empty())
        || asked.live_only
        || asked.whole_group;
    html! {
        details open[is_set] {
            summary { "Options" }
            label.check { input type="checkbox" name="live_only" value="1" checked[asked.live_only]; span { "Only until the next power cycle: leave the definition of the server as it is" } }
            label.check { input type="checkbox" name="whole_group" value="1" checked[asked.whole_group]; span { "Take whole IOMMU groups" } }
            label { span { "NUMA policy" } select name="numa_policy" {
                @for (policy, meaning) in POLICIES { option value=(policy) selected[asked.text("numa_policy") == policy] { (meaning) } }
            } }
            @if offer.vgpus { (VGPU_TYPE.show(asked.text(VGPU_TYPE.key), refused)) }
            @if offer.vfs {
                fieldset {
                    legend { "For a VF of a network card" }
                    @for field in offered(context.is_service_or_admin()) { (field.show(asked.text(field.key), refused)) }
                }
            }
        }
    }
}

/// Returns what is asked for besides the devices that a dry run found, and the button that attaches.
fn then_attach(context: &Context, server: &Server, asked: &Asked) -> Markup {
    let set: Vec<_> = asked.set().collect();
    html! {
        @if !set.is_empty() {
            h3 { "Settings of each VF" }
            dl.facts { @for field in set { (field.said(asked.text(field.key))) } }
        }
        form method="post" action="attach" data-progress="progress" data-steps={ (server_page(&server.id)) "&done=attached" } {
            (form_token(context)) (hidden(server, asked))
            input type="hidden" name="key" value=(random());
            button type="submit" name="step" value="attach" { "Attach" }
            ol #progress .steps hidden aria-live="polite" aria-label="Progress" {}
        }
    }
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
        @for (key, value) in asked.texts.iter().filter(|(_, value)| !value.is_empty()) { input type="hidden" name=(key) value=(value); }
        @if asked.live_only { input type="hidden" name="live_only" value="1"; }
        @if asked.whole_group { input type="hidden" name="whole_group" value="1"; }
    }
}
