//! Signing in and out, and who the caller is.

use axum::extract::Query;
use axum::http::HeaderValue;
use axum::response::Response;
use maud::{Markup, html};
use serde::Deserialize;

use crate::context::{Context, Fields};
use crate::layout::{NAVIGATION, Page, form_token, go};
use crate::problem::Problem;

/// The longest address of a page to which a sign-in returns.
const LONGEST: usize = 1024;

#[derive(Deserialize)]
pub(crate) struct Wanted {
    #[serde(default)]
    next: String,
}

/// Returns the page to return to after the sign-in: a page of hotslot only, never another site.
fn next_page(wanted: &str) -> &str {
    let is_page = wanted.len() <= LONGEST
        && wanted.starts_with(|first: char| first.is_ascii_lowercase())
        && wanted.bytes().all(|byte| byte.is_ascii_graphic())
        && !wanted.split('?').next().unwrap_or_default().contains(['/', ':', '\\', '.'])
        && !wanted.starts_with("sign-");
    if is_page { wanted } else { "home" }
}

/// Returns the form to sign in.
pub(crate) async fn form(context: Context, Query(wanted): Query<Wanted>) -> Response {
    shown(&context, &wanted.next, None)
}

fn shown(context: &Context, next: &str, refused: Option<&Problem>) -> Response {
    let content = html! {
        div.narrow {
            h1 { "Sign in" }
            @if let Some(problem) = refused { p.refusal role="alert" { (problem.message) } }
            @if context.ways.token { (by_token(context, next)) }
            @else {
                p {
                    "This service takes no tokens. On the machine of the service, use its unix socket with the command \
                     line; to use this page, configure "
                    code { "[identity] tokens" } " and create one with " code { "hotslot token create NAME --role admin" } "."
                }
            }
        }
    };
    let mut response = Page { title: "Sign in", place: "", live: None, content }
        .show_as(refused.map_or(200, |problem| problem.status), context);
    if let Some(problem) = refused {
        // The audit records it.
        response.extensions_mut().insert(problem.clone());
    }
    response
}

fn by_token(context: &Context, next: &str) -> Markup {
    html! {
        // A link may sign a person in only where that does no harm, and nobody out.
        form.stack method="post" action="sign-in" data-fill=[(!context.signed_in).then_some(if context.ways.simulated { "send" } else { "wait" })] {
            (form_token(context))
            input type="hidden" name="next" value=(next_page(next));
            label {
                span { "Token" }
                input type="password" name="token" required autocomplete="current-password" spellcheck="false" autofocus aria-describedby="token-help";
            }
            p.help #token-help { "An administrator makes one with " code { "hotslot token create NAME --role ROLE" } ", or Keystone with " code { "openstack token issue" } "." }
            button type="submit" { "Sign in" }
        }
    }
}

/// Signs in with the token of the form. The routes decide whether it is valid.
pub(crate) async fn sign_in(context: Context, fields: Fields) -> Response {
    let next = next_page(fields.get("next")).to_owned();
    let Ok(token) = HeaderValue::from_str(fields.get("token")) else {
        let problem = Problem::new(401, "the token has characters that no token has; copy it again");
        return shown(&context, &next, Some(&problem));
    };
    let caller = match (context.sign_in)(token.clone()).await {
        Ok(caller) => caller,
        Err(problem) => return shown(&context, &next, Some(&problem)),
    };
    // A cookie from before the sign-in, which somebody else might know, gets no rights, and loses those that it had.
    context.sessions.end(&context.cookie);
    let cookie = context.cookie.another();
    context.sessions.begin(&cookie, context.place, caller, token);
    let mut response = go(&next);
    let (name, value) = cookie.header(context.secure);
    response.headers_mut().insert(name, value);
    response
}

/// Ends the session.
pub(crate) async fn sign_out(context: Context, _: Fields) -> Response {
    context.sessions.end(&context.cookie);
    go("sign-in")
}

/// Sends the caller to the page that they want, or to the first one that they may see.
pub(crate) async fn home(context: Context, Query(wanted): Query<Wanted>) -> Response {
    let first =
        NAVIGATION.iter().find(|(_, _, rule)| context.may(rule)).map_or("account", |(page, _, _)| *page);
    match next_page(&wanted.next) {
        "home" => go(first),
        next => go(next),
    }
}

/// Returns who the caller is.
pub(crate) async fn account(context: Context) -> Result<Response, Problem> {
    let who = context.who.clone().unwrap_or_default();
    let content = html! {
        h1 { "Who you are" }
        dl.facts {
            dt { "Name" } dd { (who.name) }
            dt { "Project" } dd { (who.project.as_deref().unwrap_or("none")) }
            dt { "Roles" } dd { @if who.roles.is_empty() { "none" } @for role in &who.roles { code { (role) } " " } }
        }
        @if !NAVIGATION.iter().any(|(_, _, rule)| context.may(rule)) {
            p.refusal { "None of your roles gives a right. Ask the administrator of this service for the role reader or member." }
        }
    };
    Ok(Page { title: "Who you are", place: "account", live: None, content }.show(&context))
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, next_page};

    #[test]
    fn a_sign_in_returns_to_pages_of_hotslot_only() {
        for page in ["hosts", "server?id=1", "function?host=a&address=0000%3A01%3A00.0"] {
            assert_eq!(next_page(page), page);
        }
        for other in [
            "",
            "//evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "../docs",
            "/docs",
            "a\nb",
            &"a".repeat(LONGEST + 1),
            "sign-out",
            "\\\\evil",
        ] {
            assert_eq!(next_page(other), "home", "{other}");
        }
    }
}
