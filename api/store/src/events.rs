//! The table `events`: the log of all changes, in the order of their commits. It is also the audit log.
//!
//! An event is written in the transaction of the change that it reports
//! ([`DeviceTransaction`](super::draft::DeviceTransaction)). A transaction that changes nothing writes no event. Texts of
//! guests, hosts and callers are escaped here.

use std::sync::Arc;

use hotslot_driver::text::{escape, escape_json};
use hotslot_model::event::{Event, EventFilter, What};
use hotslot_model::id::{AttachmentId, DeviceId, EventId, HypervisorId};
use hotslot_model::identity::{Actor, User};
use hotslot_model::time::Millis;
use serde_json::Value;
use tokio::sync::watch;

use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Query, Row, query};
use crate::writer::Transaction;

/// Writes events and returns the id of the last one, if any. Also sends the statements of the transaction that were put off.
pub(super) async fn write(
    tx: &mut Transaction,
    time: Millis,
    events: &[(Arc<Actor>, What)],
) -> Result<Option<EventId>, Error> {
    if events.is_empty() {
        return Ok(None);
    }
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    // The ids are known to the database alone until these statements are sent, together with those before them.
    tx.put(query("UPDATE event_ids SET last = last + $1").bind(count));
    for (before_last, (actor, what)) in (0..count).rev().zip(events) {
        let roles = Value::from_iter(actor.roles.iter().cloned()).to_string();
        let roles = Some(roles).filter(|_| !actor.roles.is_empty());
        let new = query(
            "INSERT INTO events (id, time, who, kind, hypervisor_id, server_uuid, device_id, address,
                 attachment_id, rule_id, resource_id, was, became, reason, user_id, user_name, project_id, roles,
                 via, global_request_id, traceparent)
             VALUES ((SELECT last FROM event_ids) - $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,
                 $16, $17, $18, $19, $20, $21)",
        )
        .bind(before_last)
        .bind(time)
        .bind(&actor.who)
        .bind(what.kind.as_str())
        .bind(what.hypervisor.map(|id| id.0))
        .bind(what.server.map(|id| id.to_string()))
        .bind(what.device.map(|id| id.0))
        .bind(what.address.map(|address| address.to_string()))
        .bind(what.attachment.map(|id| id.to_string()))
        .bind(what.rule.map(|id| id.hyphenated().to_string()))
        .bind(what.resource.map(|id| id.hyphenated().to_string()))
        .bind(what.from.as_ref().map(|value| escape_json(value).to_string()))
        .bind(what.to.as_ref().map(|value| escape_json(value).to_string()))
        .bind(what.reason.as_deref().map(|reason| escape(reason).into_owned()))
        .bind(actor.user.as_ref().map(|user| user.id.as_str()))
        .bind(actor.user.as_ref().map(|user| user.name.as_str()))
        .bind(&actor.project)
        .bind(roles.as_deref())
        .bind(&actor.via)
        .bind(&actor.global_request)
        .bind(&actor.traceparent);
        tx.put(new);
        if tx.is_full() {
            tx.flush().await?;
        }
    }
    tx.put(query("SELECT last FROM event_ids"));
    let last = tx.flush().await?.ok_or(sqlx::Error::RowNotFound)?.try_get("last")?;
    Ok(Some(EventId(last)))
}

fn event(row: &Row) -> Result<Event, Error> {
    const TABLE: &str = "events";
    let id: i64 = row.try_get("id")?;
    let columns = RowReader { table: TABLE, id: id.to_string(), row };
    let json = |column: &'static str| -> Result<Option<Value>, Error> {
        let text: Option<String> = columns.get(column)?;
        let value = text.map(|text| serde_json::from_str(&text)).transpose();
        value.map_err(|error| bad_column(TABLE, id, column)(&error))
    };
    let user: Option<String> = columns.get("user_id")?;
    let roles: Option<String> = columns.get("roles")?;
    let roles = roles.map(|text| serde_json::from_str(&text)).transpose();
    let actor = Actor {
        who: columns.get("who")?,
        user: user.zip(columns.get("user_name")?).map(|(id, name)| User { id, name }),
        project: columns.get("project_id")?,
        roles: roles.map_err(|error| bad_column(TABLE, id, "roles")(&error))?.unwrap_or_default(),
        via: columns.get("via")?,
        global_request: columns.get("global_request_id")?,
        traceparent: columns.get("traceparent")?,
    };
    Ok(Event {
        id: EventId(id),
        time: columns.get("time")?,
        actor,
        host: columns.get("host")?,
        what: What {
            kind: columns.parse("kind")?,
            hypervisor: columns.get::<Option<i64>>("hypervisor_id")?.map(HypervisorId),
            server: columns.parse_opt("server_uuid")?,
            device: columns.get::<Option<i64>>("device_id")?.map(DeviceId),
            address: columns.parse_opt("address")?,
            attachment: columns.parse_opt("attachment_id")?,
            rule: columns.parse_opt("rule_id")?,
            resource: columns.parse_opt("resource_id")?,
            from: json("was")?,
            to: json("became")?,
            reason: columns.get("reason")?,
        },
    })
}

