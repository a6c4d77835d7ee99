//! A libvirtd that dies, comes back, or freezes.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use hotslot_driver::hypervisor::{ErrorKind, Event, Hypervisor, Scope};
use hotslot_driver::libvirt::{Libvirt, Options};
use tokio::time::timeout;

use crate::daemon::Daemon;
use crate::{G1, PATIENCE, connected, expect, options};

#[tokio::test]
async fn killed_and_started_again() {
    let mut daemon = Daemon::start();
    let libvirt = connected(daemon.uri(), options()).await;
    let mut events = libvirt.events();

    daemon.kill();
    let error = libvirt.domains().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Away, "{error}");
    expect(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
    assert!(libvirt.connection().is_err());
    assert_eq!(libvirt.domains().await.unwrap_err().kind, ErrorKind::Away);

    daemon.start_again();
    expect(&mut events, |event| *event == Event::Connected).await;
    assert_eq!(libvirt.domains().await.unwrap().len(), 1);
    // The new connection is listened to as the first one was.
    let tag = "<hostdev mode='subsystem' type='pci'><alias name='ua-again'/>
        <source><address domain='0' bus='1' slot='16' function='0'/></source></hostdev>";
    libvirt.attach(G1, tag, Scope::Live).await.unwrap();
    expect(&mut events, |event| matches!(event, Event::DeviceAdded { alias, .. } if alias == "ua-again"))
        .await;
}

/// Calls come back at their limit, do not pile up, and work again when the daemon does.
#[tokio::test]
async fn frozen_for_a_while() {
    let limit = Duration::from_millis(200);
    let daemon = Daemon::start();
    let options = Options { read_limit: limit, ..options() };
    let libvirt = connected(daemon.uri(), options.clone()).await;

    daemon.signal("STOP");
    let begun = Instant::now();
    let calls: Vec<_> = (0..options.parallel_calls)
        .map(|_| {
            let libvirt = libvirt.clone();
            tokio::spawn(async move { libvirt.domains().await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().kind, ErrorKind::TimedOut);
    }
    assert!(begun.elapsed() < limit * 5, "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(libvirt.domains().await.unwrap_err().kind, ErrorKind::TimedOut);
    assert!(begun.elapsed() < limit / 2, "it waited though no lane was free");

    daemon.signal("CONT");
    let begun = Instant::now();
    while libvirt.domains().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not come back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(libvirt.connection(), Ok(()), "a slow daemon is no reason to reconnect");
}

/// Keepalive finds a daemon that does not answer, and takes the calls with it that wait for one.
#[tokio::test]
async fn frozen_for_good() {
    let mut daemon = Daemon::start();
    let options = Options { keepalive: Duration::from_secs(1), keepalive_count: 1, ..options() };
    let libvirt = connected(daemon.uri(), options).await;
    let mut events = libvirt.events();

    daemon.signal("STOP");
    assert_eq!(libvirt.domains().await.unwrap_err().kind, ErrorKind::Away);
    let lost = expect(&mut events, |event| matches!(event, Event::Disconnected { .. })).await;
    assert!(format!("{lost:?}").contains("keepalive"), "{lost:?}");

    daemon.kill();
    daemon.start_again();
    expect(&mut events, |event| *event == Event::Connected).await;
    libvirt.domains().await.unwrap();
}

/// A host that hung when it was connected to, and was reset then: nobody tells that this one will not be answered.
#[tokio::test]
async fn a_connection_that_is_never_answered_is_not_waited_for_when_the_next_one_is() {
    let mut daemon = Daemon::start();
    daemon.kill();
    std::fs::remove_file(daemon.socket()).unwrap_or_default();
    let hung = UnixListener::bind(daemon.socket()).unwrap();
    let options = Options { open_limit: Duration::from_millis(200), ..options() };
    let libvirt = Libvirt::connect(daemon.uri(), options);
    let mut events = libvirt.events();
    let tried = timeout(PATIENCE, libvirt.tried()).await;
    assert!(matches!(&tried, Ok(Err(why)) if why.contains("no answer")), "{tried:?}");

    daemon.start_again();
    expect(&mut events, |event| *event == Event::Connected).await;
    assert_eq!(libvirt.domains().await.unwrap().len(), 1);
    drop(hung);
}
