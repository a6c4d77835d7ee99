//! One accelerator: what it takes and what it holds, and the forms that make one or change what it takes.

use std::collections::BTreeMap;

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use hotslot_model::accelerator::{AccSpec, LONGEST_NAME, MAX_BYTES, check_name};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::accelerator_parts::{held, page_of, server, status};
use crate::api::{id_part, part};
use crate::context::{Context, Fields};
use crate::field::{Choice, Field, Input, policies, refusal, written_json};
use crate::guests::Guests;
use crate::layout::{Page, form_token, go};
use crate::parts::{items, shown, text, time};
use crate::problem::Problem;
use crate::remedy::by_pages;

/// Which accelerator.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    /// What has just been done.
    #[serde(default)]
    done: String,
}

/// Returns the path of an accelerator in the API.
///
/// # Errors
/// 404 for what no id is.
pub(crate) fn path(id: &str) -> Result<String, Problem> {
    Ok(format!("/v1/accelerators/{}", id_part(id)?))
}

/// Returns the links to the pages above that of an accelerator.
pub(crate) fn crumbs(one: &Value, here: &str) -> Markup {
    html! {
        p.crumbs {
            a href="accelerators" { "Accelerators" } " / "
            @if here.is_empty() { (text(&one["name"])) }
            @else { a href=(page_of(text(&one["uuid"]))) { (text(&one["name"])) } " / " (here) }
        }
    }
}

/// Returns the page of an accelerator.
pub(crate) async fn show(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let one = context.api.get(&path(&wanted.id)?).await?;
    let guests = Guests::all(&context).await;
    let content = html! {
        (crumbs(&one, ""))
        h1 { (text(&one["name"])) }
        @if let Some(done) = outcome(&wanted.done, &one) { p.done role="status" { (done) } }
        div #accelerator data-live {
            p.lead { (status(&one)) }
            (facts(&guests, &one))
            (actions(&context, &one))
        }
    };
    Ok(Page { title: text(&one["name"]), place: "accelerators", live: Some(String::new()), content }
        .show(&context))
}

/// Returns what to say after a form was sent, when the accelerator agrees: anybody can write the address of this page.
fn outcome(done: &str, one: &Value) -> Option<&'static str> {
    let holds = !items(&one["devices"]).is_empty();
    match done {
        "attached" if one["status"] == "attached" => Some("The accelerator is attached."),
        "detached" if !holds => {
            Some("The accelerator holds no device any more. Its name and what it takes stay.")
        }
        "created" if !holds && one["status"] == "available" => {
            Some("The accelerator is created. It holds no device until it is attached.")
        }
        _ => None,
    }
}

fn facts(guests: &Guests<'_>, one: &Value) -> Markup {
    let ignored = items(&one["ignored_keys"]);
    html! {
        dl.facts {
            dt { "Takes" } dd { (text(&one["takes"])) }
            dt { "Server" } dd { (server(guests, one)) }
            dt { "Devices" } dd { @if items(&one["devices"]).is_empty() { "–" } @for device in items(&one["devices"]) { (held(device)) } }
            dt { "Project" } dd { (shown(&one["project_id"])) }
            dt { "Spec" } dd { code { (one["acc_specs"]) } }
            @if !ignored.is_empty() { dt { "Without effect" } dd { @for key in ignored { code { (text(key)) } " " } } }
            dt { "Id" } dd { code { (text(&one["uuid"])) } }
            @if !one["created_at"].is_null() { dt { "Created" } dd { (time(&one["created_at"])) } }
        }
    }
}

/// Returns the links to what the caller may do with an accelerator as it is now.
fn actions(context: &Context, one: &Value) -> Markup {
    let id = part(text(&one["uuid"]));
    let holds = !items(&one["devices"]).is_empty();
    let changes = context.may("hotslot:accelerator:update");
    let ends = context.may("hotslot:accelerator:delete");
    // One that stands for a device, and was never changed, has no record.
    let is_on_record = !one["created_at"].is_null();
    html! {
        p.actions {
            @if changes && one["status"] == "available" { a.button href={ "accelerator-attach?id=" (id) } { "Attach to a server" } " " }
            @if ends && holds { a.button href={ "accelerator-detach?id=" (id) } { "Detach" } " " }
            @if changes && !holds { a.button.plain href={ "accelerator-spec?id=" (id) } { "Change what it takes" } " " }
            @if ends && !holds && is_on_record && context.is_admin() { a.button.plain href={ "accelerator-detach?id=" (id) } { "Delete" } }
        }
    }
}

