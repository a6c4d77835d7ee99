//! Signing in and out, and who the caller is.

use axum::extract::Query;
use axum::http::HeaderValue;
use axum::response::Response;
use hotslot_model::identity::login::{LoginScope, Method, Reference, login};
use maud::{Markup, html};
use serde::Deserialize;

use crate::context::{Context, Credential, Fields};
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
    shown(&context, &wanted.next, None, None)
}

fn shown(context: &Context, next: &str, refused: Option<&Problem>, fields: Option<&Fields>) -> Response {
    let content = html! {
        div.narrow {
            h1 { "Sign in" }
            @if let Some(problem) = refused { p.refusal role="alert" { (problem.message) } }
            @if context.ways.password {
                (by_password(context, next, fields))
                details.other open[fields.is_some_and(|fields| !is_password(fields))] {
                    summary { "Sign in with a token" }
                    (by_token(context, next))
                }
            }
            @else if context.ways.token { (by_token(context, next)) }
            @else {
                p {
                    "This service takes no tokens. On the machine of the service, use its unix socket with the command \
                     line; to use this page, configure "
                    code { "[identity] tokens" } " and create one with " code { "hotslot token create NAME --role admin" } "."
                }
            }
        }
    };
    let mut response = Page { title: "Sign in", place: "", live: None, content }.show_with(refused, context);
    if let Some(problem) = refused {
        // The audit records it.
        response.extensions_mut().insert(problem.clone());
    }
    response
}

/// The domain that Keystone makes at its installation.
const DEFAULT_DOMAIN: &str = "Default";

/// Returns the form for a name and a password. After a refusal it has what was written, without the password.
fn by_password(context: &Context, next: &str, fields: Option<&Fields>) -> Markup {
    let was = |name: &str| fields.map_or("", |fields| fields.get(name));
    let domain =
        |name: &str| Some(was(name)).filter(|was| !was.is_empty()).unwrap_or(DEFAULT_DOMAIN).to_owned();
    let (domain, project_domain) = (domain("domain"), domain("project_domain"));
    let is_other = [&domain, &project_domain].iter().any(|name| *name != DEFAULT_DOMAIN);
    let is_system = fields.is_some_and(|fields| fields.is_set("system"));
    html! {
        form.stack method="post" action="sign-in" {
            (form_token(context))
            input type="hidden" name="next" value=(next_page(next));
            label { span { "User name in Keystone" } input name="user" value=(was("user")) required autocomplete="username" spellcheck="false" autofocus; }
            label { span { "Password" } input type="password" name="password" required autocomplete="current-password"; }
            label { span { "Project" } input name="project" value=(was("project")) autocomplete="off" spellcheck="false" aria-describedby="project-help"; }
            p.help #project-help { "Leave it empty for your default project." }
            details open[is_other || is_system] {
                summary { "Domains, and the whole system" }
                label { span { "Domain of the user" } input name="domain" value=(domain) autocomplete="off" spellcheck="false"; }
                label { span { "Domain of the project" } input name="project_domain" value=(project_domain) autocomplete="off" spellcheck="false"; }
                label.check { input type="checkbox" name="system" value="1" checked[is_system]; span { "For the whole system instead of a project" } }
            }
            button type="submit" { "Sign in" }
        }
    }
}

fn by_token(context: &Context, next: &str) -> Markup {
    html! {
        // A link may sign a person in only where that does no harm, and nobody out.
        form.stack method="post" action="sign-in" data-fill=[(!context.signed_in).then_some(if context.ways.simulated { "send" } else { "wait" })] {
            (form_token(context))
            input type="hidden" name="next" value=(next_page(next));
            label {
                span { "Token" }
                input type="password" name="token" required autocomplete="off" spellcheck="false" autofocus[!context.ways.password] aria-describedby="token-help";
            }
            p.help #token-help { "An administrator makes one with " code { "hotslot token create NAME --role ROLE" } ", or Keystone with " code { "openstack token issue" } "." }
            button type="submit" { "Sign in" }
        }
    }
}

/// Whether the form for a password was sent.
fn is_password(fields: &Fields) -> bool {
    fields.is_set("user")
}

/// Reads what a form shows, for the routes to decide whether it is valid.
fn credential(fields: &Fields) -> Result<Credential, Problem> {
    if !is_password(fields) {
        let token = HeaderValue::from_str(fields.get("token")).map(Credential::Token);
        let wrong = "the token has characters that no token has; copy it again";
        return token.map_err(|_| Problem::new(401, wrong));
    }
    let domain =
        |name: &str| Some(fields.get(name)).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_DOMAIN);
    let user = Reference::named(fields.get("user"), domain("domain"));
    let scope = match fields.get("project") {
        _ if fields.is_set("system") => LoginScope::System,
        "" => LoginScope::Default,
        project => LoginScope::Project(Reference::named(project, domain("project_domain"))),
    };
    Ok(Credential::Login(login(&Method::Password(&user, fields.written("password")), &scope)))
}

/// Signs in with the token or the password of the form.
pub(crate) async fn sign_in(context: Context, fields: Fields) -> Response {
    let next = next_page(fields.get("next")).to_owned();
    let signed_in = match credential(&fields) {
        Ok(credential) => (context.sign_in)(credential).await,
        Err(problem) => Err(problem),
    };
    let signed_in = match signed_in {
        Ok(signed_in) => signed_in,
        Err(problem) => return shown(&context, &next, Some(&problem), Some(&fields)),
    };
    // A cookie from before the sign-in, which somebody else might know, gets no rights, and loses those that it had.
    context.sessions.end(&context.cookie);
    let cookie = context.cookie.another();
    context.sessions.begin(&cookie, context.place, signed_in.caller, signed_in.token);
    let mut response = go(&next);
    let (name, value) = cookie.header(context.secure);
    response.headers_mut().insert(name, value);
    response.extensions_mut().extend(signed_in.for_audit);
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

/// Returns how tokens are made and revoked: by commands on the machine of the service, which write its file.
fn tokens() -> Markup {
    html! {
        h2 { "Tokens" }
        p { "The tokens of hotslot are in a file of the service's machine. These commands list, make and revoke them there:" }
        ul {
            li { code { "hotslot token list" } " shows the names, roles, projects and expiry of all tokens." }
            li { code { "hotslot token create NAME --role ROLE" } " prints a new token once. The file has only its hash." }
            li { code { "hotslot token revoke NAME" } " ends a token, and the sessions that were begun with it." }
        }
        p { a href="events?kind=token" { "Changes of the tokens" } }
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
        @if context.ways.token && context.may("hotslot:event:list") { (tokens()) }
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
