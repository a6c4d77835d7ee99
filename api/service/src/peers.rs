//! The other processes that use the same PostgreSQL database: this process reads what they commit, and takes over the
//! work of a process that has ended.
//!
//! Every process follows every host and records its observations through the same function, which writes nothing when
//! the record agrees already. Locks between processes cover the work that only one may do at a time: an attach to a
//! server, the work on an attachment, the IOMMU groups of a host, a change of the rules.

use std::sync::Arc;
use std::time::Duration;

use hotslot_store::{Notification, Process};

use crate::error::Error;
use crate::service::Service;

/// How often this process checks whether another one has ended, and the pause after a failure.
const LOOK: Duration = Duration::from_secs(1);

/// How many checks in a row must find a process of another machine missing before its work is taken over. Its
/// connection may only have broken for a moment.
const MISSING: u32 = 3;

/// Follows the other processes for as long as the service runs.
pub(crate) async fn follow(service: Arc<Service>) {
    let watching = watch(Arc::clone(&service));
    let hearing = async {
        loop {
            match hear(&service).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "cannot read what other processes commit"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::join!(watching, hearing);
}

/// Updates the rows in memory when other processes commit. Returns at once when there can be no other processes.
async fn hear(service: &Arc<Service>) -> Result<(), Error> {
    let Some(mut heard) = service.store.listen().await? else { return Ok(()) };
    let mut news = Notification::Rules;
    let mut out = service.store.overdue_elsewhere();
    loop {
        service.store.refresh().await?;
        let still_out = service.store.overdue_elsewhere();
        for call in out.iter().filter(|call| !still_out.iter().any(|other| other.is_same(call))) {
            if let Some(host) = service.hosts.host(call.hypervisor) {
                host.call_returned(call.server, call.address);
            }
        }
        out = still_out;
        if news == Notification::Rules {
            service.catalog.follow_rules().await?;
        }
        if news != Notification::Records {
            service.webhooks.iter().for_each(|webhook| webhook.try_again());
        }
        news = heard.next().await?;
    }
}

/// Takes over the work of processes that have ended.
async fn watch(service: Arc<Service>) {
    if !service.store.is_shared() {
        return;
    }
    let (mut missing, mut unread): (Vec<(Process, u32)>, bool) = Default::default();
    let mut this = service.store.new_worker();
    loop {
        let mut open = unread || !missing.is_empty() || service.store.was_in_doubt();
        // This also reads changes whose notifications were lost.
        let ended = async {
            service.store.refresh().await?;
            service.store.ended().await
        };
        let ended = ended
            .await
            .inspect_err(|error| tracing::warn!(%error, "cannot check whether other processes have ended"));
        unread = ended.is_err();
        let before = |process: &Process| missing.iter().find(|(other, _)| other == process);
        let count = |process: Process| {
            let times = before(&process).map_or(0, |(_, times)| *times) + 1;
            (process, times)
        };
        missing = ended.unwrap_or_default().into_iter().map(count).collect();
        // If others took over the work of this process, it has a new id now and has to compare all hosts.
        let now = service.store.new_worker();
        open |= std::mem::replace(&mut this, now.clone()) != now;
        let mut left = Vec::new();
        for (process, times) in missing {
            if times >= MISSING || process.has_exited() {
                match fail_over(&service, &process).await {
                    Ok(()) => {
                        open = true;
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the work of an ended process cannot be taken over yet")
                    }
                }
            }
            left.push((process, times));
        }
        missing = left;
        // Compare all hosts, as at a start, because commits may have been missed or work been taken over. If this
        // process ends before that is done, another one does the same for it.
        if open && !unread && missing.is_empty() {
            service.hosts.iter().for_each(|host| host.queue_full_check());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn fail_over(service: &Service, process: &Process) -> Result<(), Error> {
    let Some(_one) = service.store.locks().try_lock(process.id.to_string()).await? else { return Ok(()) };
    tracing::warn!(
        host = %process.host, pid = process.pid,
        "process {} on {} has ended; its work is taken over", process.pid, process.host
    );
    Ok(service.store.forget_process(process).await?)
}