/// The maximum number of accelerators among whose names a new one is looked for. The route refuses a name of any other.
const MOST: usize = 5000;

/// The types of devices, as a spec names them.
const TYPES: &[Choice] = &[
    ("UNKNOWN", "any accelerator card: FPGA, QAT, CRYPTO or AICHIP"),
    ("GPU", "GPU"),
    ("FPGA", "FPGA"),
    ("QAT", "QAT: Intel QuickAssist"),
    ("CRYPTO", "CRYPTO: encryption, also QAT"),
    ("AICHIP", "AICHIP: machine learning"),
    ("NIC", "NIC: network interface"),
    ("NVMe", "NVMe: disk"),
    ("PCI", "PCI: none of the others"),
];

const POLICIES: &[Choice] = &policies("not given: preferred");

const fn field(key: &'static str, label: &'static str, input: Input) -> Field {
    Field { key, label, input }
}

/// The fields that everybody needs.
const MAIN: [Field; 2] = [
    field("device_type", "Type of the devices", Input::Choice(TYPES)),
    field("num", "Number of devices", Input::Number(Some(1..=256), "1")),
];

/// The fields that narrow the choice.
const NARROWING: [Field; 6] = [
    field("vendor_id", "Vendor id", Input::Text("10de")),
    field("product_id", "Product id", Input::Text("1eb8")),
    field("numa_node", "NUMA node of the host", Input::Number(Some(0..=1023), "0")),
    field("numa_policy", "NUMA policy", Input::Choice(POLICIES)),
    field(
        "mdev_type",
        "Type of mediated devices (vGPUs), instead of whole devices",
        Input::Text("nvidia-231"),
    ),
    field("acc_capability", "Required capabilities, as JSON", Input::Text(r#"{"ipsec": "yes"}"#)),
];

fn all() -> impl Iterator<Item = &'static Field> {
    MAIN.iter().chain(&NARROWING)
}

/// A spec as it is written.
struct Written {
    texts: BTreeMap<&'static str, String>,
    /// The keys of the spec that the form has no fields for.
    others: Map<String, Value>,
}

impl Written {
    fn read(fields: &Fields, others: Map<String, Value>) -> Self {
        Self { texts: all().map(|field| (field.key, fields.get(field.key).to_owned())).collect(), others }
    }

    /// Takes a spec apart.
    fn of(spec: &Value) -> Self {
        let mut others = spec.as_object().cloned().unwrap_or_default();
        let texts = all().map(|field| {
            let written = match others.remove(field.key) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text,
                Some(Value::Object(keys)) if keys.is_empty() => String::new(),
                Some(value) => value.to_string(),
            };
            (field.key, written)
        });
        let texts = texts.collect();
        Self { texts, others }
    }

    fn text(&self, key: &str) -> &str {
        self.texts.get(key).map_or("", String::as_str)
    }

    /// Returns the spec, after the checks of the API.
    ///
    /// # Errors
    /// 400 with what is wrong.
    fn spec(&self) -> Result<(Value, AccSpec), Problem> {
        let mut spec = self.others.clone();
        for field in all().filter(|field| !self.text(field.key).is_empty()) {
            let written = self.text(field.key);
            let value = if field.key == "acc_capability" {
                written_json("acc_capability: this is not valid JSON", written)?
            } else {
                field.value(written)?
            };
            spec.insert(field.key.to_owned(), value);
        }
        let spec = Value::Object(spec);
        let read = AccSpec::read(&spec).map_err(|reason| Problem::new(400, by_pages(&reason)))?;
        let text = spec.to_string();
        // A backslash of a text is written twice in JSON.
        if text.replace(r"\\", "").contains(r"\u0000") {
            let reason = "acc_capability: it has the character U+0000, which cannot be stored; remove it";
            return Err(Problem::new(400, reason));
        }
        if text.len() > MAX_BYTES {
            let bytes = text.len();
            let reason = format!(
                "what it takes has {bytes} bytes as JSON; shorten the capabilities, so that it has at most {MAX_BYTES}"
            );
            return Err(Problem::new(400, reason));
        }
        Ok((spec, read))
    }

    fn fields(&self, refused: Option<&str>) -> Markup {
        let is_narrowed = NARROWING.iter().any(|field| !self.text(field.key).is_empty());
        html! {
            @for field in &MAIN { (field.show(self.text(field.key), refused)) }
            details open[is_narrowed] {
                summary { "Only some of these devices" }
                @for field in &NARROWING { (field.show(self.text(field.key), refused)) }
            }
        }
    }

    fn hidden(&self) -> Markup {
        html! { @for (key, value) in self.texts.iter().filter(|(_, value)| !value.is_empty()) {
            input type="hidden" name=(key) value=(value);
        } }
    }
}

