//! How often each caller may send a request, and how often somebody may fail to show who calls.
//!
//! Each caller has a token bucket: a user in a project. Whoever is not identified shares one with the local user or the
//! address of the connection. Root and hotslot's own user are not limited, so that an operator can always act.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hotslot_model::identity::{Caller, Origin, Peer, Via};
use hotslot_model::rate::{Bucket, Rate};
use moka::future::Cache;
use nix::unistd::geteuid;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Api;

/// The largest number of buckets of each kind. Beyond it, the bucket that was used least is forgotten: then it is full.
const BUCKETS: u64 = 10_000;

/// After this time without a request a bucket is forgotten. It is full long before.
const IDLE: Duration = Duration::from_secs(600);

/// How many requests of one project may be under way at the same time, whoever sends them. Some wait for a guest. It is
/// less than half of the default `[api] queue` of a host, so that one project does not take it from all others.
const AT_ONCE: usize = 48;

/// A caller has sent too many requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// They came too fast.
    #[error(
        "too many requests: {} a second are allowed after {} at once; try again in {} s ([api] rate and burst)",
        .rate.per_second, .rate.burst, self.seconds()
    )]
    Fast {
        /// What is allowed.
        rate: Rate,
        /// After what time one more is allowed.
        wait: Duration,
    },
    /// Too many of them are under way.
    #[error("{AT_ONCE} requests of this project are under way; try again when one of them is answered")]
    UnderWay,
}

impl TooMany {
    /// The number of seconds after which a request may be allowed, at least 1.
    pub fn seconds(&self) -> u64 {
        match self {
            Self::Fast { wait, .. } => wait.as_secs() + 1,
            Self::UnderWay => 1,
        }
    }
}

/// Whose bucket it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    /// A user in a project or in none.
    Caller(String, Option<String>),
    /// A local user, or an address.
    Origin(Origin),
    /// A project, with all its users.
    Project(String),
}

/// Whether nothing is limited for the other end of a connection: root, and hotslot's own user.
pub fn is_exempt(origin: Origin) -> bool {
    matches!(origin, Origin::User(uid) if uid == 0 || uid == geteuid().as_raw())
}

impl Whose {
    fn of(caller: &Caller) -> Option<Self> {
        match (&caller.via, &caller.user) {
            (Via::Socket { uid, .. }, _) => Some(Self::Origin(Origin::User(*uid))),
            (_, Some(user)) => Some(Self::Caller(user.id.clone(), caller.project.clone())),
            (Via::Insecure(Some(address)), None) => Some(Self::Origin(Peer::Tcp(*address).origin())),
            (Via::Token(_) | Via::Keystone | Via::Headers | Via::Insecure(None), None) => None,
        }
    }

    fn is_exempt(&self) -> bool {
        matches!(self, Self::Origin(origin) if is_exempt(*origin))
    }
}

type Buckets = Cache<Whose, Arc<Mutex<Bucket>>>;

fn buckets<T: Clone + Send + Sync + 'static>() -> Cache<Whose, T> {
    Cache::builder().max_capacity(BUCKETS).time_to_idle(IDLE).build()
}

/// The buckets of all callers.
pub struct Rates {
    /// `None` when nothing is limited.
    rate: Option<Rate>,
    start: Instant,
    callers: Buckets,
    /// For failures to show who calls.
    failures: Buckets,
    /// The requests that each project may still begin; each caller, when it has no project.
    room: Cache<Whose, Arc<Semaphore>>,
}

impl Rates {
    pub(crate) fn new(api: &Api) -> Self {
        let rate = NonZeroU32::new(api.rate).map(|per_second| Rate { per_second, burst: api.burst });
        Self { rate, start: Instant::now(), callers: buckets(), failures: buckets(), room: buckets() }
    }

