//! Keystone: whether a token is valid, and whose it is.
//!
//! ```text
//! token ── SHA-256 ──▶ cache ── no answer that is recent enough ──▶ GET /v3/auth/tokens, one request a token
//! ```
//! An answer is used for at most `[identity.keystone] cache`, and not after the token has expired. When Keystone does
//! not answer, nobody is let in by a token whose answer is older. Tokens are in no log, event or error.

mod client;
mod token;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hotslot_model::identity::{Caller, SERVICE, Scope, User, Via};
use hotslot_store::now;
use moka::Expiry;
use moka::future::Cache;
use reqwest::header::HeaderValue;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
pub use token::{ApplicationCredential, Entity, System, Token};
use tokio::time::Instant;

use self::client::{Client, Unavailable};
use crate::config::{self, ConfigError, keystone_url};

/// A token that Keystone has issued, as the value of a header. It is marked as sensitive.
pub type Issued = HeaderValue;

/// The maximum length of a token in bytes. Fernet tokens have about 200 bytes, JSON Web Tokens some more.
pub const TOKEN: usize = 8 * 1024;

/// The maximum size of all descriptions of tokens that are kept, in bytes.
const KEPT: u64 = 16 * 1024 * 1024;

/// The size that each kept answer has besides the description of its token, in bytes.
const ENTRY: usize = 256;

/// The longest time for which a token counts as not valid without another request to Keystone.
const NOT_VALID: Duration = Duration::from_secs(10);

/// How long the last answer of Keystone shows that it works.
const RECENT: Duration = Duration::from_secs(10);

/// Why a request is not authenticated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The token is malformed, expired, revoked, or not of this Keystone.
    #[error("the token is not valid, has expired or was revoked; get a new one from Keystone")]
    NotValid,
    /// The service token is malformed, expired, revoked, or not of this Keystone.
    #[error(
        "the service token (X-Service-Token) is not valid, has expired or was revoked; get a new one from Keystone"
    )]
    ServiceNotValid,
    /// Keystone knows no such user, the password is another one, or the user has no role in the project.
    #[error(
        "Keystone does not accept this sign-in; check the user name, the password, the project and the domains, and that \
         the user has a role in the project"
    )]
    NotAccepted,
    /// Keystone does not say whether the token or the password is valid. The log has the reason.
    #[error("Keystone cannot be asked who calls; repeat the request later")]
    Unavailable,
}

/// The tokens of a request, validated.
#[derive(Debug, Clone)]
pub struct Authenticated {
    /// The token of the user.
    pub user: Arc<Token>,
    /// Whether a service sent the request for the user, and showed a token of its own.
    pub by_service: bool,
}

impl Authenticated {
    /// Returns the caller of the request.
    pub fn caller(&self) -> Caller {
        let Token { user, roles, project, domain, system, .. } = &*self.user;
        let scope = match (project, domain, system) {
            (Some(_), _, _) => Scope::Project,
            (None, _, Some(System { all: true })) => Scope::System,
            (None, Some(_), _) => Scope::Domain,
            (None, None, _) => Scope::Unscoped,
        };
        let name = if user.name.is_empty() { user.id.clone() } else { user.name.clone() };
        Caller {
            user: Some(User { id: user.id.clone(), name }),
            roles: roles.clone(),
            project: project.as_ref().map(|project| project.id.clone()),
            scope,
            service: self.by_service || self.user.has_role(SERVICE),
            via: Via::Keystone,
        }
    }
}

/// The key of a kept answer: the SHA-256 of the token, and whether it may have expired.
type Key = ([u8; 32], bool);

/// Keystone's answer about a token.
#[derive(Clone)]
struct Answer {
    /// `None` when the token is not valid.
    token: Option<Arc<Token>>,
    /// The size of the description of the token, in bytes.
    size: usize,
    /// How long the answer is used.
    keep: Duration,
}

/// Gives each answer its own lifetime.
struct Lifetime;

impl Expiry<Key, Answer> for Lifetime {
    fn expire_after_create(&self, _: &Key, answer: &Answer, _: std::time::Instant) -> Option<Duration> {
        Some(answer.keep)
    }
}