/// Returns the form of a new accelerator.
pub(crate) async fn new(context: Context) -> Response {
    let written = Written::of(&Value::Null);
    page_of_new(&context, "", &written, &html! {}, None)
}

fn page_of_new(
    context: &Context,
    name: &str,
    written: &Written,
    found: &Markup,
    refused: Option<&Problem>,
) -> Response {
    let message = refused.map(|problem| problem.message.as_str());
    let content = html! {
        p.crumbs { a href="accelerators" { "Accelerators" } " / new" }
        h1 { "Create an accelerator" }
        p.lead { "An accelerator is a name for devices. It says which devices it takes, and takes them when it is attached." }
        (found)
        form.stack method="post" action="accelerator-new" {
            (form_token(context))
            label { span { "Name" } input name="name" value=(name) required maxlength=(LONGEST_NAME) autocomplete="off"; }
            (written.fields(message))
            div {
                button type="submit" name="step" value="check" { "Check" }
                " " a href="accelerators" { "Cancel" }
            }
            p.help { "Nothing is created yet: the check says which devices the accelerator will take." }
        }
    };
    Page { title: "Create an accelerator", place: "accelerators", live: None, content }
        .show_with(refused, context)
}

/// Checks or creates an accelerator.
pub(crate) async fn create(context: Context, fields: Fields) -> Response {
    let written = Written::read(&fields, Map::new());
    let name = fields.get("name");
    let checked = written.spec().and_then(|spec| {
        check_name(name).map_err(|reason| Problem::new(400, reason))?;
        Ok(spec)
    });
    let done = match checked {
        Ok((spec, _)) if fields.get("step") == "create" => {
            make(&context, name, fields.get("key"), &spec).await.map(Step::Created)
        }
        Ok((_, read)) => {
            free_name(&context, name).await.map(|()| Step::Checked(read)).map_err(Unmade::Nothing)
        }
        Err(problem) => Err(Unmade::Nothing(problem)),
    };
    match done {
        Ok(Step::Created(id)) => go(&format!("{}&done=created", page_of(&id))),
        Ok(Step::Checked(read)) => {
            let then = html! {
                form method="post" action="accelerator-new" data-progress {
                    (form_token(&context)) (written.hidden())
                    input type="hidden" name="name" value=(name);
                    // A form that is sent twice makes one accelerator.
                    input type="hidden" name="key" value=(Uuid::new_v4());
                    button.primary type="submit" name="step" value="create" { "Create " (name) }
                }
            };
            page_of_new(&context, name, &written, &taking(&read, &then), None)
        }
        Err(Unmade::Nothing(problem)) => {
            let found = refusal(&problem, all(), "Nothing was created. Correct it, and check again.");
            page_of_new(&context, name, &written, &found, Some(&problem))
        }
        Err(Unmade::WithoutSpec(problem, id)) => {
            let found = html! {
                (problem.alert("The accelerator was created all the same, and does not say yet what it takes."))
                p.note { "Say what it takes, or delete it, on its page: " a href=(page_of(&id)) { (name) } }
            };
            page_of_new(&context, name, &written, &found, Some(&problem))
        }
    }
}

