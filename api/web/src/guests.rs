//! The guests of a host, by whose names a page says who has a function.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::Value;

use crate::context::Context;
use crate::parts::{items, server_link, text};

/// The names of guests, by their UUIDs.
pub(crate) struct Guests<'a> {
    context: &'a Context,
    names: BTreeMap<&'a str, &'a str>,
}

impl<'a> Guests<'a> {
    /// Takes the guests of an answer about a host. With any other value it has none, and their UUIDs are shown.
    pub(crate) fn of(context: &'a Context, host: &'a Value) -> Self {
        let servers = items(&host["servers"]).iter();
        Self { context, names: servers.map(|one| (text(&one["uuid"]), text(&one["name"]))).collect() }
    }

    /// Returns the name of the guest that has a function.
    pub(crate) fn name_of(&self, function: &Value) -> Option<&'a str> {
        self.names.get(server_of(function)?).copied()
    }

    /// Returns the server that has a device.
    pub(crate) fn server(&self, device: &Value) -> Markup {
        html! {
            @if let Some(server) = server_of(device) {
                (server_link(self.context, server, &html! { (self.name_of(device).unwrap_or(server)) }))
            }
        }
    }

    /// Returns who has a function, with a link where it is a server.
    pub(crate) fn holder(&self, function: &Value) -> Markup {
        html! {
            @if let Some(owner) = function["owner"].as_str() {
                span.holder {
                    @if let Some(server) = server_of(function) {
                        (server_link(self.context, server, &html! { (self.name_of(function).unwrap_or(owner)) }))
                    } @else { (owner) }
                }
            }
        }
    }
}

fn server_of(function: &Value) -> Option<&str> {
    function["instance_uuid"].as_str().or_else(|| function["foreign"]["uuid"].as_str())
}
