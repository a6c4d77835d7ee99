//! The guests, by whose names a page says who has a function.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde_json::Value;

use crate::context::Context;
use crate::parts::{items, server_link, text};

/// The names of guests, by their UUIDs.
pub(crate) struct Guests<'a> {
    context: &'a Context,
    names: BTreeMap<String, String>,
}

/// The maximum number of guests whose names are read.
const MOST: usize = 10_000;

impl<'a> Guests<'a> {
    /// Takes the guests of an answer about a host. With any other value it has none, and their UUIDs are shown.
    pub(crate) fn of(context: &'a Context, host: &Value) -> Self {
        Self::named(context, items(&host["servers"]), "uuid")
    }

    /// Reads the servers of all hosts that the caller may use. Of any other, the UUID is shown.
    pub(crate) async fn all(context: &'a Context) -> Self {
        if !context.may("os_compute_api:servers:index") {
            return Self::named(context, &[], "id");
        }
        let servers = context.api.list("/v2.1/servers", "servers", MOST).await;
        Self::named(context, &servers.map(|(servers, _)| servers).unwrap_or_default(), "id")
    }

    fn named(context: &'a Context, servers: &[Value], id: &str) -> Self {
        let named = |one: &Value| (text(&one[id]).to_owned(), text(&one["name"]).to_owned());
        Self { context, names: servers.iter().map(named).collect() }
    }

    /// Returns the name of the guest that has a function.
    pub(crate) fn name_of(&self, function: &Value) -> Option<&str> {
        self.names.get(server_of(function)?).map(String::as_str)
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
