//! The page of hotslot: HTML for browsers, made on the server from the answers of the routes.
//!
//! Each page lies in one folder, `/ui/`, and links relatively, so that a proxy may serve the folder under a prefix. The
//! crate of the routes serves it: it decides who calls, and puts a [`Context`] into each request.

mod accelerator;
mod accelerator_attach;
mod accelerator_detach;
mod accelerator_parts;
mod accelerator_request;
mod accelerators;
mod api;
mod attach;
mod context;
mod detach;
mod device_profile;
mod drift;
mod events;
mod field;
mod function;
mod guest_tree;
mod guests;
mod hosts;
mod layout;
mod parts;
mod problem;
mod quotas;
mod remedy;
mod rules;
mod servers;
mod session;
mod sign_in;
mod steps;
mod table;
mod tree;
mod verdict;
mod vf_settings;
mod webhooks;

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

pub use self::api::{Api, UNRESERVED};
pub use self::context::{Context, Credential, May, SignIn, SignedIn, Ways, Who};
pub use self::layout::{bounce_page, problem_page};
pub use self::problem::Problem;
pub use self::remedy::by_pages;
pub use self::session::{Cookie, Place, Sessions};

/// Returns the routes of the page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/ui", get(folder))
        .route("/ui/", get(folder_itself))
        .route("/ui/page.css", get(|| asset("text/css; charset=utf-8", include_str!("../assets/page.css"))))
        .route(
            "/ui/page.js",
            get(|| asset("text/javascript; charset=utf-8", include_str!("../assets/page.js"))),
        )
        .route("/ui/icon.svg", get(|| asset("image/svg+xml", include_str!("../assets/icon.svg"))))
        .route("/ui/sign-in", get(sign_in::form).post(sign_in::sign_in))
        .route("/ui/sign-out", axum::routing::post(sign_in::sign_out))
        .route("/ui/home", get(sign_in::home))
        .route("/ui/account", get(sign_in::account))
        .route("/ui/hosts", get(hosts::list))
        .route("/ui/host", get(hosts::show))
        .route("/ui/function", get(function::show))
        .route("/ui/servers", get(servers::list))
        .route("/ui/server", get(servers::show))
        .route("/ui/attach", get(attach::form).post(attach::attach))
        .route("/ui/detach", get(detach::form).post(detach::detach))
        .route("/ui/accelerators", get(accelerators::show))
        .route("/ui/accelerator", get(accelerator::show))
        .route("/ui/accelerator-new", get(accelerator::new).post(accelerator::create))
        .route("/ui/accelerator-spec", get(accelerator::spec_form).post(accelerator::spec))
        .route("/ui/accelerator-attach", get(accelerator_attach::form).post(accelerator_attach::attach))
        .route("/ui/accelerator-detach", get(accelerator_detach::form).post(accelerator_detach::detach))
        .route("/ui/accelerator-request", get(accelerator_request::show).post(accelerator_request::release))
        .route("/ui/device-profile", get(device_profile::form).post(device_profile::create))
        .route("/ui/device-profile-delete", get(device_profile::delete_form).post(device_profile::delete))
        .route("/ui/rules", get(rules::list))
        .route("/ui/rule", get(rules::form).post(rules::save))
        .route("/ui/quotas", get(quotas::show).post(quotas::set))
        .route("/ui/webhooks", get(webhooks::show).post(webhooks::redeliver))
        .route("/ui/drift", get(drift::show).post(drift::repair))
        .route("/ui/events", get(events::show))
        .route("/ui/live", get(events::live))
        .route("/ui/{*page}", get(nowhere))
}

/// Sends a browser into the folder of the pages.
async fn folder() -> Response {
    layout::go("ui/home")
}

async fn folder_itself() -> Response {
    layout::go("home")
}

async fn nowhere() -> Problem {
    Problem::new(404, "there is no such page; the navigation has all of them")
}

async fn asset(kind: &'static str, content: &'static str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], content).into_response();
    layout::secure(&mut response);
    response
}