    /// Counts a request of a caller.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn count(&self, caller: &Caller) -> Result<(), TooMany> {
        let Some(whose) = Whose::of(caller) else { return Ok(()) };
        self.on(&self.callers, whose, Bucket::take).await
    }

    /// Begins a request of a project, which is under way until the permit is dropped. Administrators and services, which
    /// send requests for many projects, are not limited.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn begin(&self, caller: &Caller) -> Result<Option<OwnedSemaphorePermit>, TooMany> {
        let is_limited =
            |whose: &Whose| self.rate.is_some() && !whose.is_exempt() && !caller.is_service_or_admin();
        let Some(whose) = Whose::of(caller).filter(is_limited) else { return Ok(None) };
        let whose = caller.project.clone().map_or(whose, Whose::Project);
        let room = self.room.get_with(whose, async { Arc::new(Semaphore::new(AT_ONCE)) }).await;
        room.try_acquire_owned().map(Some).map_err(|_| TooMany::UnderWay)
    }

    /// Checks that the other end of a connection has not failed too often to show who calls. This comes before a token is
    /// validated, so that nobody tries many.
    ///
    /// # Errors
    /// [`TooMany`].
    pub async fn may_try(&self, peer: Peer) -> Result<(), TooMany> {
        self.on(&self.failures, Whose::Origin(peer.origin()), |bucket, rate, now| {
            match bucket.wait(rate, now) {
                Duration::ZERO => Ok(()),
                wait => Err(wait),
            }
        })
        .await
    }

    /// Counts a failure to show who calls.
    pub async fn count_failure(&self, peer: Peer) {
        // Requests that were under way together may fail more often than the bucket has tokens.
        let _ = self.on(&self.failures, Whose::Origin(peer.origin()), Bucket::take).await;
    }

    async fn on(
        &self,
        buckets: &Buckets,
        whose: Whose,
        act: impl FnOnce(&mut Bucket, Rate, Duration) -> Result<(), Duration>,
    ) -> Result<(), TooMany> {
        let Some(rate) = self.rate.filter(|_| !whose.is_exempt()) else { return Ok(()) };
        let bucket = buckets.get_with(whose, async { Arc::default() }).await;
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut bucket, rate, self.start.elapsed()).map_err(|wait| TooMany::Fast { rate, wait })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hotslot_model::identity::User;

    use super::*;

    fn rates() -> Rates {
        let one = NonZeroU32::MIN;
        Rates::new(&Api { rate: 1, burst: one, ..Api::default() })
    }

    fn caller(user: &str, project: Option<&str>) -> Caller {
        let user = User { id: user.into(), name: user.into() };
        Caller::with_roles(Some(user), BTreeSet::new(), project.map(str::to_owned), Via::Keystone)
    }

    #[tokio::test]
    async fn each_user_in_each_project_has_a_bucket() {
        let rates = rates();
        for (user, project, admitted) in [
            ("a", Some("p"), true),
            ("a", Some("p"), false),
            ("a", Some("q"), true),
            ("a", None, true),
            ("b", Some("p"), true),
            ("b", Some("p"), false),
        ] {
            let outcome = rates.count(&caller(user, project)).await;
            assert_eq!(outcome.is_ok(), admitted, "{user} {project:?}");
            if let Err(many) = outcome {
                assert_eq!(many.seconds(), 1);
                assert!(many.to_string().contains("1 a second"), "{many}");
            }
        }
    }

    #[tokio::test]
    async fn the_users_of_a_project_share_the_requests_that_may_be_under_way() {
        let rates = rates();
        let mut held = Vec::new();
        for number in 0..AT_ONCE {
            let user = format!("user-{}", number % 5);
            held.push(rates.begin(&caller(&user, Some("p"))).await.unwrap());
        }
        let refused = rates.begin(&caller("user-9", Some("p"))).await.unwrap_err();
        assert!(refused.to_string().contains("48 requests of this project"), "{refused}");
        rates.begin(&caller("user-0", Some("q"))).await.unwrap();
        held.pop();
        rates.begin(&caller("user-9", Some("p"))).await.unwrap();
    }

    #[tokio::test]
    async fn failures_are_counted_by_local_user_or_address_and_root_is_exempt() {
        let rates = rates();
        let at = |text: &str| Peer::Tcp(text.parse().unwrap());
        let unix = |uid| Peer::Unix { uid, gid: 0, pid: None };
        for (failed, same, other) in [
            (at("192.0.2.1:1"), at("192.0.2.1:2"), at("192.0.2.2:1")),
            (at("[2001:db8::1]:1"), at("[2001:db8::2]:1"), at("[2001:db8:0:1::1]:1")),
            (unix(99_999), unix(99_999), unix(99_998)),
        ] {
            rates.may_try(failed).await.unwrap();
            rates.count_failure(failed).await;
            rates.may_try(same).await.unwrap_err();
            rates.may_try(other).await.unwrap();
        }
        for uid in [0, geteuid().as_raw()] {
            rates.count_failure(unix(uid)).await;
            rates.may_try(unix(uid)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_memory_of_buckets_is_bounded() {
        let rates = rates();
        for uid in 1..30_000 {
            rates.count_failure(Peer::Unix { uid: 100_000 + uid, gid: 0, pid: None }).await;
        }
        rates.failures.run_pending_tasks().await;
        assert!(rates.failures.entry_count() <= BUCKETS);
    }
}
