//! The table `events`: what happened, in the order in which it was committed. It is the audit log too.
//!
//! An event is written in the transaction of the change that it tells of ([`Draft`](super::draft::Draft)). What did
//! not change writes none.

use std::collections::BTreeMap;

use hotslot_driver::pci::PciAddress;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use uuid::Uuid;

use super::sql::{Query, Row, Transaction, query};
use super::{
    Attachment, Columns, Device, DeviceFacts, DeviceStatus, InnerAddress, Millis, Settled, Store, bad_column,
    words,
};
use crate::attachment::State;
use crate::error::Error;
use crate::id::{AttachmentId, DeviceId, EventId, HypervisorId, ServerId};
use crate::inventory::Rule;
use crate::who;

words! {
    /// What happened: a noun, and what of it changed.
    EventKind {
        /// A device may be given away that was not on record; `to` is its row.
        DeviceAdded = "device.added",
        /// What the host says of a device; `from` and `to` have the keys that differ.
        DeviceChanged = "device.changed",
        /// Nova's state of a device.
        DeviceStatus = "device.status",
        /// A device went from the host, or from what may be given away, while a server has it or it waits to be
        /// cleaned.
        DeviceGone = "device.gone",
        /// It came back.
        DeviceBack = "device.back",
        /// A `one_time_use` device was used, and waits to be cleaned.
        DeviceUsed = "device.used",
        /// It was cleaned.
        DeviceCleaned = "device.cleaned",
        /// A device is no longer on record.
        DeviceRemoved = "device.removed",
        /// An attachment's state.
        AttachmentState = "attachment.state",
        /// Where the guest sees the device, and how that is known.
        AttachmentInnerAddress = "attachment.inner_address",
        /// What there is to say of a state that stayed.
        AttachmentReason = "attachment.reason",
        /// The host driver has the device again that was taken from it for its whole IOMMU group.
        AttachmentGivenBack = "attachment.given_back",
        /// The state of a device that its host itself is to hold, or holds.
        BindingState = "binding.state",
        /// The state of a mediated device; the device is its parent.
        MdevState = "mdev.state",
        /// A rule came by the API.
        RuleAdded = "rule.added",
        /// It was replaced.
        RuleChanged = "rule.changed",
        /// It was removed.
        RuleRemoved = "rule.removed",
    }
}

/// What happened, and to what. What does not concern it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What {
    /// What it was.
    pub kind: EventKind,
    /// The host.
    pub hypervisor: Option<HypervisorId>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// Where the host had the device then.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// The rule.
    pub rule: Option<Uuid>,
    /// What it was before.
    pub from: Option<Value>,
    /// What it became.
    pub to: Option<Value>,
    /// Why, where something is known of that.
    pub reason: Option<String>,
}

/// A row of `events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id; ids go up by one, in the order of the commits.
    pub id: EventId,
    /// When it was written.
    pub time: Millis,
    /// The request that did it (`request req-…`), or what hotslot did on its own.
    pub who: String,
    /// The host's name.
    pub host: Option<String>,
    /// What happened.
    pub what: What,
}

/// Which events are asked for; none is any.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// The host's name.
    pub host: Option<String>,
    /// The server.
    pub server: Option<ServerId>,
    /// The device.
    pub device: Option<DeviceId>,
    /// Where the device was then.
    pub address: Option<PciAddress>,
    /// The attachment.
    pub attachment: Option<AttachmentId>,
    /// A kind, or the noun that kinds begin with.
    pub kind: Option<String>,
}

impl EventFilter {
    /// Whether an event passes, as [`Store::events`] has it.
    pub(crate) fn passes(&self, event: &Event) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, has: Option<&T>) -> bool {
            wanted.is_none() || wanted == has
        }
        let what = &event.what;
        is(self.host.as_ref(), event.host.as_ref())
            && is(self.server.as_ref(), what.server.as_ref())
            && is(self.device.as_ref(), what.device.as_ref())
            && is(self.address.as_ref(), what.address.as_ref())
            && is(self.attachment.as_ref(), what.attachment.as_ref())
            && self.kind.as_ref().is_none_or(|kind| what.kind.is_of(kind))
    }
}

