//! The part `Monitor`: the metrics as Prometheus reads them, in the text format of OpenMetrics.
//!
//! [`metrics`](crate::metrics) counts operations as they happen. The present state (devices, attachments, queues) is read
//! for each request.

mod process;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hotslot_model::assignment::{Assignment, AssignmentKind, Kind, State};
use hotslot_model::id::{AttachmentId, EventId};
use hotslot_model::time::Millis;
use hotslot_store::Store;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::assignment::Assignments;
use crate::config::Config;
use crate::current::Current;
use crate::feed::Feed;
use crate::hosts::Hosts;
use crate::metrics::{
    CONNECTIONS, DATABASE_CALLS, HYPERVISOR_CALLS, OPERATIONS, REQUESTS, STEPS, WEBHOOK_POSTS, age, kind_word,
};
use crate::webhook::Webhooks;
pub(crate) use process::note_start;

/// How long the database may take, before the answer leaves out what it has.
const PATIENCE: Duration = Duration::from_secs(3);

/// The text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus' own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// Shows the metrics of the service.
pub struct Monitor {
    config: Arc<Current<Config>>,
    store: Store,
    hosts: Arc<Hosts>,
    assignments: Arc<Assignments>,
    webhooks: Arc<Webhooks>,
    feed: Arc<Feed>,
    /// Since when each detach is pending, as far as this process knows.
    detaching: Mutex<HashMap<AttachmentId, Millis>>,
}

/// The names and the values of the labels.
type Labels<const LABELS: usize> = [(&'static str, Cow<'static, str>); LABELS];

/// A gauge for each set of labels.
#[derive(Default)]
struct Gauges<const LABELS: usize>(Family<Labels<LABELS>, Gauge<f64, AtomicU64>>);

impl<const LABELS: usize> Gauges<LABELS> {
    fn set(&self, labels: [(&'static str, &str); LABELS], value: f64) {
        let labels = labels.map(|(name, value)| (name, Cow::Owned(value.to_owned())));
        self.0.get_or_create(&labels).set(value);
    }

    fn register(self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.0);
    }
}

/// The values that are read from the database. They are read together, so that one time limit bounds them.
struct Recorded {
    assignments: Vec<Assignment>,
    last_event: EventId,
    /// Events after the last one of each webhook, and its dead letters.
    webhooks: Vec<(String, i64, i64)>,
}

impl Monitor {
    pub(crate) fn new(assignments: &Arc<Assignments>, webhooks: &Arc<Webhooks>, feed: &Arc<Feed>) -> Self {
        Self {
            config: Arc::clone(&assignments.config),
            store: assignments.store.clone(),
            hosts: Arc::clone(&assignments.hosts),
            assignments: Arc::clone(assignments),
            webhooks: Arc::clone(webhooks),
            feed: Arc::clone(feed),
            detaching: Mutex::default(),
        }
    }

    /// Returns all metrics in a text format. When the database does not answer, the metrics that
    /// need it are left out, and `hotslot_database_up` is 0.
    ///
    /// # Errors
    /// None of the formats of the metrics fails.
    pub async fn text(&self, format: TextFormat) -> Result<String, fmt::Error> {
        let recorded = tokio::time::timeout(PATIENCE, self.recorded()).await;
        let recorded = recorded.ok().and_then(Result::ok);
        let mut registry = Registry::with_prefix("hotslot");
        counted(&mut registry);
        self.of_service(&mut registry);
        self.of_hosts(&mut registry, recorded.as_ref());
        let up = ConstGauge::new(u32::from(recorded.is_some()));
        registry.register("database_up", "Whether the database answered this request in time", up);
        if let Some(recorded) = &recorded {
            self.of_records(&mut registry, recorded);
        }
        let mut text = String::new();
        // The names of the metrics of processes are the same for all programs.
        let of_process = process::metrics();
        match format {
            TextFormat::OpenMetrics => {
                text::encode_registry(&mut text, &registry)?;
                text::encode(&mut text, &of_process)?;
            }
            TextFormat::Prometheus => {
                prometheus_text::encode(&mut text, &registry)?;
                prometheus_text::encode(&mut text, &of_process)?;
            }
        }
        Ok(text)
    }

