//! Attaching an accelerator to a server: a form, the verdict of a dry run, and the attach itself.

use std::collections::BTreeSet;

use axum::extract::Query;
use axum::http::Method;
use axum::response::Response;
use hotslot_model::accelerator::AccSpec;
use maud::{Markup, html};
use serde_json::{Value, json};

use crate::accelerator::{Wanted, crumbs, path, read};
use crate::accelerator_parts::page_of;
use crate::api::part;
use crate::context::{Context, Fields};
use crate::layout::{Page, form_token, go};
use crate::parts::{items, server_page, text};
use crate::problem::Problem;
use crate::verdict::verdict;

/// The maximum number of servers to choose from.
const MOST: usize = 1000;

/// What the person asks for.
#[derive(Default)]
struct Asked<'a> {
    server: &'a str,
    any_device: bool,
}

/// Returns the form.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let one = context.api.get(&path(&wanted.id)?).await?;
    page(&context, &one, &Asked::default(), &html! {}, 200).await
}

/// Checks or does what the form asks for.
pub(crate) async fn attach(context: Context, fields: Fields) -> Result<Response, Problem> {
    let id = fields.get("id");
    let asked = Asked { server: fields.get("server"), any_device: fields.is_set("any_device") };
    if fields.get("step") != "attach" {
        let (one, tag) = read(&context, id).await?;
        return checked(&context, (&one, &tag), &asked, html! {}, 200).await;
    }
    let seen = fields.get("tag");
    let body = json!({ "instance_uuid": asked.server, "any_device": asked.any_device });
    let api = context.api.clone().unless_changed(seen);
    let problem = match api.send(Method::PUT, &path(id)?, Some(&body)).await {
        Ok(made) => return Ok(go(&place(id, asked.server, &made))),
        Err(problem) => problem,
    };
    let (one, tag) = read(&context, id).await?;
    // The form was sent twice, and the first one has done it, or is doing it.
    let is_there =
        one["instance_uuid"] == asked.server && ["attached", "attaching"].contains(&text(&one["status"]));
    if problem.status == 409 && is_there {
        return Ok(go(&place(id, asked.server, &one)));
    }
    if problem.status == 409 && !seen.is_empty() && seen != tag {
        let text = "somebody has changed what the accelerator takes since this was checked";
        let changed = Problem { message: text.to_owned(), ..problem };
        let alert = changed.alert("Nothing was attached. It was checked again, for what it takes now.");
        return checked(&context, (&one, &tag), &asked, alert, changed.status).await;
    }
    let found = problem.alert("Nothing was attached, or it was undone.");
    page(&context, &one, &asked, &found, problem.status).await
}

/// Returns the form with the verdict of a dry run. `before` is what is said before that.
async fn checked(
    context: &Context,
    (one, tag): (&Value, &str),
    asked: &Asked<'_>,
    before: Markup,
    status: u16,
) -> Result<Response, Problem> {
    let id = text(&one["uuid"]);
    let then = then_attach(context, id, tag, asked);
    let is_mediated = ["mdev_type", "vgpu_type"].iter().any(|key| one["acc_specs"][key].is_string());
    let found = if is_mediated {
        Ok(html! {
            section #verdict .verdict aria-labelledby="verdict-title" {
                h2 #verdict-title { "This cannot be checked before" }
                p { "It takes " (text(&one["takes"])) ". Whether one can be made is known when it is made. It takes all that it asks for, or nothing." }
                (then)
            }
        })
    } else {
        let body = json!({ "instance_uuid": asked.server, "any_device": asked.any_device, "dry_run": true });
        let run = context.api.clone().unless_changed(tag).send(Method::PUT, &path(id)?, Some(&body)).await;
        run.map(|run| verdict(&run["dry_run"], &then))
    };
    let status = found.as_ref().err().map_or(status, |problem| problem.status);
    let found = found.unwrap_or_else(|problem| {
        let is_narrow = problem.status == 409 && takes_cards_only(one) && !asked.any_device;
        problem.alert(if is_narrow {
            "Nothing was attached. It takes only FPGA, QAT, CRYPTO and AICHIP devices: to let it take any other \
             assignable device, mark the box below, and check again."
        } else {
            "Nothing was attached."
        })
    });
    page(context, one, asked, &html! { (before) (found) }, status).await
}

/// Whether an accelerator takes accelerator cards alone, because nothing says which devices it takes.
fn takes_cards_only(one: &Value) -> bool {
    let spec = AccSpec::from_stored(&one["acc_specs"]);
    one["pinned"] != true && spec.is_ok_and(|spec| !spec.names_devices(&BTreeSet::new()))
}

/// Returns the page that shows what an attach has made: that of the server, which has its steps, or that of the
/// accelerator, when its devices are no attachments.
fn place(id: &str, server: &str, made: &Value) -> String {
    let ids: Vec<_> =
        items(&made["devices"]).iter().filter_map(|one| one["attachment_id"].as_str()).map(part).collect();
    if ids.is_empty() {
        return format!("{}&done=attached", page_of(id));
    }
    format!("{}&of={}&done=attached", server_page(server), ids.join(","))
}

fn then_attach(context: &Context, id: &str, tag: &str, asked: &Asked<'_>) -> Markup {
    html! {
        form method="post" action="accelerator-attach" data-progress="progress" data-steps={ (server_page(asked.server)) "&done=attached" } {
            (form_token(context))
            input type="hidden" name="id" value=(id);
            input type="hidden" name="tag" value=(tag);
            input type="hidden" name="server" value=(asked.server);
            @if asked.any_device { input type="hidden" name="any_device" value="1"; }
            button type="submit" name="step" value="attach" { "Attach" }
            ol #progress .steps hidden aria-live="polite" aria-label="Progress" {}
        }
    }
}

async fn page(
    context: &Context,
    one: &Value,
    asked: &Asked<'_>,
    found: &Markup,
    status: u16,
) -> Result<Response, Problem> {
    let (servers, more) = context.api.list("/v2.1/servers/detail", "servers", MOST).await?;
    let content = html! {
        (crumbs(one, "attach"))
        h1 { "Attach " (text(&one["name"])) " to a server" }
        p.lead { "It takes " (text(&one["takes"])) " of the host of the server." }
        (found)
        @if servers.is_empty() {
            p.empty { "There is no server that you may use." }
        } @else {
            form.stack method="post" action="accelerator-attach" {
                (form_token(context))
                input type="hidden" name="id" value=(text(&one["uuid"]));
                label { span { "Server" } select name="server" required {
                    @for server in &servers {
                        @let id = text(&server["id"]);
                        option value=(id) selected[id == asked.server] {
                            (text(&server["name"]))
                            @if server["status"] != "ACTIVE" { " (does not run: it gets the devices at its next start)" }
                        }
                    }
                } }
                @if more { p.help { "Only the first " (MOST) " servers are shown." } }
                @if takes_cards_only(one) {
                    label.check { input type="checkbox" name="any_device" value="1" checked[asked.any_device]; span { "It may also take a GPU, a NIC, a disk or any other assignable device" } }
                }
                div {
                    button type="submit" name="step" value="check" { "Check" }
                    " " a href=(page_of(text(&one["uuid"]))) { "Cancel" }
                }
                p.help { "Nothing is changed yet: the check shows which devices would be taken, and what speaks against it." }
            }
        }
    };
    let live = Some(format!("server={}", part(asked.server))).filter(|_| !asked.server.is_empty());
    Ok(Page { title: "Attach an accelerator", place: "accelerators", live, content }.show_as(status, context))
}