/// The range of the event ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBounds {
    /// The last event that was pruned, or 0.
    pub pruned: EventId,
    /// The last event that was written, or 0.
    pub last: EventId,
}

impl EventBounds {
    /// Checks that all events after `since` are available. 0 means from the oldest available event.
    ///
    /// # Errors
    /// Returns [`Error::Gone`] when some of them were pruned, and [`Error::Invalid`] when the event `since` does not
    /// exist yet.
    pub fn reach(self, since: EventId) -> Result<(), Error> {
        if since.0 != 0 && since < self.pruned {
            let oldest = self.pruned.0 + 1;
            return Err(Error::Gone(format!(
                "events after {since} were pruned, and the oldest available event is {oldest}; repeat the request with \
                 since={} for all events that are left, and read the lists for the current state",
                self.pruned
            )));
        }
        if since > self.last {
            return Err(Error::Invalid(format!(
                "event {since} does not exist yet, and the last event is {}; repeat the request with since=0: the \
                 database is not the one that you read before",
                self.last
            )));
        }
        Ok(())
    }
}

/// The statement for the events after an id that match a filter: `$what` of them, in the given order. [`narrowed`]
/// binds the values. A condition on the user or the project comes first and alone, so that its index is used.
macro_rules! passing {
    ($filter:expr, $what:literal, $order:literal) => {
        match ($filter.user.is_some(), $filter.user_id.is_some(), $filter.project.is_some()) {
            (true, _, _) => passing!(by " AND events.user_name = $8", $what, $order),
            (false, true, _) => passing!(by " AND events.user_id = $9", $what, $order),
            (false, false, true) => passing!(by " AND events.project_id = $10", $what, $order),
            (false, false, false) => passing!(by "", $what, $order),
        }
    };
    (by $index:literal, $what:literal, $order:literal) => {
        concat!(
            "SELECT ",
            $what,
            " FROM events LEFT JOIN hypervisors ON hypervisors.id = events.hypervisor_id
              WHERE events.id > $1",
            $index,
            " AND (CAST($2 AS TEXT) IS NULL OR hypervisors.name = $2)
              AND (CAST($3 AS TEXT) IS NULL OR events.server_uuid = $3)
              AND (CAST($4 AS BIGINT) IS NULL OR events.device_id = $4)
              AND (CAST($5 AS TEXT) IS NULL OR events.address = $5)
              AND (CAST($6 AS TEXT) IS NULL OR events.attachment_id = $6)
              AND (CAST($7 AS TEXT) IS NULL OR events.kind = $7 OR events.kind LIKE $7 || '.%')
              AND (CAST($8 AS TEXT) IS NULL OR events.user_name = $8)
              AND (CAST($9 AS TEXT) IS NULL OR events.user_id = $9)
              AND (CAST($10 AS TEXT) IS NULL OR events.project_id = $10)
              ORDER BY events.id ",
            $order,
            " LIMIT $11"
        )
    };
}

/// Returns the statement for the events after an id that match a filter, in their order.
pub(super) fn statement(filter: &EventFilter) -> &'static str {
    passing!(filter, "events.*, hypervisors.name AS host", "")
}

