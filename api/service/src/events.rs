//! Events as JSON, for followers and webhooks.

use hotslot_model::event::Event;
use serde_json::{Value, json};

/// Converts an event to JSON. A key that does not apply to it is null.
pub fn wire(event: &Event) -> Value {
    let what = &event.what;
    json!({
        "id": event.id,
        "time": jiff::Timestamp::from_millisecond(event.time).map(|time| format!("{time:.3}")).ok(),
        "who": event.actor.who,
        "user": event.actor.user.as_ref().map(|user| &user.name),
        "user_id": event.actor.user.as_ref().map(|user| &user.id),
        "project": event.actor.project,
        "roles": event.actor.roles,
        "via": event.actor.via,
        "global_request_id": event.actor.global_request,
        "kind": what.kind,
        "host": event.host,
        "server_id": what.server,
        "device_id": what.device,
        "address": what.address.map(|address| address.to_string()),
        "attachment_id": what.attachment,
        "rule_id": what.rule,
        "resource_id": what.resource,
        "from": what.from,
        "to": what.to,
        "reason": what.reason,
    })
}