/// # Errors
/// 409 for the name of an accelerator that the caller sees; errors of the list.
async fn free_name(context: &Context, name: &str) -> Result<(), Problem> {
    let (listed, _) = context.api.list("/v1/accelerators", "accelerators", MOST).await?;
    if listed.iter().any(|one| one["name"] == name) {
        return Err(Problem::new(409, "an accelerator has this name already; choose another name"));
    }
    Ok(())
}

/// Returns what an accelerator with a spec takes, and what can be done now.
fn taking(read: &AccSpec, then: &Markup) -> Markup {
    html! {
        section #verdict .verdict.good aria-labelledby="verdict-title" {
            h2 #verdict-title { "What it will take" }
            p { "When it is attached, it takes " strong { (read.takes()) } ". Now it takes nothing." }
            (then)
        }
    }
}

/// What a sent form has done.
enum Step {
    /// It was checked, and nothing was made. The spec is one that an accelerator can have.
    Checked(AccSpec),
    /// The accelerator with this id was made.
    Created(String),
}

/// Why an accelerator was not made.
enum Unmade {
    /// It does not exist.
    Nothing(Problem),
    /// The accelerator with this id exists, without its spec.
    WithoutSpec(Problem, String),
}

/// Makes an accelerator with a spec, and returns its id, which is the key of the form: a form that is sent twice finds
/// what the first one made.
async fn make(context: &Context, name: &str, key: &str, spec: &Value) -> Result<String, Unmade> {
    let id = key.parse().unwrap_or_else(|_| Uuid::new_v4()).to_string();
    let body = json!({ "name": name, "uuid": id });
    if let Err(problem) = context.api.send(Method::POST, "/v1/accelerators", Some(&body)).await {
        let is_made = problem.status == 409 && is_as_wanted(context, &id, name, spec).await;
        return if is_made { Ok(id) } else { Err(Unmade::Nothing(problem)) };
    }
    let Err(problem) = put_spec(context, &id, spec, "").await else { return Ok(id) };
    // Nobody is to find an accelerator that takes something else than was asked for.
    let undone = match path(&id) {
        Ok(path) => context.api.send(Method::DELETE, &format!("{path}?purge=true"), None).await,
        Err(problem) => Err(problem),
    };
    match undone {
        Ok(_) => Err(Unmade::Nothing(problem)),
        Err(_) => Err(Unmade::WithoutSpec(problem, id)),
    }
}

/// Whether an accelerator has this name and spec. One that has no spec yet, because the request that made it still
/// runs, is given it.
async fn is_as_wanted(context: &Context, id: &str, name: &str, spec: &Value) -> bool {
    let Ok(wanted) = AccSpec::read(spec).map(|spec| spec.shown()) else { return false };
    let Ok((mut one, tag)) = read(context, id).await else { return false };
    if one["name"] != name {
        return false;
    }
    if one["acc_specs"] == AccSpec::default().shown() && one["acc_specs"] != wanted {
        // When the other request was faster, this one is refused, and the spec is there.
        drop(put_spec(context, id, spec, &tag).await);
        match read(context, id).await {
            Ok((now, _)) => one = now,
            Err(_) => return false,
        }
    }
    one["acc_specs"] == wanted
}

/// Returns an accelerator, and the tag of its spec.
///
/// # Errors
/// Those of the route.
pub(crate) async fn read(context: &Context, id: &str) -> Result<(Value, String), Problem> {
    context.api.send_tagged(Method::GET, &path(id)?, None).await
}

async fn put_spec(context: &Context, id: &str, spec: &Value, tag: &str) -> Result<Value, Problem> {
    let body = json!({ "acc_specs": spec });
    let api = context.api.clone().unless_changed(tag);
    api.send(Method::PUT, &format!("{}/acc_specs", path(id)?), Some(&body)).await
}

