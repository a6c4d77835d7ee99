//! Device profiles: a new one, and removing one.

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::uuid_part;
use crate::context::{Context, Fields};
use crate::field::written_json;
use crate::layout::{Page, form_token, go};
use crate::parts::{items, text};
use crate::problem::Problem;

const LIST: &str = "/accelerator/v2/device_profiles";

/// The groups with which the form begins.
const EXAMPLE: &str = r#"[{"resources:GPU": "1"}]"#;

/// Returns in words what a group asks for.
pub(crate) fn group_words(group: &Value) -> String {
    let keys = group.as_object().into_iter().flatten();
    let words = keys.map(|(key, value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match key.split_once(':') {
            Some(("resources", class)) => format!("{value} of {class}"),
            Some(("trait", name)) if value == "forbidden" => format!("without {name}"),
            Some(("trait", name)) => format!("with {name}"),
            _ => format!("{key} {value}"),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Returns the form of a new profile.
pub(crate) async fn form(context: Context) -> Response {
    page(&context, "", "", EXAMPLE, None)
}

fn page(
    context: &Context,
    name: &str,
    description: &str,
    groups: &str,
    refused: Option<&Problem>,
) -> Response {
    let content = html! {
        p.crumbs { a href="accelerators" { "Accelerators" } " / new device profile" }
        h1 { "Create a device profile" }
        p.lead { "A device profile names devices for accelerator requests. A flavor of Nova can name it." }
        @if let Some(problem) = refused { (problem.alert("Nothing was created. Correct it, and try again.")) }
        form.stack method="post" action="device-profile" data-progress {
            (form_token(context))
            label { span { "Name" } input name="name" value=(name) required maxlength="255" autocomplete="off" spellcheck="false"; }
            label { span { "Description" } input name="description" value=(description) maxlength="255" autocomplete="off"; }
            label { span { "Groups, as JSON" } textarea name="groups" rows="4" spellcheck="false" aria-describedby="groups-help" { (groups) } }
            p.help #groups-help {
                "Each group asks for devices: " code { "resources:GPU" } " with a number, where the class is FPGA, GPU, VGPU, PGPU \
                 or begins with CUSTOM_; " code { "trait:CUSTOM_…" } " is required or forbidden."
            }
            div {
                button type="submit" { "Create" }
                " " a href="accelerators" { "Cancel" }
            }
        }
    };
    Page { title: "Create a device profile", place: "accelerators", live: None, content }
        .show_with(refused, context)
}

/// Creates a profile.
pub(crate) async fn create(context: Context, fields: Fields) -> Response {
    let (name, description, written) = (fields.get("name"), fields.get("description"), fields.get("groups"));
    let made = match written_json("the groups are not valid JSON", written) {
        Err(problem) => Err(problem),
        Ok(groups) => {
            let mut profile = json!({ "name": name, "groups": groups });
            if !description.is_empty() {
                profile["description"] = description.into();
            }
            match context.api.send(Method::POST, LIST, Some(&json!([profile]))).await {
                // The form was sent twice, and the first one has made it.
                Err(problem) if problem.status == 409 && is_there(&context, &profile).await => {
                    Ok(Value::Null)
                }
                made => made,
            }
        }
    };
    match made {
        Ok(_) => go("accelerators"),
        Err(problem) => page(&context, name, description, written, Some(&problem)),
    }
}

/// Whether there is a profile with this name, description and these groups.
async fn is_there(context: &Context, profile: &Value) -> bool {
    let words = |of: &Value| items(&of["groups"]).iter().map(group_words).collect::<Vec<_>>();
    let found = context.api.get(LIST).await.unwrap_or_default();
    items(&found["device_profiles"]).iter().any(|one| {
        one["name"] == profile["name"]
            && text(&one["description"]) == text(&profile["description"])
            && words(one) == words(profile)
    })
}

/// Which profile.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    id: String,
}

/// Returns the form that removes a profile.
pub(crate) async fn delete_form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    delete_page(&context, &wanted.id, None).await
}

async fn delete_page(context: &Context, id: &str, refused: Option<&Problem>) -> Result<Response, Problem> {
    let profile = context.api.get(&format!("{LIST}/{}", uuid_part(id)?)).await?["device_profile"].take();
    let content = html! {
        p.crumbs { a href="accelerators" { "Accelerators" } " / delete a device profile" }
        h1 { "Delete the device profile " (text(&profile["name"])) }
        @if let Some(problem) = refused { (problem.alert("")) }
        (described(&profile))
        h2 { "What happens" }
        p { "No server loses a device. Accelerator requests cannot be made with this profile any more. A profile with which a request was made cannot be deleted." }
        form method="post" action="device-profile-delete" {
            (form_token(context))
            input type="hidden" name="id" value=(text(&profile["uuid"]));
            button.danger type="submit" { "Delete" }
            " " a href="accelerators" { "Cancel" }
        }
    };
    Ok(Page { title: "Delete a device profile", place: "accelerators", live: None, content }
        .show_with(refused, context))
}

fn described(profile: &Value) -> Markup {
    html! {
        dl.facts {
            dt { "Asks for" } dd { @for group in items(&profile["groups"]) { div { (group_words(group)) } } }
            @if let Some(description) = profile["description"].as_str() { dt { "Description" } dd { (description) } }
        }
    }
}

/// Removes a profile.
pub(crate) async fn delete(context: Context, fields: Fields) -> Result<Response, Problem> {
    let id = fields.get("id");
    match context.api.send(Method::DELETE, &format!("{LIST}/{}", uuid_part(id)?), None).await {
        Ok(_) => Ok(go("accelerators")),
        Err(problem) => delete_page(&context, id, Some(&problem)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_in_words() {
        for (group, words) in [
            (json!({ "resources:GPU": "1" }), "1 of GPU"),
            (
                json!({ "resources:CUSTOM_QAT": 2, "trait:CUSTOM_A": "required", "trait:CUSTOM_B": "forbidden" }),
                "2 of CUSTOM_QAT, with CUSTOM_A, without CUSTOM_B",
            ),
            (json!({ "accel:bitstream": "x" }), "accel:bitstream x"),
        ] {
            assert_eq!(group_words(&group), words);
        }
    }
}
