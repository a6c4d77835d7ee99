//! Webhooks: posts events to URLs. Each webhook gets the events in their order, each event at least once.
//!
//! ```text
//! table events ──▶ POST ── 2xx ──▶ delivered        (webhooks.told)
//!                   │ ▲ else: again, after a growing pause
//!                   └─┘── after the last attempt ──▶ dead_letters, then the next event
//! ```
//! The last delivered event is recorded, so that a restart continues after it. A dead letter is posted again on
//! request. Of several processes one serves a webhook; another one continues when that process ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use hotslot_model::event::{Event, EventFilter};
use hotslot_model::id::EventId;
use hotslot_model::time::Millis;
use hotslot_store::{DeadLetter, Held, Store, now};
use reqwest::redirect::Policy;
use reqwest::{StatusCode, Url};
use sha2::Sha256;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{self, ConfigError};
use crate::error::Error;
use crate::events::wire;
use crate::hex::hex;
use crate::metrics::{self, Timer, WEBHOOK_POSTS};
use crate::{tls, trace};

/// The pause after the first failed attempt, and the longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How many events are read from the table at a time.
const PAGE: usize = 100;

/// How often the last delivered event is recorded. After a kill, the events of this time are posted again.
const UNRECORDED: Duration = Duration::from_secs(1);

/// A configured webhook.
pub struct Webhook {
    /// The configuration.
    pub config: config::Webhook,
    url: Url,
    key: Hmac<Sha256>,
    client: reqwest::Client,
    progress: Mutex<Progress>,
    again: Notify,
}

/// The configured webhooks.
pub struct Webhooks {
    webhooks: Vec<Arc<Webhook>>,
    store: Store,
}

impl Webhooks {
    pub(crate) fn new(webhooks: Vec<Arc<Webhook>>, store: Store) -> Self {
        Self { webhooks, store }
    }

    /// Returns all webhooks in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Webhook>> {
        self.webhooks.iter()
    }

    /// Returns the last event that was delivered to a webhook or became a dead letter. Another process may serve the
    /// webhook, so the records count too.
    ///
    /// # Errors
    /// The database's.
    pub async fn delivered(&self, webhook: &Webhook) -> Result<EventId, hotslot_store::Error> {
        let on_record = self.store.last_delivered(&webhook.config.name).await?;
        Ok(webhook.progress().delivered.map_or(on_record, |delivered| delivered.max(on_record)))
    }

    /// Queues all dead letters of a webhook for delivery again, and returns their number. They are posted when the
    /// webhook next [tries](Webhook::try_again).
    ///
    /// # Errors
    /// The database's.
    pub async fn redeliver(&self, webhook: &Webhook) -> Result<u64, Error> {
        Ok(self.store.redeliver(&webhook.config.name).await?)
    }
}

/// The progress of a webhook.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The last event that was delivered or became a dead letter; `None` while another process serves the webhook.
    pub delivered: Option<EventId>,
    /// When an event was last delivered, since the service started.
    pub delivered_at: Option<Millis>,
    /// How many attempts were made to deliver the current event.
    pub attempts: u32,
    /// Why the last attempt failed.
    pub reason: Option<String>,
    /// When the next attempt is made.
    pub next_at: Option<Millis>,
}

/// Why the work on a webhook stops.
enum Stop {
    /// The service ends.
    Ending,
    /// Another process serves the webhook.
    Elsewhere,
    /// The database failed.
    Records(hotslot_store::Error),
}

/// The parts of the service that a webhook uses.
pub(crate) struct Context {
    /// The records, with the events.
    pub(crate) store: Store,
    /// Becomes true when the service is about to end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Context {
    /// Waits until the service is about to end.
    async fn ending(&self) {
        // The sender belongs to the service and lives as long as it.
        let _ = self.stopping.clone().wait_for(|stop| *stop).await;
    }
}

impl From<hotslot_store::Error> for Stop {
    fn from(error: hotslot_store::Error) -> Self {
        Self::Records(error)
    }
}

