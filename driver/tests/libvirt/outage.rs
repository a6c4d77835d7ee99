//! A libvirtd that dies, restarts or freezes.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use hotslot_driver::hypervisor::{ErrorKind, Event, Hypervisor, Scope};
use hotslot_driver::libvirt::{Libvirt, Options};
use tokio::time::timeout;

use crate::daemon::Daemon;
use crate::{G1, PATIENCE, connected, expect, options};

#[tokio::test]
async fn the_adapter_reconnects_after_libvirtd_was_killed_and_restarted() {
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
    // The adapter also subscribes to the events of the new connection.
    let tag = "<hostdev mode='subsystem' type='pci'><alias name='ua-again'/>
        <source><address domain='0' bus='1' slot='16' function='0'/></source></hostdev>";
    libvirt.attach(G1, tag, Scope::Live).await.unwrap();
    expect(&mut events, |event| matches!(event, Event::DeviceAdded { alias, .. } if alias == "ua-again"))
        .await;
}

/// Calls end at their time limit, their number is limited, and they work again when the daemon does.
#[tokio::test]
async fn calls_time_out_while_libvirtd_is_frozen() {
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
    assert!(begun.elapsed() < limit / 2, "the call waited although no slot was free");

    daemon.signal("CONT");
    let begun = Instant::now();
    while libvirt.domains().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "libvirtd does not answer again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(libvirt.connection(), Ok(()), "a slow daemon is no reason to reconnect");
}

/// Keepalive notices that the daemon does not answer, and the waiting calls end with an error.
#[tokio::test]
async fn keepalive_ends_the_connection_to_a_frozen_libvirtd() {
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

/// A host hangs while a connection is opened and is then reset, so that this attempt never gets an answer.
#[tokio::test]
async fn an_attempt_to_connect_without_an_answer_is_given_up_for_the_next_one() {
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