fn narrowed(query: Query, since: EventId, filter: &EventFilter, limit: usize) -> Query {
    query
        .bind(since.0)
        .bind(filter.host.clone())
        .bind(filter.server.map(|id| id.to_string()))
        .bind(filter.device.map(|id| id.0))
        .bind(filter.address.map(|address| address.to_string()))
        .bind(filter.attachment.map(|id| id.to_string()))
        .bind(filter.kind.clone())
        .bind(filter.user.clone())
        .bind(filter.user_id.clone())
        .bind(filter.project.clone())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
}

impl Store {
    /// Returns the events after `since` that match the filter, at most `limit`, in order.
    ///
    /// # Errors
    /// Returns the errors of [`EventBounds::reach`], the error of the database, or [`Error::Row`] for a row that cannot
    /// be read.
    pub async fn events(
        &self,
        since: EventId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, Error> {
        let rows = query(statement(filter));
        let rows = narrowed(rows, since, filter, limit).fetch_all(&self.read).await?;
        // Check after the rows were read, so that events that were pruned before are detected.
        self.event_bounds().await?.reach(since)?;
        rows.iter().map(event).collect()
    }

    /// Returns the id before the newest `count` events that match the filter.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn before_newest(&self, filter: &EventFilter, count: usize) -> Result<EventId, Error> {
        // Read the bounds before the events, so that events that are written meanwhile are not skipped.
        let last = self.event_bounds().await?.last;
        let ids = query(passing!(filter, "events.id AS id", "DESC"));
        let ids = narrowed(ids, EventId(0), filter, count).fetch_all(&self.read).await?;
        let first: Option<i64> = ids.last().map(|row| row.try_get("id")).transpose()?;
        Ok(first.map_or(last, |first| EventId(first - 1)))
    }

    /// Writes events that report no change of a record, each with its actor.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was written.
    pub async fn record(&self, events: Vec<(Arc<Actor>, What)>) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        draft.emit_of(events);
        draft.commit().await
    }

    /// Returns the range of the event ids.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn event_bounds(&self) -> Result<EventBounds, Error> {
        let row = query("SELECT pruned, last FROM event_ids").fetch_one(&self.read).await?;
        Ok(EventBounds { pruned: EventId(row.try_get("pruned")?), last: EventId(row.try_get("last")?) })
    }

    /// Whether an attachment has an event after the given one.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn has_events_after(&self, after: EventId, id: AttachmentId) -> Result<bool, Error> {
        let found = query("SELECT id FROM events WHERE id > $1 AND attachment_id = $2 LIMIT 1");
        let found = found.bind(after.0).bind(id.to_string()).fetch_optional(&self.read).await?;
        Ok(found.is_some())
    }

    /// Returns a receiver of the id of the last committed event.
    pub fn event_ids(&self) -> watch::Receiver<EventId> {
        self.last_event.subscribe()
    }

    /// Notifies the receivers of [`Self::event_ids`] of a committed event.
    pub(super) fn heard_of(&self, last: EventId) {
        self.last_event.send_if_modified(|known| last > std::mem::replace(known, last.max(*known)));
    }

    /// Deletes the oldest events: those before a time, and all but the newest `most`. Deletes at most `batch` events
    /// and returns their number.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was removed.
    pub async fn prune_events(&self, before: Millis, most: i64, batch: i64) -> Result<u64, Error> {
        let EventBounds { pruned, last } = self.event_bounds().await?;
        // The ids increase with the time, so the first event that is kept bounds the old ones.
        let kept = query("SELECT id FROM events WHERE id > $1 AND time >= $2 ORDER BY id LIMIT 1")
            .bind(pruned.0)
            .bind(before)
            .fetch_optional(&self.read)
            .await?;
        let kept: Option<i64> = kept.map(|row| row.try_get("id")).transpose()?;
        let old = kept.map_or(last.0, |kept| kept - 1);
        let upto = old.max(last.0.saturating_sub(most)).min(pruned.0.saturating_add(batch));
        if upto <= pruned.0 {
            return Ok(0);
        }
        let mut draft = self.draft().await?;
        query("UPDATE event_ids SET pruned = $1 WHERE pruned < $1").bind(upto).execute(&mut draft.tx).await?;
        for table in ["DELETE FROM events WHERE id <= $1", "DELETE FROM dead_letters WHERE event_id <= $1"] {
            query(table).bind(upto).execute(&mut draft.tx).await?;
        }
        draft.commit().await?;
        Ok(upto.saturating_sub(pruned.0).unsigned_abs())
    }
}
