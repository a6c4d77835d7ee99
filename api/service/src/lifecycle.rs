//! The end of the service: followers of events receive it, and requests that change something are waited for.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};

/// Whether the service is about to end, and the requests that it waits for before it does.
#[derive(Debug, Default)]
pub struct Lifecycle {
    stopping: watch::Sender<bool>,
    /// Read-locked by each request that may change something, until it is done.
    requests: Arc<RwLock<()>>,
}

impl Lifecycle {
    /// Announces that the service is about to end to those who would otherwise follow events for ever.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Returns a receiver that becomes true when the service is about to end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Waits until the service is about to end.
    pub async fn ending(&self) {
        // The sender cannot be gone before this is.
        let _ = self.stopping().wait_for(|stop| *stop).await;
    }

    /// Begins a request that may change something; it is done when the guard is dropped.
    pub async fn begin_request(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.requests).read_owned().await
    }

    /// Waits until all requests that may change something are done, including those whose clients have gone.
    pub async fn requests_done(&self) {
        drop(self.requests.write().await);
    }
}