/// Returns the form that changes what an accelerator takes.
pub(crate) async fn spec_form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let (one, tag) = read(&context, &wanted.id).await?;
    if !items(&one["devices"]).is_empty() {
        let text = "it holds devices now; detach it first, and then change what it takes";
        return Err(Problem::new(409, text));
    }
    let written = Written::of(&one["acc_specs"]);
    Ok(page_of_spec(&context, (&one, &tag), &written, &html! {}, None))
}

fn page_of_spec(
    context: &Context,
    (one, tag): (&Value, &str),
    written: &Written,
    found: &Markup,
    refused: Option<&Problem>,
) -> Response {
    let message = refused.map(|problem| problem.message.as_str());
    let content = html! {
        (crumbs(one, "change"))
        h1 { "Change what " (text(&one["name"])) " takes" }
        p.lead { "Now it takes " (text(&one["takes"])) "." }
        (found)
        form.stack method="post" action="accelerator-spec" {
            (form_token(context))
            input type="hidden" name="id" value=(text(&one["uuid"]));
            input type="hidden" name="tag" value=(tag);
            (written.fields(message))
            div {
                button.plain type="submit" name="step" value="check" { "Check" }
                " " button type="submit" name="step" value="save" { "Save" }
                " " a href=(page_of(text(&one["uuid"]))) { "Cancel" }
            }
        }
    };
    Page { title: "Change an accelerator", place: "accelerators", live: None, content }
        .show_with(refused, context)
}

/// Checks or saves what an accelerator takes. Keys of its spec that the form does not have stay.
pub(crate) async fn spec(context: Context, fields: Fields) -> Result<Response, Problem> {
    let id = fields.get("id");
    let (one, tag) = read(&context, id).await?;
    let seen = fields.get("tag");
    let written = Written::read(&fields, Written::of(&one["acc_specs"]).others);
    let done = match written.spec() {
        Ok((spec, _)) if fields.get("step") == "save" => {
            put_spec(&context, id, &spec, seen).await.map(|_| None)
        }
        Ok((_, read)) => Ok(Some(read)),
        Err(problem) => Err(problem),
    };
    // What was seen, or for a form without that, what it is now.
    let shown = if seen.is_empty() { tag.as_str() } else { seen };
    Ok(match done {
        Ok(None) => go(&page_of(id)),
        Ok(Some(read)) => page_of_spec(&context, (&one, shown), &written, &taking(&read, &html! {}), None),
        Err(problem) => {
            let (one, tag) = read(&context, id).await?;
            if problem.status == 409 && shown != tag {
                let text = "somebody has changed what it takes since you opened this form";
                let changed = Problem { message: text.to_owned(), ..problem };
                let found =
                    changed.alert("Nothing was changed by you. Look at what it takes now, and save again.");
                let written = Written::read(&fields, Written::of(&one["acc_specs"]).others);
                return Ok(page_of_spec(&context, (&one, &tag), &written, &found, Some(&changed)));
            }
            let found = refusal(&problem, all(), "Nothing was changed. Correct it, and save again.");
            page_of_spec(&context, (&one, shown), &written, &found, Some(&problem))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_and_policy_of_the_form_is_one_of_the_api() {
        for (key, choices) in [("device_type", TYPES), ("numa_policy", POLICIES)] {
            for (value, _) in choices.iter().filter(|(value, _)| !value.is_empty()) {
                AccSpec::read(&json!({ key: value })).unwrap();
            }
        }
    }

    #[test]
    fn a_spec_stays_the_same_in_the_form() {
        for spec in [
            json!({}),
            json!({ "device_type": "GPU", "num": 2, "vendor_id": "10de", "numa_node": 1, "remote": 1, "mine": [1] }),
            json!({ "mdev_type": "nvidia-231", "acc_capability": { "ipsec": { "aes": 1 } } }),
        ] {
            assert_eq!(Written::of(&spec).spec().unwrap().0, spec);
        }
        let wrong = Written::of(&json!({ "vendor_id": "10de0" })).spec().unwrap_err();
        assert!(NARROWING[0].is_refused_by(&wrong.message), "{}", wrong.message);
    }
}