impl EventKind {
    /// Whether a text is the kind, or its noun: `device` is every `device.…`.
    pub fn is_of(self, text: &str) -> bool {
        let rest = self.as_str().strip_prefix(text);
        !text.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// A kind or a noun.
    ///
    /// # Errors
    /// What would be right, when no kind is so.
    pub fn known(text: &str) -> Result<&str, String> {
        if Self::ALL.iter().any(|kind| kind.is_of(text)) {
            return Ok(text);
        }
        let known: Vec<_> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
        Err(format!("`{text}` is neither device, attachment or rule, nor one of {}", known.join(", ")))
    }

    fn what(self) -> What {
        What {
            kind: self,
            hypervisor: None,
            server: None,
            device: None,
            address: None,
            attachment: None,
            rule: None,
            from: None,
            to: None,
            reason: None,
        }
    }
}

/// What the writing of a device's row tells. `was` is none for a new one.
pub(super) fn of_device(was: Option<&Device>, row: &Device) -> Vec<What> {
    let server = row.server().or(was.and_then(Device::server));
    let of = |kind: EventKind, from: Option<Value>, to: Option<Value>| What {
        hypervisor: Some(row.hypervisor),
        server,
        device: Some(row.id),
        address: Some(row.facts.address),
        from,
        to,
        ..kind.what()
    };
    let Some(was) = was else {
        let facts = facts(&row.facts).into_iter().map(|(key, value)| (key.to_owned(), value));
        let status = ("status".to_owned(), row.status.as_str().into());
        let all: Map<_, _> = facts.chain([status]).collect();
        return vec![of(EventKind::DeviceAdded, None, Some(all.into()))];
    };
    if row.status == DeviceStatus::Deleted {
        return vec![of(EventKind::DeviceRemoved, Some(was.status.as_str().into()), None)];
    }
    let mut told = Vec::new();
    if was.facts != row.facts {
        let (before, after) = (facts(&was.facts), facts(&row.facts));
        let differ = |one: &BTreeMap<&str, Value>, other: &BTreeMap<&str, Value>| {
            let differs = one.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differs.map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>().into()
        };
        let (from, to) = (differ(&before, &after), differ(&after, &before));
        told.push(of(EventKind::DeviceChanged, Some(from), Some(to)));
    }
    if was.status != row.status {
        let (from, to) = (was.status.as_str().into(), row.status.as_str().into());
        told.push(of(EventKind::DeviceStatus, Some(from), Some(to)));
    }
    for (was, is, begins, ends) in [
        (was.gone_at, row.gone_at, EventKind::DeviceGone, EventKind::DeviceBack),
        (was.used_at, row.used_at, EventKind::DeviceUsed, EventKind::DeviceCleaned),
    ] {
        match (was, is) {
            (None, Some(_)) => told.push(of(begins, None, None)),
            (Some(_), None) => told.push(of(ends, None, None)),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }
    told
}

/// The columns of a device that a host tells, and what is said of it besides.
fn facts(facts: &DeviceFacts) -> BTreeMap<&str, Value> {
    let said = facts.extra_info.iter().map(|(key, value)| (key.as_str(), Value::from(value.as_str())));
    let mut all: BTreeMap<_, _> = said.collect();
    all.extend([
        ("address", facts.address.to_string().into()),
        ("vendor_id", facts.vendor_id.to_string().into()),
        ("product_id", facts.product_id.to_string().into()),
        ("dev_type", facts.dev_type.as_str().into()),
    ]);
    all.extend(facts.numa_node.map(|node| ("numa_node", node.into())));
    all.extend(facts.parent_addr.map(|address| ("parent_addr", address.to_string().into())));
    all
}

/// That an attachment was made, in its first state.
pub(super) fn made(device: &Device, server: ServerId, attachment: AttachmentId, state: State) -> What {
    What {
        hypervisor: Some(device.hypervisor),
        server: Some(server),
        device: Some(device.id),
        address: Some(device.facts.address),
        attachment: Some(attachment),
        to: Some(state.as_str().into()),
        ..EventKind::AttachmentState.what()
    }
}

/// What a change of a binding tells.
pub(super) fn binding(device: &Device, was: Option<State>, state: State, reason: Option<&str>) -> What {
    What {
        hypervisor: Some(device.hypervisor),
        device: Some(device.id),
        address: Some(device.facts.address),
        from: was.map(|was| was.as_str().into()),
        to: Some(state.as_str().into()),
        reason: reason.map(str::to_owned),
        ..EventKind::BindingState.what()
    }
}

/// What a change of a mediated device tells.
pub(super) fn mdev(
    parent: &Device,
    server: ServerId,
    id: AttachmentId,
    was: Option<State>,
    state: State,
    reason: Option<&str>,
) -> What {
    let from = was.map(|was| was.as_str().into());
    let reason = reason.map(str::to_owned);
    What { kind: EventKind::MdevState, from, reason, ..made(parent, server, id, state) }
}

/// What a change of an attachment's row tells.
pub(super) fn of_attachment(was: &Attachment, next: &Settled, address: Option<PciAddress>) -> Vec<What> {
    let of = |kind: EventKind, from: Option<Value>, to: Option<Value>| What {
        hypervisor: Some(was.hypervisor),
        server: Some(was.server),
        device: Some(was.device),
        address,
        attachment: Some(was.id),
        from,
        to,
        ..kind.what()
    };
    let mut told = Vec::new();
    if was.state != next.state {
        let (from, to) = (was.state.as_str().into(), next.state.as_str().into());
        let state = of(EventKind::AttachmentState, Some(from), Some(to));
        told.push(What { reason: next.reason.clone(), ..state });
    } else if was.reason != next.reason {
        let (from, to) = (was.reason.clone().map(Value::from), next.reason.clone().map(Value::from));
        told.push(of(EventKind::AttachmentReason, from, to));
    }
    if was.inner != next.inner {
        let seen =
            |inner: InnerAddress| json!({ "address": inner.address.to_string(), "source": inner.source });
        told.push(of(EventKind::AttachmentInnerAddress, was.inner.map(seen), next.inner.map(seen)));
    }
    told
}

/// That a host driver has the device of an attachment again.
pub(super) fn given_back(row: &Attachment, address: Option<PciAddress>) -> What {
    What {
        hypervisor: Some(row.hypervisor),
        server: Some(row.server),
        device: Some(row.device),
        address,
        attachment: Some(row.id),
        ..EventKind::AttachmentGivenBack.what()
    }
}

/// What a change of a rule tells; `was` and `is` are its texts.
pub(super) fn of_rule(rule: &Rule, was: Option<&str>, is: Option<&str>) -> Option<What> {
    let kind = match (was, is) {
        (None, Some(_)) => EventKind::RuleAdded,
        (Some(was), Some(is)) if was != is => EventKind::RuleChanged,
        (Some(_), None) => EventKind::RuleRemoved,
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let entry = |text: &str| {
        let entry: Value = serde_json::from_str(text).unwrap_or_else(|_| text.into());
        json!({ "kind": rule.kind, "entry": entry })
    };
    Some(What { rule: Some(rule.id), from: was.map(entry), to: is.map(entry), ..kind.what() })
}

/// Writes events, and answers the id of the last one.
pub(super) async fn write(
    tx: &mut Transaction,
    time: Millis,
    events: &[What],
) -> Result<Option<EventId>, Error> {
    if events.is_empty() {
        return Ok(None);
    }
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let last = query("UPDATE event_ids SET last = last + $1 RETURNING last").bind(count);
    let last: i64 = last.fetch_one(&mut *tx).await?.try_get("last")?;
    let who = who::current();
    for (id, what) in (last - count + 1..).zip(events) {
        query(
            "INSERT INTO events (id, time, who, kind, hypervisor_id, server_uuid, device_id, address,
                 attachment_id, rule_id, was, became, reason)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        )
        .bind(id)
        .bind(time)
        .bind(&*who)
        .bind(what.kind.as_str())
        .bind(what.hypervisor.map(|id| id.0))
        .bind(what.server.map(|id| id.to_string()))
        .bind(what.device.map(|id| id.0))
        .bind(what.address.map(|address| address.to_string()))
        .bind(what.attachment.map(|id| id.to_string()))
        .bind(what.rule.map(|id| id.hyphenated().to_string()))
        .bind(what.from.as_ref().map(ToString::to_string))
        .bind(what.to.as_ref().map(ToString::to_string))
        .bind(&what.reason)
        .execute(&mut *tx)
        .await?;
    }
    Ok(Some(EventId(last)))
}

fn event(row: &Row) -> Result<Event, Error> {
    const TABLE: &str = "events";
    let id: i64 = row.try_get("id")?;
    let columns = Columns { table: TABLE, id: id.to_string(), row };
    let json = |column: &'static str| -> Result<Option<Value>, Error> {
        let text: Option<String> = columns.get(column)?;
        let value = text.map(|text| serde_json::from_str(&text)).transpose();
        value.map_err(|error| bad_column(TABLE, id, column)(&error))
    };
    Ok(Event {
        id: EventId(id),
        time: columns.get("time")?,
        who: columns.get("who")?,
        host: columns.get("host")?,
        what: What {
            kind: columns.parse("kind")?,
            hypervisor: columns.get::<Option<i64>>("hypervisor_id")?.map(HypervisorId),
            server: columns.parse_opt("server_uuid")?,
            device: columns.get::<Option<i64>>("device_id")?.map(DeviceId),
            address: columns.parse_opt("address")?,
            attachment: columns.parse_opt("attachment_id")?,
            rule: columns.parse_opt("rule_id")?,
            from: json("was")?,
            to: json("became")?,
            reason: columns.get("reason")?,
        },
    })
}

/// Which events there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventBounds {
    /// The last one that was pruned; 0 when none was.
    pub pruned: EventId,
    /// The last one that was written; 0 when none was.
    pub last: EventId,
}

