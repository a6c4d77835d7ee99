//! Retention: removes events, and attachments, bindings and mediated devices that have ended, after the configured
//! time.

use std::sync::Arc;
use std::time::Duration;

use hotslot_store::{Ended, now};

use crate::config::{Age, Config};
use crate::error::Error;
use crate::service::Service;

/// How many rows are removed in one transaction.
const BATCH: i64 = 1000;

/// The shortest and the longest pause between two rounds.
const ROUND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Removes old rows at intervals for as long as the service runs.
pub(crate) async fn prune_in_rounds(service: Arc<Service>) {
    loop {
        let config = service.config.get();
        let keep = config.events.keep.0.min(config.records.keep_ended.0);
        let round = (keep / 10).clamp(ROUND.0, ROUND.1);
        match prune(&service, &config).await {
            Ok((0, 0)) => {}
            Ok((events, ended)) => {
                tracing::info!(events, ended, "pruned {events} events and {ended} rows that had ended");
            }
            Err(error) => tracing::error!(%error, "old rows cannot be pruned; it will be tried again"),
        }
        tokio::time::sleep(round).await;
    }
}

/// Removes rows that are too old. Returns the number of events and of ended rows that were removed.
async fn prune(service: &Service, config: &Config) -> Result<(u64, u64), Error> {
    // Only one process prunes at a time, because others would only wait for it.
    let Some(_one) = service.store.locks().try_lock("retention".into()).await? else { return Ok((0, 0)) };
    let (store, most) = (&service.store, config.events.most.into());
    let before = |keep: Age| now().saturating_sub(i64::try_from(keep.0.as_millis()).unwrap_or(i64::MAX));
    let of_events = before(config.events.keep);
    let of_ended = before(config.records.keep_ended);
    let (mut events, mut ended) = (0, 0);
    loop {
        let mut removed = store.prune_events(of_events, most, BATCH).await?;
        events += removed;
        for table in Ended::ALL {
            let count = store.prune_ended(*table, of_ended, BATCH).await?;
            (ended, removed) = (ended + count, removed + count);
        }
        if removed == 0 {
            return Ok((events, ended));
        }
        // Let other writers go first.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