    async fn recorded(&self) -> Result<Recorded, hotslot_store::Error> {
        let assignments = self.store.assignments().await?;
        let last_event = self.store.event_bounds().await?.last;
        let mut webhooks = Vec::new();
        for webhook in self.webhooks.iter() {
            let name = &webhook.config.name;
            let delivered = self.webhooks.delivered(webhook).await?;
            let (_, dead) = self.store.dead_letters(name, 1).await?;
            webhooks.push((name.clone(), (last_event.0 - delivered.0).max(0), dead));
        }
        Ok(Recorded { assignments, last_event, webhooks })
    }

    fn of_service(&self, registry: &mut Registry) {
        let version: Gauges<1> = Gauges::default();
        version.set([("version", env!("CARGO_PKG_VERSION"))], 1.0);
        version.register(registry, "build_info", "The version of the service; the value is always 1");
        registry.register("connections", "Open connections of clients", CONNECTIONS.clone());
        let most = ConstGauge::new(self.config.get().api.connections.get());
        registry.register("connections_limit", "The largest number of connections: [api] connections", most);
        let free = u32::try_from(self.feed.places.available_permits()).unwrap_or(self.feed.limit);
        let following = ConstGauge::new(self.feed.limit.saturating_sub(free));
        registry.register("event_followers", "Clients that follow events", following);
    }

    fn of_hosts(&self, registry: &mut Registry, recorded: Option<&Recorded>) {
        let [connected, synced, used, limit, stuck, stuck_for, quarantined, to_scrub]: [Gauges<1>; 8] =
            Default::default();
        let (devices, drift): (Gauges<3>, Gauges<2>) = Default::default();
        for host in self.hosts.iter() {
            let of = [("host", host.name.as_str())];
            connected.set(of, f64::from(u8::from(host.hypervisor.connection().is_ok())));
            synced.set(of, f64::from(u8::from(host.is_synced())));
            let (queued, most) = host.queued();
            used.set(of, queued.into());
            limit.set(of, most.into());
            let calls = host.hypervisor.overdue();
            stuck.set(of, calls.len() as f64);
            let oldest = calls.iter().map(|call| call.elapsed).max().unwrap_or_default();
            stuck_for.set(of, oldest.as_secs_f64());
            let (mut counts, mut in_quarantine, mut waiting) = (BTreeMap::<_, u32>::new(), 0_u32, 0_u32);
            for device in self.store.devices_of(host.row.id) {
                in_quarantine += u32::from(device.quarantine.is_some());
                waiting += u32::from(device.waits_for_scrub());
                *counts.entry((device.facts.dev_type, device.status)).or_default() += 1;
            }
            quarantined.set(of, in_quarantine.into());
            to_scrub.set(of, waiting.into());
            for ((kind, status), count) in counts {
                let labels = [of[0], ("type", kind.as_str()), ("status", status.as_str())];
                devices.set(labels, count.into());
            }
            let Some(recorded) = recorded else { continue };
            // A series that is always there shows when its first finding comes.
            let mut found: BTreeMap<_, u32> = Kind::ALL.iter().map(|kind| (*kind, 0)).collect();
            for kind in self.assignments.unresolved(host, &recorded.assignments) {
                *found.entry(kind).or_default() += 1;
            }
            for (kind, count) in found {
                drift.set([of[0], ("kind", kind.as_str())], count.into());
            }
        }
        connected.register(registry, "host_connected", "Whether the hypervisor of a host is connected");
        synced.register(
            registry,
            "host_synced",
            "Whether a host was compared with the records since it connected",
        );
        used.register(registry, "queue_used", "Attaches and detaches of a host that run or wait");
        limit.register(registry, "queue_limit", "The largest number of them: [api] queue");
        stuck.register(
            registry,
            "stuck_calls",
            "Calls to a hypervisor that were given up and have not returned",
        );
        stuck_for.register(
            registry,
            "stuck_call_oldest_age_seconds",
            "How long ago the oldest of them began",
        );
        devices.register(registry, "devices", "PCI functions on record, by host, type and status");
        quarantined.register(
            registry,
            "devices_quarantined",
            "PCI functions that did not work during or after a use, or were not scrubbed",
        );
        to_scrub.register(registry, "devices_to_scrub", "PCI functions that wait for their scrub");
        drift.register(
            registry,
            "drift_findings",
            "Disagreements between a host and the records that hotslot does not resolve by itself",
        );
    }

