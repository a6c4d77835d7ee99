//! What the service tells the service manager: that it is ready, that it still works, and that it stops (sd_notify(3)).
//!
//! systemd names its socket in `NOTIFY_SOCKET`, and the time limit of its watchdog in `WATCHDOG_USEC`. Without them
//! these functions do nothing.

use std::sync::Arc;
use std::time::Duration;

use hotslot_service::service::Service;
use sd_notify::NotifyState;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// How often the status is brought up to date at least.
const STATUS: Duration = Duration::from_secs(5);

/// Tells the service manager that the service answers requests at `address`, and starts the task that tells it again
/// and again that the service still works.
pub(crate) fn ready(service: &Arc<Service>, address: &str) {
    let status = format!("answers at {address}; {}", hosts(service));
    say(&[NotifyState::Ready, NotifyState::Status(&status)]);
    if std::env::var_os("NOTIFY_SOCKET").is_some() {
        // At least three signs of life within the time limit, so that a single late one has no effect.
        let every = sd_notify::watchdog_enabled().map_or(STATUS, |limit| STATUS.min(limit / 3));
        tokio::spawn(live(Arc::clone(service), address.to_owned(), every.max(Duration::from_millis(1))));
    }
}

/// Tells the service manager that the service reads its configuration again.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => say(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager cannot be informed of a reload"),
    }
}

/// Tells the service manager that the configuration was read again.
pub(crate) fn reloaded(service: &Service, address: &str) {
    say(&[NotifyState::Ready, NotifyState::Status(&format!("answers at {address}; {}", hosts(service)))]);
}

/// Tells the service manager that the service stops.
pub(crate) fn stopping() {
    say(&[NotifyState::Stopping, NotifyState::Status("waits for the requests that are under way")]);
}

/// Sends a sign of life at each `every`, until the service stops. Each is sent only after the runtime has run this task
/// and the database has answered.
///
/// When SQLite does not answer, this process is stuck, and the service manager must start it again. A PostgreSQL server
/// that does not answer is no such reason: a new process could not start without it, and calls to libvirt that are
/// under way would be lost. The status reports it.
async fn live(service: Arc<Service>, address: String, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let remote = service.records.worker().is_some();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = service.lifecycle.ending() => return,
        }
        let database = match tokio::time::timeout(every, service.records.ping()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("the database reports an error: {error:?}")),
            Err(_) => Some(format!("the database has not answered for {every:?}")),
        };
        let works = remote || database.is_none();
        if let Some(problem) = &database {
            tracing::warn!("{problem}");
        }
        let status = match database {
            None => format!("answers at {address}; {}", hosts(&service)),
            Some(problem) => format!("{problem}; {}", hosts(&service)),
        };
        let sent: JoinHandle<()> = tokio::task::spawn_blocking(move || {
            say(&[NotifyState::Status(&status)]);
            if works {
                say(&[NotifyState::Watchdog]);
            }
        });
        let _ = sent.await;
    }
}

fn hosts(service: &Service) -> String {
    let connected = service.hosts.iter().filter(|host| host.hypervisor.connection().is_ok()).count();
    format!("{connected} of {} hosts are connected", service.hosts.iter().count())
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be informed of the service's state");
    }
}