/// Parses and checks the URL of a webhook.
///
/// # Errors
/// What is wrong and what would be right; the text does not repeat the URL.
pub(crate) fn url(text: &str) -> Result<Url, String> {
    let write = "write https://HOST:PORT/PATH";
    // Do not repeat the URL, because its path may be a secret.
    let url = Url::parse(text).map_err(|error| format!("not a URL ({error}); {write}"))?;
    match url.scheme() {
        "http" | "https" if !url.username().is_empty() || url.password().is_some() => Err(format!(
            "a user or password is not supported; the signature authenticates the sender; {write}"
        )),
        "http" | "https" => Ok(url),
        other => Err(format!("`{other}` is not supported; {write}")),
    }
}

impl Webhook {
    /// Prepares a configured webhook.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when its URL or secret cannot be used.
    pub(crate) fn new(config: config::Webhook) -> Result<Self, ConfigError> {
        let bad = |key: &str, reason: String| ConfigError::Value {
            key: format!("[[webhook]] {}: {key}", config.name),
            reason,
        };
        let url = url(&config.url.0).map_err(|reason| bad("url", reason))?;
        let key = Hmac::new_from_slice(config.secret.0.as_bytes());
        let key = key.map_err(|error| bad("secret", error.to_string()))?;
        let tls = tls::authorities_for(&url, config.ca.as_deref())
            .and_then(|authorities| tls::client(authorities, None))
            .map_err(|reason| bad("ca", reason))?;
        // Post to the configured URL only: use no proxy and follow no redirect.
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .timeout(config.timeout.0)
            .user_agent(concat!("hotslot/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad("url", error.to_string()))?;
        Ok(Self { config, url, key, client, progress: Mutex::default(), again: Notify::new() })
    }

    /// Returns scheme, host and port of the URL, without the path, which may be a secret.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// Returns the progress of the webhook.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the current pause: posts the current event and the requested dead letters now.
    pub fn try_again(&self) {
        self.again.notify_one();
    }

    fn wants(&self, event: &Event) -> bool {
        let kinds = &self.config.kinds;
        kinds.is_empty() || kinds.iter().any(|kind| event.what.kind.is_of(kind))
    }

    /// Serves the webhook for as long as the service runs, unless another process does.
    pub(crate) async fn follow(self: Arc<Self>, context: Context) {
        loop {
            match self.take_turn(&context).await {
                Err(Stop::Ending) => return,
                Err(Stop::Records(error)) => self.log(&error),
                Ok(()) | Err(Stop::Elsewhere) => self.note(|progress| *progress = Progress::default()),
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE.0) => {}
                () = context.ending() => return,
            }
        }
    }

    /// Serves the webhook while this process holds its lock.
    async fn take_turn(&self, context: &Context) -> Result<(), Stop> {
        let name = &self.config.name;
        let Some(turn) = context.store.locks().try_lock(format!("webhook {name}")).await? else {
            return Err(Stop::Elsewhere);
        };
        let mut committed = context.store.event_ids();
        let mut delivered = context.store.last_delivered(name).await?;
        self.note(|progress| progress.delivered = Some(delivered));
        loop {
            committed.mark_unchanged();
            let failed = match self.catch_up(context, &turn, &mut delivered).await {
                Ok(()) => false,
                Err(Stop::Records(error)) => {
                    self.log(&error);
                    true
                }
                Err(stop) => return Err(stop),
            };
            tokio::select! {
                _ = committed.changed(), if !failed => {}
                () = self.again.notified() => {}
                () = tokio::time::sleep(PAUSE.0), if failed => {}
                () = context.ending() => return Err(Stop::Ending),
            }
        }
    }

    fn log(&self, error: &hotslot_store::Error) {
        let name = &self.config.name;
        tracing::error!(webhook = name, %error, "the events for webhook {name} cannot be read");
    }

    /// Posts all events that were not posted yet, and the requested dead letters before them.
    async fn catch_up(&self, context: &Context, turn: &Held, delivered: &mut EventId) -> Result<(), Stop> {
        let name = &self.config.name;
        self.redeliver(context, turn).await?;
        loop {
            let page = match context.store.events(*delivered, &EventFilter::default(), PAGE).await {
                Err(hotslot_store::Error::Gone(reason)) => {
                    tracing::error!(webhook = name, reason, "webhook {name} misses events that were pruned");
                    *delivered = context.store.event_bounds().await?.pruned;
                    continue;
                }
                page => page?,
            };
            let mut recorded = Instant::now();
            for event in &page {
                let dead = if self.wants(event) { self.tell(context, turn, event).await? } else { None };
                *delivered = event.id;
                self.note(|progress| progress.delivered = Some(event.id));
                let last = page.last().is_some_and(|last| last.id == event.id);
                if last || dead.is_some() || recorded.elapsed() >= UNRECORDED {
                    context.store.set_delivered(name, *delivered, dead.as_ref()).await?;
                    recorded = Instant::now();
                }
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }

    /// Posts an event until it is delivered, or until the configured attempts have failed; then it returns a dead
    /// letter.
    async fn tell(&self, context: &Context, turn: &Held, event: &Event) -> Result<Option<DeadLetter>, Stop> {
        let name = &self.config.name;
        let mut attempts = 1;
        let reason = loop {
            let reason = match self.try_once(context, turn, event).await? {
                Ok(()) => {
                    self.note(|progress| {
                        let delivered = progress.delivered;
                        *progress = Progress { delivered, delivered_at: Some(now()), ..Progress::default() };
                    });
                    return Ok(None);
                }
                Err(reason) => reason,
            };
            tracing::warn!(webhook = name, event = %event.id, attempts, reason, "an event was not posted to webhook {name}");
            if attempts >= self.config.attempts {
                break reason;
            }
            let pause = pause(attempts);
            self.note(|progress| {
                (progress.attempts, progress.reason) = (attempts, Some(reason));
                progress.next_at = Some(now().saturating_add(pause.as_millis() as Millis));
            });
            attempts += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.again.notified() => self.redeliver(context, turn).await?,
                () = context.ending() => return Err(Stop::Ending),
            }
        };
        tracing::error!(webhook = name, event = %event.id, reason, "an event for webhook {name} became a dead letter");
        self.note(|progress| {
            (progress.attempts, progress.next_at) = (0, None);
            progress.reason = Some(reason.clone());
        });
        let (event, attempts) = (event.id, attempts.into());
        Ok(Some(DeadLetter { event, attempts, reason, died_at: now(), due: false }))
    }

    /// Posts the dead letters once more for which that was requested.
    async fn redeliver(&self, context: &Context, turn: &Held) -> Result<(), Stop> {
        let (name, any) = (&self.config.name, EventFilter::default());
        while let Some(letter) = context.store.due_letter(name).await? {
            let events = context.store.events(EventId(letter.event.0 - 1), &any, 1).await?;
            // The event may be pruned at any time, together with its dead letter.
            let Some(event) = events.first().filter(|event| event.id == letter.event) else { return Ok(()) };
            let posted = self.try_once(context, turn, event).await?;
            let outcome = posted.as_ref().copied().map_err(String::as_str);
            context.store.tried_again(name, letter.event, outcome).await?;
        }
        Ok(())
    }

    /// Makes one attempt to post an event, if this process still holds the lock of the webhook.
    async fn try_once(
        &self,
        context: &Context,
        turn: &Held,
        event: &Event,
    ) -> Result<Result<(), String>, Stop> {
        if !context.store.locks().has(turn).await? {
            return Err(Stop::Elsewhere);
        }
        let took = Timer::begin(&WEBHOOK_POSTS);
        tokio::select! {
            posted = self.post_traced(event) => {
                metrics::posted(&self.config.name, took, posted.is_ok());
                Ok(posted)
            }
            () = context.ending() => Err(Stop::Ending),
        }
    }

    /// Posts an event as a part of the trace of its request.
    async fn post_traced(&self, event: &Event) -> Result<(), String> {
        let name = format!("post to webhook {}", self.config.name);
        trace::later(name, event.actor.traceparent.as_deref(), self.post(event)).await
    }

    async fn post(&self, event: &Event) -> Result<(), String> {
        let body = wire(event).to_string();
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("x-hotslot-event-id", event.id.to_string())
            .header("x-hotslot-signature", signature(&self.key, now() / 1000, body.as_bytes()))
            .headers(trace::headers())
            .body(body);
        let limit = self.config.timeout.0.as_secs_f32();
        match request.send().await {
            // The body of the response is not read.
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(answered(response.status())),
            Err(error) if error.is_timeout() => Err(format!("no answer within {limit} s")),
            Err(error) => Err(cause(&error)),
        }
    }
}

fn answered(status: StatusCode) -> String {
    format!("it answered {status} instead of 2xx")
}

/// Returns the innermost cause of an error, because the outer ones repeat the URL.
fn cause(error: &reqwest::Error) -> String {
    if let Some(failure) = tls::Failure::of(error) {
        return failure.in_configuration();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if cause.is::<reqwest::Error>() { "the request failed".into() } else { cause.to_string() }
}

/// Returns the signature of a body: `t=<seconds since 1970>,v1=<hexadecimal HMAC-SHA256 of "<t>.<body>">`.
fn signature(key: &Hmac<Sha256>, time: i64, body: &[u8]) -> String {
    let mac = key.clone().chain_update(format!("{time}.")).chain_update(body).finalize();
    let digits = hex(mac.into_bytes());
    format!("t={time},v1={digits}")
}

/// Returns the pause after so many attempts. It doubles each time, and is shortened by a random part of up to half of
/// it.
fn pause(attempts: u32) -> Duration {
    let longest = PAUSE.0.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1))).min(PAUSE.1);
    let half = longest / 2;
    let (random, _) = Uuid::new_v4().as_u64_pair();
    half + half.mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values were computed by OpenSSL: `printf 1700000000.BODY | openssl dgst -sha256 -hmac SECRET`.
    #[test]
    fn signatures_agree_with_openssl() {
        for (secret, body, expected) in [
            (
                "0123456789abcdef",
                r#"{"id":1}"#,
                "4bcaced68dfea90a68df035b89cb7fb26692d899d32a1ccb1b0616cf48e4d1ed",
            ),
            (
                "a secret that is longer than one block of SHA-256, which is sixty-four bytes long",
                "",
                "83d4df45cc62c127b29dd7022f024c093053fccb92e29f508dd48f10d4992673",
            ),
        ] {
            let key = Hmac::new_from_slice(secret.as_bytes()).unwrap();
            let expected = format!("t=1700000000,v1={expected}");
            assert_eq!(signature(&key, 1_700_000_000, body.as_bytes()), expected);
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        for (attempts, longest) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (4_000_000_000, 300)] {
            for _ in 0..50 {
                let pause = pause(attempts).as_secs_f64();
                let longest = f64::from(longest);
                assert!((longest / 2.0..=longest).contains(&pause), "{attempts}: {pause}");
            }
        }
    }

    #[test]
    fn only_http_urls_are_accepted_and_errors_do_not_repeat_them() {
        assert!(url("http://127.0.0.1:8080/hooks/a?b=c").is_ok());
        assert!(url("https://hooks.example/a").is_ok());
        for (bad, why) in [
            ("ftp://x/tok3n", "`ftp` is not supported"),
            ("tok3n", "not a URL"),
            ("http://", "not a URL"),
            ("http://user:tok3n@x/", "user or password"),
            ("https://user:tok3n@x/", "user or password"),
        ] {
            let message = url(bad).unwrap_err();
            assert!(message.contains(why) && !message.contains("tok3n"), "{message}");
        }
    }
}