    fn of_records(&self, registry: &mut Registry, recorded: &Recorded) {
        let open: Gauges<2> = Gauges::default();
        let kinds = [AssignmentKind::Attachment, AssignmentKind::Mdev, AssignmentKind::Binding];
        let states = || State::ALL.iter().filter(|state| !state.is_final());
        let each = kinds.iter().flat_map(|kind| states().map(|state| (kind_word(*kind), state.as_str())));
        let mut counts: BTreeMap<_, u32> = each.map(|labels| (labels, 0)).collect();
        for row in &recorded.assignments {
            *counts.entry((kind_word(row.kind()), row.state().as_str())).or_default() += 1;
        }
        for ((kind, state), count) in counts {
            open.set([("kind", kind), ("state", state)], count.into());
        }
        open.register(
            registry,
            "assignments",
            "Attachments, mediated devices and bindings that have not ended",
        );
        let oldest = ConstGauge::new(self.oldest_detach(&recorded.assignments));
        let help = "How long the detach has been pending that has been pending longest; 0 when none is";
        registry.register("detach_pending_oldest_age_seconds", help, oldest);
        let events = ConstCounter::new(recorded.last_event.0.unsigned_abs());
        registry.register("events", "Events that were recorded since the database was made", events);
        let (behind, dead): (Gauges<1>, Gauges<1>) = Default::default();
        for (name, events, letters) in &recorded.webhooks {
            behind.set([("webhook", name)], *events as f64);
            dead.set([("webhook", name)], *letters as f64);
        }
        behind.register(registry, "webhook_pending_events", "Events that a webhook was not sent yet");
        dead.register(registry, "webhook_dead_letters", "Events that a webhook did not accept");
    }

    /// Returns for how many seconds the oldest detach has been pending. A record has at most the time of its
    /// last change, so the first one that this process saw counts.
    fn oldest_detach(&self, rows: &[Assignment]) -> f64 {
        let mut known = self.detaching.lock().unwrap_or_else(PoisonError::into_inner);
        let pending = rows.iter().filter(|row| row.state() == State::Detaching);
        let since = |row: &Assignment| match row {
            Assignment::Attachment(row) => row.updated_at.unwrap_or(row.created_at),
            Assignment::Binding(_) | Assignment::Mdev(_) => hotslot_store::now(),
        };
        let since =
            pending.map(|row| (row.id(), known.get(&row.id()).copied().unwrap_or_else(|| since(row))));
        *known = since.collect();
        known.values().copied().min().map_or(0.0, age)
    }
}

/// Registers what was counted since the process began.
fn counted(registry: &mut Registry) {
    let unit = || Unit::Seconds;
    let help = "Attaches and detaches, by the kind of the assignment and the result";
    registry.register_with_unit("operation_duration", help, unit(), OPERATIONS.clone());
    let help = "Steps of attaches and detaches, by the kind of the assignment and the result";
    registry.register_with_unit("step_duration", help, unit(), STEPS.clone());
    let help = "Calls to hypervisors";
    registry.register_with_unit("hypervisor_call_duration", help, unit(), HYPERVISOR_CALLS.clone());
    let help = "Statements, and beginnings and ends of transactions, on the database";
    registry.register_with_unit("database_call_duration", help, unit(), DATABASE_CALLS.clone());
    let help = "Attempts to post an event to a webhook";
    registry.register_with_unit("webhook_post_duration", help, unit(), WEBHOOK_POSTS.clone());
    let help = "HTTP requests, until the answer began";
    registry.register_with_unit("http_request_duration", help, unit(), REQUESTS.clone());
}
