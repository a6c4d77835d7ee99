//! Retention: events are kept for as long as configured, and pruned in rounds.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::service::Service;
use crate::store::now;

/// How many events are removed in one transaction.
const BATCH: i64 = 1000;

/// The shortest and the longest time between two rounds.
const ROUND: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Prunes for as long as the service runs.
pub(crate) async fn prune_in_rounds(service: Arc<Service>) {
    let round = (service.config.events.keep.0 / 10).clamp(ROUND.0, ROUND.1);
    loop {
        match prune(&service).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "pruned {count} events"),
            Err(error) => tracing::error!(%error, "events cannot be pruned; it is tried again"),
        }
        tokio::time::sleep(round).await;
    }
}

async fn prune(service: &Service) -> Result<u64, Error> {
    // One process at a time, for the others would wait for it.
    let Some(_one) = service.store.locks().try_lock("retention".into()).await? else { return Ok(0) };
    let keep = i64::try_from(service.config.events.keep.0.as_millis()).unwrap_or(i64::MAX);
    let before = now().saturating_sub(keep);
    let mut pruned = 0;
    loop {
        match service.store.prune_events(before, service.config.events.most.into(), BATCH).await? {
            0 => return Ok(pruned),
            count => pruned += count,
        }
        // Whoever waits to write goes first.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
