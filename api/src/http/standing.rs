//! Whether whoever sent a request may still see the answer. The stream of the events lasts longer than a token or a session
//! may be valid.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRef;
use axum::http::request::Parts;
use hotslot_model::identity::Target;
use tokio::time::Instant;

use super::identity::{caller, shows_token};
use super::state::{App, IdentityParts};

/// How often a caller without a token is identified again. The kernel knows such a caller, or a proxy: only another
/// configuration changes who that is.
const SELDOM: Duration = Duration::from_secs(15);

/// Identifies callers by what is in force at that time.
#[derive(Clone)]
pub(super) struct LaterIdentity(App);

impl FromRef<App> for LaterIdentity {
    fn from_ref(app: &App) -> Self {
        Self(app.clone())
    }
}

/// Answers whether a person is still signed in.
pub(super) type StillSignedIn = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a request showed of its caller. The page puts that of its own request among the extensions of those that it sends
/// in this process.
#[derive(Clone)]
pub(super) struct Shown {
    parts: Arc<Parts>,
    signed_in: Option<StillSignedIn>,
}

impl Shown {
    /// Keeps what a request showed; `signed_in` is there when that comes from a session.
    pub(super) fn of(parts: Parts, signed_in: Option<StillSignedIn>) -> Self {
        Self { parts: Arc::new(parts), signed_in }
    }
}

/// A caller who may lose the right to see an answer while it is sent.
pub(super) struct Standing {
    later: LaterIdentity,
    shown: Shown,
    rule: &'static str,
    checked: Instant,
}

impl Standing {
    /// Keeps the caller of a request that a rule has admitted just now.
    pub(super) fn of(later: LaterIdentity, parts: Parts, rule: &'static str) -> Self {
        let shown = parts.extensions.get::<Shown>().cloned();
        let shown = shown.unwrap_or_else(|| Shown::of(parts, None));
        Self { later, shown, rule, checked: Instant::now() }
    }

    /// Whether the caller is still identified, and admitted by the rule.
    pub(super) async fn holds(&mut self) -> bool {
        let parts = &self.shown.parts;
        if self.shown.signed_in.as_ref().is_some_and(|signed_in| !signed_in()) {
            return false;
        }
        if !shows_token(&parts.headers) && self.checked.elapsed() < SELDOM {
            return true;
        }
        self.checked = Instant::now();
        let identity = IdentityParts::from_ref(&self.later.0);
        let found = caller(&identity, parts).await;
        found.is_ok_and(|caller| identity.policy.require(&caller, self.rule, Target::Of(None)).is_ok())
    }
}
