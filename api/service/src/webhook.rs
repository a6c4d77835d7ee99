//! Webhooks: events told by POST, each webhook in the order of the events and each event at least once.
//!
//! ```text
//! table events ──▶ POST ── 2xx ──▶ told            (webhooks.told)
//!                   │ ▲ else: again, later and later
//!                   └─┘── after the last attempt ──▶ dead_letters, and on with the next event
//! ```
//! How far a webhook was told is on record, so that a restart goes on there. A dead letter is tried again when
//! someone asks for it. Of several processes one tells a webhook, and another one goes on when that ends.

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
use crate::events::wire;

/// How long after an attempt that failed the next one is made: after the first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// How many events are read at a time.
const PAGE: usize = 100;

/// How long it may be that what was told is not on record: so much is told twice after a kill.
const UNRECORDED: Duration = Duration::from_secs(1);

/// A configured webhook.
pub struct Webhook {
    /// Its configuration.
    pub config: config::Webhook,
    url: Url,
    key: Hmac<Sha256>,
    client: reqwest::Client,
    progress: Mutex<Progress>,
    again: Notify,
}

/// How a webhook is getting on.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Up to which event it was told.
    pub told: Option<EventId>,
    /// When it was last told something, since the service started.
    pub told_at: Option<Millis>,
    /// How often the event that is its turn was tried.
    pub attempts: u32,
    /// Why that failed the last time.
    pub reason: Option<String>,
    /// When it is tried again.
    pub next_at: Option<Millis>,
}

/// Why a webhook's work stops.
enum Stop {
    /// The service ends.
    Ending,
    /// Another process tells it.
    Elsewhere,
    /// The database fails.
    Records(hotslot_store::Error),
}

/// What of the service a webhook needs.
pub(crate) struct Context {
    /// Where the events are.
    pub(crate) store: Store,
    /// Whether the service is about to end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl Context {
    /// Waits until the service is about to end.
    async fn ending(&self) {
        // The sender is the service's own.
        let _ = self.stopping.clone().wait_for(|stop| *stop).await;
    }
}

impl From<hotslot_store::Error> for Stop {
    fn from(error: hotslot_store::Error) -> Self {
        Self::Records(error)
    }
}

/// The URL of a webhook.
///
/// # Errors
/// What would be right.
pub(crate) fn url(text: &str) -> Result<Url, String> {
    let write = "write http://HOST:PORT/PATH";
    // The URL itself is not repeated: its path may be a secret.
    let url = Url::parse(text).map_err(|error| format!("it is no URL ({error}); {write}"))?;
    match url.scheme() {
        "http" if !url.username().is_empty() || url.password().is_some() => {
            Err(format!("a user or password in it is not sent; the signature tells who calls; {write}"))
        }
        "http" => Ok(url),
        "https" => Err(format!("https is not spoken yet; {write} of something near that speaks it")),
        other => Err(format!("`{other}` is not spoken; {write}")),
    }
}