impl EventBounds {
    /// Whether all events after one can be told.
    ///
    /// # Errors
    /// [`Error::Gone`] when some were pruned, [`Error::Invalid`] when there is no such event yet. After 0 is from
    /// the oldest that there is.
    pub fn reach(self, since: EventId) -> Result<(), Error> {
        if since.0 != 0 && since < self.pruned {
            let oldest = self.pruned.0 + 1;
            return Err(Error::Gone(format!(
                "events after {since} were pruned, the oldest that is kept is {oldest}; ask again with since={} \
                 for all that are left, and read the lists for how things are",
                self.pruned
            )));
        }
        if since > self.last {
            return Err(Error::Invalid(format!(
                "there is no event {since} yet, the last one is {}; ask again with since=0, for the records are \
                 not those that you read before",
                self.last
            )));
        }
        Ok(())
    }
}

/// The events after one that pass; what `narrowed` binds.
macro_rules! passing {
    () => {
        " LEFT JOIN hypervisors ON hypervisors.id = events.hypervisor_id
          WHERE events.id > $1
              AND (CAST($2 AS TEXT) IS NULL OR hypervisors.name = $2)
              AND (CAST($3 AS TEXT) IS NULL OR events.server_uuid = $3)
              AND (CAST($4 AS BIGINT) IS NULL OR events.device_id = $4)
              AND (CAST($5 AS TEXT) IS NULL OR events.address = $5)
              AND (CAST($6 AS TEXT) IS NULL OR events.attachment_id = $6)
              AND (CAST($7 AS TEXT) IS NULL OR events.kind = $7 OR events.kind LIKE $7 || '.%') "
    };
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
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
}

