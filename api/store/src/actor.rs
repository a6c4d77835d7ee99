//! On whose behalf a task works: a request, or hotslot on its own. The events say it.

use std::sync::Arc;

use tokio::task::JoinHandle;

tokio::task_local! {
    static WHO: Arc<str>;
    static WORKER: Option<Arc<str>>;
}

/// What hotslot does on its own account.
pub mod system {
    /// Reading what a host has.
    pub const DISCOVERY: &str = "discovery";
    /// Comparing all records with what a hypervisor has.
    pub const COMPARISON: &str = "comparison";
    /// Following what a hypervisor says has happened.
    pub const EVENT: &str = "event";
    /// Asking a guest where it sees a device.
    pub const VERIFICATION: &str = "verification";
}

/// Whom the running task works for.
pub fn current() -> Arc<str> {
    WHO.try_with(Arc::clone).unwrap_or_else(|_| "hotslot".into())
}

/// Does something on someone's behalf.
pub async fn scope<F: Future>(who: impl Into<Arc<str>>, work: F) -> F::Output {
    WHO.scope(who.into(), work).await
}

/// Does something as the process that this one is on record as now. Once others have taken that one for dead, and gone
/// on with what it did, the work can change nothing any more.
pub async fn as_process<F: Future>(worker: Option<Arc<str>>, work: F) -> F::Output {
    WORKER.scope(worker, work).await
}

/// The process that the running task began as; none when that is not known, or there can be no others.
pub fn worker() -> Option<Arc<str>> {
    WORKER.try_with(Option::clone).unwrap_or_default()
}

/// A task that works for whom this one does, as the same process.
pub fn spawn_as_current<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    tokio::spawn(WORKER.scope(worker(), WHO.scope(current(), work)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_works_for_whom_the_one_did_that_began_it() {
        assert_eq!(&*current(), "hotslot");
        let inner =
            scope("request req-1", async { spawn_as_current(async { current() }).await.unwrap() }).await;
        assert_eq!(&*inner, "request req-1");
    }
}