impl Webhook {
    /// # Errors
    /// [`ConfigError::Value`].
    pub(crate) fn new(config: config::Webhook) -> Result<Self, ConfigError> {
        let bad = |key: &str, reason: String| ConfigError::Value {
            key: format!("[[webhook]] {}: {key}", config.name),
            reason,
        };
        let url = url(&config.url.0).map_err(|reason| bad("url", reason))?;
        let key = Hmac::new_from_slice(config.secret.0.as_bytes());
        let key = key.map_err(|error| bad("secret", error.to_string()))?;
        // It is told as it stands: by no proxy, and wherever it says that it is now, it is not.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .timeout(config.timeout.0)
            .user_agent(concat!("hotslot/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad("url", error.to_string()))?;
        Ok(Self { config, url, key, client, progress: Mutex::default(), again: Notify::new() })
    }

    /// Where it is, without what may be a secret in its path.
    pub fn origin(&self) -> String {
        self.url.origin().ascii_serialization()
    }

    /// How it is getting on.
    pub fn progress(&self) -> Progress {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Tries what could not be told once more, and what it is the turn of, now.
    pub fn try_again(&self) {
        self.again.notify_one();
    }

    fn wants(&self, event: &Event) -> bool {
        let kinds = &self.config.kinds;
        kinds.is_empty() || kinds.iter().any(|kind| event.what.kind.is_of(kind))
    }

    /// Tells a webhook what happens for as long as the service runs, unless another process does.
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

    /// Tells a webhook what happens for as long as no other process does.
    async fn take_turn(&self, context: &Context) -> Result<(), Stop> {
        let name = &self.config.name;
        let Some(turn) = context.store.locks().try_lock(format!("webhook {name}")).await? else {
            return Err(Stop::Elsewhere);
        };
        let mut committed = context.store.event_ids();
        let mut told = context.store.told(name).await?;
        self.note(|progress| progress.told = Some(told));
        loop {
            committed.mark_unchanged();
            let failed = match self.catch_up(context, &turn, &mut told).await {
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
        tracing::error!(webhook = name, %error, "what webhook {name} is to be told cannot be read");
    }

    /// Tells all that there is to tell.
    async fn catch_up(&self, context: &Context, turn: &Held, told: &mut EventId) -> Result<(), Stop> {
        let name = &self.config.name;
        self.redeliver(context, turn).await?;
        loop {
            let page = match context.store.events(*told, &EventFilter::default(), PAGE).await {
                Err(hotslot_store::Error::Gone(reason)) => {
                    tracing::error!(webhook = name, reason, "webhook {name} misses events that were pruned");
                    *told = context.store.event_bounds().await?.pruned;
                    continue;
                }
                page => page?,
            };
            let mut recorded = Instant::now();
            for event in &page {
                let dead = if self.wants(event) { self.tell(context, turn, event).await? } else { None };
                *told = event.id;
                self.note(|progress| progress.told = Some(event.id));
                let last = page.last().is_some_and(|last| last.id == event.id);
                if last || dead.is_some() || recorded.elapsed() >= UNRECORDED {
                    context.store.set_told(name, *told, dead.as_ref()).await?;
                    recorded = Instant::now();
                }
            }
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }

    /// Tells an event, as often as it takes or as is configured; then it is a dead letter.
    async fn tell(&self, context: &Context, turn: &Held, event: &Event) -> Result<Option<DeadLetter>, Stop> {
        let name = &self.config.name;
        let mut attempts = 1;
        let reason = loop {
            let reason = match self.try_once(context, turn, event).await? {
                Ok(()) => {
                    self.note(|progress| {
                        let told = progress.told;
                        *progress = Progress { told, told_at: Some(now()), ..Progress::default() };
                    });
                    return Ok(None);
                }
                Err(reason) => reason,
            };
            tracing::warn!(webhook = name, event = %event.id, attempts, reason, "webhook {name} was not told");
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
        tracing::error!(webhook = name, event = %event.id, reason, "webhook {name} cannot be told; a dead letter");
        self.note(|progress| {
            (progress.attempts, progress.next_at) = (0, None);
            progress.reason = Some(reason.clone());
        });
        let (event, attempts) = (event.id, attempts.into());
        Ok(Some(DeadLetter { event, attempts, reason, died_at: now(), due: false }))
    }

    /// Tries dead letters that someone asked for once more.
    async fn redeliver(&self, context: &Context, turn: &Held) -> Result<(), Stop> {
        let (name, any) = (&self.config.name, EventFilter::default());
        while let Some(letter) = context.store.due_letter(name).await? {
            let events = context.store.events(EventId(letter.event.0 - 1), &any, 1).await?;
            // It may be pruned at any time, and its letter with it.
            let Some(event) = events.first().filter(|event| event.id == letter.event) else { return Ok(()) };
            let posted = self.try_once(context, turn, event).await?;
            let outcome = posted.as_ref().copied().map_err(String::as_str);
            context.store.tried_again(name, letter.event, outcome).await?;
        }
        Ok(())
    }

    /// One attempt, as long as it is for this process to make.
    async fn try_once(
        &self,
        context: &Context,
        turn: &Held,
        event: &Event,
    ) -> Result<Result<(), String>, Stop> {
        if !context.store.locks().has(turn).await? {
            return Err(Stop::Elsewhere);
        }
        tokio::select! {
            posted = self.post(event) => Ok(posted),
            () = context.ending() => Err(Stop::Ending),
        }
    }

    async fn post(&self, event: &Event) -> Result<(), String> {
        let body = wire(event).to_string();
        let request = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("x-hotslot-event-id", event.id.to_string())
            .header("x-hotslot-signature", signature(&self.key, now() / 1000, body.as_bytes()))
            .body(body);
        let limit = self.config.timeout.0.as_secs_f32();
        match request.send().await {
            // What it says besides is not read.
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(answered(response.status())),
            Err(error) if error.is_timeout() => Err(format!("no answer within {limit} s")),
            Err(error) => Err(cause(&error)),
        }
    }
}

fn answered(status: StatusCode) -> String {
    format!("it answered {status}, and not 2xx")
}

/// The innermost cause: what is around it names the URL.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if cause.is::<reqwest::Error>() { "the request failed".into() } else { cause.to_string() }
}

/// `t=<seconds since 1970>,v1=<hexadecimal HMAC-SHA256 of "<t>.<body>">`
fn signature(key: &Hmac<Sha256>, time: i64, body: &[u8]) -> String {
    let mac = key.clone().chain_update(format!("{time}.")).chain_update(body).finalize();
    let digits = mac.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("t={time},v1={digits}")
}

/// How long to wait after so many attempts: twice as long each time, and not at the same moment as others.
fn pause(attempts: u32) -> Duration {
    let longest = PAUSE.0.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1))).min(PAUSE.1);
    let half = longest / 2;
    let (random, _) = Uuid::new_v4().as_u64_pair();
    half + half.mul_f64((random >> 32) as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values are OpenSSL's: `printf 1700000000.BODY | openssl dgst -sha256 -hmac SECRET`.
    #[test]
    fn a_signature_is_what_others_compute() {
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
    fn pauses_double_and_end_at_the_longest() {
        for (attempts, longest) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (4_000_000_000, 300)] {
            for _ in 0..50 {
                let pause = pause(attempts).as_secs_f64();
                let longest = f64::from(longest);
                assert!((longest / 2.0..=longest).contains(&pause), "{attempts}: {pause}");
            }
        }
    }

    #[test]
    fn urls_are_http_and_what_is_wrong_does_not_repeat_them() {
        assert!(url("http://127.0.0.1:8080/hooks/a?b=c").is_ok());
        for (bad, why) in [
            ("https://x/tok3n", "not spoken yet"),
            ("ftp://x/tok3n", "`ftp` is not spoken"),
            ("tok3n", "no URL"),
            ("http://", "no URL"),
            ("http://user:tok3n@x/", "user or password"),
        ] {
            let said = url(bad).unwrap_err();
            assert!(said.contains(why) && !said.contains("tok3n"), "{said}");
        }
    }
}
