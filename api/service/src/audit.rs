//! Records refused requests: as events, and in the log.
//!
//! A flood of refusals must not displace other events. So the first refusal of a caller is recorded at once, and those
//! of the next minute together as one event with their number. The callers that are told apart in a minute are limited
//! too. What is not yet recorded is lost when the service is killed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hotslot_driver::text::escape;
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::identity::Actor;
use hotslot_store::Store;
use serde_json::json;
use tokio::sync::Notify;

/// The time in which the refusals of one caller are one event.
const WINDOW: Duration = Duration::from_secs(60);

/// How many identified callers are told apart at a time.
const IDENTIFIED: usize = 100;

/// How many unidentified callers are told apart at a time. Anybody who can connect can cause such refusals.
const UNIDENTIFIED: usize = 10;

/// The maximum length of a path or reason in an event, in characters.
const LENGTH: usize = 300;

/// A request that was refused.
#[derive(Debug, Clone)]
pub struct RefusedRequest {
    /// The method.
    pub method: String,
    /// The path, percent-encoded, without the query.
    pub path: String,
    /// The status code of the response.
    pub status: u16,
    /// The rule that refuses the request, such as `hotslot:drift:repair`, where it is one.
    pub rule: Option<&'static str>,
    /// What the caller was told.
    pub reason: String,
}

/// What makes refusals one event: the status, and the caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Group {
    /// The refusals of one caller under one rule: the method and the rule, the id of the user, the project, and how the
    /// caller connected.
    Caller(u16, Option<(String, &'static str)>, Option<String>, Option<String>, Option<String>),
    /// The refusals of all callers beyond the limit. Whether they were identified.
    Others(bool),
}

#[derive(Debug)]
struct Refusals {
    since: Instant,
    actor: Arc<Actor>,
    last: RefusedRequest,
    /// How many are not recorded yet.
    count: u64,
    /// Whether the first one was recorded.
    begun: bool,
}

/// The refusals that are not recorded yet.
#[derive(Debug)]
pub struct Audit {
    store: Store,
    refusals: Mutex<HashMap<Group, Refusals>>,
    news: Notify,
}

impl Audit {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, refusals: Mutex::default(), news: Notify::new() }
    }

    fn refusals(&self) -> MutexGuard<'_, HashMap<Group, Refusals>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a refused request recorded. It does not wait for the database.
    pub fn refused(&self, actor: Arc<Actor>, request: RefusedRequest) {
        self.refused_at(Instant::now(), actor, request);
    }

    fn refused_at(&self, now: Instant, actor: Arc<Actor>, request: RefusedRequest) {
        let identified = actor.user.is_some();
        let mut refusals = self.refusals();
        let user = actor.user.as_ref().map(|user| user.id.clone());
        let what = request.rule.map(|rule| (request.method.clone(), rule));
        let mut group = Group::Caller(request.status, what, user, actor.project.clone(), actor.via.clone());
        if !refusals.contains_key(&group) {
            let most = if identified { IDENTIFIED } else { UNIDENTIFIED };
            let alike = refusals.values().filter(|one| one.actor.user.is_some() == identified).count();
            if alike >= most {
                group = Group::Others(identified);
            }
        }
        let new = || Refusals {
            since: now,
            actor: Arc::clone(&actor),
            last: request.clone(),
            count: 0,
            begun: false,
        };
        let found = refusals.entry(group).or_insert_with(new);
        found.count += 1;
        if found.begun {
            (found.actor, found.last) = (actor, request);
        } else {
            self.news.notify_one();
        }
    }

    /// Takes the refusals that are to be recorded now; all of them at the end of the service.
    fn due(&self, now: Instant, all: bool) -> Vec<(Arc<Actor>, What)> {
        let mut due = Vec::new();
        self.refusals().retain(|group, one| {
            let is_over = now.duration_since(one.since) >= WINDOW;
            if one.count > 0 && (is_over || all || !one.begun) {
                due.push(recorded(group, one));
                (one.count, one.begun) = (0, true);
                if is_over {
                    one.since = now;
                }
                return true;
            }
            !is_over
        });
        due
    }

    /// Records the refusals for as long as the service runs.
    pub(crate) async fn record_in_rounds(&self) {
        loop {
            let _ = tokio::time::timeout(Duration::from_secs(1), self.news.notified()).await;
            self.record(false).await;
        }
    }

    /// Records all refusals that are not recorded yet.
    pub(crate) async fn record_all(&self) {
        self.record(true).await;
    }

    async fn record(&self, all: bool) {
        let due = self.due(Instant::now(), all);
        for (actor, what) in &due {
            log(actor, what);
        }
        if !due.is_empty()
            && let Err(error) = self.store.record(due).await
        {
            tracing::error!(%error, "refusals are in the log only, because their events cannot be recorded");
        }
    }
}

fn recorded(group: &Group, refusals: &Refusals) -> (Arc<Actor>, What) {
    let cut = |text: &str| escape(&text.chars().take(LENGTH).collect::<String>()).into_owned();
    let RefusedRequest { method, path, status, rule, reason } = &refusals.last;
    let to = json!({
        "method": cut(method), "path": cut(path), "status": status, "rule": rule, "count": refusals.count,
    });
    let what =
        What { reason: Some(cut(reason)), ..event::of_kind(EventKind::RequestRefused, None, Some(to)) };
    let actor = match group {
        Group::Caller(..) => Arc::clone(&refusals.actor),
        Group::Others(true) => Arc::new("several users".into()),
        Group::Others(false) => Arc::new("several unidentified clients".into()),
    };
    (actor, what)
}

fn log(actor: &Actor, what: &What) {
    let request = what.to.clone().unwrap_or_default();
    let text = |key: &str| request[key].as_str().unwrap_or("-").to_owned();
    let fields = Fields::of(actor);
    tracing::info!(
        target: "hotslot::audit",
        user = fields.user, project = fields.project, roles = fields.roles, via = fields.via,
        global_request_id = fields.global_request, status = request["status"].as_u64(),
        rule = text("rule"), count = request["count"].as_u64(),
        "refused {} {} to {}: {}", text("method"), text("path"), actor.who, what.reason.as_deref().unwrap_or("-")
    );
}

/// An actor as the fields of a log line.
#[derive(Debug)]
pub struct Fields<'a> {
    /// The name of the user, or `-`.
    pub user: &'a str,
    /// The id of the project, or `-`.
    pub project: &'a str,
    /// The roles, separated by commas.
    pub roles: String,
    /// How the caller was identified, and the connection.
    pub via: &'a str,
    /// The global request id, or `-`.
    pub global_request: &'a str,
}

impl<'a> Fields<'a> {
    /// Returns the fields of an actor.
    pub fn of(actor: &'a Actor) -> Self {
        Self {
            user: actor.user.as_ref().map_or("-", |user| user.name.as_str()),
            project: actor.project.as_deref().unwrap_or("-"),
            roles: actor.roles.iter().map(String::as_str).collect::<Vec<_>>().join(","),
            via: actor.via.as_deref().unwrap_or("-"),
            global_request: actor.global_request.as_deref().unwrap_or("-"),
        }
    }
}