/// A Keystone.
pub struct Keystone {
    client: Client,
    answers: Cache<Key, Answer>,
    /// How long an answer is used.
    bound: Duration,
    /// The time limit for the validation of one token.
    timeout: Duration,
    /// The URL at which callers find Keystone.
    public_url: String,
    /// When Keystone last answered or failed, and the failure.
    state: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Keystone {
    /// Prepares the use of a configured Keystone. It is not asked yet.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a key that cannot be used.
    pub fn new(config: &config::Keystone) -> Result<Self, ConfigError> {
        let bad =
            |key: &str, reason| ConfigError::Value { key: format!("[identity.keystone] {key}"), reason };
        let url = config.base().map_err(|reason| bad("url", reason))?;
        let public_url = config.public_url.as_deref().unwrap_or(&config.url);
        let public_url = keystone_url(public_url).map_err(|reason| bad("public_url", reason))?;
        let credential = config.credential().map_err(|(key, reason)| bad(key, reason))?;
        if credential.file().is_open_to_all() {
            tracing::warn!(
                "every user of this machine may read {}; run `chmod o= ` for it",
                credential.file()
            );
        }
        let client = Client::new(url, config.ca.as_deref(), credential, config.timeout.0)
            .map_err(|reason| bad("ca", reason))?;
        let answers = Cache::builder()
            .max_capacity(KEPT)
            .weigher(|_, answer: &Answer| u32::try_from(answer.size + ENTRY).unwrap_or(u32::MAX))
            .expire_after(Lifetime)
            .build();
        let (bound, timeout, public_url) = (config.cache.0, config.timeout.0, public_url.into());
        Ok(Self { client, answers, bound, timeout, public_url, state: Mutex::default() })
    }

    /// The URL at which callers find Keystone.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// Authenticates a request by the user's token and, where a service sends it, the token of the service. As in
    /// keystonemiddleware, a service may send a token of a user that has expired in the meantime; Keystone's
    /// `allow_expired_window` limits for how long.
    ///
    /// # Errors
    /// One of the tokens is not valid, or Keystone does not answer.
    pub async fn authenticate(&self, user: &str, service: Option<&str>) -> Result<Authenticated, Failure> {
        let mut by_service = false;
        if let Some(service) = service {
            let token = self.validate(service, false).await?.ok_or(Failure::ServiceNotValid)?;
            by_service = token.has_role(SERVICE);
        }
        let user = self.validate(user, by_service).await?.ok_or(Failure::NotValid)?;
        Ok(Authenticated { user, by_service })
    }

    /// Obtains a token for the body of a login, such as one with a password.
    ///
    /// # Errors
    /// Keystone does not accept the login, or does not answer.
    pub async fn sign_in(&self, login: &Value) -> Result<Issued, Failure> {
        let token = tokio::time::timeout(self.timeout, self.client.token_for(login)).await;
        let token = token.unwrap_or_else(|_| Err(Unavailable("it does not respond in time".into())));
        self.note(token.as_ref().map(drop).map_err(|error| error.0.clone()));
        let mut token = token.map_err(|_| Failure::Unavailable)?.ok_or(Failure::NotAccepted)?;
        token.set_sensitive(true);
        Ok(token)
    }

    /// Whether an answer about a token is known and recent enough.
    pub(crate) fn knows(&self, token: &str) -> bool {
        self.answers.contains_key(&(Sha256::digest(token.as_bytes()).into(), false))
    }

    /// Returns a token, or `None` when it is not valid.
    async fn validate(&self, token: &str, allow_expired: bool) -> Result<Option<Arc<Token>>, Failure> {
        let plain =
            token.len() <= TOKEN && !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let Some(mut header) = plain.then(|| HeaderValue::from_str(token).ok()).flatten() else {
            return Ok(None);
        };
        header.set_sensitive(true);
        let key = (Sha256::digest(token.as_bytes()).into(), allow_expired);
        // The cache lets one request for a token run, and gives its answer to all that wait for it.
        let answer = self.answers.try_get_with(key, self.ask(&header, allow_expired)).await;
        let answer = answer.map_err(|_| Failure::Unavailable)?;
        let in_time = |token: &Arc<Token>| allow_expired || token.expires_at > now();
        Ok(answer.token.filter(in_time))
    }

    /// Asks Keystone about a token.
    async fn ask(&self, token: &HeaderValue, allow_expired: bool) -> Result<Answer, Unavailable> {
        let answer = tokio::time::timeout(self.timeout, self.client.validate(token, allow_expired)).await;
        let answer = answer.unwrap_or_else(|_| Err(Unavailable("it does not respond in time".into())));
        self.note(answer.as_ref().map(drop).map_err(|error| error.0.clone()));
        Ok(match answer? {
            Some((token, size)) => {
                let left = u64::try_from(token.expires_at.saturating_sub(now())).unwrap_or(0);
                let keep =
                    if allow_expired { self.bound } else { self.bound.min(Duration::from_millis(left)) };
                Answer { token: Some(Arc::new(token)), size, keep }
            }
            None => Answer { token: None, size: 0, keep: self.bound.min(NOT_VALID) },
        })
    }

    /// Remembers whether Keystone answered, and logs it when that has changed.
    fn note(&self, outcome: Result<(), String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.replace((Instant::now(), outcome.clone())).map(|(_, before)| before);
        match (&outcome, before) {
            (Err(reason), before)
                if before.as_ref().and_then(|before| before.as_ref().err()) != Some(reason) =>
            {
                tracing::error!(
                    "Keystone cannot be asked about tokens, so nobody is let in by one: {reason}"
                );
            }
            (Ok(()), Some(Err(_))) => tracing::info!("Keystone validates tokens again"),
            (Ok(()) | Err(_), _) => {}
        }
    }

    /// Checks that Keystone answers and accepts hotslot's own user, unless it has answered in the last seconds.
    ///
    /// # Errors
    /// The text says what is wrong and what to do about it; it has no secret.
    pub async fn check(&self) -> Result<(), String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, outcome)) = state
            && at.elapsed() < RECENT
        {
            return outcome;
        }
        let validated = async {
            let own = self.client.own_token(None).await?;
            self.client.validate(&own, false).await
        };
        let outcome = match tokio::time::timeout(self.timeout, validated).await {
            Ok(outcome) => outcome.map(drop).map_err(|error| error.0),
            Err(_) => Err("it does not respond in time".into()),
        };
        self.note(outcome.clone());
        outcome
    }
}
