//! The frame of every page: head, navigation, and where a page says what went wrong.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use hotslot_model::event::EventKind;
use maud::{DOCTYPE, Markup, html};

use crate::context::{Context, Who};
use crate::parts::visible;
use crate::problem::Problem;

/// What a browser may load for a page: only what the service itself serves.
const CSP: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                   form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The pages of the navigation: path, name, and the rule that a caller needs.
pub(crate) const NAVIGATION: [(&str, &str, &str); 8] = [
    ("hosts", "Hosts", "os_compute_api:os-hypervisors:list-detail"),
    ("servers", "Servers", "os_compute_api:servers:detail"),
    ("accelerators", "Accelerators", "hotslot:accelerator:list"),
    ("rules", "Rules", "hotslot:rule:list"),
    ("quotas", "Quotas", "os_compute_api:os-quota-sets:detail"),
    ("webhooks", "Webhooks", "hotslot:webhook:list"),
    ("drift", "Drift", "hotslot:drift:list"),
    ("events", "Events", "hotslot:event:list"),
];

/// A page: its title, where it is in the navigation, and its content.
pub(crate) struct Page<'a> {
    pub(crate) title: &'a str,
    /// The path of the entry of the navigation that it belongs to.
    pub(crate) place: &'a str,
    /// The query of the events on which the page is read again; `None` for a page that does not change.
    pub(crate) live: Option<String>,
    pub(crate) content: Markup,
}

impl Page<'_> {
    /// Returns the page as the caller of a context sees it.
    pub(crate) fn show(self, context: &Context) -> Response {
        self.show_as(200, context)
    }

    /// Returns the page with the status code of the problem that it tells of, if there is one.
    pub(crate) fn show_with(self, problem: Option<&Problem>, context: &Context) -> Response {
        self.show_as(problem.map_or(200, |problem| problem.status), context)
    }

    /// Returns the page with a status code.
    pub(crate) fn show_as(self, status: u16, context: &Context) -> Response {
        let live = self.live.as_deref().filter(|_| context.may("hotslot:event:list"));
        let navigation = navigation(context, self.place);
        respond(
            StatusCode::from_u16(status).unwrap_or_default(),
            frame(self.title, navigation, live, &self.content),
        )
    }
}

fn navigation(context: &Context, place: &str) -> Markup {
    html! {
        nav aria-label="Pages" {
            @for (path, name, _) in NAVIGATION.iter().filter(|(_, _, rule)| context.may(rule)) {
                a href=(path) aria-current=[(*path == place).then_some("page")] { (name) }
            }
        }
        @if let Some(who) = &context.who { (account(context, who)) }
    }
}

fn account(context: &Context, who: &Who) -> Markup {
    html! {
        div.account {
            span #live .live role="status" {}
            a href="account" title="Who you are, and what you may do" { (who.name) }
            @if who.signed_in {
                form method="post" action="sign-out" {
                    (form_token(context))
                    button.link type="submit" { "Sign out" }
                }
            }
        }
    }
}

/// Returns the hidden field that each form has.
pub(crate) fn form_token(context: &Context) -> Markup {
    html! { input type="hidden" name="form_token" value=(context.form_token()); }
}

fn frame(title: &str, navigation: Markup, live: Option<&str>, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="same-origin";
                title { (title) " · hotslot" }
                link rel="icon" href="icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="page.css";
                script src="page.js" defer {}
            }
            body data-live=[live] data-kinds=[live.map(|_| kinds())] {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="home" { span.mark aria-hidden="true" {} "hotslot" }
                    (navigation)
                }
                main #main tabindex="-1" { (content) }
                div #said .unseen role="status" aria-live="polite" {}
            }
        }
    }
}

/// Returns the kinds of events, for the script.
fn kinds() -> String {
    EventKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" ")
}

/// Returns the page that says what went wrong, with the navigation of the caller where one is known.
pub fn problem_page(problem: &Problem, context: Option<&Context>) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content = html! {
        h1 { (problem.title()) }
        p.refusal role="alert" { (problem.message) }
        p {
            a href="home" { "Go to the first page" }
            @if context.is_none_or(|context| context.who.is_none()) { ", or " a href="sign-in" { "sign in" } }
            "."
        }
    };
    let navigation =
        context.map_or_else(|| html! { nav aria-label="Pages" {} }, |context| navigation(context, ""));
    respond(status, frame(problem.title(), navigation, None, &content))
}

/// Returns a page that goes on to another one. A browser that follows a link of another site sends no cookie of hotslot;
/// from this page it does.
pub fn bounce_page(to: &str) -> Response {
    let content = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content={ "0; url=" (to) };
                title { "hotslot" }
                link rel="stylesheet" href="page.css";
            }
            body { main #main { p { a href=(to) { "Go on to hotslot" } } } }
        }
    };
    respond(StatusCode::OK, content)
}

/// Returns a document with the headers that all pages have.
pub(crate) fn respond(status: StatusCode, document: Markup) -> Response {
    let mut response = (status, Html(visible(document.into_string()))).into_response();
    secure(&mut response);
    response
}

/// Adds the headers that limit what a browser does with a response.
pub(crate) fn secure(response: &mut Response) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        // With `no-referrer`, browsers would send `Origin: null` with forms.
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

/// Sends the browser to another page, relative to the folder of the pages.
pub(crate) fn go(to: &str) -> Response {
    let place = HeaderValue::from_str(to).unwrap_or(HeaderValue::from_static("home"));
    (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response()
}