impl Store {
    /// The events after one that pass, at most `limit`, in their order.
    ///
    /// # Errors
    /// As [`EventBounds::reach`]; the database's, or a row that cannot be read.
    pub async fn events(
        &self,
        since: EventId,
        filter: &EventFilter,
        limit: usize,
    ) -> Result<Vec<Event>, Error> {
        let rows = query(concat!(
            "SELECT events.*, hypervisors.name AS host FROM events",
            passing!(),
            "ORDER BY events.id LIMIT $8"
        ));
        let rows = narrowed(rows, since, filter, limit).fetch_all(&self.read).await?;
        // Asked after the rows were read: what was pruned before is known by now.
        self.event_bounds().await?.reach(since)?;
        rows.iter().map(event).collect()
    }

    /// The event after which the newest `count` begin that pass.
    ///
    /// # Errors
    /// The database's.
    pub async fn before_newest(&self, filter: &EventFilter, count: usize) -> Result<EventId, Error> {
        // Before the events are read: what comes meanwhile is not left out.
        let last = self.event_bounds().await?.last;
        let ids = query(concat!(
            "SELECT events.id AS id FROM events",
            passing!(),
            "ORDER BY events.id DESC LIMIT $8"
        ));
        let ids = narrowed(ids, EventId(0), filter, count).fetch_all(&self.read).await?;
        let first: Option<i64> = ids.last().map(|row| row.try_get("id")).transpose()?;
        Ok(first.map_or(last, |first| EventId(first - 1)))
    }

    /// Which events there are.
    ///
    /// # Errors
    /// The database's.
    pub async fn event_bounds(&self) -> Result<EventBounds, Error> {
        let row = query("SELECT pruned, last FROM event_ids").fetch_one(&self.read).await?;
        Ok(EventBounds { pruned: EventId(row.try_get("pruned")?), last: EventId(row.try_get("last")?) })
    }

    /// Whether anything was told of an attachment after an event.
    ///
    /// # Errors
    /// The database's.
    pub async fn told_of_after(&self, after: EventId, id: AttachmentId) -> Result<bool, Error> {
        let told = query("SELECT id FROM events WHERE id > $1 AND attachment_id = $2 LIMIT 1");
        let told = told.bind(after.0).bind(id.to_string()).fetch_optional(&self.read).await?;
        Ok(told.is_some())
    }

    /// The id of the last event that was committed, as it goes up.
    pub fn event_ids(&self) -> watch::Receiver<EventId> {
        self.last_event.subscribe()
    }

    /// Lets those who wait for events know of one that was committed.
    pub(super) fn heard_of(&self, last: EventId) {
        self.last_event.send_if_modified(|known| last > std::mem::replace(known, last.max(*known)));
    }

    /// Removes the oldest events: those before a time, and all but the newest `most`; at most `batch` of them.
    /// Answers how many.
    ///
    /// # Errors
    /// The database's; then nothing was removed.
    pub async fn prune_events(&self, before: Millis, most: i64, batch: i64) -> Result<u64, Error> {
        let EventBounds { pruned, last } = self.event_bounds().await?;
        // From the oldest on, for ids go up with the time.
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
