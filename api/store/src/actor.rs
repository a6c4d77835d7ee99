//! The actor of a task: a request, or a task of hotslot itself. Events record it.

use std::sync::Arc;

use hotslot_model::identity::Actor;
use opentelemetry::trace::FutureExt as _;
use tokio::task::JoinHandle;
use tokio::task::futures::TaskLocalFuture;

tokio::task_local! {
    static WHO: Arc<Actor>;
    static WORKER: Option<Arc<str>>;
}

/// The actors for work of hotslot itself.
pub mod system {
    /// Reading the devices of a host.
    pub const DISCOVERY: &str = "discovery";
    /// Comparing all records with the domains of a hypervisor.
    pub const COMPARISON: &str = "comparison";
    /// Handling an event of a hypervisor.
    pub const EVENT: &str = "event";
    /// Reading the address of a device from a guest.
    pub const VERIFICATION: &str = "verification";
    /// Scrubbing devices that were used.
    pub const SCRUB: &str = "scrub";
    /// Making what the profile of a host says.
    pub const PROFILE: &str = "profile";
}

/// Returns the actor of the current task.
pub fn current() -> Arc<Actor> {
    WHO.try_with(Arc::clone).unwrap_or_else(|_| Arc::new("hotslot".into()))
}

/// Runs a future on behalf of an actor.
pub fn scope<F: Future>(who: impl Into<Actor>, work: F) -> TaskLocalFuture<Arc<Actor>, F> {
    scope_as(Arc::new(who.into()), work)
}

/// Runs a future on behalf of an actor that others use too.
pub fn scope_as<F: Future>(who: Arc<Actor>, work: F) -> TaskLocalFuture<Arc<Actor>, F> {
    WHO.scope(who, work)
}

/// Runs a future under a process id. After other processes have removed that id from the record, the future cannot
/// commit any change.
pub fn as_process<F: Future>(worker: Option<Arc<str>>, work: F) -> TaskLocalFuture<Option<Arc<str>>, F> {
    WORKER.scope(worker, work)
}

/// Returns the process id under which the current task began. Returns `None` when it is not known, or when no other
/// process can use the database.
pub fn worker() -> Option<Arc<str>> {
    WORKER.try_with(Option::clone).unwrap_or_default()
}

/// Spawns a task with the actor, the process id and the trace of the current one.
pub fn spawn_as_current<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(WORKER.scope(worker(), WHO.scope(current(), work)).with_current_context())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spawned_task_inherits_the_actor() {
        assert_eq!(current().who, "hotslot");
        let inner =
            scope("request req-1", async { spawn_as_current(async { current() }).await.unwrap() }).await;
        assert_eq!(inner.who, "request req-1");
    }
}
