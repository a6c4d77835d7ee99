//! Accelerator requests that were left in the middle are settled at the start and once a minute. Until then they are
//! shown as they will be settled.

use std::sync::Arc;
use std::time::Duration;

use hotslot_store::actor::{self, system};

use super::cyborg::Cyborg;

/// The time between two rounds.
const ROUND: Duration = Duration::from_secs(60);

/// Settles accelerator requests for as long as the service runs.
pub(crate) async fn in_rounds(cyborg: Arc<Cyborg>) {
    loop {
        let work = actor::scope(system::COMPARISON, cyborg.settle_arqs());
        if let Err(error) = actor::as_process(cyborg.store.new_worker(), work).await {
            tracing::error!(%error, "accelerator requests cannot be settled; it is tried again");
        }
        tokio::time::sleep(ROUND).await;
    }
}
