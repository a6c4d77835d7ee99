//! The other processes over one PostgreSQL: what they commit is followed, and what one leaves that dies is taken
//! over.
//!
//! Every process follows every host, and settles what it sees there through the same function; what is so already
//! is not written. What needs one hand at a time is locked between processes: an attach to a server, the work on an
//! attachment, the groups of a host, a change of the rules.

use std::sync::Arc;
use std::time::Duration;

use hotslot_store::{Notification, Process};

use crate::error::Error;
use crate::service::Service;

/// How often it is looked whether another process has ended, and how often what failed is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// How often in a row one of another machine must be missing: its connection may have broken, and come back.
const MISSING: u32 = 3;

/// Follows the other processes for as long as the service runs.
pub(crate) async fn follow(service: Arc<Service>) {
    let watching = watch(Arc::clone(&service));
    let hearing = async {
        loop {
            match hear(&service).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, "other processes are not heard"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::join!(watching, hearing);
}

/// Keeps what is in memory as new as what other processes commit. Ends when there are no others.
async fn hear(service: &Arc<Service>) -> Result<(), Error> {
    let Some(mut heard) = service.store.listen().await? else { return Ok(()) };
    let mut news = Notification::Rules;
    let mut out = service.store.overdue_elsewhere();
    loop {
        service.store.refresh().await?;
        let still_out = service.store.overdue_elsewhere();
        for call in out.iter().filter(|call| !still_out.iter().any(|other| other.is_same(call))) {
            if let Some(host) = service.hosts.host(call.hypervisor) {
                host.came_back(call.server, call.address);
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

/// Takes over what processes leave that end.
async fn watch(service: Arc<Service>) {
    if !service.store.is_shared() {
        return;
    }
    let (mut missing, mut away): (Vec<(Process, u32)>, bool) = Default::default();
    let mut this = service.store.new_worker();
    loop {
        let mut open = away || !missing.is_empty() || service.store.was_in_doubt();
        // Whoever did not hear of something finds it here.
        let ended = async {
            service.store.refresh().await?;
            service.store.ended().await
        };
        let ended =
            ended.await.inspect_err(|error| tracing::warn!(%error, "other processes cannot be watched"));
        away = ended.is_err();
        let before = |process: &Process| missing.iter().find(|(other, _)| other == process);
        let count = |process: Process| {
            let times = before(&process).map_or(0, |(_, times)| *times) + 1;
            (process, times)
        };
        missing = ended.unwrap_or_default().into_iter().map(count).collect();
        // What this process was doing when it was taken for dead has ended, wherever it was.
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
                    Err(error) => tracing::warn!(%error, "an ended process cannot be taken over yet"),
                }
            }
            left.push((process, times));
        }
        missing = left;
        // What the database did not say meanwhile, and what was left to a process that did not answer, is compared,
        // as at a start. Should this process end before it is done, another one does the same for it.
        if open && !away && missing.is_empty() {
            service.hosts.iter().for_each(|host| host.look_everywhere());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn fail_over(service: &Service, process: &Process) -> Result<(), Error> {
    let Some(_one) = service.store.locks().try_lock(process.id.to_string()).await? else { return Ok(()) };
    tracing::warn!(
        host = %process.host, pid = process.pid,
        "process {} on {} has ended: what it left is taken over", process.pid, process.host
    );
    Ok(service.store.forget_process(process).await?)
}
