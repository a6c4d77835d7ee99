//! What went wrong, as a page says it.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

/// A refused or failed request: its status code, and what to tell the person.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status code of HTTP.
    pub status: u16,
    /// What is wrong and what to do next.
    pub message: String,
    /// Whether a route has refused it, and recorded that.
    pub is_recorded: bool,
}

impl Problem {
    /// Makes a problem of a status code and a message.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), is_recorded: false }
    }

    /// Returns the problem as a response without a body. A layer of the page makes HTML of it.
    pub(crate) fn bare(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        response.extensions_mut().insert(self);
        response
    }

    /// Returns the problem as a part of a page: what happened, the message, and more that is to be said about it.
    pub(crate) fn alert(&self, more: &str) -> Markup {
        html! {
            div.refusal role="alert" {
                h2 { (self.title()) }
                p { (self.message) }
                @if !more.is_empty() { p { (more) } }
            }
        }
    }

    /// Returns what happened, in a few words.
    pub(crate) fn title(&self) -> &'static str {
        match self.status {
            400 | 413 | 415 | 422 => "This request is not valid",
            401 => "Sign in first",
            403 => "You may not do this",
            404 | 410 => "Not found",
            408 | 504 => "This took too long",
            409 => "This is not possible now",
            421 => "Another address is needed",
            429 => "Too many requests",
            501 => "The host cannot do this",
            502 => "The host refused",
            503 => "Not available at present",
            _ => "Something went wrong",
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        self.bare()
    }
}
